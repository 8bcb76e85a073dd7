//! Placing memories that belong together in one partition: `engram import --colocate DIR`.
//!
//! A partition owns hash slots, and of an id with `{tag}` only the tag is hashed. So memories are
//! moved by their ids: each gets a tag whose slot lies in the partition that was chosen for it, in
//! memories and associations alike, and a file says what became of each id. The choice is made by
//! linear deterministic greedy streaming (Stanton and Kliot, KDD 2012), repeated over its own
//! result (Nishimura and Ugander, KDD 2013): a memory goes where most of its neighbours are,
//! weighted by the room that is left there.
//!
//! What must hold: the same files and partitions give the same ids; partitions differ by few
//! memories; an id that has a tag already, or would become too long, keeps its place and name.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use engram_core::limits::MEMORY_ID_BYTES_MAX;
use engram_core::types::{HashSlot, MemoryId, SlotRange};
use serde::Serialize;

use super::jsonl::{EdgeLine, MemoryLine, parse};
use super::lines::Lines;

/// How much fuller than the mean a partition may become.
const BALANCE: f64 = 1.02;
/// Times that the choice is made again over its own result.
const PASSES: usize = 8;
/// Tags of a partition: so many pieces into which it can still be split.
const TAGS: usize = 64;
/// Tags tried until every partition has its own; with fewer than so many a slot range is too small.
const TAGS_TRIED: u32 = 4_000_000;
const UNPLACED: u32 = u32::MAX;

/// Why files were not rewritten.
#[derive(Debug, thiserror::Error)]
pub enum ColocateError {
    #[error("{file}: {error}")]
    Io { file: String, error: std::io::Error },
    #[error("{0} memories are more than can be placed")]
    TooMany(u64),
    #[error("the space has partitions so small that no tags could be found for them")]
    NoTags,
}

/// What was written, and what it is good for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Colocated {
    pub memories: PathBuf,
    pub edges: PathBuf,
    /// Lines of `{"id", "as"}`: every id that changed.
    pub mapping: PathBuf,
    pub moved: u64,
    /// Associations between memories of the file.
    pub associations: u64,
    /// Of these, how many join two partitions: by the hash of ids, and now.
    pub crossing_by_hash: u64,
    pub crossing: u64,
    /// Memories of the fullest partition, as a multiple of the mean.
    pub fullest: f64,
}

fn at(path: &Path) -> impl Fn(std::io::Error) -> ColocateError {
    let file = path.display().to_string();
    move |error| ColocateError::Io {
        file: file.clone(),
        error,
    }
}

/// Rewrites both files into `directory` for a space of these slot ranges.
///
/// # Errors
/// When a file cannot be read or written, or is too large.
pub fn colocate(
    memories: &Path,
    edges: &Path,
    partitions: &[SlotRange],
    directory: &Path,
) -> Result<Colocated, ColocateError> {
    let (ids, numbers) = read_ids(memories)?;
    let graph = Graph::read(edges, &numbers)?;
    let by_hash: Vec<u32> = ids.iter().map(|id| home(id, partitions)).collect();
    let fixed: Vec<bool> = ids.iter().map(|id| keeps_name(id)).collect();
    let homes = place(&graph, partitions.len(), &by_hash, &fixed);
    let tags = tags(partitions)?;
    let names = |number: usize| -> Option<String> {
        (!fixed[number]).then(|| renamed(&ids[number], &tags[homes[number] as usize]))
    };
    std::fs::create_dir_all(directory).map_err(at(directory))?;
    let written = Colocated {
        memories: directory.join("memories.jsonl"),
        edges: directory.join("edges.jsonl"),
        mapping: directory.join("mapping.jsonl"),
        moved: fixed.iter().filter(|fixed| !**fixed).count() as u64,
        associations: graph.edges(),
        crossing_by_hash: graph.crossing(&by_hash),
        crossing: graph.crossing(&homes),
        fullest: fullest(&homes, partitions.len()),
    };
    let name = |id: &str| numbers.get(id).and_then(|number| names(*number as usize));
    rewrite(memories, &written.memories, |line: &mut MemoryLine| {
        rename(&mut line.id, name);
    })?;
    rewrite(edges, &written.edges, |line: &mut EdgeLine| {
        rename(&mut line.from, name);
        rename(&mut line.to, name);
    })?;
    let file = File::create(&written.mapping).map_err(at(&written.mapping))?;
    let mut mapping = BufWriter::new(file);
    for (number, id) in ids.iter().enumerate() {
        if let Some(new) = names(number) {
            let line = serde_json::json!({ "id": id, "as": new });
            writeln!(mapping, "{line}").map_err(at(&written.mapping))?;
        }
    }
    mapping.flush().map_err(at(&written.mapping))?;
    Ok(written)
}

