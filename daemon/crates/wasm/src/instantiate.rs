//! The only way to an instance, for commands and for the requests of HTTP components: prepared code, WASI, a store
//! with its limits, and the export that will be called.
//!
//! A guest's first instruction is observed exactly: the store starts with an epoch deadline that has already passed, so
//! that the check with which every function begins calls back, once, before any other instruction.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use wasmtime::component;
use wasmtime::{Engine, PoolConcurrencyLimitError, Store};
use wasmtime_wasi::cli::{StdinStream, StdoutStream};
use wasmtime_wasi::filesystem::WasiFilesystemCtx;
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxBuilder, p2, p3};
use wasmtime_wasi_http::WasiHttpHooks;
use wasmtime_wasi_http::{p2 as http_p2, p3 as http_p3};

use hearth_base::error::{Error, Result};
use hearth_base::tenant::Tenant;
use hearth_os::in_root::RootDir;

use crate::access::Access;
use crate::budget::GuestDescriptors;
use crate::engine::{Allocation, CommandPre, LinkedProgram, ModuleKind, Program, ServicePre};
use crate::host_memory::HostMemory;
use crate::memory::{MemoryLimiter, MemoryUse};
use crate::resolver::Names;
use crate::runtime::Runtime;
use crate::scheduler::Guest;
use crate::slots::{Placed, Slot};
use crate::spin_handlers::{HttpComponent, Subscriber};
use crate::state::{ComponentState, CoreState, fields, resources};
use crate::wasi::sockets;

/// The largest set of HTTP headers that a guest may make, in bytes. Each set is a handle: with their number it bounds
/// the daemon's memory that a guest uses.
const FIELDS_BYTES_MAX: usize = 64 << 10;

/// How much one call of a component may pass to the daemon, in bytes; wasmtime copies it before the call looks at it.
/// Streams pass less at a time.
const HOSTCALL_BYTES_MAX: usize = 16 << 20;

/// The environment variable with the number of an HTTP component's instance, as `wasmtime serve` and runwasi set it.
const REQUEST_ID: &str = "REQUEST_ID";

/// Sends a guest's HTTP requests to other servers.
pub type Outgoing = Box<dyn WasiHttpHooks + Send>;

/// Standard streams of an instance.
pub struct Streams<I, O> {
    /// stdin; empty if there is none.
    pub stdin: Option<I>,
    /// stdout.
    pub stdout: O,
    /// stderr.
    pub stderr: O,
}

/// Where a guest's `/` comes from.
#[derive(Clone, Copy)]
pub enum RootFiles<'a> {
    /// This directory of the host, opened now with the daemon's identity.
    At(&'a Path),
    /// Opened before, see [`shared_files`].
    Open(&'a WasiFilesystemCtx),
}

/// The settings that all instances of one program in a container share.
pub struct GuestSettings {
    /// `argv`, the program's name first.
    pub args: Vec<String>,
    /// The environment.
    pub env: Vec<(String, String)>,
    /// The working directory, absolute in the guest's root. Preview 1 has none; there it is `PWD`.
    pub cwd: String,
    /// Whether `/`, or a volume in it, refuses writes.
    pub partly_read_only: bool,
    /// Files, directories and sockets that each guest may have open (`RLIMIT_NOFILE`).
    pub open_files_max: u32,
    /// How guests look up names; `None` for a core module, which has no sockets.
    pub names: Option<Names>,
    /// The servers and host interfaces that a component may use.
    pub access: Access,
    /// The most memory of one instance, in bytes; none: all of the container's.
    pub instance_memory: Option<u64>,
}

/// The parts of a guest's store: its settings, and the container's limits.
pub struct GuestConfig<'a> {
    /// The settings of its program.
    pub settings: &'a GuestSettings,
    /// The number of an HTTP component's instance in its container, for the variable `REQUEST_ID`.
    pub request_id: Option<u64>,
    /// The guest's `/`.
    pub files: RootFiles<'a>,
    /// The container's budget.
    pub tenant: &'a Arc<Tenant>,
    /// Handles a component may have at once: headers, bodies, streams, files.
    pub handles_max: usize,
    /// The container's memory: linear memories and tables of all its guests.
    pub memory: &'a Arc<MemoryUse>,
    /// Set while this guest's last growth of memory was refused.
    pub starved: &'a Arc<AtomicBool>,
    /// Makes the sender of its HTTP requests.
    pub outgoing: &'a (dyn Fn() -> Outgoing + Sync),
}

