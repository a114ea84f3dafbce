//! Paths inside a directory tree, resolved as a process sees them whose `/` that tree is.
//!
//! An image or a volume decides what the components of such a path are, so none of them may lead out:
//! `..` stops at the root, and an absolute symbolic link starts there. Looking up is one openat2(2);
//! making a missing mount point walks the components itself, because a kernel that resolves and one
//! that creates are two calls, between which a guest with a shared volume could swap a link in.
//!
//! Errors are the kernel's: `ELOOP` for too many links, `ENOTDIR` for a file on the way, `EROFS` where
//! nothing can be made.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::{Errno, Result};

/// Links followed in one path, as in the kernel (`MAXSYMLINKS`).
const LINKS_MAX: usize = 40;

/// Attempts of openat2(2), which answers `EAGAIN` if a mount or a rename anywhere on the machine
/// coincided with a `..`, and of a lookup that lost a race.
const ATTEMPTS_MAX: usize = 64;

/// What a mount point has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// For a directory or a whole file system.
    Directory,
    /// For anything else.
    File,
}

impl Kind {
    /// What `fd` is open on.
    ///
    /// # Errors
    /// As fstat(2).
    pub fn of(fd: impl AsFd) -> Result<Kind> {
        let directory = file_type(fd)? == FileType::Directory;
        Ok(if directory { Kind::Directory } else { Kind::File })
    }
}

fn file_type(fd: impl AsFd) -> Result<FileType> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode))
}

/// The top of a directory tree.
#[derive(Debug)]
pub struct RootDir(OwnedFd);

impl RootDir {
    /// Opens the directory `path` of the daemon's own name space.
    ///
    /// # Errors
    /// As open(2).
    pub fn open(path: &Path) -> Result<RootDir> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty()).map(RootDir)
    }

    /// The root itself.
    pub fn as_fd(&self) -> impl AsFd + '_ {
        &self.0
    }

    /// Opens what `path` is inside this tree, as an `O_PATH` descriptor; the last link is followed.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `ELOOP` as openat2(2); `EAGAIN` if the tree is being renamed all the time.
    pub fn resolve(&self, path: &Path) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        // Without a slash at the end, which would ask for a directory.
        let path = path.components().as_path();
        let path = if path.as_os_str().is_empty() { Path::new("/") } else { path };
        let mut attempt = 0;
        loop {
            attempt += 1;
            match rustix::fs::openat2(&self.0, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) if attempt < ATTEMPTS_MAX => {}
                result => return result,
            }
        }
    }

    /// Like [`RootDir::resolve`], but makes what is missing: directories (mode 0755) on the way and, at
    /// the end, a directory or an empty file (mode 0644). What exists is taken as it is, of either kind.
    ///
    /// # Errors
    /// As [`RootDir::resolve`], mkdir(2) and open(2).
    pub fn make(&self, path: &Path, kind: Kind) -> Result<OwnedFd> {
        match self.resolve(path) {
            Err(Errno::NOENT | Errno::AGAIN) => Walk::new(self)?.to(path, kind),
            found => found,
        }
    }
}

/// A walk down a tree that never asks the kernel for more than one component.
struct Walk {
    /// The directories from the root to where the walk is: `..` pops, so it cannot pass the root.
    dirs: Vec<OwnedFd>,
    /// Components still to come, the next one last.
    todo: Vec<OsString>,
    links: usize,
}

impl Walk {
    fn new(root: &RootDir) -> Result<Walk> {
        let top = rustix::io::fcntl_dupfd_cloexec(&root.0, 0)?;
        Ok(Walk { dirs: vec![top], todo: Vec::new(), links: 0 })
    }

    fn to(mut self, path: &Path, kind: Kind) -> Result<OwnedFd> {
        self.prepend(path);
        let mut races = 0;
        while let Some(name) = self.todo.pop() {
            if name == ".." {
                if self.dirs.len() > 1 {
                    self.dirs.pop();
                }
                continue;
            }
            let last = self.todo.is_empty();
            let found = match self.open(&name) {
                Err(Errno::NOENT) => match self.create(&name, if last { kind } else { Kind::Directory }) {
                    // Somebody else made it, or removed what was made.
                    Err(Errno::EXIST | Errno::NOENT) if races < ATTEMPTS_MAX => {
                        races += 1;
                        self.todo.push(name);
                        continue;
                    }
                    made => made?,
                },
                found => found?,
            };
            match file_type(&found)? {
                FileType::Symlink => self.follow(&found)?,
                FileType::Directory => self.dirs.push(found),
                _ if last => return Ok(found),
                _ => return Err(Errno::NOTDIR),
            }
        }
        self.dirs.pop().ok_or(Errno::NOENT)
    }

    fn here(&self) -> &OwnedFd {
        self.dirs.last().expect("the root is never popped")
    }

