//! Jobs that get lost, snapshots that are damaged or of another time, state with holes.

use super::*;

fn linked(seed: u64) -> Partition {
    let mut partition = Partition::new(shape(Kernel::detect(), Metric::Cosine));
    log(seed, 2_000, 25)
        .iter()
        .for_each(|command| partition.apply(command));
    partition.work();
    partition
}

#[test]
fn a_lost_job_is_offered_again_and_a_late_result_is_dropped() {
    let mut partition = Partition::new(shape(Kernel::detect(), Metric::Cosine));
    log(1, 400, 10)
        .iter()
        .for_each(|command| partition.apply(command));
    let index = &partition.index;
    let job = index.next_job().expect("a job");
    assert!(index.next_job().is_none(), "one job per generation is out");
    drop(job);
    let job = index.next_job().expect("the same job");
    let linked = index.run(&job);
    drop(job);
    assert!(index.next_job().is_none(), "its result is still out");
    drop(linked);

    let job = index.next_job().expect("the same job");
    let (first, second) = (index.run(&job), index.run(&job));
    index.commit(first);
    let after = index.status();
    index.commit(second);
    assert_eq!(index.status(), after, "a window is linked once");
    drop(job);
    partition.work();
    let mut again = Partition::new(shape(Kernel::detect(), Metric::Cosine));
    log(1, 400, 10)
        .iter()
        .for_each(|command| again.apply(command));
    again.work();
    assert_eq!(again.digest(), partition.digest());
}

/// A death in the command that seals a window counts for it, so the job waits for the whole
/// command.
#[test]
fn a_window_is_offered_only_after_its_command() {
    let index = PartitionIndex::with_shape(shape(Kernel::detect(), Metric::L2));
    let components = [1.0; DIMENSION as usize];
    let owner = MemoryHash([1; 16]);
    index.insert(NewVector {
        id: VectorId(0),
        owner,
        sequence: Sequence(1),
        components: &components,
    });
    assert!(index.next_job().is_none());
    index.kill(VectorId(0), Sequence(1));
    assert!(index.applied(Sequence(1)).is_none());
    let job = index.next_job().expect("the first window");
    index.commit(index.run(&job));
    assert_eq!(index.reachable(), (0, 0), "its only member was dead");
    assert_eq!(
        index.digest_at(index.sealed()),
        Some(TopologyDigest::default())
    );
}

#[test]
#[should_panic(expected = "changes the index after")]
fn an_applied_command_is_closed() {
    let index = PartitionIndex::with_shape(shape(Kernel::detect(), Metric::L2));
    assert!(index.applied(Sequence(3)).is_none());
    index.kill(VectorId(0), Sequence(3));
}

#[test]
fn a_graph_of_the_dead_goes_on() {
    let mut partition = Partition::new(shape(Kernel::detect(), Metric::L2));
    let mut commands = log(3, 500, 0);
    let all = commands
        .iter()
        .map(|command| command.inserts.len() as u64)
        .sum();
    commands.push(Command {
        inserts: vec![],
        kills: (0..all).map(VectorId).collect(),
        ..Command::default()
    });
    commands.iter().for_each(|command| partition.apply(command));
    partition.work();
    assert!(
        partition
            .index
            .search(&[0.1; 16], 5, 16, &everything)
            .is_empty()
    );
    log(4, 400, 0)
        .iter()
        .for_each(|command| partition.apply(command));
    partition.work();
    check_reachable(&partition);
    assert_eq!(
        partition.index.search(&[0.1; 16], 5, 16, &everything).len(),
        5
    );
}

#[test]
fn a_generation_may_begin_empty() {
    let mut partition = Partition::new(shape(Kernel::detect(), Metric::L2));
    log(3, 1_200, 0)
        .iter()
        .for_each(|command| partition.apply(command));
    let all = partition.vectors.len() as u64;
    partition.apply(&Command {
        inserts: vec![],
        kills: (0..all).map(VectorId).collect(),
        ..Command::default()
    });
    let status = partition.index.status();
    assert_eq!(
        (status.serving.generation, status.live, status.dead),
        (2, 0, 0)
    );
    assert_eq!(
        partition.index.sealed(),
        IndexPosition {
            generation: 2,
            jobs: 0
        }
    );
    log(4, 100, 0)
        .iter()
        .for_each(|command| partition.apply(command));
    partition.work();
    assert_eq!(
        partition
            .index
            .search(&[0.1; 16], 500, 16, &everything)
            .len(),
        100 + extra(4)
    );

    fn extra(seed: u64) -> usize {
        log(seed, 100, 0)
            .iter()
            .map(|command| command.inserts.len())
            .sum::<usize>()
            - 100
    }
}

