//! One guest's life: a slot, a store, an instance, the entry point, the exit code.
//!
//! [`run`] is the future that the scheduler polls. Dropping it at any point unwinds the guest and
//! gives the slot back.
//!
//! The guest's very first instruction is seen exactly: the store starts with an epoch deadline that
//! has already passed, so that the check every function begins with calls [`Scheduler::tick`]'s
//! wrapper here, once, before any other instruction.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use wasmtime::component;
use wasmtime::{Engine, PoolConcurrencyLimitError, Store, Val};
use wasmtime_wasi::cli::StdoutStream;
use wasmtime_wasi::filesystem::WasiFilesystemCtx;
use wasmtime_wasi::{FsPerms, I32Exit, WasiCtx, WasiCtxBuilder};

use crate::config;
use crate::error::{Error, Result};
use crate::http::Http;
use crate::http::outgoing::Outgoing;
use crate::http::outgoing::client::Client;
use crate::metrics::tasks::TaskSeries;
use crate::metrics::{Metrics, Phase};
use crate::operator;
use crate::starts::{About, Recent};
use crate::task::holders::Holders;
use crate::task::stdio::Stdio;
use crate::traces::Traces;
use crate::wasm::engine::{Allocation, CommandPre, Engines, INITIALIZE, InitialMemory, Prepared, Program, START};
use crate::wasm::names::{Names, Resolvers};
use crate::wasm::scheduler::{Guest, Scheduler};
use crate::wasm::wasi::{ComponentState, CoreState, Limits, MemoryUse, fields, resources};

/// Exit status of a guest that trapped: 128 + SIGABRT, as `wasmtime run` has it.
pub const TRAP_STATUS: u32 = 134;

/// Handles a component may have at once.
const RESOURCES_MAX: usize = 65_536;

/// The largest set of HTTP headers a command may make, in bytes.
const FIELDS_BYTES_MAX: usize = 64 << 10;

/// Counts guests against the pool and the room beyond it, so that a full node is a clear answer to
/// Start and not a trap.
pub struct Slots {
    pool: Room,
    on_demand: Room,
    metrics: Arc<Metrics>,
}

struct Room {
    limit: u32,
    used: AtomicU32,
}

impl Room {
    fn take(&self) -> bool {
        self.used
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |used| (used < self.limit).then_some(used + 1))
            .is_ok()
    }
}

impl Slots {
    /// As many as the configuration says.
    pub fn new(config: &config::Engine, metrics: Arc<Metrics>) -> Arc<Slots> {
        let room = |limit| Room { limit, used: AtomicU32::new(0) };
        Arc::new(Slots { pool: room(config.pool_slots), on_demand: room(config.on_demand_max), metrics })
    }

    /// Takes a slot: of the pool if the program fits one and one is free, else beyond it.
    ///
    /// # Errors
    /// `ResourceExhausted` naming both limits.
    pub fn take(self: &Arc<Self>, fits_pool: bool) -> Result<Slot> {
        if fits_pool && self.pool.take() {
            return Ok(Slot { slots: self.clone(), allocation: Allocation::Pooling });
        }
        self.take_on_demand()
    }

    /// Takes a slot beyond the pool.
    ///
    /// # Errors
    /// As [`Slots::take`].
    pub fn take_on_demand(self: &Arc<Self>) -> Result<Slot> {
        if self.on_demand.take() {
            return Ok(Slot { slots: self.clone(), allocation: Allocation::OnDemand });
        }
        Err(Error::ResourceExhausted(format!(
            "the node runs as many Wasm guests as it may: {} in the pool (engine.pool_slots) and {} beyond it (engine.on_demand_max); stop some or raise a limit",
            self.pool.limit, self.on_demand.limit
        )))
    }

    /// How many guests there are.
    pub fn usage(&self) -> operator::Pool {
        let used = |room: &Room| u64::from(room.used.load(Ordering::Relaxed));
        operator::Pool {
            used: used(&self.pool),
            slots: self.pool.limit.into(),
            on_demand: used(&self.on_demand),
            on_demand_limit: self.on_demand.limit.into(),
        }
    }

