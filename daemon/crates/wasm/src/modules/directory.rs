//! The store's directory: only root can enter it, and every file in it is replaced as a whole or not at all.
//!
//! The daemon runs code from this directory, so the directory is opened once, checked, and used as a capability
//! ([`Dir`]): no name leads out of it, and links are never followed. Two generations of the
//! daemon may use it at once during an upgrade: files appear by rename, disappear by unlink, and are
//! never written to in place (truncating a mapped file ends every process that maps it).
//!
//! The daemon does not start with a directory that other users could have written to. It does start with one that cannot
//! be made or written (a full or read-only disk): then modules live in memory only.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use cap_fs_ext::{DirExt, FollowSymlinks, OpenOptionsFollowExt, SystemTimeSpec};
use cap_std::fs::{Dir, OpenOptions, OpenOptionsExt};
use rustix::fs::{
    AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, Stat, StatVfsMountFlags, flock, fstat, fstatvfs, mkdirat,
    openat, statat,
};
use rustix::io::Errno;

use hearth_base::error::{Error, Result};

/// The secret that makes and checks the store's codes.
const KEY_FILE: &str = "key";

/// How the names of files that are being written begin.
const TEMPORARY: &str = "tmp-";

/// How the names of files end whose locks tell which engines are in use.
const IN_USE: &str = ".in-use";

/// A checked directory and its secret.
pub struct Directory {
    handle: Dir,
    path: PathBuf,
    key: [u8; 32],
    /// Whether files here may be mapped to run; not so on a `noexec` mount.
    pub can_map_code: bool,
}

/// A file in the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// Its name.
    pub name: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// When it was used last, as far as the disk knows (its modification time).
    pub used: SystemTime,
}

/// The result of opening the directory.
pub enum OpenedDirectory {
    /// It exists and only this user can write to it.
    Disk(Directory),
    /// It cannot be used, for this reason.
    Unusable(String),
}

impl Directory {
    /// Opens `<root_dir>/modules`, making both if need be.
    ///
    /// # Errors
    /// `FailedPrecondition` if another user could have put files there.
    pub fn open(root_dir: &Path) -> Result<OpenedDirectory> {
        let path = root_dir.join("modules");
        let unusable =
            |what: &str, e: io::Error| Ok(OpenedDirectory::Unusable(format!("cannot {what} {}: {e}", path.display())));
        if let Err(e) = std::fs::create_dir_all(root_dir) {
            return unusable("make the directory above", e);
        }
        match mkdirat(CWD, &path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return unusable("make", e.into()),
        }
        check_above(root_dir)?;
        let descriptor = match open_real(&path) {
            Ok(descriptor) => descriptor,
            Err(Errno::LOOP | Errno::NOTDIR) => {
                return Err(Error::FailedPrecondition(format!(
                    "{} is not a directory: remove it, or set root_dir to another place",
                    path.display()
                )));
            }
            Err(e) => return unusable("open", e.into()),
        };
        let checked = fstat(&descriptor).and_then(|stat| Ok((stat, fstatvfs(&descriptor)?)));
        let (stat, file_system) = match checked {
            Ok(checked) => checked,
            Err(e) => return unusable("open", e.into()),
        };
        check_owner(&stat, &path)?;
        let can_map_code = !file_system.f_flag.contains(StatVfsMountFlags::NOEXEC);
        let handle = Dir::from_std_file(descriptor.into());
        let mut directory = Directory { handle, path: path.clone(), key: [0; 32], can_map_code };
        match directory.read_or_make_key() {
            Ok(key) => directory.key = key,
            Err(e) => return unusable("read or make the key in", e),
        }
        Ok(OpenedDirectory::Disk(directory))
    }

    /// Where it is, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A key for one purpose, derived from the directory's.
    pub fn key_for(&self, purpose: &str) -> [u8; 32] {
        blake3::derive_key(purpose, &self.key)
    }

