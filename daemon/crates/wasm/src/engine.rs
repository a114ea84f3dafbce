//! wasmtime's engines, and programs prepared in them.
//!
//! There are two engines with equal tunables, so that one artifact serves both: the *pooling* engine,
//! whose slots are reserved once and cost a microsecond to take, and the *on-demand* engine, which
//! maps memory for each guest and is used when the pool is full or a module does not fit a slot.
//!
//! A third, the *baseline* engine, runs what wasmtime's baseline compiler (Winch) has made: its code has calling
//! conventions of its own, so that neither takes the other's. It maps memory for each guest, as the on-demand
//! engine does.
//!
//! A [`Program`] is all of a start that does not depend on the task: code mapped, imports resolved,
//! types checked. Tasks share it by `Arc`. One of the baseline compiler's gives way to a better one in the
//! [`LiveProgram`] that tasks ask.
//!
//! Compiling happens elsewhere, in [`compile`]'s own process; nothing here reads a stranger's bytes.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use wasmtime::component::{Component, InstancePre as ComponentPre, Linker as ComponentLinker};
use wasmtime::{
    Config, Engine, InstanceAllocationStrategy, InstancePre, Linker, Module, OptLevel, PoolingAllocationConfig,
    Strategy,
};
use wasmtime_wasi::{p2, p3};
use wasmtime_wasi_http::{p2 as http_p2, p3 as http_p3};

use crate::wasi::{self, ComponentState, CoreState, TABLE_ELEMENT_BYTES};
use hearth_base::config;
use hearth_base::error::{Error, Result};
use hearth_base::text::{NAME_BYTES_MAX, shown};

/// What the bytes are, by WebAssembly's own layer field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A core module.
    Core,
    /// A component.
    Component,
}

/// Which compiler's code it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// That of the baseline compiler: soon there, and slow.
    Baseline,
    /// That of the optimising compiler.
    Optimised,
}

/// Address space of one linear memory. With 4 GiB no access needs a bounds check.
const MEMORY_RESERVATION_BYTES: u64 = 4 << 30;

/// Unmapped space after a linear memory, so that a constant offset needs no check either.
const MEMORY_GUARD_BYTES: u64 = 32 << 20;

/// Core instances, tables and memories in the pool for each slot: a component made by the preview 1
/// adapter has about four core instances, two tables and one memory.
const CORE_INSTANCES_PER_SLOT: u32 = 5;
const TABLES_PER_SLOT: u32 = 3;

/// How much more of a guest's own stack there is for baseline code, whose frames hold what optimised code keeps
/// in registers, so that a guest that needs its stack does not overflow it before it is optimised. Frames of code
/// with many locals can be larger by more than this; such a guest traps. All of it is address space until touched.
const BASELINE_STACK_FACTOR: usize = 4;

/// A page of linear memory, by the WebAssembly specification.
const WASM_PAGE_BYTES: u64 = 65_536;

/// The engines.
pub struct Engines {
    pooling: Room,
    on_demand: Room,
    baseline: Option<Room>,
    fingerprint: String,
}

/// One engine with its linkers.
struct Room {
    engine: Engine,
    core: Linker<CoreState>,
    component: ComponentLinker<ComponentState>,
}

/// Which engine a guest runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocation {
    /// A slot of the pool.
    Pooling,
    /// Mapped for this guest.
    OnDemand,
}

