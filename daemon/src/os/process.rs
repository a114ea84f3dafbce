//! Processes and threads, as the kernel sees them.
#![allow(unsafe_code, reason = "no safe crate installs a handler without SA_RESTART or signals one thread")]

use rustix::process::Pid;

/// Whether a thread of ours sleeps in the kernel right now: in a system call that waits, rather than
/// running or waiting for a core. `false` if the thread is gone.
pub fn thread_sleeps(thread: Pid) -> bool {
    // The state is the letter after the command in parentheses (proc_pid_stat(5)): S and D sleep.
    let path = format!("/proc/self/task/{}/stat", thread.as_raw_nonzero());
    std::fs::read_to_string(path)
        .ok()
        .and_then(|stat| stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()))
        .is_some_and(|state| matches!(state, 'S' | 'D'))
}

/// Raises this process's limit of open files to what the kernel allows it: each task holds a few.
pub fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: now.maximum, maximum: now.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, wanted) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// The signal that makes a system call of a worker's come back with `EINTR`. wasmtime uses SIGSEGV,
/// SIGILL, SIGFPE and SIGBUS, tokio SIGTERM, SIGINT and SIGCHLD.
const INTERRUPT: libc::c_int = libc::SIGUSR1;

/// Installs the handler for [`interrupt_thread`]. Doing it again changes nothing.
///
/// # Errors
/// What sigaction(2) says.
pub fn install_interrupt() -> std::io::Result<()> {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: an all-zero sigaction is a valid one: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // Without SA_RESTART, which is the point: the call under way must fail. On the alternate stack that
    // wasmtime gives every thread that runs guests, since a guest's stack may be nearly used up.
    action.sa_flags = libc::SA_ONSTACK;
    action.sa_sigaction = nothing as *const () as libc::sighandler_t;
    // SAFETY: the handler does nothing, so it may run at any point of any thread; the pointers are
    // valid for the call.
    let result = unsafe { libc::sigaction(INTERRUPT, &action, std::ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Makes the system call that a thread of this process sleeps in fail with `EINTR`.
pub fn interrupt_thread(thread: Pid) {
    // SAFETY: tgkill takes numbers only; a thread that is gone makes it fail with ESRCH.
    unsafe {
        libc::syscall(libc::SYS_tgkill, libc::getpid(), thread.as_raw_nonzero().get(), INTERRUPT);
    }
}
