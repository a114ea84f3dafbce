//! Kill, Pause and Resume of a process.
//!
//! None of them waits for a guest: each sets flags that a guest meets at its next tick or before its next poll. The
//! process decides, under its own lock; then it tells the guests. A pause holds for all processes of a task, as a
//! freezer of the kernel does; the state of the init is the state of the task.
//!
//! A fatal signal to an init also ends the execs and the requests of the task. They are told at once, from the
//! thread of the call: if every worker is blocked in system calls of these guests, no worker is free to drop the
//! init's guest, and the scheduler interrupts the blocked workers only for guests that are marked as killed.

use std::sync::Arc;

use hearth_base::error::Result;
use hearth_containerd::events::Event;

use super::Process;
use super::lifecycle::Transition;
use super::state::{Effect, Input, Role, State};

/// The signals that drain a service (signal(7)): SIGINT and SIGTERM.
const DRAINS: [u32; 2] = [2, 15];

impl Process {
    /// Sends a signal.
    ///
    /// # Errors
    /// `NotFound` if the process has ended, `InvalidArgument` if there is no such signal.
    pub fn kill(self: &Arc<Self>, signal: u32) -> Result<()> {
        let Transition { before, effect } = {
            let mut inner = self.inner.lock();
            // A service handles these: it ends once the requests under way have ended.
            if DRAINS.contains(&signal)
                && matches!(inner.lifecycle.state(), State::Running | State::Paused)
                && let Some(requests) = self.requests()
            {
                drop(inner);
                requests.drain();
                return Ok(());
            }
            inner.lifecycle.apply(Input::Kill(signal), self.role)?
        };
        match effect {
            Effect::Interrupt(_) => self.kill_guests(),
            Effect::Finish(status) => self.finish(before, status),
            Effect::None
            | Effect::Launch
            | Effect::AnnounceStart
            | Effect::InterruptLater(_)
            | Effect::Freeze
            | Effect::Thaw
            | Effect::Remove(_) => {}
        }
        Ok(())
    }

    /// Marks the guest as killed; with the guest of an init also the guests of its execs and requests.
    fn kill_guests(&self) {
        self.guest.kill();
        if self.role == Role::Init {
            self.execs.end_running();
            if let Some(requests) = self.requests() {
                requests.kill_all();
            }
        }
    }

    /// Stops the guests of the task until they are resumed. Only for an init.
    ///
    /// # Errors
    /// `FailedPrecondition` unless it runs; `ResourceExhausted` without room for the events.
    pub fn pause(&self) -> Result<()> {
        // Before the lock: the room is given back if the state refuses.
        let events = self.events.reserve_pause()?;
        let mut inner = self.inner.lock();
        let events = inner.lifecycle.pause(events, self.role)?;
        self.guest.pause();
        self.gauge(State::Running, State::Paused);
        // Under the lock, so that neither a resume nor the end can be told before it.
        let container_id = self.container.id.clone();
        events.publish(&self.container.namespace, Event::Paused { container_id });
        drop(inner);
        self.execs.pause();
        Ok(())
    }

    /// Lets paused guests go on; or end, if a fatal signal came meanwhile. Only for an init.
    ///
    /// # Errors
    /// `FailedPrecondition` unless it is paused.
    pub fn resume(&self) -> Result<()> {
        let mut inner = self.inner.lock();
        let resumed = inner.lifecycle.resume(self.role)?;
        self.gauge(State::Paused, State::Running);
        if let Some(events) = resumed.events {
            let container_id = self.container.id.clone();
            events.publish(&self.container.namespace, Event::Resumed { container_id });
        }
        if resumed.kill {
            self.guest.kill();
        }
        self.guest.resume();
        drop(inner);
        if resumed.kill {
            self.kill_guests();
        }
        self.execs.resume();
        if let Some(requests) = self.requests() {
            requests.wake();
        }
        Ok(())
    }
}
