//! What `hearthctl` and `hearthd` say to each other: the questions and their answers.
//!
//! Both are JSON within the control socket's frames ([`hearth_shim::reply::Body::Operator`]). During an
//! upgrade a `hearthctl` asks daemons of other releases: fields are added, never changed, every answer's
//! field has a default, and a question that a daemon does not know is an error that says so.
//!
//! Times are seconds since 1970, durations seconds, sizes bytes; all of them as the metrics have them.

use serde::{Deserialize, Serialize};

/// A question.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(tag = "question", rename_all = "snake_case")]
pub enum Question {
    /// How the daemon is: [`Status`].
    Status,
    /// Its tasks: a list of [`TaskInfo`].
    Tasks,
    /// What it knows of modules: [`Modules`].
    Modules,
}

/// How a daemon is.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Status {
    /// Its release.
    pub version: String,
    /// wasmtime's release.
    pub wasmtime: String,
    /// Its process.
    pub pid: u32,
    /// Which life of the daemon this is: unique on a node.
    pub generation: String,
    /// When it was ready.
    pub started_at: f64,
    /// Where its sockets are.
    pub state_dir: String,
    /// Where its modules are.
    pub root_dir: String,
    /// Where its metrics are served; empty if nowhere.
    pub metrics_address: String,
    /// The containerds it serves, by their gRPC sockets.
    pub containerds: Vec<String>,
    /// Namespaces that have a task socket.
    pub namespaces: u64,
    /// Tasks by state.
    pub tasks: TaskCounts,
    /// The pool and what is beyond it.
    pub pool: Pool,
    /// Modules and compiles.
    pub modules: ModuleCounts,
    /// The threads that run guests.
    pub workers: Workers,
    /// Events that wait for containerd.
    pub events_queued: u64,
    /// Control sockets of earlier lives of the daemon that still serve their tasks.
    pub earlier: Vec<String>,
}

/// Tasks by state.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct TaskCounts {
    /// Created and not running yet.
    pub created: u64,
    /// Running.
    pub running: u64,
    /// Paused.
    pub paused: u64,
    /// Ended and not deleted yet.
    pub stopped: u64,
    /// As many as there may be (`rpc.tasks_max`).
    pub limit: u64,
}

/// Room for guests.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Pool {
    /// Slots of the pool in use.
    pub used: u64,
    /// All of them (`engine.pool_slots`).
    pub slots: u64,
    /// Guests beyond the pool.
    pub on_demand: u64,
    /// As many as there may be (`engine.on_demand_max`).
    pub on_demand_limit: u64,
}

/// The module store in numbers.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct ModuleCounts {
    /// Prepared in memory.
    pub prepared: u64,
    /// Compiled, on disk.
    pub artifacts: u64,
    /// What those take.
    pub bytes: u64,
    /// What they may take (`modules.store_bytes_max`).
    pub bytes_limit: u64,
    /// Compiles that run or wait.
    pub compiles_pending: u64,
}

/// The threads that run guests.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Workers {
    /// Waiting for a guest.
    pub idle: u64,
    /// In a guest.
    pub running: u64,
    /// In a guest's system call for long.
    pub blocked: u64,
    /// Guests that wait for one of them.
    pub run_queue: u64,
}

/// A task.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct TaskInfo {
    /// The life of the daemon that runs it.
    pub generation: String,
    /// containerd's namespace.
    pub namespace: String,
    /// Its id.
    pub id: String,
    /// What it is.
    pub kind: TaskKind,
    /// Its pod, if it is of one.
    pub pod: Option<PodName>,
    /// Its image's name, where CRI has said it.
    pub image: Option<String>,
    /// The first of its arguments.
    pub program: String,
    /// The SHA-256 digest of its module, in hex; empty for a sandbox.
    pub module: String,
    /// `created`, `running`, `paused` or `stopped`.
    pub state: String,
    /// Once it has stopped.
    pub exit_status: Option<u32>,
    /// What containerd takes for its process.
    pub pid: u32,
    /// When Create was asked for.
    pub created_at: f64,
    /// Processes beside its first that run.
    pub execs: u64,
    /// CPU time of all its processes.
    pub cpu_seconds: f64,
    /// How long it waited for its quota.
    pub throttled_seconds: f64,
    /// Its linear memories and tables.
    pub memory_bytes: u64,
    /// The most they have been.
    pub memory_peak_bytes: u64,
    /// What they may be.
    pub memory_limit_bytes: u64,
    /// How often it was refused memory.
    pub memory_refused: u64,
    /// Whether it ended for want of memory.
    pub out_of_memory: bool,
}

/// What a task is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskKind {
    /// It runs a program.
    #[default]
    Program,
    /// It serves HTTP.
    Service,
    /// It holds a pod's network.
    Sandbox,
}

/// The pod a container is of, by Kubernetes' names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct PodName {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The container's name; empty for the sandbox.
    pub container: String,
}

/// What a daemon knows of modules.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Modules {
    /// Compiled, on disk or in memory.
    pub compiled: Vec<ModuleInfo>,
    /// Those that cannot be compiled, for a while.
    pub rejected: Vec<RejectedModule>,
}

/// A compiled module.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct ModuleInfo {
    /// SHA-256 of the Wasm, in hex.
    pub digest: String,
    /// `core` or `component`.
    pub kind: String,
    /// What the compiled code takes on disk; 0 if it is in memory only.
    pub bytes: u64,
    /// Whether this daemon's engine has compiled it; else another release's or configuration's.
    pub current: bool,
    /// Whether it is prepared in memory.
    pub prepared: bool,
    /// When it was used last.
    pub used_at: f64,
    /// Tasks that run it.
    pub tasks: u64,
    /// Images or programs of those tasks; a few of them.
    pub names: Vec<String>,
}

/// A module that cannot be compiled.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct RejectedModule {
    /// SHA-256 of the Wasm, in hex.
    pub digest: String,
    /// Why.
    pub reason: String,
    /// For how long already.
    pub age_seconds: f64,
}
