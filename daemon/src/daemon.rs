//! Puts the daemon together, runs it and takes it down.
//!
//! Order matters at both ends. Start: everything that can fail, then the charge (which another hearthd
//! may have to hand over), then the sockets, then `READY=1`. Stop: no new questions, the guests end, containerd
//! learns of every exit, the sockets go.
//!
//! ```text
//!   starts ──▶ in charge ──handed over──▶ drains ──last task ended──▶ gone
//!                  └─────── SIGTERM, SIGINT, or asked to ───────────▶ stops
//! ```

use std::fs::File;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::ahead::Ahead;
use crate::generation::charge::{self, Charge};
use crate::generation::older::OlderGenerations;
use crate::generation::server::{self as generation_server, Server};
use crate::native;
use crate::server::control;
use crate::server::operator::Operator;
use crate::server::sandboxer::sockets::{self, Controllers};
use crate::server::task_sockets::{Runtimes, TaskSockets};
use crate::service;
use crate::task::holders::Holders;
use crate::task::world::World;
use hearth_base::config::{Config, Live};
use hearth_base::generation::directory::{self, Dead, Directory};
use hearth_base::generation::wire::Passed;
use hearth_http::context::Http;
use hearth_observe::logging::Logging;
use hearth_observe::metrics::Metrics;
use hearth_observe::metrics::task_series::TaskSeries;
use hearth_observe::starts::{Listener, Recent, recorder};
use hearth_observe::traces::{self, Traces};
use hearth_os::process::Share;
use hearth_os::{activation, identity, process};
use hearth_wasm::engine::Engines;
use hearth_wasm::modules::ModuleStore;
use hearth_wasm::resolver::Resolvers;
use hearth_wasm::runtime::Runtime;
use hearth_wasm::scheduler::Scheduler;
use hearth_wasm::slots::Slots;

pub mod anchor;
mod capacity;
mod life;
mod taking;

use life::{Daemon, Signals, set_limits};
use taking::{Answers, control, scrapes, start_anchor, take_charge};

/// Orders under way at once: each is somebody's connection.
const ORDERS_MAX: usize = 16;

/// What a daemon is started with.
pub struct Setup {
    /// The configuration.
    pub config: Config,
    /// Whether to take over from a hearthd that runs.
    pub replace: bool,
    /// The unit of systemd's that another process is to be the main one of.
    pub anchor: Option<String>,
    /// Reads the configuration again.
    pub reread: Box<dyn Fn() -> Result<Config, String> + Send + Sync>,
    /// Its metrics.
    pub metrics: Arc<Metrics>,
    /// Its log.
    pub logging: Arc<Logging>,
    /// How starts are traced, if they are.
    pub traces: Option<traces::settings::Settings>,
}

/// Runs until SIGTERM or SIGINT, or until another has taken over and the last task has ended.
///
/// # Errors
/// What could not be set up, in one line with a remedy.
pub fn run(setup: Setup) -> Result<(), String> {
    let config = setup.config.clone();
    let passed = activation::passed_listener().map_err(|e| format!("socket activation: {e}"))?;
    let free = charge::try_free(&config.state_dir)?;
    if free.is_none() && !setup.replace {
        return Err(charge::taken_by_another(&config.state_dir));
    }
    let found = directory::open(&config.state_dir)?;
    tell_of_the_dead(&found.dead);
    if found.living.len() >= config.upgrade.generations_max {
        return Err(format!(
            "{} older hearthds still serve their tasks, with this one more than may run (upgrade.generations_max); \
             see `hearthctl generations`, and end their pods or raise the limit",
            found.living.len()
        ));
    }
    // Before the first thread: whose they all have to be.
    identity::record_daemon().map_err(|e| e.to_string())?;
    let runtime = runtime("rpc", (config.rpc.threads, config.rpc.blocking_threads_max), Share::Prompt)?;
    // What no caller waits for stays off the threads that answer, and steps back where they need the processors:
    // in a burst of starts, telling containerd of them takes as much as the starts themselves.
    let background = self::runtime("background", (1, BLOCKING_THREADS), Share::Less)?;
    // Strangers' requests do not delay containerd's.
    let threads = match config.http.threads {
        // They only tell workers whose connection can go on: with a second on two cores a worker has less.
        0 => std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(4)),
        threads => threads,
    };
    // (Prompt, they would be switched to and fro with the guests that answer: a tenth fewer requests.)
    let http = self::runtime("http", (threads, BLOCKING_THREADS), Share::Usual)?;
    let begin = Begin {
        setup,
        passed,
        free,
        ours: found.ours,
        living: found.living,
        answering: runtime.handle().clone(),
        background: background.handle().clone(),
        http: http.handle().clone(),
    };
    let result = runtime.block_on(serve(begin));
    http.shutdown_timeout(Duration::from_millis(100));
    // Jobs stuck in a system call (a hung volume) end with the process.
    runtime.shutdown_timeout(Duration::from_millis(100));
    background.shutdown_background();
    result
}

