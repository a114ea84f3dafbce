//! Puts the daemon together, runs it and takes it down.
//!
//! Order matters at both ends. Start: the state directory's lock, then everything that can fail, then
//! the sockets, then `READY=1`. Stop: no new questions, the guests end, containerd learns of every
//! exit, the sockets go.

use std::fs::File;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::FlockOperation;
use tokio::signal::unix::{SignalKind, signal};

use crate::ahead::Ahead;
use crate::config::Config;
use crate::http::Http;
use crate::logging::Logging;
use crate::metrics::Metrics;
use crate::metrics::tasks::TaskSeries;
use crate::native;
use crate::os::process::Share;
use crate::os::{activation, capacity, identity, process};
use crate::server::endpoint::listen::Listener;
use crate::server::endpoint::{self, Endpoint};
use crate::server::instances::{Instances, Runtimes};
use crate::server::operator::{self, Operator};
use crate::server::{control, sandboxer};
use crate::service;
use crate::starts::{Recent, recorder};
use crate::task::Task;
use crate::task::holders::Holders;
use crate::wasm::engine::Engines;
use crate::wasm::instance::{Slots, World};
use crate::wasm::modules::ModuleStore;
use crate::wasm::names::Resolvers;
use crate::wasm::scheduler::Scheduler;

/// How long the end of a guest may take at a stop; one stuck in a system call does not hold us up.
const STOP_GUESTS_TIME: Duration = Duration::from_secs(5);

/// How long a containerd may take to hear that its pods have ended.
const STOP_ANSWERS_TIME: Duration = Duration::from_secs(1);

/// How long containerd may take to hear of the last exits at a stop.
const STOP_EVENTS_TIME: Duration = Duration::from_secs(5);

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// What could not be set up, in one line with a remedy.
pub fn run(config: Config, metrics: Arc<Metrics>, logging: Arc<Logging>) -> Result<(), String> {
    let config = Arc::new(config);
    let passed = activation::passed_listener().map_err(|e| format!("socket activation: {e}"))?;
    let state = StateDir::open(&config.state_dir)?;
    // Before the first thread: whose they all have to be.
    identity::remember_home().map_err(|e| e.to_string())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // One may be started in the middle of a guest's poll, with the guest's identity.
        .on_thread_start(|| begin_thread(Share::Usual))
        .worker_threads(config.rpc.threads)
        .max_blocking_threads(config.rpc.blocking_threads_max)
        .thread_name("rpc")
        .enable_all()
        .build()
        .map_err(|e| format!("cannot start the runtime: {e}"))?;
    // What no caller waits for stays off the threads that answer, and steps back where they need the processors:
    // in a burst of starts, telling containerd of them takes as much as the starts themselves.
    let background = tokio::runtime::Builder::new_multi_thread()
        .on_thread_start(|| begin_thread(Share::Less))
        .worker_threads(1)
        .thread_name("background")
        .enable_all()
        .build()
        .map_err(|e| format!("cannot start the runtime: {e}"))?;
    // Strangers' requests do not delay containerd's.
    let threads = match config.http.threads {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        threads => threads,
    };
    let http = tokio::runtime::Builder::new_multi_thread()
        .on_thread_start(|| begin_thread(Share::Usual))
        .worker_threads(threads)
        .thread_name("http")
        .enable_all()
        .build()
        .map_err(|e| format!("cannot start the runtime: {e}"))?;
    let handles = Handles {
        answering: runtime.handle().clone(),
        background: background.handle().clone(),
        http: http.handle().clone(),
    };
    let result = runtime.block_on(serve(config, &state, passed, handles, (metrics, logging)));
    http.shutdown_timeout(Duration::from_millis(100));
    // Jobs stuck in a system call (a hung volume) end with the process.
    runtime.shutdown_timeout(Duration::from_millis(100));
    background.shutdown_background();
    result
}

/// What every thread of a runtime does first.
fn begin_thread(share: Share) {
    identity::settle();
    process::take_share(share);
}

