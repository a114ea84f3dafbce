//! Processes and threads, as the kernel sees them.
#![allow(unsafe_code, reason = "no safe crate installs a handler without SA_RESTART or signals one thread")]

use std::sync::OnceLock;

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

/// The daemon's own nice value, that of its first thread.
static NICE: OnceLock<i32> = OnceLock::new();

/// How much nicer a thread is that does what nobody waits for.
const STEP_BACK: i32 = 5;

/// How much of the processors a thread gets beside others that want them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// What the daemon has, and soon after it is woken: others wait for each of its answers.
    Prompt,
    /// What the daemon has.
    Usual,
    /// About a third of that: it does what nobody waits for, but has to keep up.
    Less,
}

/// Gives the calling thread its share. A thread starts with that of the one that started it, which for a pool's may
/// be any: so every thread of a runtime says which it wants. Without the right to ask for more it keeps
/// what it has.
pub fn take_share(share: Share) {
    use rustix::process::{getpriority_process, setpriority_process};
    let own = *NICE.get_or_init(|| getpriority_process(rustix::process::getpid().into()).unwrap_or_default());
    let wanted = if share == Share::Less { own + STEP_BACK } else { own };
    // For the kernel, a thread's id is a process's here.
    if getpriority_process(None) != Ok(wanted)
        && let Err(error) = setpriority_process(Some(rustix::thread::gettid()), wanted)
    {
        tracing::debug!(%error, "a thread keeps its priority");
    }
    if share == Share::Prompt {
        come_soon();
    }
}

/// How long a thread that others wait for may run before the kernel looks whether another should, in nanoseconds: the
/// least there is (sched(7): 0.1 ms).
const SHORT_SLICE_NS: u64 = 100_000;

/// Has the kernel give the calling thread a processor soon after it is woken, also where others compute on all of them;
/// how much it gets in all does not change. By itself the kernel lets who runs come to the end of its slice, which is
/// 1.4 ms on two cores and 2.8 ms on eight; who has a shorter one goes first (EEVDF, from Linux 6.12 on; an older kernel
/// takes no notice). Threads and processes that it starts have the usual slice again.
fn come_soon() {
    let Some(mut attributes) = scheduling() else { return };
    // What this is about; nothing is to be taken from a thread that somebody has given another policy.
    if attributes.sched_policy != libc::SCHED_OTHER as u32 {
        return;
    }
    attributes.sched_runtime = SHORT_SLICE_NS;
    attributes.sched_flags |= libc::SCHED_FLAG_RESET_ON_FORK as u64;
    // SAFETY: 0 is the calling thread; the kernel reads as many bytes as the structure says it has.
    if unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) } != 0 {
        let error = std::io::Error::last_os_error();
        tracing::debug!(%error, "a thread keeps its slice");
    }
}

/// How the calling thread is scheduled, if the kernel tells.
fn scheduling() -> Option<libc::sched_attr> {
    let size = size_of::<libc::sched_attr>() as u32;
    // SAFETY: an all-zero sched_attr is a valid one.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    // SAFETY: 0 is the calling thread; the kernel writes no more than `size` bytes.
    let told = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) } == 0;
    attributes.size = size;
    told.then_some(attributes)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_soon_passes_it_on_to_nobody() {
        let slice = || scheduling().map(|attributes| attributes.sched_runtime);
        let thread = std::thread::spawn(move || {
            let before = slice();
            take_share(Share::Prompt);
            let child = std::thread::spawn(slice).join().unwrap();
            (before, slice(), child)
        });
        let (before, after, child) = thread.join().unwrap();
        // A kernel before 6.12 has no slices to tell of.
        if before.is_none_or(|slice| slice == 0) {
            return;
        }
        assert_eq!((after, child), (Some(SHORT_SLICE_NS), before));
    }

    #[test]
    fn a_thread_steps_back_and_comes_forward_again() {
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let thread = std::thread::spawn(move || {
            let own = nice();
            take_share(Share::Less);
            // What it starts is not to have inherited that.
            let inherited = std::thread::spawn(move || {
                let inherited = nice();
                take_share(Share::Usual);
                (inherited, nice())
            });
            (own, nice(), inherited.join().unwrap())
        });
        let (own, less, (inherited, usual)) = thread.join().unwrap();
        assert_eq!((less, inherited, usual), (own + STEP_BACK, own + STEP_BACK, own));
    }
}
