//! The data of `hearthctl modules`: the modules that a daemon knows, compiles, refused, checked and removed.

use serde::{Deserialize, Serialize};

/// The modules that a daemon knows.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Modules {
    /// Compiled, on disk or in memory.
    pub compiled: Vec<ModuleInfo>,
    /// Modules whose compile failed, remembered for a while.
    pub rejected: Vec<RejectedModule>,
    /// Modules whose compile runs or waits.
    pub compiling: Vec<CompilingModule>,
}

/// A compiled module.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct ModuleInfo {
    /// SHA-256 of the Wasm, in hex.
    pub digest: String,
    /// `core` or `component`.
    pub kind: String,
    /// The size of the artifact on disk; 0 if it is in memory only.
    pub bytes: u64,
    /// Whether it was compiled for this daemon's engine; else for another release or configuration.
    pub current: bool,
    /// Whether it is prepared in memory.
    pub prepared: bool,
    /// Whether the prepared code is the baseline compiler's.
    pub baseline: bool,
    /// The time of its last use.
    pub used_at: f64,
    /// Tasks that run it.
    pub tasks: u64,
    /// Images or programs of those tasks; a few of them.
    pub names: Vec<String>,
}

/// A module whose compile runs or waits.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct CompilingModule {
    /// SHA-256 of the Wasm, in hex.
    pub digest: String,
    /// The file in its image, or the image.
    pub name: String,
    /// The time so far.
    pub age_seconds: f64,
}

/// The result of a check of the artifacts on disk.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Verified {
    /// Valid artifacts.
    pub good: u64,
    /// Digests of invalid artifacts, which are removed.
    pub removed: Vec<String>,
    /// Artifacts of other engines, which are not checked.
    pub foreign: u64,
}

/// The artifacts that were removed from the disk.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Pruned {
    /// Their number.
    pub artifacts: u64,
    /// Their size.
    pub bytes: u64,
}

/// A module that cannot be compiled.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct RejectedModule {
    /// SHA-256 of the Wasm, in hex.
    pub digest: String,
    /// The reason.
    pub reason: String,
    /// The time so far.
    pub age_seconds: f64,
}
