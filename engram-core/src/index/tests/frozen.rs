//! What algorithm 1 makes of a log that any language can make again. A change here is another
//! algorithm, with a number of its own.

use super::*;

const MEMORIES: u64 = 3_000;

/// Numbers in [-1, 1): a 32-bit xorshift, without a function of the platform's libm.
struct Numbers(u32);

impl Numbers {
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        (self.0 >> 8) as f32 / (1 << 23) as f32 - 1.0
    }
}

fn topology(kernel: Kernel, metric: Metric, quantization: Quantization) -> String {
    let mut partition = Partition::new(quantized(shape(kernel, metric), quantization));
    let mut numbers = Numbers(0x9E37_79B9);
    for id in 0..MEMORIES {
        let mut point: Vec<f32> = (0..DIMENSION).map(|_| numbers.next()).collect();
        if metric == Metric::Cosine {
            assert!(normalise(&mut point));
        }
        let mut owner = [0; 16];
        owner[..8].copy_from_slice(&id.to_le_bytes());
        partition.apply(&Command {
            inserts: vec![(MemoryHash(owner), point)],
            // A third of what is old enough, so that a generation begins.
            kills: (id > 900 && id % 3 == 0)
                .then(|| VectorId(id - 900))
                .into_iter()
                .collect(),
            ..Command::default()
        });
    }
    partition.work();
    assert!(partition.generations.len() > 1);
    partition.digest().to_string()
}

#[test]
fn the_topology_is_frozen() {
    for kernel in Kernel::all_available() {
        let made = GOLDEN.map(|(metric, quantization, _)| topology(kernel, metric, quantization));
        let golden = GOLDEN.map(|(.., golden)| golden);
        assert_eq!(made, golden, "{}", kernel.name());
    }
}

const GOLDEN: [(Metric, Quantization, &str); 3] = [
    (
        Metric::Cosine,
        Quantization::None,
        "67c50fa404ca82ba4508b2a470903617",
    ),
    (
        Metric::L2,
        Quantization::None,
        "8e7e0bb35273f79a0273f4e50eb91360",
    ),
    (
        Metric::Cosine,
        Quantization::Int8,
        "3dc352492a317aadf8ce8bdf46cb8d66",
    ),
];
