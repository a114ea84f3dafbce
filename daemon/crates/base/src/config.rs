//! The one configuration: a TOML file with command-line flags over it, checked before anything is
//! bound. Every limit of the daemon is named here, its unit last.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};

/// What a Unix socket's address in `metrics.address` begins with.
pub const UNIX: &str = "unix:";

/// Events of a task's whole life: Create, Start, OOM, Exit, Delete. A queue holds at least so many.
pub const EVENTS_PER_TASK: usize = 5;

/// Everything an operator can set. Unknown keys are errors.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Sockets and scratch, gone at reboot. Sockets live below it, so it is at most
    /// [`STATE_DIR_BYTES_MAX`] bytes long.
    pub state_dir: PathBuf,
    /// The module store, kept over restarts.
    pub root_dir: PathBuf,
    /// The socket the shim dials. Default: `control.sock` in `state_dir`.
    pub control_socket: Option<PathBuf>,
    /// Logging.
    pub log: Log,
    /// The Prometheus endpoint.
    pub metrics: Metrics,
    /// The Task API server.
    pub rpc: Rpc,
    /// wasmtime's engine and its pool.
    pub engine: Engine,
    /// The guest scheduler.
    pub scheduler: Scheduler,
    /// The module store and the compiler.
    pub modules: Modules,
    /// Compiling what images will run, before a pod is started of them.
    pub ahead: Ahead,
    /// Events to containerd.
    pub events: Events,
    /// Guests' stdio.
    pub stdio: Stdio,
    /// Guests' root file systems.
    pub files: Files,
    /// Guests' network.
    pub network: Network,
    /// HTTP components.
    pub http: Http,
    /// Native containers in a pod.
    pub native: Native,
    /// The sandbox controller for containerd 2.x.
    pub sandboxer: Sandboxer,
    /// One hearthd after another.
    pub upgrade: Upgrade,
}

/// The configuration in force: a reload puts another in its place.
#[derive(Debug)]
pub struct Live(ArcSwap<Config>);

impl Live {
    /// The first.
    pub fn new(config: Config) -> Arc<Live> {
        Arc::new(Live(ArcSwap::from_pointee(config)))
    }

    /// The one in force now.
    pub fn now(&self) -> Arc<Config> {
        self.0.load_full()
    }

    /// Puts another in force.
    pub fn replace(&self, config: Config) {
        self.0.store(Arc::new(config));
    }
}

/// The configuration file with every key commented out, beside what it is and its default: what
/// `hearthd --print-default-config` prints and the package installs.
pub const DEFAULT_FILE: &str = include_str!("../../../../deploy/config.toml");

/// The longest `state_dir`, in bytes: a Unix socket's path holds 107 and ours add up to 45.
pub const STATE_DIR_BYTES_MAX: usize = 60;

impl Default for Config {
    fn default() -> Self {
        Config {
            state_dir: "/run/hearth".into(),
            root_dir: "/var/lib/hearth".into(),
            control_socket: None,
            log: Log::default(),
            metrics: Metrics::default(),
            rpc: Rpc::default(),
            engine: Engine::default(),
            scheduler: Scheduler::default(),
            modules: Modules::default(),
            ahead: Ahead::default(),
            events: Events::default(),
            stdio: Stdio::default(),
            files: Files::default(),
            network: Network::default(),
            http: Http::default(),
            native: Native::default(),
            upgrade: Upgrade::default(),
            sandboxer: Sandboxer::default(),
        }
    }
}

/// How the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// Text.
    Text,
    /// One JSON object a line.
    Json,
}

/// Logging.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// A `tracing` filter: `info`, or `hearthd=debug,ttrpc=warn`.
    pub level: String,
    /// The form of a line.
    pub format: LogFormat,
    /// Which lines are kept in memory for `hearthctl logs`, whatever is logged; a filter like `level`.
    pub kept_level: String,
    /// How many of them, each of 2 KiB at most; the oldest goes first.
    pub kept_lines: usize,
}

impl Default for Log {
    fn default() -> Self {
        Log {
            level: "info".into(),
            format: LogFormat::Auto,
            kept_level: "info,hearthd::task=debug,hearthd::guest=debug".into(),
            kept_lines: 4_096,
        }
    }
}

/// The endpoint for Prometheus, probes and people.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// `host:port`, where port 0 takes a free one; or `unix:/path`, of a socket that is root's alone. The
    /// address bound is written to `<state_dir>/metrics.address`. Empty: no endpoint.
    pub address: String,
    /// Connections at once.
    pub connections_max: usize,
    /// A file with a certificate chain in PEM form: then TLS is spoken. Read again when it changes.
    pub tls_certificate: PathBuf,
    /// The file with its key.
    pub tls_key: PathBuf,
    /// A file with a token: then all but `/healthz` and `/readyz` asks for it (`Authorization: Bearer`). Read at
    /// each request.
    pub token_file: PathBuf,
    /// Tasks with metrics of their own (`hearth_task_…`); those beyond are folded into `task="other"`. Each costs
    /// about 1 kB of a scrape.
    pub task_series_max: usize,
    /// Starts, and traps and other ends, that are remembered for `hearthctl` and the page.
    pub recent_max: usize,
    /// Whether metrics name pods, by the labels `namespace`, `pod` and `container`: those of single tasks, and
    /// those of each pod that serves HTTP, which are about 80 series each.
    pub pods: bool,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics {
            address: "127.0.0.1:9469".into(),
            connections_max: 16,
            tls_certificate: PathBuf::new(),
            tls_key: PathBuf::new(),
            token_file: PathBuf::new(),
            task_series_max: 200,
            recent_max: 256,
            pods: false,
        }
    }
}

