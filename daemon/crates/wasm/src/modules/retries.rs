//! Pauses after a compile that ran into a limit.
//!
//! Such a compile can succeed the next time, with less load or a changed configuration, so the module is not rejected. But each
//! attempt costs a whole limit's worth of time. So the second failure is followed by a pause of [`PAUSE_MIN`], which doubles
//! with each further one up to [`PAUSE_MAX`]; a start in a pause is refused at once. The pauses are kept over a restart of the
//! daemon, in a file beside the artifacts. Other limits in the configuration end them.

use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lru::LruCache;
use parking_lot::Mutex;

use super::directory::Directory;
use hearth_base::config::Config;
use hearth_base::digest::Digest;
use hearth_base::error::Error;

/// The first pause.
const PAUSE_MIN: Duration = Duration::from_secs(60);

/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(3_600);

/// How many modules are remembered.
const MODULES_MAX: NonZeroUsize = NonZeroUsize::new(1_024).unwrap();

/// The name of the file in the store's directory.
const FILE: &str = "retries";

/// The purpose for which the key of the file's codes is derived from the directory's key.
const PURPOSE: &str = "hearth 2026 module store: retries";

/// The first field of a line: the form of the rest.
const VERSION: &str = "1";

/// Hex digits of a line's code. The directory is root's own: the code is there to find damage.
const CODE_DIGITS: usize = 32;

/// The largest file that is read, in bytes: more than [`MODULES_MAX`] of the longest lines.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Modules whose compiles ran into a limit.
pub(super) struct Retries {
    failed: Mutex<LruCache<Digest, Failures>>,
    /// Held while the file is written, so that it gets the last state.
    writing: Mutex<()>,
    /// The file's directory and key.
    file: Option<(Arc<Directory>, [u8; 32])>,
    /// Identifies the limits of the configuration.
    limits: String,
}

/// The failures of one module.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Failures {
    count: u32,
    /// The end of the pause.
    until: SystemTime,
    /// The last error.
    text: String,
}

/// The pause after so many failures.
fn pause(failures: u32) -> Duration {
    match failures.checked_sub(2) {
        None => Duration::ZERO,
        Some(doublings) => PAUSE_MIN.saturating_mul(1u32.checked_shl(doublings).unwrap_or(u32::MAX)).min(PAUSE_MAX),
    }
}

impl Retries {
    /// Reads what `directory` has.
    pub(super) fn open(config: &Config, directory: Option<Arc<Directory>>) -> Retries {
        let settings = serde_json::to_vec(&(&config.modules, &config.engine)).unwrap_or_default();
        let limits = blake3::hash(&settings).to_hex()[..16].to_string();
        let file = directory.map(|directory| {
            let key = directory.key_for(PURPOSE);
            (directory, key)
        });
        let retries =
            Retries { failed: Mutex::new(LruCache::sparse(MODULES_MAX)), writing: Mutex::default(), file, limits };
        retries.read();
        retries
    }

    /// The error of a start in a pause.
    pub(super) fn refusal(&self, digest: Digest, now: SystemTime) -> Option<Error> {
        let failures = self.failed.lock().get(&digest).cloned()?;
        // A clock that was set back ends a pause of more than the longest one.
        let left = failures.until.duration_since(now).ok().filter(|left| !left.is_zero() && *left <= PAUSE_MAX)?;
        Some(Error::ResourceExhausted(format!(
            "{}; this was tried {} times, and is tried again in {} s",
            failures.text,
            failures.count,
            left.as_secs() + 1
        )))
    }

    /// A compile has run into a limit. Writes to the disk: blocks.
    pub(super) fn failed(&self, digest: Digest, error: &Error, now: SystemTime) {
        {
            let mut failed = self.failed.lock();
            let count = failed.get(&digest).map_or(0, |before| before.count).saturating_add(1);
            failed.put(digest, Failures { count, until: now + pause(count), text: error.to_string() });
        }
        self.write();
    }

    /// A compile has succeeded. Writes to the disk if it had failed before: blocks.
    pub(super) fn succeeded(&self, digest: Digest) {
        let was_there = self.failed.lock().pop(&digest).is_some();
        if was_there {
            self.write();
        }
    }