fn rename(id: &mut String, name: impl Fn(&str) -> Option<String>) {
    if let Some(new) = name(id) {
        *id = new;
    }
}

/// Ids of the lines that have one, each once, and their numbers.
fn read_ids(path: &Path) -> Result<(Vec<String>, HashMap<String, u32>), ColocateError> {
    let (mut ids, mut numbers) = (Vec::new(), HashMap::new());
    let mut lines = Lines::new(BufReader::new(File::open(path).map_err(at(path))?));
    while let Some(line) = lines.next_line().map_err(at(path))? {
        let memory = line
            .text
            .ok()
            .and_then(|text| parse::<MemoryLine>(&text).ok());
        let Some(MemoryLine { id, .. }) = memory else {
            continue;
        };
        let next = u32::try_from(ids.len())
            .ok()
            .filter(|next| *next < UNPLACED);
        let next = next.ok_or(ColocateError::TooMany(ids.len() as u64))?;
        if !numbers.contains_key(&id) {
            numbers.insert(id.clone(), next);
            ids.push(id);
        }
    }
    Ok((ids, numbers))
}

/// A line that cannot be read stays as it is: the import says what is wrong with it.
fn rewrite<T: for<'de> serde::Deserialize<'de> + Serialize>(
    from: &Path,
    to: &Path,
    change: impl Fn(&mut T),
) -> Result<(), ColocateError> {
    let mut lines = Lines::new(BufReader::new(File::open(from).map_err(at(from))?));
    let mut out = BufWriter::new(File::create(to).map_err(at(to))?);
    while let Some(line) = lines.next_line().map_err(at(from))? {
        let text = line.text.unwrap_or_default();
        let changed = parse::<T>(&text).ok().and_then(|mut parsed| {
            change(&mut parsed);
            serde_json::to_string(&parsed).ok()
        });
        writeln!(out, "{}", changed.unwrap_or(text)).map_err(at(to))?;
    }
    out.flush().map_err(at(to))
}

fn slot(id: &str) -> Option<HashSlot> {
    MemoryId::new(id).ok().map(|id| id.hash_slot())
}

fn home(id: &str, partitions: &[SlotRange]) -> u32 {
    let slot = slot(id);
    let owner = slot.and_then(|slot| partitions.iter().position(|range| range.contains(slot)));
    owner.unwrap_or(0) as u32
}

/// Longest tag with its braces.
const TAG_BYTES: usize = 10;

fn keeps_name(id: &str) -> bool {
    let has_tag = id
        .split_once('{')
        .and_then(|(_, rest)| rest.split_once('}'))
        .is_some_and(|(tag, _)| !tag.is_empty());
    has_tag || id.len() + TAG_BYTES > MEMORY_ID_BYTES_MAX || slot(id).is_none()
}

/// One of the partition's tags, always the same for an id.
fn renamed(id: &str, tags: &[String]) -> String {
    let choice = MemoryId::new(id).map_or(0, |id| usize::from(id.hash().0[15]));
    format!("{{{}}}{id}", tags[choice % tags.len()])
}

/// The first tags whose slots lie in each partition.
fn tags(partitions: &[SlotRange]) -> Result<Vec<Vec<String>>, ColocateError> {
    let mut tags = vec![Vec::new(); partitions.len()];
    let mut wanting = partitions.len();
    for number in 0..TAGS_TRIED {
        if wanting == 0 {
            break;
        }
        let tag = format!("{number:x}");
        let own = &mut tags[home(&format!("{{{tag}}}"), partitions) as usize];
        if own.len() < TAGS {
            own.push(tag);
            wanting -= usize::from(own.len() == TAGS);
        }
    }
    if tags.iter().any(Vec::is_empty) {
        return Err(ColocateError::NoTags);
    }
    Ok(tags)
}

/// Who is joined with whom, both ways, without names.
struct Graph {
    starts: Vec<u32>,
    neighbours: Vec<u32>,
    pairs: Vec<(u32, u32)>,
}

