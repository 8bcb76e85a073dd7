//! A snapshot of the links: a file whose every byte is covered by a checksum.
//!
//! ```text
//! "EGIX"  version u8  BLAKE3 of the body (32)  body
//! body:        shape  count u8  generation ...
//! shape:       algorithm u32  m u32  ef_construction u32  level seed u64  dimension u32  metric u8
//!              quantization u8 (0: none, 1: int8)
//! generation:  bytes that follow u64  number u64  start u64  first u64  BLAKE3 of the base (32)
//!              jobs u32  digest (16) ...  linked slots u32  slot ...
//! slot:        linked u8 (0, 1), and if 1 for each level of the slot: count u8  neighbour u32 ...
//! ```
//! All integers little-endian. Levels and the entry point are not in it: they follow from the
//! owners. A reader takes nothing on trust: counts and neighbours are checked against the vectors
//! that are there, and the lists against the last digest.

use std::io::{Read, Write};
use std::sync::Arc;

use super::graph::Graph;
use super::link::list_hash;
use super::{IndexShape, TopologyDigest};
use crate::types::{Metric, Quantization};

const MAGIC: &[u8; 4] = b"EGIX";
/// 2: the length of each generation, so that a reader can pass over one.
const VERSION: u8 = 2;
const HEADER: usize = MAGIC.len() + 1 + blake3::OUT_LEN;

