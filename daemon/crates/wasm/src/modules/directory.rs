//! The store's directory: root's alone, every file in it replaced as a whole or not at all.
//!
//! What lies here runs inside the daemon, so the directory is opened once, checked, and used by
//! descriptor; names are single components and links are never followed. Two generations of the
//! daemon may use it at once during an upgrade: files appear by rename, disappear by unlink, and are
//! never written to in place (truncating a mapped file kills whoever maps it).
//!
//! A directory that others could have written to stops the daemon with a message. One that cannot be
//! made or written (a full or read-only disk) does not: then modules live in memory only.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{
    AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, Stat, StatVfsMountFlags, Timespec, Timestamps, UTIME_OMIT,
    flock, fstat, fstatvfs, linkat, mkdirat, openat, renameat, statat, unlinkat, utimensat,
};
use rustix::io::Errno;

use hearth_base::error::{Error, Result};

/// The secret that makes and checks the store's codes.
const KEY_FILE: &str = "key";

/// How files that are being written are called.
const TEMPORARY: &str = "tmp-";

/// How files are called that say who uses what.
const IN_USE: &str = ".in-use";

/// A checked directory and its secret.
pub struct Directory {
    descriptor: OwnedFd,
    path: PathBuf,
    key: [u8; 32],
    /// Whether files here may be mapped to run; not so on a `noexec` mount.
    pub can_map_code: bool,
}

/// A file in the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// When it was used last, as far as the disk knows (its modification time).
    pub used: SystemTime,
}

/// What became of opening the directory.
pub enum Opened {
    /// It is there and ours.
    Disk(Directory),
    /// It cannot be used, for this reason.
    Unusable(String),
}

impl Directory {
    /// Opens `<root_dir>/modules`, making both if need be.
    ///
    /// # Errors
    /// `FailedPrecondition` if somebody else could have put files there.
    pub fn open(root_dir: &Path) -> Result<Opened> {
        let path = root_dir.join("modules");
        let unusable =
            |what: &str, e: io::Error| Ok(Opened::Unusable(format!("cannot {what} {}: {e}", path.display())));
        if let Err(e) = std::fs::create_dir_all(root_dir) {
            return unusable("make the directory above", e);
        }
        match mkdirat(CWD, &path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return unusable("make", e.into()),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for directory in [root_dir, &path] {
            match openat(CWD, directory, flags, Mode::empty()).and_then(fstat) {
                Ok(stat) => check_owner(&stat, directory)?,
                // Links above are the administrator's business, the directory itself must be real.
                Err(Errno::LOOP | Errno::NOTDIR) if directory == path => {
                    return Err(Error::FailedPrecondition(format!(
                        "{} is not a directory: remove it, or set root_dir to another place",
                        path.display()
                    )));
                }
                Err(Errno::LOOP | Errno::NOTDIR) => {
                    let stat = statat(CWD, directory, AtFlags::empty()).map_err(|e| {
                        Error::FailedPrecondition(format!("cannot look at {}: {e}", directory.display()))
                    })?;
                    check_owner(&stat, directory)?;
                }
                Err(e) => return unusable("open", e.into()),
            }
        }
        let opened = openat(CWD, &path, flags, Mode::empty()).and_then(|fd| {
            let noexec = fstatvfs(&fd)?.f_flag.contains(StatVfsMountFlags::NOEXEC);
            Ok((fd, noexec))
        });
        let (descriptor, noexec) = match opened {
            Ok(opened) => opened,
            Err(e) => return unusable("open", e.into()),
        };
        let mut directory = Directory { descriptor, path: path.clone(), key: [0; 32], can_map_code: !noexec };
        match directory.read_or_make_key() {
            Ok(key) => directory.key = key,
            Err(e) => return unusable("read or make the key in", e),
        }
        Ok(Opened::Disk(directory))
    }

    /// Where it is, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A secret for one purpose, made from the directory's own.
    pub fn key_for(&self, purpose: &str) -> [u8; 32] {
        blake3::derive_key(purpose, &self.key)
    }

    /// The regular files here, without those being written; what a crashed daemon left of such is
    /// removed.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn list(&self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.descriptor)? {
            let Ok(name) = entry?.file_name().to_str().map(str::to_string) else { continue };
            let Ok(stat) = statat(&self.descriptor, &name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || name == KEY_FILE {
                continue;
            }
            if name.starts_with(TEMPORARY) {
                self.remove_abandoned(&name);
                continue;
            }
            let used = UNIX_EPOCH + Duration::new(stat.st_mtime.try_into().unwrap_or(0), stat.st_mtime_nsec as u32);
            entries.push(Entry { name, bytes: stat.st_size as u64, used });
        }
        Ok(entries)
    }

