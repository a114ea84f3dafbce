//! Paths inside a directory tree, resolved as for a process whose root directory that tree is.
//!
//! An image or a volume decides on the components of such a path, so none of them may lead out of the tree: `..` stops
//! at the root, and an absolute symbolic link starts there. A look-up is one openat2(2) with `RESOLVE_IN_ROOT`, safe
//! against renames in the tree meanwhile. A missing mount point is made component by component: the kernel resolves and
//! creates in two calls, between which a guest with a shared volume could put a link in place.
//!
//! * [`RootDir::resolve`], [`RootDir::make`]: files of the pod, and mount points.
//! * [`RootDir::look_up`]: programs, and whether the look-up stayed on the root's own mount.
//! * [`RootDir::read_link`]: the target of a guest's link.
//! * [`RootDir::without_links`]: a guest's path as text without links, for cap-std, which opens no path that a link
//!   leads out of.
//!
//! Links of procfs that lead to other processes' files are never followed.
//!
//! Errors are the kernel's: `ELOOP` for too many links or one of procfs', `ENOTDIR` for a file on the way,
//! `EROFS` where nothing can be made.
//!
//! The crate pathrs does the first of these jobs. It is not used: its licence (MPL-2.0 or LGPL-3.0) is not one that
//! `deny.toml` allows, and it has neither the look-up that reports a mount on the way (`RESOLVE_NO_XDEV`) nor the path
//! without links.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::{Errno, Result};

use hearth_base::error;

/// Links followed in one path, as in the kernel (`MAXSYMLINKS`).
const LINKS_MAX: usize = 40;

/// Attempts of openat2(2), which answers `EAGAIN` if a mount or a rename anywhere on the machine
/// coincided with a `..`, and of a lookup that lost a race.
const ATTEMPTS_MAX: usize = 64;

/// The kind of a mount point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// For a directory or a whole file system.
    Directory,
    /// For anything else.
    File,
}

impl Kind {
    /// The kind of the file that `fd` is open on.
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
pub struct RootDir<Fd = OwnedFd>(Fd);

impl RootDir {
    /// Opens the directory `path` in the daemon's own mount namespace.
    ///
    /// # Errors
    /// As open(2).
    pub fn open(path: &Path) -> Result<RootDir> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty()).map(RootDir)
    }
}

/// The result of a look-up.
#[derive(Debug)]
pub struct LookedUp {
    /// An `O_PATH` descriptor of the file, or an error.
    pub file: Result<OwnedFd>,
    /// Whether the look-up, as far as it went, stayed on the root's own mount.
    pub on_root_mount: bool,
}

/// The treatment of a link at the end of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    /// It is followed; where it leads need not exist.
    Followed,
    /// The link itself is meant.
    Itself,
}

impl<Fd: AsFd> RootDir<Fd> {
    /// The tree below this directory.
    pub fn of(directory: Fd) -> RootDir<Fd> {
        RootDir(directory)
    }

    /// The root itself.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Opens `path` inside this tree as an `O_PATH` descriptor; a link at the end is followed.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `ELOOP` as openat2(2); `EAGAIN` if the tree is being renamed all the time.
    pub fn resolve(&self, path: &Path) -> Result<OwnedFd> {
        // Without a slash at the end, which would ask for a directory.
        let path = path.components().as_path();
        let path = if path.as_os_str().is_empty() { Path::new("/") } else { path };
        self.open_path(path.as_os_str(), ResolveFlags::empty())
    }

    /// Like [`RootDir::resolve`], and tells whether a mount inside the root was involved. A slash at the
    /// end asks for a directory.
    pub fn look_up(&self, path: &OsStr) -> LookedUp {
        match self.open_path(path, ResolveFlags::NO_XDEV) {
            Err(Errno::XDEV) => LookedUp { file: self.open_path(path, ResolveFlags::empty()), on_root_mount: false },
            file => LookedUp { file, on_root_mount: true },
        }
    }