    /// Brings the gauges up to date; called before a scrape.
    pub fn observe(&self) {
        let used = self.pool.used.load(Ordering::Relaxed);
        self.metrics.pool_slots.with_label_values(&["used"]).set(i64::from(used));
        self.metrics.pool_slots.with_label_values(&["free"]).set(i64::from(self.pool.limit - used));
        self.metrics.on_demand_instances.set(i64::from(self.on_demand.used.load(Ordering::Relaxed)));
    }
}

/// A guest's place; given back on drop.
pub struct Slot {
    slots: Arc<Slots>,
    allocation: Allocation,
}

impl Slot {
    /// Where its instance is made.
    pub fn allocation(&self) -> Allocation {
        self.allocation
    }

    /// Whether instantiating a program that needs at most this much memory can be taken for granted:
    /// a slot is ours, and its memory is within the limit.
    pub fn is_sure(&self, needs: Option<InitialMemory>, memory_limit: u64) -> bool {
        self.allocation == Allocation::Pooling && needs.is_some_and(|needs| needs.at_most <= memory_limit)
    }
}

/// A program, and the slot that was taken for just this one.
pub type Placed = (Arc<Program>, Slot);

impl Drop for Slot {
    fn drop(&mut self) {
        let room = match self.allocation {
            Allocation::Pooling => &self.slots.pool,
            Allocation::OnDemand => &self.slots.on_demand,
        };
        room.used.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What every guest of this daemon shares.
pub struct World {
    /// The engines.
    pub engines: Arc<Engines>,
    /// The scheduler.
    pub scheduler: Arc<Scheduler>,
    /// Places for guests.
    pub slots: Arc<Slots>,
    /// Network namespaces for tasks that ask for a new one.
    pub holders: Arc<Holders>,
    /// Where requests are served.
    pub http: Arc<Http>,
    /// Look-ups of names.
    pub resolvers: Arc<Resolvers>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Which tasks have metrics of their own.
    pub task_series: Arc<TaskSeries>,
    /// The last starts and ends.
    pub recent: Arc<Recent>,
    /// Traces of starts, if there are any.
    pub traces: Option<Arc<Traces>>,
    /// Whether there are metrics of each pod.
    pub by_pod: bool,
}

/// All that one guest needs to run.
pub struct Launch {
    /// The module.
    pub program: Arc<Program>,
    /// The export to call instead of the entry point.
    pub export: Option<Arc<str>>,
    /// `argv`, the program's name first.
    pub args: Vec<String>,
    /// The environment.
    pub env: Vec<(String, String)>,
    /// The working directory, absolute in the guest's root. Preview 1 has none; there it is `PWD`.
    pub cwd: String,
    /// The guest's `/` on the host.
    pub root: PathBuf,
    /// Whether `/`, or a volume in it, refuses writes.
    pub partly_read_only: bool,
    /// Files a module may have open.
    pub open_files_max: u32,
    /// stdin, stdout and stderr.
    pub stdio: Arc<Stdio>,
    /// What the linear memories and tables of all the task's guests hold together, and may hold.
    pub memory: Arc<MemoryUse>,
    /// Set while the last growth this guest asked for was refused.
    pub starved: Arc<AtomicBool>,
    /// The scheduler's view of this guest.
    pub guest: Arc<Guest>,
    /// Its place.
    pub slot: Slot,
    /// How it looks up names; none for a core module, which has no sockets.
    pub names: Option<Names>,
    /// Whose start it is; none for an exec.
    pub about: Option<Arc<About>>,
}

/// How a guest that ran came to its end by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It returned or called exit.
    Exited(u32),
    /// It trapped; wasmtime's text with the backtrace.
    Trapped(String),
    /// There was no instance; it never ran.
    NotStarted(Error),
}

/// Why there is no instance.
enum Refusal {
    /// The pool is out of some part that this program needs more of than most.
    PoolFull,
    /// It will not be better elsewhere.
    Final(Error),
    /// The module's start function exited or trapped: the guest has run.
    Ran(Outcome),
}

/// Runs one guest. `started` is called once there is an instance, before the entry point is called.
pub async fn run(world: Arc<World>, mut launch: Launch, started: impl FnOnce() + Send) -> Outcome {
    let began = Instant::now();
    let mut instance = instantiate(&world, &launch).await;
    if matches!(instance, Err(Refusal::PoolFull)) {
        instance = match world.slots.take_on_demand() {
            Ok(slot) => {
                launch.slot = slot;
                instantiate(&world, &launch).await
            }
            Err(error) => Err(Refusal::Final(error)),
        };
    }
    let instance = match instance {
        Ok(instance) => instance,
        Err(refusal) => {
            return match refusal {
                Refusal::Final(error) => Outcome::NotStarted(error),
                Refusal::PoolFull => {
                    Outcome::NotStarted(Error::Internal("the on-demand engine refused for want of a pool".into()))
                }
                Refusal::Ran(outcome) => {
                    started();
                    outcome
                }
            };
        }
    };
    phase(launch.about.as_deref(), &world.metrics, Phase::Instantiate, began);
    instance.ready.set(Instant::now());
    started();
    match instance.call {
        Callable::Core(store, instance) => call_core(store, instance, launch.export.as_deref()).await,
        Callable::Command(mut store, command) => ran(command.wasi_cli_run().call_run(&mut store).await),
        Callable::CommandP3(mut store, command) => {
            let run = store.run_concurrent(async |store| command.wasi_cli_run().call_run(store).await);
            ran(run.await.flatten())
        }
        Callable::Export(store, function) => call_component(store, function).await,
    }
}

/// A phase has ended; of an exec only the metrics hear.
fn phase(about: Option<&About>, metrics: &Metrics, phase: Phase, began: Instant) {
    match about {
        Some(about) => about.phase(metrics, phase, began, began.elapsed()),
        None => metrics.phase(phase, began.elapsed()),
    }
}

struct Instance {
    call: Callable,
    ready: Arc<Ready>,
}

enum Callable {
    Core(Store<CoreState>, wasmtime::Instance),
    Command(Store<ComponentState>, wasmtime_wasi::p2::bindings::Command),
    CommandP3(Store<ComponentState>, wasmtime_wasi::p3::bindings::Command),
    Export(Store<ComponentState>, component::Func),
}

/// When the instance was ready, for the guest's first instruction to measure from.
#[derive(Default)]
struct Ready(std::sync::OnceLock<Instant>);

impl Ready {
    fn set(&self, at: Instant) {
        let _ = self.0.set(at);
    }
}

async fn instantiate(world: &World, launch: &Launch) -> Result<Instance, Refusal> {
    // The root lies below directories that only the daemon can enter, and the program in its store. From
    // then on, the module's own start function being the first, it is the guest that acts.
    launch.guest.act_as_daemon();
    let prepared = launch.program.prepared(&world.engines, launch.slot.allocation).map_err(Refusal::Final)?;
    let wasi = wasi_context(launch).map_err(Refusal::Final)?;
    launch.guest.act_as_itself().map_err(Refusal::Final)?;
    let limits = Limits::new(launch.memory.clone(), launch.starved.clone());
    let refused_before = launch.memory.refused();
    let refused = |error: &wasmtime::Error| refused(launch, refused_before, error);
    let ready = Arc::new(Ready::default());
    let call = match prepared {
        Prepared::Core(pre) => {
            let wasi = wasi_p1(wasi);
            let mut store = store(
                world,
                launch,
                pre.module().engine(),
                CoreState {
                    wasi,
                    limits,
                    partly_read_only: launch.partly_read_only,
                    open_files: 0,
                    open_files_max: launch.open_files_max,
                },
                &ready,
            );
            store.limiter(|state| &mut state.limits);
            let instance = pre.instantiate_async(&mut store).await.map_err(|e| refused(&e))?;
            Callable::Core(store, instance)
        }
        Prepared::Component { pre, command, .. } => {
            let mut wasi = wasi;
            let state = ComponentState {
                ctx: wasi.build(),
                table: resources(RESOURCES_MAX),
                limits,
                partly_read_only: launch.partly_read_only,
                names: launch.names.clone(),
                http: fields(FIELDS_BYTES_MAX),
                outgoing: outgoing(world, launch),
            };
            let mut store = store(world, launch, pre.engine(), state, &ready);
            store.limiter(|state| &mut state.limits);
            match (&launch.export, command) {
                (None, Some(CommandPre::P2(command))) => {
                    let command = command.instantiate_async(&mut store).await.map_err(|e| refused(&e))?;
                    Callable::Command(store, command)
                }
                (None, Some(CommandPre::P3(command))) => {
                    let command = command.instantiate_async(&mut store).await.map_err(|e| refused(&e))?;
                    Callable::CommandP3(store, command)
                }
                (export, _) => {
                    let name = export.as_deref().unwrap_or("run");
                    let instance = pre.instantiate_async(&mut store).await.map_err(|e| refused(&e))?;
                    let function = instance.get_func(&mut store, name).ok_or_else(|| {
                        Refusal::Final(Error::InvalidArgument(format!("the component exports no function {name:?}")))
                    })?;
                    Callable::Export(store, function)
                }
            }
        }
    };
    Ok(Instance { call, ready })
}

/// How it sends requests of its own: from the network it is in, if any.
fn outgoing(world: &World, launch: &Launch) -> Outgoing {
    Outgoing::new(launch.names.clone().map(|names| Client::new(world.http.clone(), names, &launch.env)))
}

fn store<T: 'static>(world: &World, launch: &Launch, engine: &Engine, state: T, ready: &Arc<Ready>) -> Store<T> {
    let mut store = Store::new(engine, state);
    store.set_epoch_deadline(0);
    let mut tick = world.scheduler.tick(&launch.guest);
    let (metrics, recent) = (world.metrics.clone(), world.recent.clone());
    let (ready, about) = (ready.clone(), launch.about.clone());
    let mut first = true;
    store.epoch_deadline_callback(move |_| {
        if std::mem::take(&mut first) {
            if let Some(ready) = ready.0.get() {
                phase(about.as_deref(), &metrics, Phase::FirstCall, *ready);
            }
            if let Some(about) = &about {
                recent.started(about);
            }
        }
        tick()
    });
    store
}

