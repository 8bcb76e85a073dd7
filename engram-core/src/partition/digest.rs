//! What one record gives to a state digest. Digests are sums mod 2^128 over records, so that a
//! change is one subtraction and one addition, and a scrub can add up a disk in any order.

/// Of a record's key, its bytes and, for a memory, the bits of its embedding.
pub fn of_record(key: &[u8], value: &[u8], embedding: &[f32]) -> u128 {
    let mut hasher = blake3::Hasher::new();
    for part in [key, value] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    for component in embedding {
        hasher.update(&component.to_bits().to_le_bytes());
    }
    let mut first = [0; 16];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    u128::from_le_bytes(first)
}

/// The next link of the log's hash chain.
pub fn log_link(before: &[u8; 32], sequence: u64, command: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher
        .update(before)
        .update(&sequence.to_be_bytes())
        .update(command);
    hasher.finalize().into()
}
