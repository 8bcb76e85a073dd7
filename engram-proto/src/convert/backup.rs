//! The chunks of a backup: runs of records, each the operation that restores it.
//!
//! ```text
//! version u8 = 1 | record: length (varint), engram.log.v1.Op without index | record ...
//! ```
//!
//! Built by the node that reads a partition, read by the one that restores. What must hold: equal
//! records make equal bytes, since chunks are named by their hash; a chunk with any part that this
//! version does not know is refused whole; nothing that a chunk claims makes the reader allocate
//! more than the chunk's own size.

use engram_core::command::Op;
use prost::Message as _;

use super::DecodeError;
use crate::log as wire;

const VERSION: u8 = 1;

/// Collects records into one chunk.
#[derive(Clone, Debug)]
pub struct ChunkBuilder {
    bytes: Vec<u8>,
    records: usize,
}

impl Default for ChunkBuilder {
    fn default() -> Self {
        Self {
            bytes: vec![VERSION],
            records: 0,
        }
    }
}

impl ChunkBuilder {
    /// Answers with the bytes that the record takes.
    pub fn push(&mut self, op: &Op) -> usize {
        let before = self.bytes.len();
        let record = wire::Op {
            index: 0,
            op: Some(op.into()),
        };
        self.bytes
            .extend_from_slice(&record.encode_length_delimited_to_vec());
        self.records += 1;
        self.bytes.len() - before
    }

    #[must_use]
    pub fn records(&self) -> usize {
        self.records
    }

    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// The records of a chunk; more than `records_max` are refused.
///
/// # Errors
/// When any part of the chunk is damaged, not known to this version, or restores nothing.
pub fn decode_chunk(chunk: &[u8], records_max: usize) -> Result<Vec<Op>, DecodeError> {
    let mut rest = match chunk.split_first() {
        Some((&VERSION, rest)) => rest,
        Some(_) => return Err(DecodeError::NotUnderstood("a chunk of this format version")),
        None => return Err(DecodeError::Missing("the chunk")),
    };
    let mut ops = Vec::new();
    while !rest.is_empty() {
        if ops.len() == records_max {
            return Err(DecodeError::OutOfRange {
                what: "the number of records of a chunk",
                actual: ops.len() as u64 + 1,
            });
        }
        let before = rest.len();
        let record = wire::Op::decode_length_delimited(&mut rest)?;
        let taken = before - rest.len();
        let length = record.encoded_len();
        // prost drops fields it does not know; what it kept must account for every byte.
        let known = prost::length_delimiter_len(length) + length;
        if taken != known {
            let unknown = taken.abs_diff(known);
            return Err(DecodeError::UnknownFields { unknown });
        }
        let op = record.op.ok_or(DecodeError::NotUnderstood("a record"))?;
        match Op::try_from(op)? {
            op @ (Op::RestoreMemory(_) | Op::RestoreEdge(_)) => ops.push(op),
            Op::Remember(_) | Op::Forget(_) | Op::Associate(_) | Op::Dissociate(_) => {
                return Err(DecodeError::NotUnderstood("a record that restores nothing"));
            }
        }
    }
    Ok(ops)
}

#[cfg(test)]
mod tests {
    use engram_core::command::{
        EvidenceSums, Expected, Forget, Remember, RestoreEdge, RestoreMemory,
    };
    use engram_core::types::{
        EdgeContext, Embedding, Hlc, MemoryId, PropertyValue, Relation, Unit,
    };

    use super::*;

    fn id(text: &str) -> MemoryId {
        MemoryId::new(text).expect("a valid id")
    }

    fn memory(name: &str) -> Op {
        Op::RestoreMemory(RestoreMemory {
            memory: Remember {
                id: id(name),
                content: "c".into(),
                embedding: Some(Embedding::from_log(vec![0.6, -0.8]).expect("finite")),
                embedding_model: "m".into(),
                labels: ["l".to_owned()].into(),
                properties: [("k".to_owned(), PropertyValue::Boolean(true))].into(),
                confidence: Unit::ONE,
                edges: Vec::new(),
                expected: Expected::Absent,
            },
            created: Hlc::from_millis(5),
            updated: Hlc::from_millis(7),
        })
    }

    fn edge(count: u64) -> Op {
        Op::RestoreEdge(RestoreEdge {
            from: id("a"),
            to: id("b"),
            relation: Relation::new("r").expect("a relation"),
            evidence: EvidenceSums {
                sum_wc: 1 << 31,
                sum_c: u128::from(count) << 32,
                count,
                newest: Hlc::from_millis(9),
            },
        })
    }

    fn chunk(ops: &[Op]) -> Vec<u8> {
        let mut builder = ChunkBuilder::default();
        ops.iter().for_each(|op| {
            builder.push(op);
        });
        builder.finish()
    }

    #[test]
    fn what_goes_in_comes_out() {
        let ops = vec![memory("a"), memory("b"), edge(3)];
        assert_eq!(decode_chunk(&chunk(&ops), 3), Ok(ops.clone()));
        assert_eq!(chunk(&ops), chunk(&ops));
        assert!(decode_chunk(&chunk(&ops), 2).is_err(), "one too many");
        assert_eq!(decode_chunk(&chunk(&[]), 0), Ok(Vec::new()));
    }

    #[test]
    fn damage_is_an_error_and_never_a_panic() {
        let whole = chunk(&[memory("a"), edge(1)]);
        for end in 0..whole.len() {
            // A cut between two records leaves a chunk of fewer; its hash tells.
            if let Ok(ops) = decode_chunk(&whole[..end], 9) {
                assert!(ops.len() < 2, "cut at {end}");
            }
        }
        for place in 0..whole.len() {
            for bit in 0..8 {
                let mut bent = whole.clone();
                bent[place] ^= 1 << bit;
                drop(decode_chunk(&bent, 9));
            }
        }
        let mut newer = whole;
        newer[0] = 2;
        assert!(decode_chunk(&newer, 9).is_err());
        // A record that claims to be larger than everything.
        assert!(decode_chunk(&[1, 0xff, 0xff, 0xff, 0xff, 0x0f, 0], 9).is_err());
    }

    #[test]
    fn only_what_restores_is_taken() {
        let forget = Op::Forget(Forget {
            id: id("a"),
            expected: Expected::Anything,
            context: EdgeContext::default(),
            purge: false,
        });
        assert!(decode_chunk(&chunk(&[forget]), 9).is_err());
        assert!(
            decode_chunk(&chunk(&[edge(0)]), 9).is_err(),
            "evidence of nothing"
        );
    }
}