/// A generation whose base does not end with the newest vector, and then the next one, begun by
/// deaths alone: the ids go on where the log is.
#[test]
fn a_generation_of_deaths_alone_knows_what_comes_next() {
    let mut partition = Partition::new(shape(Kernel::detect(), Metric::L2));
    log(5, 3_000, 0)
        .iter()
        .for_each(|command| partition.apply(command));
    let all = partition.vectors.len() as u64;
    let kills = |ids: std::ops::Range<u64>| Command {
        inserts: vec![],
        kills: ids.map(VectorId).collect(),
        ..Command::default()
    };
    partition.apply(&kills(all - 600..all));
    partition.apply(&kills(0..600));
    assert_eq!(partition.index.sealed().generation, 3);
    for generation in &partition.generations[1..] {
        assert_eq!(generation.first, VectorId(all));
    }
    let restarted = partition.restart(shape(Kernel::detect(), Metric::L2), None);
    partition.index = restarted.index;
    partition.apply(&log(6, 1, 0).pop().expect("a command"));
    let last = VectorId(partition.vectors.len() as u64 - 1);
    let point = partition.vectors[&last].components.clone();
    let found = partition.index.search(&point, 1, 16, &everything);
    assert_eq!(found[0].id, last);
}

/// The old generation serves until the new one has caught up; then the old one goes.
#[test]
fn generations_take_turns() {
    let mut partition = Partition::new(shape(Kernel::detect(), Metric::Cosine));
    for command in log(21, 3_000, 0) {
        partition.apply(&command);
        partition.work();
    }
    let slots = partition.vectors.len() as u64;
    let first = partition.index.sealed();
    let kills: Vec<VectorId> = (0..slots * 15 / 100 + 1).map(|n| VectorId(n * 6)).collect();
    partition.apply(&Command {
        inserts: vec![],
        kills,
        ..Command::default()
    });
    assert_eq!(partition.index.sealed().generation, 2);
    let status = partition.index.status();
    assert_eq!((status.serving, status.newest.jobs), (first, 0));
    let mut jobs = 0;
    while partition.index.status().serving.generation == 1 {
        assert!(partition.index.digest_at(first).is_some());
        assert_eq!(partition.index.digest_at(partition.index.sealed()), None);
        let job = partition
            .index
            .next_job()
            .expect("the base is not linked yet");
        partition.index.commit(partition.index.run(&job));
        jobs += 1;
    }
    assert_eq!(jobs, partition.index.status().newest_sealed);
    assert!(partition.index.next_job().is_none());
    assert_eq!(partition.index.digest_at(first), None);
    assert_eq!(partition.index.status().dead, 0);
    check_reachable(&partition);
}

/// Generations begin faster than they are linked: few are held, one takes over, and in the end the
/// topology is that of a replica which kept up.
#[test]
fn generations_that_pile_up_are_bounded() {
    let shape = shape(Kernel::detect(), Metric::Cosine);
    let mut log = log(37, 4_000, 0);
    let mut live: Vec<u64> = (0..4_000).collect();
    for _ in 0..6 {
        let killed = live.len() * 16 / 100;
        let kills = live.drain(..killed).map(VectorId).collect();
        log.push(Command {
            inserts: vec![],
            kills,
            ..Command::default()
        });
    }
    let (mut prompt, mut lagging) = (Partition::new(shape), Partition::new(shape));
    for command in &log {
        prompt.apply(command);
        prompt.work();
        lagging.apply(command);
        let held = lagging.index.status().generations as usize;
        assert!(held <= GENERATIONS_HELD_MAX);
    }
    assert_eq!(prompt.generations.len(), 7);
    assert_eq!(lagging.index.status().generations, 3);
    // Now links of a generation that is left out after a restart are passed over.
    let links = lagging.snapshot();
    log = super::log(38, 1_500, 60);
    for command in &log {
        for partition in [&mut prompt, &mut lagging] {
            partition.apply(command);
        }
        prompt.work();
    }
    let rebuilt = lagging.restart(shape, Some(&links));
    assert!(matches!(rebuilt.snapshot, SnapshotUse::Used));
    assert!(rebuilt.index.status().generations as usize <= GENERATIONS_HELD_MAX);
    for index in [&lagging.index, &rebuilt.index] {
        let mut is_second = false;
        while let Some(job) = index.next_job() {
            index.commit(index.run(&job));
            is_second |= index.status().serving.generation == 2;
        }
        assert!(is_second, "the generation that was next has taken over");
        assert_eq!(index.status().generations, 1);
        assert_eq!(
            index.digest_at(prompt.index.sealed()),
            Some(prompt.digest())
        );
    }
}

