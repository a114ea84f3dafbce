//! Tasks: one [`Task`] for each container that containerd has created here and not yet deleted.
//!
//! * `create/`: from a Create request to a task, in phases that undo themselves.
//! * `exec.rs`: from an Exec request to one more process of a task; the refusal of an exec.
//! * `program.rs`: the checks of a program that Create and Exec share.
//! * `process/`: one guest with its stdio, its state and its events: start, signals, pause, exit status.
//! * `execs.rs`: the execs of a task, by id, and how they end with its init.
//! * `container.rs`: the parts that the processes of a task share; the termination log.
//! * `update.rs`: new CPU and memory limits of a running task.
//! * `sandbox.rs`: the sandbox that the containers of a pod share: network, IPC, host name, kernel settings.
//! * `pods.rs`: the pods of a namespace, and the pods that the sandbox controller has made, which are no tasks.
//! * `pod_files.rs`: the files of such a pod: hosts, hostname, resolv.conf, `/dev/shm`.
//! * `holders.rs`: network namespaces for tasks that ask for a new one.
//! * `files.rs`: the life of a task's root: mounted while Create is answered, unmounted after the end.
//! * `root/`: which mounts make a root, and how they are made and undone.
//! * `about.rs`: a task as operators see it.
//! * `world.rs`: the parts that all tasks share.
//! * `memory_watch.rs`: refuses containers, and ends the one most over its share, while the daemon is near its memory limit.
//! * `map.rs`: the tasks of one namespace, by id; the limit of tasks; whether the daemon is idle.
//!
//! The lock of a process guards its state for a few instructions; it is never held across an await, a mount or a
//! guest's poll.

pub mod about;
pub mod container;
pub mod create;
pub mod exec;
pub mod execs;
pub mod files;
pub mod holders;
pub mod map;
pub mod memory_watch;
pub mod pod_files;
pub mod pods;
pub mod process;
mod program;
pub mod root;
pub mod sandbox;
mod update;
pub mod world;

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use crate::task::container::Container;
use crate::task::execs::Execs;
use crate::task::map::TaskMap;
use crate::task::process::state::State;
use crate::task::process::{Exit, Process};
use hearth_base::error::{Error, Result};
use hearth_base::faults::{self, Point};
use hearth_containerd::events::Event;

/// A task: a container and its first process.
pub struct Task {
    /// The container that all its processes share.
    pub container: Arc<Container>,
    /// The first process: the task ends with it.
    pub init: Arc<Process>,
    /// The processes beside it.
    pub execs: Arc<Execs<Process>>,
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
        self.execs.get(exec_id).ok_or_else(|| self.no_exec(exec_id))
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
        for exec in self.execs.take_all() {
            if let Err(error) = exec.remove().await {
                tracing::warn!(task = %self.id(), exec = %exec.id, %error, "an exec was left behind by its task");
            }
        }
        container.access.close();
        container.files.release();
        container.files.wait_gone().await;
        faults::at(Point::Deleted);
        // Of two Deletes at once, one removes and tells; both are answered.
        if map.remove(self) {
            container.seat.retire(&self.info(""));
            let stopped = State::Stopped(exit.status).label();
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
        let exec = self.execs.get(exec_id).ok_or_else(|| self.no_exec(exec_id))?;
        let exit = exec.remove().await?;
        self.execs.remove(&exec);
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
