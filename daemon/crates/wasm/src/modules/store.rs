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
//! mapped. One that is damaged, truncated, swapped or foreign is counted, removed and compiled again.
//!
//! Several generations of the daemon may use the directory at once. Each holds a lock on its engine's name;
//! what an engine compiled that nobody uses any more is removed once a younger daemon serves.
//!
//! The size is bounded: what other engines compiled goes first, then what was not used longest. Use
//! is noted in memory and written to the disk now and then, never on a start's path.
//!
//! Nothing here is needed for a program to run: without a directory, or when a write fails, artifacts
//! stay in memory.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use crate::engine::Kind;
use crate::modules::directory::{Directory, Entry};
use crate::modules::origin::each_chunk;
use hearth_base::digest::Digest;
use hearth_observe::metrics::Metrics;
use hearth_os::memfd;

/// What artifacts' codes are made with the directory's key for.
const PURPOSE: &str = "hearth 2026 module store: artifact";

/// How artifacts' names end; what does not end so is not ours and left alone.
const SUFFIX: &str = ".artifact";

/// How often the times of use are written to the disk at most.
const SAVE_EVERY: Duration = Duration::from_secs(60);

/// How often a failing disk is mentioned in the log at most.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// The artifacts of one node.
pub struct Store {
    directory: Option<Arc<Directory>>,
    key: [u8; 32],
    fingerprint: String,
    /// Says that our engine is in use.
    _in_use: Option<File>,
    bytes_max: u64,
    metrics: Arc<Metrics>,
    index: Mutex<Index>,
    saved: LastTime,
    warned: LastTime,
}

/// What is on the disk.
#[derive(Default)]
struct Index {
    /// Of our own engines.
    artifacts: HashMap<Digest, Artifact>,
    /// Of others: earlier versions or configurations, perhaps a daemon that still runs.
    foreign: Vec<Entry>,
    bytes: u64,
}

struct Artifact {
    name: String,
    kind: Kind,
    bytes: u64,
    used: Arc<Used>,
    /// The time of use that the disk knows.
    saved: SystemTime,
}

/// When a module was used last, in microseconds since 1970. Noting it is one atomic operation.
#[derive(Debug)]
pub struct Used(AtomicU64);

impl Used {
    fn at(time: SystemTime) -> Used {
        Used(AtomicU64::new(micros(time)))
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

fn micros(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

/// Something that may happen only so often.
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
pub struct Verified {
    /// The file whose bytes were checked; to be mapped as it is.
    pub file: File,
    /// What it was compiled from.
    pub kind: Kind,
    /// Where to note its use.
    pub used: Arc<Used>,
}

impl Verified {
    /// What the compile process has just written into a sealed memory file, for as long as it is needed.
    pub fn in_memory(artifact: File, kind: Kind) -> Verified {
        Verified { file: artifact, kind, used: Arc::new(Used::at(SystemTime::now())) }
    }
}

/// An artifact, for those who look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Of what it was compiled from.
    pub digest: Digest,
    /// What that was.
    pub kind: Kind,
    /// Its length.
    pub bytes: u64,
    /// When it was used last.
    pub used: SystemTime,
    /// Whether our own engine compiled it.
    pub current: bool,
}

/// An artifact's name, taken apart.
#[derive(Debug, PartialEq, Eq)]
struct Name<'a> {
    digest: Digest,
    fingerprint: &'a str,
    kind: Kind,
    code: &'a str,
}

impl Name<'_> {
    fn parse(name: &str) -> Option<Name<'_>> {
        let parts: Vec<_> = name.strip_suffix(SUFFIX)?.split('.').collect();
        let &[digest, fingerprint, kind, code] = parts.as_slice() else { return None };
        let is_hex = |text: &str| !text.is_empty() && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !is_hex(fingerprint) || !is_hex(code) || code.len() != 2 * blake3::OUT_LEN {
            return None;
        }
        let kind = match kind {
            "core" => Kind::Core,
            "component" => Kind::Component,
            _ => return None,
        };
        Some(Name { digest: Digest::parse(digest)?, fingerprint, kind, code })
    }
}