impl Metrics {
    fn check(&self) -> Result<(), ConfigError> {
        let fail = |key: &str, why: String| Err(ConfigError(format!("metrics.{key}: {why}")));
        let address = self.address.as_str();
        let right = match address.strip_prefix("unix:") {
            Some(path) => Path::new(path).is_absolute() && path.len() <= 107,
            None => address.is_empty() || address.parse::<std::net::SocketAddr>().is_ok(),
        };
        if !right {
            return fail(
                "address",
                format!("{address:?} is not an address like 127.0.0.1:9469 or unix:/run/hearth/metrics.sock"),
            );
        }
        match (self.tls_certificate.as_os_str().is_empty(), self.tls_key.as_os_str().is_empty()) {
            (true, false) => return fail("tls_certificate", "is needed beside metrics.tls_key".into()),
            (false, true) => return fail("tls_key", "is needed beside metrics.tls_certificate".into()),
            _ => {}
        }
        if self.recent_max == 0 {
            return fail("recent_max", "must be at least 1".into());
        }
        Ok(())
    }
}

/// The Task API server.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rpc {
    /// Threads that serve requests.
    pub threads: usize,
    /// Threads for mounts and other file work off the request's path.
    pub blocking_threads_max: usize,
    /// Tasks alive at once, over all containerd instances and namespaces.
    pub tasks_max: usize,
    /// Execs of one task, with those that have ended and nobody has deleted.
    pub execs_per_task_max: usize,
    /// Namespaces, over all containerd instances, that may have a task socket.
    pub namespaces_max: usize,
    /// The largest `config.json`, in bytes.
    pub spec_bytes_max: u64,
    /// How long a containerd may take to answer a question of ours, in milliseconds.
    pub containerd_timeout_ms: u64,
}

impl Default for Rpc {
    fn default() -> Self {
        Rpc {
            threads: 2,
            blocking_threads_max: 64,
            tasks_max: 20_000,
            execs_per_task_max: 64,
            namespaces_max: 1_024,
            spec_bytes_max: 4 << 20,
            containerd_timeout_ms: 5_000,
        }
    }
}

/// wasmtime's engine and its pool.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Engine {
    /// Guests that find a warm slot. Each costs address space, not memory, until used.
    pub pool_slots: u32,
    /// Guests beyond the pool, allocated on demand (slower to start).
    pub on_demand_max: u32,
    /// The largest linear memory of a guest, in bytes; a container's own limit may be lower.
    pub memory_bytes_max: u64,
    /// The largest table, in elements.
    pub table_elements_max: u32,
    /// Core instances a component may be made of.
    pub component_core_instances_max: u32,
    /// Linear memories a module or component may have.
    pub memories_max: u32,
    /// Tables a module or component may have.
    pub tables_max: u32,
    /// Handles that a component that is a command may have at once: files, sockets, streams, sets of headers. The
    /// daemon keeps them outside the guest's memory.
    pub handles_max: usize,
    /// A guest's stack including what host functions use on it, in bytes.
    pub stack_bytes: usize,
    /// A guest's own share of its stack, in bytes.
    pub wasm_stack_bytes: usize,
    /// Pages of a slot's memory kept resident between guests, in bytes.
    pub memory_keep_resident_bytes: usize,
}

impl Default for Engine {
    fn default() -> Self {
        Engine {
            pool_slots: 1_000,
            on_demand_max: 1_000,
            memory_bytes_max: 4 << 30,
            table_elements_max: 20_000,
            component_core_instances_max: 50,
            memories_max: 10,
            tables_max: 50,
            handles_max: 65_536,
            stack_bytes: 2 << 20,
            wasm_stack_bytes: 512 << 10,
            memory_keep_resident_bytes: 1 << 20,
        }
    }
}

/// The guest scheduler.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scheduler {
    /// Threads that run guests; 0: one per core.
    pub workers: usize,
    /// Threads that run guests, counting those stuck in a system call.
    pub workers_max: usize,
    /// Of these, threads that the guests of one container may block in system calls; a quarter of workers_max at most. Its
    /// other guests wait until one is free again.
    pub blocked_max: usize,
    /// How often a guest that computes looks up, in milliseconds.
    pub tick_ms: u64,
    /// How long a guest may compute while nobody waits, in milliseconds.
    pub slice_ms: u64,
    /// After how long in one system call a worker counts as blocked, in milliseconds.
    pub blocked_after_ms: u64,
}

