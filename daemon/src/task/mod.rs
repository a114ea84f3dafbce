//! Tasks: one [`Task`] for each container that containerd has created here and not yet deleted.
//!
//! * [`state`]: the pure state machine of a process, with its diagram.
//! * [`create`]: from a Create request to a task, in phases that undo themselves.
//! * [`process`]: a guest with its stdio, state and events; the only place that applies the machine.
//! * [`container`]: what the processes of a task share.
//! * [`files`]: the life of a task's root file system.
//! * [`root`]: which mounts make it.
//! * [`stdio`]: FIFOs, files and log programs.
//! * [`map`]: the tasks of one namespace, by id.
//!
//! A process's lock guards its state for a few instructions; it is never held across an await, a mount
//! or a guest's poll.

pub mod container;
pub mod create;
pub mod files;
pub mod map;
pub mod process;
pub mod root;
pub mod state;
pub mod stdio;

use std::sync::{Arc, LazyLock};

use crate::error::Result;
use crate::events::Event;
use crate::task::container::Container;
use crate::task::map::TaskMap;
use crate::task::process::{Exit, Process};
use crate::task::state::State;

/// Where a Create request wants a process's stdio.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StdioPaths {
    /// FIFO, or empty.
    pub stdin: String,
    /// FIFO, `file://` or `binary://` URI, or empty.
    pub stdout: String,
    /// As `stdout`.
    pub stderr: String,
    /// Whether the process has a terminal.
    pub terminal: bool,
}

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

    /// Lets everything go and takes the task out of the map.
    ///
    /// # Errors
    /// `FailedPrecondition` while it runs.
    pub async fn delete(self: &Arc<Self>, map: &TaskMap) -> Result<Exit> {
        let exit = self.init.remove().await?;
        let container = &self.container;
        container.files.release();
        container.files.wait_gone().await;
        // Of two Deletes at once, one removes and tells; both are answered.
        if map.remove(self) {
            let stopped = process::label(State::Stopped(exit.status));
            container.metrics.tasks.with_label_values(&[stopped]).dec();
            self.init.publish(Event::Delete {
                container_id: container.id.clone(),
                pid: pid(),
                exit_status: exit.status,
                exited_at: exit.at,
            });
        }
        Ok(exit)
    }

    /// Waits until the root is unmounted; only once the init has ended.
    pub async fn unmounted(&self) {
        self.container.files.wait_gone().await;
    }
}

/// Every process of a guest is this one: the daemon's.
pub fn pid() -> u32 {
    /// glibc makes a system call each time.
    static PID: LazyLock<u32> = LazyLock::new(std::process::id);
    *PID
}
