//! A process on the private machine, its signals and its exit status.
//!
//! It is started through `nsenter`, which stays outside and passes the status on: the process is its only child.
//! Dropping a [`Process`] kills and reaps both.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::wait::{SHORT, within};

/// A running process on the machine.
#[derive(Debug)]
pub struct Process {
    name: String,
    nsenter: Child,
}

impl Process {
    /// Starts `command`, which must be one of [`crate::machine::Machine::command`].
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(name: &str, command: &mut Command) -> Self {
        let nsenter = command.spawn().unwrap_or_else(|error| panic!("cannot start {name} ({command:?}): {error}"));
        Self { name: name.to_owned(), nsenter }
    }

    /// The outer process, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.nsenter
    }

    /// The pid of the process as the test sees it; `None` if it has ended.
    pub fn pid(&self) -> Option<i32> {
        within(SHORT, || {
            if !is_alive(self.nsenter.id() as i32) {
                return Some(None);
            }
            child_of(self.nsenter.id() as i32).map(Some)
        })
        .flatten()
    }

    /// Sends a signal; nothing happens if the process has ended.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid().and_then(Pid::from_raw) {
            // ESRCH: it ended before the signal.
            let _ = kill_process(pid, signal);
        }
    }

    /// The status, if it has ended.
    pub fn status(&mut self) -> Option<ExitStatus> {
        self.nsenter.try_wait().expect("waiting for a child of ours")
    }

    /// Waits for the end; `None` when `deadline` has passed.
    pub fn wait(&mut self, deadline: Duration) -> Option<ExitStatus> {
        wait_child(&mut self.nsenter, deadline)
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Panics
    /// If it has not ended after [`SHORT`].
    pub fn stop(mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait(SHORT).unwrap_or_else(|| panic!("{} did not end within {SHORT:?} of SIGTERM", self.name))
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        while self.status().is_none() {
            self.signal(Signal::KILL);
            self.wait(Duration::from_secs(1));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// Waits for a child of ours; `None` when `deadline` has passed.
pub fn wait_child(child: &mut Child, deadline: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + deadline;
    let pid = Pid::from_child(child);
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else {
        return child.try_wait().expect("waiting for a child of ours");
    };
    loop {
        if let Some(status) = child.try_wait().expect("waiting for a child of ours") {
            return Some(status);
        }
        let left = end.checked_duration_since(Instant::now())?;
        let left = Timespec::try_from(left).expect("deadlines are short");
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        // EINTR: poll again.
        let _ = poll(&mut fds, Some(&left));
    }
}

/// The exit code as a shell shows it: the code, or 128 + the signal.
pub fn code(status: ExitStatus) -> i32 {
    status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .expect("a process that ended has a code or a signal")
}

/// The processes of the machine the tests run on: pid and parent.
pub fn all() -> Vec<(i32, i32)> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, stat(pid)?.1)))
        .collect()
}

/// Whether a process exists and is no zombie.
pub fn is_alive(pid: i32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != 'Z' && state != 'X')
}

fn child_of(parent: i32) -> Option<i32> {
    all().into_iter().find_map(|(pid, ppid)| (ppid == parent).then_some(pid))
}

/// State and parent, from `/proc/PID/stat` (the name, in parentheses, may contain anything).
fn stat(pid: i32) -> Option<(char, i32)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text[text.rfind(')')? + 1..].split_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    Some((state, parent))
}