    /// Opens a file to read it.
    ///
    /// # Errors
    /// `NotFound`, or `InvalidData` if it is not a regular file of our own that only we can write.
    pub fn read(&self, name: &str) -> io::Result<File> {
        // NONBLOCK: should it be a FIFO, opening must not wait.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match openat(&self.descriptor, name, flags, Mode::empty()) {
            Err(Errno::LOOP) => return Err(io::Error::new(io::ErrorKind::InvalidData, "is a symbolic link")),
            result => File::from(result?),
        };
        let stat = fstat(&file)?;
        let fault = if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            "is no regular file"
        } else if stat.st_uid != rustix::process::geteuid().as_raw() {
            "belongs to somebody else"
        } else if stat.st_mode & 0o022 != 0 {
            "can be written by others"
        } else {
            return Ok(file);
        };
        Err(io::Error::new(io::ErrorKind::InvalidData, fault))
    }

    /// Writes a file as a whole: it appears under `name`, complete and on the disk, or not at all.
    /// Returns it open for reading.
    ///
    /// # Errors
    /// Those of writing; nothing is left behind.
    pub fn write(&self, name: &str, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<File> {
        let mut temporary = self.temporary(fill)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.descriptor, &temporary.name, flags, Mode::empty())?;
        renameat(&self.descriptor, &temporary.name, &self.descriptor, name)?;
        temporary.renamed = true;
        Ok(file.into())
    }

    /// Says, for as long as the file is kept, that somebody uses what lies here under `name`.
    ///
    /// # Errors
    /// Those of opening and locking.
    pub fn hold(&self, name: &str) -> io::Result<File> {
        let name = format!("{name}{IN_USE}");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        loop {
            let file = File::from(openat(&self.descriptor, &name, flags, Mode::RUSR | Mode::WUSR)?);
            flock(&file, FlockOperation::LockShared)?;
            // Whoever found it unused has removed it, perhaps just now.
            if fstat(&file)?.st_nlink > 0 {
                return Ok(file);
            }
        }
    }

    /// Does `remove` if nobody uses what lies here under `name`, and nobody begins to meanwhile. Whether it did.
    pub fn if_unused(&self, name: &str, remove: impl FnOnce()) -> bool {
        let name = format!("{name}{IN_USE}");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let Ok(file) = openat(&self.descriptor, &name, flags, Mode::RUSR | Mode::WUSR) else { return false };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return false;
        }
        remove();
        self.remove(&name);
        true
    }

    /// Adds to a file's end in one piece, making it if it is not there.
    ///
    /// # Errors
    /// Those of opening and writing.
    pub fn append(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let flags =
            OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut file = File::from(openat(&self.descriptor, name, flags, Mode::RUSR | Mode::WUSR)?);
        file.write_all(bytes)
    }

    /// Removes a file; that it is gone already is fine.
    pub fn remove(&self, name: &str) {
        if let Err(e) = unlinkat(&self.descriptor, name, AtFlags::empty())
            && e != Errno::NOENT
        {
            tracing::warn!(file = %self.path.join(name).display(), error = %e, "cannot remove a file of the module store");
        }
    }

    /// Notes on the disk when a file was used.
    pub fn set_used(&self, name: &str, used: SystemTime) {
        let since = used.duration_since(UNIX_EPOCH).unwrap_or_default();
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec {
                tv_sec: since.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: since.subsec_nanos().into(),
            },
        };
        // Only the order of removal depends on it.
        let _ = utimensat(&self.descriptor, name, &times, AtFlags::SYMLINK_NOFOLLOW);
    }

    fn temporary(&self, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<Temporary<'_>> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!(
            "{TEMPORARY}{}-{}",
            rustix::process::getpid().as_raw_nonzero(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = match openat(&self.descriptor, &name, flags, Mode::RUSR | Mode::WUSR) {
            // Left by a process that had our id before us.
            Err(Errno::EXIST) => {
                self.remove(&name);
                openat(&self.descriptor, &name, flags, Mode::RUSR | Mode::WUSR)?
            }
            result => result?,
        }
        .into();
        let temporary = Temporary { directory: self, name, renamed: false };
        // Held while we write: who can take it knows that the file was abandoned.
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        fill(&mut file)?;
        file.sync_all()?;
        Ok(temporary)
    }

    fn remove_abandoned(&self, name: &str) {
        let Ok(file) = self.read(name) else { return };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            self.remove(name);
        }
    }

    fn read_or_make_key(&self) -> io::Result<[u8; 32]> {
        match self.read_key() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                tracing::warn!(directory = %self.path.display(), error = %e, "the module store's key is replaced: what it signed is compiled again");
                self.remove(KEY_FILE);
            }
            result => return result,
        }
        let mut key = [0; 32];
        File::open("/dev/urandom")?.read_exact(&mut key)?;
        let temporary = self.temporary(|file| file.write_all(&key))?;
        // link, not rename: of two daemons that start at once, the second takes the first's key.
        match linkat(&self.descriptor, &temporary.name, &self.descriptor, KEY_FILE, AtFlags::empty()) {
            Ok(()) => Ok(key),
            Err(Errno::EXIST) => self.read_key(),
            Err(e) => Err(e.into()),
        }
    }

    fn read_key(&self) -> io::Result<[u8; 32]> {
        let invalid = |what| io::Error::new(io::ErrorKind::InvalidData, what);
        let mut file = self.read(KEY_FILE)?;
        if fstat(&file)?.st_mode & 0o077 != 0 {
            return Err(invalid("can be read by others"));
        }
        let mut key = Vec::new();
        Read::by_ref(&mut file).take(33).read_to_end(&mut key)?;
        key.try_into().map_err(|_| invalid("is not 32 bytes long"))
    }
}

