//! What a backup says of itself: a header line with format version and hash, then JSON.
//!
//! ```text
//! engram-backup 1 <BLAKE3 of the rest, 64 hexadecimal digits>\n
//! { ... }
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

/// The word that a manifest begins with, and the format that is written.
const MAGIC: &str = "engram-backup";
const FORMAT: u32 = 1;
/// Longest name of a backup, in bytes.
const ID_BYTES_MAX: usize = 64;

/// The name of a backup. It is part of a file name, so it holds nothing that a path could mean.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BackupId(String);

/// The BLAKE3 of a chunk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ChunkHash(pub [u8; 32]);

/// Why a manifest cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error("it does not begin as a manifest does")]
    Header,
    #[error("it is of format {found}, this program knows {FORMAT}")]
    Format { found: u32 },
    #[error("it is damaged: its content has another hash")]
    Damaged,
    #[error("line {line}, column {column} cannot be read")]
    Malformed { line: usize, column: usize },
    #[error("it says that it is backup {found}")]
    OtherId { found: BackupId },
    #[error("{0}")]
    Impossible(&'static str),
}

/// One backup.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub id: BackupId,
    /// 32 hexadecimal digits.
    pub cluster: String,
    /// Of the program that wrote it.
    pub version: String,
    pub started_millis: u64,
    pub finished_millis: u64,
    pub spaces: Vec<SpaceEntry>,
}

/// A space: what it takes to create it again, and its partitions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpaceEntry {
    pub name: String,
    pub dimension: u32,
    pub metric: String,
    pub replicas: u32,
    pub m: u32,
    pub ef_construction: u32,
    pub quantization: String,
    pub embedding_model: String,
    pub decay: Option<DecayEntry>,
    /// Written only where it is so: a program that does not know it refuses such a backup, and would
    /// else restore the space without its policy.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub refuses_local_fallback: bool,
    pub partitions: Vec<PartitionEntry>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum DecayEntry {
    Exponential { half_life_millis: u64 },
    PowerLaw { scale_millis: u64, exponent: f64 },
}

/// A partition at one sequence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartitionEntry {
    pub partition: u64,
    /// Everything of this partition is of this sequence.
    pub sequence: u64,
    /// Changes of associations beside the log that are in it.
    pub local_changes: u64,
    pub memories: u64,
    pub edges: u64,
    /// Associations that begin at no memory, and that the backup therefore leaves out.
    pub edges_without_source: u64,
    /// In order: memories, then associations.
    pub chunks: Vec<ChunkEntry>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChunkEntry {
    pub hash: ChunkHash,
    pub bytes: u64,
    pub memories: u64,
    pub edges: u64,
}

impl BackupId {
    /// Letters, digits, `-`, `_` and `.`, not first.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let is_id = (1..=ID_BYTES_MAX).contains(&text.len())
            && text.bytes().all(fits)
            && !text.starts_with(['.', '-']);
        is_id.then(|| Self(text.to_owned()))
    }

    /// By the time of its start, in UTC, so that the order of names is that of time.
    #[must_use]
    pub fn of_time(wall_millis: u64) -> Self {
        let seconds = wall_millis / 1_000;
        let (days, second) = (seconds / 86_400, seconds % 86_400);
        let (year, month, day) = civil(days);
        let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
        Self(format!(
            "{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z"
        ))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Year, month and day of the given day since 1970-01-01.
fn civil(days: u64) -> (u64, u64, u64) {
    // Years are counted from March, so that the odd day comes last (Hinnant's algorithm).
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for BackupId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, &'static str> {
        Self::new(&text).ok_or("not the name of a backup")
    }
}

impl From<BackupId> for String {
    fn from(id: BackupId) -> Self {
        id.0
    }
}

impl ChunkHash {
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// From 64 hexadecimal digits, lower case: a chunk has one name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        let lower = |digit: &u8| digit.is_ascii_digit() || (b'a'..=b'f').contains(digit);
        if digits.len() != 64 || !digits.iter().all(lower) {
            return None;
        }
        blake3::Hash::from_hex(digits)
            .ok()
            .map(|hash| Self(*hash.as_bytes()))
    }
}

impl fmt::Display for ChunkHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(blake3::Hash::from_bytes(self.0).to_hex().as_str())
    }
}

impl fmt::Debug for ChunkHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for ChunkHash {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, &'static str> {
        Self::parse(&text).ok_or("not the hash of a chunk")
    }
}

