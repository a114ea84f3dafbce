//! Every metric of the daemon: name, help, labels, buckets. Nothing else registers one.
//!
//! Labels are bounded enumerations; each child is looked up once, here, so that touching a metric on
//! the start path is one atomic operation. Series of single tasks are in [`tasks`],
//! those of the process itself in [`process`].

pub mod process;
pub mod tasks;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use hearth_base::version;
use parking_lot::Mutex;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

/// Buckets of a start's phases, in seconds: from a microsecond to a slow compile.
const PHASE_BUCKETS: &[f64] = &[
    1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0,
    5.0, 10.0, 30.0,
];

/// Buckets of an RPC's latency, in seconds. `Wait` lasts as long as its task and is left out.
const RPC_BUCKETS: &[f64] = &[5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 5e-3, 2e-2, 0.1, 0.5, 2.0, 10.0];

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

/// Where a module came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Prepared in memory.
    Warm,
    /// A compiled artifact on disk.
    Disk,
    /// Compiled for this start.
    Compiled,
}

/// All sources with their label values.
pub const SOURCES: [(Source, &str); 3] =
    [(Source::Warm, "warm"), (Source::Disk, "disk"), (Source::Compiled, "compiled")];

/// The Task API's methods, as labels of the RPC histogram.
pub const METHODS: [&str; 17] = [
    "state",
    "create",
    "start",
    "delete",
    "pids",
    "pause",
    "resume",
    "checkpoint",
    "kill",
    "exec",
    "resize_pty",
    "close_io",
    "update",
    "wait",
    "stats",
    "connect",
    "shutdown",
];

