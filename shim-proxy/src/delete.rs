//! `delete`: cleans up after a task that is gone, or whose daemon is gone.
//!
//! containerd runs this after every task, also after one that was deleted in good order, and before a dead daemon may
//! be up again. So it does not ask the daemon and can be run any number of times. It leaves the bundle and the shared
//! task socket alone: containerd removes the bundle, the daemon the socket.
//!
//! Fails only if the bundle's path makes no sense. A rootfs that cannot be unmounted is a warning: containerd then
//! tries to unmount it and reports the result, which it would not do after an error.

use std::path::Path;
use std::time::SystemTime;

use hearth_shim::natives;
use prost::Message;
use prost_types::Timestamp;
use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use hearth_shim::args::{Bundle, Flags};
use hearth_shim::failure::{Failure, Result};

/// The exit status of a task whose end was not observed: 128 + SIGKILL, as other shims report it.
const UNSEEN_EXIT_STATUS: u32 = 137;

/// The most mounts on top of each other that are unmounted. More of them mean that another process keeps mounting.
const MAX_STACKED_MOUNTS: u32 = 64;

/// `containerd.task.v2.DeleteResponse`, the same as v3's.
#[derive(Clone, PartialEq, Message)]
struct DeleteResponse {
    #[prost(uint32, tag = "1")]
    pid: u32,
    #[prost(uint32, tag = "2")]
    exit_status: u32,
    #[prost(message, optional, tag = "3")]
    exited_at: Option<Timestamp>,
}

/// The result of `delete`.
#[derive(Debug)]
pub struct Deleted {
    /// The bytes for stdout.
    pub answer: Vec<u8>,
    /// A warning for containerd's log.
    pub warning: Option<Failure>,
}

/// Ends the native containers of a dead daemon, unmounts the bundle's rootfs and answers containerd's `delete`.
///
/// # Errors
/// If the bundle's path makes no sense. A bundle that is gone is none.
pub fn delete(flags: &Flags) -> Result<Deleted> {
    let warning = match flags.bundle()? {
        Bundle::At(bundle) => {
            natives::clean(&bundle, &flags.namespace, &flags.address);
            let rootfs = bundle.join("rootfs");
            unmount_all(&rootfs)
                .err()
                .map(|e| Failure::new(format!("cannot unmount {}: {e}; unmount it with 'umount -l'", rootfs.display())))
        }
        Bundle::Gone => None,
    };
    let response =
        DeleteResponse { pid: 0, exit_status: UNSEEN_EXIT_STATUS, exited_at: Some(SystemTime::now().into()) };
    Ok(Deleted { answer: response.encode_to_vec(), warning })
}

/// Unmounts all mounts on `path` and below it. The unmount is lazy, as a guest of a daemon that hangs may still use
/// them. A symbolic link at `path` is not followed.
fn unmount_all(path: &Path) -> rustix::io::Result<()> {
    let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    for _ in 0..MAX_STACKED_MOUNTS {
        match rustix::mount::unmount(path, flags) {
            Ok(()) => {}
            // Not a mount point, not there, or not even its parent a directory.
            Err(Errno::INVAL | Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            // Without privilege the kernel returns EPERM before it looks for a mount.
            Err(Errno::PERM) if !is_mount_point(path) => return Ok(()),
            Err(e) => return Err(e),
        }
    }
    Err(Errno::BUSY)
}

fn is_mount_point(path: &Path) -> bool {
    rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty())
        .is_ok_and(|stat| stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_a_delete_response() {
        let now = Timestamp { seconds: 300, nanos: 1 };
        let response = DeleteResponse { pid: 0, exit_status: UNSEEN_EXIT_STATUS, exited_at: Some(now) };
        // Field 2 varint 137; field 3 a message of 5 bytes: field 1 varint 300, field 2 varint 1.
        assert_eq!(response.encode_to_vec(), b"\x10\x89\x01\x1a\x05\x08\xac\x02\x10\x01");
    }

    #[test]
    fn a_path_without_a_mount_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        for path in [dir.path(), &dir.path().join("absent"), &file.join("below")] {
            assert_eq!(unmount_all(path), Ok(()), "{path:?}");
        }
        assert!(!is_mount_point(dir.path()));
        assert!(is_mount_point(Path::new("/proc")));
    }
}
