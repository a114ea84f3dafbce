//! Copies of a process with one thread, by fork(2), and their ends.
//!
//! fork(2) copies the calling thread only. What another thread of the process was doing at that moment would stay half
//! done in the copy for ever: a lock taken, an allocator's list half changed. So [`fork`] refuses a process that has more
//! than one thread. It is fork(3) of the C library and no bare clone(2), since libraries rely on its handlers: wasmtime, for
//! one, opens a file of procfs anew in the child that describes the parent's memory otherwise.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{Pid, WaitOptions, WaitStatus};

/// Which of the two processes returns from [`fork`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forked {
    /// The new process.
    Child,
    /// The old one; the new one's id.
    Parent(Pid),
}

/// The end of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChildEnd {
    /// Its id, which may be used again from now on.
    pub pid: Pid,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
}

/// The first descriptor that [`crate::spawn::spawn`] hands to a program.
const FIRST: RawFd = 3;

/// The descriptors that this program was started with by [`crate::spawn::spawn`]. To be called first in its main function,
/// once.
///
/// # Panics
/// At a second call: the values own the descriptors.
#[allow(unsafe_code, reason = "the descriptors this process was started with")]
pub fn inherited<const COUNT: usize>() -> [OwnedFd; COUNT] {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    assert!(!TAKEN.swap(true, Ordering::Relaxed), "the inherited descriptors were taken before");
    // SAFETY: nothing else in this process, which has only begun, knows these descriptors, and this is their only owner.
    std::array::from_fn(|n| unsafe { OwnedFd::from_raw_fd(FIRST + n as RawFd) })
}

/// Makes a copy of this process, which has one thread.
///
/// # Errors
/// If the process has more than one thread; as fork(2).
#[allow(unsafe_code, reason = "fork(2) has no safe form")]
pub fn fork() -> io::Result<Forked> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other(format!("{threads} threads are running; a copy would have one of them only")));
    }
    // SAFETY: there is no other thread, so that the copy is as whole as this process is; it owns copies of the
    // descriptors, as every value in it says.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => Pid::from_raw(pid).map(Forked::Parent).ok_or_else(|| io::Error::other("fork gave no process id")),
    }
}

/// Reaps a child that has ended; `None` if none has.
///
/// # Errors
/// As waitpid(2), but for `ECHILD`.
pub fn reap() -> io::Result<Option<ChildEnd>> {
    let of = |(pid, status): (Pid, WaitStatus)| ChildEnd { pid, signal: status.terminating_signal() };
    match rustix::io::retry_on_intr(|| rustix::process::wait(WaitOptions::NOHANG)) {
        Err(rustix::io::Errno::CHILD) => Ok(None),
        ended => Ok(ended?.map(of)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_more_threads_is_not_copied() {
        // The test itself runs beside the harness's first thread.
        let error = fork().unwrap_err();
        assert!(error.to_string().contains("threads are running"), "{error}");
    }
}