/// tokio's default: what the runtimes have that hardly use any.
const BLOCKING_THREADS: usize = 512;

/// A runtime with so many threads, and at most so many for what blocks.
fn runtime(name: &str, (threads, blocking): (usize, usize), share: Share) -> Result<tokio::runtime::Runtime, String> {
    tokio::runtime::Builder::new_multi_thread()
        // One may be started in the middle of a guest's poll, with the guest's identity.
        .on_thread_start(move || begin_thread(share))
        .worker_threads(threads)
        .max_blocking_threads(blocking)
        .thread_name(name)
        .enable_all()
        .build()
        .map_err(|e| format!("cannot start the runtime: {e}"))
}

/// What every thread of a runtime does first.
fn begin_thread(share: Share) {
    identity::become_daemon();
    process::take_share(share);
}

fn tell_of_the_dead(dead: &[Dead]) {
    if dead.is_empty() {
        return;
    }
    let sockets: usize = dead.iter().map(|dead| dead.sockets).sum();
    let generations: Vec<&str> = dead.iter().map(|dead| dead.id.as_str()).collect();
    tracing::warn!(
        generations = generations.join(" "),
        sockets,
        "an earlier hearthd did not stop cleanly; removed its sockets (its mounts and helpers' processes went with it, the module store stays)"
    );
}

/// What there is before anything is served.
struct Begin {
    setup: Setup,
    passed: Option<UnixListener>,
    free: Option<File>,
    ours: Directory,
    living: Vec<String>,
    answering: Handle,
    background: Handle,
    http: Handle,
}