fn wasi_context(launch: &Launch) -> Result<WasiCtxBuilder> {
    let surroundings =
        Surroundings { args: &launch.args, env: &launch.env, cwd: &launch.cwd, networked: launch.names.is_some() };
    let mut wasi = surroundings.context(launch.stdio.stdout(), launch.stdio.stderr());
    open_root(&mut wasi, &launch.root)?;
    wasi.stdin(launch.stdio.stdin());
    if launch.program.kind() == crate::wasm::engine::Kind::Core && !launch.env.iter().any(|(name, _)| name == "PWD") {
        wasi.env("PWD", &launch.cwd);
    }
    Ok(wasi)
}

/// What a guest finds around it.
pub struct Surroundings<'a> {
    /// `argv`.
    pub args: &'a [String],
    /// The environment.
    pub env: &'a [(String, String)],
    /// The working directory.
    pub cwd: &'a str,
    /// Whether it has a network.
    pub networked: bool,
}

impl Surroundings<'_> {
    /// All of it but its files, with an empty standard input.
    pub fn context(&self, stdout: impl StdoutStream + 'static, stderr: impl StdoutStream + 'static) -> WasiCtxBuilder {
        let mut wasi = WasiCtx::builder();
        wasi.allow_blocking_current_thread(true)
            .args(self.args)
            .envs(self.env)
            .initial_cwd(self.cwd)
            .stdout(stdout)
            .stderr(stderr);
        if self.networked {
            // The network itself is where the worker is while it runs this guest; what may be reached is
            // decided there, as for any process of the pod.
            wasi.allow_tcp(true).allow_udp(true).socket_addr_check(|_, _| Box::pin(std::future::ready(true)));
        }
        wasi
    }
}