impl Engines {
    /// Makes the engines, the baseline's only if it is wanted; reserves the pool's address space.
    ///
    /// # Errors
    /// If the pool does not fit the address space or `vm.max_map_count`.
    pub fn new(config: &config::Engine, baseline: config::Baseline) -> Result<Engines> {
        let mut pooling = tunables(config);
        pooling.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(config)));
        let mut on_demand = tunables(config);
        on_demand.allocation_strategy(InstanceAllocationStrategy::OnDemand);
        let pooling = Room::new(&pooling).map_err(|e| {
            Error::ResourceExhausted(format!(
                "cannot reserve a pool of {} slots: {e:#}; lower engine.pool_slots or raise vm.max_map_count",
                config.pool_slots
            ))
        })?;
        let on_demand =
            Room::new(&on_demand).map_err(|e| Error::Internal(format!("cannot make the on-demand engine: {e:#}")))?;
        let fingerprint = fingerprint(&on_demand.engine);
        // wasmtime gives Winch its first tier of support, as to Cranelift, on x86-64 alone.
        let wanted = baseline != config::Baseline::Never && cfg!(target_arch = "x86_64");
        let baseline = wanted.then(|| Room::new(&baseline_tunables(config))).and_then(|room| {
            // Nobody needs it.
            room.inspect_err(|error| tracing::warn!(error = %format!("{error:#}"), "there is no baseline engine")).ok()
        });
        Ok(Engines { pooling, on_demand, baseline, fingerprint })
    }

    /// Identifies what an artifact must have been compiled for, as 32 hex digits.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The engines themselves, for the epoch's tick.
    pub fn each(&self) -> impl Iterator<Item = Engine> {
        [Some(&self.pooling), Some(&self.on_demand), self.baseline.as_ref()]
            .into_iter()
            .flatten()
            .map(|room| room.engine.clone())
    }

    /// Whether there is a baseline engine.
    pub fn has_baseline(&self) -> bool {
        self.baseline.is_some()
    }

    /// Maps an artifact and prepares it.
    ///
    /// # Errors
    /// `InvalidArgument` if it imports what no world of ours has (named), `Internal` if wasmtime does
    /// not take the artifact.
    ///
    /// # Safety
    /// The file holds bytes that our own compile process wrote, verified by the module store, and
    /// nobody writes to or truncates it while the program lives: wasmtime maps it and runs it.
    #[allow(unsafe_code, reason = "mapping code is what this function is for")]
    pub unsafe fn load(&self, artifact: File, kind: Kind, tier: Tier) -> Result<Program> {
        if tier == Tier::Baseline {
            let program = Program { pooled: None, spare: artifact, kind, tier, on_demand: OnceLock::new() };
            program.prepared(self, Allocation::OnDemand)?;
            return Ok(program);
        }
        let spare = artifact
            .try_clone()
            .map_err(|e| Error::Internal(format!("cannot duplicate an artifact's descriptor: {e}")))?;
        // SAFETY: passed on from our caller.
        let pooled = unsafe { self.pooling.prepare(artifact, kind) };
        match pooled {
            Ok(pooled) => Ok(Program { pooled: Some(pooled), spare, kind, tier, on_demand: OnceLock::new() }),
            Err(Refusal::Import(error)) => Err(error),
            Err(Refusal::Code(first)) => {
                // It may just not fit a slot: several memories, a large table, a shared memory.
                let program = Program { pooled: None, spare, kind, tier, on_demand: OnceLock::new() };
                match program.prepared(self, Allocation::OnDemand) {
                    Ok(_) => Ok(program),
                    Err(Error::InvalidArgument(e)) => Err(Error::InvalidArgument(e)),
                    Err(_) => Err(Error::Internal(first)),
                }
            }
        }
    }
}

/// Why an artifact could not be prepared.
enum Refusal {
    /// wasmtime does not take the code.
    Code(String),
    /// The imports cannot be satisfied; the user's to mend.
    Import(Error),
}

impl Room {
    fn new(config: &Config) -> wasmtime::Result<Room> {
        let engine = Engine::new(config)?;
        let core = wasi::core_linker(&engine)?;
        let component = wasi::component_linker(&engine)?;
        Ok(Room { engine, core, component })
    }