    fn read(&self) {
        let Some((directory, key)) = &self.file else { return };
        let mut bytes = Vec::new();
        if directory.read(FILE).and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)).is_err() {
            // There is none, or it is written anew with the next failure.
            return;
        }
        let mut failed = self.failed.lock();
        for line in bytes.split(|byte| *byte == b'\n') {
            if let Some((digest, failures)) = self.parse(key, line) {
                failed.put(digest, failures);
            }
        }
    }

    fn write(&self) {
        let Some((directory, key)) = &self.file else { return };
        let _writing = self.writing.lock();
        let lines: Vec<_> =
            self.failed.lock().iter().rev().map(|(digest, failures)| self.line(key, *digest, failures)).collect();
        let written = directory.write(FILE, |file| {
            let mut file = io::BufWriter::new(file);
            lines.iter().try_for_each(|line| file.write_all(line.as_bytes()))?;
            file.flush()
        });
        if let Err(error) = written {
            tracing::debug!(%error, "the pauses of modules whose compile ran into a limit are not kept over a restart");
        }
    }

    fn line(&self, key: &[u8; 32], digest: Digest, failures: &Failures) -> String {
        let Failures { count, until, text } = failures;
        let until = until.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let line = format!("{VERSION} {digest} {count} {until} {} {}", self.limits, hex::encode(text));
        format!("{line} {}\n", code(key, &line))
    }

    /// A line's content; `None` if it is damaged, or of other limits.
    fn parse(&self, key: &[u8; 32], line: &[u8]) -> Option<(Digest, Failures)> {
        let (line, its_code) = str::from_utf8(line).ok()?.rsplit_once(' ')?;
        let parts: Vec<_> = line.split(' ').collect();
        let &[VERSION, digest, count, until, limits, text] = parts.as_slice() else { return None };
        if code(key, line) != its_code || limits != self.limits {
            return None;
        }
        let until = UNIX_EPOCH.checked_add(Duration::from_secs(until.parse().ok()?))?;
        let text = String::from_utf8(hex::decode(text).ok()?).ok()?;
        Some((Digest::parse(digest)?, Failures { count: count.parse().ok()?, until, text }))
    }
}

fn code(key: &[u8; 32], line: &str) -> String {
    blake3::keyed_hash(key, line.as_bytes()).to_hex()[..CODE_DIGITS].to_string()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::modules::directory::OpenedDirectory;

    const DIGEST: Digest = Digest([7; 32]);

    fn open(root: &Path, config: &Config) -> Retries {
        let OpenedDirectory::Disk(directory) = Directory::open(root).unwrap() else { panic!() };
        Retries::open(config, Some(Arc::new(directory)))
    }

    fn limit() -> Error {
        Error::ResourceExhausted("compiling it takes longer than 300 seconds".into())
    }

    #[test]
    fn pauses_double_up_to_an_hour() {
        let minutes: Vec<_> = (1..=10).map(|failures| pause(failures).as_secs() / 60).collect();
        assert_eq!(minutes, [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(pause(u32::MAX), PAUSE_MAX);
    }

    #[test]
    fn a_module_is_refused_in_its_pause_also_after_a_restart() {
        let (root, config, now) = (tempfile::tempdir().unwrap(), Config::default(), SystemTime::now());
        let retries = open(root.path(), &config);
        retries.failed(DIGEST, &limit(), now);
        assert!(retries.refusal(DIGEST, now).is_none(), "it is tried once more at once");
        retries.failed(DIGEST, &limit(), now);
        for retries in [&retries, &open(root.path(), &config)] {
            let Some(Error::ResourceExhausted(text)) = retries.refusal(DIGEST, now) else { panic!() };
            assert!(
                text.starts_with("compiling it takes longer than 300 seconds; ") && text.contains("again in"),
                "{text}"
            );
            assert!(retries.refusal(DIGEST, now + PAUSE_MIN).is_none());
            assert!(retries.refusal(Digest([8; 32]), now).is_none());
        }
        // The third failure doubles the pause, also after the restart.
        let retries = open(root.path(), &config);
        retries.failed(DIGEST, &limit(), now);
        assert!(retries.refusal(DIGEST, now + PAUSE_MIN).is_some());
        retries.succeeded(DIGEST);
        assert!(retries.refusal(DIGEST, now).is_none());
        assert!(open(root.path(), &config).refusal(DIGEST, now).is_none());
    }

    #[test]
    fn other_limits_and_damage_end_a_pause() {
        let (root, config, now) = (tempfile::tempdir().unwrap(), Config::default(), SystemTime::now());
        let retries = open(root.path(), &config);
        for digest in [DIGEST, Digest([8; 32])] {
            retries.failed(digest, &limit(), now);
            retries.failed(digest, &limit(), now);
        }
        let mut other = config.clone();
        other.modules.compile_seconds_max += 1;
        assert!(open(root.path(), &other).refusal(DIGEST, now).is_none());
        let file = root.path().join("modules").join(FILE);
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replacen(" 2 ", " 9 ", 1)).unwrap();
        let retries = open(root.path(), &config);
        let refused = [DIGEST, Digest([8; 32])].map(|digest| retries.refusal(digest, now).is_some());
        assert_eq!(refused.iter().filter(|refused| **refused).count(), 1, "the damaged line costs that module only");
    }
}
