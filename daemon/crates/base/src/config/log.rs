//! `[log]`: the level and form of the log, and the lines kept for `hearthctl logs`.

use serde::{Deserialize, Serialize};

/// The form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// Text.
    Text,
    /// One JSON object a line.
    Json,
}

/// Logging.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// A `tracing` filter: `info`, or `hearthd=debug,ttrpc=warn`.
    pub level: String,
    /// The form of a line: `auto` (text on a terminal, JSON otherwise), `text` or `json`.
    pub format: LogFormat,
    /// Lines that are kept in memory for `hearthctl logs`, independent of `level`; a filter like `level`.
    pub kept_level: String,
    /// The number of kept lines, each of 2 KiB at most; the oldest is dropped first.
    pub kept_lines: usize,
}

impl Default for Log {
    fn default() -> Self {
        Log {
            level: "info".into(),
            format: LogFormat::Auto,
            kept_level: "info,hearthd::task=debug,hearthd::guest=debug".into(),
            kept_lines: 4_096,
        }
    }
}
