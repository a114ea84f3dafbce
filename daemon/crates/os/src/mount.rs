//! Mounts, in the daemon's own mount namespace.
//!
//! * [`enter_private_namespace`]: once, first in `main`. Later mounts of the node propagate in (volumes do); the
//!   daemon's mounts never propagate out, and end with the daemon.
//! * [`in_node_namespace`]: for programs whose mounts the node has to see.
//! * [`MountOptions`]: mount(8)'s option words, as containerd and OCI specs use them.
//! * [`overlay`], [`filesystem`], [`bind`], [`tmpfs`]: the mounts a guest's root is made of.
//! * [`Mounted`]: unmounts when it is dropped.
//!
//! A file system is mounted with mount(2): one call, which measures faster than the five of the
//! fsopen(2) family and has no limit of 256 bytes on a value. A bind goes through open_tree(2),
//! mount_setattr(2) and move_mount(2): twice as fast as three mount(2) calls, attributes are set before any process can
//! reach the mount, and the target is a descriptor rather than a path to resolve again. Before Linux 5.12 there is no
//! mount_setattr(2), and a remount sets the attributes.
//!
//! Errors are the kernel's; the caller adds the mount of the spec.
#![allow(unsafe_code, reason = "unshare(2) and mount_setattr(2) have no safe form")]

mod options;

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::{Errno, Result};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change, move_mount,
    open_tree, unmount,
};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::in_root::Kind;

pub use options::{Bind, MountOptions, Propagation};

/// The flags of every mount of a guest's root. A device node in an image or a volume would be the node's device, since
/// no device cgroup applies to a guest. Set-user-id bits have no use for a guest.
pub const GUEST_FLAGS: MountFlags = MountFlags::NODEV.union(MountFlags::NOSUID);

/// mount(2) copies one page of options, the terminating NUL included.
const DATA_BYTES_MAX: usize = 4_096;

/// The mount namespace in which this process was started: the node's.
static NODE: OnceLock<File> = OnceLock::new();

/// Gives this process a mount namespace of its own that follows the node's.
///
/// # Errors
/// If the process has a second thread already, which would stay in the node's namespace; if it lacks
/// `CAP_SYS_ADMIN`.
pub fn enter_private_namespace() -> std::io::Result<()> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(std::io::Error::other(format!(
            "{threads} threads are running; it has to be entered by the first alone"
        )));
    }
    let node = File::open("/proc/self/ns/mnt")?;
    unshare_mounts()?;
    // Nothing else sets it, and this process cannot come here twice: it would have to have one thread.
    let _ = NODE.set(node);
    Ok(())
}

/// Runs `act` on a thread of its own in the mount namespace in which this process was started, the node's. A program that
/// it starts stays there. Blocks.
///
/// # Errors
/// As setns(2), and if there is no memory for a thread.
pub fn in_node_namespace<T: Send>(act: impl FnOnce() -> T + Send) -> std::io::Result<T> {
    let enter = || {
        if let Some(node) = NODE.get() {
            // SAFETY: the table of descriptors stays shared. A thread that shares its root and its working directory
            // with others cannot enter a mount namespace (setns(2)).
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS)? };
            move_into_link_name_space(node.as_fd(), Some(LinkNameSpaceType::Mount))?;
        }
        Ok(act())
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("node-mounts".into()).spawn_scoped(scope, enter)?;
        thread.join().map_err(|_| std::io::Error::other("the thread in the node's mount namespace panicked"))?
    })
}

/// Gives the calling thread a mount namespace of its own that follows the one it had.
///
/// # Errors
/// As unshare(2) and mount(2).
pub fn unshare_mounts() -> Result<()> {
    // SAFETY: unshare is unsafe because of CLONE_FILES, which would take descriptors away from their owners; this call
    // asks for a mount namespace only.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS)? };
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
}