/// `core` or `component`.
pub(super) fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Core => "core",
        Kind::Component => "component",
    }
}

impl Store {
    /// Reads the index of `directory`. `fingerprint` is the engines' own, in hex.
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

    fn fill(&self, directory: &Directory, entries: Vec<Entry>) {
        let mut index = self.index.lock();
        for entry in entries {
            let Some(name) = Name::parse(&entry.name) else {
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
            let used = Arc::new(Used::at(entry.used));
            let artifact = Artifact { name: entry.name, kind, bytes: entry.bytes, used, saved: entry.used };
            // Two daemons may have compiled the same; the newer is as good as the other.
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

    /// Removes what engines have compiled that no daemon uses any more. Reads the directory: blocks.
    pub fn remove_unused(&self) {
        let Some(directory) = &self.directory else { return };
        // Others may have written since we looked.
        let Ok(entries) = directory.list() else { return };
        let mut by_engine: HashMap<String, Vec<String>> = HashMap::new();
        for entry in entries {
            if let Some(name) = Name::parse(&entry.name)
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
    pub fn get(&self, digest: Digest) -> Option<Verified> {
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
                Some(Verified { file, kind, used })
            }
            Ok(None) => {
                self.discard(digest, "its bytes do not match its code");
                None
            }
            // Another generation of the daemon removed it for room.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.forget(digest);
                None
            }
            // What the disk cannot give back, or should not have.
            Err(e) if e.kind() == io::ErrorKind::InvalidData || e.raw_os_error() == Some(libc::EIO) => {
                self.discard(digest, &e.to_string());
                None
            }
            // No descriptor or memory left: that says nothing about the artifact.
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
        let parsed = Name::parse(name).ok_or(io::ErrorKind::InvalidInput)?;
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
    pub fn put(&self, digest: Digest, kind: Kind, artifact: File) -> Verified {
        let used = Arc::new(Used::at(SystemTime::now()));
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
        Verified { file, kind, used }
    }

    fn write(&self, digest: Digest, kind: Kind, artifact: &File, used: &Arc<Used>) -> io::Result<Option<File>> {
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
        let mut hasher = self.hasher(digest, kind);
        each_chunk(
            artifact,
            |e| e,
            |chunk| {
                hasher.update(chunk);
                Ok(())
            },
        )?;
        let code = hasher.finalize().to_hex();
        let name = format!("{digest}.{}.{}.{code}{SUFFIX}", self.fingerprint, kind_name(kind));
        self.remove_for(bytes);
        let file = directory.write(&name, |file| each_chunk(artifact, |e| e, |chunk| file.write_all(chunk)))?;
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

    /// Removes an artifact that turned out to be no good.
    pub fn discard(&self, digest: Digest, why: &str) {
        if let (Some(directory), Some(artifact)) = (&self.directory, self.forget(digest)) {
            self.damaged(directory, &artifact.name, why);
        }
    }

    /// All artifacts on the disk, those of other engines too, in no order.
    pub fn list(&self) -> Vec<Listed> {
        let index = self.index.lock();
        let ours = index.artifacts.iter().map(|(&digest, artifact)| Listed {
            digest,
            kind: artifact.kind,
            bytes: artifact.bytes,
            used: artifact.used.time(),
            current: true,
        });
        let foreign = index.foreign.iter().filter_map(|entry| {
            let name = Name::parse(&entry.name)?;
            Some(Listed { digest: name.digest, kind: name.kind, bytes: entry.bytes, used: entry.used, current: false })
        });
        ours.chain(foreign).collect()
    }

    /// Whether an artifact of ours is whole; one that is not is removed. Reads all of it: blocks.
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

    /// Removes all artifacts of other engines, and those of ours that are `unwanted`. Gives how many, and
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

    /// What the artifacts may take, in bytes.
    pub fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Writes the times of use that the disk does not know yet. Blocks.
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

    fn hasher(&self, digest: Digest, kind: Kind) -> blake3::Hasher {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        // All of fixed length, but for the kind, which comes last and has its length in front.
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

    /// Makes room for `bytes` more.
    fn remove_for(&self, bytes: u64) {
        let Some(directory) = &self.directory else { return };
        let victims = self.index.lock().take_victims(bytes, self.bytes_max);
        for name in &victims {
            directory.remove(name);
        }
        self.metrics.store.evictions.inc_by(victims.len() as u64);
        self.count(&self.index.lock());
    }

    fn count(&self, index: &Index) {
        self.metrics.store.artifacts.set((index.artifacts.len() + index.foreign.len()) as i64);
        self.metrics.store.bytes.set(index.bytes as i64);
    }
}

impl Index {
    /// Takes out what has to go so that `more` bytes fit into `max`, and returns the names.
    fn take_victims(&mut self, more: u64, max: u64) -> Vec<String> {
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{FileExt, PermissionsExt};
    use std::path::{Path, PathBuf};

    use rustix::mount::{MountFlags, mount};

    use super::*;
    use crate::modules::directory::Opened;

    const ENGINE: &str = "0123456789abcdef0123456789abcdef";
    const OTHER_ENGINE: &str = "fedcba9876543210fedcba9876543210";

    /// A daemon's view of the store below `root`.
    struct Node {
        root: PathBuf,
        store: Store,
        metrics: Arc<Metrics>,
    }

    impl Node {
        fn start(root: &Path) -> Node {
            Node::start_with(root, ENGINE, 1 << 20)
        }

        fn start_with(root: &Path, engine: &str, bytes_max: u64) -> Node {
            let metrics = Arc::new(Metrics::new());
            let directory = match Directory::open(root).unwrap() {
                Opened::Disk(directory) => Some(Arc::new(directory)),
                Opened::Unusable(_) => None,
            };
            let store = Store::open(directory, engine, bytes_max, metrics.clone());
            Node { root: root.to_path_buf(), store, metrics }
        }

        fn put(&self, name: &str, bytes: &[u8]) -> String {
            let memory = memfd::create("test").unwrap();
            memory.write_all_at(bytes, 0).unwrap();
            memfd::seal(&memory).unwrap();
            text(self.store.put(Digest::of(name.as_bytes()), Kind::Core, memory))
        }

        fn get(&self, name: &str) -> Option<String> {
            self.store.get(Digest::of(name.as_bytes())).map(text)
        }

        /// Notes a use at `second`.
        fn use_at(&self, name: &str, second: u64) {
            let index = self.store.index.lock();
            index.artifacts[&Digest::of(name.as_bytes())].used.0.store(second * 1_000_000, Ordering::Relaxed);
        }

        fn files(&self) -> Vec<PathBuf> {
            let entries = fs::read_dir(self.root.join("modules")).unwrap().map(|entry| entry.unwrap().path());
            entries.filter(|path| path.to_str().unwrap().ends_with(SUFFIX)).collect()
        }

        fn file(&self, name: &str) -> PathBuf {
            let start = Digest::of(name.as_bytes()).to_string();
            self.files()
                .into_iter()
                .find(|path| path.file_name().unwrap().to_str().unwrap().starts_with(&start))
                .unwrap()
        }
    }

    fn text(verified: Verified) -> String {
        assert_eq!(verified.kind, Kind::Core);
        let mut bytes = vec![0; verified.file.metadata().unwrap().len() as usize];
        verified.file.read_exact_at(&mut bytes, 0).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn what_was_put_is_there_after_a_restart() {
        let root = tempfile::tempdir().unwrap();
        let first = Node::start(root.path());
        assert_eq!(first.get("a"), None);
        assert_eq!(first.put("a", b"code of a"), "code of a");
        assert_eq!(first.get("a").as_deref(), Some("code of a"));
        // Both generations of an upgrade use it at once.
        let second = Node::start(root.path());
        assert_eq!(second.get("a").as_deref(), Some("code of a"));
        assert_eq!(second.metrics.store.artifacts.get(), 1);
        assert_eq!(second.metrics.store.bytes.get(), 9);
        assert_eq!(fs::metadata(second.file("a")).unwrap().permissions().mode() & 0o7777, 0o600);
        // One removed it; the other notices, and that is no damage.
        fs::remove_file(first.file("a")).unwrap();
        assert_eq!(second.get("a"), None);
        assert_eq!(second.metrics.store.damaged.get(), 0);
        assert_eq!(second.metrics.store.bytes.get(), 0);
    }

    #[test]
    fn an_artifact_of_another_engine_is_not_ours() {
        let root = tempfile::tempdir().unwrap();
        Node::start_with(root.path(), OTHER_ENGINE, 100).put("a", b"other code");
        let node = Node::start(root.path());
        assert_eq!(node.get("a"), None);
        assert_eq!(node.metrics.store.artifacts.get(), 1);
        node.put("a", b"our code");
        assert_eq!(node.get("a").as_deref(), Some("our code"));
        assert_eq!(Node::start_with(root.path(), OTHER_ENGINE, 100).get("a").as_deref(), Some("other code"));
    }

    #[test]
    fn what_another_engine_compiled_goes_when_nobody_uses_that_any_more() {
        let root = tempfile::tempdir().unwrap();
        let old = Node::start_with(root.path(), OTHER_ENGINE, 100);
        old.put("a", b"other code");
        let node = Node::start(root.path());
        node.put("b", b"our code");
        node.store.remove_unused();
        assert_eq!(old.get("a").as_deref(), Some("other code"), "the old daemon still lives");
        drop(old);
        node.store.remove_unused();
        assert_eq!(node.files(), [node.file("b")]);
        assert_eq!((node.metrics.store.artifacts.get(), node.metrics.store.bytes.get()), (1, 8));
        assert_eq!(node.metrics.store.damaged.get(), 0);
        // And back again.
        let old = Node::start_with(root.path(), OTHER_ENGINE, 100);
        assert_eq!(old.get("a"), None);
        old.put("a", b"other code");
        assert_eq!(old.get("a").as_deref(), Some("other code"));
    }

    /// Does something to the file of `a`, and expects that the next daemon notices and recovers.
    fn expect_damage(spoil: impl Fn(&Node, &Path)) {
        let root = tempfile::tempdir().unwrap();
        let node = Node::start(root.path());
        node.put("a", b"code of a");
        node.put("b", b"code of b");
        spoil(&node, &node.file("a"));
        let node = Node::start(root.path());
        assert_eq!(node.get("a"), None);
        assert_eq!(node.metrics.store.damaged.get(), 1);
        assert_eq!(node.files(), [node.file("b")], "it is removed, and nothing else");
        assert_eq!(node.get("b").as_deref(), Some("code of b"));
        node.put("a", b"new code");
        assert_eq!(node.get("a").as_deref(), Some("new code"));
        assert_eq!(node.metrics.store.damaged.get(), 1);
    }

    fn flip_a_bit(path: &Path) {
        let mut bytes = fs::read(path).unwrap();
        bytes[4] ^= 1;
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn a_flipped_bit_is_noticed() {
        expect_damage(|_, path| flip_a_bit(path));
        // In the same daemon's life too.
        let root = tempfile::tempdir().unwrap();
        let node = Node::start(root.path());
        node.put("a", b"code of a");
        assert!(node.get("a").is_some());
        flip_a_bit(&node.file("a"));
        assert_eq!(node.get("a"), None);
        assert_eq!((node.metrics.store.damaged.get(), node.files().len()), (1, 0));
    }

    #[test]
    fn a_shortened_or_lengthened_file_is_noticed() {
        for length in [0, 8, 10] {
            expect_damage(|_, path| fs::OpenOptions::new().write(true).open(path).unwrap().set_len(length).unwrap());
        }
    }

    #[test]
    fn a_file_in_anothers_place_is_noticed() {
        // Whole, signed, and of another module: it would run the wrong program.
        expect_damage(|node, path| fs::write(path, fs::read(node.file("b")).unwrap()).unwrap());
        expect_damage(|node, path| {
            let code = node.file("b").to_str().unwrap().rsplit('.').nth(1).unwrap().to_string();
            let name = Name::parse(path.file_name().unwrap().to_str().unwrap()).unwrap();
            let swapped = format!("{}.{ENGINE}.core.{code}{SUFFIX}", name.digest);
            fs::copy(node.file("b"), path.with_file_name(&swapped)).unwrap();
            fs::remove_file(path).unwrap();
        });
    }

    #[test]
    fn a_file_of_another_node_or_user_is_noticed() {
        expect_damage(|_, path| {
            let elsewhere = tempfile::tempdir().unwrap();
            let node = Node::start(elsewhere.path());
            node.put("a", b"code of a");
            let foreign = node.file("a");
            fs::remove_file(path).unwrap();
            fs::copy(&foreign, path.with_file_name(foreign.file_name().unwrap())).unwrap();
        });
        expect_damage(|_, path| std::os::unix::fs::chown(path, Some(12_345), None).unwrap());
        expect_damage(|_, path| fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap());
    }

    #[test]
    fn names_that_only_look_like_ours_go_and_others_stay() {
        let root = tempfile::tempdir().unwrap();
        let node = Node::start(root.path());
        let directory = root.path().join("modules");
        for name in ["x.artifact", "notes.txt", "places"] {
            fs::write(directory.join(name), "x").unwrap();
        }
        fs::create_dir(directory.join("6.1.0-amd64")).unwrap();
        drop(node);
        let node = Node::start(root.path());
        assert_eq!(node.metrics.store.damaged.get(), 1);
        let mut left: Vec<_> = fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [&format!("{ENGINE}.in-use"), "6.1.0-amd64", "key", "notes.txt", "places"]);
    }

    #[test]
    fn an_artifact_that_the_engine_refused_goes() {
        let root = tempfile::tempdir().unwrap();
        let node = Node::start(root.path());
        node.put("a", b"code");
        node.store.discard(Digest::of(b"a"), "deserialize failed");
        assert_eq!(node.get("a"), None);
        assert_eq!(node.metrics.store.damaged.get(), 1);
        assert_eq!(node.files().len(), 0);
        node.store.discard(Digest::of(b"a"), "again");
        assert_eq!(node.metrics.store.damaged.get(), 1);
    }

    #[test]
    fn the_longest_unused_goes_first_also_after_a_restart() {
        let root = tempfile::tempdir().unwrap();
        let tenth = [b'x'; 10];
        Node::start_with(root.path(), OTHER_ENGINE, 100).put("other", &tenth);
        let node = Node::start_with(root.path(), ENGINE, 50);
        for name in ["a", "b", "c", "d"] {
            node.put(name, &tenth);
        }
        for (name, second) in [("a", 4), ("b", 1), ("c", 3), ("d", 2)] {
            node.use_at(name, second);
        }
        // They are in the past: the disk has to learn that too.
        for artifact in node.store.index.lock().artifacts.values_mut() {
            artifact.saved = UNIX_EPOCH;
        }
        node.store.save_times();
        let node = Node::start_with(root.path(), ENGINE, 50);
        assert_eq!(node.metrics.store.bytes.get(), 50);
        node.put("e", &tenth);
        assert_eq!((node.metrics.store.evictions.get(), node.files().len()), (1, 5), "the other engine's went first");
        node.put("f", &tenth);
        assert_eq!(node.get("b"), None);
        node.put("g", &[b'x'; 20]);
        assert_eq!((node.get("d"), node.get("c")), (None, None));
        assert!(node.get("a").is_some() && node.get("e").is_some() && node.get("f").is_some());
        assert_eq!(node.metrics.store.evictions.get(), 4);
        assert_eq!(node.metrics.store.bytes.get(), 50);
        let smaller = Node::start_with(root.path(), ENGINE, 25);
        assert!(smaller.metrics.store.bytes.get() <= 25 && !smaller.files().is_empty());
        assert_eq!(smaller.metrics.store.damaged.get(), 0);
    }

    #[test]
    fn what_is_larger_than_the_store_runs_from_memory() {
        let root = tempfile::tempdir().unwrap();
        let node = Node::start_with(root.path(), ENGINE, 10);
        node.put("a", b"code of a");
        assert_eq!(node.put("large", b"eleven byte"), "eleven byte");
        assert_eq!(node.get("large"), None);
        assert!(node.get("a").is_some(), "nothing had to go for it");
        assert_eq!(node.metrics.store.write_failures.get(), 1);
    }

    /// Runs `test` on a small tmpfs that only this thread sees.
    fn on_tmpfs(options: &std::ffi::CStr, flags: MountFlags, test: impl FnOnce(&Path) + Send + 'static) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_path_buf();
        let options = options.to_owned();
        std::thread::spawn(move || {
            hearth_os::mount::unshare_mounts().unwrap();
            mount("tmpfs", &path, "tmpfs", flags, Some(options.as_c_str())).unwrap();
            test(&path);
        })
        .join()
        .unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "the mount was seen outside");
    }

    #[test]
    fn on_a_full_disk_it_runs_from_memory_and_leaves_nothing_behind() {
        on_tmpfs(c"mode=0700,size=64k", MountFlags::empty(), |root| {
            let node = Node::start(root);
            node.put("small", b"fits");
            let large = "x".repeat(100 << 10);
            assert_eq!(node.put("large", large.as_bytes()), large);
            assert_eq!(node.metrics.store.write_failures.get(), 1);
            assert_eq!(node.get("large"), None);
            assert_eq!(node.get("small").as_deref(), Some("fits"));
            assert_eq!(
                fs::read_dir(root.join("modules")).unwrap().count(),
                3,
                "the small one, the key, and who uses them"
            );
        });
    }

    #[test]
    fn on_a_read_only_disk_what_is_there_is_used() {
        on_tmpfs(c"mode=0700", MountFlags::empty(), |root| {
            Node::start(root).put("a", b"code of a");
            rustix::mount::mount_remount(root, MountFlags::RDONLY, "").unwrap();
            let node = Node::start(root);
            assert_eq!(node.get("a").as_deref(), Some("code of a"));
            assert_eq!(node.put("b", b"code of b"), "code of b");
            assert_eq!(node.metrics.store.write_failures.get(), 1);
            assert_eq!(node.get("b"), None);
        });
        on_tmpfs(c"mode=0700", MountFlags::RDONLY, |root| {
            let node = Node::start(root);
            assert_eq!(node.put("b", b"code of b"), "code of b");
            assert_eq!(node.metrics.store.write_failures.get(), 1);
        });
    }

    #[test]
    fn from_a_disk_without_execution_code_is_copied_into_memory() {
        on_tmpfs(c"mode=0700", MountFlags::NOEXEC, |root| {
            let node = Node::start(root);
            node.put("a", b"code of a");
            let verified = node.store.get(Digest::of(b"a")).unwrap();
            assert!(verified.file.set_len(0).is_err(), "the copy can still be changed");
            assert_eq!(text(verified), "code of a");
            assert_eq!(node.metrics.store.write_failures.get(), 0);
        });
    }
}
