//! The events that containerd receives: each with its topic and its message.

use std::sync::Arc;
use std::time::SystemTime;

use containerd_shim_protos::api::Mount;
use containerd_shim_protos::events::task as messages;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::topics;

use crate::time::timestamp;

/// A task event, with the fields of containerd's message of that name.
///
/// Ids are shared with the task, so that publishing copies none.
#[derive(Debug, Clone)]
pub enum Event {
    /// The task was created.
    Create(Box<Create>),
    /// The init process was started.
    Start {
        /// The task.
        container_id: Arc<str>,
        /// The pid that containerd knows.
        pid: u32,
    },
    /// The task ran out of memory.
    Oom {
        /// The task.
        container_id: Arc<str>,
    },
    /// A process ended.
    Exit {
        /// The task.
        container_id: Arc<str>,
        /// The process: the task's own id for its init process, by which CRI tells it from an exec; the exec's id
        /// for an exec.
        id: Arc<str>,
        /// The pid that containerd knows.
        pid: u32,
        /// 0 to 255; 128 + the signal for one that was killed.
        exit_status: u32,
        /// When it ended.
        exited_at: SystemTime,
    },
    /// The task was deleted.
    Delete {
        /// The task.
        container_id: Arc<str>,
        /// The pid that containerd knows.
        pid: u32,
        /// As in [`Event::Exit`].
        exit_status: u32,
        /// When it ended.
        exited_at: SystemTime,
    },
    /// An exec was added to the task.
    ExecAdded {
        /// The task.
        container_id: Arc<str>,
        /// The exec.
        exec_id: Arc<str>,
    },
    /// An exec was started.
    ExecStarted {
        /// The task.
        container_id: Arc<str>,
        /// The exec.
        exec_id: Arc<str>,
        /// The pid that containerd knows.
        pid: u32,
    },
    /// The task was paused.
    Paused {
        /// The task.
        container_id: Arc<str>,
    },
    /// The task was resumed.
    Resumed {
        /// The task.
        container_id: Arc<str>,
    },
}

/// The fields of [`Event::Create`], as the request has them.
#[derive(Debug, Clone)]
pub struct Create {
    /// The task.
    pub container_id: Arc<str>,
    /// The bundle's directory.
    pub bundle: String,
    /// The mounts of the root file system.
    pub rootfs: Vec<Mount>,
    /// The FIFO or URI of standard input; empty: none.
    pub stdin: String,
    /// The FIFO or URI of standard output; empty: none.
    pub stdout: String,
    /// The FIFO or URI of standard error; empty: none.
    pub stderr: String,
    /// Whether standard input and output are a terminal.
    pub terminal: bool,
    /// The checkpoint to restore from; empty: none.
    pub checkpoint: String,
    /// The pid that containerd knows.
    pub pid: u32,
}

impl Event {
    /// Whether delivery may be a little later: the caller of a start has its answer already. Clients wait for an end.
    pub fn can_wait(&self) -> bool {
        match self {
            Event::Create(_) | Event::Start { .. } | Event::ExecAdded { .. } | Event::ExecStarted { .. } => true,
            Event::Oom { .. }
            | Event::Exit { .. }
            | Event::Delete { .. }
            | Event::Paused { .. }
            | Event::Resumed { .. } => false,
        }
    }

    /// The topic containerd's subscribers know this event by.
    pub fn topic(&self) -> &'static str {
        match self {
            Event::Create(_) => topics::TASK_CREATE_EVENT_TOPIC,
            Event::Start { .. } => topics::TASK_START_EVENT_TOPIC,
            Event::Oom { .. } => topics::TASK_OOM_EVENT_TOPIC,
            Event::Exit { .. } => topics::TASK_EXIT_EVENT_TOPIC,
            Event::Delete { .. } => topics::TASK_DELETE_EVENT_TOPIC,
            Event::ExecAdded { .. } => topics::TASK_EXEC_ADDED_EVENT_TOPIC,
            Event::ExecStarted { .. } => topics::TASK_EXEC_STARTED_EVENT_TOPIC,
            Event::Paused { .. } => topics::TASK_PAUSED_EVENT_TOPIC,
            Event::Resumed { .. } => topics::TASK_RESUMED_EVENT_TOPIC,
        }
    }

    /// The task this event is about.
    pub fn container_id(&self) -> &str {
        match self {
            Event::Create(create) => &create.container_id,
            Event::Start { container_id, .. }
            | Event::Oom { container_id }
            | Event::Exit { container_id, .. }
            | Event::Delete { container_id, .. }
            | Event::ExecAdded { container_id, .. }
            | Event::ExecStarted { container_id, .. }
            | Event::Paused { container_id }
            | Event::Resumed { container_id } => container_id,
        }
    }

    /// containerd's message for this event.
    pub(super) fn encode(&self) -> Any {
        let new = |id: &str| id.to_string();
        match self {
            Event::Create(create) => any(&create.message()),
            Event::Start { container_id, pid } => {
                any(&messages::TaskStart { container_id: new(container_id), pid: *pid, ..Default::default() })
            }
            Event::Oom { container_id } => {
                any(&messages::TaskOOM { container_id: new(container_id), ..Default::default() })
            }
            Event::Exit { container_id, id, pid, exit_status, exited_at } => any(&messages::TaskExit {
                container_id: new(container_id),
                id: new(id),
                pid: *pid,
                exit_status: *exit_status,
                exited_at: timestamp(*exited_at),
                ..Default::default()
            }),
            // Without `id`, which stands for the init process: no other process has this event.
            Event::Delete { container_id, pid, exit_status, exited_at } => any(&messages::TaskDelete {
                container_id: new(container_id),
                pid: *pid,
                exit_status: *exit_status,
                exited_at: timestamp(*exited_at),
                ..Default::default()
            }),
            Event::ExecAdded { container_id, exec_id } => any(&messages::TaskExecAdded {
                container_id: new(container_id),
                exec_id: new(exec_id),
                ..Default::default()
            }),
            Event::ExecStarted { container_id, exec_id, pid } => any(&messages::TaskExecStarted {
                container_id: new(container_id),
                exec_id: new(exec_id),
                pid: *pid,
                ..Default::default()
            }),
            Event::Paused { container_id } => {
                any(&messages::TaskPaused { container_id: new(container_id), ..Default::default() })
            }
            Event::Resumed { container_id } => {
                any(&messages::TaskResumed { container_id: new(container_id), ..Default::default() })
            }
        }
    }
}

impl Create {
    fn message(&self) -> messages::TaskCreate {
        messages::TaskCreate {
            container_id: self.container_id.to_string(),
            bundle: self.bundle.clone(),
            rootfs: self.rootfs.clone(),
            io: MessageField::some(messages::TaskIO {
                stdin: self.stdin.clone(),
                stdout: self.stdout.clone(),
                stderr: self.stderr.clone(),
                terminal: self.terminal,
                ..Default::default()
            }),
            checkpoint: self.checkpoint.clone(),
            pid: self.pid,
            ..Default::default()
        }
    }
}

/// Wraps a message as containerd's typeurl does: with the full name alone, without `type.googleapis.com/`
/// (github.com/containerd/typeurl, `MarshalAny`).
fn any<M: Message>(message: &M) -> Any {
    Any {
        type_url: format!("containerd.events.{}", M::NAME),
        // Fails only for proto2 messages that lack a required field; these are proto3.
        value: message.write_to_bytes().expect("a proto3 message"),
        ..Default::default()
    }
}