/// Classes of HTTP status codes, as labels.
const HTTP_CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Every metric.
pub struct Metrics {
    registry: Registry,
    phases: [Histogram; PHASES.len()],
    /// Create's arrival to the guest's first instruction, less the caller's own time between Create
    /// and Start, by where the module came from.
    starts_by_source: [Histogram; SOURCES.len()],
    lookups: [IntCounter; SOURCES.len()],
    rpcs: [Histogram; METHODS.len()],
    /// RPCs that answered an error, by method.
    pub rpc_errors: IntCounterVec,
    /// Starts that answered OK.
    pub starts_ok: IntCounter,
    /// Creates and starts that answered an error.
    pub starts_failed: IntCounter,
    /// Tasks alive, by state.
    pub tasks: IntGaugeVec,
    /// The pool's slots, by state.
    pub pool_slots: IntGaugeVec,
    /// Guests running outside the pool.
    pub on_demand_instances: IntGauge,
    /// Guests that trapped.
    pub traps: IntCounter,
    /// Compile processes, by result.
    pub compiles: IntCounterVec,
    /// Duration of compile processes.
    pub compile_seconds: Histogram,
    /// Processes of the baseline compiler, by result.
    pub baseline_compiles: IntCounterVec,
    /// Duration of those.
    pub baseline_compile_seconds: Histogram,
    /// Modules started on baseline code whose optimised code took its place, or could not be made.
    pub module_swaps: IntCounterVec,
    /// Compiles running or waiting.
    pub compiles_pending: IntGauge,
    /// Images looked at before their first start, by what became of them.
    pub images_ahead: IntCounterVec,
    /// Module files opened and read (a warm start opens none).
    pub module_reads: IntCounter,
    /// Artifacts on disk.
    pub store_artifacts: IntGauge,
    /// Bytes of the artifacts on disk.
    pub store_bytes: IntGauge,
    /// Artifacts removed for room.
    pub store_evictions: IntCounter,
    /// Artifacts found damaged, truncated or foreign, and compiled again.
    pub store_damaged: IntCounter,
    /// Artifacts that could not be written; their tasks ran all the same.
    pub store_write_failures: IntCounter,
    /// Modules prepared in memory.
    pub modules_prepared: IntGauge,
    /// Events waiting for containerd.
    pub events_queued: IntGauge,
    /// Events containerd has taken.
    pub events_sent: IntCounter,
    /// Deliveries that failed and were tried again.
    pub events_retried: IntCounter,
    /// Events containerd will never take.
    pub events_refused: IntCounter,
    /// Guests that can run and wait for a worker.
    pub run_queue: IntGauge,
    /// Worker threads, by state.
    pub workers: IntGaugeVec,
    /// Root file systems and volumes mounted.
    pub mounts: IntGauge,
    /// CPU time spent in guests.
    pub guest_cpu_seconds: prometheus::Counter,
    /// Times a guest had to wait for its CPU quota.
    pub guest_throttled: IntCounter,
    /// How long guests waited for their CPU quotas.
    pub guest_throttled_seconds: prometheus::Counter,
    /// Guests that ended for want of memory.
    pub oom_kills: IntCounter,
    http_requests: [IntCounter; HTTP_CLASSES.len()],
    /// Time from an HTTP request's head to its response's head.
    pub http_first_byte_seconds: Histogram,
    /// Time from an HTTP request's head to its response's end.
    pub http_request_seconds: Histogram,
    /// Time to make an HTTP request's instance.
    pub http_instantiate_seconds: Histogram,
    /// HTTP requests that have an instance.
    pub http_in_flight: IntGauge,
    /// HTTP requests that wait for their turn.
    pub http_queued: IntGauge,
    /// HTTP requests refused for a limit.
    pub http_refused: IntCounter,
    /// HTTP requests whose guest trapped.
    pub http_traps: IntCounter,
    /// From the container's making by containerd to the guest's first instruction, by source.
    container_starts: [Histogram; SOURCES.len()],
    /// Starts that were not looked at afterwards, for want of room in the queue.
    pub start_records_dropped: IntCounter,
    /// Spans of starts, by what became of them at the OpenTelemetry collector.
    pub trace_spans: IntCounterVec,
    /// Starts whose trace is lost, for want of room in the queue to the collector.
    pub trace_starts_dropped: IntCounter,
    log_lines: [IntCounter; LOG_LEVELS.len()],
    /// Lines that guests triggered faster than they are logged.
    pub log_lines_suppressed: IntCounter,
    /// 1 while no new tasks are taken.
    pub draining: IntGauge,
    /// As many tasks as there may be.
    pub tasks_limit: IntGauge,
    /// Tasks with metrics of their own, and without.
    pub task_series: IntGaugeVec,
    /// Native containers in pods.
    pub native_containers: IntGauge,
    /// Polls of guests that went on for long after the end of their slice.
    pub slice_overruns: IntCounter,
    /// Workers that were replaced because they were blocked.
    pub workers_replaced: IntCounter,
    /// Network namespaces made in advance.
    pub holders_ready: IntGauge,
    /// Processes started to hold a network namespace.
    pub holders_started: IntCounter,
    /// Compile processes that run.
    pub compiles_running: IntGauge,
    /// Modules that cannot be compiled, remembered for a while.
    pub modules_rejected: IntGauge,
    /// Bytes that artifacts may take on disk.
    pub store_limit_bytes: IntGauge,
    engine: IntGaugeVec,
    http_outgoing: [IntCounter; HTTP_CLASSES.len()],
    /// Guests' own HTTP requests that got no response.
    pub http_outgoing_failed: IntCounter,
    /// Connections of guests' own HTTP requests.
    pub http_outgoing_connections: IntGauge,
    http_pods: Arc<HttpPods>,
}

/// Levels of log lines, as labels.
const LOG_LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

