//! The state of a file in a container, to tell whether the file has changed since it was read.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hearth_os::in_root::RootDir;

/// Device, inode, size and change time of a file: a file that is written, or replaced by another one, has another stamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStamp {
    file: [i64; 3],
    changed: [i64; 2],
}

impl FileStamp {
    /// The stamp of the file at `path` in a container; none if there is no file. Blocks.
    ///
    /// # Errors
    /// As openat2(2) and fstat(2).
    pub fn of(root: &RootDir, path: &str) -> io::Result<Option<FileStamp>> {
        let found = match root.resolve(Path::new(path)) {
            Ok(found) => found,
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let found = std::fs::File::from(found).metadata()?;
        Ok(Some(FileStamp {
            file: [found.dev() as i64, found.ino() as i64, found.size() as i64],
            changed: [found.ctime(), found.ctime_nsec()],
        }))
    }

    /// How long ago the file was written or replaced; none if that is in the future.
    pub fn age(&self, now: SystemTime) -> Option<Duration> {
        let [seconds, nanoseconds] = self.changed.map(|part| u64::try_from(part).unwrap_or(0));
        let changed = UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_nanos(nanoseconds);
        now.duration_since(changed).ok()
    }
}