impl Default for Scheduler {
    fn default() -> Self {
        Scheduler { workers: 0, workers_max: 512, blocked_max: 32, tick_ms: 1, slice_ms: 10, blocked_after_ms: 20 }
    }
}

/// What is started on code of the baseline compiler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Baseline {
    /// Nothing.
    Never,
    /// HTTP services that have an instance for each request.
    Services,
    /// Everything.
    All,
}

/// The module store and the compiler.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Modules {
    /// The largest Wasm file, in bytes.
    pub module_bytes_max: u64,
    /// The largest compiled artifact, in bytes.
    pub artifact_bytes_max: u64,
    /// What the store may hold on disk, in bytes; the least recently used goes first.
    pub store_bytes_max: u64,
    /// Modules kept prepared in memory; the least recently used goes first.
    pub prepared_max: usize,
    /// Known places of modules (image layer and path, or file) kept in memory.
    pub places_max: usize,
    /// What is started on code of the baseline compiler, which takes a fifth of the time and gives code that
    /// is two to three times slower, until the optimising compiler is done as well: `services` (those of
    /// wasi:http 0.2, which have an instance for each request, so that requests soon get the better code),
    /// `all` (commands too, which keep their code until they end) or `never`, which also keeps that compiler out
    /// of what the sandbox rests on. On x86-64 only.
    pub baseline: Baseline,
    /// The smallest Wasm file that is worth it, in bytes.
    pub baseline_bytes_min: u64,
    /// Compile processes at once.
    pub compiles_max: usize,
    /// Compiles waiting for one of those.
    pub compile_queue_max: usize,
    /// Threads of one compile process; 0: one per core.
    pub compile_threads: usize,
    /// Address space of a compile process, in bytes.
    pub compile_memory_bytes_max: u64,
    /// CPU time of a compile process, in seconds.
    pub compile_cpu_seconds_max: u64,
    /// Wall time of a compile process, in seconds.
    pub compile_seconds_max: u64,
    /// User and group a compile process runs as.
    pub compile_uid: u32,
}

impl Default for Modules {
    fn default() -> Self {
        Modules {
            module_bytes_max: 256 << 20,
            artifact_bytes_max: 1 << 30,
            store_bytes_max: 10 << 30,
            prepared_max: 512,
            places_max: 16_384,
            baseline: Baseline::Services,
            baseline_bytes_min: 512 << 10,
            compiles_max: 1,
            compile_queue_max: 1_024,
            compile_threads: 0,
            compile_memory_bytes_max: 8 << 30,
            compile_cpu_seconds_max: 300,
            compile_seconds_max: 300,
            compile_uid: 65_534,
        }
    }
}

/// Compiling what images will run, before a pod is started of them.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ahead {
    /// containerd's namespaces whose images are compiled when they are pulled or imported, and, those that
    /// were meanwhile, when the daemon starts. Empty: none; each module is compiled at its first start.
    pub namespaces: Vec<String>,
    /// The gRPC socket of the containerd that has them.
    pub containerd: PathBuf,
    /// containerd's snapshotter that unpacks them.
    pub snapshotter: String,
    /// Images that wait for their turn; more are left to their first start.
    pub images_max: usize,
    /// How long after its pull an image may take to be unpacked, in milliseconds.
    pub unpack_timeout_ms: u64,
    /// The nice value of such a compile, until a start waits for it, and of the one that follows a start on
    /// baseline code: 19 leaves it what nobody else wants.
    pub nice: i32,
}

impl Default for Ahead {
    fn default() -> Self {
        Ahead {
            namespaces: vec!["k8s.io".into()],
            containerd: "/run/containerd/containerd.sock".into(),
            snapshotter: "overlayfs".into(),
            images_max: 4_096,
            unpack_timeout_ms: 120_000,
            nice: 19,
        }
    }
}

/// Events to containerd.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Events {
    /// Events waiting for one containerd. A task is refused while its events would not fit, so that
    /// none of a live task's is ever dropped.
    pub queue_max: usize,
    /// The first pause after a failed delivery, in milliseconds; it doubles.
    pub retry_ms: u64,
    /// The longest pause, in milliseconds.
    pub retry_max_ms: u64,
    /// How long one delivery may take, in milliseconds.
    pub timeout_ms: u64,
}

impl Default for Events {
    fn default() -> Self {
        Events { queue_max: 131_072, retry_ms: 10, retry_max_ms: 1_000, timeout_ms: 5_000 }
    }
}