    /// # Safety
    /// As [`Engines::load`].
    #[allow(unsafe_code, reason = "mapping code is what this function is for; see Engines::load")]
    unsafe fn prepare(&self, artifact: File, kind: Kind) -> Result<Prepared, Refusal> {
        let code = |e: wasmtime::Error| Refusal::Code(format!("{e:#}"));
        match kind {
            Kind::Core => {
                // SAFETY: passed on from our caller.
                let module = unsafe { Module::deserialize_open_file(&self.engine, artifact) }.map_err(code)?;
                let pre = self.core.instantiate_pre(&module).map_err(|e| Refusal::Import(unknown_import(&e)))?;
                Ok(Prepared::Core(pre))
            }
            Kind::Component => {
                // SAFETY: passed on from our caller.
                // wasmtime 48 maps a component by path only; this path is the open file itself.
                let path = format!("/proc/self/fd/{}", artifact.as_raw_fd());
                // SAFETY: passed on from our caller.
                let component = unsafe { Component::deserialize_file(&self.engine, path) }.map_err(code)?;
                let pre =
                    self.component.instantiate_pre(&component).map_err(|e| Refusal::Import(unknown_import(&e)))?;
                let command = CommandPre::new(&pre);
                let service = ServicePre::new(&pre);
                Ok(Prepared::Component { pre, command, service })
            }
        }
    }
}

/// A program ready to be started: code mapped, imports resolved.
pub struct Program {
    pooled: Option<Prepared>,
    /// The verified artifact, for preparing it in the on-demand engine when the pool is full.
    spare: File,
    kind: Kind,
    tier: Tier,
    /// Of baseline code: in the baseline engine.
    on_demand: OnceLock<Result<Prepared>>,
}

/// A module's program as its tasks ask for it: better code may take the place of what there was. What has
/// begun on the old one goes on with it, and the last of those takes it away.
pub struct LiveProgram(ArcSwap<Program>);

impl LiveProgram {
    /// The first.
    pub fn new(program: Program) -> LiveProgram {
        LiveProgram(ArcSwap::from_pointee(program))
    }

    /// The one to begin with now. Whoever takes a slot for it runs this one in it, not the one of a later
    /// question: that may fit the pool where this one does not.
    pub fn now(&self) -> Arc<Program> {
        self.0.load_full()
    }

    /// Puts another in its place.
    pub fn replace(&self, program: Arc<Program>) {
        self.0.store(program);
    }
}

/// Bounds of the memory a program starts with, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InitialMemory {
    /// Its largest linear memory.
    pub at_least: u64,
    /// All memories as large as the largest, and all tables.
    pub at_most: u64,
}

/// A program in one engine.
pub enum Prepared {
    /// A core module with the preview 1 world linked.
    Core(InstancePre<CoreState>),
    /// A component.
    Component {
        /// Any export can be called through this.
        pre: ComponentPre<ComponentState>,
        /// Set if it exports `wasi:cli/run`.
        command: Option<CommandPre>,
        /// Set if it exports `wasi:http/incoming-handler` or `wasi:http/handler`.
        service: Option<ServicePre>,
    },
}

/// A component that exports `wasi:cli/run`.
pub enum CommandPre {
    /// That of WASI 0.2.
    P2(p2::bindings::CommandPre<ComponentState>),
    /// That of WASI 0.3.
    P3(p3::bindings::CommandPre<ComponentState>),
}

impl CommandPre {
    fn new(pre: &ComponentPre<ComponentState>) -> Option<CommandPre> {
        let newer = p3::bindings::CommandPre::new(pre.clone()).ok().map(CommandPre::P3);
        newer.or_else(|| p2::bindings::CommandPre::new(pre.clone()).ok().map(CommandPre::P2))
    }
}

/// A component that serves HTTP.
pub enum ServicePre {
    /// It exports `wasi:http/incoming-handler`, of WASI 0.2.
    P2(http_p2::bindings::ProxyPre<ComponentState>),
    /// It exports `wasi:http/handler`, of WASI 0.3.
    P3(http_p3::bindings::ServicePre<ComponentState>),
}

impl ServicePre {
    fn new(pre: &ComponentPre<ComponentState>) -> Option<ServicePre> {
        let newer = http_p3::bindings::ServicePre::new(pre.clone()).ok().map(ServicePre::P3);
        newer.or_else(|| http_p2::bindings::ProxyPre::new(pre.clone()).ok().map(ServicePre::P2))
    }