/// Opens a guest's `/`. For the daemon: it lies where only the daemon can enter.
fn open_root(wasi: &mut WasiCtxBuilder, root: &Path) -> Result<()> {
    // A read-only root is one by its mount, which leaves the volumes in it as they are.
    wasi.preopened_dir(root, "/", FsPerms::ReadWrite)
        .map_err(|e| Error::FailedPrecondition(format!("cannot open the root {}: {e:#}", root.display())))?;
    Ok(())
}

/// The files of a container whose guests come and go: its `/`, opened once.
///
/// # Errors
/// If the root cannot be opened.
pub fn shared_files(root: &Path) -> Result<WasiFilesystemCtx> {
    let mut wasi = WasiCtx::builder();
    wasi.allow_blocking_current_thread(true);
    open_root(&mut wasi, root)?;
    Ok(wasi.build().filesystem().clone())
}

fn wasi_p1(mut wasi: WasiCtxBuilder) -> wasmtime_wasi::p1::WasiP1Ctx {
    wasi.build_p1()
}

/// Why instantiating failed; `refused_before`: how often growing had been refused to the task until then.
fn refused(launch: &Launch, refused_before: u64, error: &wasmtime::Error) -> Refusal {
    if error.is::<PoolConcurrencyLimitError>() && launch.slot.allocation == Allocation::Pooling {
        return Refusal::PoolFull;
    }
    if error.is::<wasmtime::Trap>() || error.is::<I32Exit>() {
        return Refusal::Ran(ended(error));
    }
    let text = format!("{error:#}").replace('\n', " ");
    if launch.memory.refused() > refused_before {
        return Refusal::Final(over_memory(launch.memory.limit(), &text));
    }
    Refusal::Final(Error::FailedPrecondition(format!("the module cannot be instantiated: {text}")))
}