/// Guests' stdio.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Stdio {
    /// The most a guest may write or read in one call, in bytes.
    pub chunk_bytes: usize,
    /// How long a `binary://` log program may take to say that it is ready, in milliseconds.
    pub log_binary_timeout_ms: u64,
    /// How long a log program may go on after the end of its task, in milliseconds; then it gets a
    /// SIGTERM, and as much later a SIGKILL.
    pub log_binary_drain_ms: u64,
    /// How long output that a task has left behind waits for its reader after the task's end, in
    /// milliseconds. Only a slow or absent reader makes it wait at all.
    pub linger_ms: u64,
    /// How long, in milliseconds, what is in a task's FIFO when it ends is kept for a reader that has not
    /// opened it yet (a client is late, or containerd restarts).
    pub unread_ms: u64,
}

impl Default for Stdio {
    fn default() -> Self {
        Stdio {
            chunk_bytes: 64 << 10,
            log_binary_timeout_ms: 10_000,
            log_binary_drain_ms: 10_000,
            linger_ms: 2_000,
            unread_ms: 60_000,
        }
    }
}

/// Guests' root file systems.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Files {
    /// Bind mounts and tmpfs of one task.
    pub volumes_max: usize,
    /// Files, directories and sockets that the guests of one container may have open together; one guest has no more
    /// than its spec's `RLIMIT_NOFILE`. They are the daemon's descriptors, of which it has `LimitNOFILE`.
    pub open_max: u32,
    /// The size of a tmpfs whose options name none, in bytes: the kernel's own default is half of the
    /// node's memory.
    pub tmpfs_bytes_default: u64,
}

/// Guests' network.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Network {
    /// Names that may be looked up at the same time, of all guests together; more wait.
    pub lookups_max: usize,
    /// How long one look-up may take, in milliseconds, waiting included, whatever its resolv.conf says.
    pub lookup_timeout_ms: u64,
    /// Network namespaces made in advance, each a small process, for tasks that ask for a new one (`ctr run`
    /// without `--net-host`; pods do not); from the first such task on.
    pub holders_warm: usize,
}

impl Default for Network {
    fn default() -> Self {
        Network { lookups_max: 256, lookup_timeout_ms: 60_000, holders_warm: 2 }
    }
}

/// HTTP components: those that the daemon serves. Limits are per container where they do not say otherwise.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// Threads that accept clients, watch their connections and serve guests' own requests, for all containers;
    /// 0: one for each four cores.
    pub threads: usize,
    /// Requests at once of all containers together, so that they leave room in the pool for others. A container may
    /// have at most twice as many as are free, and the last sixteenth is for containers that have none.
    pub instances_max: usize,
    /// Connections at once; more wait in the kernel's queue.
    pub connections_max: usize,
    /// Requests at once, each an instance.
    pub requests_max: usize,
    /// Requests that wait for their turn; more are answered with 503.
    pub queued_max: usize,
    /// Handles that the guest of one request may have at once: sets of headers, bodies, streams, files. A request of
    /// its own takes about ten. The daemon keeps them outside the guest's memory.
    pub handles_max: usize,
    /// The largest head of a request, in bytes; a larger one is answered with 431.
    pub header_bytes_max: usize,
    /// How long a client may take for a request's head, in milliseconds; over HTTP/1 also how long a
    /// connection is kept between two requests.
    pub header_timeout_ms: u64,
    /// How long a guest may take until its response's head, and again after its response's end, in
    /// milliseconds.
    pub request_timeout_ms: u64,
    /// After how long without a byte in either direction a connection is closed, in milliseconds. Time
    /// in which it waits for its guest's response does not count.
    pub idle_timeout_ms: u64,
    /// The least that a client has to take of a response, and to send of a request's body, in bytes a second; 0: no
    /// limit. Only time counts in which the client keeps the transfer waiting, and it counts in sums of `idle_timeout_ms`.
    pub least_bytes_per_second: u64,
    /// Connections that a container's guests may have open for requests of their own, idle ones included.
    pub outgoing_connections_max: usize,
    /// Connections of those that are kept for the next request.
    pub outgoing_idle_max: usize,
    /// How long they are kept, in milliseconds.
    pub outgoing_idle_timeout_ms: u64,
    /// How long a guest may wait for a connection, in milliseconds: its name looked up, TLS and all. A guest
    /// may ask for less of this and of what follows.
    pub outgoing_connect_timeout_ms: u64,
    /// How long a guest may wait for a response's head once its request is sent, in milliseconds.
    pub outgoing_first_byte_timeout_ms: u64,
    /// How long a guest may wait for each piece of a response's body, in milliseconds.
    pub outgoing_between_bytes_timeout_ms: u64,
    /// Whose certificates guests' requests trust: those of the container's `image`, of the `node`, or the
    /// image's and the node's where it has none (`image-or-node`).
    pub tls_roots: TlsRoots,
}

/// Whose certificates are trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TlsRoots {
    /// The image's.
    Image,
    /// The node's.
    Node,
    /// The image's, or the node's if it has none.
    ImageOrNode,
}

