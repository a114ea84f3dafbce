//! Network namespaces: which one a thread makes its sockets in.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::thread::LinkNameSpaceType;

use hearth_base::error::{Error, Result};

/// `NSFS_MAGIC` of linux/magic.h: the file system namespaces are files of.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// A plain file at the path of a namespace: CNI makes the file and mounts the namespace on it, and a daemon that the
/// node's mounts do not reach sees the file.
const NOT_MOUNTED_HERE: &str = "no namespace; if it is one on the node, its mount does not reach hearthd: \
                                mount --make-rshared / on the node, then restart hearthd (hearthctl check tells whether \
                                mounts reach it)";

/// A network namespace, alive while this is.
#[derive(Debug)]
pub struct NetNs {
    fd: OwnedFd,
    /// Device and inode: no other living namespace has them.
    id: (u64, u64),
}

impl PartialEq for NetNs {
    fn eq(&self, other: &NetNs) -> bool {
        self.id == other.id
    }
}

impl NetNs {
    /// The namespace that `path` names: a file of `/proc/<pid>/ns`, or a mount of one, as CNI makes.
    ///
    /// # Errors
    /// `InvalidArgument` if there is no such file or it is not a network namespace.
    pub fn open(path: &Path) -> Result<Arc<NetNs>> {
        let wrong = |why: String| Error::InvalidArgument(format!("the network namespace {}: {why}", path.display()));
        // Should it be a FIFO, the open must not wait for a writer.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|e| wrong(format!("cannot open: {}", io::Error::from(e))))?;
        match NetNs::of_descriptor(fd).map_err(|e| wrong(e.to_string()))? {
            Ok(namespace) => Ok(Arc::new(namespace)),
            Err(kind) => Err(wrong(format!("is {kind}"))),
        }
    }

    /// The calling thread's.
    ///
    /// # Errors
    /// If procfs is not mounted.
    pub fn of_this_thread() -> io::Result<NetNs> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = rustix::fs::open("/proc/thread-self/ns/net", flags, Mode::empty())?;
        NetNs::of_descriptor(fd)?.map_err(io::Error::other)
    }

    /// The namespace, or what the file is instead.
    fn of_descriptor(fd: OwnedFd) -> io::Result<std::result::Result<NetNs, &'static str>> {
        if rustix::fs::fstatfs(&fd)?.f_type as u64 != NSFS_MAGIC {
            return Ok(Err(NOT_MOUNTED_HERE));
        }
        if kind(&fd)? != libc::CLONE_NEWNET {
            return Ok(Err("a namespace of another kind"));
        }
        let stat = rustix::fs::fstat(&fd)?;
        Ok(Ok(NetNs { fd, id: (stat.st_dev, stat.st_ino) }))
    }

    /// Whether `path` names it.
    pub fn is_at(&self, path: &Path) -> bool {
        rustix::fs::stat(path).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == self.id)
    }

    /// Moves the calling thread into it.
    ///
    /// # Errors
    /// As setns(2).
    pub fn enter(&self) -> io::Result<()> {
        Ok(rustix::thread::move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))?)
    }
}

/// `NS_GET_NSTYPE` of linux/nsfs.h. (The link in procfs says the kind, too, but of a namespace that is
/// mounted it gives the mount's path.)
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

/// The kind of a namespace, as the flag of clone(2).
fn kind(namespace: &OwnedFd) -> io::Result<libc::c_int> {
    #[allow(unsafe_code, reason = "ioctl(2)")]
    // SAFETY: this request takes no argument and returns the kind; on another file it is an error.
    match unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_NSTYPE) } {
        -1 => Err(io::Error::last_os_error()),
        kind => Ok(kind),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_network_namespace_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let cases = [
            (dir.path().join("none"), "No such file"),
            (fifo, "is no namespace"),
            (dir.path().to_path_buf(), "mount --make-rshared /"),
            (dir.path().to_path_buf(), "is no namespace"),
            ("/proc/self/ns/uts".into(), "of another kind"),
        ];
        for (path, want) in cases {
            let error = NetNs::open(&path).unwrap_err();
            assert!(matches!(&error, Error::InvalidArgument(text) if text.contains(want)), "{error}");
        }
    }

    #[test]
    fn a_mounted_namespace_is_one() {
        use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net");
        std::fs::write(&path, "").unwrap();
        std::thread::spawn(move || {
            #[allow(unsafe_code, reason = "unshare(2) of a namespace")]
            // SAFETY: the table of descriptors stays shared.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            mount_bind("/proc/thread-self/ns/net", &path).unwrap();
            let namespace = NetNs::open(&path).unwrap();
            assert_eq!(*namespace, NetNs::of_this_thread().unwrap());
            assert!(namespace.is_at(&path));
            rustix::mount::unmount(&path, rustix::mount::UnmountFlags::DETACH).unwrap();
            assert!(!namespace.is_at(&path), "a file like any other");
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_thread_enters_another_namespace_and_comes_back() {
        std::thread::spawn(|| {
            let home = NetNs::of_this_thread().unwrap();
            assert_eq!(*NetNs::open(Path::new("/proc/thread-self/ns/net")).unwrap(), home);
            // The way to a namespace of one's own, without a process to keep it.
            #[allow(unsafe_code, reason = "unshare(2) of a namespace")]
            // SAFETY: the table of descriptors stays shared.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
            let other = NetNs::of_this_thread().unwrap();
            assert_ne!(other, home);
            home.enter().unwrap();
            assert_eq!(NetNs::of_this_thread().unwrap(), home);
            other.enter().unwrap();
            assert_eq!(NetNs::of_this_thread().unwrap(), other);
        })
        .join()
        .unwrap();
    }
}