impl Metrics {
    /// Declares every metric.
    ///
    /// # Panics
    /// If two have one name: a mistake in this file.
    pub fn new() -> Metrics {
        let registry = Registry::new();
        let declare = Declare(&registry);
        let phases = declare.histograms(
            "hearth_start_phase_seconds",
            "Duration of each phase of a task's start, in seconds.",
            "phase",
            PHASE_BUCKETS,
        );
        let starts = declare.histograms(
            "hearth_start_seconds",
            "Time hearthd needed from Create to the guest's first instruction, or to an HTTP component's port (without the caller's time between Create and Start), in seconds, by where the module came from.",
            "source",
            PHASE_BUCKETS,
        );
        let lookups =
            declare.counters("hearth_module_lookups_total", "Module look-ups by where the module was found.", "source");
        let rpcs = declare.histograms(
            "hearth_rpc_seconds",
            "Latency of Task API calls in seconds; wait is counted when it is answered.",
            "method",
            RPC_BUCKETS,
        );
        let results = declare.counters(
            "hearth_task_starts_total",
            "Starts by result; a Create that fails counts as an error.",
            "result",
        );
        let container_starts = declare.histograms(
            "hearth_container_start_seconds",
            "Time from the container's making by containerd (a pod's: of its snapshot, in CRI's CreateContainer; else of its bundle) to the guest's first instruction, in seconds, by where the module came from.",
            "source",
            PHASE_BUCKETS,
        );
        let log_lines = declare.counters("hearth_log_lines_total", "Lines of the daemon's log by level.", "level");
        let http_requests = declare.counters(
            "hearth_http_requests_total",
            "HTTP requests by the class of the answer's status code.",
            "code",
        );
        let http_outgoing = declare.counters(
            "hearth_http_outgoing_requests_total",
            "HTTP requests that guests sent, by the class of the answer's status code, or failed.",
            "code",
        );
        let build = IntGaugeVec::new(
            Opts::new("hearth_build_info", "Constant 1, labelled by version."),
            &["version", "wasmtime"],
        )
        .expect("constant options");
        build.with_label_values(&[version::HEARTH, version::WASMTIME]).set(1);
        registry.register(Box::new(build)).expect("one name each");
        let metrics = Metrics {
            phases: PHASES.map(|(_, name)| phases.with_label_values(&[name])),
            starts_by_source: SOURCES.map(|(_, name)| starts.with_label_values(&[name])),
            lookups: SOURCES.map(|(_, name)| lookups.with_label_values(&[name])),
            rpcs: METHODS.map(|name| rpcs.with_label_values(&[name])),
            rpc_errors: declare.counters("hearth_rpc_errors_total", "Task API calls answered with an error.", "method"),
            starts_ok: results.with_label_values(&["ok"]),
            starts_failed: results.with_label_values(&["error"]),
            tasks: declare.gauges("hearth_tasks", "Tasks alive by state.", "state"),
            pool_slots: declare.gauges("hearth_pool_slots", "Slots of the pooling allocator by state.", "state"),
            on_demand_instances: declare
                .gauge("hearth_on_demand_instances", "Guests running outside the pool because it was full."),
            traps: declare.counter("hearth_traps_total", "Guests that ended by a trap."),
            compiles: declare.counters("hearth_compiles_total", "Compile processes by result.", "result"),
            compile_seconds: declare.histogram(
                "hearth_compile_seconds",
                "Duration of compile processes in seconds.",
                PHASE_BUCKETS,
            ),
            baseline_compiles: declare.counters(
                "hearth_baseline_compiles_total",
                "Processes of the baseline compiler by result; `unwanted`: what was looked at is no such service, `invalid`: the baseline compiler does not take it.",
                "result",
            ),
            baseline_compile_seconds: declare.histogram(
                "hearth_baseline_compile_seconds",
                "Duration of the baseline compiler's processes in seconds.",
                PHASE_BUCKETS,
            ),
            module_swaps: declare.counters(
                "hearth_module_swaps_total",
                "Modules started on baseline code: `done` when optimised code took its place, `failed` when that could not be made.",
                "result",
            ),
            images_ahead: declare.counters(
                "hearth_images_ahead_total",
                "Images looked at before a start of theirs, by what became of them: compiled, known already, not WebAssembly, late (not unpacked in time), failed.",
                "result",
            ),
            compiles_pending: declare.gauge("hearth_compiles_pending", "Compiles running or waiting for their turn."),
            module_reads: declare
                .counter("hearth_module_reads_total", "Module files opened and read; a warm start opens none."),
            store_artifacts: declare.gauge("hearth_module_store_artifacts", "Compiled artifacts on disk."),
            store_bytes: declare.gauge("hearth_module_store_bytes", "Bytes of the compiled artifacts on disk."),
            store_evictions: declare.counter(
                "hearth_module_store_evictions_total",
                "Artifacts removed to keep the store within modules.store_bytes_max.",
            ),
            store_damaged: declare.counter(
                "hearth_module_store_damaged_total",
                "Artifacts found damaged, truncated or foreign, removed and compiled again.",
            ),
            store_write_failures: declare.counter(
                "hearth_module_store_write_failures_total",
                "Artifacts that could not be written to disk; their tasks ran from memory.",
            ),
            modules_prepared: declare.gauge("hearth_modules_prepared", "Modules kept prepared in memory."),
            events_queued: declare.gauge("hearth_events_queued", "Events waiting for containerd."),
            events_sent: declare.counter("hearth_events_sent_total", "Events that containerd has taken."),
            events_retried: declare
                .counter("hearth_events_retried_total", "Deliveries of events that failed and were tried again."),
            events_refused: declare.counter(
                "hearth_events_refused_total",
                "Events that containerd will never take (it says why in the log); not tried again.",
            ),
            run_queue: declare.gauge("hearth_run_queue", "Guests that can run and wait for a worker."),
            workers: declare.gauges(
                "hearth_workers",
                "Threads that run guests, by state; blocked: in a system call for long.",
                "state",
            ),
            mounts: declare.gauge("hearth_mounts", "Mounts of tasks' roots and volumes that exist now."),
            guest_cpu_seconds: declare.float_counter("hearth_guest_cpu_seconds_total", "CPU time spent in guests."),
            guest_throttled: declare
                .counter("hearth_guest_throttled_total", "Times that a guest had to wait for its CPU quota."),
            guest_throttled_seconds: declare.float_counter(
                "hearth_guest_throttled_seconds_total",
                "Time that guests waited for their CPU quotas, in seconds.",
            ),
            http_requests: HTTP_CLASSES.map(|class| http_requests.with_label_values(&[class])),
            http_first_byte_seconds: declare.histogram(
                "hearth_http_first_byte_seconds",
                "Time from an HTTP request's head to its response's head, in seconds.",
                PHASE_BUCKETS,
            ),
            http_request_seconds: declare.histogram(
                "hearth_http_request_seconds",
                "Time from an HTTP request's head to its response's end, in seconds.",
                PHASE_BUCKETS,
            ),
            http_instantiate_seconds: declare.histogram(
                "hearth_http_instantiate_seconds",
                "Time to make the instance for an HTTP request, in seconds.",
                PHASE_BUCKETS,
            ),
            http_in_flight: declare.gauge("hearth_http_requests_in_flight", "HTTP requests that have an instance now."),
            http_queued: declare.gauge("hearth_http_requests_queued", "HTTP requests that wait for their turn."),
            http_refused: declare.counter(
                "hearth_http_requests_refused_total",
                "HTTP requests answered with 503 for a limit of the node's.",
            ),
            http_traps: declare.counter("hearth_http_traps_total", "HTTP requests whose guest trapped."),
            http_outgoing: HTTP_CLASSES.map(|class| http_outgoing.with_label_values(&[class])),
            http_outgoing_failed: http_outgoing.with_label_values(&["failed"]),
            http_outgoing_connections: declare.gauge(
                "hearth_http_outgoing_connections",
                "Connections open for HTTP requests of guests, idle ones included.",
            ),
            http_pods: Arc::new(HttpPods::new(&declare)),
            oom_kills: declare.counter(
                "hearth_oom_kills_total",
                "Guests that ended because they were refused memory over their limit.",
            ),
            container_starts: SOURCES.map(|(_, name)| container_starts.with_label_values(&[name])),
            start_records_dropped: declare.counter(
                "hearth_start_records_dropped_total",
                "Starts that were not measured from their container's making, for want of room in a queue.",
            ),
            trace_spans: declare.counters(
                "hearth_trace_spans_total",
                "Spans of starts by what became of them at the OpenTelemetry collector: sent, failed.",
                "result",
            ),
            trace_starts_dropped: declare.counter(
                "hearth_trace_starts_dropped_total",
                "Starts whose trace is lost, for want of room in the queue to the OpenTelemetry collector (OTEL_BSP_MAX_QUEUE_SIZE).",
            ),
            log_lines: LOG_LEVELS.map(|level| log_lines.with_label_values(&[level])),
            log_lines_suppressed: declare.counter(
                "hearth_log_lines_suppressed_total",
                "Lines left out of the daemon's log because guests triggered too many of them.",
            ),
            draining: declare.gauge("hearth_draining", "1 while the daemon takes no new tasks (hearthctl drain)."),
            tasks_limit: declare.gauge("hearth_tasks_limit", "As many tasks as there may be (rpc.tasks_max)."),
            task_series: declare.gauges(
                "hearth_task_series",
                "Tasks with hearth_task metrics of their own, and those folded into task=\"other\" (metrics.task_series_max).",
                "kind",
            ),
            native_containers: declare.gauge("hearth_native_containers", "Native containers in pods of this runtime."),
            slice_overruns: declare.counter(
                "hearth_guest_slice_overruns_total",
                "Times that a guest was in one poll for long after the end of its slice: in a system call, or on a starved node.",
            ),
            workers_replaced: declare.counter(
                "hearth_workers_replaced_total",
                "Workers replaced because they were blocked in a guest's system call.",
            ),
            holders_ready: declare
                .gauge("hearth_network_holders_ready", "Network namespaces made in advance, each with its process."),
            holders_started: declare.counter(
                "hearth_network_holders_started_total",
                "Processes started to hold a network namespace for a task.",
            ),
            compiles_running: declare.gauge("hearth_compiles_running", "Compile processes that run now."),
            modules_rejected: declare
                .gauge("hearth_modules_rejected", "Modules that cannot be compiled, remembered for a while."),
            store_limit_bytes: declare.gauge(
                "hearth_module_store_limit_bytes",
                "Bytes that compiled artifacts may take on disk (modules.store_bytes_max).",
            ),
            engine: declare.gauges(
                "hearth_engine_info",
                "Constant 1, labelled by the engine's fingerprint: artifacts of another are compiled again.",
                "fingerprint",
            ),
            registry: registry.clone(),
        };
        metrics.fill();
        metrics
    }