/// The runtimes.
struct Handles {
    answering: tokio::runtime::Handle,
    background: tokio::runtime::Handle,
    http: tokio::runtime::Handle,
}

async fn serve(
    config: Arc<Config>,
    state: &StateDir,
    passed: Option<UnixListener>,
    handles: Handles,
    (metrics, logging): (Arc<Metrics>, Arc<Logging>),
) -> Result<(), String> {
    let Handles { answering: runtime, background, http: serving } = handles;
    let began = Instant::now();
    for lacking in capacity::warnings(&config) {
        tracing::warn!("{lacking}");
    }
    metrics.tasks_limit.set(i64::try_from(config.rpc.tasks_max).unwrap_or(i64::MAX));
    metrics.store_limit_bytes.set(i64::try_from(config.modules.store_bytes_max).unwrap_or(i64::MAX));
    let recorder = recorder::start(metrics.clone(), &background);
    let engines = Arc::new(Engines::new(&config.engine).map_err(|e| e.to_string())?);
    let modules = ModuleStore::open(&config, engines.clone(), metrics.clone(), runtime.clone())
        .map_err(|e| format!("the module store: {e}"))?;
    let scheduler = Scheduler::start(&config.scheduler, engines.each(), metrics.clone(), runtime.clone())
        .map_err(|e| format!("cannot start the guests' threads: {e}"))?;
    let world = Arc::new(World {
        engines,
        scheduler: Arc::new(scheduler),
        slots: Slots::new(&config.engine, metrics.clone()),
        holders: Holders::new(config.network.holders_warm, runtime.clone(), metrics.clone()),
        http: Http::new(config.http.clone(), serving, metrics.clone()),
        resolvers: Resolvers::new(&config.network, background.clone()),
        task_series: TaskSeries::new(config.metrics.task_series_max, config.metrics.pod_labels),
        recent: Recent::new(config.metrics.recent_max, metrics.clone(), Some(recorder)),
        metrics: metrics.clone(),
        by_pod: config.metrics.pods,
    });
    let ahead = Ahead::new(&config, modules.clone(), metrics.clone(), runtime.clone(), &state.generation);
    let following = ahead.follow(&background);
    metrics.engine(world.engines.fingerprint());
    let runtimes = Runtimes { answering: runtime.clone(), background: background.clone() };
    let instances = Instances::new(config.clone(), world.clone(), modules.clone(), state.generation.clone(), runtimes);
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| e.to_string())?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| e.to_string())?;

    // What is wrong with its address or certificate is said before anything is served.
    let listener = bind_endpoint(&config, &background).await?;
    let (left, shim) = (native::leftovers(&config), config.native.shim.clone());
    runtime.spawn_blocking(move || native::end_leftovers(&shim, left));
    let path = config.control_socket();
    let socket = control::open(passed, &path)
        .map_err(|e| format!("control_socket: cannot listen on {}: {e}", path.display()))?;
    let passed = socket.ours.is_none();
    let operator = Arc::new(Operator {
        config: config.clone(),
        world: world.clone(),
        modules,
        ahead: ahead.clone(),
        instances: instances.clone(),
        logging,
        generation: operator::generation_name(&state.generation),
        started_at: SystemTime::now(),
        answering: runtime.clone(),
        background: background.clone(),
    });
    let scrape = listener.map(|listener| {
        let token_file = Some(config.metrics.token_file.clone()).filter(|path| !path.as_os_str().is_empty());
        let connections_max = config.metrics.connections_max;
        let endpoint = Endpoint { operator: operator.clone(), token_file, connections_max };
        background.spawn(endpoint::serve(listener, endpoint))
    });
    let questions = tokio::spawn(control::serve(socket.listener, instances.clone(), operator));
    let controllers = sandboxer::serve_all(&config, &instances)
        .map_err(|(path, e)| format!("sandboxer.sockets: cannot listen on {}: {e}", path.display()))?;
    background.spawn(service::watchdog(runtime.clone(), world.scheduler.clone()));
    service::ready();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        control_socket = %path.display(),
        passed,
        took_ms = began.elapsed().as_millis() as u64,
        "hearthd is ready"
    );

    let signal = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    tracing::info!(signal, "stopping");
    service::stopping();
    questions.abort();
    if let Some(following) = following {
        following.abort();
    }
    if let Some(file) = socket.ours {
        let _ = std::fs::remove_file(file);
    }
    for native in instances.natives() {
        native.kill().await;
    }
    stop_guests(&instances.tasks()).await;
    instances.end_pods();
    controllers.close(tokio::time::Instant::now() + STOP_ANSWERS_TIME).await;
    instances.flush_events(tokio::time::Instant::now() + STOP_EVENTS_TIME).await;
    instances.close().await;
    if let Some(scrape) = scrape {
        scrape.abort();
        let _ = std::fs::remove_file(config.state_dir.join(operator::METRICS_ADDRESS));
    }
    world.holders.close();
    world.scheduler.stop();
    tracing::info!("stopped");
    Ok(())
}

