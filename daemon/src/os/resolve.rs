//! Resolves a path inside a container's root as the container itself would, never outside it.
//!
//! The rules are those of chroot(2) with one difference: an absolute symbolic link starts at the
//! root, and a `..` that would leave the root is *refused* rather than clamped, because an image or a
//! volume that has one is broken or hostile, and either way its author should hear about it.
//!
//! `openat2` with `RESOLVE_BENEATH` answers the usual case in one system call. It reports an absolute
//! link, an escape and a mount crossed all as `EXDEV`; then the path is walked component by component
//! on directory descriptors, where `..` takes the parent's descriptor off a stack and the kernel
//! never resolves more than one plain name. Both are safe against somebody who renames inside the
//! root meanwhile.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, StatxFlags, fstatfs, openat, openat2, readlinkat, statx};
use rustix::io::Errno;

/// Symbolic links in one path, as the kernel has it (`MAXSYMLINKS`).
const LINKS_MAX: usize = 40;

/// Directories below the root in one path; each is an open descriptor for the time of the walk.
const DEPTH_MAX: usize = 256;

/// How often a walk of the kernel's is tried again when a rename inside the root disturbs it.
const RACES_MAX: usize = 4;

/// A file inside a root.
#[derive(Debug)]
pub struct Resolved {
    /// An `O_PATH` descriptor of whatever is there.
    pub file: OwnedFd,
    /// Whether everything on the way, links followed and the file itself included, is on the root's
    /// own mount. `false` if a volume is involved, or if the kernel cannot tell.
    pub on_root_mount: bool,
}

/// Why a path does not lead to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Nothing there, or a component that is not a directory.
    Missing {
        /// Whether the place where it is missing is on the root's own mount.
        on_root_mount: bool,
    },
    /// A `..` leaves the root.
    Escapes,
    /// Over [`LINKS_MAX`] symbolic links, most likely in a circle.
    Loop,
    /// One of procfs' links, which lead to other processes' files.
    MagicLink,
    /// Over [`DEPTH_MAX`] directories.
    TooDeep,
    /// The system call failed.
    Failed(Errno),
}

/// Resolves `path`, absolute or not, from the directory `root`.
///
/// # Errors
/// See [`Refusal`].
pub fn resolve(root: BorrowedFd<'_>, path: &OsStr) -> Result<Resolved, Refusal> {
    let slashes = path.as_bytes().iter().take_while(|b| **b == b'/').count();
    let relative = match &path.as_bytes()[slashes..] {
        [] => OsStr::new("."),
        relative => OsStr::from_bytes(relative),
    };
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    for _ in 0..RACES_MAX {
        match openat2(root, relative, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), beneath) {
            Ok(file) => return Ok(Resolved { file, on_root_mount: true }),
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(Refusal::Missing { on_root_mount: true }),
            Err(Errno::AGAIN) => {}
            // Which of the three reasons it was, or an old kernel: the walk finds out.
            Err(Errno::XDEV | Errno::LOOP | Errno::NOSYS) => break,
            Err(e) => return Err(Refusal::Failed(e)),
        }
    }
    walk(root, relative)
}

/// Component by component.
fn walk(root: BorrowedFd<'_>, path: &OsStr) -> Result<Resolved, Refusal> {
    let root_mount = mount_of(root)?.1;
    let mut on_root_mount = root_mount.is_some();
    let mut directories: Vec<OwnedFd> = Vec::new();
    let mut pending: VecDeque<OsString> = components(path);
    let mut links = 0;
    while let Some(name) = pending.pop_front() {
        match name.as_bytes() {
            b"" | b"." => continue,
            b".." => {
                directories.pop().ok_or(Refusal::Escapes)?;
                continue;
            }
            _ => {}
        }
        let here = directories.last().map_or(root, AsFd::as_fd);
        let file = match openat(here, &name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(Refusal::Missing { on_root_mount }),
            Err(e) => return Err(Refusal::Failed(e)),
        };
        let (kind, mount) = mount_of(file.as_fd())?;
        on_root_mount &= mount == root_mount;
        match kind {
            FileType::Symlink => {
                links += 1;
                if links > LINKS_MAX {
                    return Err(Refusal::Loop);
                }
                let target = link_target(&file)?;
                if target.as_bytes().first() == Some(&b'/') {
                    directories.clear();
                }
                for component in components(&target).into_iter().rev() {
                    pending.push_front(component);
                }
            }
            FileType::Directory => {
                if directories.len() == DEPTH_MAX {
                    return Err(Refusal::TooDeep);
                }
                directories.push(file);
            }
            _ if pending.is_empty() => return Ok(Resolved { file, on_root_mount }),
            _ => return Err(Refusal::Missing { on_root_mount }),
        }
    }
    let file = match directories.pop() {
        Some(directory) => directory,
        None => rustix::io::fcntl_dupfd_cloexec(root, 0).map_err(Refusal::Failed)?,
    };
    Ok(Resolved { file, on_root_mount })
}

/// Empty ones included: after a file that is not a directory they make the path wrong.
fn components(path: &OsStr) -> VecDeque<OsString> {
    path.as_bytes().split(|b| *b == b'/').map(|name| OsString::from_vec(name.to_vec())).collect()
}

/// What it is, and the id of the mount it is on if the kernel says (since 5.8).
fn mount_of(file: BorrowedFd<'_>) -> Result<(FileType, Option<u64>), Refusal> {
    let stat = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::TYPE | StatxFlags::MNT_ID).map_err(Refusal::Failed)?;
    let known = stat.stx_mask & StatxFlags::MNT_ID.bits() != 0;
    Ok((FileType::from_raw_mode(stat.stx_mode.into()), known.then_some(stat.stx_mnt_id)))
}