    /// Makes every child exist, so that a series is 0 rather than absent before its first event.
    fn fill(&self) {
        for state in ["created", "running", "paused", "stopped"] {
            self.tasks.with_label_values(&[state]);
        }
        for state in ["used", "free"] {
            self.pool_slots.with_label_values(&[state]);
        }
        for state in ["idle", "running", "blocked"] {
            self.workers.with_label_values(&[state]);
        }
        for result in ["ok", "invalid", "limit", "crashed", "failed"] {
            self.compiles.with_label_values(&[result]);
            self.baseline_compiles.with_label_values(&[result]);
        }
        self.baseline_compiles.with_label_values(&["unwanted"]);
        for result in ["done", "failed"] {
            self.module_swaps.with_label_values(&[result]);
        }
        for result in ["compiled", "known", "not_wasm", "late", "failed"] {
            self.images_ahead.with_label_values(&[result]);
        }
        for result in ["sent", "failed"] {
            self.trace_spans.with_label_values(&[result]);
        }
        for method in METHODS {
            self.rpc_errors.with_label_values(&[method]);
        }
        for kind in ["own", "folded"] {
            self.task_series.with_label_values(&[kind]);
        }
    }

    /// Notes which engine this daemon has.
    pub fn engine(&self, fingerprint: &str) {
        self.engine.with_label_values(&[fingerprint]).set(1);
    }

