//! Processes and threads, as the kernel sees them.

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
