//! Pause, resume and new limits of a task that lives.
//!
//! None of them waits for the guests: a pause is a flag that each meets at its next tick or before its next
//! poll, and limits are read where they apply. A pause holds for all processes of the task, as a freezer
//! does; the init's state is the task's.
//!
//! An update changes what it names and leaves the rest. A memory limit below what the guests hold is
//! accepted, since WebAssembly cannot give memory back: it refuses every growth from then on. (A cgroup
//! would refuse such a limit; refusing it here would leave the guests free to grow further.)

use crate::task::Task;
use crate::task::process::Pause;
use crate::task::state::{Input, Role, State};
use hearth_base::bundle::ResourceUpdate;
use hearth_base::error::{Error, Result};
use hearth_containerd::events::Event;
use hearth_wasm::scheduler::CpuLimits;

impl Task {
    /// Stops the guests until they are resumed.
    ///
    /// # Errors
    /// `FailedPrecondition` unless it runs; `ResourceExhausted` without room for the events.
    pub fn pause(&self) -> Result<()> {
        let (container, init) = (&self.container, &self.init);
        // Before the lock: room is given back if the state refuses.
        let events = init.events.reserve_pause()?;
        let mut inner = init.inner.lock();
        inner.state.apply(Input::Pause, Role::Init)?;
        init.guest.pause();
        init.gauge(State::Running, State::Paused);
        // Under the lock, so that neither a resume nor the end can be told before it.
        events.publish(&container.namespace, Event::Paused { container_id: container.id.clone() });
        inner.pause = Some(Pause { events, killed_with: None });
        drop(inner);
        container.execs.pause();
        Ok(())
    }

    /// Lets paused guests go on; or end, if a fatal signal came meanwhile.
    ///
    /// # Errors
    /// `FailedPrecondition` unless it is paused.
    pub fn resume(&self) -> Result<()> {
        let (container, init) = (&self.container, &self.init);
        let mut inner = init.inner.lock();
        inner.state.apply(Input::Resume, Role::Init)?;
        init.gauge(State::Paused, State::Running);
        if let Some(pause) = inner.pause.take() {
            pause.events.publish(&container.namespace, Event::Resumed { container_id: container.id.clone() });
            if let Some(status) = pause.killed_with {
                inner.killed_with.get_or_insert(status);
                init.guest.kill();
            }
        }
        init.guest.resume();
        drop(inner);
        container.execs.resume();
        if let Some(requests) = &container.requests {
            requests.wake();
        }
        Ok(())
    }

    /// Changes limits.
    ///
    /// # Errors
    /// `InvalidArgument` naming the field, `FailedPrecondition` if it has ended. Then nothing has changed.
    pub fn update(&self, update: &ResourceUpdate) -> Result<()> {
        if let State::Stopped(_) = self.init.snapshot().state {
            return Err(Error::FailedPrecondition("the process has ended; its limits are of no use".into()));
        }
        let container = &self.container;
        {
            let mut cpu = container.cpu.lock();
            let changed = update.cpu(*cpu);
            let limits = CpuLimits::of(&changed)?;
            *cpu = changed;
            self.init.guest.set_cpu(limits);
            // They have their init's.
            container.execs.wake();
            if let Some(requests) = &container.requests {
                requests.wake();
            }
        }
        if let Some(limit) = update.memory_limit {
            container.memory.set_limit(limit.unwrap_or(u64::MAX).min(container.memory_limit_max));
        }
        Ok(())
    }
}
