//! Compiled artifacts on disk.
//!
//! An artifact's file name says everything about it, so that one rename publishes it with its code
//! and a listing of the directory is the index:
//!
//! ```text
//! <sha256 of the wasm>.<engine fingerprint>.<core|component>.<code>.artifact
//! ```
//!
//! The code is a keyed BLAKE3 of the first three and of all bytes, with a key of this node's own. It
//! is checked whenever an artifact is taken from the disk, over the same open file that is then
//! mapped. A damaged, truncated, swapped or foreign artifact is counted, removed and compiled again.
//!
//! Several generations of the daemon may use the directory at once. Each holds a lock on its engine's name;
//! the artifacts of an engine that no daemon holds are removed once a younger daemon serves.
//!
//! The size is bounded: artifacts of other engines are removed first, then the least recently used. Times of use
//! are kept in memory and written to the disk once a minute, never on a start's path.
//!
//! Artifacts are mapped from the files on the disk, and so share the page cache between generations of the daemon and are
//! given back to the kernel under pressure. A copy in a sealed memory file could not be changed under the mapping, but
//! would cost its whole size in the daemon's own memory, once for each generation. So the files themselves are kept from
//! changing: only root can enter the directory, and hearthd writes a file under another name before it renames it. A root
//! process that overwrites an artifact in place all the same ends hearthd. On a disk from which code cannot be mapped,
//! sealed copies are used.
//!
//! Nothing here is needed for a program to run: without a directory, or when a write fails, artifacts
//! stay in memory.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use crate::engine::ModuleKind;
use crate::modules::artifact_index::{Artifact, ArtifactIndex, ArtifactName, SUFFIX, kind_name, micros};
pub use crate::modules::artifact_index::{LastUse, StoredArtifact};
use crate::modules::directory::{Directory, DirectoryEntry};
use crate::modules::origin::each_chunk;
use hearth_base::digest::Digest;
use hearth_observe::metrics::Metrics;
use hearth_os::memfd;

/// The purpose for which the key of artifacts' codes is derived from the directory's key.
const PURPOSE: &str = "hearth 2026 module store: artifact";

/// How often the times of use are written to the disk at most.
const SAVE_EVERY: Duration = Duration::from_secs(60);

/// How often a failing disk is mentioned in the log at most.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// The artifacts of one node.
pub struct Store {
    directory: Option<Arc<Directory>>,
    key: [u8; 32],
    fingerprint: String,
    /// The lock that tells other daemons that this engine is in use.
    _in_use: Option<File>,
    bytes_max: u64,
    metrics: Arc<Metrics>,
    index: Mutex<ArtifactIndex>,
    saved: LastTime,
    warned: LastTime,
}

/// The last time of an action that has a least interval.
struct LastTime(AtomicU64);

impl LastTime {
    fn never() -> LastTime {
        LastTime(AtomicU64::new(0))
    }