    /// Counts a line of the log.
    pub fn log_line(&self, level: tracing::Level) {
        let level = level_name(level);
        if let Some(index) = LOG_LEVELS.iter().position(|known| *known == level) {
            self.log_lines[index].inc();
        }
    }

    /// Notes how long a container took from its making to its guest's first instruction.
    pub fn container_start(&self, source: Source, took: Duration) {
        self.container_starts[source as usize].observe(took.as_secs_f64());
    }

    /// Notes how long a phase took.
    pub fn phase(&self, phase: Phase, took: Duration) {
        self.phases[phase as usize].observe(took.as_secs_f64());
    }

    /// Notes how long a whole start took.
    pub fn start(&self, source: Source, took: Duration) {
        self.starts_by_source[source as usize].observe(took.as_secs_f64());
    }

    /// Counts a look-up.
    pub fn lookup(&self, source: Source) {
        self.lookups[source as usize].inc();
    }

    /// Counts an HTTP response.
    pub fn http_request(&self, status: u16) {
        self.http_requests[http_class(status)].inc();
    }

    /// Counts the response to a guest's own HTTP request.
    pub fn http_outgoing(&self, status: u16) {
        self.http_outgoing[http_class(status)].inc();
    }

    /// The metrics of a pod's container that serves HTTP: its namespace, its name, the container's. They are
    /// gone when the last one who has them drops them.
    pub fn http_pod(&self, labels: [&str; 3]) -> HttpPod {
        HttpPods::get(&self.http_pods, labels)
    }