fn link_target(link: &OwnedFd) -> Result<OsString, Refusal> {
    // What readlink says of a procfs link is a name for people; following it as text would be wrong
    // and following it for real would leave the root.
    let filesystem = fstatfs(link).map_err(Refusal::Failed)?;
    if filesystem.f_type == rustix::fs::PROC_SUPER_MAGIC {
        return Err(Refusal::MagicLink);
    }
    let target = readlinkat(link, "", Vec::new()).map_err(Refusal::Failed)?;
    Ok(OsString::from_vec(target.into_bytes()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    /// A root with a file outside of it, and a way to look.
    struct Root {
        directory: tempfile::TempDir,
    }

    impl Root {
        fn new() -> Root {
            let directory = tempfile::tempdir().unwrap();
            fs::create_dir_all(directory.path().join("root/bin/deep")).unwrap();
            fs::write(directory.path().join("secret"), "outside").unwrap();
            fs::write(directory.path().join("root/bin/app"), "inside").unwrap();
            Root { directory }
        }

        fn path(&self) -> std::path::PathBuf {
            self.directory.path().join("root")
        }

        fn link(&self, at: &str, target: impl AsRef<Path>) {
            symlink(target, self.path().join(at)).unwrap();
        }

        /// The text of the file found, by both ways of looking.
        fn read(&self, path: &str) -> Result<String, Refusal> {
            let root = fs::File::open(self.path()).unwrap();
            let quick = resolve(root.as_fd(), OsStr::new(path));
            let walked = walk(root.as_fd(), OsStr::new(path));
            let text = |found: Result<Resolved, Refusal>| {
                found.map(|found| {
                    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&found.file));
                    fs::read_to_string(path).unwrap_or_else(|e| e.kind().to_string())
                })
            };
            let (quick, walked) = (text(quick), text(walked));
            assert_eq!(quick, walked, "the two ways differ about {path}");
            quick
        }
    }

    const MISSING: Refusal = Refusal::Missing { on_root_mount: true };

    #[test]
    fn names_inside_are_found() {
        let root = Root::new();
        root.link("bin/relative", "../bin/app");
        root.link("bin/absolute", "/bin/app");
        root.link("bin/up", "deep/../app");
        root.link("sbin", "bin");
        root.link("usr", "/sbin/../bin");
        for path in [
            "/bin/app", "bin/app", "//bin//./app", "bin/deep/../app", "/bin/relative", "/bin/absolute", "/bin/up",
            "/sbin/app", "/usr/relative",
        ] {
            assert_eq!(root.read(path).as_deref(), Ok("inside"), "{path}");
        }
        assert_eq!(root.read("/").unwrap(), "is a directory");
        assert_eq!(root.read("/bin/").unwrap(), "is a directory");
    }

    #[test]
    fn names_that_leave_the_root_are_refused() {
        let root = Root::new();
        root.link("climb", "../secret");
        root.link("bin/climb", "deep/../../../secret");
        root.link("bin/absolute", "/../secret");
        root.link("out", "..");
        root.link("there", root.directory.path().join("secret"));
        for path in ["../secret", "/../secret", "bin/../../secret", "/climb", "/bin/climb", "/bin/absolute", "out/secret", "out/root/bin/app"] {
            assert_eq!(root.read(path), Err(Refusal::Escapes), "{path}");
        }
        // The same name inside the root is another file, and there is none.
        assert_eq!(root.read("there"), Err(MISSING));
    }

    #[test]
    fn what_is_not_there_is_missing() {
        let root = Root::new();
        root.link("dangling", "/nowhere");
        for path in ["nothing", "/bin/app/", "/bin/app/more", "/bin/app/..", "dangling", "dangling/more"] {
            assert_eq!(root.read(path), Err(MISSING), "{path}");
        }
    }

    #[test]
    fn circles_magic_links_and_abysses_end() {
        let root = Root::new();
        root.link("a", "b");
        root.link("b", "/a");
        assert_eq!(root.read("a"), Err(Refusal::Loop));
        // procfs is a root like any other here: its links lead to other processes' files.
        let proc = fs::File::open("/proc").unwrap();
        for path in ["self/root/etc/passwd", "self/exe", "self/cwd/x"] {
            assert_eq!(resolve(proc.as_fd(), OsStr::new(path)).unwrap_err(), Refusal::MagicLink, "{path}");
        }
        let mut deep = root.path();
        for _ in 0..300 {
            deep.push("d");
        }
        fs::create_dir_all(&deep).unwrap();
        root.link("d/absolute", "/d");
        let path = format!("d/absolute{}", "/d".repeat(299));
        let opened = fs::File::open(root.path()).unwrap();
        assert_eq!(resolve(opened.as_fd(), OsStr::new(&path)).unwrap_err(), Refusal::TooDeep);
    }

    #[test]
    fn a_mount_on_the_way_is_noticed() {
        // /proc is a mount of its own on every Linux machine, so no test has to make one.
        let root = fs::File::open("/").unwrap();
        let found = resolve(root.as_fd(), OsStr::new("proc/version")).unwrap();
        assert!(!found.on_root_mount);
        let missing = resolve(root.as_fd(), OsStr::new("proc/no such file")).unwrap_err();
        assert_eq!(missing, Refusal::Missing { on_root_mount: false });
        let back = resolve(root.as_fd(), OsStr::new("proc/../proc/../etc/passwd")).unwrap();
        assert!(!back.on_root_mount);
    }
}