/// The export of a program that is called.
#[derive(Clone, Copy)]
pub enum CallTarget<'a> {
    /// The entry point of a command.
    Entry,
    /// The one of this name.
    Export(&'a str),
    /// The HTTP handler.
    Handler,
    /// The handler of messages of a Redis channel.
    Subscriber,
}

/// An instance in its store.
pub enum GuestInstance {
    /// Of a core module.
    Core(Store<CoreState>, wasmtime::Instance),
    /// Of a command of WASI 0.2.
    Command(Store<ComponentState>, p2::bindings::Command),
    /// Of a command of WASI 0.3.
    CommandP3(Store<ComponentState>, p3::bindings::Command),
    /// Of a component, with the function to call.
    Export(Store<ComponentState>, component::Func),
    /// Of an HTTP component of WASI 0.2.
    Service(Store<ComponentState>, http_p2::bindings::Proxy),
    /// Of an HTTP component of WASI 0.3.
    ServiceP3(Store<ComponentState>, http_p3::bindings::Service),
    /// Of an HTTP component of Spin's first SDKs.
    SpinService(Store<ComponentState>, HttpComponent),
    /// Of a component that takes messages.
    Subscriber(Store<ComponentState>, Subscriber),
}

/// Why there is no instance.
pub enum InstantiateError {
    /// Every slot is in use.
    Full(Error),
    /// Its code, its root or its identity is refused.
    NotReady(Error),
    /// wasmtime refused, or the module's start function trapped or exited.
    Failed(wasmtime::Error),
}

/// Makes an instance in the slot or, where the pool is out of some part that this program needs more of than most,
/// in one beyond it. `first_instruction` is called before the guest's first instruction, if there is one.
///
/// # Errors
/// See [`InstantiateError`].
pub async fn instantiate<I, O, F>(
    runtime: &Runtime,
    guest: &Arc<Guest>,
    (program, slot): Placed,
    call: CallTarget<'_>,
    config: &GuestConfig<'_>,
    streams: impl Fn() -> Streams<I, O>,
    first_instruction: impl Fn() -> Option<F>,
) -> Result<(Slot, GuestInstance), InstantiateError>
where
    I: StdinStream + 'static,
    O: StdoutStream + 'static,
    F: FnOnce() + Send + Sync + 'static,
{
    let instantiation = Instantiation { runtime, guest, program: &program, call, config };
    match instantiation.make(slot.allocation(), streams(), first_instruction()).await {
        Err(InstantiateError::Failed(error))
            if error.is::<PoolConcurrencyLimitError>() && slot.allocation() == Allocation::Pooling =>
        {
            let slot = runtime.slots.take_on_demand(&program, config.tenant).map_err(InstantiateError::Full)?;
            let instance = instantiation.make(slot.allocation(), streams(), first_instruction()).await?;
            Ok((slot, instance))
        }
        made => Ok((slot, made?)),
    }
}

struct Instantiation<'a> {
    runtime: &'a Runtime,
    guest: &'a Arc<Guest>,
    program: &'a Program,
    call: CallTarget<'a>,
    config: &'a GuestConfig<'a>,
}

