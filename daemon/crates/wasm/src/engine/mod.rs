//! wasmtime's engines, and programs prepared in them.
//!
//! Two engines have the same tunables, so that one artifact serves both: the *pooling* engine, whose slots are
//! reserved once and take a microsecond to use, and the *on-demand* engine, which maps memory for each guest and
//! is used when the pool is full or a module does not fit a slot.
//!
//! The third, the *baseline* engine, runs code of wasmtime's baseline compiler (Winch), which has calling conventions
//! of its own. It maps memory for each guest, as the on-demand engine does.
//!
//! A [`Program`] holds everything of a start that does not depend on the task: code mapped, imports resolved,
//! types checked. Tasks share it by `Arc`. A [`LiveProgram`] is what tasks hold: optimised code replaces the baseline
//! code in it.
//!
//! Modules are compiled in a process of their own ([`compile`]); this module reads no bytes of an image.
//!
//! * `program.rs`: a program's code and imports in each engine, its initial memory, its entry point.
//! * `entry.rs`: which export a start calls, and the error if a module has none.
//! * `tunables.rs`: wasmtime's configuration, the pool's size, the fingerprint that artifacts carry.
//! * `refused.rs`: the error for a program whose imports Hearth does not offer.
//! * `structure.rs`: refuses modules with more memories or tables than the configuration allows.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::OnceLock;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use wasmtime::component::{Component, Linker as ComponentLinker};
use wasmtime::{Config, Engine, InstanceAllocationStrategy, Linker, Module};

use crate::host_interface::HostInterface;
use crate::spin_handlers::SubscriberPre;
use crate::state::{ComponentState, CoreState};
use crate::wasi::linkers;
use hearth_base::config;
use hearth_base::error::{Error, Result};
use structure::StructureLimits;
use tunables::{baseline_tunables, fingerprint, pool, tunables};

mod entry;
mod program;
mod refused;
pub mod structure;
mod tunables;

pub use entry::{EntryKind, INITIALIZE, START};
pub use program::{CommandPre, InitialMemory, LinkedProgram, LiveProgram, Program, Reservation, ServicePre};
pub use tunables::{CompileError, compile};

/// The kind of a WebAssembly binary, by its layer field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ModuleKind {
    /// A core module.
    Core,
    /// A component.
    Component,
}

/// The compiler that made the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// The baseline compiler: fast to compile, slow to run.
    Baseline,
    /// The optimising compiler.
    Optimised,
}

/// The engines.
pub struct Engines {
    pooling: EngineLinkers,
    on_demand: EngineLinkers,
    baseline: Option<EngineLinkers>,
    fingerprint: String,
    limits: StructureLimits,
    handles_max: usize,
    interfaces: &'static [HostInterface],
}

/// One engine with its linkers.
struct EngineLinkers {
    engine: Engine,
    core: Linker<CoreState>,
    component: ComponentLinker<ComponentState>,
    limits: StructureLimits,
}

/// How a guest's memories are allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocation {
    /// A slot of the pool.
    Pooling,
    /// Mappings of this guest's own.
    OnDemand,
}

impl Engines {
    /// Makes the engines, the baseline's only if it is wanted; reserves the pool's address space. Components can import
    /// `interfaces` beside WASI.
    ///
    /// # Errors
    /// If the pool does not fit the address space or `vm.max_map_count`.
    pub fn new(
        config: &config::Engine,
        baseline: config::Baseline,
        interfaces: &'static [HostInterface],
    ) -> Result<Engines> {
        let limits = StructureLimits::of(config);
        let mut pooling = tunables(config);
        pooling.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(config)));
        let mut on_demand = tunables(config);
        on_demand.allocation_strategy(InstanceAllocationStrategy::OnDemand);
        let pooling = EngineLinkers::new(&pooling, limits, interfaces).map_err(|e| {
            Error::ResourceExhausted(format!(
                "cannot reserve a pool of {} slots: {e:#}; lower engine.pool_slots or raise vm.max_map_count",
                config.pool_slots
            ))
        })?;
        let on_demand = EngineLinkers::new(&on_demand, limits, interfaces)
            .map_err(|e| Error::Internal(format!("cannot make the on-demand engine: {e:#}")))?;
        let fingerprint = fingerprint(&on_demand.engine);
        // wasmtime gives Winch its first tier of support, as to Cranelift, on x86-64 only.
        let wanted = baseline != config::Baseline::Never && cfg!(target_arch = "x86_64");
        let baseline =
            wanted.then(|| EngineLinkers::new(&baseline_tunables(config), limits, interfaces)).and_then(|made| {
                // Modules then wait for the optimising compiler.
                made.inspect_err(|error| tracing::warn!(error = %format!("{error:#}"), "there is no baseline engine"))
                    .ok()
            });
        Ok(Engines { pooling, on_demand, baseline, fingerprint, limits, handles_max: config.handles_max, interfaces })
    }

    /// Identifies the engine that an artifact must have been compiled for, as 32 hex digits.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// wasmtime's engines, whose epochs the scheduler advances.
    pub fn each(&self) -> impl Iterator<Item = Engine> {
        [Some(&self.pooling), Some(&self.on_demand), self.baseline.as_ref()]
            .into_iter()
            .flatten()
            .map(|each| each.engine.clone())
    }

    /// Whether there is a baseline engine.
    pub fn has_baseline(&self) -> bool {
        self.baseline.is_some()
    }

    /// Maps an artifact and prepares it.
    ///
    /// # Errors
    /// `InvalidArgument` naming an import that Hearth does not offer; `ResourceExhausted` if the module has more
    /// memories or tables than the configuration allows, or the node has no memory, mappings or descriptors to map
    /// it; `Internal` if wasmtime refuses the artifact.
    ///
    /// # Safety
    /// The file holds bytes that hearthd's own compile process wrote, verified by the module store, and
    /// no process writes to or truncates it while the program lives: wasmtime maps it and runs it.
    #[allow(unsafe_code, reason = "mapping code is what this function is for")]
    pub unsafe fn load(&self, artifact: File, kind: ModuleKind, tier: Tier) -> Result<Program> {
        if tier == Tier::Baseline {
            let program =
                Program { pooled: None, spare: artifact, kind, tier, limits: self.limits, on_demand: OnceLock::new() };
            program.prepared(self, Allocation::OnDemand)?;
            return Ok(program);
        }
        let spare = artifact
            .try_clone()
            .map_err(|e| Error::Internal(format!("cannot duplicate an artifact's descriptor: {e}")))?;
        // SAFETY: passed on from the caller.
        let pooled = unsafe { self.pooling.prepare(artifact, kind) };
        match pooled {
            Ok(pooled) => {
                Ok(Program { pooled: Some(pooled), spare, kind, tier, limits: self.limits, on_demand: OnceLock::new() })
            }
            // A slot of the pool has room for fewer large tables, large memories and shared memories than the
            // on-demand engine, whose finding counts.
            Err(PrepareError::Code(_)) => {
                let program =
                    Program { pooled: None, spare, kind, tier, limits: self.limits, on_demand: OnceLock::new() };
                program.prepared(self, Allocation::OnDemand)?;
                Ok(program)
            }
            Err(error) => Err(error.into_error()),
        }
    }

    /// Handles that a command may have at once (`engine.handles_max`).
    pub fn handles_max(&self) -> usize {
        self.handles_max
    }

    /// The interfaces that components can import beside WASI.
    pub(crate) fn interfaces(&self) -> &'static [HostInterface] {
        self.interfaces
    }

    /// How many core instances, memories and tables a guest may have.
    pub fn structure_limits(&self) -> StructureLimits {
        self.limits
    }
}