impl Graph {
    fn read(path: &Path, numbers: &HashMap<String, u32>) -> Result<Self, ColocateError> {
        let mut pairs = Vec::new();
        let mut lines = Lines::new(BufReader::new(File::open(path).map_err(at(path))?));
        while let Some(line) = lines.next_line().map_err(at(path))? {
            let edge = line
                .text
                .ok()
                .and_then(|text| parse::<EdgeLine>(&text).ok());
            let ends =
                edge.and_then(|edge| Some((numbers.get(&edge.from)?, numbers.get(&edge.to)?)));
            pairs.extend(ends.map(|(from, to)| (*from, *to)));
        }
        if pairs.len() > u32::MAX as usize / 2 {
            return Err(ColocateError::TooMany(pairs.len() as u64));
        }
        Ok(Self::new(numbers.len(), pairs))
    }

    fn new(vertices: usize, pairs: Vec<(u32, u32)>) -> Self {
        let mut starts = vec![0_u32; vertices + 1];
        for (from, to) in &pairs {
            starts[*from as usize + 1] += 1;
            starts[*to as usize + 1] += 1;
        }
        for vertex in 0..vertices {
            starts[vertex + 1] += starts[vertex];
        }
        let mut next = starts.clone();
        let mut neighbours = vec![0; pairs.len() * 2];
        for (from, to) in &pairs {
            for (one, other) in [(*from, *to), (*to, *from)] {
                let place = &mut next[one as usize];
                neighbours[*place as usize] = other;
                *place += 1;
            }
        }
        Self {
            starts,
            neighbours,
            pairs,
        }
    }

    fn vertices(&self) -> usize {
        self.starts.len() - 1
    }

    fn edges(&self) -> u64 {
        self.pairs.len() as u64
    }

    fn neighbours(&self, vertex: usize) -> &[u32] {
        &self.neighbours[self.starts[vertex] as usize..self.starts[vertex + 1] as usize]
    }

    fn crossing(&self, homes: &[u32]) -> u64 {
        let crosses = |(from, to): &&(u32, u32)| homes[*from as usize] != homes[*to as usize];
        self.pairs.iter().filter(crosses).count() as u64
    }

    /// Breadth first, so that neighbours come one after the other.
    fn order(&self) -> Vec<u32> {
        let mut order = Vec::with_capacity(self.vertices());
        let mut seen = vec![false; self.vertices()];
        let mut queue = VecDeque::new();
        for root in 0..self.vertices() {
            if !std::mem::replace(&mut seen[root], true) {
                queue.push_back(root as u32);
            }
            while let Some(vertex) = queue.pop_front() {
                order.push(vertex);
                for other in self.neighbours(vertex as usize) {
                    if !std::mem::replace(&mut seen[*other as usize], true) {
                        queue.push_back(*other);
                    }
                }
            }
        }
        order
    }
}

/// A partition for each memory; those that are `fixed` stay where their hash puts them.
fn place(graph: &Graph, partitions: usize, by_hash: &[u32], fixed: &[bool]) -> Vec<u32> {
    let mean = graph.vertices() as f64 / partitions as f64;
    let capacity = (mean * BALANCE).ceil().max(1.0);
    let mut homes = vec![UNPLACED; graph.vertices()];
    let mut sizes = vec![0_u64; partitions];
    for vertex in (0..graph.vertices()).filter(|vertex| fixed[*vertex]) {
        homes[vertex] = by_hash[vertex];
        sizes[by_hash[vertex] as usize] += 1;
    }
    let order = graph.order();
    let mut near = vec![0_u64; partitions];
    for _ in 0..PASSES {
        let mut changed = false;
        for vertex in order.iter().map(|vertex| *vertex as usize) {
            if fixed[vertex] {
                continue;
            }
            let before = homes[vertex];
            if before != UNPLACED {
                sizes[before as usize] -= 1;
            }
            near.fill(0);
            for other in graph.neighbours(vertex) {
                if let Some(count) = near.get_mut(homes[*other as usize] as usize) {
                    *count += 1;
                }
            }
            let chosen = choose(&near, &sizes, capacity);
            homes[vertex] = chosen;
            sizes[chosen as usize] += 1;
            changed |= chosen != before;
        }
        if !changed {
            break;
        }
    }
    homes
}