    fn is_due(&self, every: Duration) -> bool {
        let now = micros(SystemTime::now());
        let last = self.0.load(Ordering::Relaxed);
        now.saturating_sub(last) >= every.as_micros() as u64
            && self.0.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// A verified artifact.
pub struct VerifiedArtifact {
    /// The file whose bytes were checked; to be mapped as it is.
    pub file: File,
    /// The kind of the module it was compiled from.
    pub kind: ModuleKind,
    /// Where its uses are recorded.
    pub used: Arc<LastUse>,
}

impl VerifiedArtifact {
    /// An artifact that the compile process wrote into a sealed memory file and that goes to no disk.
    pub fn in_memory(artifact: File, kind: ModuleKind) -> VerifiedArtifact {
        VerifiedArtifact { file: artifact, kind, used: Arc::new(LastUse::at(SystemTime::now())) }
    }
}

impl Store {
    /// Reads the index of `directory`. `fingerprint` identifies this daemon's engine, in hex.
    pub fn open(directory: Option<Arc<Directory>>, fingerprint: &str, bytes_max: u64, metrics: Arc<Metrics>) -> Store {
        let store = Store {
            key: directory.as_ref().map_or([0; 32], |directory| directory.key_for(PURPOSE)),
            _in_use: directory.as_ref().and_then(|directory| match directory.hold(fingerprint) {
                Ok(file) => Some(file),
                Err(e) => {
                    tracing::warn!(directory = %directory.path().display(), error = %e, "cannot lock the module store: another hearthd may remove what this one has compiled");
                    None
                }
            }),
            directory,
            fingerprint: fingerprint.to_string(),
            bytes_max,
            metrics,
            index: Mutex::default(),
            saved: LastTime::never(),
            warned: LastTime::never(),
        };
        if let Some(directory) = &store.directory {
            match directory.list() {
                Ok(entries) => store.fill(directory, entries),
                Err(e) => {
                    tracing::warn!(directory = %directory.path().display(), error = %e, "cannot list the module store: its artifacts are compiled again");
                }
            }
        }
        // The bound may be lower than it was.
        store.remove_for(0);
        store
    }

    fn fill(&self, directory: &Directory, entries: Vec<DirectoryEntry>) {
        let mut index = self.index.lock();
        for entry in entries {
            let Some(name) = ArtifactName::parse(&entry.name) else {
                if entry.name.ends_with(SUFFIX) {
                    self.damaged(directory, &entry.name, "it has no artifact's name");
                }
                continue;
            };
            index.bytes += entry.bytes;
            if name.fingerprint != self.fingerprint {
                index.foreign.push(entry);
                continue;
            }
            let (digest, kind) = (name.digest, name.kind);
            let used = Arc::new(LastUse::at(entry.used));
            let artifact = Artifact { name: entry.name, kind, bytes: entry.bytes, used, saved: entry.used };
            // Two daemons may have compiled the same module; either artifact will do, the newer is kept.
            let older = match index.artifacts.insert(digest, artifact) {
                Some(previous) if previous.saved > index.artifacts[&digest].saved => {
                    index.artifacts.insert(digest, previous)
                }
                previous => previous,
            };
            if let Some(older) = older {
                index.bytes -= older.bytes;
                directory.remove(&older.name);
            }
        }
        self.count(&index);
    }

    /// Removes the artifacts of engines that no running daemon uses. Reads the directory: blocks.
    pub fn remove_unused(&self) {
        let Some(directory) = &self.directory else { return };
        // Other daemons may have written since the index was read.
        let Ok(entries) = directory.list() else { return };
        let mut by_engine: HashMap<String, Vec<String>> = HashMap::new();
        for entry in entries {
            if let Some(name) = ArtifactName::parse(&entry.name)
                && name.fingerprint != self.fingerprint
            {
                by_engine.entry(name.fingerprint.to_string()).or_default().push(entry.name);
            }
        }
        for (engine, names) in by_engine {
            let removed = directory.if_unused(&engine, || {
                for name in &names {
                    directory.remove(name);
                }
            });
            if removed {
                tracing::info!(
                    engine,
                    artifacts = names.len(),
                    "removed what an engine compiled that nobody uses any more"
                );
                let mut index = self.index.lock();
                let gone = index.foreign.extract_if(.., |entry| names.contains(&entry.name));
                let bytes: u64 = gone.map(|entry| entry.bytes).sum();
                index.bytes -= bytes;
                self.count(&index);
            }
        }
    }

    /// Takes an artifact from the disk if it is there and intact. Reads all of it: blocks.
    pub fn get(&self, digest: Digest) -> Option<VerifiedArtifact> {
        let directory = self.directory.as_ref()?;
        let (name, kind, used) = {
            let index = self.index.lock();
            let artifact = index.artifacts.get(&digest)?;
            (artifact.name.clone(), artifact.kind, artifact.used.clone())
        };
        match self.verify(directory, &name) {
            Ok(Some(file)) => {
                used.now();
                self.save_times_if_due();
                Some(VerifiedArtifact { file, kind, used })
            }
            Ok(None) => {
                self.discard(digest, "its bytes do not match its code");
                None
            }
            // Another generation of the daemon removed it to make room.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.forget(digest);
                None
            }
            // The disk cannot read it, or the file is not this daemon's own.
            Err(e) if e.kind() == io::ErrorKind::InvalidData || e.raw_os_error() == Some(libc::EIO) => {
                self.discard(digest, &e.to_string());
                None
            }
            // No descriptor or memory is left: that says nothing about the artifact.
            Err(e) => {
                if self.warned.is_due(WARN_EVERY) {
                    tracing::warn!(module = %digest, error = %e, "cannot read a compiled module from the store");
                }
                None
            }
        }
    }

    /// The file if its bytes match its name. On a disk that code cannot be mapped from, a copy in
    /// memory made of the very bytes that were checked.
    fn verify(&self, directory: &Directory, name: &str) -> io::Result<Option<File>> {
        let parsed = ArtifactName::parse(name).ok_or(io::ErrorKind::InvalidInput)?;
        let file = directory.read(name)?;
        let copy = if directory.can_map_code { None } else { Some(memfd::create("hearth-artifact")?) };
        let mut hasher = self.hasher(parsed.digest, parsed.kind);
        each_chunk(
            &file,
            |e| e,
            |chunk| {
                hasher.update(chunk);
                copy.as_ref().map_or(Ok(()), |mut copy| copy.write_all(chunk))
            },
        )?;
        let code: blake3::Hash = parsed.code.parse().map_err(io::Error::other)?;
        // blake3 compares in constant time.
        if hasher.finalize() != code {
            return Ok(None);
        }
        match copy {
            Some(copy) => {
                memfd::seal(&copy)?;
                Ok(Some(copy))
            }
            None => Ok(Some(file)),
        }
    }

    /// Puts a sealed memory file with a new artifact on the disk. Returns the file to map: the one on
    /// the disk, or `artifact` itself if the disk did not take it. Blocks.
    pub fn put(&self, digest: Digest, kind: ModuleKind, artifact: File) -> VerifiedArtifact {
        let used = Arc::new(LastUse::at(SystemTime::now()));
        let file = match self.write(digest, kind, &artifact, &used) {
            Ok(Some(file)) => file,
            Ok(None) => artifact,
            Err(e) => {
                self.metrics.store.write_failures.inc();
                if self.warned.is_due(WARN_EVERY) {
                    let path = self.directory.as_ref().map(|d| d.path().display().to_string()).unwrap_or_default();
                    tracing::warn!(directory = path, module = %digest, error = %e, "cannot write a compiled module to the store: it runs from memory and will be compiled again after a restart");
                }
                artifact
            }
        };
        VerifiedArtifact { file, kind, used }
    }

    fn write(
        &self,
        digest: Digest,
        kind: ModuleKind,
        artifact: &File,
        used: &Arc<LastUse>,
    ) -> io::Result<Option<File>> {
        let Some(directory) = &self.directory else {
            return Err(io::Error::new(io::ErrorKind::NotFound, "there is no usable directory"));
        };
        let bytes = artifact.metadata()?.len();
        if bytes > self.bytes_max {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("it has {bytes} bytes and modules.store_bytes_max is {}", self.bytes_max),
            ));
        }
        let machine_code = memfd::map(artifact)?;
        let code = self.hasher(digest, kind).update(&machine_code).finalize().to_hex();
        let name = format!("{digest}.{}.{}.{code}{SUFFIX}", self.fingerprint, kind_name(kind));
        self.remove_for(bytes);
        let file = directory.write(&name, |file| file.write_all(&machine_code))?;
        let now = used.time();
        let artifact = Artifact { name: name.clone(), kind, bytes, used: used.clone(), saved: now };
        let previous = {
            let mut index = self.index.lock();
            index.bytes += bytes;
            let previous = index.artifacts.insert(digest, artifact);
            index.bytes -= previous.as_ref().map_or(0, |previous| previous.bytes);
            self.count(&index);
            previous
        };
        if let Some(previous) = previous.filter(|previous| previous.name != name) {
            directory.remove(&previous.name);
        }
        self.save_times_if_due();
        Ok(directory.can_map_code.then_some(file))
    }

    /// Removes an artifact that is damaged or that wasmtime refuses.
    pub fn discard(&self, digest: Digest, why: &str) {
        if let (Some(directory), Some(artifact)) = (&self.directory, self.forget(digest)) {
            self.damaged(directory, &artifact.name, why);
        }
    }

    /// All artifacts on the disk, those of other engines too, in no order.
    pub fn list(&self) -> Vec<StoredArtifact> {
        let index = self.index.lock();
        let ours = index.artifacts.iter().map(|(&digest, artifact)| StoredArtifact {
            digest,
            kind: artifact.kind,
            bytes: artifact.bytes,
            used: artifact.used.time(),
            current: true,
        });
        let foreign = index.foreign.iter().filter_map(|entry| {
            let name = ArtifactName::parse(&entry.name)?;
            Some(StoredArtifact {
                digest: name.digest,
                kind: name.kind,
                bytes: entry.bytes,
                used: entry.used,
                current: false,
            })
        });
        ours.chain(foreign).collect()
    }

    /// Whether an artifact of this engine is intact; one that is not is removed. Reads all of it: blocks.
    pub fn check(&self, digest: Digest) -> bool {
        let Some(directory) = &self.directory else { return false };
        let name = self.index.lock().artifacts.get(&digest).map(|artifact| artifact.name.clone());
        let Some(name) = name else { return false };
        match self.verify(directory, &name) {
            Ok(Some(_)) => true,
            Ok(None) => {
                self.discard(digest, "its bytes do not match its code");
                false
            }
            Err(e) => {
                self.discard(digest, &e.to_string());
                false
            }
        }
    }

    /// Removes all artifacts of other engines, and those of this engine that are `unwanted`. Returns their number and
    /// their bytes. Blocks.
    pub fn prune(&self, unwanted: impl Fn(Digest) -> bool) -> (u64, u64) {
        let Some(directory) = &self.directory else { return (0, 0) };
        let removed: Vec<(String, u64)> = {
            let mut index = self.index.lock();
            let ours: Vec<_> = index.artifacts.keys().copied().filter(|digest| unwanted(*digest)).collect();
            let ours: Vec<_> = ours.iter().filter_map(|digest| index.artifacts.remove(digest)).collect();
            let foreign = std::mem::take(&mut index.foreign).into_iter().map(|entry| (entry.name, entry.bytes));
            let removed: Vec<_> =
                ours.into_iter().map(|artifact| (artifact.name, artifact.bytes)).chain(foreign).collect();
            index.bytes -= removed.iter().map(|(_, bytes)| bytes).sum::<u64>();
            self.count(&index);
            removed
        };
        removed.iter().for_each(|(name, _)| directory.remove(name));
        (removed.len() as u64, removed.iter().map(|(_, bytes)| bytes).sum())
    }

    /// The largest size of all artifacts together, in bytes.
    pub fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Writes the times of use that are not yet on the disk. Blocks.
    pub fn save_times(&self) {
        let Some(directory) = &self.directory else { return };
        let stale: Vec<_> = {
            let mut index = self.index.lock();
            let stale = index.artifacts.values_mut().filter(|artifact| artifact.used.time() > artifact.saved);
            stale
                .map(|artifact| {
                    artifact.saved = artifact.used.time();
                    (artifact.name.clone(), artifact.saved)
                })
                .collect()
        };
        for (name, used) in stale {
            directory.set_used(&name, used);
        }
    }

    fn save_times_if_due(&self) {
        if self.saved.is_due(SAVE_EVERY) {
            self.save_times();
        }
    }

    fn hasher(&self, digest: Digest, kind: ModuleKind) -> blake3::Hasher {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        // Each part has a fixed length, except the kind, which comes last with its length before it.
        let kind = kind_name(kind);
        hasher
            .update(&digest.0)
            .update(self.fingerprint.as_bytes())
            .update(&[kind.len() as u8])
            .update(kind.as_bytes());
        hasher
    }

    fn forget(&self, digest: Digest) -> Option<Artifact> {
        let mut index = self.index.lock();
        let artifact = index.artifacts.remove(&digest)?;
        index.bytes -= artifact.bytes;
        self.count(&index);
        Some(artifact)
    }

    fn damaged(&self, directory: &Directory, name: &str, why: &str) {
        self.metrics.store.damaged.inc();
        tracing::warn!(file = %directory.path().join(name).display(), reason = why, "an artifact of the module store is no good: it is removed and will be compiled again");
        directory.remove(name);
    }

    /// Removes artifacts until `bytes` more fit.
    fn remove_for(&self, bytes: u64) {
        let Some(directory) = &self.directory else { return };
        let victims = self.index.lock().take_victims(bytes, self.bytes_max);
        for name in &victims {
            directory.remove(name);
        }
        self.metrics.store.evictions.inc_by(victims.len() as u64);
        self.count(&self.index.lock());
    }

    fn count(&self, index: &ArtifactIndex) {
        self.metrics.store.artifacts.set((index.artifacts.len() + index.foreign.len()) as i64);
        self.metrics.store.bytes.set(index.bytes as i64);
    }
}

#[cfg(test)]
mod tests;