impl From<ChunkHash> for String {
    fn from(hash: ChunkHash) -> Self {
        hash.to_string()
    }
}

impl Manifest {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        // Into memory, and nothing in it refuses to be serialised.
        let body = serde_json::to_vec_pretty(self);
        let body = body.unwrap_or_else(|error| panic!("a manifest as JSON: {error}"));
        let mut bytes = format!("{MAGIC} {FORMAT} {}\n", ChunkHash::of(&body)).into_bytes();
        bytes.extend(body);
        bytes
    }

    /// # Errors
    /// See [`ManifestError`].
    pub fn decode(id: &BackupId, bytes: &[u8]) -> Result<Self, ManifestError> {
        let end = bytes.iter().take(128).position(|byte| *byte == b'\n');
        let end = end.ok_or(ManifestError::Header)?;
        let (head, body) = (&bytes[..end], &bytes[end + 1..]);
        let head = std::str::from_utf8(head).map_err(|_| ManifestError::Header)?;
        let parts: Vec<&str> = head.split(' ').collect();
        let [MAGIC, format, hash] = parts[..] else {
            return Err(ManifestError::Header);
        };
        match format.parse() {
            Ok(FORMAT) => {}
            Ok(found) => return Err(ManifestError::Format { found }),
            Err(_) => return Err(ManifestError::Header),
        }
        let hash = ChunkHash::parse(hash).ok_or(ManifestError::Header)?;
        if hash != ChunkHash::of(body) {
            return Err(ManifestError::Damaged);
        }
        let manifest: Self =
            serde_json::from_slice(body).map_err(|error| ManifestError::Malformed {
                line: error.line(),
                column: error.column(),
            })?;
        manifest.check(id)?;
        Ok(manifest)
    }

    /// What a hash does not show: it can be computed over anything.
    fn check(&self, id: &BackupId) -> Result<(), ManifestError> {
        if self.id != *id {
            let found = self.id.clone();
            return Err(ManifestError::OtherId { found });
        }
        let mut names: Vec<&str> = self
            .spaces
            .iter()
            .map(|space| space.name.as_str())
            .collect();
        names.sort_unstable();
        if names.windows(2).any(|two| two[0] == two[1]) {
            return Err(ManifestError::Impossible("it has a space twice"));
        }
        for partition in self.spaces.iter().flat_map(|space| &space.partitions) {
            let total = |count: fn(&ChunkEntry) -> u64| {
                partition
                    .chunks
                    .iter()
                    .try_fold(0_u64, |sum, chunk| sum.checked_add(count(chunk)))
            };
            let adds_up = total(|chunk| chunk.memories) == Some(partition.memories)
                && total(|chunk| chunk.edges) == Some(partition.edges)
                && total(|chunk| chunk.bytes).is_some();
            if !adds_up {
                return Err(ManifestError::Impossible("its counts do not add up"));
            }
        }
        Ok(())
    }

    #[must_use]
    pub fn space(&self, name: &str) -> Option<&SpaceEntry> {
        self.spaces.iter().find(|space| space.name == name)
    }

    /// Every chunk of every partition; one may come more than once.
    pub fn chunks(&self) -> impl Iterator<Item = &ChunkEntry> {
        self.spaces.iter().flat_map(SpaceEntry::chunks)
    }
}

impl SpaceEntry {
    pub fn chunks(&self) -> impl Iterator<Item = &ChunkEntry> {
        self.partitions
            .iter()
            .flat_map(|partition| &partition.chunks)
    }

    #[must_use]
    pub fn memories(&self) -> u64 {
        self.partitions.iter().map(|part| part.memories).sum()
    }

