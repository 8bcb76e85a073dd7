//! Spaces whose index has codes: as good an answer, in less memory, the same everywhere.

use super::*;
use crate::kernel::Row;

fn coded(log: &[Command], metric: Metric, quantization: Quantization) -> Partition {
    let shape = quantized(shape(Kernel::detect(), metric), quantization);
    let mut partition = Partition::new(shape);
    log.iter().for_each(|command| partition.apply(command));
    partition.work();
    partition
}

fn stored(partition: &Partition) -> impl Fn(VectorId) -> Option<Vec<f32>> {
    let vectors = partition.vectors.clone();
    move |id| vectors.get(&id).map(|vector| vector.components.clone())
}

/// Full vectors decide the order, wherever they are.
#[test]
fn what_is_found_by_codes_has_the_distances_of_full_vectors() {
    let log = log(61, 4_000, 10);
    for metric in [Metric::Cosine, Metric::Dot, Metric::L2] {
        let exact = coded(&log, metric, Quantization::None);
        let in_memory = coded(&log, metric, Quantization::Int8);
        let on_disk = coded(&log, metric, Quantization::Int8OnDisk);
        assert_eq!(in_memory.digest(), on_disk.digest());
        let stored = stored(&on_disk);
        let mut random = StdRng::seed_from_u64(62);
        let (mut found, mut expected) = (0, 0);
        for _ in 0..200 {
            let query = clustered(&mut random);
            let truth = exact.index.scan(&query, 10, &everything);
            assert_eq!(in_memory.index.scan(&query, 10, &everything), truth);
            let near = in_memory.index.search(&query, 10, 64, &everything);
            let read = on_disk
                .index
                .search_stored(&query, 10, 64, &everything, &stored);
            assert_eq!(near, read);
            let query = Row::new(&query);
            for hit in &near {
                let row = Row::new(&in_memory.vectors[&hit.id].components);
                let distance = Kernel::PORTABLE.distance(metric, &query, &row);
                // Under cosine the query is normalised again, which may move its last bits.
                assert!((distance.0 - hit.distance).abs() < 1e-5);
            }
            expected += truth.len();
            found += near
                .iter()
                .filter(|hit| hit.distance <= truth[9].distance)
                .count();
        }
        assert!(
            found * 100 >= expected * 97,
            "{found} of {expected}, {metric:?}"
        );
    }
}

#[test]
fn codes_take_less_memory() {
    let log = log(63, 3_000, 0);
    let [none, int8, on_disk] = [
        Quantization::None,
        Quantization::Int8,
        Quantization::Int8OnDisk,
    ]
    .map(|quantization| coded(&log, Metric::Cosine, quantization).index.status());
    assert_eq!(none.walked_bytes, none.bytes);
    assert!(int8.walked_bytes < none.walked_bytes && int8.bytes > none.bytes);
    assert_eq!(on_disk.bytes, int8.walked_bytes);
}

/// Vectors of any length and without a direction are stored and found.
#[test]
fn lengths_are_kept() {
    for metric in [Metric::Dot, Metric::L2] {
        let shape = quantized(shape(Kernel::detect(), metric), Quantization::Int8OnDisk);
        let mut partition = Partition::new(shape);
        let mut random = StdRng::seed_from_u64(64);
        let lengths = [0.0, 1e-30, 0.5, 1.0, 30.0, 1e15, 1e25];
        for length in lengths {
            let point = clustered(&mut random)
                .iter()
                .map(|lane| lane * length)
                .collect();
            let inserts = vec![(owner(&mut random), point)];
            partition.apply(&Command {
                inserts,
                kills: vec![],
                ..Command::default()
            });
        }
        let query = clustered(&mut random);
        let hits = partition.index.search(&query, 10, 10, &everything);
        assert_eq!(hits.len(), lengths.len());
        assert!(hits.is_sorted_by(|a, b| a.distance <= b.distance));
        let distance = |id| {
            hits.iter()
                .find(|hit| hit.id == VectorId(id))
                .map(|hit| hit.distance)
        };
        let expected = match metric {
            // Nothing is as far from a query as its own length, squared.
            Metric::L2 => 1.0,
            Metric::Cosine | Metric::Dot => 0.0,
        };
        for short in [0, 1] {
            let distance = distance(short).expect("every vector is found");
            assert!((distance - expected).abs() < 0.01, "{distance}, {metric:?}");
        }
    }
}
