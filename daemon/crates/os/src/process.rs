//! Threads of this process: whether one sleeps in a system call, its CPU time, its share of the CPU time and its latency,
//! and the interruption of its system call. And the process's limit of descriptors.
#![allow(unsafe_code, reason = "no safe crate installs a handler without SA_RESTART or signals one thread")]

use std::sync::OnceLock;

use rustix::process::Pid;

use hearth_base::proc_stat::ProcStat;

/// Whether a thread of this process sleeps in the kernel right now: it waits in a system call, rather than running or
/// waiting for a core. `false` if the thread is gone.
pub fn thread_sleeps(thread: Pid) -> bool {
    let state = ProcStat::of_thread(thread.as_raw_nonzero().get()).ok().and_then(|stat| stat.state());
    state.is_some_and(|state| matches!(state, 'S' | 'D'))
}

/// The CPU time of a thread of this process so far, in nanoseconds; `None` if the thread is gone, or the kernel has no
/// such statistics (`/proc/PID/schedstat`, Documentation/scheduler/sched-stats.rst).
pub fn thread_cpu_ns(thread: Pid) -> Option<u64> {
    let path = format!("/proc/self/task/{}/schedstat", thread.as_raw_nonzero().get());
    std::fs::read_to_string(path).ok()?.split_whitespace().next()?.parse().ok()
}

/// Raises the soft limit of this process's open files to the hard limit: each task needs a few.
pub fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: now.maximum, maximum: now.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, wanted) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// The daemon's own nice value: that of its first thread.
static NICE: OnceLock<i32> = OnceLock::new();

/// The amount by which a thread is nicer whose work no caller waits for.
const STEP_BACK: i32 = 5;

/// A thread's share of the CPU time when other threads compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// The daemon's share, and a core soon after each wake-up: callers wait for each of its answers.
    Prompt,
    /// The daemon's share.
    Usual,
    /// About a third of the daemon's share: no caller waits for its work, but it has to keep up.
    Less,
    /// About a seventieth of the daemon's share: a thread that has had more than its turn.
    Least,
}

/// The highest nice value (sched(7)).
const NICE_MAX: i32 = 19;

/// Gives another thread of this process its share; see [`take_share`].
pub fn give_share(thread: Pid, share: Share) {
    let own = NICE.get().copied().unwrap_or_default();
    // setpriority(2) takes a thread's id as a process's.
    if let Err(error) = rustix::process::setpriority_process(Some(thread), nice(own, share)) {
        tracing::debug!(%error, "a thread keeps its priority");
    }
}

fn nice(own: i32, share: Share) -> i32 {
    match share {
        Share::Prompt | Share::Usual => own,
        Share::Less => own + STEP_BACK,
        Share::Least => NICE_MAX,
    }
}

/// Gives the calling thread its share. A thread starts with the share of the thread that started it, which in a pool
/// may be any: so every thread of a runtime calls this. Without the right to a higher share it keeps its own.
pub fn take_share(share: Share) {
    use rustix::process::{getpriority_process, setpriority_process};
    let own = *NICE.get_or_init(|| getpriority_process(rustix::process::getpid().into()).unwrap_or_default());
    let wanted = nice(own, share);
    // setpriority(2) takes a thread's id as a process's.
    if getpriority_process(None) != Ok(wanted)
        && let Err(error) = setpriority_process(Some(rustix::thread::gettid()), wanted)
    {
        tracing::debug!(%error, "a thread keeps its priority");
    }
    if share == Share::Prompt {
        shorten_slice();
    }
}

/// The slice of a thread for whose answers callers wait, in nanoseconds: the shortest that the kernel has (sched(7):
/// 0.1 ms).
const SHORT_SLICE_NS: u64 = 100_000;