/// A path of `fd` for system calls that take a path. It is valid while `fd` is open.
fn path_of(fd: BorrowedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn c_string(text: String) -> Result<CString> {
    CString::new(text).map_err(|_| Errno::INVAL)
}

fn open_path(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

/// The layers of an overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    /// `lowerdir`, the uppermost first; at least one, at least two without an upper directory.
    pub lower: Vec<PathBuf>,
    /// `upperdir` and `workdir`; without them the overlay is read-only.
    pub upper: Option<(PathBuf, PathBuf)>,
    /// Other options.
    pub options: Vec<String>,
}

impl Overlay {
    /// mount(2)'s options, or `None` if they cannot be expressed: they exceed a page, or the option syntax would split a
    /// path.
    fn data(&self) -> Option<String> {
        let plain = |path: &PathBuf| path.to_str().filter(|path| !path.contains([',', ':', '\\'])).map(String::from);
        let lower = self.lower.iter().map(plain).collect::<Option<Vec<_>>>()?.join(":");
        let mut words = self.options.clone();
        words.push(format!("lowerdir={lower}"));
        if let Some((upper, work)) = &self.upper {
            words.push(format!("upperdir={}", plain(upper)?));
            words.push(format!("workdir={}", plain(work)?));
        }
        let data = words.join(",");
        (data.len() < DATA_BYTES_MAX).then_some(data)
    }

    /// The same overlay, with every directory opened and named by its descriptor: 20 bytes a layer, however long its
    /// path, so that over 190 layers fit into a page.
    fn by_descriptors(&self) -> Result<(Overlay, Vec<OwnedFd>)> {
        let mut held = Vec::with_capacity(self.lower.len() + 2);
        let mut name = |path: &PathBuf| -> Result<PathBuf> {
            held.push(open_path(path)?);
            Ok(path_of(held[held.len() - 1].as_fd()).into())
        };
        let lower = self.lower.iter().map(&mut name).collect::<Result<_>>()?;
        let upper = self.upper.as_ref().map(|(upper, work)| Ok((name(upper)?, name(work)?))).transpose()?;
        Ok((Overlay { lower, upper, options: self.options.clone() }, held))
    }
}

/// Mounts an overlay on the directory `target`.
///
/// # Errors
/// `E2BIG` if there are more layers than one call can name, otherwise as mount(2).
pub fn overlay(overlay: &Overlay, target: &Path, flags: MountFlags) -> Result<Mounted> {
    let (data, _held) = match overlay.data() {
        Some(data) => (data, Vec::new()),
        None => {
            let (short, held) = overlay.by_descriptors()?;
            (short.data().ok_or(Errno::TOOBIG)?, held)
        }
    };
    let data = c_string(data)?;
    rustix::mount::mount("overlay", target, "overlay", flags | GUEST_FLAGS, data.as_c_str())?;
    Ok(Mounted::new(target))
}

/// Mounts `source`, a block device or another source that `fstype` accepts, on the directory `target`.
///
/// # Errors
/// As mount(2).
pub fn filesystem(fstype: &str, source: &str, target: &Path, flags: MountFlags, data: &[String]) -> Result<Mounted> {
    let data = data.join(",");
    if data.len() >= DATA_BYTES_MAX {
        return Err(Errno::TOOBIG);
    }
    let data = c_string(data)?;
    rustix::mount::mount(source, target, fstype, flags | GUEST_FLAGS, data.as_c_str())?;
    Ok(Mounted::new(target))
}

/// Mounts an empty tmpfs on the directory that `target` is open on.
///
/// # Errors
/// As mount(2).
pub fn tmpfs(target: impl AsFd, flags: MountFlags, data: &[String]) -> Result<()> {
    let data = c_string(data.join(","))?;
    rustix::mount::mount("tmpfs", path_of(target.as_fd()), "tmpfs", flags | GUEST_FLAGS, data.as_c_str())
}

/// A copy of the mount at `source` (and of the mounts below it), not attached yet. Dropping it removes the copy.
#[derive(Debug)]
pub struct Detached {
    tree: OwnedFd,
    bind: Bind,
    kind: Kind,
}

impl Detached {
    /// Copies the mount that `source` lies in, with `source` as its top; links are followed.
    ///
    /// # Errors
    /// `ENOENT` if there is no such path, otherwise as open_tree(2).
    pub fn open(source: &Path, bind: Bind) -> Result<Detached> {
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        if bind == Bind::Tree {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        let tree = open_tree(CWD, source, flags)?;
        let kind = Kind::of(&tree)?;
        // Nothing can be mounted below a file, which saves a call for its attributes.
        let bind = if kind == Kind::File { Bind::One } else { bind };
        Ok(Detached { tree, bind, kind })
    }

    /// The kind of target that it needs.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The top of the copy.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tree.as_fd()
    }
}

/// Attaches `source` to the file that `target` is open on: a directory to a directory, any other file to a file.
///
/// # Errors
/// As move_mount(2) and mount_setattr(2); nothing is attached then.
pub fn bind(source: &Detached, target: impl AsFd, options: &MountOptions) -> Result<()> {
    bind_by(source, target, options, Attributes::best())
}

fn bind_by(source: &Detached, target: impl AsFd, options: &MountOptions, attributes: Attributes) -> Result<()> {
    let attach = || {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(&source.tree, "", &target, "", flags)
    };
    match attributes {
        Attributes::Syscall => {
            set_attributes(source, options)?;
            attach()
        }
        Attributes::Remount => {
            attach()?;
            remount(source, options).inspect_err(|_| {
                // The descriptor names the mount itself, so no other mount is unmounted.
                let _ = unmount(path_of(source.as_fd()), UnmountFlags::DETACH);
            })
        }
    }
}

/// Makes the mount whose top is at `path` read-only, whatever is mounted below it.
///
/// # Errors
/// As mount_setattr(2) or mount(2).
pub fn make_read_only(path: &Path) -> Result<()> {
    make_read_only_by(path, Attributes::best())
}

fn make_read_only_by(path: &Path, attributes: Attributes) -> Result<()> {
    let top = open_path(path)?;
    match attributes {
        Attributes::Syscall => mount_setattr(top.as_fd(), MountFlags::RDONLY, None, Bind::One),
        Attributes::Remount => remount_flags(top.as_fd(), MountFlags::RDONLY),
    }
}

fn set_attributes(source: &Detached, options: &MountOptions) -> Result<()> {
    let propagation = match options.propagation {
        Propagation::Private => MountPropagationFlags::PRIVATE,
        Propagation::Slave => MountPropagationFlags::DOWNSTREAM,
    };
    let top = source.as_fd();
    match source.bind {
        Bind::One => mount_setattr(top, options.flags | options.tree_flags | GUEST_FLAGS, Some(propagation), Bind::One),
        Bind::Tree => {
            mount_setattr(top, options.tree_flags | GUEST_FLAGS, Some(propagation), Bind::Tree)?;
            if options.flags.difference(GUEST_FLAGS).is_empty() {
                return Ok(());
            }
            mount_setattr(top, options.flags, None, Bind::One)
        }
    }
}

/// The same by mount(2), on an attached mount. Only the top gets the flags, since a remount is not recursive: mounts
/// below the source keep theirs.
fn remount(source: &Detached, options: &MountOptions) -> Result<()> {
    let propagation = match options.propagation {
        Propagation::Private => MountPropagationFlags::PRIVATE,
        Propagation::Slave => MountPropagationFlags::DOWNSTREAM,
    };
    mount_change(path_of(source.as_fd()), propagation | MountPropagationFlags::REC)?;
    remount_flags(source.as_fd(), options.flags | options.tree_flags | GUEST_FLAGS)
}

/// Adds flags by a remount. A remount replaces all flags, so the mount's own are repeated.
fn remount_flags(top: BorrowedFd, add: MountFlags) -> Result<()> {
    use rustix::fs::StatVfsMountFlags as Has;
    let has = rustix::fs::fstatvfs(top)?.f_flag;
    let keep = [
        (Has::RDONLY, MountFlags::RDONLY),
        (Has::NOSUID, MountFlags::NOSUID),
        (Has::NODEV, MountFlags::NODEV),
        (Has::NOEXEC, MountFlags::NOEXEC),
        (Has::NOATIME, MountFlags::NOATIME),
        (Has::NODIRATIME, MountFlags::NODIRATIME),
        (Has::RELATIME, MountFlags::RELATIME),
    ];
    let mut flags = MountFlags::BIND | add;
    for (has_it, flag) in keep {
        if has.contains(has_it) {
            flags |= flag;
        }
    }
    rustix::mount::mount_remount(path_of(top), flags, "")
}

/// The way to set attributes of an existing mount on this kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attributes {
    /// mount_setattr(2), since Linux 5.12.
    Syscall,
    /// A remount.
    Remount,
}