    fn open_path(&self, path: &OsStr, more: ResolveFlags) -> Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | more;
        let mut attempt = 0;
        loop {
            attempt += 1;
            match rustix::fs::openat2(&self.0, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) if attempt < ATTEMPTS_MAX => {}
                result => return result,
            }
        }
    }

    /// The same path without a link or a `..` on the way, relative to the root; `.` for the root itself.
    /// The file need not exist, but its directory must. A slash at the end is kept.
    ///
    /// The result is text: the caller must open it so that it cannot lead out, since a guest may put a link there
    /// meanwhile.
    ///
    /// # Errors
    /// As [`RootDir::resolve`]; `EILSEQ` if a name on the way is not UTF-8.
    pub fn without_links(&self, path: &str, last: Last) -> Result<String> {
        let mut path = path.to_owned();
        for _ in 0..LINKS_MAX {
            let (parent, name) = split(&path);
            if last == Last::Followed || name.is_none() {
                match self.open_path(OsStr::new(&path), ResolveFlags::empty()) {
                    Err(Errno::NOENT) if name.is_some() => {}
                    found => return self.text_of(&found?),
                }
            }
            let name = name.unwrap_or(".");
            let directory = self.open_path(directory_of(parent), ResolveFlags::empty())?;
            let beside = |name: &str| {
                Ok(match self.text_of(&directory)?.as_str() {
                    "." => name.to_owned(),
                    directory => format!("{directory}/{name}"),
                })
            };
            if last == Last::Itself {
                return beside(name);
            }
            // No file is there, or a link whose target does not exist yet.
            path = match rustix::fs::readlinkat(&directory, name.trim_end_matches('/'), Vec::new()) {
                Ok(target) => match target.into_string().map_err(|_| Errno::ILSEQ)? {
                    absolute if absolute.starts_with('/') => absolute,
                    relative => beside(&relative)?,
                },
                Err(Errno::INVAL | Errno::NOENT) => return beside(name),
                Err(error) => return Err(error),
            };
        }
        Err(Errno::LOOP)
    }

    /// The target of the link at `path`; links on the way to it are followed.
    ///
    /// # Errors
    /// As [`RootDir::resolve`]; `EINVAL` if it is no link, `EILSEQ` if its target is not UTF-8.
    pub fn read_link(&self, path: &str) -> Result<String> {
        let (parent, name) = split(path);
        let name = name.filter(|name| !name.ends_with('/')).ok_or(Errno::INVAL)?;
        let directory = self.open_path(directory_of(parent), ResolveFlags::empty())?;
        rustix::fs::readlinkat(&directory, name, Vec::new())?.into_string().map_err(|_| Errno::ILSEQ)
    }

    /// The present path of `fd`, which was opened in this tree.
    fn text_of(&self, fd: &OwnedFd) -> Result<String> {
        let (root, path) = (kernels_name(self.as_fd())?, kernels_name(fd.as_fd())?);
        // A rename has moved it out of the tree meanwhile.
        let path = path.strip_prefix(&root).map_err(|_| Errno::NOENT)?;
        match path.to_str().ok_or(Errno::ILSEQ)? {
            "" => Ok(".".to_owned()),
            path => Ok(path.to_owned()),
        }
    }

    /// Like [`RootDir::resolve`], but makes missing files: directories (mode 0755) on the way and, at the end, a
    /// directory or an empty file (mode 0644). An existing file is returned as it is, of either kind.
    ///
    /// # Errors
    /// As [`RootDir::resolve`], mkdir(2) and open(2).
    pub fn make(&self, path: &Path, kind: Kind) -> Result<OwnedFd> {
        match self.resolve(path) {
            Err(Errno::NOENT | Errno::AGAIN) => Walk::new(self.as_fd())?.to(path, kind),
            found => found,
        }
    }
}

/// The kernel's own path of the file that `fd` is open on.
fn kernels_name(fd: BorrowedFd<'_>) -> Result<PathBuf> {
    let path = rustix::fs::readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new())?;
    Ok(OsString::from_vec(path.into_bytes()).into())
}

/// A directory part, for the kernel.
fn directory_of(parent: &str) -> &OsStr {
    OsStr::new(if parent.is_empty() { "." } else { parent })
}

/// The directory part, empty for the root, and the name in it with any slashes after it. No name if the path ends with a
/// directory by its form (`.`, `..`, the root).
fn split(path: &str) -> (&str, Option<&str>) {
    let end = path.trim_end_matches('/').len();
    let at = path[..end].rfind('/').map_or(0, |slash| slash + 1);
    match &path[at..end] {
        "" | "." | ".." => (path, None),
        _ => (&path[..at], Some(&path[at..])),
    }
}

/// A walk down a tree, one component per system call.
struct Walk {
    /// The directories from the root to where the walk is: `..` pops, so it cannot pass the root.
    dirs: Vec<OwnedFd>,
    /// Components still to come, the next one last.
    todo: Vec<OsString>,
    links: usize,
}

