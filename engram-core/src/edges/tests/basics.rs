//! The rules one by one, with numbers that can be checked by hand.

use super::super::state::{Base, Conflict, Contribution, EdgeState, Removal};
use super::super::value::visible;
use super::super::{EdgeRecord, RecordError};
use super::{fold_mark, log_dot, overlay_dot, request, stamp, unit};
use crate::command::{EdgeChange, OverlayDelta};
use crate::types::{
    Decay, Dot, EdgeContext, MemoryId, OverlayContext, OverlayDot, Relation, RequestId, Sequence,
    Unit,
};

fn contribution(weight: f64, confidence: f64, counter: u64) -> Contribution {
    Contribution::new(
        unit(weight),
        unit(confidence),
        stamp(counter),
        request(counter),
        false,
    )
}

fn removal(context: EdgeContext) -> Removal {
    Removal {
        context,
        stamp: stamp(0),
        request: request(999),
    }
}

fn context(sequence: u64, overlay: &[OverlayDot]) -> EdgeContext {
    let overlay = OverlayContext::from_parts([], overlay.iter().copied());
    EdgeContext {
        sequence: Sequence(sequence),
        overlay,
    }
}

fn delta(dot: OverlayDot, request: RequestId, retried: bool, change: EdgeChange) -> OverlayDelta {
    let id = |id: &str| MemoryId::new(id).expect("a valid id");
    let relation = Relation::new("r").expect("a valid relation");
    let stamp = stamp(request.counter);
    OverlayDelta {
        dot,
        request,
        from: id("a"),
        to: id("b"),
        relation,
        stamp,
        retried,
        change,
    }
}

fn observed(dot: OverlayDot, counter: u64, retried: bool) -> OverlayDelta {
    let change = EdgeChange::Contribute {
        weight: unit(1.0),
        confidence: unit(0.5),
    };
    delta(dot, request(counter), retried, change)
}

fn applied(contributions: &[(Dot, Contribution)]) -> EdgeState {
    let mut state = EdgeState::default();
    for (dot, held) in contributions {
        assert!(state.apply_contribution(*dot, *held).changed);
    }
    state
}

#[test]
fn weight_is_the_mean_by_confidence() {
    let state = applied(&[
        (log_dot(1), contribution(1.0, 0.75, 1)),
        (log_dot(2), contribution(0.0, 0.25, 2)),
    ]);
    let value = state.value();
    assert!(value.is_live());
    assert_eq!((value.contributions, value.newest), (2, stamp(2)));
    assert_eq!(value.weight(&Decay::None, 0), unit(0.75));
    let day = 86_400_000;
    let decay = Decay::Exponential {
        half_life_millis: day,
    };
    assert_eq!(value.weight(&decay, 2 + day), unit(0.375));
    assert_eq!(
        value.weight(&decay, 0),
        unit(0.75),
        "a stamp from the future is of age 0"
    );
}

#[test]
fn an_edge_without_confidence_is_there_and_weighs_nothing() {
    let value = applied(&[(log_dot(1), contribution(1.0, 0.0, 1))]).value();
    assert!(value.is_live());
    assert_eq!(value.weight(&Decay::None, 0), Unit::ZERO);
    assert!(!EdgeState::default().value().is_live());
}

#[test]
fn strengthening_is_evidence_of_full_weight() {
    let state = applied(&[(log_dot(1), contribution(1.0, 0.3, 1))]);
    assert_eq!(state.value().weight(&Decay::None, 0), Unit::ONE);
}

#[test]
fn removals_take_what_they_cover_and_nothing_else() {
    let mut state = applied(&[
        (log_dot(1), contribution(1.0, 1.0, 1)),
        (log_dot(3), contribution(0.5, 1.0, 2)),
    ]);
    let effect = state.apply_removal(log_dot(4), removal(context(2, &[])), &context(4, &[]));
    assert!(effect.changed && effect.conflict.is_none());
    assert_eq!(state.value().weight(&Decay::None, 0), unit(0.5));
    assert_eq!(
        state.pending_removals().count(),
        0,
        "the log covers what it may remove"
    );
    let again = state.apply_removal(log_dot(5), removal(context(2, &[])), &context(5, &[]));
    assert!(!again.changed);
    let _ = state.apply_removal(log_dot(6), removal(context(5, &[])), &context(6, &[]));
    assert!(state.is_empty());
}

