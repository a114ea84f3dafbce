//! The remains of a cell that has ended: tasks that died with it, its control group, its directory.
//!
//! A cell that ends in good order leaves no task. From any other, containerd is told of each task's end with the exit
//! status of a process that was killed, kubelet finds the reason in the termination log, and a shortage of memory in the
//! cell's control group is told as such.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::task::container::note_end_in;
use hearth_base::cell::{About, LivingTask, TASKS_DIRECTORY};
use hearth_base::namespace::ContainerdNamespace;
use hearth_containerd::events::{Event, EventQueue};
use hearth_os::cell_group::Cgroup;

/// The exit status of a process that was killed: 128 + SIGKILL.
const KILLED: u32 = 137;

/// How often the removal of a control group is tried, and the first pause; each pause is twice the one before. Its last
/// process has ended, but may not have been reaped.
const REMOVALS: u32 = 10;
const FIRST_PAUSE: Duration = Duration::from_millis(2);

/// The longest record that is read, in bytes.
const RECORD_BYTES_MAX: u64 = 64 << 10;

/// Tasks of one cell whose ends are told.
const TASKS_MAX: usize = 1_000;

/// Why a cell ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Its last task was deleted, or it was told to stop.
    Done,
    /// The kernel ended it for want of memory.
    OutOfMemory,
    /// A signal ended it, or it ended by itself; the signal, if it is known.
    Died(Option<i32>),
}

impl Why {
    /// The label value of the metric.
    pub fn label(self) -> &'static str {
        match self {
            Why::Done => "done",
            Why::OutOfMemory => "out_of_memory",
            Why::Died(_) => "died",
        }
    }

    /// For the termination log and the daemon's log.
    fn text(self) -> String {
        match self {
            Why::Done => "the pod's process ended".into(),
            Why::OutOfMemory => {
                "out of memory: the kernel ended the pod's process (isolation level pod), which was over the memory limit of its control group".into()
            }
            Why::Died(Some(signal)) => format!("the pod's process (isolation level pod) was ended by signal {signal}"),
            Why::Died(None) => "the pod's process (isolation level pod) ended unexpectedly; see the log of hearthd".into(),
        }
    }
}

/// Tells of the ends of the tasks that died with a cell. `signal`: the signal that ended it, if it is known. Blocks.
pub fn tell(directory: &Path, about: &About, signal: Option<i32>, events: &Arc<EventQueue>) -> Why {
    let tasks = living_tasks(&directory.join(TASKS_DIRECTORY));
    if tasks.is_empty() {
        return Why::Done;
    }
    let kills = Cgroup::at(about.cgroup.clone()).out_of_memory_kills();
    let why = if kills > 0 { Why::OutOfMemory } else { Why::Died(signal) };
    let text = why.text();
    let namespace = ContainerdNamespace::from(about.namespace.as_str());
    for task in &tasks {
        tracing::warn!(task = task.id, namespace = about.namespace, pid = about.pid, text, "a task died with its cell");
        if let Some(path) = &task.termination_log
            && let Err(error) = note_end_in(path, &text)
        {
            tracing::debug!(task = task.id, %error, "the termination log was not written");
        }
        publish(task, why, about.pid, &namespace, events);
    }
    why
}

fn publish(task: &LivingTask, why: Why, pid: u32, namespace: &ContainerdNamespace, events: &Arc<EventQueue>) {
    let room = match events.reserve() {
        Ok(room) => room,
        Err(error) => return tracing::warn!(task = task.id, %error, "the end of a task was not told"),
    };
    let id: Arc<str> = task.id.as_str().into();
    if why == Why::OutOfMemory {
        room.publish(namespace, Event::Oom { container_id: id.clone() });
    }
    let exited_at = SystemTime::now();
    let exit = Event::Exit { container_id: id.clone(), id, pid, exit_status: KILLED, exited_at };
    room.publish(namespace, exit);
}

/// Removes a cell's control group. Blocks for up to two seconds.
pub fn remove_cgroup(about: &About) {
    let cgroup = Cgroup::at(about.cgroup.clone());
    let mut pause = FIRST_PAUSE;
    for _ in 0..REMOVALS {
        match cgroup.remove() {
            Ok(()) => return,
            Err(error) => tracing::debug!(%error, pid = about.pid, "a cell's control group is still in use"),
        }
        std::thread::sleep(pause);
        pause *= 2;
    }
    if let Err(error) = cgroup.remove() {
        tracing::warn!(%error, group = ?cgroup.directories().first(), "a cell's control group was left behind");
    }
}

/// The record in a cell's directory.
///
/// # Errors
/// There is no such file, or it is no record.
pub fn about(path: &Path) -> io::Result<About> {
    Ok(serde_json::from_slice(&read(path)?)?)
}

fn living_tasks(directory: &Path) -> Vec<LivingTask> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let records = entries.filter_map(|entry| read(&entry.path()).ok());
    records.filter_map(|bytes| serde_json::from_slice(&bytes).ok()).take(TASKS_MAX).collect()
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(RECORD_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}
