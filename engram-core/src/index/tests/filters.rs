//! Filters of every selectivity: as many results as match, nearly the exact ones, by a walk where
//! that is cheaper and by a scan where it is not.

use std::cell::Cell;

use super::crews::Threads;
use super::*;

/// So many that one in 10,000 leaves ten.
const MEMORIES: u64 = 100_000;
const QUERIES: usize = 30;
const LIMIT: usize = 10;
/// Vectors of 10,000 that a filter takes.
const SHARES: [u64; 9] = [10_000, 5_000, 2_000, 1_000, 300, 100, 30, 10, 1];

/// Vector `id` is near centre `id % CENTRES`.
fn filled() -> Partition {
    let mut random = StdRng::seed_from_u64(81);
    let mut partition = Partition::new(shape(Kernel::detect(), Metric::Cosine));
    let ids: Vec<u64> = (0..MEMORIES).collect();
    for ids in ids.chunks(50) {
        let point = |id: &u64| near((id % u64::from(CENTRES)) as u8, DIMENSION, &mut random);
        let points: Vec<Vec<f32>> = ids.iter().map(point).collect();
        let inserts = points.into_iter().map(|point| (owner(&mut random), point));
        partition.apply(&Command {
            inserts: inserts.collect(),
            kills: vec![],
            ..Command::default()
        });
    }
    partition.work_with(&Threads(2));
    partition
}

/// What a filter takes, whatever the vector is near to.
fn is_drawn(id: VectorId, share: u64) -> bool {
    // Splitmix64's first step, so that neighbours in the order of ids have nothing in common.
    let mixed = (id.0 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed ^ mixed >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 11 & 0xFFFF_FFFF
        < share * ((1 << 32) / 10_000)
}

/// Asks with a filter; checks the answers; returns how often each query asked the filter.
fn check(partition: &Partition, what: &str, centre: u8, accept: &dyn Fn(VectorId) -> bool) -> f64 {
    let mut random = StdRng::seed_from_u64(82);
    let exist = (0..MEMORIES).filter(|id| accept(VectorId(*id))).count();
    let (mut found, mut expected) = (0, 0);
    let asked = Cell::new(0_u64);
    for _ in 0..QUERIES {
        let query = near(centre, DIMENSION, &mut random);
        let counted = |id| {
            asked.set(asked.get() + 1);
            accept(id)
        };
        let index = &partition.index;
        let hits = index.search(&query, LIMIT, DEFAULT_EFFORT, &counted);
        assert_eq!(hits.len(), LIMIT.min(exist), "{what}: {exist} match");
        assert!(hits.iter().all(|hit| accept(hit.id)), "{what}");
        let exact = index.scan(&query, LIMIT, accept);
        expected += exact.len();
        found += hits.iter().filter(|hit| exact.contains(hit)).count();
    }
    assert!(
        found * 100 >= expected * 95,
        "{what}: {found} of {expected} are the nearest of {exist}"
    );
    asked.get() as f64 / QUERIES as f64
}

#[test]
fn every_selectivity_finds_the_nearest_that_match() {
    let partition = filled();
    let mut asked = Vec::new();
    for share in SHARES {
        let accept = |id| is_drawn(id, share);
        let what = format!("{share} of 10,000");
        asked.push(check(&partition, &what, 3, &accept));
    }
    let all = MEMORIES as f64;
    assert!(asked[0] < all / 10.0, "walks: {asked:?}");
    assert!(asked[SHARES.len() - 1] >= all, "scans: {asked:?}");

    // What matches is far from the query, so a walk to it leads through all that does not.
    let elsewhere = |id: VectorId| id.0 % u64::from(CENTRES) == 11;
    check(&partition, "of another centre", 3, &elsewhere);
    let few = |id: VectorId| elsewhere(id) && is_drawn(id, 50);
    check(&partition, "few of another centre", 3, &few);
    // What matches is nearest: the filter is no hindrance.
    let here = |id: VectorId| id.0 % u64::from(CENTRES) == 3;
    let asked = check(&partition, "of the same centre", 3, &here);
    assert!(asked < all / 10.0, "{asked}");
    check(&partition, "nothing", 3, &|_| false);
}
