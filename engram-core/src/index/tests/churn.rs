//! Half of a set deleted and inserted again: the index is as good as a fresh one, and not much larger.

use super::*;

const MEMORIES: usize = 12_000;
const QUERIES: usize = 300;

fn partition() -> Partition {
    Partition::new(shape(Kernel::detect(), Metric::Cosine))
}

fn insert(partition: &mut Partition, owner: MemoryHash, point: &[f32], kills: Vec<VectorId>) {
    partition.apply(&Command {
        inserts: vec![(owner, point.to_vec())],
        kills,
        ..Command::default()
    });
    partition.work();
}

fn recall(partition: &Partition) -> f64 {
    let mut random = StdRng::seed_from_u64(92);
    let mut found = 0;
    for _ in 0..QUERIES {
        let query = clustered(&mut random);
        let exact = partition.index.scan(&query, 10, &everything);
        let near = partition.index.search(&query, 10, 48, &everything);
        found += near.iter().filter(|hit| exact.contains(hit)).count();
    }
    found as f64 / (QUERIES * 10) as f64
}

#[test]
fn churn_costs_neither_recall_nor_memory() {
    let mut random = StdRng::seed_from_u64(91);
    let memories: Vec<(MemoryHash, Vec<f32>)> = (0..MEMORIES)
        .map(|_| (owner(&mut random), clustered(&mut random)))
        .collect();
    let mut fresh = partition();
    for (owner, point) in &memories {
        insert(&mut fresh, *owner, point, vec![]);
    }
    let mut churned = partition();
    for (owner, point) in &memories {
        insert(&mut churned, *owner, point, vec![]);
    }
    // Each of a random half goes, and comes back some time later, in another order.
    let mut going: Vec<usize> = (0..MEMORIES).collect();
    shuffle(&mut going, &mut random);
    going.truncate(MEMORIES / 2);
    let mut coming = going.clone();
    shuffle(&mut coming, &mut random);
    let mut gone = BTreeSet::new();
    let mut waiting = coming.into_iter().peekable();
    for memory in going {
        let id = VectorId(memory as u64);
        kill(&mut churned, id);
        gone.insert(memory);
        while let Some(back) = waiting.next_if(|back| gone.contains(back)) {
            let (owner, point) = &memories[back];
            insert(&mut churned, *owner, point, vec![]);
        }
    }
    assert!(waiting.next().is_none(), "all came back");
    assert_eq!(churned.live().len(), MEMORIES);
    assert!(churned.generations.len() > 2, "generations have ended");
    check_reachable(&churned);

    let (new, old) = (recall(&fresh), recall(&churned));
    assert!(new > 0.9, "{new}: the comparison says something");
    assert!(old >= new - 0.01, "recall {old} after churn, fresh {new}");
    let (new, old) = (fresh.index.status().bytes, churned.index.status().bytes);
    assert!(old * 10 <= new * 13, "{old} bytes after churn, fresh {new}");
}

fn kill(partition: &mut Partition, id: VectorId) {
    partition.apply(&Command {
        inserts: vec![],
        kills: vec![id],
        ..Command::default()
    });
    partition.work();
}

fn shuffle(order: &mut [usize], random: &mut StdRng) {
    for place in (1..order.len()).rev() {
        order.swap(place, random.random_range(0..=place));
    }
}
