//! The configuration file.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{ConfigError, LimitArgs, LogFormat, LogMarks};

/// What the file may say; everything is optional, nothing else is allowed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FileConfig {
    pub data_dir: Option<PathBuf>,
    pub listen: Option<String>,
    pub peer_listen: Option<String>,
    pub http_listen: Option<String>,
    pub join: Option<Vec<String>>,
    pub advertise_host: Option<String>,
    pub peer_routes: Option<Vec<String>>,
    pub zone: Option<String>,
    pub insecure: Option<bool>,
    pub tls_dir: Option<PathBuf>,
    pub token_file: Option<PathBuf>,
    pub cluster_key_file: Option<PathBuf>,
    pub log_format: Option<LogFormat>,
    pub log_level: Option<String>,
    pub replace_after_seconds: Option<u64>,
    pub fold_after_seconds: Option<u64>,
    pub snapshot_bytes_per_second: Option<u64>,
    pub log_marks: Option<LogMarks>,
    pub index_tail_max: Option<u32>,
    pub limits: LimitArgs,
}

pub(super) fn read(path: &Path) -> Result<FileConfig, ConfigError> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Read {
        path: name.clone(),
        reason: error.to_string(),
    })?;
    parse(&name, &text)
}

pub(super) fn parse(name: &str, text: &str) -> Result<FileConfig, ConfigError> {
    toml::from_str(text).map_err(|error| ConfigError::File {
        path: name.to_owned(),
        reason: error.to_string().trim().to_owned(),
    })
}
