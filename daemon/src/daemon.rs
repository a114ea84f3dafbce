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
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::ahead::Ahead;
use crate::config::{Config, Live};
use crate::generation::charge::{self, Charge, Got, Held};
use crate::generation::client::HandedOver;
use crate::generation::directory::{self, Dead, Directory};
use crate::generation::peers::Peers;
use crate::generation::server::{self as generation_server, Order, Server};
use crate::generation::wire::Passed;
use crate::http::Http;
use crate::logging::Logging;
use crate::metrics::Metrics;
use crate::metrics::tasks::TaskSeries;
use crate::native;
use crate::os::process::Share;
use crate::os::{activation, anchor, capacity, identity, process};
use crate::reload;
use crate::server::control;
use crate::server::endpoint::listen::Listener;
use crate::server::endpoint::{self, Endpoint};
use crate::server::instances::{Instances, Runtimes};
use crate::server::operator::{METRICS_ADDRESS, Operator};
use crate::server::sandboxer::{self, Controllers};
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

/// How often a daemon that drains looks whether it is needed any more.
const DRAINED_EVERY: Duration = Duration::from_millis(100);

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
    identity::remember_home().map_err(|e| e.to_string())?;
    let runtime = runtime("rpc", (config.rpc.threads, config.rpc.blocking_threads_max), Share::Usual)?;
    // What no caller waits for stays off the threads that answer, and steps back where they need the processors:
    // in a burst of starts, telling containerd of them takes as much as the starts themselves.
    let background = self::runtime("background", (1, BLOCKING_THREADS), Share::Less)?;
    // Strangers' requests do not delay containerd's.
    let threads = match config.http.threads {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        threads => threads,
    };
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
    identity::settle();
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
    let engines = Arc::new(Engines::new(&config.engine).map_err(|e| e.to_string())?);
    let modules = ModuleStore::open(config, engines.clone(), metrics.clone(), answering.clone())
        .map_err(|e| format!("the module store: {e}"))?;
    let scheduler = Scheduler::start(&config.scheduler, engines.each(), metrics.clone(), answering.clone())
        .map_err(|e| format!("cannot start the guests' threads: {e}"))?;
    let world = Arc::new(World {
        engines,
        scheduler: Arc::new(scheduler),
        slots: Slots::new(&config.engine, metrics.clone()),
        holders: Holders::new(config.network.holders_warm, answering.clone(), metrics.clone()),
        http: Http::new(config.http.clone(), http, metrics.clone()),
        resolvers: Resolvers::new(&config.network, background.clone()),
        task_series: TaskSeries::new(config.metrics.task_series_max, config.metrics.pod_labels),
        recent: Recent::new(config.metrics.recent_max, metrics.clone(), Some(recorder)),
        metrics: metrics.clone(),
        by_pod: config.metrics.pods,
    });
    let ahead = Ahead::new(config, modules.clone(), metrics.clone(), answering.clone(), &ours.path);
    metrics.engine(world.engines.fingerprint());
    let older = living.len();
    let peers = Peers::new(config.state_dir.clone(), living, &background, {
        let modules = modules.clone();
        move |_| modules.remove_unused()
    });
    let runtimes = Runtimes { answering: answering.clone(), background: background.clone() };
    let instances =
        Instances::new(live.clone(), world.clone(), modules.clone(), ours.path.clone(), peers.clone(), runtimes);
    let signals = Signals::new().map_err(|e| e.to_string())?;
    let (orders, ordered) = mpsc::channel(ORDERS_MAX);
    let charge = Arc::new(Charge::default());
    let asked = generation_server::bind(&ours.path).map_err(|e| format!("state_dir: cannot listen in it: {e}"))?;
    let operator = Arc::new(Operator {
        config: live.clone(),
        world: world.clone(),
        modules: modules.clone(),
        ahead: ahead.clone(),
        instances: instances.clone(),
        peers,
        logging: setup.logging.clone(),
        generation: ours.id.clone(),
        started_at: SystemTime::now(),
        answering: answering.clone(),
        background: background.clone(),
    });
    let server = Arc::new(Server {
        id: ours.id.clone(),
        began,
        instances: instances.clone(),
        charge: charge.clone(),
        operator: operator.clone(),
        orders,
    });
    let asking = tokio::spawn(server.serve(asked));
    let answers = Answers { instances: instances.clone(), operator };
    let own = control::open(None, &ours.path.join(directory::CONTROL))
        .map_err(|e| format!("state_dir: cannot listen in it: {e}"))?;
    let own = answers.serve(own.listener);

    let anchor = anchor(&setup).await?;
    let mut got = take_charge(config, &ours.id, free).await?;
    // What is wrong with its address or certificate is said before anything is served.
    let scrape = scrapes(config, &answers.operator, &background, &mut got).await?;
    // With older ones, they are theirs. Looked for before anything new comes.
    let left = (older == 0).then(|| native::leftovers(config));
    let (held, questions) = control(config, passed, got.lock, &mut got.handed_over, &scrape, &answers)?;
    let control_file = held.control_file.clone();
    let passed = control_file.is_none();
    charge.hold(held);
    if let Some(handed_over) = got.handed_over {
        let taken = tokio::task::spawn_blocking(move || handed_over.taken()).await;
        taken.map_err(|e| e.to_string()).flatten()?;
    }
    // Images are followed by the one that is in charge.
    let following = ahead.follow(&background);
    if let Some(left) = left {
        let shim = config.native.shim.clone();
        answering.spawn_blocking(move || native::end_leftovers(&shim, left));
    }
    // An older one goes on with the connections it has: its containerd comes to this one when it leaves.
    let controllers = sandboxer::serve_all(config, &instances)
        .map_err(|(path, e)| format!("sandboxer.sockets: cannot listen on {}: {e}", path.display()))?;
    let watchdog = background.spawn(service::watchdog(answering.clone(), world.scheduler.clone()));
    service::ready(anchor);
    modules.remove_unused();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        generation = ours.id,
        older,
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
        instances,
        charge,
        questions,
        scrape,
        following,
        watchdog,
        controllers,
        serving: [asking, own],
    };
    daemon.run(signals, ordered).await
}