impl Default for Http {
    fn default() -> Self {
        Http {
            threads: 0,
            instances_max: 512,
            connections_max: 1_024,
            requests_max: 256,
            queued_max: 1_024,
            handles_max: 4_096,
            header_bytes_max: 64 << 10,
            header_timeout_ms: 30_000,
            request_timeout_ms: 60_000,
            idle_timeout_ms: 60_000,
            least_bytes_per_second: 1_024,
            outgoing_connections_max: 256,
            outgoing_idle_max: 32,
            outgoing_idle_timeout_ms: 30_000,
            outgoing_connect_timeout_ms: 30_000,
            outgoing_first_byte_timeout_ms: 60_000,
            outgoing_between_bytes_timeout_ms: 60_000,
            tls_roots: TlsRoots::ImageOrNode,
        }
    }
}

/// Native containers in a pod: init containers and sidecars that are no Wasm.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Native {
    /// containerd's shim that runs them; a name is looked for in `PATH`.
    pub shim: PathBuf,
    /// How long its `start` and `delete` may take, in milliseconds.
    pub shim_timeout_ms: u64,
}

impl Default for Native {
    fn default() -> Self {
        Native { shim: "containerd-shim-runc-v2".into(), shim_timeout_ms: 10_000 }
    }
}

/// One hearthd after another: the new one takes new pods, the old one serves those it has.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Upgrade {
    /// How long an old hearthd may serve its tasks beside a new one, in seconds; then it ends them. 0: until
    /// the last of them has ended.
    pub drain_seconds_max: u64,
    /// How long a stop lets tasks end by themselves, in seconds, before it ends them; no new ones are taken
    /// meanwhile, and another SIGTERM ends them at once. 0: it ends them at once.
    pub stop_drain_seconds: u64,
    /// Old ones and the new one together; one more does not start.
    pub generations_max: usize,
}

impl Default for Upgrade {
    fn default() -> Self {
        Upgrade { drain_seconds_max: 0, stop_drain_seconds: 0, generations_max: 16 }
    }
}

/// The sandbox controller: a containerd 2.x that has it as a proxy plugin starts no process for a pod.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sandboxer {
    /// For each containerd on the node a socket that only root can open, below `state_dir` unless the path is
    /// absolute, and that containerd's own gRPC socket; its ttrpc socket is beside it (`.ttrpc`), unless `ttrpc`
    /// names another. Nobody has to use it.
    pub sockets: Vec<SandboxerSocket>,
}

/// Where a containerd finds the sandbox controller.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxerSocket {
    /// The socket.
    pub listen: PathBuf,
    /// That containerd's gRPC socket.
    pub containerd: PathBuf,
    /// Its ttrpc socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttrpc: Option<PathBuf>,
}

impl Default for Sandboxer {
    fn default() -> Self {
        let (listen, containerd) = ("sandboxer.sock".into(), "/run/containerd/containerd.sock".into());
        Sandboxer { sockets: vec![SandboxerSocket { listen, containerd, ttrpc: None }] }
    }
}

impl Default for Files {
    fn default() -> Self {
        Files { volumes_max: 256, open_max: 4_096, tmpfs_bytes_default: 64 << 20 }
    }
}

/// The least that hyper reads a head into, in bytes.
const HEADER_BYTES_LEAST: usize = 8_192;

