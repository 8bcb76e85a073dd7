//! The laws of join, on states that histories lead to.

use proptest::prelude::*;

use super::super::state::EdgeState;
use super::super::{digest, record};
use super::history::{Real, World, actions, sums};
use super::oracle::declared;
use crate::cases::cases;
use crate::types::{EdgeContext, EdgeKey, MemoryHash, Relation};

type View = (EdgeState, EdgeContext);

fn join((left, left_context): &View, (right, right_context): &View) -> View {
    let (mut state, mut context) = (left.clone(), left_context.clone());
    state.join(left_context, right, right_context);
    context.join(right_context);
    (state, context)
}

proptest! {
    #![proptest_config(cases(2_000))]

    #[test]
    fn join_is_a_least_upper_bound(actions in actions(true)) {
        let world = World::<Real>::run_without_settling(&actions);
        let [a, b, c] = [0, 1, 2].map(|replica| world.view(replica));
        let ab = join(&a, &b);
        prop_assert_eq!(&ab, &join(&b, &a), "commutative");
        prop_assert_eq!(join(&ab, &c), join(&a, &join(&b, &c)), "associative");
        prop_assert_eq!(&join(&a, &a), &a, "idempotent");
        prop_assert_eq!(&join(&ab, &b), &ab, "absorptive");
        prop_assert_eq!(&join(&b, &ab), &ab, "absorptive");
    }

    #[test]
    fn joined_views_have_the_value_of_all_that_was_seen(actions in actions(false)) {
        let world = World::<Real>::run_without_settling(&actions);
        let joined = join(&join(&world.view(2), &world.view(0)), &world.view(1));
        let (log, overlay) = world.seen_by(&[0, 1, 2]);
        prop_assert_eq!(sums(joined.0.value()), declared(&log, &overlay));
    }

    #[test]
    fn equal_states_have_equal_digests_and_others_do_not(actions in actions(true)) {
        let world = World::<Real>::run_without_settling(&actions);
        let key = EdgeKey {
            from: MemoryHash([1; 16]),
            to: MemoryHash([2; 16]),
            relation: Relation::new("r").expect("a valid relation"),
        };
        let [a, b, c] = [0, 1, 2].map(|replica| world.view(replica));
        let one = join(&join(&a, &b), &c).0;
        let two = join(&c, &join(&b, &a)).0;
        prop_assert_eq!(digest(&key, &one), digest(&key, &two));
        prop_assert_eq!(digest(&key, &a.0) == digest(&key, &b.0), a.0 == b.0);
        let other = EdgeKey { to: MemoryHash([3; 16]), ..key.clone() };
        prop_assert_ne!(digest(&key, &one), digest(&other, &one));
    }

    #[test]
    fn no_bytes_make_decoding_panic(
        actions in actions(true), position in any::<prop::sample::Index>(), flip in 1_u8..,
        noise in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let world = World::<Real>::run_without_settling(&actions);
        let to = crate::types::MemoryId::new("to").expect("a valid id");
        let mut bytes = record::EdgeRecord { to, state: world.view(0).0 }.encode();
        prop_assert!(record::EdgeRecord::decode(&bytes[..bytes.len() - 1]).is_err());
        let position = position.index(bytes.len());
        bytes[position] ^= flip;
        let _ = record::EdgeRecord::decode(&bytes);
        let _ = record::EdgeRecord::decode(&noise);
    }
}

impl World<Real> {
    /// The state in the middle of things, where views differ most.
    fn run_without_settling(actions: &[super::history::Action]) -> Self {
        let mut world = Self::new();
        actions.iter().for_each(|action| world.act(action));
        world
    }
}
