//! Tasks: one [`Task`] for each container that containerd has created here and not yet deleted.
//!
//! * [`state`]: the pure state machine of a process, with its diagram.
//! * [`create`]: from a Create request to a task, in phases that undo themselves.
//! * [`sandbox`]: a pod's sandbox, which is a task that runs nothing.
//! * [`driver`]: what happens to a task from then on; with [`control`] the only place that applies the
//!   machine.
//! * [`control`]: pause, resume, new limits.
//! * [`oom`]: when a guest counts as ended for want of memory.
//! * [`files`]: the life of a task's root file system.
//! * [`root`]: which mounts make it.
//! * [`stdio`]: FIFOs, files and log programs.
//! * [`map`]: the tasks of one namespace, by id.
//!
//! A task's lock guards its state for a few instructions; it is never held across an await, a mount
//! or a guest's poll.

pub mod control;
pub mod create;
pub mod driver;
pub mod files;
pub mod map;
pub mod oom;
pub mod root;
pub mod sandbox;
pub mod state;
pub mod stdio;

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::bundle::{Cpu, Network};
use crate::events::Reservation;
use crate::metrics::{Metrics, Source};
use crate::wasm::engine::Program;
use crate::wasm::scheduler::Guest;
use crate::wasm::wasi::MemoryUse;
use files::Files;
use state::State;
use stdio::Stdio;

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

/// How and when a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// As a shell would show it.
    pub status: u32,
    /// When.
    pub at: SystemTime,
}

/// What a started task does.
enum Work {
    /// Runs a program.
    Program(Box<Prepared>),
    /// Nothing, until it is killed: a pod's sandbox.
    Pause,
}

/// What a program's Start needs, taken by it.
struct Prepared {
    program: Arc<Program>,
    export: Option<Arc<str>>,
    args: Vec<String>,
    env: Vec<(String, String)>,
    cwd: String,
    partly_read_only: bool,
    source: Source,
    create_took: Duration,
}

/// A task.
pub struct Task {
    /// The container's id.
    pub id: Arc<str>,
    /// containerd's namespace.
    pub namespace: Arc<str>,
    /// The bundle.
    pub bundle: PathBuf,
    /// The network it is in; of a pod's container, its sandbox's.
    pub network: Network,
    /// As in the Create request.
    pub stdio_paths: StdioPaths,
    /// What its memories and tables hold, and may hold.
    pub memory: Arc<MemoryUse>,
    /// The most memory it may ever be given, in bytes: the engine's.
    memory_limit_max: u64,
    guest: Arc<Guest>,
    stdio: Arc<Stdio>,
    files: Arc<Files>,
    /// Room in the queue for all of this task's events.
    events: Reservation,
    metrics: Arc<Metrics>,
    inner: Mutex<Inner>,
    exit: watch::Sender<Option<Exit>>,
}

/// What changes, guarded by one lock.
struct Inner {
    state: State,
    /// Taken by Start.
    work: Option<Work>,
    /// The status the first fatal signal gives, once the scheduler has ended the guest.
    killed_with: Option<u32>,
    /// What the spec says of its CPU time, with all updates.
    cpu: Cpu,
    /// While it is paused.
    pause: Option<Pause>,
}

/// A pause under way.
struct Pause {
    /// Room for its events.
    events: Reservation,
    /// The status of a fatal signal that came meanwhile.
    killed_with: Option<u32>,
}

/// What State answers.
#[derive(Debug, Clone, Copy)]
pub struct Snapshot {
    /// Where the process is.
    pub state: State,
    /// Set once it has ended.
    pub exit: Option<Exit>,
}

/// Every process of a guest is this one: the daemon's.
pub fn pid() -> u32 {
    /// glibc makes a system call each time.
    static PID: LazyLock<u32> = LazyLock::new(std::process::id);
    *PID
}