impl Instantiation<'_> {
    async fn make<I, O, F>(
        &self,
        allocation: Allocation,
        streams: Streams<I, O>,
        first_instruction: Option<F>,
    ) -> Result<GuestInstance, InstantiateError>
    where
        I: StdinStream + 'static,
        O: StdoutStream + 'static,
        F: FnOnce() + Send + Sync + 'static,
    {
        let (prepared, wasi) = self.ready(allocation, streams).map_err(InstantiateError::NotReady)?;
        let made = match prepared {
            LinkedProgram::Core(pre) => {
                let mut wasi = wasi;
                let state = CoreState {
                    wasi: wasi.build_p1(),
                    limits: self.limits(),
                    partly_read_only: self.config.settings.partly_read_only,
                    descriptors: self.descriptors(),
                };
                let mut store = self.store(pre.module().engine(), state, first_instruction, |_| Ok(()));
                store.limiter(|state| &mut state.limits);
                pre.instantiate_async(&mut store).await.map(|instance| GuestInstance::Core(store, instance))
            }
            LinkedProgram::Component { pre, command, service, subscriber } => {
                let state = self.component_state(wasi);
                let mut store = self.store(pre.engine(), state, first_instruction, ComponentState::charge_handles);
                store.set_hostcall_fuel(HOSTCALL_BYTES_MAX);
                store.limiter(|state| &mut state.limits);
                match (self.call, command, service) {
                    (CallTarget::Entry, Some(CommandPre::P2(command)), _) => {
                        command.instantiate_async(&mut store).await.map(|made| GuestInstance::Command(store, made))
                    }
                    (CallTarget::Entry, Some(CommandPre::P3(command)), _) => {
                        command.instantiate_async(&mut store).await.map(|made| GuestInstance::CommandP3(store, made))
                    }
                    (CallTarget::Handler, _, Some(ServicePre::P2(service))) => {
                        service.instantiate_async(&mut store).await.map(|made| GuestInstance::Service(store, made))
                    }
                    (CallTarget::Handler, _, Some(ServicePre::P3(service))) => {
                        service.instantiate_async(&mut store).await.map(|made| GuestInstance::ServiceP3(store, made))
                    }
                    (CallTarget::Handler, _, Some(ServicePre::Spin(service))) => {
                        service.instantiate_async(&mut store).await.map(|made| GuestInstance::SpinService(store, made))
                    }
                    (CallTarget::Handler, _, None) => return Err(InstantiateError::NotReady(no_handler())),
                    (CallTarget::Subscriber, ..) => {
                        let Some(pre) = subscriber else { return Err(InstantiateError::NotReady(no_handler())) };
                        pre.instantiate(&mut store).await.map(|made| GuestInstance::Subscriber(store, made))
                    }
                    (call, ..) => {
                        let name = if let CallTarget::Export(name) = call { name } else { "run" };
                        let instance = pre.instantiate_async(&mut store).await.map_err(InstantiateError::Failed)?;
                        let function = instance.get_func(&mut store, name);
                        return function.map(|function| GuestInstance::Export(store, function)).ok_or_else(|| {
                            let text = format!("the component exports no function {name:?}");
                            InstantiateError::NotReady(Error::InvalidArgument(text))
                        });
                    }
                }
            }
        };
        made.map_err(InstantiateError::Failed)
    }

    /// Code and WASI. The daemon opens the root, which lies below directories that only it can enter, and maps code that
    /// is not mapped yet. From then on, beginning with the module's own start function, the thread has the guest's
    /// identity.
    fn ready<I, O>(&self, allocation: Allocation, streams: Streams<I, O>) -> Result<(&LinkedProgram, WasiCtxBuilder)>
    where
        I: StdinStream + 'static,
        O: StdoutStream + 'static,
    {
        let GuestConfig { settings, files, request_id, .. } = self.config;
        let as_daemon = matches!(files, RootFiles::At(_)) || allocation == Allocation::OnDemand;
        if as_daemon {
            self.guest.act_as_daemon();
        }
        let prepared = self.program.prepared(&self.runtime.engines, allocation)?;
        let mut wasi = WasiCtx::builder();
        wasi.allow_blocking_current_thread(true)
            .args(&settings.args)
            .envs(&settings.env)
            .initial_cwd(&settings.cwd)
            .stdout(streams.stdout)
            .stderr(streams.stderr);
        if let Some(stdin) = streams.stdin {
            wasi.stdin(stdin);
        }
        if self.program.kind() == ModuleKind::Core && !settings.env.iter().any(|(name, _)| name == "PWD") {
            wasi.env("PWD", &settings.cwd);
        }
        if let Some(id) = request_id {
            wasi.env(REQUEST_ID, id.to_string());
        }
        if settings.names.is_some() {
            // The network itself is where the worker is while it runs this guest; what may be reached is
            // decided there, as for any process of the pod. A component may have a list of its own.
            let destinations = settings.access.destinations.clone();
            wasi.allow_tcp(true).allow_udp(true).socket_addr_check(move |address, purpose| {
                Box::pin(std::future::ready(sockets::is_allowed(&destinations, address, purpose)))
            });
        }
        if let RootFiles::At(root) = files {
            open_root(&mut wasi, root)?;
        }
        if as_daemon {
            self.guest.act_as_itself()?;
        }
        Ok((prepared, wasi))
    }

    fn limits(&self) -> MemoryLimiter {
        let structure = self.runtime.engines.structure_limits();
        MemoryLimiter::new(self.config.memory.clone(), self.config.starved.clone(), structure)
            .within(self.config.settings.instance_memory)
    }

    fn descriptors(&self) -> GuestDescriptors {
        GuestDescriptors::new(self.config.tenant.clone(), self.config.settings.open_files_max)
    }

    fn component_state(&self, mut wasi: WasiCtxBuilder) -> ComponentState {
        let mut ctx = wasi.build();
        if let RootFiles::Open(files) = self.config.files {
            ctx.filesystem().clone_from(files);
        }
        ComponentState {
            ctx,
            table: resources(self.config.handles_max),
            limits: self.limits(),
            descriptors: self.descriptors(),
            host_memory: HostMemory::new(self.config.memory),
            partly_read_only: self.config.settings.partly_read_only,
            names: self.config.settings.names.clone(),
            guest: self.guest.clone(),
            access: self.config.settings.access.clone(),
            http: fields(FIELDS_BYTES_MAX),
            outgoing: (self.config.outgoing)(),
        }
    }

    /// `charge` is called at each tick after the first one in which the guest computes.
    fn store<T: 'static, F>(
        &self,
        engine: &Engine,
        state: T,
        first_instruction: Option<F>,
        charge: fn(&mut T) -> wasmtime::Result<()>,
    ) -> Store<T>
    where
        F: FnOnce() + Send + Sync + 'static,
    {
        let mut store = Store::new(engine, state);
        store.set_epoch_deadline(if first_instruction.is_some() { 0 } else { 1 });
        let mut tick = self.runtime.scheduler.tick(self.guest);
        let mut first_instruction = first_instruction;
        store.epoch_deadline_callback(move |mut store| {
            match first_instruction.take() {
                Some(first) => first(),
                None => charge(store.data_mut())?,
            }
            tick()
        });
        store
    }
}