#[test]
fn a_removal_waits_for_what_it_covers() {
    let (one, two) = (overlay_dot(1, 1), overlay_dot(1, 2));
    let mut state = EdgeState::default();
    let mut log = context(1, &[]);
    assert!(
        state
            .apply_removal(log_dot(1), removal(context(0, &[one, two])), &log)
            .changed
    );
    assert_eq!(state.pending_removals().count(), 1);
    for (dot, left) in [(one, 1), (two, 0)] {
        let _ = state.adopt(&observed(dot, dot.n, false), &log);
        log.overlay.insert(dot);
        assert!(!state.value().is_live());
        assert_eq!(state.pending_removals().count(), left);
    }
    assert!(state.is_empty());
}

#[test]
fn a_dot_that_comes_with_other_bytes_is_an_alarm() {
    let dot = overlay_dot(1, 1);
    let mut log = context(1, &[]);
    let mut state = EdgeState::default();
    assert!(state.adopt(&observed(dot, 1, false), &log).changed);
    log.overlay.insert(dot);
    let before = state.clone();
    let effect = state.adopt(&observed(dot, 2, false), &log);
    let dot = Dot::Overlay(dot);
    assert_eq!(effect.conflict, Some(Conflict::DotReused { dot }));
    assert!(!effect.changed);
    assert_eq!(state, before);
}

#[test]
fn adoption_is_idempotent_and_a_removed_delta_does_not_return() {
    let dot = overlay_dot(1, 1);
    let mut log = context(1, &[]);
    let mut state = EdgeState::default();
    assert!(state.adopt(&observed(dot, 1, false), &log).changed);
    log.overlay.insert(dot);
    let _ = state.apply_removal(log_dot(2), removal(context(1, &[dot])), &log);
    assert!(!state.adopt(&observed(dot, 1, false), &log).changed);
    assert!(state.is_empty());
}

#[test]
fn twins_count_once_and_the_log_goes_first() {
    let first = contribution(0.25, 1.0, 1);
    let mut state = applied(&[(log_dot(5), first)]);
    let twin = OverlayDelta {
        stamp: stamp(77),
        ..observed(overlay_dot(1, 1), 1, true)
    };
    assert!(state.adopt(&twin, &context(5, &[])).changed);
    let value = state.value();
    assert_eq!((value.contributions, value.newest), (1, first.stamp));
    // The other way round, and in the overlay, it is the same.
    assert_eq!(
        visible(
            Some(&applied(&[(log_dot(5), first)])),
            &[twin.clone(), twin],
            &context(5, &[])
        ),
        value
    );
    // What the issuer of a removal did not see survives it.
    let _ = state.apply_removal(log_dot(6), removal(context(5, &[])), &context(6, &[]));
    assert_eq!(state.value().newest, stamp(77));
}

#[test]
fn overlay_removals_hide_what_they_cover_in_the_log() {
    let state = applied(&[
        (log_dot(1), contribution(1.0, 1.0, 1)),
        (log_dot(2), contribution(0.5, 1.0, 2)),
    ]);
    let change = EdgeChange::Remove {
        context: context(1, &[]),
    };
    let remove = delta(overlay_dot(1, 1), request(3), false, change);
    let value = visible(
        Some(&state),
        std::slice::from_ref(&remove),
        &context(2, &[]),
    );
    assert_eq!(
        (value.contributions, value.weight(&Decay::None, 0)),
        (1, unit(0.5))
    );
    let adopted = context(2, &[remove.dot]);
    assert_eq!(
        visible(Some(&state), &[remove], &adopted).contributions,
        2,
        "the log decides"
    );
}

