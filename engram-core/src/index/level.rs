//! The level of a memory in the graph: a pure function of its hash and the space's seed.

use crate::types::MemoryHash;

/// Highest level of any memory.
pub(super) const LEVEL_MAX: u8 = 15;

/// level >= l iff h < 2^64 / m^l, where h is BLAKE3 keyed by the seed over the memory's hash:
/// independent of the slot hash, which would put all high levels into one partition.
pub(super) fn level(owner: MemoryHash, seed: u64, m: u32) -> u8 {
    let mut key = [0; blake3::KEY_LEN];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let digest = blake3::keyed_hash(&key, &owner.0);
    let mut first = [0; 8];
    first.copy_from_slice(&digest.as_bytes()[..8]);
    level_of(u64::from_le_bytes(first), m)
}

fn level_of(hash: u64, m: u32) -> u8 {
    let mut bound = 1_u128 << 64;
    let mut level = 0;
    while level < LEVEL_MAX {
        bound /= u128::from(m);
        if u128::from(hash) >= bound {
            break;
        }
        level += 1;
    }
    level
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::MemoryId;

    #[test]
    fn bounds_are_exact() {
        assert_eq!(level_of(u64::MAX, 16), 0);
        assert_eq!(level_of(1 << 60, 16), 0);
        assert_eq!(level_of((1 << 60) - 1, 16), 1);
        assert_eq!(level_of((1 << 56) - 1, 16), 2);
        assert_eq!(level_of(0, 16), LEVEL_MAX);
        assert_eq!(
            level_of(0, 64),
            10,
            "64^11 exceeds 2^64, so no hash is below the bound"
        );
    }

    /// Each level holds 1/m of the one below, in every partition: the level hash must not follow
    /// the slot hash.
    #[test]
    fn levels_are_geometric_in_every_partition() {
        const MEMORIES: usize = 96_000;
        for partitions in [1, 3, 16] {
            let ranges = crate::types::SlotRange::split_evenly(partitions);
            let mut held = vec![[0_usize; 3]; ranges.len()];
            for n in 0..MEMORIES {
                let id = MemoryId::new(format!("memory-{n}")).expect("a valid id");
                let slot = id.hash_slot();
                let part = ranges
                    .iter()
                    .position(|range| range.contains(slot))
                    .expect("covered");
                let level = usize::from(level(id.hash(), 7, 16));
                held[part]
                    .iter_mut()
                    .take(level + 1)
                    .for_each(|count| *count += 1);
            }
            for [all, first, second] in held {
                let expected = all as f64 / 16.0;
                // Five standard deviations of a binomial count.
                let apart = |count: usize, expected: f64| {
                    (count as f64 - expected).abs() <= 5.0 * expected.sqrt()
                };
                assert!(apart(first, expected), "{first} of {all} on level 1");
                assert!(
                    apart(second, expected / 16.0),
                    "{second} of {all} on level 2"
                );
            }
        }
    }

    #[test]
    fn levels_are_frozen() {
        let level = |n: u8, seed| level(MemoryHash([n; 16]), seed, 4);
        let levels: Vec<u8> = (0..32).map(|n| level(n, 42)).collect();
        assert_eq!(levels, GOLDEN);
    }

    const GOLDEN: [u8; 32] = [
        0, 0, 3, 0, 0, 0, 0, 1, 0, 0, 2, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0,
        0, 0,
    ];
}