fn no_handler() -> Error {
    Error::Internal("a program has no handler for what it is to answer".into())
}

fn open_root(wasi: &mut WasiCtxBuilder, root: &Path) -> Result<()> {
    // A read-only root is read-only by its mount; volumes in it may be writable.
    wasi.preopened_dir(root, "/", FsPerms::ReadWrite)
        .map_err(|e| Error::FailedPrecondition(format!("cannot open the root {}: {e:#}", root.display())))?;
    Ok(())
}

/// Directories of the tree at `root`, read-only: each with its path in the tree, and where the guest sees it. A link does
/// not lead out of the tree.
///
/// # Errors
/// `InvalidArgument` naming a directory that is not there.
pub fn component_files(root: &Path, directories: &[(String, String)]) -> Result<WasiFilesystemCtx> {
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        Error::InvalidArgument(format!("cannot open the directory /{what} for a component: {error}"))
    };
    let root = RootDir::open(root).map_err(|error| failed("", &error))?;
    let mut wasi = WasiCtx::builder();
    wasi.allow_blocking_current_thread(true);
    for (source, destination) in directories {
        let path = if source.is_empty() { "." } else { source.as_str() };
        let found = root.resolve(Path::new(path)).map_err(|error| failed(source, &error))?;
        let path = format!("/proc/self/fd/{}", found.as_raw_fd());
        let opened = wasi.preopened_dir(path, destination, FsPerms::ReadOnly);
        opened.map_err(|error| failed(source, &format!("{error:#}")))?;
    }
    Ok(wasi.build().filesystem().clone())
}

/// The `/` of a container that has many short guests, opened once for all.
///
/// # Errors
/// If the root cannot be opened.
pub fn shared_files(root: &Path) -> Result<WasiFilesystemCtx> {
    let mut wasi = WasiCtx::builder();
    wasi.allow_blocking_current_thread(true);
    open_root(&mut wasi, root)?;
    Ok(wasi.build().filesystem().clone())
}