async fn serve(begin: Begin) -> Result<(), String> {
    let Begin { setup, passed, free, ours, living, answering, background, http } = begin;
    let began = Instant::now();
    let config = &setup.config;
    let (live, metrics) = (Live::new(config.clone()), setup.metrics.clone());
    for lacking in capacity::warnings(config) {
        tracing::warn!("{lacking}");
    }
    set_limits(&metrics, config);
    let recorder = recorder::start(metrics.clone(), &background);
    let traced = |settings| Traces::start(settings, &ours.id, &metrics, &background);
    let traces = setup.traces.as_ref().map(traced).transpose()?;
    let engines = Arc::new(Engines::new(&config.engine, config.modules.baseline).map_err(|e| e.to_string())?);
    let modules = ModuleStore::open(config, engines.clone(), metrics.clone(), answering.clone())
        .map_err(|e| format!("the module store: {e}"))?;
    let scheduler = Scheduler::start(&config.scheduler, engines.each(), metrics.clone(), answering.clone())
        .map_err(|e| format!("cannot start the guests' threads: {e}"))?;
    let mut listeners: Vec<Listener> = vec![recorder];
    if let Some(traces) = traces.clone() {
        listeners.push(Box::new(move |start| traces.finished(start)));
    }
    let runtime = Arc::new(Runtime {
        engines,
        scheduler: Arc::new(scheduler),
        slots: Slots::new(&config.engine, metrics.clone()),
        resolvers: Resolvers::new(&config.network, background.clone()),
        recent: Recent::new(config.metrics.recent_max, metrics.clone(), listeners),
        metrics: metrics.clone(),
    });
    let world = Arc::new(World {
        runtime,
        holders: Holders::new(config.network.holders_warm, answering.clone(), metrics.clone()),
        http: Http::new(live.clone(), http, metrics.clone()),
        task_series: TaskSeries::new(config.metrics.task_series_max, config.metrics.pods),
        traces,
        by_pod: config.metrics.pods,
    });
    let ahead = Ahead::new(live.clone(), modules.clone(), metrics.clone(), answering.clone(), &ours.path);
    metrics.engine.fingerprint(world.runtime.engines.fingerprint());
    let living_count = living.len();
    let older = OlderGenerations::new(config.state_dir.clone(), living, &background, {
        let modules = modules.clone();
        move |_| modules.remove_unused()
    });
    let runtimes = Runtimes { answering: answering.clone(), background: background.clone() };
    let task_sockets =
        TaskSockets::new(live.clone(), world.clone(), modules.clone(), ours.path.clone(), older.clone(), runtimes);
    let signals = Signals::new().map_err(|e| e.to_string())?;
    let (orders, ordered) = mpsc::channel(ORDERS_MAX);
    let charge = Arc::new(Charge::default());
    let asked = generation_server::bind(&ours.path).map_err(|e| format!("state_dir: cannot listen in it: {e}"))?;
    let operator = Arc::new(Operator {
        config: live.clone(),
        world: world.clone(),
        modules: modules.clone(),
        ahead: ahead.clone(),
        task_sockets: task_sockets.clone(),
        older,
        logging: setup.logging.clone(),
        generation: ours.id.clone(),
        started_at: SystemTime::now(),
        answering: answering.clone(),
        background: background.clone(),
    });
    let server = Arc::new(Server {
        id: ours.id.clone(),
        began,
        task_sockets: task_sockets.clone(),
        charge: charge.clone(),
        operator: operator.clone(),
        orders,
    });
    let asking = tokio::spawn(server.serve(asked));
    let answers = Answers { task_sockets: task_sockets.clone(), operator };
    let own = control::open(None, &ours.path.join(directory::CONTROL))
        .map_err(|e| format!("state_dir: cannot listen in it: {e}"))?;
    let own = answers.serve(own.listener);

    let anchor = start_anchor(&setup).await?;
    let mut got = take_charge(config, &ours.id, free).await?;
    // What is wrong with its address or certificate is said before anything is served.
    let scrape = scrapes(config, &answers.operator, &background, &mut got).await?;
    // Who takes no new tasks has said so of the node, and not of one process.
    if got.handed_over.as_ref().is_some_and(|over| over.draining) {
        task_sockets.drain(true);
    }
    // With older ones, they are theirs. Looked for before anything new comes.
    let left = (living_count == 0).then(|| native::leftovers(config));
    let handed = got.handed_over.as_mut().map(|over| over.take_all(Passed::Controller)).unwrap_or_default();
    let pods = sockets::open(config, &ours.path, handed)?;
    let (held, questions) = control(config, passed, got.lock, &mut got.handed_over, &scrape, &pods, &answers)?;
    let control_file = held.control_file.clone();
    let passed = control_file.is_none();
    charge.hold(held);
    if let Some(handed_over) = got.handed_over {
        let taken = tokio::task::spawn_blocking(move || handed_over.taken()).await;
        taken.map_err(|e| e.to_string()).flatten()?;
    }
    // Images are followed by the one that is in charge.
    let following = Some(ahead.follow(&background));
    if let Some(left) = left {
        let shim = config.native.shim.clone();
        answering.spawn_blocking(move || native::end_leftovers(&shim, left));
    }
    let controllers = Controllers::serve(pods, config, &task_sockets);
    let watchdog = background.spawn(service::watchdog(answering.clone(), world.runtime.scheduler.clone()));
    service::ready(anchor);
    modules.remove_unused();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        generation = ours.id,
        older = living_count,
        control_socket = %config.control_socket().display(),
        passed,
        took_ms = began.elapsed().as_millis() as u64,
        "hearthd is ready"
    );
    let daemon = Daemon {
        setup,
        live,
        ours,
        world,
        task_sockets,
        charge,
        questions,
        scrape,
        ahead,
        following,
        watchdog,
        controllers,
        serving: [asking, own],
    };
    daemon.run(signals, ordered).await
}