/// Shows the limits that a reload can change, and that of the module store.
fn set_limits(metrics: &Metrics, config: &Config) {
    metrics.tasks_limit.set(i64::try_from(config.rpc.tasks_max).unwrap_or(i64::MAX));
    metrics.store_limit_bytes.set(i64::try_from(config.modules.store_bytes_max).unwrap_or(i64::MAX));
}

/// The process that stands for this one at the service manager, if that is wanted.
async fn anchor(setup: &Setup) -> Result<Option<u32>, String> {
    let Some(unit) = setup.anchor.clone() else { return Ok(None) };
    let state_dir = setup.config.state_dir.clone();
    let started = tokio::task::spawn_blocking(move || anchor::start(&unit, &state_dir)).await;
    let pid = started.map_err(std::io::Error::other).flatten();
    pid.map(Some).map_err(|e| format!("cannot start a process that stands for this one at systemd: {e}"))
}

/// The charge, with the lock taken out.
struct Charged {
    lock: File,
    handed_over: Option<HandedOver>,
}

async fn take_charge(config: &Config, ours: &str, free: Option<File>) -> Result<Charged, String> {
    if let Some(lock) = free {
        return Ok(Charged { lock, handed_over: None });
    }
    let (state_dir, ours) = (config.state_dir.clone(), ours.to_string());
    let got = tokio::task::spawn_blocking(move || charge::get(&state_dir, &ours)).await;
    match got.map_err(|e| e.to_string()).flatten()? {
        Got::Free(lock) => Ok(Charged { lock, handed_over: None }),
        Got::HandedOver(mut over) => match over.take(Passed::Charge) {
            Some(lock) => Ok(Charged { lock: lock.into(), handed_over: Some(over) }),
            None => Err("the old hearthd did not hand over its lock".into()),
        },
    }
}

/// The metrics endpoint, serving.
struct Scrape {
    serving: JoinHandle<()>,
    /// A second descriptor of its socket.
    listener: OwnedFd,
    /// The socket's file, if it is a Unix socket.
    file: Option<PathBuf>,
}