/// The endpoint's socket, unless the configuration wants none.
async fn bind_endpoint(config: &Arc<Config>, background: &tokio::runtime::Handle) -> Result<Option<Listener>, String> {
    if config.metrics.address.is_empty() {
        return Ok(None);
    }
    if !config.metrics.token_file.as_os_str().is_empty() {
        let path = &config.metrics.token_file;
        endpoint::read_token(path).map_err(|e| format!("metrics.token_file: {}: {e}", path.display()))?;
    }
    // The listener belongs to the runtime that is entered when it is made.
    let config = config.clone();
    let bound = background.spawn(async move { Listener::bind(&config.metrics, &config.state_dir).await });
    bound.await.map_err(|e| e.to_string())?.map(Some)
}

/// SIGKILL of `kill(2)`, for containerd's eyes: 128 + 9.
const SIGKILL: u32 = 9;

async fn stop_guests(tasks: &[Arc<Task>]) {
    for task in tasks {
        // One that has ended already is as wanted.
        let _ = task.init.kill(SIGKILL);
    }
    let all = async {
        for task in tasks {
            let _ = task.init.wait().await;
            task.unmounted().await;
        }
    };
    if tokio::time::timeout(STOP_GUESTS_TIME, all).await.is_err() {
        tracing::warn!("some guests are stuck in a system call; they end with the process");
    }
}

/// The state directory, locked for this process, with this generation's own directory in it.
struct StateDir {
    generation: PathBuf,
    _lock: File,
}

/// Below the state directory: a directory for each generation's task sockets.
const SOCKETS: &str = "s";

impl StateDir {
    fn open(path: &Path) -> Result<StateDir, String> {
        let fail = |what: &str, e: &dyn std::fmt::Display| format!("state_dir: cannot {what} {}: {e}", path.display());
        make_private(path).map_err(|e| fail("make", &e))?;
        let lock = File::create(path.join("lock")).map_err(|e| fail("lock", &e))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            format!(
                "state_dir: another hearthd runs with {}; stop it, or give this one a --state-dir of its own",
                path.display()
            )
        })?;
        // With the lock held, whatever lies there is a dead daemon's.
        let sockets = path.join(SOCKETS);
        match std::fs::remove_dir_all(&sockets) {
            Ok(()) => tracing::info!("removed the sockets of an earlier hearthd that did not stop cleanly"),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(fail("clean", &e)),
        }
        // Unique over restarts, so that an old bundle's address never reaches a new daemon.
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let generation = sockets.join(format!("{:08x}", since.as_millis() as u64 & 0xffff_ffff));
        make_private(&sockets).and_then(|()| make_private(&generation)).map_err(|e| fail("make sockets in", &e))?;
        Ok(StateDir { generation, _lock: lock })
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        if let Some(sockets) = self.generation.parent() {
            let _ = std::fs::remove_dir_all(sockets);
        }
    }
}

fn make_private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    match std::fs::DirBuilder::new().mode(0o700).recursive(true).create(path) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}
