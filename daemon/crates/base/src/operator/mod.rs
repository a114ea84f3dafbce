//! The questions of `hearthctl` to `hearthd`, and the answers.
//!
//! Both are JSON within the control socket's frames ([`hearth_shim::reply::Body::Operator`]). During an
//! upgrade a `hearthctl` asks daemons of other releases. So fields are added, never changed; every field of an answer has
//! a default; and a daemon answers an unknown question with an error that says so.
//!
//! Times are in seconds since 1970, durations in seconds, sizes in bytes, as in the metrics.

mod application;
mod modules;

use serde::{Deserialize, Serialize};

pub use application::{ApplicationInfo, ComponentInfo, TriggerInfo};
pub use modules::{CompilingModule, ModuleInfo, Modules, Pruned, RejectedModule, Verified};

/// A question.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(tag = "question", rename_all = "snake_case")]
pub enum Question {
    /// The state of the daemon: [`Status`].
    Status,
    /// Its tasks: a list of [`TaskInfo`].
    Tasks,
    /// One task: an optional [`TaskDetails`].
    Task {
        /// containerd's namespace.
        namespace: String,
        /// Its id.
        id: String,
    },
    /// The last starts, the latest first: a list of [`StartInfo`].
    Starts,
    /// The last abnormal ends of guests, the latest first: a list of [`EndInfo`].
    Ends,
    /// The last slow HTTP requests, the latest first: a list of [`RequestInfo`].
    Requests,
    /// The modules that the daemon knows: [`Modules`].
    Modules,
    /// Compile the module of an image, or a file, before its first start: [`Warmed`].
    Warm(Warm),
    /// Check every artifact on disk, and remove the invalid ones: [`Verified`].
    VerifyModules,
    /// Remove artifacts from the disk: [`Pruned`].
    PruneModules {
        /// Whether to remove also artifacts of this engine that no task runs; else only artifacts of other engines.
        unused: bool,
    },
    /// The last lines of its log, the oldest first: a list of [`LogLine`].
    Logs {
        /// Only lines about this task.
        task: Option<String>,
        /// Only lines with a higher number.
        after: u64,
    },
    /// The filter of the log: [`LogLevel`].
    LogLevel,
    /// Change the filter of the log: [`LogLevel`].
    SetLogLevel {
        /// The filter; `None`: the configuration's.
        filter: Option<String>,
    },
    /// Take no new tasks, or take them again: [`Status`].
    Drain {
        /// `true`: take no new tasks.
        on: bool,
    },
}

/// A module to compile.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Warm {
    /// The module of an image in the containerd of `ahead.containerd`.
    Image {
        /// containerd's namespace; `None`: the first of `ahead.namespaces`.
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

/// The result of [`Question::Warm`].
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Warmed {
    /// The SHA-256 digest of the module, in hex.
    pub module: String,
    /// Whether it was compiled now; else it had been compiled before.
    pub compiled: bool,
    /// The duration.
    pub seconds: f64,
}

/// The state of a daemon.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Status {
    /// The release of Hearth.
    pub version: String,
    /// The release of wasmtime.
    pub wasmtime: String,
    /// Its process id.
    pub pid: u32,
    /// The name of the generation, unique on a node.
    pub generation: String,
    /// The time at which it was ready.
    pub started_at: f64,
    /// Whether it takes no new tasks.
    pub draining: bool,
    /// The directory of its sockets.
    pub state_dir: String,
    /// The directory of its modules.
    pub root_dir: String,
    /// The address of its metrics; empty without an endpoint.
    pub metrics_address: String,
    /// The containerds it serves, by their gRPC sockets.
    pub containerds: Vec<String>,
    /// Namespaces that have a task socket.
    pub namespaces: u64,
    /// Tasks by state.
    pub tasks: TaskCounts,
    /// Slots of the pool, and guests beyond the pool.
    pub pool: Pool,
    /// Modules and compiles.
    pub modules: ModuleCounts,
    /// The threads that run guests.
    pub workers: Workers,
    /// Events that wait for a containerd.
    pub events_queued: u64,
    /// Control sockets of older generations that still serve their tasks.
    pub earlier: Vec<String>,
    /// Control sockets of the cells: the processes of pods at isolation level `pod`.
    pub cells: Vec<String>,
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
    /// The limit (`rpc.tasks_max`).
    pub limit: u64,
}

/// Room for guests.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Pool {
    /// Slots of the pool in use.
    pub used: u64,
    /// Slots of the pool in all (`engine.pool_slots`).
    pub slots: u64,
    /// Guests beyond the pool.
    pub on_demand: u64,
    /// The limit (`engine.on_demand_max`).
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
    /// The size of the artifacts on disk.
    pub bytes: u64,
    /// The limit of that size (`modules.store_bytes_max`).
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
    /// Blocked in a guest's system call.
    pub blocked: u64,
    /// Guests that wait for a worker.
    pub run_queue: u64,
}

/// A task.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct TaskInfo {
    /// The generation that runs it.
    pub generation: String,
    /// containerd's namespace.
    pub namespace: String,
    /// Its id.
    pub id: String,
    /// The kind of task.
    pub kind: TaskKind,
    /// Its pod, if it belongs to one.
    pub pod: Option<PodName>,
    /// Its image's name, if CRI gives it.
    pub image: Option<String>,
    /// The first of its arguments.
    pub program: String,
    /// The SHA-256 digest of its module, in hex; empty for a sandbox.
    pub module: String,
    /// `created`, `running`, `paused` or `stopped`.
    pub state: String,
    /// The exit status, once it has stopped.
    pub exit_status: Option<u32>,
    /// The process id that containerd knows.
    pub pid: u32,
    /// The time of the Create request.
    pub created_at: f64,
    /// Execs that run.
    pub execs: u64,
    /// CPU time of all its processes.
    pub cpu_seconds: f64,
    /// The time for which its CPU quota stopped it.
    pub throttled_seconds: f64,
    /// The present size of its linear memories and tables.
    pub memory_bytes: u64,
    /// Their largest size so far.
    pub memory_peak_bytes: u64,
    /// The limit of their size.
    pub memory_limit_bytes: u64,
    /// The number of times it was refused memory.
    pub memory_refused: u64,
    /// Whether it ended because it was refused memory.
    pub out_of_memory: bool,
    /// Traps of all its guests.
    pub traps: u64,
    /// Which process runs it: `node` (the node's daemon) or `pod` (one of its pod's own).
    pub isolation: String,
}

