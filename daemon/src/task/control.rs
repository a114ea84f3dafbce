//! Pause, resume and new limits of a task that lives.
//!
//! None of them waits for the guest: a pause is a flag that it meets at its next tick or before its next
//! poll, and limits are read where they apply.
//!
//! An update changes what it names and leaves the rest. A memory limit below what the guest holds is
//! accepted, since WebAssembly cannot give memory back: it refuses every growth from then on. (A cgroup
//! would refuse such a limit; refusing it here would leave the guest free to grow further.)

use crate::bundle::ResourceUpdate;
use crate::error::{Error, Result};
use crate::events::Event;
use crate::task::state::{Input, Role, State};
use crate::task::{Pause, Task};
use crate::wasm::scheduler::CpuLimits;

impl Task {
    /// Stops the guest until it is resumed.
    ///
    /// # Errors
    /// `FailedPrecondition` unless it runs; `ResourceExhausted` without room for the events.
    pub fn pause(&self) -> Result<()> {
        // Before the lock: room is given back if the state refuses.
        let events = self.events.reserve_pause()?;
        let mut inner = self.inner.lock();
        inner.state.apply(Input::Pause, Role::Init)?;
        self.guest.pause();
        self.gauge(State::Running, State::Paused);
        // Under the lock, so that neither a resume nor the end can be told before it.
        events.publish(&self.namespace, Event::Paused { container_id: self.id.clone() });
        inner.pause = Some(Pause { events, killed_with: None });
        Ok(())
    }

    /// Lets a paused guest go on; or end, if a fatal signal came meanwhile.
    ///
    /// # Errors
    /// `FailedPrecondition` unless it is paused.
    pub fn resume(&self) -> Result<()> {
        let mut inner = self.inner.lock();
        inner.state.apply(Input::Resume, Role::Init)?;
        self.gauge(State::Paused, State::Running);
        if let Some(pause) = inner.pause.take() {
            pause.events.publish(&self.namespace, Event::Resumed { container_id: self.id.clone() });
            if let Some(status) = pause.killed_with {
                inner.killed_with.get_or_insert(status);
                self.guest.kill();
            }
        }
        self.guest.resume();
        Ok(())
    }

    /// Changes limits.
    ///
    /// # Errors
    /// `InvalidArgument` naming the field, `FailedPrecondition` if it has ended. Then nothing has changed.
    pub fn update(&self, update: &ResourceUpdate) -> Result<()> {
        let mut inner = self.inner.lock();
        if let State::Stopped(_) = inner.state {
            return Err(Error::FailedPrecondition("the process has ended; its limits are of no use".into()));
        }
        let cpu = update.cpu(inner.cpu);
        let limits = CpuLimits::of(&cpu)?;
        inner.cpu = cpu;
        self.guest.set_cpu(limits);
        if let Some(limit) = update.memory_limit {
            self.memory.set_limit(limit.unwrap_or(u64::MAX).min(self.memory_limit_max));
        }
        Ok(())
    }
}