#[test]
fn any_damage_to_a_snapshot_is_noticed() {
    let partition = linked(31);
    let good = partition.snapshot();
    let shape = shape(Kernel::detect(), Metric::Cosine);
    let refuses = |bytes: &[u8]| {
        let rebuilt = partition.restart(shape, Some(bytes));
        assert!(
            rebuilt.index.status().newest.jobs == 0,
            "no link of it is used"
        );
        work_off(&rebuilt.index, &Alone);
        let digest = rebuilt.index.digest_at(partition.index.sealed());
        assert_eq!(digest, Some(partition.digest()), "links come back the same");
        match rebuilt.snapshot {
            SnapshotUse::Refused(error) => error,
            SnapshotUse::Absent | SnapshotUse::Used => panic!("a damaged snapshot was taken"),
        }
    };
    let mut random = StdRng::seed_from_u64(32);
    for _ in 0..15 {
        let mut bad = good.clone();
        let place = random.random_range(0..bad.len());
        bad[place] ^= 1 << random.random_range(0..8);
        refuses(&bad);
        refuses(&good[..place]);
    }
    assert!(matches!(refuses(&[]), SnapshotError::NotASnapshot));
    let mut newer = good.clone();
    newer[4] = 9;
    assert!(matches!(
        refuses(&newer),
        SnapshotError::Version { found: 9 }
    ));
    let longer = [&good[..], &[0]].concat();
    assert!(matches!(refuses(&longer), SnapshotError::Damaged(_)));
}

/// The checksum is right, the content is not: nothing of it is taken on trust.
#[test]
fn a_forged_snapshot_is_noticed() {
    let partition = linked(33);
    let good = partition.snapshot();
    let shape = shape(Kernel::detect(), Metric::Cosine);
    let mut random = StdRng::seed_from_u64(34);
    for _ in 0..60 {
        let mut bad = good.clone();
        let place = random.random_range(37..bad.len());
        bad[place] ^= 1 << random.random_range(0..8);
        let checksum = blake3::hash(&bad[37..]);
        bad[5..37].copy_from_slice(checksum.as_bytes());
        let rebuilt = partition.restart(shape, Some(&bad));
        // A digest of the past may be forged unseen; links may not.
        if matches!(rebuilt.snapshot, SnapshotUse::Used) {
            let sealed = partition.index.sealed();
            assert_eq!(
                rebuilt.index.digest_at(sealed),
                partition.index.digest_at(sealed)
            );
            assert_eq!(rebuilt.index.reachable(), partition.index.reachable());
        }
    }
}

#[test]
fn snapshots_of_another_index_or_time_are_refused() {
    let partition = linked(35);
    let shape = shape(Kernel::detect(), Metric::Cosine);
    let other = IndexShape {
        metric: Metric::L2,
        ..shape
    };
    let refused = |rebuilt: Rebuilt| {
        matches!(
            rebuilt.snapshot,
            SnapshotUse::Refused(SnapshotError::Foreign(_))
        )
    };
    assert!(refused(
        partition.restart(other, Some(&partition.snapshot()))
    ));

    let mut earlier = Partition::new(shape);
    let commands = log(35, 2_000, 25);
    commands[..commands.len() / 2]
        .iter()
        .for_each(|command| earlier.apply(command));
    let before = earlier.snapshot();
    assert!(
        refused(earlier.restart(shape, Some(&partition.snapshot()))),
        "it is of the future"
    );
    earlier.index = earlier.restart(shape, Some(&before)).index;
    commands[commands.len() / 2..]
        .iter()
        .for_each(|command| earlier.apply(command));
    earlier.work();
    assert_eq!(earlier.digest(), partition.digest());
}

#[test]
fn state_with_holes_is_refused() {
    let partition = linked(41);
    let shape = shape(Kernel::detect(), Metric::Cosine);
    let rebuild = |generations: Vec<Generation>, skipped: Option<u64>, upto: u64| {
        let mut vectors = partition
            .vectors
            .iter()
            .filter(|(id, _)| Some(id.0) != skipped && id.0 < upto)
            .map(|(id, vector)| Ok((*id, vector.clone())));
        PartitionIndex::rebuild(
            shape,
            generations,
            &mut vectors,
            &mut std::iter::empty(),
            None,
        )
        .err()
    };
    let all = partition.vectors.len() as u64;
    let generations = partition.generations.clone();
    assert!(generations.len() >= 2);
    let newest = generations[generations.len() - 1].clone();
    let inside = newest.base.select(5).expect("a base");
    assert!(rebuild(generations.clone(), None, all).is_none());
    assert!(matches!(
        rebuild(generations.clone(), Some(inside), all),
        Some(RebuildError::VectorMissing { expected: VectorId(id), .. }) if id == inside
    ));
    assert!(matches!(
        rebuild(generations.clone(), None, inside),
        Some(RebuildError::VectorsEnd { expected: VectorId(id) }) if id == inside
    ));
    assert!(matches!(
        rebuild(vec![], None, all),
        Some(RebuildError::NoGeneration)
    ));
    let twice = vec![newest.clone(), newest];
    assert!(matches!(
        rebuild(twice, None, all),
        Some(RebuildError::GenerationOrder { .. })
    ));

    let mut failing = std::iter::once(Err(SourceError::new("the disk is gone")));
    let failed = PartitionIndex::rebuild(
        shape,
        generations,
        &mut failing,
        &mut std::iter::empty(),
        None,
    );
    assert!(matches!(failed.err(), Some(RebuildError::Source(_))));
}