    /// Where it lives.
    pub fn engine(&self) -> &Engine {
        match self {
            ServicePre::P2(pre) => pre.engine(),
            ServicePre::P3(pre) => pre.engine(),
        }
    }
}

/// What there is to call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// A function that is called once.
    Run,
    /// `wasi:http/incoming-handler` or `wasi:http/handler`, called for each request.
    Serve,
}

impl Program {
    /// What it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whose code it is.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// Whether it fits a slot of the pool.
    pub fn fits_pool(&self) -> bool {
        self.pooled.is_some()
    }

    /// The program in the engine asked for; prepared in the on-demand engine at the first call.
    ///
    /// # Errors
    /// If it does not fit a slot of the pool, or wasmtime does not take it.
    pub fn prepared(&self, engines: &Engines, allocation: Allocation) -> Result<&Prepared> {
        match allocation {
            Allocation::Pooling => self
                .pooled
                .as_ref()
                .ok_or_else(|| Error::ResourceExhausted("the module does not fit a slot of the pool".into())),
            Allocation::OnDemand => {
                self.on_demand.get_or_init(|| self.prepare_on_demand(engines)).as_ref().map_err(Clone::clone)
            }
        }
    }

    #[allow(unsafe_code, reason = "the artifact is the one Engines::load was given")]
    fn prepare_on_demand(&self, engines: &Engines) -> Result<Prepared> {
        let artifact = self
            .spare
            .try_clone()
            .map_err(|e| Error::Internal(format!("cannot duplicate an artifact's descriptor: {e}")))?;
        let room = match self.tier {
            Tier::Optimised => &engines.on_demand,
            Tier::Baseline => {
                let missing = || Error::Internal("there is no engine for code of the baseline compiler".into());
                engines.baseline.as_ref().ok_or_else(missing)?
            }
        };
        // SAFETY: the same open file that Engines::load was given, whose caller promised what is
        // needed for as long as this program lives.
        unsafe { room.prepare(artifact, self.kind) }.map_err(|refusal| match refusal {
            Refusal::Code(text) => Error::Internal(format!("wasmtime does not take the compiled module: {text}")),
            Refusal::Import(error) => error,
        })
    }

    /// What its linear memories need before the first instruction. `None` if only instantiating tells.
    pub fn initial_memory(&self) -> Option<InitialMemory> {
        let prepared = match &self.pooled {
            Some(prepared) => prepared,
            None => self.on_demand.get()?.as_ref().ok()?,
        };
        let required = match prepared {
            Prepared::Core(pre) => Some(pre.module().resources_required()),
            Prepared::Component { pre, .. } => pre.component().resources_required(),
        }?;
        // wasmtime says how many there are and how large the largest is.
        let largest = required.max_initial_memory_size.unwrap_or(0).saturating_mul(WASM_PAGE_BYTES);
        let tables = required
            .max_initial_table_size
            .unwrap_or(0)
            .saturating_mul(u64::from(required.num_tables))
            .saturating_mul(TABLE_ELEMENT_BYTES);
        Some(InitialMemory {
            at_least: largest,
            at_most: largest.saturating_mul(u64::from(required.num_memories)).saturating_add(tables),
        })
    }

    /// Whether it is a service of WASI 0.3, whose instances may have several requests.
    ///
    /// # Errors
    /// As [`Program::prepared`].
    pub fn serves_p3(&self, engines: &Engines) -> Result<bool> {
        let allocation = if self.fits_pool() { Allocation::Pooling } else { Allocation::OnDemand };
        let prepared = self.prepared(engines, allocation)?;
        Ok(matches!(prepared, Prepared::Component { service: Some(ServicePre::P3(_)), .. }))
    }