    /// The latency histogram of `METHODS[method]`.
    pub fn rpc(&self, method: usize) -> &Histogram {
        &self.rpcs[method]
    }

    /// Everything in Prometheus' text format.
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail, and our families are well formed.
        let _ = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text);
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

/// Labels of what is told of a pod.
const POD_LABELS: [&str; 3] = ["namespace", "pod", "container"];

/// Buckets of a pod's request times, in seconds: fewer than elsewhere, as there are many pods.
const POD_BUCKETS: &[f64] = &[1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0];

/// Metrics of HTTP components by pod; there is nothing in them unless `metrics.pods` asks for it.
struct HttpPods {
    requests: IntCounterVec,
    first_byte: HistogramVec,
    request: HistogramVec,
    instantiate: HistogramVec,
    in_flight: IntGaugeVec,
    queued: IntGaugeVec,
    refused: IntCounterVec,
    traps: IntCounterVec,
    /// How many have each: a container and the one that follows it may for a moment be of one name.
    held: Mutex<HashMap<[String; 3], usize>>,
}

impl HttpPods {
    fn new(declare: &Declare<'_>) -> HttpPods {
        let with_code = [&POD_LABELS[..], &["code"]].concat();
        let counter = |name: &str, help: &str, labels: &[&str]| {
            declare.add(IntCounterVec::new(Opts::new(name, help), labels).expect("constant options"))
        };
        let gauge = |name: &str, help: &str| {
            declare.add(IntGaugeVec::new(Opts::new(name, help), &POD_LABELS).expect("constant options"))
        };
        let histogram = |name: &str, help: &str| {
            let options = HistogramOpts::new(name, help).buckets(POD_BUCKETS.to_vec());
            declare.add(HistogramVec::new(options, &POD_LABELS).expect("constant options"))
        };
        HttpPods {
            requests: counter(
                "hearth_http_pod_requests_total",
                "HTTP requests by pod and the class of the answer's status code.",
                &with_code,
            ),
            first_byte: histogram(
                "hearth_http_pod_first_byte_seconds",
                "Time from an HTTP request's head to its response's head, in seconds, by pod.",
            ),
            request: histogram(
                "hearth_http_pod_request_seconds",
                "Time from an HTTP request's head to its response's end, in seconds, by pod.",
            ),
            instantiate: histogram(
                "hearth_http_pod_instantiate_seconds",
                "Time to make the instance for an HTTP request, in seconds, by pod.",
            ),
            in_flight: gauge("hearth_http_pod_requests_in_flight", "HTTP requests that have an instance now, by pod."),
            queued: gauge("hearth_http_pod_requests_queued", "HTTP requests that wait for their turn, by pod."),
            refused: counter(
                "hearth_http_pod_requests_refused_total",
                "HTTP requests answered with 503 for a limit, by pod.",
                &POD_LABELS,
            ),
            traps: counter("hearth_http_pod_traps_total", "HTTP requests whose guest trapped, by pod.", &POD_LABELS),
            held: Mutex::default(),
        }
    }

    fn get(pods: &Arc<HttpPods>, labels: [&str; 3]) -> HttpPod {
        *pods.held.lock().entry(labels.map(str::to_string)).or_default() += 1;
        let code = |class| pods.requests.with_label_values(&[labels[0], labels[1], labels[2], class]);
        HttpPod {
            requests: HTTP_CLASSES.map(code),
            first_byte_seconds: pods.first_byte.with_label_values(&labels),
            request_seconds: pods.request.with_label_values(&labels),
            instantiate_seconds: pods.instantiate.with_label_values(&labels),
            in_flight: pods.in_flight.with_label_values(&labels),
            queued: pods.queued.with_label_values(&labels),
            refused: pods.refused.with_label_values(&labels),
            traps: pods.traps.with_label_values(&labels),
            labels: labels.map(str::to_string),
            pods: pods.clone(),
        }
    }

