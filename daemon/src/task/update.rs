//! New limits of a task that lives: the Update call.
//!
//! An update changes what it names and leaves the rest. Limits are read where they apply; no guest is waited for. A
//! memory limit below what the guests hold is accepted, since WebAssembly cannot give memory back: it refuses every
//! growth from then on. (A cgroup would refuse such a limit; a refusal here would leave the guests free to grow.)

use crate::task::Task;
use crate::task::process::state::State;
use crate::task::sandbox::Membership;
use hearth_base::bundle::ResourceUpdate;
use hearth_base::error::{Error, Result};
use hearth_wasm::scheduler::CpuLimits;

impl Task {
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
            self.init.set_cpu(limits);
        }
        if let Membership::In(pod) = &container.pod {
            // kubelet changes the pod's control group before its containers.
            pod.refresh_memory();
        }
        if let Some(limit) = update.memory_limit {
            if let Some(cell) = &container.cell {
                cell.set_limit(&container.id, limit)?;
            }
            container.memory.set_limit(limit.unwrap_or(u64::MAX).min(container.memory_limit_max));
        }
        Ok(())
    }
}
