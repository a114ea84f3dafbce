//! Artifacts' names, and which artifacts are on the disk.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::engine::ModuleKind;
use crate::modules::directory::DirectoryEntry;
use hearth_base::digest::Digest;

/// How artifacts' names end; files with other names are left alone.
pub(super) const SUFFIX: &str = ".artifact";

/// The artifacts on the disk.
#[derive(Default)]
pub(super) struct ArtifactIndex {
    /// Those of this daemon's engine.
    pub(super) artifacts: HashMap<Digest, Artifact>,
    /// Those of other engines: of earlier versions or configurations, perhaps of a daemon that still runs.
    pub(super) foreign: Vec<DirectoryEntry>,
    /// The length of all of them.
    pub(super) bytes: u64,
}

/// An artifact on the disk.
pub(super) struct Artifact {
    pub(super) name: String,
    pub(super) kind: ModuleKind,
    pub(super) bytes: u64,
    pub(super) used: Arc<LastUse>,
    /// The time of use that is on the disk.
    pub(super) saved: SystemTime,
}

/// When a module was used last, in microseconds since 1970. An update is one atomic operation.
#[derive(Debug)]
pub struct LastUse(pub(super) AtomicU64);

impl LastUse {
    pub(super) fn at(time: SystemTime) -> LastUse {
        LastUse(AtomicU64::new(micros(time)))
    }

    /// Notes that it is used now.
    pub fn now(&self) {
        self.0.store(micros(SystemTime::now()), Ordering::Relaxed);
    }

    /// When that was.
    pub fn time(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_micros(self.0.load(Ordering::Relaxed))
    }
}

pub(super) fn micros(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

/// An artifact, for the operator's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredArtifact {
    /// The digest of the module it was compiled from.
    pub digest: Digest,
    /// The module's kind.
    pub kind: ModuleKind,
    /// Its length.
    pub bytes: u64,
    /// When it was used last.
    pub used: SystemTime,
    /// Whether this daemon's engine compiled it.
    pub current: bool,
}

/// An artifact's name, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ArtifactName<'a> {
    pub(super) digest: Digest,
    pub(super) fingerprint: &'a str,
    pub(super) kind: ModuleKind,
    pub(super) code: &'a str,
}

impl ArtifactName<'_> {
    pub(super) fn parse(name: &str) -> Option<ArtifactName<'_>> {
        let parts: Vec<_> = name.strip_suffix(SUFFIX)?.split('.').collect();
        let &[digest, fingerprint, kind, code] = parts.as_slice() else { return None };
        let is_hex = |text: &str| !text.is_empty() && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !is_hex(fingerprint) || !is_hex(code) || code.len() != 2 * blake3::OUT_LEN {
            return None;
        }
        let kind = match kind {
            "core" => ModuleKind::Core,
            "component" => ModuleKind::Component,
            _ => return None,
        };
        Some(ArtifactName { digest: Digest::parse(digest)?, fingerprint, kind, code })
    }
}

/// `core` or `component`.
pub(super) fn kind_name(kind: ModuleKind) -> &'static str {
    match kind {
        ModuleKind::Core => "core",
        ModuleKind::Component => "component",
    }
}

impl ArtifactIndex {
    /// Removes artifacts from the index until `more` bytes fit into `max`; returns the names of their files.
    pub(super) fn take_victims(&mut self, more: u64, max: u64) -> Vec<String> {
        let mut victims = Vec::new();
        let is_over = |bytes: u64| bytes.saturating_add(more) > max;
        if !is_over(self.bytes) {
            return victims;
        }
        self.foreign.sort_by(|a, b| b.used.cmp(&a.used).then_with(|| b.name.cmp(&a.name)));
        while is_over(self.bytes)
            && let Some(entry) = self.foreign.pop()
        {
            self.bytes -= entry.bytes;
            victims.push(entry.name);
        }
        let mut by_use: Vec<_> =
            self.artifacts.iter().map(|(digest, artifact)| (artifact.used.time(), *digest)).collect();
        by_use.sort();
        for (_, digest) in by_use {
            if !is_over(self.bytes) {
                break;
            }
            if let Some(artifact) = self.artifacts.remove(&digest) {
                self.bytes -= artifact.bytes;
                victims.push(artifact.name);
            }
        }
        victims
    }
}