    /// A name without slashes and without following a link: it can only be inside.
    fn open(&self, name: &OsStr) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(self.here(), name, flags, Mode::empty())
    }

    fn create(&self, name: &OsStr, kind: Kind) -> Result<OwnedFd> {
        match kind {
            Kind::Directory => rustix::fs::mkdirat(self.here(), name, Mode::from_raw_mode(0o755))?,
            Kind::File => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
                rustix::fs::openat(self.here(), name, flags, Mode::from_raw_mode(0o644))?;
            }
        }
        self.open(name)
    }

    fn follow(&mut self, link: &OwnedFd) -> Result<()> {
        self.links += 1;
        if self.links > LINKS_MAX {
            return Err(Errno::LOOP);
        }
        let target = OsString::from_vec(rustix::fs::readlinkat(link, "", Vec::new())?.into_bytes());
        if target.as_bytes().first() == Some(&b'/') {
            self.dirs.truncate(1);
        }
        self.prepend(Path::new(&target));
        Ok(())
    }

    fn prepend(&mut self, path: &Path) {
        self.todo.extend(path.components().rev().filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_os_string()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        }));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// Where `fd` points, relative to `root`.
    fn place(root: &Path, fd: &OwnedFd) -> String {
        use std::os::fd::AsRawFd;
        let path = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
        path.strip_prefix(root).unwrap_or_else(|_| panic!("{} is outside", path.display())).display().to_string()
    }

    /// An `outside` directory beside the root, which nothing may ever touch.
    fn tree() -> (tempfile::TempDir, std::path::PathBuf, RootDir) {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        let root = base.join("root");
        fs::create_dir_all(root.join("usr/share")).unwrap();
        fs::create_dir(base.join("outside")).unwrap();
        fs::write(root.join("file"), "").unwrap();
        symlink("/usr", root.join("abs")).unwrap();
        symlink("../../../../outside", root.join("usr/up")).unwrap();
        symlink("../outside/new", root.join("dangling")).unwrap();
        symlink("/loop", root.join("loop")).unwrap();
        symlink("share/x", root.join("usr/relative")).unwrap();
        let opened = RootDir::open(&root).unwrap();
        (dir, root, opened)
    }

    #[test]
    fn a_missing_mount_point_is_made_inside_whatever_the_links_say() {
        let cases = [
            ("/a/b/c", "a/b/c"),
            ("../../a", "a"),
            ("/abs/share/new", "usr/share/new"),
            ("/usr/up/x", "outside/x"),
            ("/dangling", "outside/new"),
            ("/usr/relative/y", "usr/share/x/y"),
            ("/abs/../b", "b"),
            ("/", ""),
            ("", ""),
            ("./c/./d/", "c/d"),
        ];
        for kind in [Kind::Directory, Kind::File] {
            for (path, want) in cases {
                let (dir, root, opened) = tree();
                let made = opened.make(Path::new(path), kind).unwrap();
                assert_eq!(place(&root, &made), want, "{path}");
                assert_eq!(fs::read_dir(dir.path().join("outside")).unwrap().count(), 0, "{path}");
                let wanted = if want.is_empty() { Kind::Directory } else { kind };
                assert_eq!(Kind::of(&made).unwrap(), wanted, "{path}");
                // Once made, the plain look-up agrees.
                assert_eq!(place(&root, &opened.resolve(Path::new(path)).unwrap()), want, "{path}");
            }
        }
    }

    #[test]
    fn what_exists_is_taken_as_it_is() {
        let (_dir, root, opened) = tree();
        let found = opened.make(Path::new("/file"), Kind::Directory).unwrap();
        assert_eq!((place(&root, &found), Kind::of(&found).unwrap()), ("file".into(), Kind::File));
    }

    #[test]
    fn a_file_on_the_way_and_a_loop_are_errors() {
        let (_dir, _root, opened) = tree();
        assert_eq!(opened.make(Path::new("/file/x"), Kind::File).unwrap_err(), Errno::NOTDIR);
        assert_eq!(opened.make(Path::new("/loop"), Kind::File).unwrap_err(), Errno::LOOP);
        // The walk itself, which the kernel's look-up comes before, finds the same.
        for (path, want) in [("/file/x", Errno::NOTDIR), ("/loop/x", Errno::LOOP)] {
            let walk = Walk::new(&opened).unwrap();
            assert_eq!(walk.to(Path::new(path), Kind::Directory).unwrap_err(), want, "{path}");
        }
    }

    #[test]
    fn the_walk_survives_others_who_make_the_same_path() {
        let (_dir, root, opened) = tree();
        let opened = &opened;
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(move || {
                    for n in 0..200 {
                        opened.make(Path::new(&format!("/shared/{n}/x")), Kind::File).unwrap();
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(root.join("shared")).unwrap().count(), 200);
    }
}
