//! Metrics of the daemon: names, help, labels, buckets. No other module registers one.
//!
//! Each room of the daemon has a struct here, and [`Metrics`] is their composition: code counts by
//! `metrics.ROOM.FIELD`. Labels are bounded enumerations; each child is looked up once, at the declaration, so that
//! counting on the start path is one atomic operation.
//!
//! * `declare.rs`: declares a counter, gauge or histogram in the registry; buckets of a start's phases.
//! * `starts.rs`: duration of each phase of a start, of a whole start, starts by result.
//! * `rpcs.rs`: latency and errors of the Task API's methods.
//! * `tasks.rs`: tasks by state, traps, out-of-memory ends, mounts, network holders, native containers.
//! * `modules.rs`: look-ups of modules, compiles, compiles ahead of a start, artifacts on disk.
//! * `scheduler.rs`: workers, CPU time and quotas of guests, slots of the engine's pool.
//! * `http.rs`: requests to guests and requests that guests send.
//! * `http_pods.rs`: the same by pod and container, with `metrics.pods`.
//! * `events.rs`: events queued for containerd, sent, refused.
//! * `cells.rs`: processes of pods at isolation level `pod`.
//! * `log.rs`: lines of the log by level, lines left out.
//! * `tenants.rs`: the budgets of containers, by kind, and their refusals.
//! * `traces.rs`: spans that an OpenTelemetry collector took, starts whose trace is lost.
//! * `task_series.rs`: series of single tasks (CPU, memory, traps), and the limit of their number.
//! * `process.rs`: CPU, memory, descriptors and threads of the daemon's process.

mod cells;
mod declare;
mod events;
mod http;
mod http_pods;
mod log;
mod modules;
pub mod process;
mod rpcs;
mod scheduler;
mod starts;
pub mod task_series;
mod tasks;
mod tenants;
#[cfg(test)]
mod tests;
mod traces;

use hearth_base::version;
use prometheus::{Registry, TextEncoder};

pub use cells::CellMetrics;
pub use events::EventMetrics;
pub use http::{CutReason, Handshake, HttpMetrics, OutgoingMetrics};
pub use http_pods::{HttpPod, REQUEST_PHASES};
pub use log::{LogMetrics, level_name};
pub use modules::{CompileMetrics, ModuleMetrics, StoreMetrics};
pub use rpcs::{METHODS, RpcMetrics};
pub use scheduler::{EngineMetrics, SchedulerMetrics};
pub use starts::StartMetrics;
pub use tasks::TaskMetrics;
pub use tenants::TenantMetrics;
pub use traces::TraceMetrics;

/// The phases of a start, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Reading and checking `config.json`.
    Bundle,
    /// Finding the module: from the request to a prepared module or the decision to compile.
    Lookup,
    /// Waiting for a compile, where one was needed.
    Compile,
    /// Mounting the root and the volumes.
    Mounts,
    /// A store and an instance from the pool.
    Instantiate,
    /// From the instance to the guest's first instruction: finding the entry point and calling it.
    FirstCall,
}

/// All phases with their label values.
pub const PHASES: [(Phase, &str); 6] = [
    (Phase::Bundle, "bundle"),
    (Phase::Lookup, "lookup"),
    (Phase::Compile, "compile"),
    (Phase::Mounts, "mounts"),
    (Phase::Instantiate, "instantiate"),
    (Phase::FirstCall, "first_call"),
];

/// Where a module came from. Daemons and cells send each other the numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Prepared in memory.
    Warm = 0,
    /// A compiled artifact on disk.
    Disk = 1,
    /// Compiled for this start.
    Compiled = 2,
}

impl Source {
    /// The source with a number; a compile for a number that this release does not know.
    pub fn of(number: u32) -> Source {
        let known = SOURCES.iter().map(|(source, _)| *source);
        known.into_iter().find(|source| *source as u32 == number).unwrap_or(Source::Compiled)
    }
}

/// All sources with their label values.
pub const SOURCES: [(Source, &str); 3] =
    [(Source::Warm, "warm"), (Source::Disk, "disk"), (Source::Compiled, "compiled")];

/// Every metric that the registry holds.
pub struct Metrics {
    registry: Registry,
    /// Starts of tasks.
    pub starts: StartMetrics,
    /// Calls of the Task API.
    pub rpcs: RpcMetrics,
    /// Tasks.
    pub tasks: TaskMetrics,
    /// Modules in memory.
    pub modules: ModuleMetrics,
    /// Compiles.
    pub compiles: CompileMetrics,
    /// Artifacts on disk.
    pub store: StoreMetrics,
    /// Engines and the pool's slots.
    pub engine: EngineMetrics,
    /// Workers and guests' CPU time.
    pub scheduler: SchedulerMetrics,
    /// HTTP.
    pub http: HttpMetrics,
    /// Events to containerd.
    pub events: EventMetrics,
    /// Processes of pods.
    pub cells: CellMetrics,
    /// The daemon's log.
    pub log: LogMetrics,
    /// Traces of starts.
    pub traces: TraceMetrics,
    /// The budgets of containers.
    pub tenants: TenantMetrics,
}

impl Metrics {
    /// Declares every metric.
    ///
    /// # Panics
    /// If two metrics have the same name, which every test would show.
    pub fn new() -> Metrics {
        let registry = Registry::new();
        let labels = ["version", "wasmtime"];
        let build =
            declare::Declare(&registry).gauges("hearth_build_info", "Constant 1, labelled by version.", &labels);
        build.with_label_values(&[version::HEARTH, version::WASMTIME]).set(1);
        Metrics {
            starts: StartMetrics::new(&registry),
            rpcs: RpcMetrics::new(&registry),
            tasks: TaskMetrics::new(&registry),
            modules: ModuleMetrics::new(&registry),
            compiles: CompileMetrics::new(&registry),
            store: StoreMetrics::new(&registry),
            engine: EngineMetrics::new(&registry),
            scheduler: SchedulerMetrics::new(&registry),
            http: HttpMetrics::new(&registry),
            events: EventMetrics::new(&registry),
            cells: CellMetrics::new(&registry),
            log: LogMetrics::new(&registry),
            traces: TraceMetrics::new(&registry),
            tenants: TenantMetrics::new(&registry),
            registry,
        }
    }

    /// Everything in Prometheus' text format.
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail, and every family is well formed.
        let _ = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text);
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}