impl Attributes {
    fn best() -> Attributes {
        static BEST: std::sync::OnceLock<Attributes> = std::sync::OnceLock::new();
        *BEST.get_or_init(|| {
            // An empty change of no mount: EINVAL or EBADF where the call exists.
            let probe = mount_setattr(CWD, MountFlags::empty(), None, Bind::One);
            if probe == Err(Errno::NOSYS) { Attributes::Remount } else { Attributes::Syscall }
        })
    }
}

/// The `MOUNT_ATTR_*` bits to set and to clear for `MS_*` flags. The access-time words are one field,
/// which has to be cleared to be set. Flags of file systems rather than of mounts have no such bit.
fn attribute_bits(flags: MountFlags) -> (u64, u64) {
    use rustix::mount::MountAttrFlags as A;
    let table = [
        (MountFlags::RDONLY, A::MOUNT_ATTR_RDONLY, A::empty()),
        (MountFlags::NOSUID, A::MOUNT_ATTR_NOSUID, A::empty()),
        (MountFlags::NODEV, A::MOUNT_ATTR_NODEV, A::empty()),
        (MountFlags::NOEXEC, A::MOUNT_ATTR_NOEXEC, A::empty()),
        (MountFlags::NODIRATIME, A::MOUNT_ATTR_NODIRATIME, A::empty()),
        (MountFlags::NOSYMFOLLOW, A::MOUNT_ATTR_NOSYMFOLLOW, A::empty()),
        (MountFlags::RELATIME, A::MOUNT_ATTR_RELATIME, A::MOUNT_ATTR__ATIME),
        (MountFlags::NOATIME, A::MOUNT_ATTR_NOATIME, A::MOUNT_ATTR__ATIME),
        (MountFlags::STRICTATIME, A::MOUNT_ATTR_STRICTATIME, A::MOUNT_ATTR__ATIME),
    ];
    let (mut set, mut clear) = (A::empty(), A::empty());
    for (flag, bit, field) in table {
        if flags.contains(flag) {
            set = set.difference(field) | bit;
            clear |= field;
        }
    }
    (set.bits().into(), clear.bits().into())
}