    /// Checks that there is something to call: `export` if given, else the kind's own entry point. A component that is
    /// both a command and a service runs, unless `serve` asks for the service.
    ///
    /// # Errors
    /// `InvalidArgument` naming what the module exports instead.
    pub fn check_entry(&self, engines: &Engines, export: Option<&str>, serve: bool) -> Result<Entry> {
        let allocation = if self.fits_pool() { Allocation::Pooling } else { Allocation::OnDemand };
        match self.prepared(engines, allocation)? {
            Prepared::Core(_) if serve => Err(nothing_to_serve("the module is not a component")),
            Prepared::Core(pre) => check_core_entry(pre.module(), export).map(|()| Entry::Run),
            Prepared::Component { .. } if serve && export.is_some() => Err(nothing_to_serve("another export is named")),
            Prepared::Component { pre, service: None, .. } if serve => {
                Err(nothing_to_serve(&format!("the component exports {}", component_exports(pre.component()))))
            }
            Prepared::Component { pre, command, service } => match (export, command) {
                (None, Some(_)) if !serve => Ok(Entry::Run),
                (None, _) if service.is_some() => Ok(Entry::Serve),
                (None, _) => Err(unsupported_world(pre.component())),
                (Some(name), _) => match pre.component().get_export(None, name) {
                    Some((wasmtime::component::types::ComponentItem::ComponentFunc(_), _)) => Ok(Entry::Run),
                    _ => Err(Error::InvalidArgument(format!(
                        "the component exports no function {name:?}; it exports: {}",
                        component_exports(pre.component())
                    ))),
                },
            },
        }
    }
}

/// A preview 1 command's entry point.
pub const START: &str = "_start";
/// A preview 1 reactor's initialiser, called before an export of its.
pub const INITIALIZE: &str = "_initialize";

fn check_core_entry(module: &Module, export: Option<&str>) -> Result<()> {
    let name = export.unwrap_or(START);
    match module.get_export(name).as_ref().and_then(wasmtime::ExternType::func) {
        Some(ty) if ty.params().len() == 0 && ty.results().len() <= 1 => Ok(()),
        Some(ty) => Err(Error::InvalidArgument(format!(
            "the export {name:?} has the type {ty}; only a function without parameters and with at most one result can be started"
        ))),
        None => {
            let functions: Vec<_> =
                module.exports().filter(|e| e.ty().func().is_some()).map(|e| e.name().to_string()).collect();
            let hint = if export.is_none() {
                "; a command exports \"_start\"; name another export as FILE.wasm#EXPORT"
            } else {
                ""
            };
            Err(Error::InvalidArgument(format!(
                "the module exports no function {name:?}; its functions: {}{hint}",
                list(&functions)
            )))
        }
    }
}

/// The most bytes of each name in a list.
const LISTED_BYTES_MAX: usize = 100;

/// Up to eight names, for a one-line message.
fn list(names: &[String]) -> String {
    let listed: Vec<_> = names.iter().take(8).map(|name| shown(name, LISTED_BYTES_MAX)).collect();
    match names.len() {
        0 => "none".into(),
        1..=8 => listed.join(", "),
        more => format!("{}, and {} more", listed.join(", "), more - 8),
    }
}

fn component_exports(component: &Component) -> String {
    let names: Vec<_> =
        component.component_type().exports(component.engine()).map(|(name, _)| name.to_string()).collect();
    list(&names)
}

fn nothing_to_serve(found: &str) -> Error {
    Error::InvalidArgument(format!(
        "the pod asks for an HTTP service, but {found}; a service exports wasi:http/incoming-handler 0.2 or wasi:http/handler 0.3"
    ))
}

fn unsupported_world(component: &Component) -> Error {
    let exports = component_exports(component);
    Error::InvalidArgument(format!(
        "the component is neither a command (world wasi:cli/command) nor an HTTP service (world wasi:http/proxy or wasi:http/service): it exports {exports}; a command exports wasi:cli/run, a service wasi:http/incoming-handler 0.2 or wasi:http/handler 0.3; call a function of it as FILE.wasm#EXPORT"
    ))
}

/// wasmtime's text about an import, with what to do about it.
fn unknown_import(error: &wasmtime::Error) -> Error {
    let text = format!("{error:#}");
    let text = shown(&text, NAME_BYTES_MAX);
    Error::InvalidArgument(format!(
        "the module cannot be linked: {text}; Hearth offers WASI preview 1 to modules and the imports of wasi:cli/command 0.2 and 0.3, wasi:http/proxy 0.2 and wasi:http/service 0.3 to components"
    ))
}

