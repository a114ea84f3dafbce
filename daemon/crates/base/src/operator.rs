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
    /// One of them: an optional [`TaskDetails`].
    Task {
        /// containerd's namespace.
        namespace: String,
        /// Its id.
        id: String,
    },
    /// The last starts, the latest first: a list of [`StartInfo`].
    Starts,
    /// The last ends that one may want to look into, the latest first: a list of [`EndInfo`].
    Ends,
    /// What it knows of modules: [`Modules`].
    Modules,
    /// Compiles what an image runs, or a file, before a start of it: [`Warmed`].
    Warm(Warm),
    /// Check every artifact on disk; those that are no good are removed: [`Verified`].
    VerifyModules,
    /// Remove artifacts from the disk: [`Pruned`].
    PruneModules {
        /// Those of this engine that no task runs, too; else only those of other engines.
        unused: bool,
    },
    /// The last lines of its log, the oldest first: a list of [`LogLine`].
    Logs {
        /// Only those about this task.
        task: Option<String>,
        /// Only those with a higher number.
        after: u64,
    },
    /// What its log lets through: [`LogLevel`].
    LogLevel,
    /// Change that: [`LogLevel`].
    SetLogLevel {
        /// A filter; none: what the configuration says.
        filter: Option<String>,
    },
    /// Take no new tasks, or take them again: [`Status`].
    Drain {
        /// Which of the two.
        on: bool,
    },
}

/// What is to be compiled.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Warm {
    /// What an image of the daemon's own containerd (`ahead.containerd`) runs.
    Image {
        /// containerd's namespace; none: the first of `ahead.namespaces`.
        namespace: Option<String>,
        /// Its name.
        name: String,
    },
    /// A WebAssembly file.
    File {
        /// Its absolute path.
        path: String,
    },
}

/// What became of that.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Warmed {
    /// The SHA-256 digest of the module, in hex.
    pub module: String,
    /// Whether it was compiled now; if not, it had been before.
    pub compiled: bool,
    /// How long that took.
    pub seconds: f64,
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
    /// Whether it takes no new tasks.
    pub draining: bool,
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
    /// Traps of all its guests.
    pub traps: u64,
}

/// All that is known of a task.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct TaskDetails {
    /// As in the list.
    pub task: TaskInfo,
    /// Its image's name, as containerd has it.
    pub image: Option<String>,
    /// Its bundle.
    pub bundle: String,
    /// Where its stdin, stdout and stderr go.
    pub stdio: Vec<String>,
    /// What its start did.
    pub start: StartInfo,
    /// Ends of its guests that one may want to look into.
    pub ends: Vec<EndInfo>,
}

/// A task by its names.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct TaskName {
    /// The life of the daemon that has it, or had it.
    pub generation: String,
    /// containerd's namespace.
    pub namespace: String,
    /// Its id.
    pub id: String,
    /// Its pod, if it is of one.
    pub pod: Option<PodName>,
    /// Its image's name, where CRI has said it.
    pub image: Option<String>,
    /// The first of its arguments.
    pub program: String,
}

/// What a start did. What has not happened is absent.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct StartInfo {
    /// Whose.
    #[serde(flatten)]
    pub of: TaskName,
    /// The SHA-256 digest of its module, in hex.
    pub module: String,
    /// Where the module came from: `warm`, `disk` or `compiled`.
    pub source: Option<String>,
    /// When Create's request arrived; what follows is counted from then.
    pub created_at: f64,
    /// When containerd wrote the bundle; before that.
    pub bundle_written_at: Option<f64>,
    /// When Create was answered.
    pub create_seconds: Option<f64>,
    /// When Start's request arrived.
    pub start_began_seconds: Option<f64>,
    /// When the guest was at its first instruction, or the service had its port.
    pub started_seconds: Option<f64>,
    /// What hearthd itself needed: without the caller's own time between Create and Start.
    pub own_seconds: Option<f64>,
    /// Its phases, in the order in which they are measured.
    pub phases: Vec<PhaseInfo>,
    /// Its OpenTelemetry trace, where that is on and it was sampled.
    pub trace_id: Option<String>,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

/// A phase of a start.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct PhaseInfo {
    /// As in the metric `hearth_start_phase_seconds`.
    pub name: String,
    /// When it began, from Create's request.
    pub began_seconds: f64,
    /// How long it took.
    pub seconds: f64,
}

/// A guest's end that one may want to look into.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct EndInfo {
    /// Whose.
    #[serde(flatten)]
    pub of: TaskName,
    /// When.
    pub at: f64,
    /// What it was.
    pub kind: EndKind,
    /// The exit status; of a request, the HTTP status.
    pub status: u32,
    /// wasmtime's text with the backtrace, or ours.
    pub text: String,
}

/// What an end was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EndKind {
    /// A guest trapped.
    #[default]
    Trap,
    /// A guest ended for want of memory.
    OutOfMemory,
    /// The guest of an HTTP request trapped.
    Request,
    /// The guest of an HTTP request gave no response, or not all of it.
    Response,
    /// An HTTP request took too long.
    TimeOut,
    /// A host function panicked: hearthd's own fault.
    Panic,
    /// It could not be started.
    NotStarted,
}

impl EndKind {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            EndKind::Trap => "trap",
            EndKind::OutOfMemory => "out of memory",
            EndKind::Request => "a request's trap",
            EndKind::Response => "an unfinished response",
            EndKind::TimeOut => "a request's time-out",
            EndKind::Panic => "hearthd's fault",
            EndKind::NotStarted => "not started",
        }
    }
}

/// A line of the daemon's log.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct LogLine {
    /// Lines are counted from 1.
    pub number: u64,
    /// When.
    pub at: f64,
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub level: String,
    /// The part of the daemon.
    pub target: String,
    /// The task it is about, if it is about one.
    pub task: Option<String>,
    /// The message and its fields.
    pub text: String,
}

/// What the log lets through.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct LogLevel {
    /// Now.
    pub current: String,
    /// By the configuration.
    pub configured: String,
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
    /// Those that are being compiled, or wait for it.
    pub compiling: Vec<CompilingModule>,
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
    /// Whether what is prepared is code of the baseline compiler still.
    pub baseline: bool,
    /// When it was used last.
    pub used_at: f64,
    /// Tasks that run it.
    pub tasks: u64,
    /// Images or programs of those tasks; a few of them.
    pub names: Vec<String>,
}

/// A module that is being compiled, or waits for it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct CompilingModule {
    /// SHA-256 of the Wasm, in hex.
    pub digest: String,
    /// The file in its image, or the image.
    pub name: String,
    /// For how long already.
    pub age_seconds: f64,
}

/// What a check of the artifacts on disk found.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Verified {
    /// Whole ones.
    pub good: u64,
    /// Digests of those that were no good, and are removed.
    pub removed: Vec<String>,
    /// Of other engines, which are not looked at.
    pub foreign: u64,
}

/// What was removed from the disk.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Pruned {
    /// So many artifacts.
    pub artifacts: u64,
    /// So many bytes.
    pub bytes: u64,
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