    fn give_back(&self, labels: &[String; 3]) {
        let mut held = self.held.lock();
        let Some(count) = held.get_mut(labels) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        held.remove(labels);
        let labels = [labels[0].as_str(), labels[1].as_str(), labels[2].as_str()];
        for class in HTTP_CLASSES {
            let _ = self.requests.remove_label_values(&[labels[0], labels[1], labels[2], class]);
        }
        for histogram in [&self.first_byte, &self.request, &self.instantiate] {
            let _ = histogram.remove_label_values(&labels);
        }
        for gauge in [&self.in_flight, &self.queued] {
            let _ = gauge.remove_label_values(&labels);
        }
        for counter in [&self.refused, &self.traps] {
            let _ = counter.remove_label_values(&labels);
        }
    }
}

/// The metrics of one container that serves HTTP; gone when this is dropped.
pub struct HttpPod {
    requests: [IntCounter; HTTP_CLASSES.len()],
    /// As [`Metrics::http_first_byte_seconds`].
    pub first_byte_seconds: Histogram,
    /// As [`Metrics::http_request_seconds`].
    pub request_seconds: Histogram,
    /// As [`Metrics::http_instantiate_seconds`].
    pub instantiate_seconds: Histogram,
    /// As [`Metrics::http_in_flight`].
    pub in_flight: IntGauge,
    /// As [`Metrics::http_queued`].
    pub queued: IntGauge,
    /// As [`Metrics::http_refused`].
    pub refused: IntCounter,
    /// As [`Metrics::http_traps`].
    pub traps: IntCounter,
    labels: [String; 3],
    pods: Arc<HttpPods>,
}

impl HttpPod {
    /// Counts a response.
    pub fn request(&self, status: u16) {
        self.requests[http_class(status)].inc();
    }
}

impl Drop for HttpPod {
    fn drop(&mut self) {
        self.pods.give_back(&self.labels);
    }
}

/// Which of [`HTTP_CLASSES`] a status code is.
fn http_class(status: u16) -> usize {
    usize::from(status / 100).clamp(1, HTTP_CLASSES.len()) - 1
}

/// Declares metrics in a registry.
struct Declare<'a>(&'a Registry);

impl Declare<'_> {
    fn add<C: prometheus::core::Collector + Clone + 'static>(&self, collector: C) -> C {
        self.0.register(Box::new(collector.clone())).expect("one name each");
        collector
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help).expect("constant options"))
    }

    fn float_counter(&self, name: &str, help: &str) -> prometheus::Counter {
        self.add(prometheus::Counter::new(name, help).expect("constant options"))
    }

    fn counters(&self, name: &str, help: &str, label: &str) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), &[label]).expect("constant options"))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help).expect("constant options"))
    }

    fn gauges(&self, name: &str, help: &str, label: &str) -> IntGaugeVec {
        self.add(IntGaugeVec::new(Opts::new(name, help), &[label]).expect("constant options"))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.add(Histogram::with_opts(options).expect("constant options"))
    }

    fn histograms(&self, name: &str, help: &str, label: &str, buckets: &[f64]) -> HistogramVec {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.add(HistogramVec::new(options, &[label]).expect("constant options"))
    }
}