/// Why a configuration is refused: file, key, and what to write instead, in one line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl Config {
    /// Reads `path`; a missing file is an error, since somebody named it.
    ///
    /// # Errors
    /// If it cannot be read, is not TOML, has an unknown key or a value of the wrong type.
    pub fn read(path: &Path) -> Result<Config, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|e| ConfigError(format!("cannot read {}: {e}", path.display())))?;
        Config::parse(&text).map_err(|e| ConfigError(format!("{}: {}", path.display(), e.0.trim_end())))
    }

    /// Parses TOML text.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn parse(text: &str) -> Result<Config, ConfigError> {
        toml::from_str(text).map_err(|e| ConfigError(explain(text, &e)))
    }

    /// Where the shim dials.
    pub fn control_socket(&self) -> PathBuf {
        self.control_socket.clone().unwrap_or_else(|| self.state_dir.join("control.sock"))
    }

    /// Checks what the types cannot say.
    ///
    /// # Errors
    /// Names the first key that is wrong and what it may be.
    pub fn check(&self) -> Result<(), ConfigError> {
        let fail = |key: &str, why: String| Err(ConfigError(format!("{key}: {why}")));
        for (key, path) in [("state_dir", &self.state_dir), ("root_dir", &self.root_dir)] {
            if !path.is_absolute() {
                return fail(key, format!("{} is not an absolute path", path.display()));
            }
        }
        let length = self.state_dir.as_os_str().len();
        if length > STATE_DIR_BYTES_MAX {
            return fail(
                "state_dir",
                format!("is {length} bytes long; sockets below it need it to be at most {STATE_DIR_BYTES_MAX}"),
            );
        }
        if self.control_socket().as_os_str().len() > 107 {
            return fail("control_socket", "a Unix socket's path holds at most 107 bytes".into());
        }
        self.metrics.check()?;
        let mut listening = std::collections::BTreeSet::from([self.control_socket()]);
        for socket in &self.sandboxer.sockets {
            let listen = self.state_dir.join(&socket.listen);
            if listen.as_os_str().len() > 107 {
                return fail("sandboxer.sockets", "listen: a Unix socket's path holds at most 107 bytes".into());
            }
            for path in [Some(&socket.containerd), socket.ttrpc.as_ref()].into_iter().flatten() {
                if !path.is_absolute() {
                    return fail("sandboxer.sockets", format!("{} is not an absolute path", path.display()));
                }
            }
            if !listening.insert(listen) {
                return fail("sandboxer.sockets", format!("{} is there twice", socket.listen.display()));
            }
        }
        if self.engine.wasm_stack_bytes + (1 << 20) > self.engine.stack_bytes {
            // Host functions run on the guest's stack; an overflow there ends the whole process.
            return fail(
                "engine.stack_bytes",
                format!(
                    "must leave host functions 1 MiB beyond engine.wasm_stack_bytes ({})",
                    self.engine.wasm_stack_bytes
                ),
            );
        }
        if self.engine.memory_bytes_max > 4 << 30 {
            return fail("engine.memory_bytes_max", "at most 4294967296, the reservation of a slot".into());
        }
        let at_least_one = [
            ("rpc.threads", self.rpc.threads as u64),
            ("rpc.blocking_threads_max", self.rpc.blocking_threads_max as u64),
            ("rpc.tasks_max", self.rpc.tasks_max as u64),
            ("rpc.execs_per_task_max", self.rpc.execs_per_task_max as u64),
            ("rpc.namespaces_max", self.rpc.namespaces_max as u64),
            ("rpc.spec_bytes_max", self.rpc.spec_bytes_max),
            ("rpc.containerd_timeout_ms", self.rpc.containerd_timeout_ms),
            ("metrics.connections_max", self.metrics.connections_max as u64),
            ("engine.pool_slots", u64::from(self.engine.pool_slots)),
            ("engine.memory_bytes_max", self.engine.memory_bytes_max),
            ("engine.component_core_instances_max", u64::from(self.engine.component_core_instances_max)),
            ("engine.memories_max", u64::from(self.engine.memories_max)),
            ("engine.tables_max", u64::from(self.engine.tables_max)),
            ("engine.handles_max", self.engine.handles_max as u64),
            ("scheduler.tick_ms", self.scheduler.tick_ms),
            ("scheduler.slice_ms", self.scheduler.slice_ms),
            ("scheduler.workers_max", self.scheduler.workers_max as u64),
            ("scheduler.blocked_max", self.scheduler.blocked_max as u64),
            ("modules.module_bytes_max", self.modules.module_bytes_max),
            ("modules.artifact_bytes_max", self.modules.artifact_bytes_max),
            ("modules.prepared_max", self.modules.prepared_max as u64),
            ("modules.places_max", self.modules.places_max as u64),
            ("modules.compiles_max", self.modules.compiles_max as u64),
            ("modules.compile_queue_max", self.modules.compile_queue_max as u64),
            ("modules.compile_seconds_max", self.modules.compile_seconds_max),
            ("modules.compile_cpu_seconds_max", self.modules.compile_cpu_seconds_max),
            ("ahead.images_max", self.ahead.images_max as u64),
            ("ahead.unpack_timeout_ms", self.ahead.unpack_timeout_ms),
            ("events.retry_ms", self.events.retry_ms),
            ("events.timeout_ms", self.events.timeout_ms),
            ("stdio.chunk_bytes", self.stdio.chunk_bytes as u64),
            ("stdio.log_binary_timeout_ms", self.stdio.log_binary_timeout_ms),
            ("stdio.log_binary_drain_ms", self.stdio.log_binary_drain_ms),
            ("network.lookups_max", self.network.lookups_max as u64),
            ("network.lookup_timeout_ms", self.network.lookup_timeout_ms),
            ("http.instances_max", self.http.instances_max as u64),
            ("http.connections_max", self.http.connections_max as u64),
            ("http.requests_max", self.http.requests_max as u64),
            ("http.handles_max", self.http.handles_max as u64),
            ("http.header_timeout_ms", self.http.header_timeout_ms),
            ("http.request_timeout_ms", self.http.request_timeout_ms),
            ("http.idle_timeout_ms", self.http.idle_timeout_ms),
            ("http.outgoing_connections_max", self.http.outgoing_connections_max as u64),
            ("http.outgoing_idle_timeout_ms", self.http.outgoing_idle_timeout_ms),
            ("http.outgoing_connect_timeout_ms", self.http.outgoing_connect_timeout_ms),
            ("http.outgoing_first_byte_timeout_ms", self.http.outgoing_first_byte_timeout_ms),
            ("http.outgoing_between_bytes_timeout_ms", self.http.outgoing_between_bytes_timeout_ms),
            ("native.shim_timeout_ms", self.native.shim_timeout_ms),
            ("upgrade.generations_max", self.upgrade.generations_max as u64),
            ("files.volumes_max", self.files.volumes_max as u64),
            ("files.open_max", u64::from(self.files.open_max)),
            ("files.tmpfs_bytes_default", self.files.tmpfs_bytes_default),
        ];
        for (key, value) in at_least_one {
            if value == 0 {
                return fail(key, "must be at least 1".into());
            }
        }
        if self.scheduler.blocked_after_ms <= self.scheduler.slice_ms {
            return fail(
                "scheduler.blocked_after_ms",
                format!("must be over scheduler.slice_ms ({})", self.scheduler.slice_ms),
            );
        }
        if self.events.queue_max < EVENTS_PER_TASK {
            return fail("events.queue_max", format!("must be at least {}, the events of one task", EVENTS_PER_TASK));
        }
        if self.events.retry_max_ms < self.events.retry_ms {
            return fail("events.retry_max_ms", format!("must be at least events.retry_ms ({})", self.events.retry_ms));
        }
        if self.http.header_bytes_max < HEADER_BYTES_LEAST {
            return fail("http.header_bytes_max", format!("must be at least {HEADER_BYTES_LEAST}"));
        }
        if !(0..=19).contains(&self.ahead.nice) {
            return fail("ahead.nice", format!("{} is not from 0 to 19", self.ahead.nice));
        }
        if self.modules.compile_uid == 0 {
            return fail("modules.compile_uid", "the compiler reads strangers' bytes: it must not be root".into());
        }
        Ok(())
    }
}