impl Walk {
    fn new(root: BorrowedFd<'_>) -> Result<Walk> {
        let top = rustix::io::fcntl_dupfd_cloexec(root, 0)?;
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
                    // Another process made it, or removed it again.
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

    /// Opens a name without slashes and without following a link: it can only lie inside.
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

/// Opens the directory of a root for look-ups.
///
/// # Errors
/// `InvalidArgument` if it cannot be opened.
pub fn open_root(path: &Path) -> error::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(|e| {
        error::Error::InvalidArgument(format!(
            "root.path: cannot open {}: {e}; is the bundle complete?",
            path.display()
        ))
    })
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
            let walk = Walk::new(opened.as_fd()).unwrap();
            assert_eq!(walk.to(Path::new(path), Kind::Directory).unwrap_err(), want, "{path}");
        }
    }

    #[test]
    fn a_program_is_looked_up_as_by_a_process_of_the_container() {
        let (_dir, root, opened) = tree();
        for (path, want) in [
            ("/file", "file"),
            ("usr/../file", "file"),
            ("/abs/share", "usr/share"),
            ("//abs//./share/", "usr/share"),
            ("/../../file", "file"),
        ] {
            let found = opened.look_up(OsStr::new(path));
            assert_eq!(place(&root, &found.file.unwrap()), want, "{path}");
            assert!(found.on_root_mount, "{path}");
        }
        for (path, want) in
            [("/usr/up", Errno::NOENT), ("/file/", Errno::NOTDIR), ("/file/..", Errno::NOTDIR), ("/loop", Errno::LOOP)]
        {
            let found = opened.look_up(OsStr::new(path));
            assert_eq!((found.file.unwrap_err(), found.on_root_mount), (want, true), "{path}");
        }
    }

    #[test]
    fn a_mount_on_the_way_is_noticed_and_procfs_links_lead_nowhere() {
        // /proc is a mount of its own on every Linux machine, so no test has to make one.
        let root = RootDir::open(Path::new("/")).unwrap();
        for (path, found) in [("proc/version", true), ("proc/no such file", false), ("proc/../etc/passwd", true)] {
            let looked_up = root.look_up(OsStr::new(path));
            assert_eq!((looked_up.file.is_ok(), looked_up.on_root_mount), (found, false), "{path}");
        }
        let proc = RootDir::open(Path::new("/proc")).unwrap();
        for path in ["self/root/etc/passwd", "self/exe", "self/cwd/x"] {
            assert_eq!(proc.look_up(OsStr::new(path)).file.unwrap_err(), Errno::LOOP, "{path}");
        }
    }

    #[test]
    fn a_path_is_told_without_its_links() {
        let (_dir, root, opened) = tree();
        fs::write(root.join("usr/share/app"), "").unwrap();
        symlink("/usr/share/app", root.join("tool")).unwrap();
        symlink("/etc/none", root.join("no-directory")).unwrap();
        symlink("/usr/none", root.join("usr/no-file")).unwrap();
        for (path, followed, itself) in [
            ("tool", Ok("usr/share/app"), Ok("tool")),
            ("abs/share/app", Ok("usr/share/app"), Ok("usr/share/app")),
            ("abs", Ok("usr"), Ok("abs")),
            ("abs/", Ok("usr"), Ok("abs/")),
            ("abs/..", Ok("."), Ok(".")),
            ("../../usr/../../file", Ok("file"), Ok("file")),
            ("..", Ok("."), Ok(".")),
            ("abs/new", Ok("usr/new"), Ok("usr/new")),
            ("abs/new/", Ok("usr/new/"), Ok("usr/new/")),
            ("usr/no-file", Ok("usr/none"), Ok("usr/no-file")),
            ("no-directory", Err(Errno::NOENT), Ok("no-directory")),
            ("usr/up", Ok("outside"), Ok("usr/up")),
            ("dangling", Err(Errno::NOENT), Ok("dangling")),
            ("loop", Err(Errno::LOOP), Ok("loop")),
            ("file/x", Err(Errno::NOTDIR), Err(Errno::NOTDIR)),
            ("none/x", Err(Errno::NOENT), Err(Errno::NOENT)),
            ("", Err(Errno::NOENT), Err(Errno::NOENT)),
        ] {
            for (last, want) in [(Last::Followed, followed), (Last::Itself, itself)] {
                let got = opened.without_links(path, last);
                assert_eq!(got.as_deref().map_err(|e| *e), want, "{path} {last:?}");
            }
        }
    }

    #[test]
    fn a_links_own_text_is_read_wherever_it_leads() {
        let (_dir, _root, opened) = tree();
        for (path, want) in [
            ("abs", Ok("/usr")),
            ("abs/up", Ok("../../../../outside")),
            ("../loop", Ok("/loop")),
            ("abs/", Err(Errno::INVAL)),
            ("abs/share", Err(Errno::INVAL)),
            ("..", Err(Errno::INVAL)),
            ("loop/x", Err(Errno::LOOP)),
            ("abs/none", Err(Errno::NOENT)),
        ] {
            assert_eq!(opened.read_link(path).as_deref().map_err(|e| *e), want, "{path}");
        }
    }

    #[test]
    fn no_rename_in_the_tree_leads_a_path_out() {
        let (dir, root, opened) = tree();
        fs::create_dir(dir.path().join("outside/share")).unwrap();
        fs::write(dir.path().join("outside/share/secret"), "").unwrap();
        fs::create_dir(root.join("a")).unwrap();
        fs::create_dir(root.join("a/share")).unwrap();
        let outside = dir.path().canonicalize().unwrap().join("outside");
        symlink(&outside, root.join("b")).unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                use rustix::fs::{CWD, RenameFlags, renameat_with};
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    renameat_with(CWD, root.join("a"), CWD, root.join("b"), RenameFlags::EXCHANGE).unwrap();
                }
            });
            for _ in 0..5_000 {
                for path in ["a/share/../share/secret", "a/../../outside/share/secret", "b/share/secret"] {
                    // Nothing of that name is ever inside.
                    if let Ok(found) = opened.resolve(Path::new(path)) {
                        panic!("{path} led to {:?}", kernels_name(found.as_fd()));
                    }
                    if let Ok(text) = opened.without_links(path, Last::Followed) {
                        assert!(["a/share/secret", "b/share/secret"].contains(&&*text), "{text}");
                    }
                }
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
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