/// A task in detail.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct TaskDetails {
    /// As in the list.
    pub task: TaskInfo,
    /// Its image's name, as containerd has it.
    pub image: Option<String>,
    /// Its bundle.
    pub bundle: String,
    /// The targets of its stdin, stdout and stderr.
    pub stdio: Vec<String>,
    /// The things beside memory that it has taken from the node, by kind.
    pub budgets: Vec<BudgetInfo>,
    /// What it is, if it is a Spin application.
    pub application: Option<ApplicationInfo>,
    /// Its start.
    pub start: StartInfo,
    /// Abnormal ends of its guests.
    pub ends: Vec<EndInfo>,
}

/// One kind of thing that a task takes from the node.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct BudgetInfo {
    /// The kind.
    pub kind: String,
    /// How much it has.
    pub used: u64,
    /// How much it may have.
    pub limit: u64,
    /// How often it was refused more, or had to wait.
    pub refused: u64,
}

/// The names of a task.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct TaskName {
    /// The generation that has it, or had it.
    pub generation: String,
    /// containerd's namespace.
    pub namespace: String,
    /// Its id.
    pub id: String,
    /// Its pod, if it belongs to one.
    pub pod: Option<PodName>,
    /// Its image's name, if CRI gives it.
    pub image: Option<String>,
    /// The first of its arguments.
    pub program: String,
}

/// The course of a start. A step that has not happened is absent.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct StartInfo {
    /// The task.
    #[serde(flatten)]
    pub of: TaskName,
    /// The SHA-256 digest of its module, in hex.
    pub module: String,
    /// The source of the module: `warm`, `disk` or `compiled`.
    pub source: Option<String>,
    /// The time of Create's request. The following durations begin there.
    pub created_at: f64,
    /// The time from containerd's writing of the bundle until Create's request.
    pub bundle_written_at: Option<f64>,
    /// Until the answer to Create.
    pub create_seconds: Option<f64>,
    /// Until Start's request.
    pub start_began_seconds: Option<f64>,
    /// Until the guest's first instruction, or until the service listened on its port.
    pub started_seconds: Option<f64>,
    /// The time that hearthd itself needed, without the caller's time between Create and Start.
    pub own_seconds: Option<f64>,
    /// Its phases, in the order in which they are measured.
    pub phases: Vec<PhaseInfo>,
    /// Its OpenTelemetry trace, if traces are on and it was sampled.
    pub trace_id: Option<String>,
    /// The error, if it failed.
    pub error: Option<String>,
}

/// A phase of a start, or a part of an HTTP request's time.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct PhaseInfo {
    /// As in the metric `hearth_start_phase_seconds`, or in `hearth_http_pod_phase_seconds`.
    pub name: String,
    /// Its begin, counted from Create's request, or from the HTTP request's head.
    pub began_seconds: f64,
    /// Its duration.
    pub seconds: f64,
}

/// An HTTP request that a guest served.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct RequestInfo {
    /// The task.
    #[serde(flatten)]
    pub of: TaskName,
    /// The time of its end.
    pub at: f64,
    /// Its method and path.
    pub request: String,
    /// The status code of the response; 0 if there was none.
    pub status: u16,
    /// Whether the client did not get all of the response.
    pub cut: bool,
    /// The time from its head to the response's end.
    pub seconds: f64,
    /// The parts of that time, in their order: `queue`, `instance`, `head`, `body`. A part that it did not come to is
    /// absent.
    pub phases: Vec<PhaseInfo>,
    /// The id of its trace, in hex, if the client sent one (`traceparent`).
    pub trace_id: Option<String>,
}

/// An abnormal end of a guest.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct EndInfo {
    /// The task.
    #[serde(flatten)]
    pub of: TaskName,
    /// The time.
    pub at: f64,
    /// The kind of end.
    pub kind: EndKind,
    /// The exit status; of a request, the HTTP status.
    pub status: u32,
    /// The error; wasmtime's has a backtrace.
    pub text: String,
}

/// The kind of an abnormal end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EndKind {
    /// A guest trapped.
    #[default]
    Trap,
    /// A guest ended because it was refused memory.
    OutOfMemory,
    /// The guest of an HTTP request trapped.
    Request,
    /// The guest of an HTTP request gave no response, or not all of it.
    Response,
    /// An HTTP request took too long.
    TimeOut,
    /// A host function panicked: an error in hearthd.
    Panic,
    /// The guest could not be started.
    NotStarted,
}

impl EndKind {
    /// The name for people.
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
    /// The number of the line, counted from 1.
    pub number: u64,
    /// The time.
    pub at: f64,
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub level: String,
    /// The part of the daemon.
    pub target: String,
    /// The task that the line concerns, if any.
    pub task: Option<String>,
    /// The message and its fields.
    pub text: String,
}

/// The filters of the log.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct LogLevel {
    /// The filter in force.
    pub current: String,
    /// The filter of the configuration.
    pub configured: String,
}

/// The kind of a task.
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

/// The pod of a container, by Kubernetes' names.
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
