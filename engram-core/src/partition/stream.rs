//! The bytes of a partition snapshot: a header, then chunks, each with its own checksum, then a hash
//! over everything. Little-endian.
//!
//! ```text
//! magic "ENGRAMPS" | version u16
//! chunk: kind u8 | length u32 | payload | crc32c u32 over kind, length and payload
//! last chunk: kind End, payload = BLAKE3 of every byte before it
//! ```
//!
//! What must hold: damage anywhere is an error of the reader; nothing that the stream claims makes
//! the reader allocate more than it has received.

use std::io::{self, Read, Write};

const MAGIC: [u8; 8] = *b"ENGRAMPS";
const VERSION: u16 = 1;
/// A chunk is sent when it has reached this many bytes.
pub const CHUNK_BYTES: usize = 256 << 10;
/// Longest payload that is accepted, in bytes: one record is never split.
pub const CHUNK_BYTES_MAX: usize = 64 << 20;

/// What a chunk holds. The numbers are part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkKind {
    /// One record: what the snapshot is of.
    Header = 1,
    /// Part of the index topology's own format.
    Index = 2,
    /// Records of one family.
    Records = 3,
    End = 255,
}

impl ChunkKind {
    fn parse(byte: u8) -> Option<Self> {
        [Self::Header, Self::Index, Self::Records, Self::End]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// Why a stream is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("reading the snapshot: {0}")]
    Io(#[from] io::Error),
    #[error("this is no partition snapshot")]
    Magic,
    #[error("the snapshot has format version {found}, this program knows {VERSION}")]
    Version { found: u16 },
    #[error("chunk {chunk} of the snapshot is damaged: {reason}")]
    Damaged { chunk: u64, reason: &'static str },
}

/// Writes chunks and, at the end, the hash over them.
pub struct ChunkWriter<'a> {
    sink: &'a mut dyn Write,
    hasher: blake3::Hasher,
}

impl<'a> ChunkWriter<'a> {
    pub fn start(sink: &'a mut dyn Write) -> io::Result<Self> {
        let mut writer = Self {
            sink,
            hasher: blake3::Hasher::new(),
        };
        writer.emit(&MAGIC)?;
        writer.emit(&VERSION.to_le_bytes())?;
        Ok(writer)
    }

    pub fn chunk(&mut self, kind: ChunkKind, payload: &[u8]) -> io::Result<()> {
        if payload.len() > CHUNK_BYTES_MAX {
            return Err(io::Error::other(
                "a record is larger than a snapshot chunk may be",
            ));
        }
        let length = (payload.len() as u32).to_le_bytes();
        let head = [kind as u8, length[0], length[1], length[2], length[3]];
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&head), payload);
        self.emit(&head)?;
        self.emit(payload)?;
        self.emit(&checksum.to_le_bytes())
    }

    pub fn finish(mut self) -> io::Result<()> {
        let hash = self.hasher.finalize();
        self.chunk(ChunkKind::End, hash.as_bytes())?;
        self.sink.flush()
    }

    fn emit(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.sink.write_all(bytes)
    }
}

/// Reads chunks and checks each.
pub struct ChunkReader<'a> {
    source: &'a mut dyn Read,
    hasher: blake3::Hasher,
    chunks: u64,
}

impl<'a> ChunkReader<'a> {
    pub fn start(source: &'a mut dyn Read) -> Result<Self, StreamError> {
        let mut reader = Self {
            source,
            hasher: blake3::Hasher::new(),
            chunks: 0,
        };
        if reader.fixed::<8>()? != MAGIC {
            return Err(StreamError::Magic);
        }
        match u16::from_le_bytes(reader.fixed()?) {
            VERSION => Ok(reader),
            found => Err(StreamError::Version { found }),
        }
    }