/// A module that starts with more memory than its container may have.
pub fn over_memory(limit: u64, detail: &str) -> Error {
    Error::ResourceExhausted(format!(
        "the module needs more memory to start than the container's limit of {limit} bytes: {detail}; raise resources.limits.memory or the module's initial memory must shrink"
    ))
}

async fn call_core(mut store: Store<CoreState>, instance: wasmtime::Instance, export: Option<&str>) -> Outcome {
    if export.is_some()
        && let Some(initialize) = instance.get_func(&mut store, INITIALIZE)
        && let Err(error) = initialize.call_async(&mut store, &[], &mut []).await
    {
        return ended(&error);
    }
    let name = export.unwrap_or(START);
    let Some(function) = instance.get_func(&mut store, name) else {
        return Outcome::Trapped(format!("the module exports no function {name:?}"));
    };
    let mut results = vec![Val::I32(0); function.ty(&store).results().len()];
    match function.call_async(&mut store, &[], &mut results).await {
        // As a C main's: an i32 result is the exit status.
        Ok(()) => Outcome::Exited(results.first().and_then(Val::i32).map_or(0, exit_status)),
        Err(error) => ended(&error),
    }
}

async fn call_component(mut store: Store<ComponentState>, function: component::Func) -> Outcome {
    let ty = function.ty(&store);
    if ty.params().len() > 0 {
        return Outcome::Trapped("only a function without parameters can be started".into());
    }
    let mut results = vec![component::Val::Bool(false); ty.results().len()];
    match function.call_async(&mut store, &[], &mut results).await {
        Ok(()) => Outcome::Exited(u32::from(matches!(results.first(), Some(component::Val::Result(Err(_)))))),
        Err(error) => ended(&error),
    }
}

/// How a command's `run` ended.
fn ran(result: wasmtime::Result<std::result::Result<(), ()>>) -> Outcome {
    match result {
        Ok(Ok(())) => Outcome::Exited(0),
        Ok(Err(())) => Outcome::Exited(1),
        Err(error) => ended(&error),
    }
}

fn ended(error: &wasmtime::Error) -> Outcome {
    match error.downcast_ref::<I32Exit>() {
        Some(I32Exit(code)) => Outcome::Exited(exit_status(*code)),
        None => Outcome::Trapped(format!("{error:?}")),
    }
}

/// The low byte, as a Unix parent sees it.
fn exit_status(code: i32) -> u32 {
    u32::from(code as u8)
}