    /// The regular files here, without files that are being written; those that a crashed daemon left half written
    /// are removed.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn list(&self) -> io::Result<Vec<DirectoryEntry>> {
        let mut entries = Vec::new();
        for entry in self.handle.entries()? {
            let Ok(name) = entry?.file_name().into_string() else { continue };
            let Ok(metadata) = self.handle.symlink_metadata(&name) else { continue };
            if !metadata.is_file() || name == KEY_FILE {
                continue;
            }
            if name.starts_with(TEMPORARY) {
                self.remove_abandoned(&name);
                continue;
            }
            let used = metadata.modified()?.into_std();
            entries.push(DirectoryEntry { name, bytes: metadata.len(), used });
        }
        Ok(entries)
    }

    /// Opens a file to read it.
    ///
    /// # Errors
    /// `NotFound`, or `InvalidData` if it is not a regular file of this user's that only this user can write.
    pub fn read(&self, name: &str) -> io::Result<File> {
        // NONBLOCK: should it be a FIFO, opening must not wait.
        let file = match self.handle.open_with(name, options().read(true).custom_flags(libc::O_NONBLOCK)) {
            Err(e) if e.raw_os_error() == Some(libc::ELOOP) => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "is a symbolic link"));
            }
            result => result?.into_std(),
        };
        let stat = fstat(&file)?;
        let fault = if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            "is no regular file"
        } else if stat.st_uid != rustix::process::geteuid().as_raw() {
            "belongs to another user"
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
        let file = self.handle.open_with(&temporary.name, options().read(true))?;
        self.handle.rename(&temporary.name, &self.handle, name)?;
        temporary.renamed = true;
        Ok(file.into_std())
    }

    /// Marks `name` as in use for as long as the returned file is kept.
    ///
    /// # Errors
    /// Those of opening and locking.
    pub fn hold(&self, name: &str) -> io::Result<File> {
        let name = format!("{name}{IN_USE}");
        loop {
            let file = self.handle.open_with(&name, &lock_file())?.into_std();
            flock(&file, FlockOperation::LockShared)?;
            // A daemon that found it unused may have removed it just now.
            if fstat(&file)?.st_nlink > 0 {
                return Ok(file);
            }
        }
    }

    /// Calls `remove` if `name` is not in use; it does not come into use meanwhile. Returns whether it was called.
    pub fn if_unused(&self, name: &str, remove: impl FnOnce()) -> bool {
        let name = format!("{name}{IN_USE}");
        let Ok(file) = self.handle.open_with(&name, &lock_file()) else { return false };
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
        let mut options = private();
        let options = options.append(true).create(true).custom_flags(libc::O_NONBLOCK);
        let mut file = self.handle.open_with(name, options)?.into_std();
        file.write_all(bytes)
    }

    /// Removes a file; that it is gone already is fine.
    pub fn remove(&self, name: &str) {
        if let Err(e) = self.handle.remove_file(name)
            && e.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(file = %self.path.join(name).display(), error = %e, "cannot remove a file of the module store");
        }
    }

    /// Notes on the disk when a file was used.
    pub fn set_used(&self, name: &str, used: SystemTime) {
        let used = SystemTimeSpec::Absolute(cap_std::time::SystemTime::from_std(used));
        // Only the order of removal depends on it.
        let _ = self.handle.set_symlink_times(name, None, Some(used));
    }

    fn temporary(&self, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<TemporaryFile<'_>> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!(
            "{TEMPORARY}{}-{}",
            rustix::process::getpid().as_raw_nonzero(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let mut options = private();
        let options = options.write(true).create_new(true);
        let file = match self.handle.open_with(&name, options) {
            // Left by an earlier process with the same process id.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                self.remove(&name);
                self.handle.open_with(&name, options)
            }
            result => result,
        };
        let mut file = file?.into_std();
        let temporary = TemporaryFile { directory: self, name, renamed: false };
        // Held while the file is written: a process that can take it knows that the file was abandoned.
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
        match self.handle.hard_link(&temporary.name, &self.handle, KEY_FILE) {
            Ok(()) => Ok(key),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => self.read_key(),
            Err(e) => Err(e),
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
struct TemporaryFile<'a> {
    directory: &'a Directory,
    name: String,
    renamed: bool,
}

impl Drop for TemporaryFile<'_> {
    fn drop(&mut self) {
        if !self.renamed {
            self.directory.remove(&self.name);
        }
    }
}

/// How files are opened: a link in place of the file is an error.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.follow(FollowSymlinks::No);
    options
}

/// How files are made: for this user only.
fn private() -> OpenOptions {
    let mut options = options();
    options.mode(0o600);
    options
}

/// How lock files are opened, or made.
fn lock_file() -> OpenOptions {
    let mut options = private();
    options.write(true).create(true).custom_flags(libc::O_NONBLOCK);
    options
}

/// Opens a directory, not a link to one.
fn open_real(path: &Path) -> Result<OwnedFd, Errno> {
    openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Checks the directory above the store's, which the administrator may have made a link. One that cannot be looked at
/// is left to the opening of the store's.
///
/// # Errors
/// As [`check_owner`].
fn check_above(path: &Path) -> Result<()> {
    let stat = match open_real(path).and_then(fstat) {
        Err(Errno::LOOP | Errno::NOTDIR) => statat(CWD, path, AtFlags::empty())
            .map_err(|e| Error::FailedPrecondition(format!("cannot look at {}: {e}", path.display())))?,
        Err(_) => return Ok(()),
        Ok(stat) => stat,
    };
    check_owner(&stat, path)
}

/// Refuses a directory in which another user can make or replace files.
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
            OpenedDirectory::Disk(directory) => directory,
            OpenedDirectory::Unusable(why) => panic!("{why}"),
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
        let OpenedDirectory::Unusable(why) = Directory::open(Path::new("/proc/hearth")).unwrap() else { panic!() };
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
