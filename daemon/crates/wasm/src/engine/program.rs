//! A program: an artifact's code with its imports linked, in each engine that has run it.

use std::fs::File;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use wasmtime::component::InstancePre as ComponentPre;
use wasmtime::{Engine, InstancePre, ResourcesRequired};
use wasmtime_wasi::{p2, p3};
use wasmtime_wasi_http::{p2 as http_p2, p3 as http_p3};

use super::entry::{EntryKind, check_core_entry, component_exports, nothing_to_serve, unsupported_world};
use super::structure::StructureLimits;
use super::{Allocation, Engines, ModuleKind, PrepareError, Tier};
use crate::access::Access;
use crate::host_interface;
use crate::memory::TABLE_ELEMENT_BYTES;
use crate::spin_handlers::{HttpComponentPre, SubscriberPre};
use crate::state::{ComponentState, CoreState};
use hearth_base::config;
use hearth_base::error::{Error, Result};

/// A page of linear memory, by the WebAssembly specification.
const WASM_PAGE_BYTES: u64 = 65_536;

/// Mappings of a linear memory: its image, what it has beyond that, what it may still have.
const MAPPINGS_PER_MEMORY: u64 = 3;

/// Mappings of a guest's stack, with its guard page.
const MAPPINGS_PER_STACK: u64 = 2;

/// A program ready to be started: code mapped, imports resolved.
pub struct Program {
    pub(super) pooled: Option<LinkedProgram>,
    /// The verified artifact, for preparing it in the on-demand engine when the pool is full.
    pub(super) spare: File,
    pub(super) kind: ModuleKind,
    pub(super) tier: Tier,
    /// Of each guest.
    pub(super) limits: StructureLimits,
    /// In the on-demand engine; baseline code is in the baseline engine.
    pub(super) on_demand: OnceLock<LinkedProgram>,
}

/// A module's program as its tasks hold it: optimised code replaces baseline code. Guests that began on the old
/// code keep it, and the last of them unmaps it.
pub struct LiveProgram(ArcSwap<Program>);

impl LiveProgram {
    /// Begins with `program`.
    pub fn new(program: Program) -> LiveProgram {
        LiveProgram(ArcSwap::from_pointee(program))
    }

    /// The program to start now. A caller that takes a slot for it must run this one in it and not ask again:
    /// a later one may fit the pool where this one does not.
    pub fn now(&self) -> Arc<Program> {
        self.0.load_full()
    }

    /// Replaces the program for later starts.
    pub fn replace(&self, program: Arc<Program>) {
        self.0.store(program);
    }
}

/// Bounds of the memory a program starts with, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InitialMemory {
    /// Its largest linear memory.
    pub at_least: u64,
    /// All memories, each taken as large as the largest, and all tables.
    pub at_most: u64,
}

/// The address space and mappings that a guest beyond the pool reserves, before it has used any of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reservation {
    /// Bytes of the daemon's address space.
    pub address_space: u64,
    /// Memory mappings of the daemon.
    pub mappings: u64,
}

impl Reservation {
    /// Of a guest with so many linear memories and tables.
    pub fn of(memories: u32, tables: u32) -> Reservation {
        // One more for a heap of garbage-collected objects, of which the structure does not tell.
        let memories = u64::from(memories) + 1;
        Reservation {
            address_space: memories
                .saturating_mul(config::engine::MEMORY_RESERVATION_BYTES + config::engine::MEMORY_GUARD_BYTES),
            mappings: memories * MAPPINGS_PER_MEMORY + u64::from(tables) + MAPPINGS_PER_STACK,
        }
    }
}