/// Why a snapshot was not written or not used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("reading or writing an index snapshot: {0}")]
    Io(#[from] std::io::Error),
    #[error("the file is no index snapshot")]
    NotASnapshot,
    #[error("an index snapshot has version {found}, this binary reads {VERSION}")]
    Version { found: u8 },
    #[error("an index snapshot is damaged: {0}")]
    Damaged(&'static str),
    #[error("an index snapshot is of another index: {0}")]
    Foreign(&'static str),
}

pub(super) fn save(
    shape: IndexShape,
    graphs: &[Arc<Graph>],
    sink: &mut dyn Write,
) -> Result<(), SnapshotError> {
    let mut body = encode_shape(shape);
    body.push(graphs.len() as u8);
    assert!(
        graphs.len() <= usize::from(u8::MAX),
        "{} generations at once",
        graphs.len()
    );
    for graph in graphs {
        let length_at = body.len();
        body.extend(0_u64.to_le_bytes());
        encode_graph(graph, &mut body);
        let (before, encoded) = body.split_at_mut(length_at + size_of::<u64>());
        before[length_at..].copy_from_slice(&(encoded.len() as u64).to_le_bytes());
    }
    sink.write_all(MAGIC)?;
    sink.write_all(&[VERSION])?;
    sink.write_all(blake3::hash(&body).as_bytes())?;
    sink.write_all(&body)?;
    Ok(())
}

fn encode_shape(shape: IndexShape) -> Vec<u8> {
    let parameters = shape.parameters;
    let metric = match shape.metric {
        Metric::Cosine => 0,
        Metric::Dot => 1,
        Metric::L2 => 2,
    };
    let mut bytes = Vec::new();
    for number in [
        parameters.algorithm,
        parameters.m,
        parameters.ef_construction,
    ] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend(parameters.level_seed.to_le_bytes());
    bytes.extend(shape.dimension.to_le_bytes());
    bytes.push(metric);
    // Where full vectors are does not show in the links.
    bytes.push(match parameters.quantization {
        Quantization::None => 0,
        Quantization::Int8 | Quantization::Int8OnDisk => 1,
    });
    bytes
}

/// What a generation is recognised by.
fn encode_identity(graph: &Graph) -> Vec<u8> {
    let generation = &graph.generation;
    let mut bytes = Vec::new();
    for number in [generation.number, generation.start.0, generation.first.0] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend(blake3::hash(&generation.encode()).as_bytes());
    bytes
}

fn encode_graph(graph: &Graph, body: &mut Vec<u8>) {
    body.extend(encode_identity(graph));
    let progress = graph.progress.lock();
    body.extend((progress.digests.len() as u32).to_le_bytes());
    progress
        .digests
        .iter()
        .for_each(|digest| body.extend(digest.0));
    body.extend(graph.linked().to_le_bytes());
    for slot in 0..graph.linked() {
        let is_linked = graph.is_linked(slot);
        body.push(u8::from(is_linked));
        for level in (0..=graph.level(slot)).filter(|_| is_linked) {
            let count_at = body.len();
            body.push(0);
            for neighbour in graph.neighbours(slot, level) {
                body.extend(neighbour.to_le_bytes());
                body[count_at] += 1;
            }
        }
    }
}

/// A snapshot whose checksum is right.
pub(super) struct Snapshot {
    bytes: Vec<u8>,
}

/// Reads forward; past the end is damage.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], SnapshotError> {
        let (taken, rest) = self
            .0
            .split_at_checked(count)
            .ok_or(SnapshotError::Damaged("it ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], SnapshotError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u8(&mut self) -> Result<u8, SnapshotError> {
        Ok(self.array::<1>()?[0])
    }

    fn u32(&mut self) -> Result<u32, SnapshotError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, SnapshotError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// What a length says that follows it.
    fn part(&mut self) -> Result<Cursor<'a>, SnapshotError> {
        let length = self.u64()?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        Ok(Cursor(self.take(length)?))
    }
}

impl Snapshot {
    /// Reads a snapshot and checks its checksum and that it is of an index of this shape.
    pub(super) fn read(source: &mut dyn Read, shape: IndexShape) -> Result<Self, SnapshotError> {
        let mut bytes = Vec::new();
        source.read_to_end(&mut bytes)?;
        let mut cursor = Cursor(&bytes);
        if cursor.take(MAGIC.len()).ok() != Some(MAGIC) {
            return Err(SnapshotError::NotASnapshot);
        }
        match cursor.u8()? {
            VERSION => {}
            found => return Err(SnapshotError::Version { found }),
        }
        let checksum = cursor.array::<{ blake3::OUT_LEN }>()?;
        if blake3::hash(cursor.0) != checksum {
            return Err(SnapshotError::Damaged("its checksum does not match"));
        }
        let expected = encode_shape(shape);
        if cursor.take(expected.len())? != expected {
            return Err(SnapshotError::Foreign(
                "parameters, dimension or metric differ",
            ));
        }
        Ok(Self { bytes })
    }

    /// The generations in it, each with its number, ascending.
    fn generations(&self, shape: IndexShape) -> Result<Vec<(u64, Cursor<'_>)>, SnapshotError> {
        let mut cursor = Cursor(&self.bytes[HEADER + encode_shape(shape).len()..]);
        let count = cursor.u8()?;
        let mut generations: Vec<(u64, Cursor<'_>)> = Vec::new();
        for _ in 0..count {
            let part = cursor.part()?;
            let number = Cursor(part.0).u64()?;
            if generations.last().is_some_and(|(last, _)| *last >= number) {
                return Err(SnapshotError::Damaged("its generations do not ascend"));
            }
            generations.push((number, part));
        }
        match generations.is_empty() {
            true => Err(SnapshotError::Damaged("it holds no generation")),
            false if !cursor.0.is_empty() => Err(SnapshotError::Damaged("bytes follow its end")),
            false => Ok(generations),
        }
    }

    /// Numbers of the generations in it, ascending, at least one.
    pub(super) fn numbers(&self, shape: IndexShape) -> Result<Vec<u64>, SnapshotError> {
        let generations = self.generations(shape)?;
        Ok(generations.iter().map(|(number, _)| *number).collect())
    }

    /// Gives each graph the links that the snapshot has for it. The graphs hold their vectors and
    /// deaths, and no links yet. A graph that the snapshot does not know stays without links; links
    /// of a generation that is not among the graphs are passed over.
    ///
    /// # Errors
    /// When the snapshot does not fit; the graphs are then to be thrown away.
    pub(super) fn apply(&self, graphs: &[Arc<Graph>]) -> Result<(), SnapshotError> {
        let Some(newest) = graphs.last() else {
            return Ok(());
        };
        for (number, mut cursor) in self.generations(newest.shape)? {
            if number > newest.generation.number {
                return Err(SnapshotError::Foreign("it is of a later point of the log"));
            }
            let held = graphs
                .iter()
                .find(|graph| graph.generation.number == number);
            let Some(graph) = held else { continue };
            let identity = encode_identity(graph);
            if cursor.take(identity.len())? != identity {
                return Err(SnapshotError::Foreign("a generation differs"));
            }
            decode_graph(graph, &mut cursor)?;
            if !cursor.0.is_empty() {
                return Err(SnapshotError::Damaged("bytes follow a generation"));
            }
        }
        Ok(())
    }
}

type Lists = Vec<(u32, u8, Vec<u32>)>;

fn decode_graph(graph: &Graph, cursor: &mut Cursor<'_>) -> Result<(), SnapshotError> {
    let jobs = cursor.u32()? as usize;
    if jobs > graph.jobs_sealed() {
        return Err(SnapshotError::Foreign("it is of a later point of the log"));
    }
    let digests = (0..jobs)
        .map(|_| Ok(TopologyDigest(cursor.array()?)))
        .collect::<Result<Vec<_>, SnapshotError>>()?;
    let linked = cursor.u32()?;
    let end = jobs
        .checked_sub(1)
        .and_then(|last| graph.window(last))
        .map_or(0, |last| last.end);
    if linked != end {
        return Err(SnapshotError::Damaged("its slots do not fit its jobs"));
    }
    let lists = decode_lists(graph, linked, cursor)?;
    let sum = lists.iter().fold(0_u128, |sum, (slot, level, list)| {
        sum.wrapping_add(list_hash(*slot, *level, list))
    });
    if digests.last().copied().unwrap_or_default() != TopologyDigest(sum.to_le_bytes()) {
        return Err(SnapshotError::Damaged("its links do not have its digest"));
    }
    let mut progress = graph.progress.lock();
    progress.last_linked = lists.last().map(|(slot, ..)| *slot);
    let lists = lists
        .iter()
        .map(|(slot, level, list)| (*slot, *level, list.as_slice()));
    graph.publish_links(lists, None, linked);
    graph.restore_entry();
    progress.digests = digests;
    Ok(())
}

/// The lists of the first `linked` slots, in order.
fn decode_lists(
    graph: &Graph,
    linked: u32,
    cursor: &mut Cursor<'_>,
) -> Result<Lists, SnapshotError> {
    let mut lists = Vec::new();
    for slot in 0..linked {
        let is_linked = graph.is_linked(slot);
        if cursor.u8()? != u8::from(is_linked) {
            return Err(SnapshotError::Damaged(
                "it linked what was dead, or left out what lived",
            ));
        }
        if !is_linked {
            continue;
        }
        for level in 0..=graph.level(slot) {
            let count = usize::from(cursor.u8()?);
            if count > graph.links_max(level) {
                return Err(SnapshotError::Damaged("a list is too long"));
            }
            let list = (0..count)
                .map(|_| cursor.u32())
                .collect::<Result<Vec<_>, _>>()?;
            if list
                .iter()
                .any(|other| *other >= linked || graph.level(*other) < level)
            {
                return Err(SnapshotError::Damaged("a neighbour is not on the level"));
            }
            lists.push((slot, level, list));
        }
    }
    Ok(lists)
}
