//! Tasks: one [`Task`] for each container that containerd has created here and not yet deleted.
//!
//! * [`state`]: the pure state machine of a process, with its diagram.
//! * [`create`]: from a Create request to a task, in phases that undo themselves.
//! * [`process`]: a guest with its stdio, state and events; the only place that applies the machine.
//! * [`sandbox`]: what the containers of a pod share; [`pods`]: the pods, and those that are no tasks;
//!   [`pod_files`]: the files of the latter.
//! * [`holders`]: network namespaces for tasks that ask for a new one.
//! * [`container`]: what the processes of a task share; [`about`]: what those who look see of it.
//! * [`exec`]: from an Exec request to one more process; [`execs`]: those of a task, by id.
//! * [`control`]: pause, resume, new limits; [`oom`]: when a guest counts as ended for want of memory.
//! * [`files`]: the life of a task's root file system.
//! * [`root`]: which mounts make it.
//! * [`world`]: what all tasks share.
//! * [`map`]: the tasks of one namespace, by id.
//!
//! A process's lock guards its state for a few instructions; it is never held across an await, a mount
//! or a guest's poll.

pub mod about;
pub mod container;
pub mod control;
pub mod create;
pub mod exec;
pub mod execs;
pub mod files;
pub mod holders;
pub mod map;
pub mod oom;
pub mod pod_files;
pub mod pods;
pub mod process;
pub mod root;
pub mod sandbox;
pub mod state;
pub mod world;

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use crate::task::container::Container;
use crate::task::map::TaskMap;
use crate::task::process::{Exit, Process};
use crate::task::state::State;
use hearth_base::error::{Error, Result};
use hearth_base::faults::{self, Point};
use hearth_containerd::events::Event;

/// A task: a container and its first process.
pub struct Task {
    /// What all its processes share.
    pub container: Arc<Container>,
    /// The process that the task lives as long as.
    pub init: Arc<Process>,
}

impl Task {
    /// The task's id, the container's.
    pub fn id(&self) -> &Arc<str> {
        &self.container.id
    }

    /// The process with this exec id; the init for none, or for the task's own id.
    ///
    /// # Errors
    /// `NotFound` if there is none.
    pub fn process(&self, exec_id: &str) -> Result<Arc<Process>> {
        if self.is_init(exec_id) {
            return Ok(self.init.clone());
        }
        self.container.execs.get(exec_id).ok_or_else(|| self.no_exec(exec_id))
    }

    /// Whether this names the init.
    pub fn is_init(&self, exec_id: &str) -> bool {
        exec_id.is_empty() || *exec_id == **self.id()
    }

    fn no_exec(&self, exec_id: &str) -> Error {
        Error::NotFound(format!("process {exec_id} of task {} not found", self.id()))
    }

    /// Lets everything go, the execs too, and takes the task out of the map.
    ///
    /// # Errors
    /// `FailedPrecondition` while it runs.
    pub async fn delete(self: &Arc<Self>, map: &TaskMap) -> Result<Exit> {
        let exit = self.init.remove().await?;
        let container = &self.container;
        // No exec outlives the init: what is left has ended or was never started.
        for exec in container.execs.take_all() {
            if let Err(error) = exec.remove().await {
                tracing::warn!(task = %self.id(), exec = %exec.id, %error, "an exec was left behind by its task");
            }
        }
        container.files.release();
        container.files.wait_gone().await;
        faults::at(Point::Deleted);
        // Of two Deletes at once, one removes and tells; both are answered.
        if map.remove(self) {
            container.seat.retire(&self.info(""));
            let stopped = process::label(State::Stopped(exit.status));
            container.metrics.tasks.by_state.with_label_values(&[stopped]).dec();
            self.init.publish(Event::Delete {
                container_id: container.id.clone(),
                pid: container.pid(),
                exit_status: exit.status,
                exited_at: exit.at,
            });
        }
        Ok(exit)
    }

    /// Deletes an exec. No event tells of that.
    ///
    /// # Errors
    /// `NotFound` if there is none, `FailedPrecondition` while it runs.
    pub async fn delete_exec(&self, exec_id: &str) -> Result<Exit> {
        let exec = self.container.execs.get(exec_id).ok_or_else(|| self.no_exec(exec_id))?;
        let exit = exec.remove().await?;
        self.container.execs.remove(&exec);
        Ok(exit)
    }

    /// CPU time of all its processes so far.
    pub fn cpu_time(&self) -> Duration {
        self.init.cpu_time()
    }

    /// Waits until the root is unmounted; only once the init has ended.
    pub async fn unmounted(&self) {
        self.container.files.wait_gone().await;
    }
}

/// The daemon's. Every guest is a part of this process, and it is what containerd is told for all tasks
/// without a holder.
pub fn pid() -> u32 {
    /// glibc makes a system call each time.
    static PID: LazyLock<u32> = LazyLock::new(std::process::id);
    *PID
}