/// The metrics endpoint, unless the configuration wants none: at the socket that is handed over, if there is one.
async fn scrapes(
    config: &Config,
    operator: &Arc<Operator>,
    background: &Handle,
    got: &mut Charged,
) -> Result<Option<Scrape>, String> {
    let passed = got.handed_over.as_mut().and_then(|over| over.take(Passed::Metrics));
    let (metrics, state_dir) = (config.metrics.clone(), config.state_dir.clone());
    if metrics.address.is_empty() {
        return Ok(None);
    }
    let token_file = Some(metrics.token_file.clone()).filter(|path| !path.as_os_str().is_empty());
    if let Some(path) = &token_file {
        endpoint::read_token(path).map_err(|e| format!("metrics.token_file: {}: {e}", path.display()))?;
    }
    let connections_max = metrics.connections_max;
    // The listener belongs to the runtime that is entered when it is made.
    let bound = background.spawn(async move { Listener::bind(&metrics, passed, &state_dir).await }).await;
    let socket = bound.map_err(|e| e.to_string()).flatten()?;
    let listener = socket.descriptor().map_err(|e| format!("metrics.address: {e}"))?;
    let file = socket.file().map(Path::to_owned);
    let endpoint = Endpoint { operator: operator.clone(), token_file, connections_max };
    Ok(Some(Scrape { serving: background.spawn(endpoint::serve(socket, endpoint)), listener, file }))
}

/// What questions on a control socket are answered from.
struct Answers {
    instances: Arc<Instances>,
    operator: Arc<Operator>,
}

impl Answers {
    fn serve(&self, listener: tokio::net::UnixListener) -> JoinHandle<()> {
        tokio::spawn(control::serve(listener, self.instances.clone(), self.operator.clone()))
    }
}

/// Opens the control socket and serves it.
fn control(
    config: &Config,
    passed: Option<UnixListener>,
    lock: File,
    handed_over: &mut Option<HandedOver>,
    scrape: &Option<Scrape>,
    answers: &Answers,
) -> Result<(Held, JoinHandle<()>), String> {
    let path = config.control_socket();
    let cannot = |e: std::io::Error| format!("control_socket: cannot listen on {}: {e}", path.display());
    // The service manager's own, or the one that is handed over.
    let handed = handed_over.as_mut().and_then(|over| Some((over.take(Passed::Control)?, over.removes_control)));
    let socket = match (passed, handed) {
        (Some(passed), _) => control::open(Some(passed), &path),
        (None, Some((handed, removes))) => control::inherit(handed.into(), removes, &path),
        (None, None) => control::open(None, &path),
    };
    let socket = socket.map_err(cannot)?;
    let copy = socket.listener.as_fd().try_clone_to_owned().map_err(cannot)?;
    let metrics = scrape.as_ref().map(|scrape| scrape.listener.try_clone()).transpose().map_err(cannot)?;
    let questions = answers.serve(socket.listener);
    Ok((Held { lock, control: copy, control_file: socket.ours, metrics }, questions))
}

/// The signals that mean something.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

/// A daemon that serves.
struct Daemon {
    /// As it was at the start.
    setup: Setup,
    live: Arc<Live>,
    ours: Directory,
    world: Arc<World>,
    instances: Arc<Instances>,
    charge: Arc<Charge>,
    questions: JoinHandle<()>,
    scrape: Option<Scrape>,
    /// Compiles images before a start.
    following: Option<JoinHandle<()>>,
    watchdog: JoinHandle<()>,
    controllers: Controllers,
    /// The generation's own sockets.
    serving: [JoinHandle<()>; 2],
}

impl Daemon {
    async fn run(mut self, mut signals: Signals, mut orders: mpsc::Receiver<Order>) -> Result<(), String> {
        let mut draining: Option<Drain> = None;
        let mut stopped = None;
        let why = loop {
            let drained = async {
                match &draining {
                    Some(drain) => drain.over(&self.instances).await,
                    None => std::future::pending().await,
                }
            };
            let order = tokio::select! {
                _ = signals.terminate.recv() => break "SIGTERM",
                _ = signals.interrupt.recv() => break "SIGINT",
                why = drained => break why,
                _ = signals.hangup.recv() => Order::Reload(oneshot::channel().0),
                // The server, which has the other end, is among what this waits for.
                Some(order) = orders.recv() => order,
            };
            match order {
                Order::Drain(done) => {
                    let is_ours = self.charge.is_held();
                    if is_ours {
                        draining = Some(self.drain().await);
                    }
                    let _ = done.send(is_ours);
                }
                Order::Stop(done) => {
                    stopped = Some(done);
                    break "asked to";
                }
                Order::Reload(done) => {
                    let _ = done.send(self.reload());
                }
            }
        };
        self.stop(why).await;
        drop(stopped);
        Ok(())
    }