fn folded() -> EdgeState {
    let retried = Contribution {
        retried: true,
        ..contribution(0.5, 1.0, 2)
    };
    let mut state = applied(&[
        (log_dot(1), contribution(1.0, 1.0, 1)),
        (log_dot(2), retried),
        (log_dot(3), contribution(0.0, 1.0, 3)),
    ]);
    let before = state.value();
    assert!(state.fold(fold_mark(4), &context(2, &[])));
    assert_eq!(state.contributions().count(), 1);
    let after = state.value();
    assert_eq!(
        (after.sum_wc, after.sum_c, after.newest),
        (before.sum_wc, before.sum_c, before.newest)
    );
    state
}

#[test]
fn a_removal_that_covers_the_frontier_takes_the_base_whole() {
    let mut state = folded();
    let effect = state.apply_removal(log_dot(5), removal(context(2, &[])), &context(5, &[]));
    assert!(effect.changed && effect.conflict.is_none());
    assert!(state.base().is_none());
    assert_eq!(state.value().contributions, 1);
}

#[test]
fn a_removal_that_misses_the_frontier_is_a_conflict_and_the_base_stays() {
    let mut state = folded();
    let effect = state.apply_removal(log_dot(5), removal(context(1, &[])), &context(5, &[]));
    let conflict = Conflict::RemovalMissesBase {
        removal: log_dot(5),
        request: request(999),
    };
    assert_eq!(effect.conflict, Some(conflict));
    assert!(!effect.changed);
    assert_eq!(state.value().contributions, 3);
}

#[test]
fn retries_that_meet_a_base_are_reported() {
    let mut state = folded();
    let log = context(4, &[]);
    // Its first attempt is known to be in the base.
    let swallowed = observed(overlay_dot(1, 1), 2, true);
    let effect = state.adopt(&swallowed, &log);
    let conflict = |dot, counter, counted| {
        let (contribution, request) = (Dot::Overlay(dot), request(counter));
        Some(Conflict::RetryMeetsBase {
            contribution,
            request,
            counted,
        })
    };
    assert_eq!(effect.conflict, conflict(swallowed.dot, 2, false));
    assert_eq!(state.value().contributions, 3);
    // Whether its first attempt is in the base is not known.
    let unknown = observed(overlay_dot(1, 2), 1, true);
    assert_eq!(
        state.adopt(&unknown, &log).conflict,
        conflict(unknown.dot, 1, true)
    );
    assert_eq!(state.value().contributions, 4);
    // Its first attempt is live: a plain twin.
    let twin = observed(overlay_dot(1, 3), 3, true);
    assert_eq!(state.adopt(&twin, &log).conflict, None);
    assert_eq!(state.value().contributions, 4);
    // A first attempt whose marked twin was swallowed is known too.
    let late = observed(overlay_dot(1, 4), 2, false);
    assert_eq!(state.adopt(&late, &log).conflict, None);
    assert_eq!(state.value().contributions, 4);
}

#[test]
fn folding_again_grows_the_base() {
    let mut state = folded();
    assert!(
        !state.fold(fold_mark(5), &context(2, &[])),
        "nothing new under the frontier"
    );
    assert_eq!(state.base().map(Base::dot), Some(log_dot(4)));
    assert!(state.fold(fold_mark(6), &context(3, &[])));
    let base = state.base().expect("a base");
    assert_eq!(
        (base.count, base.dot(), base.newest),
        (3, log_dot(6), stamp(3))
    );
    assert_eq!(base.frontier(), Sequence(3));
    assert_eq!(state.contributions().count(), 0);
    assert!(state.value().is_live());
}

#[test]
fn records_of_another_kind_are_refused() {
    let to = MemoryId::new("b").expect("a valid id");
    let bytes = EdgeRecord {
        to,
        state: folded(),
    }
    .encode();
    assert!(EdgeRecord::decode(&bytes).is_ok());
    let mut newer = bytes.clone();
    newer[0] = 2;
    assert_eq!(
        EdgeRecord::decode(&newer),
        Err(RecordError::Version { found: 2 })
    );
    let mut longer = bytes;
    longer.push(0);
    assert!(matches!(
        EdgeRecord::decode(&longer),
        Err(RecordError::Malformed { .. })
    ));
    assert!(EdgeRecord::decode(&[]).is_err());
}