    #[must_use]
    pub fn edges(&self) -> u64 {
        self.partitions.iter().map(|part| part.edges).sum()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn manifest(id: &str) -> Manifest {
        let chunk = |name: &str, memories, edges| ChunkEntry {
            hash: ChunkHash::of(name.as_bytes()),
            bytes: name.len() as u64,
            memories,
            edges,
        };
        Manifest {
            id: BackupId::new(id).expect("an id"),
            cluster: "0".repeat(32),
            version: "0.1.0".into(),
            started_millis: 1,
            finished_millis: 2,
            spaces: vec![SpaceEntry {
                name: "words".into(),
                dimension: 4,
                metric: "cosine".into(),
                replicas: 3,
                m: 16,
                ef_construction: 200,
                quantization: "none".into(),
                embedding_model: String::new(),
                decay: Some(DecayEntry::Exponential {
                    half_life_millis: 5,
                }),
                refuses_local_fallback: false,
                partitions: vec![PartitionEntry {
                    partition: 1,
                    sequence: 9,
                    local_changes: 0,
                    memories: 3,
                    edges: 2,
                    edges_without_source: 0,
                    chunks: vec![chunk("one", 3, 0), chunk("two", 0, 2)],
                }],
            }],
        }
    }

    fn sealed(body: &[u8]) -> Vec<u8> {
        let mut bytes = format!("{MAGIC} {FORMAT} {}\n", ChunkHash::of(body)).into_bytes();
        bytes.extend(body);
        bytes
    }

    #[test]
    fn names_say_when_and_mean_no_path() {
        let names = [0, 951_782_399_999, 951_782_400_000, 1_795_734_901_000]
            .map(|millis| BackupId::of_time(millis).to_string());
        let expected = [
            "19700101T000000Z",
            "20000228T235959Z",
            "20000229T000000Z",
            "20261126T231501Z",
        ];
        assert_eq!(names, expected);
        assert!(names.iter().all(|name| BackupId::new(name).is_some()));
        let long = "a".repeat(65);
        for bad in [
            "", ".", "..", "../a", "a/b", "a\\b", "/a", "a\0", "%2e%2e", ".a", "-a", "a b", &long,
        ] {
            assert_eq!(BackupId::new(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_hash_has_one_name() {
        let hash = ChunkHash::of(b"x");
        assert_eq!(ChunkHash::parse(&hash.to_string()), Some(hash));
        assert_eq!(ChunkHash::parse(&hash.to_string().to_uppercase()), None);
        assert_eq!(ChunkHash::parse("../../etc/passwd"), None);
    }

    #[test]
    fn a_manifest_reads_back_and_damage_shows() {
        let written = manifest("a");
        let bytes = written.encode();
        assert_eq!(Manifest::decode(&written.id, &bytes), Ok(written.clone()));
        for place in 0..bytes.len() {
            let mut bent = bytes.clone();
            bent[place] ^= 1;
            assert!(Manifest::decode(&written.id, &bent).is_err(), "{place}");
            assert!(Manifest::decode(&written.id, &bytes[..place]).is_err());
        }
        let other = BackupId::new("b").expect("an id");
        let found = Manifest::decode(&other, &bytes);
        assert!(matches!(found, Err(ManifestError::OtherId { .. })));
        let newer = String::from_utf8(bytes).expect("text");
        let newer = newer.replacen("engram-backup 1", "engram-backup 2", 1);
        let found = Manifest::decode(&written.id, newer.as_bytes());
        assert_eq!(found, Err(ManifestError::Format { found: 2 }));
    }

    #[test]
    fn the_policy_of_falling_back_is_kept_and_not_written_where_it_is_the_usual_one() {
        let usual = manifest("a");
        let bytes = usual.encode();
        let text = String::from_utf8(bytes).expect("text");
        assert!(
            !text.contains("refuses_local_fallback"),
            "as it was always written"
        );
        let mut refusing = usual;
        refusing.spaces[0].refuses_local_fallback = true;
        let read = Manifest::decode(&refusing.id, &refusing.encode());
        assert_eq!(read, Ok(refusing));
    }

    #[test]
    fn a_right_hash_over_wrong_content_does_not_help() {
        let id = BackupId::new("a").expect("an id");
        let with = |from: &str, to: &str| {
            let body = serde_json::to_string(&manifest("a")).expect("JSON");
            assert!(body.contains(from), "{body}");
            Manifest::decode(&id, &sealed(body.replacen(from, to, 1).as_bytes()))
        };
        let hash = ChunkHash::of(b"one").to_string();
        assert!(with(&hash, "../../../../../../../../etc/passwd").is_err());
        assert!(with(&hash, &"0".repeat(63)).is_err());
        assert!(with("\"memories\":3", "\"memories\":4").is_err());
        assert!(with("\"memories\":3", "\"memories\":18446744073709551615").is_err());
        assert!(with("\"id\":\"a\"", "\"id\":\"../a\"").is_err());
        assert!(with("\"version\"", "\"surprise\":1,\"version\"").is_err());
    }
}