/// Where most neighbours are, weighted by the room that is left; of equals where most room is.
fn choose(near: &[u64], sizes: &[u64], capacity: f64) -> u32 {
    let score = |partition: usize| {
        let room = 1.0 - sizes[partition] as f64 / capacity;
        (near[partition] as f64 * room.max(0.0), room)
    };
    let is_better = |one: usize, other: usize| {
        let ((a, room), (b, other_room)) = (score(one), score(other));
        a.total_cmp(&b).then(room.total_cmp(&other_room)).is_gt()
    };
    let partitions = 1..near.len();
    partitions.fold(
        0,
        |best, next| if is_better(next, best) { next } else { best },
    ) as u32
}

fn fullest(homes: &[u32], partitions: usize) -> f64 {
    let mut sizes = vec![0_u64; partitions];
    for home in homes {
        sizes[*home as usize] += 1;
    }
    let most = sizes.into_iter().max().unwrap_or(0);
    most as f64 * partitions as f64 / homes.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Groups of memories joined in rings, and one association from each group to the next.
    fn files(directory: &Path, groups: usize, each: usize) -> (PathBuf, PathBuf) {
        let (memories, edges) = (directory.join("m.jsonl"), directory.join("e.jsonl"));
        let (mut lines, mut pairs) = (String::new(), String::new());
        // In an order that does not give the groups away.
        for number in 0..groups * each {
            let (group, member) = (number % groups, number / groups);
            lines += &format!("{{\"id\":\"g{group}/{member}\",\"content\":\"c\"}}\n");
            let mut join = |to: String| {
                pairs += &format!(
                    "{{\"from\":\"g{group}/{member}\",\"to\":\"{to}\",\"relation\":\"r\",\"weight\":0.5}}\n"
                );
            };
            join(format!("g{group}/{}", (member + 1) % each));
            join(format!("g{group}/{}", (member + 2) % each));
            if member == 0 {
                join(format!("g{}/0", (group + 1) % groups));
            }
        }
        lines += "{\"id\":\"{x}own tag\"}\nnonsense\n";
        pairs += "{\"from\":\"g0/0\",\"to\":\"nobody\",\"relation\":\"r\"}\n";
        std::fs::write(&memories, lines).expect("writable");
        std::fs::write(&edges, pairs).expect("writable");
        (memories, edges)
    }

    fn lines_of(path: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(path).expect("readable");
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn groups_stay_together_and_partitions_even() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (memories, edges) = files(directory.path(), 12, 20);
        let partitions = SlotRange::split_evenly(3);
        let out = directory.path().join("out");
        let done = colocate(&memories, &edges, &partitions, &out).expect("it rewrites");
        assert_eq!((done.moved, done.associations), (240, 12 * 41));
        assert!(done.crossing_by_hash > done.associations / 2, "{done:?}");
        assert!(done.crossing < done.associations / 5, "{done:?}");
        assert!(done.fullest <= 1.05, "{done:?}");

        // Every memory is where it was placed, under one name in both files.
        let ids: Vec<String> = lines_of(&done.memories)
            .iter()
            .filter_map(|line| parse::<MemoryLine>(line).ok())
            .map(|memory| memory.id)
            .collect();
        assert_eq!(ids.len(), 241);
        assert_eq!(ids[240], "{x}own tag");
        assert_eq!(
            lines_of(&done.memories).last().map(String::as_str),
            Some("nonsense")
        );
        let mut crossing = 0;
        for line in lines_of(&done.edges) {
            let edge: EdgeLine = parse(&line).expect("an association");
            if edge.to == "nobody" {
                continue;
            }
            assert!(ids.contains(&edge.from) && ids.contains(&edge.to), "{line}");
            assert_eq!(edge.weight, Some(0.5));
            crossing += u64::from(home(&edge.from, &partitions) != home(&edge.to, &partitions));
        }
        assert_eq!(crossing, done.crossing);
        assert_eq!(lines_of(&done.mapping).len(), 240);

        let again = directory.path().join("again");
        let twice = colocate(&memories, &edges, &partitions, &again).expect("it rewrites");
        assert_eq!(lines_of(&twice.memories), lines_of(&done.memories));
    }

    #[test]
    fn names_that_cannot_change_stay() {
        assert!(keeps_name("{a}b") && !keeps_name("a{}b") && !keeps_name("a}b{c"));
        assert!(keeps_name(&"x".repeat(MEMORY_ID_BYTES_MAX)));
        let tags = tags(&SlotRange::split_evenly(8)).expect("tags");
        assert!(tags.iter().all(|tags| tags.len() == TAGS));
        assert!(tags.iter().flatten().all(|tag| tag.len() + 2 <= TAG_BYTES));
    }
}