/// A level as it is shown.
pub fn level_name(level: tracing::Level) -> &'static str {
    match level {
        tracing::Level::ERROR => "error",
        tracing::Level::WARN => "warn",
        tracing::Level::INFO => "info",
        tracing::Level::DEBUG => "debug",
        tracing::Level::TRACE => "trace",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_series_exists_before_its_first_event() {
        let text = Metrics::new().render();
        for want in [
            "hearth_start_phase_seconds_bucket{phase=\"first_call\",le=\"0.000001\"} 0",
            "hearth_module_lookups_total{source=\"warm\"} 0",
            "hearth_rpc_seconds_count{method=\"create\"} 0",
            "hearth_tasks{state=\"running\"} 0",
            "hearth_events_retried_total 0",
        ] {
            assert!(text.contains(want), "{want} is missing in\n{text}");
        }
    }

    #[test]
    fn a_phase_lands_in_its_own_histogram() {
        let metrics = Metrics::new();
        for (phase, name) in PHASES {
            metrics.phase(phase, Duration::from_micros(3));
            assert!(metrics.render().contains(&format!("hearth_start_phase_seconds_count{{phase=\"{name}\"}} 1")));
        }
    }

    #[test]
    fn a_pods_metrics_go_with_the_last_who_has_them() {
        let metrics = Metrics::new();
        let [one, other] = [(); 2].map(|()| metrics.http_pod(["default", "web", "server"]));
        one.request(204);
        drop(one);
        let series =
            "hearth_http_pod_requests_total{code=\"2xx\",container=\"server\",namespace=\"default\",pod=\"web\"} 1";
        assert!(metrics.render().contains(series), "{}", metrics.render());
        drop(other);
        assert!(!metrics.render().contains("pod=\"web\""), "{}", metrics.render());
    }

    /// The repository's directory of this name.
    fn directory(name: &str) -> std::path::PathBuf {
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
    }

    /// All files below a directory whose names end so, as one text each.
    fn texts(directory: &std::path::Path, endings: &[&str]) -> Vec<String> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                all.extend(texts(&path, endings));
            } else if endings.iter().any(|ending| path.to_string_lossy().ends_with(ending)) {
                all.push(std::fs::read_to_string(path).unwrap());
            }
        }
        all
    }

    fn declared() -> BTreeSet<String> {
        let metrics = Metrics::new();
        metrics.engine("x");
        // Without a pod there would be none of its metrics.
        let _pod = metrics.http_pod(["default", "pod", "container"]);
        let families = metrics.registry.gather();
        let tasks = tasks::FAMILIES.iter().map(|family| family.name.to_string());
        let process = process::FAMILIES.iter().map(|family| family.name.to_string());
        families.iter().map(|family| family.name().to_string()).chain(tasks).chain(process).collect()
    }

    #[test]
    fn every_metric_is_on_a_dashboard_or_in_a_rule_and_nothing_else_is() {
        let mut shown = BTreeSet::new();
        let directory = directory("../dashboards");
        for text in texts(&directory, &[".json", ".yaml"]) {
            let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':');
            for name in
                text.split(|c| !is_name(c)).filter(|word| word.starts_with("hearth_") || word.starts_with("process_"))
            {
                let name = ["_bucket", "_count", "_sum"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
                shown.insert(name.to_string());
            }
        }
        let declared = declared();
        let missing: Vec<_> = declared.difference(&shown).collect();
        assert!(missing.is_empty(), "on no dashboard: {missing:?}");
        let unknown: Vec<_> = shown.difference(&declared).filter(|name| !name.ends_with("_info")).collect();
        assert!(unknown.is_empty(), "declared nowhere: {unknown:?}");
    }

    #[test]
    fn every_metric_is_touched_somewhere() {
        let source = include_str!("metrics.rs");
        let body = &source[source.find("pub struct Metrics {").unwrap()..source.find("impl Metrics {").unwrap()];
        let fields = body.lines().filter_map(|line| line.strip_prefix("    pub ")?.split_once(':'));
        let own = |text: &String| text.contains("pub struct Metrics {");
        let others: Vec<_> = texts(&directory("src"), &[".rs"]).into_iter().filter(|text| !own(text)).collect();
        for (field, _) in fields {
            let touched = format!("metrics.{field}");
            let split = format!(".{field}");
            let is_touched = |text: &String| {
                text.contains(&touched) || text.lines().any(|line| line.trim_start().starts_with(&split))
            };
            assert!(others.iter().any(is_touched), "{field} is declared and never touched");
        }
        for method in ["phase", "start", "lookup", "http_request", "rpc", "engine", "log_line", "container_start"] {
            assert!(others.iter().any(|text| text.contains(&format!("{method}("))), "{method} is never called");
        }
    }
}