    /// The next chunk; `None` after the last, when the hash over all was right.
    pub fn next(&mut self) -> Result<Option<(ChunkKind, Vec<u8>)>, StreamError> {
        let hash_before = self.hasher.finalize();
        let head = self.fixed::<5>()?;
        let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if length > CHUNK_BYTES_MAX {
            return Err(self.damaged("its length is out of range"));
        }
        let mut payload = Vec::new();
        (&mut *self.source)
            .take(length as u64)
            .read_to_end(&mut payload)?;
        if payload.len() != length {
            return Err(self.damaged("the stream ends inside it"));
        }
        self.hasher.update(&payload);
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&head), &payload);
        if u32::from_le_bytes(self.fixed()?) != checksum {
            return Err(self.damaged("its checksum differs"));
        }
        let Some(kind) = ChunkKind::parse(head[0]) else {
            return Err(self.damaged("its kind is unknown"));
        };
        self.chunks += 1;
        match kind {
            ChunkKind::End if payload == hash_before.as_bytes() => Ok(None),
            ChunkKind::End => Err(self.damaged("the hash over the whole snapshot differs")),
            ChunkKind::Header | ChunkKind::Index | ChunkKind::Records => Ok(Some((kind, payload))),
        }
    }

    pub fn damaged(&self, reason: &'static str) -> StreamError {
        StreamError::Damaged {
            chunk: self.chunks,
            reason,
        }
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], StreamError> {
        let mut bytes = [0; N];
        self.source.read_exact(&mut bytes)?;
        self.hasher.update(&bytes);
        Ok(bytes)
    }
}

/// Appends one record to the payload of a records chunk.
pub fn push_record(payload: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    for part in [key, value] {
        payload.extend_from_slice(&(part.len() as u32).to_le_bytes());
        payload.extend_from_slice(part);
    }
}

/// Takes the first record off the payload of a records chunk.
pub fn take_record<'a>(payload: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    Some((take_part(payload)?, take_part(payload)?))
}

fn take_part<'a>(payload: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = payload.split_first_chunk::<4>()?;
    let (part, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    *payload = rest;
    Some(part)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(chunks: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = ChunkWriter::start(&mut bytes).expect("starts");
        for chunk in chunks {
            writer.chunk(ChunkKind::Records, chunk).expect("writes");
        }
        writer.finish().expect("finishes");
        bytes
    }

    fn read(mut bytes: &[u8]) -> Result<Vec<Vec<u8>>, StreamError> {
        let mut reader = ChunkReader::start(&mut bytes)?;
        let mut chunks = Vec::new();
        while let Some((_, payload)) = reader.next()? {
            chunks.push(payload);
        }
        Ok(chunks)
    }

    proptest! {
        #[test]
        fn chunks_read_back(chunks: Vec<Vec<u8>>) {
            prop_assert_eq!(read(&written(&chunks)).expect("reads"), chunks);
        }

        #[test]
        fn one_damaged_bit_is_seen(chunks: Vec<Vec<u8>>, at: prop::sample::Index, bit in 0..8u32) {
            let mut bytes = written(&chunks);
            let at = at.index(bytes.len());
            bytes[at] ^= 1u8 << bit;
            prop_assert!(read(&bytes).is_err());
        }

        #[test]
        fn a_short_stream_is_seen(chunks: Vec<Vec<u8>>, at: prop::sample::Index) {
            let bytes = written(&chunks);
            prop_assert!(read(&bytes[..at.index(bytes.len())]).is_err());
        }

        #[test]
        fn a_lost_chunk_is_seen(chunks in prop::collection::vec(any::<Vec<u8>>(), 1..5)) {
            let whole = written(&chunks);
            let skipped = 10..10 + 9 + chunks[0].len();
            let cut: Vec<u8> = whole[..skipped.start].iter().chain(&whole[skipped.end..]).copied().collect();
            prop_assert!(read(&cut).is_err());
        }

        #[test]
        fn records_come_off_in_order(records: Vec<(Vec<u8>, Vec<u8>)>) {
            let mut payload = Vec::new();
            records.iter().for_each(|(key, value)| push_record(&mut payload, key, value));
            let mut rest = payload.as_slice();
            for (key, value) in &records {
                prop_assert_eq!(take_record(&mut rest), Some((key.as_slice(), value.as_slice())));
            }
            prop_assert_eq!(take_record(&mut rest), None);
        }
    }
}