fn mount_setattr(
    top: BorrowedFd,
    flags: MountFlags,
    propagation: Option<MountPropagationFlags>,
    scope: Bind,
) -> Result<()> {
    let (attr_set, attr_clr) = attribute_bits(flags);
    let attributes = libc::mount_attr {
        attr_set,
        attr_clr,
        propagation: propagation.map_or(0, |flags| flags.bits().into()),
        userns_fd: 0,
    };
    let recursive = if scope == Bind::Tree { OpenTreeFlags::AT_RECURSIVE.bits() } else { 0 };
    // SAFETY: the path is a NUL-terminated constant; the kernel reads size_of bytes of the structure,
    // which outlives the call, and writes nothing; the descriptor is borrowed, so it is open.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            top.as_raw_fd(),
            c"".as_ptr(),
            libc::c_long::from(libc::AT_EMPTY_PATH) | libc::c_long::from(recursive),
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// A mount on a path under the daemon's control. Dropping it unmounts it with all mounts inside.
#[derive(Debug)]
pub struct Mounted {
    path: Option<PathBuf>,
    holds_others: bool,
}

impl Mounted {
    /// Takes over the mount whose top is at `path`.
    fn new(path: &Path) -> Mounted {
        Mounted { path: Some(path.to_path_buf()), holds_others: false }
    }

    /// Binds `source` on the directory `path`.
    ///
    /// # Errors
    /// As [`bind`].
    pub fn bind(source: &Detached, path: &Path, options: &MountOptions) -> Result<Mounted> {
        bind(source, open_path(path)?, options)?;
        Ok(Mounted::new(path))
    }

    /// Mounts a tmpfs on the directory `path`.
    ///
    /// # Errors
    /// As [`tmpfs`].
    pub fn tmpfs(path: &Path, data: &[String]) -> Result<Mounted> {
        tmpfs(open_path(path)?, MountFlags::empty(), data)?;
        Ok(Mounted::new(path))
    }

    /// Records that other mounts were attached inside.
    pub fn holds_others(&mut self) {
        self.holds_others = true;
    }

    /// Unmounts.
    ///
    /// With other mounts inside, the whole tree is detached in one call: it costs less than a third of
    /// unmounting one by one, and their paths are not looked up again, which a guest that shares a volume with another
    /// could have changed meanwhile. A mount without open files is gone when umount2(2) returns, detached or not.
    ///
    /// # Errors
    /// `EBUSY` if a file was still open in it. It is then detached, and the kernel removes it with the last open file.
    pub fn unmount(mut self) -> Result<()> {
        self.undo()
    }

    fn undo(&mut self) -> Result<()> {
        let Some(path) = self.path.take() else { return Ok(()) };
        if self.holds_others {
            return unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
        let result = unmount(&path, UnmountFlags::NOFOLLOW);
        if result == Err(Errno::BUSY) {
            unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
        }
        result
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let path = self.path.clone();
        if let (Err(error), Some(path)) = (self.undo(), path) {
            tracing::warn!(path = %path.display(), %error, "cannot unmount cleanly");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::mpsc;

    use hearth_testing::{directory, in_namespace, mounts_below};

    use super::*;

    fn options(text: &str) -> MountOptions {
        MountOptions::parse(&text.split(',').collect::<Vec<_>>())
    }

    #[test]
    fn access_times_are_one_field_of_the_attributes() {
        use rustix::mount::MountAttrFlags as A;
        let field = u64::from(A::MOUNT_ATTR__ATIME.bits());
        assert_eq!(attribute_bits(MountFlags::empty()), (0, 0));
        assert_eq!(attribute_bits(MountFlags::RELATIME), (0, field));
        let (set, clear) = attribute_bits(MountFlags::NOATIME | MountFlags::RDONLY);
        assert_eq!((set, clear), (u64::from((A::MOUNT_ATTR_NOATIME | A::MOUNT_ATTR_RDONLY).bits()), field));
    }

    #[test]
    fn a_namespace_follows_the_node_but_not_the_reverse() {
        in_namespace(|node| {
            mount_change(node, MountPropagationFlags::SHARED).unwrap();
            let (before, during) = (node.join("before"), node.join("during"));
            for path in [&before, &during] {
                fs::create_dir(path).unwrap();
            }
            let (tell, told) = mpsc::channel();
            let (go, going) = mpsc::channel::<()>();
            std::thread::scope(|scope| {
                let (before, during) = (&before, &during);
                let daemon = scope.spawn(move || {
                    unshare_mounts().unwrap();
                    tmpfs(open_path(before).unwrap(), MountFlags::empty(), &[]).unwrap();
                    tell.send(()).unwrap();
                    going.recv().unwrap();
                    mounts_below(node)
                });
                told.recv().unwrap();
                assert_eq!(mounts_below(node), Vec::<String>::new());
                tmpfs(open_path(during).unwrap(), MountFlags::empty(), &[]).unwrap();
                go.send(()).unwrap();
                assert_eq!(daemon.join().unwrap(), ["before", "during"]);
            });
        });
    }

    #[test]
    fn the_private_namespace_is_refused_once_there_are_threads() {
        let (_hold, held) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || held.recv());
            let error = enter_private_namespace().unwrap_err().to_string();
            assert!(error.contains("threads are running"), "{error}");
            drop(_hold);
        });
    }

    #[test]
    fn a_hundred_layers_with_long_paths_and_paths_the_option_syntax_would_cut() {
        in_namespace(|base| {
            let deep = base.join("d".repeat(180));
            let mut lower: Vec<PathBuf> =
                (0..100).map(|n| directory(&deep.join(n.to_string()), &[&format!("f{n}")])).collect();
            lower.push(directory(&base.join("a:b,c\\d"), &["odd"]));
            let upper = (directory(&base.join("up,per"), &[]), directory(&base.join("wo:rk"), &[]));
            let layers = Overlay { lower, upper: Some(upper), options: vec!["index=off".into()] };
            assert_eq!(layers.data(), None, "that does not fit into a page");
            let target = directory(&base.join("target"), &[]);
            let mounted = overlay(&layers, &target, MountFlags::empty()).unwrap();
            for n in 0..100 {
                assert!(target.join(format!("f{n}")).exists(), "layer {n}");
            }
            assert!(target.join("odd").exists());
            fs::write(target.join("new"), "x").unwrap();
            mounted.unmount().unwrap();
            assert_eq!(fs::read(base.join("up,per/new")).unwrap(), b"x");
            assert!(!target.join("f0").exists());
        });
    }

    #[test]
    fn layers_beyond_what_one_call_can_name_are_refused() {
        in_namespace(|base| {
            let lower = vec![directory(&base.join("l"), &[]); 300];
            let layers = Overlay { lower, upper: None, options: Vec::new() };
            assert_eq!(overlay(&layers, base, MountFlags::empty()).unwrap_err(), Errno::TOOBIG);
        });
    }

    /// Both ways to set attributes, whatever this kernel would choose.
    fn each_way(body: impl Fn(&Path, Attributes) + Sync) {
        for attributes in [Attributes::Syscall, Attributes::Remount] {
            in_namespace(|base| body(base, attributes));
        }
    }

    #[test]
    fn a_bind_has_its_attributes_and_the_source_keeps_its_own() {
        each_way(|base, attributes| {
            let source = directory(&base.join("source"), &["file"]);
            let device = source.join("null");
            let mode = Mode::from_raw_mode(0o666);
            rustix::fs::mknodat(CWD, &device, rustix::fs::FileType::CharacterDevice, mode, rustix::fs::makedev(1, 3))
                .unwrap();
            let target = directory(&base.join("target"), &[]);
            let tree = Detached::open(&source, Bind::Tree).unwrap();
            bind_by(&tree, open_path(&target).unwrap(), &options("rbind,ro,noexec"), attributes).unwrap();
            let refused = fs::write(target.join("new"), "").unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(Errno::ROFS.raw_os_error()));
            let refused = fs::read(target.join("null")).unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied, "a device node opened");
            use rustix::fs::StatVfsMountFlags as Has;
            let has = rustix::fs::statvfs(&target).unwrap().f_flag;
            assert!(has.contains(Has::RDONLY | Has::NOEXEC | Has::NODEV | Has::NOSUID), "{has:?}");
            fs::write(source.join("new"), "").unwrap();
            fs::read(&device).unwrap();
        });
    }

    #[test]
    fn a_file_is_bound_to_a_file_and_to_nothing_else() {
        each_way(|base, attributes| {
            let source = directory(&base.join("source"), &["file"]);
            let target = directory(&base.join("target"), &["file"]);
            let tree = Detached::open(&source.join("file"), Bind::Tree).unwrap();
            let wrong = bind_by(&tree, open_path(&target).unwrap(), &options("bind"), attributes);
            assert_eq!(wrong.unwrap_err(), Errno::INVAL);
            assert_eq!(mounts_below(base), Vec::<String>::new());
            bind_by(&tree, open_path(&target.join("file")).unwrap(), &options("bind"), attributes).unwrap();
            assert!(fs::read_to_string(target.join("file")).unwrap().ends_with("source/file"));
        });
    }

    #[test]
    fn a_tree_shows_what_is_mounted_below_and_later_mounts_only_as_a_slave() {
        each_way(|base, attributes| {
            let source = directory(&base.join("source"), &["sub/hidden", "later/x"]);
            tmpfs(open_path(&source).unwrap(), MountFlags::empty(), &[]).unwrap();
            mount_change(&source, MountPropagationFlags::SHARED).unwrap();
            directory(&source, &["sub/x", "later/x"]);
            tmpfs(open_path(&source.join("sub")).unwrap(), MountFlags::empty(), &[]).unwrap();
            directory(&source, &["sub/seen"]);
            for (words, bound, sees_sub, sees_later) in [
                ("bind", Bind::One, false, false),
                ("rbind", Bind::Tree, true, false),
                ("rbind,rslave", Bind::Tree, true, true),
            ] {
                let target = directory(&base.join(words), &[]);
                let tree = Detached::open(&source, bound).unwrap();
                bind_by(&tree, open_path(&target).unwrap(), &options(words), attributes).unwrap();
                assert_eq!(target.join("sub/seen").exists(), sees_sub, "{words}");
                tmpfs(open_path(&source.join("later")).unwrap(), MountFlags::empty(), &[]).unwrap();
                assert_eq!(target.join("later/x").exists(), !sees_later, "{words}");
                unmount(source.join("later"), UnmountFlags::empty()).unwrap();
            }
        });
    }

    #[test]
    fn read_only_takes_the_mount_and_leaves_those_inside() {
        each_way(|base, attributes| {
            let root = directory(&base.join("root"), &["volume/x"]);
            let mounted = Mounted::tmpfs(&root, &[]).unwrap();
            directory(&root, &["volume/x"]);
            tmpfs(open_path(&root.join("volume")).unwrap(), MountFlags::empty(), &[]).unwrap();
            make_read_only_by(&root, attributes).unwrap();
            assert!(fs::write(root.join("new"), "").is_err());
            fs::write(root.join("volume/new"), "").unwrap();
            let mut mounted = mounted;
            mounted.holds_others();
            mounted.unmount().unwrap();
            assert_eq!(mounts_below(base), Vec::<String>::new());
        });
    }

    #[test]
    fn a_mount_in_use_is_detached_and_said_so() {
        in_namespace(|base| {
            let target = directory(&base.join("target"), &[]);
            let mounted = Mounted::tmpfs(&target, &["size=1m".into()]).unwrap();
            let open = fs::File::create(target.join("open")).unwrap();
            assert_eq!(mounted.unmount().unwrap_err(), Errno::BUSY);
            assert_eq!(mounts_below(base), Vec::<String>::new());
            drop(open);
            drop(Mounted::tmpfs(&target, &[]).unwrap());
            assert_eq!(mounts_below(base), Vec::<String>::new());
        });
    }
}