/// A program in one engine.
pub enum LinkedProgram {
    /// A core module with the preview 1 world linked.
    Core(InstancePre<CoreState>),
    /// A component.
    Component {
        /// Any export can be called through this.
        pre: ComponentPre<ComponentState>,
        /// Set if it exports `wasi:cli/run`.
        command: Option<CommandPre>,
        /// Set if it exports `wasi:http/incoming-handler`, `wasi:http/handler` or Spin's `inbound-http`.
        service: Option<ServicePre>,
        /// Set if it takes the messages of a Redis channel.
        subscriber: Option<SubscriberPre>,
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
    pub(super) fn new(pre: &ComponentPre<ComponentState>) -> Option<CommandPre> {
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
    /// It exports `fermyon:spin/inbound-http`, of Spin's first SDKs.
    Spin(HttpComponentPre<ComponentState>),
}

impl ServicePre {
    pub(super) fn new(pre: &ComponentPre<ComponentState>) -> Option<ServicePre> {
        let newer = http_p3::bindings::ServicePre::new(pre.clone()).ok().map(ServicePre::P3);
        let older = || http_p2::bindings::ProxyPre::new(pre.clone()).ok().map(ServicePre::P2);
        newer.or_else(older).or_else(|| HttpComponentPre::new(pre.clone()).ok().map(ServicePre::Spin))
    }

    /// The engine it is linked in.
    pub fn engine(&self) -> &Engine {
        match self {
            ServicePre::P2(pre) => pre.engine(),
            ServicePre::P3(pre) => pre.engine(),
            ServicePre::Spin(pre) => pre.engine(),
        }
    }
}

impl Program {
    /// Core module or component.
    pub fn kind(&self) -> ModuleKind {
        self.kind
    }

    /// The compiler that made its code.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// Another descriptor of its artifact, for a process that maps it, too.
    ///
    /// # Errors
    /// `Internal` if there is no descriptor left.
    pub fn artifact(&self) -> Result<File> {
        let cannot = |e| Error::Internal(format!("cannot duplicate an artifact's descriptor: {e}"));
        self.spare.try_clone().map_err(cannot)
    }

    /// Whether it fits a slot of the pool.
    pub fn fits_pool(&self) -> bool {
        self.pooled.is_some()
    }

    /// The program in the engine asked for; prepared in the on-demand engine at the first call.
    ///
    /// # Errors
    /// If it does not fit a slot of the pool, or wasmtime does not take it.
    pub fn prepared(&self, engines: &Engines, allocation: Allocation) -> Result<&LinkedProgram> {
        match allocation {
            Allocation::Pooling => self
                .pooled
                .as_ref()
                .ok_or_else(|| Error::ResourceExhausted("the module does not fit a slot of the pool".into())),
            Allocation::OnDemand => {
                if let Some(prepared) = self.on_demand.get() {
                    return Ok(prepared);
                }
                // An error is not kept: the node may have room the next time.
                let prepared = self.prepare_on_demand(engines)?;
                Ok(self.on_demand.get_or_init(|| prepared))
            }
        }
    }

    #[allow(unsafe_code, reason = "the artifact is the one Engines::load was given")]
    fn prepare_on_demand(&self, engines: &Engines) -> Result<LinkedProgram> {
        let artifact = self
            .spare
            .try_clone()
            .map_err(|e| Error::Internal(format!("cannot duplicate an artifact's descriptor: {e}")))?;
        let engine = match self.tier {
            Tier::Optimised => &engines.on_demand,
            Tier::Baseline => {
                let missing = || Error::Internal("there is no engine for code of the baseline compiler".into());
                engines.baseline.as_ref().ok_or_else(missing)?
            }
        };
        // SAFETY: the same open file that Engines::load was given, whose caller promised what is
        // needed for as long as this program lives.
        unsafe { engine.prepare(artifact, self.kind) }.map_err(PrepareError::into_error)
    }

    /// How many memories and tables it has, and how large. `None` if its structure does not tell.
    fn required(&self) -> Option<ResourcesRequired> {
        let prepared = match &self.pooled {
            Some(prepared) => prepared,
            None => self.on_demand.get()?,
        };
        match prepared {
            LinkedProgram::Core(pre) => Some(pre.module().resources_required()),
            LinkedProgram::Component { pre, .. } => pre.component().resources_required(),
        }
    }

    /// The reservation of a guest of it beyond the pool; if its structure does not tell, that of the largest guest.
    pub fn reservation(&self) -> Reservation {
        let required = self.required();
        let memories = required.as_ref().map_or(self.limits.memories, |required| required.num_memories);
        let tables = required.as_ref().map_or(self.limits.tables, |required| required.num_tables);
        Reservation::of(memories, tables)
    }

    /// The size of its linear memories and tables before the first instruction. `None` if its structure does not tell.
    pub fn initial_memory(&self) -> Option<InitialMemory> {
        let required = self.required()?;
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

    /// The names of its exports.
    ///
    /// # Errors
    /// As [`Program::prepared`].
    pub fn exports(&self, engines: &Engines) -> Result<Vec<String>> {
        let allocation = if self.fits_pool() { Allocation::Pooling } else { Allocation::OnDemand };
        Ok(match self.prepared(engines, allocation)? {
            LinkedProgram::Core(pre) => pre.module().exports().map(|export| export.name().to_string()).collect(),
            LinkedProgram::Component { pre, .. } => {
                let component = pre.component();
                component.component_type().exports(component.engine()).map(|(name, _)| name.to_string()).collect()
            }
        })
    }

    /// Whether it is a service of WASI 0.3, whose instances may have several requests.
    ///
    /// # Errors
    /// As [`Program::prepared`].
    pub fn serves_p3(&self, engines: &Engines) -> Result<bool> {
        let allocation = if self.fits_pool() { Allocation::Pooling } else { Allocation::OnDemand };
        let prepared = self.prepared(engines, allocation)?;
        Ok(matches!(prepared, LinkedProgram::Component { service: Some(ServicePre::P3(_)), .. }))
    }

    /// Checks that the container has the interfaces beside WASI that the program imports.
    ///
    /// # Errors
    /// `InvalidArgument` naming an import that the container does not have, and the setting that turns it on.
    pub fn check_access(&self, engines: &Engines, access: &Access) -> Result<()> {
        let allocation = if self.fits_pool() { Allocation::Pooling } else { Allocation::OnDemand };
        match self.prepared(engines, allocation)? {
            LinkedProgram::Core(_) => Ok(()),
            LinkedProgram::Component { pre, .. } => {
                host_interface::check(engines.interfaces(), pre.component(), access)
            }
        }
    }

    /// Checks that there is something to call: `export` if given, else the kind's own entry point. A component that is
    /// both a command and a service runs, unless `serve` asks for the service.
    ///
    /// # Errors
    /// `InvalidArgument` naming what the module exports instead.
    pub fn check_entry(&self, engines: &Engines, export: Option<&str>, serve: bool) -> Result<EntryKind> {
        let allocation = if self.fits_pool() { Allocation::Pooling } else { Allocation::OnDemand };
        match self.prepared(engines, allocation)? {
            LinkedProgram::Core(_) if serve => Err(nothing_to_serve("the module is not a component")),
            LinkedProgram::Component { .. } if serve && export.is_some() => {
                Err(nothing_to_serve("another export is named"))
            }
            LinkedProgram::Component { pre, service: None, .. } if serve => {
                Err(nothing_to_serve(&format!("the component exports {}", component_exports(pre.component()))))
            }
            LinkedProgram::Core(pre) => check_core_entry(pre.module(), export).map(|()| EntryKind::Run),
            LinkedProgram::Component { pre, command, service, .. } => match (export, command) {
                (None, Some(_)) if !serve => Ok(EntryKind::Run),
                (None, _) if service.is_some() => Ok(EntryKind::Serve),
                (None, _) => Err(unsupported_world(pre.component())),
                (Some(name), _) => match pre.component().get_export(None, name) {
                    Some((wasmtime::component::types::ComponentItem::ComponentFunc(_), _)) => Ok(EntryKind::Run),
                    _ => Err(Error::InvalidArgument(format!(
                        "the component exports no function {name:?}; it exports: {}",
                        component_exports(pre.component())
                    ))),
                },
            },
        }
    }
}