    /// Another is in charge: nothing new is taken any more, but for the tasks that are here.
    async fn drain(&mut self) -> Drain {
        self.questions.abort();
        // Only then is every question that was accepted counted.
        let _ = (&mut self.questions).await;
        self.watchdog.abort();
        if let Some(following) = self.following.take() {
            following.abort();
        }
        if let Some(scrape) = self.scrape.take() {
            scrape.serving.abort();
        }
        self.charge.release();
        let tasks = self.instances.count().used();
        let drain = Drain::new(&self.live.now());
        tracing::info!(tasks, "another hearthd has taken over; this one leaves with its last task");
        drain
    }

    /// Reads the configuration again and puts it in force, or says why not.
    fn reload(&self) -> Result<(), String> {
        let reloaded = || {
            let new = (self.setup.reread)()?;
            let changed = reload::changes(&self.live.now(), &new)?;
            if changed.iter().any(|key| key == "log.level") {
                self.setup.logging.configure(&new.log.level)?;
            }
            self.instances.count().set_limit(new.rpc.tasks_max);
            set_limits(&self.world.metrics, &new);
            self.live.replace(new);
            Ok(changed)
        };
        match reloaded() {
            Ok(changed) => {
                tracing::info!(changed = changed.join(" "), "the configuration was read again");
                Ok(())
            }
            Err(error) => {
                let error: String = error;
                tracing::error!(error, "the configuration was not read again");
                Err(error)
            }
        }
    }

    async fn stop(self, why: &str) {
        tracing::info!(why, "stopping");
        if self.charge.is_held() {
            service::stopping();
        }
        self.questions.abort();
        if let Some(following) = &self.following {
            following.abort();
        }
        let held = self.charge.release();
        if let Some(file) = held.as_ref().and_then(|held| held.control_file.as_ref()) {
            let _ = std::fs::remove_file(file);
        }
        for native in self.instances.natives() {
            native.kill().await;
        }
        stop_guests(&self.instances.tasks()).await;
        self.instances.end_pods();
        let end = tokio::time::Instant::now() + STOP_ANSWERS_TIME;
        self.controllers.close(end, held.is_some()).await;
        self.instances.flush_events(tokio::time::Instant::now() + STOP_EVENTS_TIME).await;
        self.instances.close().await;
        if let Some(scrape) = self.scrape {
            scrape.serving.abort();
            let _ = std::fs::remove_file(self.setup.config.state_dir.join(METRICS_ADDRESS));
            if let Some(file) = scrape.file {
                let _ = std::fs::remove_file(file);
            }
        }
        self.serving.iter().for_each(JoinHandle::abort);
        self.world.holders.close();
        self.world.scheduler.stop();
        drop((held, self.ours));
        tracing::info!("stopped");
    }
}

/// A daemon that drains.
struct Drain {
    end: Option<tokio::time::Instant>,
}

impl Drain {
    fn new(config: &Config) -> Drain {
        let time = Duration::from_secs(config.upgrade.drain_seconds_max);
        Drain { end: (!time.is_zero()).then(|| tokio::time::Instant::now() + time) }
    }

    /// Waits until the daemon need not be there any more, or may not.
    async fn over(&self, instances: &Instances) -> &'static str {
        let mut look = tokio::time::interval(DRAINED_EVERY);
        loop {
            look.tick().await;
            if instances.count().is_idle() {
                return "the last task has ended";
            }
            if self.end.is_some_and(|end| tokio::time::Instant::now() >= end) {
                return "upgrade.drain_seconds_max has passed";
            }
        }
    }
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