/// Has the kernel run the calling thread soon after each wake-up, also while other threads compute on all cores. Its
/// share of the CPU time does not change. By default a thread that runs comes to the end of its slice first, which is
/// 1.4 ms on two cores and 2.8 ms on eight; a thread with a shorter slice preempts it (EEVDF, from Linux 6.12 on; an
/// older kernel ignores the slice). Threads and processes that the calling thread starts have the usual slice.
fn shorten_slice() {
    let Some(mut attributes) = scheduling() else { return };
    // The slice belongs to this policy; a thread to which an operator gave another policy keeps it.
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

/// The scheduling attributes of the calling thread, if the kernel tells them.
fn scheduling() -> Option<libc::sched_attr> {
    let size = size_of::<libc::sched_attr>() as u32;
    // SAFETY: an all-zero sched_attr is a valid one.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    // SAFETY: 0 is the calling thread; the kernel writes no more than `size` bytes.
    let told = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) } == 0;
    attributes.size = size;
    told.then_some(attributes)
}

/// The signal that makes a system call of a worker thread return `EINTR`. wasmtime uses SIGSEGV,
/// SIGILL, SIGFPE and SIGBUS, tokio SIGTERM, SIGINT and SIGCHLD.
const INTERRUPT: libc::c_int = libc::SIGUSR1;

/// Installs the handler for [`interrupt_thread`]. A second call changes nothing.
///
/// # Errors
/// As sigaction(2).
pub fn install_interrupt() -> std::io::Result<()> {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: an all-zero sigaction is a valid one: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // Without SA_RESTART, so that the call under way fails. On the alternate stack that
    // wasmtime gives every thread that runs guests, since a guest's stack may be nearly used up.
    action.sa_flags = libc::SA_ONSTACK;
    action.sa_sigaction = nothing as *const () as libc::sighandler_t;
    // SAFETY: the handler does nothing, so it may run at any point of any thread; the pointers are
    // valid for the call.
    let result = unsafe { libc::sigaction(INTERRUPT, &action, std::ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Makes the system call in which a thread of this process sleeps fail with `EINTR`.
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
    fn a_short_slice_is_not_inherited() {
        let slice = || scheduling().map(|attributes| attributes.sched_runtime);
        let thread = std::thread::spawn(move || {
            let before = slice();
            take_share(Share::Prompt);
            let child = std::thread::spawn(slice).join().unwrap();
            (before, slice(), child)
        });
        let (before, after, child) = thread.join().unwrap();
        // A kernel before 6.12 reports no slice.
        if before.is_none_or(|slice| slice == 0) {
            return;
        }
        assert_eq!((after, child), (Some(SHORT_SLICE_NS), before));
    }

    #[test]
    fn another_threads_cpu_time_is_read_and_its_share_changed() {
        let (tell, told) = std::sync::mpsc::channel();
        let (release, released) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let began = std::time::Instant::now();
            while began.elapsed().as_millis() < 5 {}
            tell.send(rustix::thread::gettid()).unwrap();
            released.recv().unwrap();
            let least = rustix::process::getpriority_process(None).unwrap();
            take_share(Share::Usual);
            (least, rustix::process::getpriority_process(None).unwrap())
        });
        let id = told.recv().unwrap();
        assert!(thread_cpu_ns(id).is_none_or(|ns| ns > 0));
        take_share(Share::Usual);
        give_share(id, Share::Least);
        release.send(()).unwrap();
        let own = rustix::process::getpriority_process(None).unwrap();
        assert_eq!(thread.join().unwrap(), (NICE_MAX, own));
    }

    #[test]
    fn a_thread_steps_back_and_comes_forward_again() {
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let thread = std::thread::spawn(move || {
            let own = nice();
            take_share(Share::Less);
            // A thread that it starts inherits the nice value, and takes its own share.
            let inherited = std::thread::spawn(move || {
                let inherited = nice();
                take_share(Share::Usual);
                (inherited, nice())
            });
            (own, nice(), inherited.join().unwrap())
        });
        let (own, less, (inherited, usual)) = thread.join().unwrap();
        assert!(less < NICE_MAX);
        assert_eq!((less, inherited, usual), (own + STEP_BACK, own + STEP_BACK, own));
    }
}