/// A file that is being written; removed on drop unless renamed.
struct Temporary<'a> {
    directory: &'a Directory,
    name: String,
    renamed: bool,
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if !self.renamed {
            self.directory.remove(&self.name);
        }
    }
}

/// Refuses a directory in which somebody else can make or replace files.
fn check_owner(stat: &Stat, path: &Path) -> Result<()> {
    let path = path.display();
    let ours = rustix::process::geteuid().as_raw();
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Err(Error::FailedPrecondition(format!("{path} is not a directory: set root_dir to another place")));
    }
    if stat.st_uid != ours {
        return Err(Error::FailedPrecondition(format!(
            "{path} belongs to user {}, and hearthd, which runs what lies there, is user {ours}: remove it, or set root_dir to another place",
            stat.st_uid
        )));
    }
    if stat.st_mode & 0o022 != 0 {
        return Err(Error::FailedPrecondition(format!(
            "{path} can be written by others (mode {:o}), and hearthd runs what lies there: empty it and `chmod 700` it, or set root_dir to another place",
            stat.st_mode & 0o7777
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    fn open(root: &Path) -> Directory {
        match Directory::open(root).unwrap() {
            Opened::Disk(directory) => directory,
            Opened::Unusable(why) => panic!("{why}"),
        }
    }

    fn refusal(root: &Path) -> String {
        match Directory::open(root) {
            Err(Error::FailedPrecondition(text)) => text,
            Err(other) => panic!("{other:?}"),
            Ok(_) => panic!("{} was taken", root.display()),
        }
    }

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn it_is_made_for_its_owner_alone_and_keeps_its_key() {
        let root = tempfile::tempdir().unwrap();
        let first = open(&root.path().join("a/b"));
        let path = first.path().to_path_buf();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o700);
        assert_eq!(fs::metadata(path.join("key")).unwrap().mode() & 0o7777, 0o600);
        let second = open(&root.path().join("a/b"));
        assert_eq!(first.key_for("x"), second.key_for("x"));
        assert_ne!(first.key_for("x"), first.key_for("y"));
        let other = open(&root.path().join("c"));
        assert_ne!(first.key_for("x"), other.key_for("x"));
        assert_eq!(first.list().unwrap(), []);
    }

    #[test]
    fn directories_others_can_write_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let modules = root.path().join("modules");
        drop(open(root.path()));
        for bad in [0o720, 0o702, 0o1777] {
            mode(&modules, bad);
            assert!(refusal(root.path()).contains("can be written by others"), "{bad:o}");
        }
        mode(&modules, 0o700);
        mode(root.path(), 0o777);
        assert!(refusal(root.path()).contains("can be written by others"));
        mode(root.path(), 0o755);
        std::os::unix::fs::chown(&modules, Some(12_345), None).unwrap();
        assert!(refusal(root.path()).contains("belongs to user 12345"));
        fs::remove_dir_all(&modules).unwrap();
        symlink("/tmp", &modules).unwrap();
        assert!(refusal(root.path()).contains("is not a directory"));
    }

    #[test]
    fn a_place_where_nothing_can_be_made_is_unusable_not_an_error() {
        let Opened::Unusable(why) = Directory::open(Path::new("/proc/hearth")).unwrap() else { panic!() };
        assert!(why.contains("/proc/hearth/modules"), "{why}");
    }

    #[test]
    fn a_bad_key_is_replaced() {
        let root = tempfile::tempdir().unwrap();
        let key = root.path().join("modules/key");
        let before = open(root.path()).key_for("x");
        let mut seen = vec![before];
        let spoil: [&dyn Fn(); 4] = [
            &|| mode(&key, 0o644),
            &|| fs::write(&key, "short").unwrap(),
            &|| {
                fs::remove_file(&key).unwrap();
                symlink("/etc/hostname", &key).unwrap();
            },
            &|| std::os::unix::fs::chown(&key, Some(12_345), None).unwrap(),
        ];
        for spoil in spoil {
            spoil();
            let now = open(root.path()).key_for("x");
            assert!(!seen.contains(&now));
            seen.push(now);
        }
    }

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let root = tempfile::tempdir().unwrap();
        let directory = open(root.path());
        let mut text = String::new();
        directory.write("a", |f| f.write_all(b"one")).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "one");
        let failed = directory.write("a", |f| {
            f.write_all(b"half")?;
            Err(io::Error::other("stop"))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read_to_string(directory.path().join("a")).unwrap(), "one");
        let names: Vec<_> = directory.list().unwrap().into_iter().map(|e| e.name).collect();
        assert_eq!(names, ["a"]);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2, "only the file and the key");
    }

    #[test]
    fn what_a_crash_left_is_removed_and_what_is_being_written_is_not() {
        let root = tempfile::tempdir().unwrap();
        let directory = open(root.path());
        let abandoned = directory.path().join("tmp-1-1");
        fs::write(&abandoned, "half").unwrap();
        directory
            .write("a", |_| {
                assert_eq!(open(root.path()).list().unwrap(), []);
                Ok(())
            })
            .unwrap();
        assert!(!abandoned.exists());
        assert_eq!(directory.list().unwrap().len(), 1, "the file that was being written is there");
    }

    #[test]
    fn only_our_own_files_are_read() {
        let root = tempfile::tempdir().unwrap();
        let directory = open(root.path());
        let path = directory.path().join("a");
        assert_eq!(directory.read("a").unwrap_err().kind(), io::ErrorKind::NotFound);
        symlink("/etc/hostname", &path).unwrap();
        assert_eq!(directory.read("a").unwrap_err().kind(), io::ErrorKind::InvalidData);
        fs::remove_file(&path).unwrap();
        directory.write("a", |_| Ok(())).unwrap();
        mode(&path, 0o602);
        assert_eq!(directory.read("a").unwrap_err().kind(), io::ErrorKind::InvalidData);
        mode(&path, 0o600);
        directory.read("a").unwrap();
        std::os::unix::fs::chown(&path, Some(12_345), None).unwrap();
        assert_eq!(directory.read("a").unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