/// Why an artifact could not be prepared.
enum PrepareError {
    /// wasmtime refuses the code, or it does not fit the engine.
    Code(String),
    /// The node has no memory, mappings or descriptors left: that says nothing about the code.
    Node(String),
    /// The module's imports or structure are refused; only another module will do.
    Module(Error),
}

impl PrepareError {
    /// wasmtime's error of mapping an artifact.
    fn of_map(error: &wasmtime::Error) -> PrepareError {
        let text = format!("{error:#}");
        if is_of_node(error) { PrepareError::Node(text) } else { PrepareError::Code(text) }
    }

    fn into_error(self) -> Error {
        match self {
            PrepareError::Code(text) => Error::Internal(format!("wasmtime does not take the compiled module: {text}")),
            PrepareError::Node(text) => Error::ResourceExhausted(format!("no room to map the compiled module: {text}")),
            PrepareError::Module(error) => error,
        }
    }
}

/// Whether the kernel or an allocator had no memory, mappings, threads or descriptors: the same call may succeed later.
fn is_of_node(error: &wasmtime::Error) -> bool {
    let of_node = |cause: &(dyn std::error::Error + 'static)| {
        let of_std = || cause.downcast_ref::<std::io::Error>().and_then(Errno::from_io_error);
        let errno = cause.downcast_ref::<Errno>().copied().or_else(of_std);
        matches!(errno, Some(Errno::NOMEM | Errno::AGAIN | Errno::MFILE | Errno::NFILE))
    };
    error.is::<wasmtime::OutOfMemory>() || error.chain().any(of_node)
}

impl EngineLinkers {
    fn new(config: &Config, limits: StructureLimits, interfaces: &[HostInterface]) -> wasmtime::Result<EngineLinkers> {
        let engine = Engine::new(config)?;
        let core = linkers::core_linker(&engine)?;
        let component = linkers::component_linker(&engine, interfaces)?;
        Ok(EngineLinkers { engine, core, component, limits })
    }

    /// # Safety
    /// As [`Engines::load`].
    #[allow(unsafe_code, reason = "mapping code is what this function is for; see Engines::load")]
    unsafe fn prepare(&self, artifact: File, kind: ModuleKind) -> Result<LinkedProgram, PrepareError> {
        let code = |e: wasmtime::Error| PrepareError::of_map(&e);
        match kind {
            ModuleKind::Core => {
                // SAFETY: passed on from the caller.
                let module = unsafe { Module::deserialize_open_file(&self.engine, artifact) }.map_err(code)?;
                self.limits.check(Some(&module.resources_required())).map_err(PrepareError::Module)?;
                let refusal = |e| PrepareError::Module(refused::module(&self.core, &module, &e));
                let pre = self.core.instantiate_pre(&module).map_err(refusal)?;
                Ok(LinkedProgram::Core(pre))
            }
            ModuleKind::Component => {
                // wasmtime 48 maps a component by path only; this path is the open file itself.
                let path = format!("/proc/self/fd/{}", artifact.as_raw_fd());
                // SAFETY: passed on from the caller.
                let component = unsafe { Component::deserialize_file(&self.engine, path) }.map_err(code)?;
                self.limits.check(component.resources_required().as_ref()).map_err(PrepareError::Module)?;
                let refusal = |e| PrepareError::Module(refused::component(&component, &e));
                let pre = self.component.instantiate_pre(&component).map_err(refusal)?;
                let command = CommandPre::new(&pre);
                let service = ServicePre::new(&pre);
                let subscriber = SubscriberPre::new(&pre);
                Ok(LinkedProgram::Component { pre, command, service, subscriber })
            }
        }
    }
}