/// What every engine and the compiler share: it decides the machine code.
fn tunables(config: &config::Engine) -> Config {
    let mut tunables = Config::new();
    tunables
        .epoch_interruption(true)
        .cranelift_opt_level(OptLevel::Speed)
        .memory_reservation(MEMORY_RESERVATION_BYTES)
        .memory_guard_size(MEMORY_GUARD_BYTES)
        .memory_init_cow(true)
        // Backtraces of traps come from wasmtime's own tables; registering DWARF unwind tables with
        // the C runtime for each module costs time under a global lock.
        .native_unwind_info(false)
        .max_wasm_stack(config.wasm_stack_bytes)
        .async_stack_size(config.stack_bytes);
    tunables
}

/// What the baseline engine and its compiler share.
fn baseline_tunables(config: &config::Engine) -> Config {
    let mut baseline = tunables(config);
    let more = config.wasm_stack_bytes.saturating_mul(BASELINE_STACK_FACTOR - 1);
    baseline
        .strategy(Strategy::Winch)
        .allocation_strategy(InstanceAllocationStrategy::OnDemand)
        .max_wasm_stack(config.wasm_stack_bytes.saturating_add(more))
        .async_stack_size(config.stack_bytes.saturating_add(more));
    baseline
}

fn pool(config: &config::Engine) -> PoolingAllocationConfig {
    let slots = config.pool_slots;
    let mut pool = PoolingAllocationConfig::new();
    pool.total_core_instances(slots.saturating_mul(CORE_INSTANCES_PER_SLOT))
        .total_component_instances(slots)
        .total_memories(slots.saturating_add(slots / 5))
        .total_tables(slots.saturating_mul(TABLES_PER_SLOT))
        .total_stacks(slots.saturating_add(slots / 10))
        .total_gc_heaps(slots)
        .max_memory_size(usize::try_from(config.memory_bytes_max).unwrap_or(usize::MAX))
        .table_elements(config.table_elements_max as usize)
        .max_core_instances_per_component(config.component_core_instances_max)
        .max_memories_per_component(config.memories_max)
        .max_memories_per_module(config.memories_max)
        .max_tables_per_component(config.tables_max)
        .max_tables_per_module(config.tables_max)
        .linear_memory_keep_resident(config.memory_keep_resident_bytes)
        .table_keep_resident(64 << 10)
        .max_unused_warm_slots(slots.min(100))
        .pagemap_scan(wasmtime::Enabled::Auto);
    pool
}

/// wasmtime's own compatibility hash, as hex.
fn fingerprint(engine: &Engine) -> String {
    /// Collects what is hashed and digests it with a hash that is the same in every process.
    struct Collect(blake3::Hasher);
    impl std::hash::Hasher for Collect {
        fn finish(&self) -> u64 {
            0
        }
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
    }
    let mut collect = Collect(blake3::Hasher::new());
    std::hash::Hash::hash(&engine.precompile_compatibility_hash(), &mut collect);
    collect.0.finalize().to_hex()[..32].to_string()
}

/// Compiles a module or component into an artifact. Runs in the compile process.
///
/// # Errors
/// wasmtime's text about what is wrong with the module, or what the baseline compiler lacks for it, on one line.
pub fn compile(config: &config::Engine, wasm: &[u8], kind: Kind, tier: Tier) -> Result<Vec<u8>, String> {
    let one_line = |e: wasmtime::Error| format!("{e:#}").replace('\n', " ");
    let tunables = match tier {
        Tier::Optimised => tunables(config),
        Tier::Baseline => baseline_tunables(config),
    };
    let engine = Engine::new(&tunables).map_err(one_line)?;
    match kind {
        Kind::Core => engine.precompile_module(wasm),
        Kind::Component => engine.precompile_component(wasm),
    }
    .map_err(one_line)
}
