//! What queries find: everything acknowledged, nothing dead, as many as were asked for.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;

fn filled(log: &[Command], metric: Metric) -> Partition {
    let mut partition = Partition::new(shape(Kernel::detect(), metric));
    log.iter().for_each(|command| partition.apply(command));
    partition.work();
    partition
}

/// The exact answer, computed apart from the index.
fn naive(partition: &Partition, query: &[f32], limit: usize, metric: Metric) -> Vec<Hit> {
    let kernel = Kernel::PORTABLE;
    let query = crate::kernel::Row::new(query);
    let mut hits: Vec<Hit> = partition
        .live()
        .into_iter()
        .map(|id| {
            let row = crate::kernel::Row::new(&partition.vectors[&id].components);
            Hit {
                id,
                distance: kernel.distance(metric, &query, &row).0,
            }
        })
        .collect();
    hits.sort_by(|a, b| a.distance.total_cmp(&b.distance).then(a.id.cmp(&b.id)));
    hits.truncate(limit);
    hits
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn scans_are_exact_and_so_are_searches_of_small_spaces(
        seed: u64,
        inserts in 0_usize..800,
        dying in 0_u32..60,
        limit in 0_usize..30,
        metric in prop_oneof![Just(Metric::Dot), Just(Metric::L2)],
    ) {
        let partition = filled(&log(seed, inserts, dying), metric);
        let query = clustered(&mut StdRng::seed_from_u64(seed ^ 1));
        let expected = naive(&partition, &query, limit, metric);
        prop_assert_eq!(&partition.index.scan(&query, limit, &everything), &expected);
        prop_assert_eq!(&partition.index.search(&query, limit, 20, &everything), &expected);
    }
}

#[test]
fn large_spaces_are_found_again() {
    let partition = filled(&log(5, 4_000, 10), Metric::Cosine);
    let mut found = 0;
    let mut random = StdRng::seed_from_u64(6);
    for _ in 0..200 {
        let query = clustered(&mut random);
        let exact = partition.index.scan(&query, 10, &everything);
        let near = partition
            .index
            .search(&query, 10, DEFAULT_EFFORT, &everything);
        assert!(near.is_sorted_by(|a, b| (a.distance, a.id) < (b.distance, b.id)));
        found += near.iter().filter(|hit| exact.contains(hit)).count();
    }
    assert!(found >= 1_960, "{found} of 2000");
}

#[test]
fn a_query_need_not_be_of_unit_length() {
    let partition = filled(&log(5, 300, 0), Metric::Cosine);
    let query = clustered(&mut StdRng::seed_from_u64(6));
    let longer: Vec<f32> = query.iter().map(|value| value * 8.0).collect();
    let ids = |query: &[f32]| -> Vec<VectorId> {
        partition
            .index
            .scan(query, 10, &everything)
            .iter()
            .map(|hit| hit.id)
            .collect()
    };
    assert_eq!(ids(&query), ids(&longer));
}

#[test]
fn an_unlinked_vector_is_found_at_once() {
    let log = log(8, 3_000, 5);
    let mut partition = Partition::new(shape(Kernel::detect(), Metric::L2));
    for (place, command) in log.iter().enumerate() {
        partition.apply(command);
        if place % 50 == 0 {
            partition.work();
        }
        let Some((_, newest)) = command.inserts.last() else {
            continue;
        };
        let id = VectorId(partition.vectors.len() as u64 - 1);
        if !partition.deaths.contains_key(&id) {
            let hits = partition.index.search(newest, 300, 300, &everything);
            assert!(
                hits.iter().any(|hit| hit.id == id),
                "vector {id} was not found"
            );
        }
    }
}

/// Identical vectors neither shut themselves off nor stand in the way of others, whether they come
/// first, so that the entry point is one of them, or among others.
#[test]
fn a_crowd_of_duplicates_strands_nobody() {
    for ordinary in [0, 1_500] {
        check_crowd(ordinary);
    }
}

fn check_crowd(before: usize) {
    let mut random = StdRng::seed_from_u64(9);
    let crowd = clustered(&mut random);
    let mut commands = log(10, before, 0);
    let first = commands
        .iter()
        .map(|command| command.inserts.len())
        .sum::<usize>();
    for _ in 0..10 {
        let inserts = (0..100)
            .map(|_| (owner(&mut random), crowd.clone()))
            .collect();
        commands.push(Command {
            inserts,
            kills: Vec::new(),
            ..Command::default()
        });
    }
    commands.extend(log(11, 1_500, 0));
    let partition = filled(&commands, Metric::Cosine);
    check_reachable(&partition);

    let is_crowd = |id: VectorId| (first..first + 1_000).contains(&(id.0 as usize));
    let hits = partition.index.search(&crowd, 1_000, 1_000, &is_crowd);
    assert_eq!(hits.len(), 1_000, "all of the crowd is found");
    let (mut found, mut expected) = (0, 0);
    for _ in 0..100 {
        // Around the crowd, where it could trap the walk.
        let query: Vec<f32> = crowd
            .iter()
            .map(|value| value + random.random_range(-0.4..0.4))
            .collect();
        // No filter: it would let the walk go on through the crowd.
        let exact = partition.index.scan(&query, 10, &everything);
        let near = partition.index.search(&query, 10, 64, &everything);
        expected += exact.len();
        // Which of the crowd are found does not matter.
        found += near
            .iter()
            .filter(|hit| hit.distance <= exact[9].distance)
            .count();
    }
    assert!(
        found * 100 >= expected * 97,
        "{found} of {expected}, {before} before the crowd"
    );
}