/// How alike a key has to be to one that there is for it to be meant, from 0 to 1.
const ALIKE: f64 = 0.8;

/// Keys that earlier releases had, and what has taken their place.
const RENAMED: [(&str, &str); 1] = [("pod_labels", "metrics.pods")];

/// What is wrong with a file, in one line: where, and what may have been meant.
fn explain(text: &str, error: &toml::de::Error) -> String {
    let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    let place = line.map(|line| format!("line {line}: ")).unwrap_or_default();
    let message = error.message().trim().replace('\n', " ");
    let unknown = message.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`'));
    let Some((key, rest)) = unknown else { return format!("{place}{message}") };
    if let Some((_, now)) = RENAMED.iter().find(|(old, _)| *old == key) {
        return format!("{place}unknown key {key}; it is {now} now");
    }
    // "expected one of `a`, `b`, `c`"
    let known: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
    let likeness = |known: &str| strsim::jaro_winkler(known, key);
    let nearest = known.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    if let Some(nearest) = nearest.filter(|nearest| likeness(nearest) >= ALIKE) {
        return format!("{place}unknown key {key}; did you mean {nearest}?");
    }
    match section_with(key) {
        Some(section) => format!("{place}unknown key {key} here; did you mean the one in [{section}]?"),
        None => format!("{place}unknown key {key}; there are {}", known.join(", ")),
    }
}

/// The section that has a key of this name.
fn section_with(key: &str) -> Option<String> {
    let Ok(serde_json::Value::Object(all)) = serde_json::to_value(Config::default()) else { return None };
    let has = |value: &serde_json::Value| value.as_object().is_some_and(|section| section.contains_key(key));
    all.into_iter().find_map(|(name, value)| has(&value).then_some(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_right_and_an_empty_file_is_the_default() {
        Config::default().check().unwrap();
        assert_eq!(Config::parse("").unwrap(), Config::default());
    }

    /// What [`DEFAULT_FILE`] has to be: made of this file's own documentation and `Config::default()`.
    fn default_file() -> String {
        let defaults = serde_json::to_value(Config::default()).unwrap();
        let mut text = String::from(
            "# /etc/hearth/config.toml: every setting of hearthd, with its default. Nothing needs to be set.\n\
             # Made by hearthd --print-default-config; `hearthd --check-config` says whether a change is right.\n\n",
        );
        text += &section("Config", &defaults);
        for (name, values) in defaults.as_object().unwrap().iter().filter(|(_, value)| value.is_object()) {
            let mut kind = name.clone();
            kind[..1].make_ascii_uppercase();
            let about = documentation(&format!("pub struct {kind} {{"));
            text += &format!("\n{about}[{name}]\n{}", section(&kind, values));
        }
        text
    }

    /// The keys of one structure, as its source has them in order.
    fn section(kind: &str, values: &serde_json::Value) -> String {
        let source = include_str!("config.rs");
        let begin = source.find(&format!("pub struct {kind} {{")).unwrap();
        let body = &source[begin..begin + source[begin..].find("\n}").unwrap()];
        let fields = body.lines().filter_map(|line| line.strip_prefix("    pub ")?.split_once(':'));
        let mut text = String::new();
        for (name, _) in fields {
            let value = match &values[name] {
                serde_json::Value::Object(_) => continue,
                // The only one without a value of its own.
                serde_json::Value::Null => "\"/run/hearth/control.sock\"".into(),
                serde_json::Value::Number(number) => with_separators(&number.to_string()),
                serde_json::Value::Array(values) => {
                    let values: Vec<_> = values.iter().map(inline).collect();
                    format!("[{}]", values.join(", "))
                }
                other => other.to_string(),
            };
            text += &documentation_in(body, &format!("    pub {name}:"));
            text += &format!("# {name} = {value}\n");
        }
        text
    }

    fn inline(value: &serde_json::Value) -> String {
        let Some(table) = value.as_object() else { return value.to_string() };
        let pairs: Vec<_> = table.iter().map(|(key, value)| format!("{key} = {value}")).collect();
        format!("{{ {} }}", pairs.join(", "))
    }

    fn documentation(of: &str) -> String {
        documentation_in(include_str!("config.rs"), of)
    }

    /// The `///` lines above a line that begins with `of`, as comments.
    fn documentation_in(source: &str, of: &str) -> String {
        let before = &source[..source.find(&format!("\n{of}")).unwrap() + 1];
        let lines = before.lines().rev().skip_while(|line| line.starts_with("#[")).map(str::trim_start);
        let mut lines: Vec<_> = lines.map_while(|line| line.strip_prefix("///")).collect();
        lines.reverse();
        let limit = STATE_DIR_BYTES_MAX.to_string();
        lines.iter().map(|line| format!("##{}\n", line.replace("[`STATE_DIR_BYTES_MAX`]", &limit))).collect()
    }

    fn with_separators(digits: &str) -> String {
        let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(|group| str::from_utf8(group).unwrap()).collect();
        groups.join("_")
    }

    #[test]
    fn the_default_file_has_every_key_with_its_default() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../deploy/config.toml");
        let want = default_file();
        if std::env::var_os("HEARTH_WRITE_DEFAULT_CONFIG").is_some() {
            std::fs::write(path, &want).unwrap();
        } else {
            assert!(
                DEFAULT_FILE == want,
                "deploy/config.toml is not as config.rs has it: run this test again with \
                 HEARTH_WRITE_DEFAULT_CONFIG=1, which writes it. It has to be:\n{want}"
            );
        }
        assert_eq!(Config::parse(&want).unwrap(), Config::default());
        // And with each comment mark taken off.
        let set: String = want.lines().map(|line| line.strip_prefix("# ").unwrap_or(line).to_owned() + "\n").collect();
        let set = set.split_once("\n\n").unwrap().1;
        let parsed = Config::parse(set).unwrap_or_else(|error| panic!("{error}\n{set}"));
        let control = Some("/run/hearth/control.sock".into());
        assert_eq!(parsed, Config { control_socket: control, ..Config::default() });
    }

    #[test]
    fn a_wrong_key_is_named() {
        let error = Config::parse("[engine]\npool_slot = 3\n").unwrap_err().to_string();
        assert_eq!(error, "line 2: unknown key pool_slot; did you mean pool_slots?");
        let error = |text: &str| Config::parse(text).unwrap_err().to_string();
        assert_eq!(error("pool_slots = 3\n"), "line 1: unknown key pool_slots here; did you mean the one in [engine]?");
        assert!(
            error("\n[log]\ncolour = 'red'\n")
                .ends_with("line 3: unknown key colour; there are level, format, kept_level, kept_lines")
        );
        assert_eq!(error("metrics.pod_labels = true\n"), "line 1: unknown key pod_labels; it is metrics.pods now");
        assert!(error("\n\n[engine]\npool_slots = 'x'\n").starts_with("line 4: invalid type"));
        assert!(!error("a = \n").contains('\n'));
    }

    #[test]
    fn a_wrong_value_is_named_with_its_remedy() {
        let cases = [
            ("state_dir = 'run'", "state_dir: run is not an absolute path"),
            ("metrics.address = 'here'", "metrics.address"),
            ("metrics.address = 'unix:here'", "metrics.address"),
            ("metrics.tls_key = '/etc/hearth/key.pem'", "metrics.tls_certificate"),
            ("metrics.recent_max = 0", "metrics.recent_max"),
            ("engine.pool_slots = 0", "engine.pool_slots: must be at least 1"),
            ("engine.stack_bytes = 600000", "engine.stack_bytes"),
            ("scheduler.blocked_after_ms = 1", "scheduler.blocked_after_ms"),
            ("events.queue_max = 4", "events.queue_max: must be at least 5"),
            ("events.retry_max_ms = 9", "events.retry_max_ms"),
            ("http.header_bytes_max = 99", "http.header_bytes_max: must be at least 8192"),
            ("modules.compile_uid = 0", "modules.compile_uid"),
            ("ahead.nice = -1", "ahead.nice: -1 is not from 0 to 19"),
            ("sandboxer.sockets = [{listen='a',containerd='b'}]", "sandboxer.sockets: b is not an absolute path"),
            (
                "sandboxer.sockets = [{listen='a',containerd='/b'},{listen='/run/hearth/a',containerd='/c'}]",
                "sandboxer.sockets: /run/hearth/a is there twice",
            ),
        ];
        for (text, want) in cases {
            let error = Config::parse(text).unwrap().check().unwrap_err().to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
    }
}
