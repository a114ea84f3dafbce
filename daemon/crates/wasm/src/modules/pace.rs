//! The priority of a compile: the daemon's own if a start waits for it, the lowest if not; it is raised when a start
//! begins to wait. Also the pods that it is for.
//!
//! Failure path: a kernel that does not change a priority costs time and nothing else.

use std::sync::Arc;

use parking_lot::Mutex;
use rustix::process::{Pid, getpid, getpriority_process, setpriority_pgrp};
use tokio::sync::Notify;

use super::turns::Owner;

/// Owners of one compile that are remembered: more of them add nothing to its place in the queue.
const OWNERS_MAX: usize = 64;

/// The urgency of a compile: a start waits for it, or none does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// A start waits.
    Start,
    /// No start waits yet.
    Ahead,
}

/// The urgency of one compile, and its process.
pub struct Pace {
    state: Mutex<State>,
    hurried: Notify,
}

struct State {
    urgency: Urgency,
    /// The process, which leads a group of its own, while it is there.
    process: Option<Pid>,
    owners: Vec<Owner>,
}

impl Pace {
    /// Of a compile for these owners that has not begun.
    pub fn new(urgency: Urgency, owners: Vec<Owner>) -> Arc<Pace> {
        let state = State { urgency, process: None, owners };
        Arc::new(Pace { state: Mutex::new(state), hurried: Notify::new() })
    }

    /// The compile is also for the owners of `other`, and as urgent.
    pub fn join(&self, other: &Pace) {
        if std::ptr::eq(self, other) {
            return;
        }
        let (theirs, is_hurried) = {
            let other = other.state.lock();
            (other.owners.clone(), other.urgency == Urgency::Start)
        };
        {
            let owners = &mut self.state.lock().owners;
            for owner in theirs {
                if owners.len() < OWNERS_MAX && !owners.contains(&owner) {
                    owners.push(owner);
                }
            }
        }
        if is_hurried {
            self.hurry();
        }
    }

    /// Those that it is for.
    pub fn owners(&self) -> Vec<Owner> {
        self.state.lock().owners.clone()
    }

    /// A start waits for it now.
    pub fn hurry(&self) {
        let mut state = self.state.lock();
        if state.urgency == Urgency::Start {
            return;
        }
        state.urgency = Urgency::Start;
        if let Some(process) = state.process {
            set(process, own());
        }
        drop(state);
        self.hurried.notify_waiters();
    }

    /// Whether a start waits for it.
    pub fn is_hurried(&self) -> bool {
        self.state.lock().urgency == Urgency::Start
    }

    /// Returns once a start waits for it.
    pub async fn wait_hurried(&self) {
        loop {
            let hurried = self.hurried.notified();
            tokio::pin!(hurried);
            // Enlisted before the look, so that a change in between is not missed.
            hurried.as_mut().enable();
            if self.is_hurried() {
                return;
            }
            hurried.await;
        }
    }

    /// The process has begun; `nice`: its nice value while no start waits.
    pub(super) fn begun(&self, process: Pid, nice: i32) {
        let mut state = self.state.lock();
        state.process = Some(process);
        if state.urgency == Urgency::Ahead {
            set(process, nice.max(own()));
        }
    }

    /// The process is about to be waited for: afterwards its id may be reused.
    pub(super) fn ends(&self) {
        self.state.lock().process = None;
    }
}

/// The daemon's own nice value.
fn own() -> i32 {
    getpriority_process(Some(getpid())).unwrap_or_default()
}

/// For all of its threads, and those to come.
fn set(group: Pid, nice: i32) {
    if let Err(error) = setpriority_pgrp(Some(group), nice) {
        tracing::debug!(%error, "a compile keeps its priority");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use rustix::process::getpriority_pgrp;

    use super::*;

    #[test]
    fn a_compile_is_slow_until_somebody_waits_for_it() {
        let mut child = Command::new("sleep").arg("1000").process_group(0).spawn().unwrap();
        let pid = Pid::from_child(&child);
        let nice = || getpriority_pgrp(Some(pid)).unwrap();
        let pace = Pace::new(Urgency::Ahead, Vec::new());
        pace.begun(pid, 19);
        assert_eq!(nice(), 19);
        pace.hurry();
        assert_eq!(nice(), own());
        pace.ends();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn who_waits_in_the_queue_learns_that_it_is_hurried() {
        let pace = Pace::new(Urgency::Ahead, Vec::new());
        let waiting = tokio::spawn({
            let pace = pace.clone();
            async move { pace.wait_hurried().await }
        });
        tokio::task::yield_now().await;
        pace.hurry();
        waiting.await.unwrap();
        pace.wait_hurried().await;
    }
}