/// A thousand vectors that differ by next to nothing, then a few far from all: each far one is found,
/// as codes too, in which most of the crowd are equal.
#[test]
fn near_duplicates_trap_nobody() {
    for quantization in [Quantization::None, Quantization::Int8] {
        let mut random = StdRng::seed_from_u64(71);
        let crowd = clustered(&mut random);
        let mut inserts = Vec::new();
        for _ in 0..1_200 {
            let near = crowd
                .iter()
                .map(|lane| lane + random.random_range(-1e-4..1e-4))
                .collect();
            inserts.push((owner(&mut random), near));
        }
        let far: Vec<Vec<f32>> = (0..20)
            .map(|place| {
                let lane = |lane: u32| {
                    if lane == place % DIMENSION {
                        3.0
                    } else {
                        0.1 * place as f32
                    }
                };
                (0..DIMENSION).map(lane).collect()
            })
            .collect();
        inserts.extend(far.iter().map(|point| (owner(&mut random), point.clone())));
        let shape = quantized(shape(Kernel::detect(), Metric::L2), quantization);
        let mut partition = Partition::new(shape);
        for inserts in inserts.chunks(7) {
            let inserts = inserts.to_vec();
            partition.apply(&Command {
                inserts,
                kills: vec![],
                ..Command::default()
            });
        }
        partition.work();
        check_reachable(&partition);
        for (place, point) in (1_200..).zip(&far) {
            let hits = partition.index.search(point, 1, 16, &everything);
            assert_eq!(hits[0].id, VectorId(place), "{quantization:?}");
        }
    }
}

#[test]
fn a_filter_never_shortens_the_answer() {
    let partition = filled(&log(12, 4_000, 12), Metric::Cosine);
    let live = partition.live();
    let mut random = StdRng::seed_from_u64(13);
    for share in [1, 2, 10, 50, 400, 2_000] {
        let query = clustered(&mut random);
        let accept = |id: VectorId| id.0.is_multiple_of(share);
        let exist = live.iter().filter(|id| accept(**id)).count();
        for limit in [1, 10, 100, 1_000] {
            let hits = partition.index.search(&query, limit, 16, &accept);
            assert_eq!(hits.len(), limit.min(exist), "1 in {share}, limit {limit}");
            assert!(
                hits.iter()
                    .all(|hit| accept(hit.id) && live.contains(&hit.id))
            );
            let ids: BTreeSet<VectorId> = hits.iter().map(|hit| hit.id).collect();
            assert_eq!(ids.len(), hits.len(), "a vector twice");
        }
    }
    assert!(
        partition
            .index
            .search(&[0.5; 16], 10, 16, &|_| false)
            .is_empty()
    );
}

/// One thread applies, one links, one asks: answers are whole at any moment.
#[test]
fn searches_hold_while_the_index_changes() {
    let log = log(14, 6_000, 25);
    let index = PartitionIndex::with_shape(shape(Kernel::detect(), Metric::L2));
    let (acknowledged, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    // What each vector is, and what died by which sequence, known beforehand.
    let mut points = Vec::new();
    let mut death = BTreeMap::new();
    for (place, command) in (1_u64..).zip(&log) {
        points.extend(
            command
                .inserts
                .iter()
                .map(|(_, point)| (place, point.clone())),
        );
        command.kills.iter().for_each(|id| {
            death.entry(*id).or_insert(place);
        });
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for (place, command) in (1_u64..).zip(&log) {
                apply_shared(&index, place, command, &points);
                acknowledged.store(place, Ordering::Release);
            }
            is_over.store(true, Ordering::Release);
        });
        scope.spawn(|| {
            while !is_over.load(Ordering::Acquire) || index.status().jobs_waiting > 0 {
                match index.next_job() {
                    Some(job) => index.commit(index.run(&job)),
                    None => std::thread::yield_now(),
                }
            }
        });
        let mut random = StdRng::seed_from_u64(15);
        while !is_over.load(Ordering::Acquire) {
            let before = acknowledged.load(Ordering::Acquire);
            let known = points.partition_point(|(place, _)| *place <= before);
            if known == 0 {
                continue;
            }
            let wanted = random.random_range(0..known);
            let hits = index.search(&points[wanted].1, 40, 64, &everything);
            let after = acknowledged.load(Ordering::Acquire) + 1;
            for hit in &hits {
                let died = death.get(&hit.id);
                assert!(
                    died.is_none_or(|at| *at > before),
                    "{} died at {died:?}",
                    hit.id
                );
            }
            let id = VectorId(wanted as u64);
            let is_live = death.get(&id).is_none_or(|at| *at > after);
            let is_found = hits.iter().any(|hit| hit.id == id || hit.distance == 0.0);
            assert!(
                !is_live || is_found,
                "vector {id} was acknowledged and not found"
            );
        }
    });
    assert_eq!(index.status().jobs_waiting, 0);
    let mut late = Partition::new(shape(Kernel::PORTABLE, Metric::L2));
    log.iter().for_each(|command| late.apply(command));
    late.work();
    assert!(
        late.generations.len() > 1,
        "the log is long enough for a generation to end"
    );
    assert_eq!(index.digest_at(index.sealed()), Some(late.digest()));
}

pub(super) fn apply_shared(
    index: &PartitionIndex,
    place: u64,
    command: &Command,
    points: &[(u64, Vec<f32>)],
) {
    let first = points.partition_point(|(at, _)| *at < place) as u64;
    let sequence = Sequence(place);
    for (id, (owner, components)) in (first..).zip(&command.inserts) {
        let id = VectorId(id);
        index.insert(NewVector {
            id,
            owner: *owner,
            sequence,
            components,
        });
    }
    command
        .kills
        .iter()
        .for_each(|id| index.kill(*id, sequence));
    if let Some(generation) = index.applied(sequence) {
        index.begin_generation(generation);
    }
}
