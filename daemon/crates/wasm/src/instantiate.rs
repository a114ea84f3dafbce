//! The one way to an instance, for commands and for the requests of HTTP components: prepared code, WASI, a store
//! with its limits, and the export that will be called.
//!
//! A guest's very first instruction can be seen exactly: such a store starts with an epoch deadline that has already
//! passed, so that the check with which every function begins calls back here, once, before any other instruction.

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

use crate::engine::{Allocation, CommandPre, Kind, Prepared, Program, ServicePre};
use crate::resolver::Names;
use crate::runtime::Runtime;
use crate::scheduler::Guest;
use crate::slots::{Placed, Slot};
use crate::wasi::{ComponentState, CoreState, Limits, MemoryUse, fields, resources};

/// The largest set of HTTP headers that a guest may make, in bytes. With the number of handles it bounds what a
/// guest makes the daemon keep.
const FIELDS_BYTES_MAX: usize = 64 << 10;

/// Sends a guest's requests to others.
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
pub enum Files<'a> {
    /// This directory of the host, opened now, as the daemon: it lies where only the daemon can enter.
    At(&'a Path),
    /// Opened before, see [`shared_files`].
    Open(&'a WasiFilesystemCtx),
}

/// What a guest finds around it, and what it may hold.
pub struct Surroundings<'a> {
    /// `argv`, the program's name first.
    pub args: &'a [String],
    /// The environment.
    pub env: &'a [(String, String)],
    /// The working directory, absolute in the guest's root. Preview 1 has none; there it is `PWD`.
    pub cwd: &'a str,
    /// The guest's `/`.
    pub files: Files<'a>,
    /// Whether `/`, or a volume in it, refuses writes.
    pub partly_read_only: bool,
    /// Files a module may have open.
    pub open_files_max: u32,
    /// Handles a component may have at once: headers, bodies, streams, files.
    pub handles_max: usize,
    /// How it looks up names; none for a core module, which has no sockets.
    pub names: Option<Names>,
    /// What the linear memories and tables of all the container's guests hold together, and may hold.
    pub memory: &'a Arc<MemoryUse>,
    /// Set while the last growth that this guest asked for was refused.
    pub starved: &'a Arc<AtomicBool>,
    /// Makes what sends its requests to others.
    pub outgoing: &'a (dyn Fn() -> Outgoing + Sync),
}

/// Which of a program's exports is called.
#[derive(Clone, Copy)]
pub enum Call<'a> {
    /// The entry point of a command.
    Entry,
    /// This one.
    Export(&'a str),
    /// The HTTP handler.
    Handler,
}

/// An instance in its store.
pub enum Instance {
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
}

/// Why there is no instance.
pub enum Refusal {
    /// The node has no room for it.
    Full(Error),
    /// It cannot be made ready: its code, its root, its identity.
    NotReady(Error),
    /// wasmtime refused, or the module's start function trapped or exited.
    Failed(wasmtime::Error),
}

/// Makes an instance in the slot or, where the pool is out of some part that this program needs more of than most,
/// in one beyond it. `first_instruction` is called before the guest's first instruction, if there is one.
///
/// # Errors
/// See [`Refusal`].
pub async fn instantiate<I, O, F>(
    runtime: &Runtime,
    guest: &Arc<Guest>,
    (program, slot): Placed,
    call: Call<'_>,
    surroundings: &Surroundings<'_>,
    streams: impl Fn() -> Streams<I, O>,
    first_instruction: impl Fn() -> Option<F>,
) -> Result<(Slot, Instance), Refusal>
where
    I: StdinStream + 'static,
    O: StdoutStream + 'static,
    F: FnOnce() + Send + Sync + 'static,
{
    let maker = Maker { runtime, guest, program: &program, call, surroundings };
    match maker.make(slot.allocation(), streams(), first_instruction()).await {
        Err(Refusal::Failed(error))
            if error.is::<PoolConcurrencyLimitError>() && slot.allocation() == Allocation::Pooling =>
        {
            let slot = runtime.slots.take_on_demand().map_err(Refusal::Full)?;
            let instance = maker.make(slot.allocation(), streams(), first_instruction()).await?;
            Ok((slot, instance))
        }
        made => Ok((slot, made?)),
    }
}

struct Maker<'a> {
    runtime: &'a Runtime,
    guest: &'a Arc<Guest>,
    program: &'a Program,
    call: Call<'a>,
    surroundings: &'a Surroundings<'a>,
}

impl Maker<'_> {
    async fn make<I, O, F>(
        &self,
        allocation: Allocation,
        streams: Streams<I, O>,
        first_instruction: Option<F>,
    ) -> Result<Instance, Refusal>
    where
        I: StdinStream + 'static,
        O: StdoutStream + 'static,
        F: FnOnce() + Send + Sync + 'static,
    {
        let (prepared, wasi) = self.ready(allocation, streams).map_err(Refusal::NotReady)?;
        let made = match prepared {
            Prepared::Core(pre) => {
                let mut wasi = wasi;
                let state = CoreState {
                    wasi: wasi.build_p1(),
                    limits: self.limits(),
                    partly_read_only: self.surroundings.partly_read_only,
                    open_files: 0,
                    open_files_max: self.surroundings.open_files_max,
                };
                let mut store = self.store(pre.module().engine(), state, first_instruction);
                store.limiter(|state| &mut state.limits);
                pre.instantiate_async(&mut store).await.map(|instance| Instance::Core(store, instance))
            }
            Prepared::Component { pre, command, service } => {
                let mut store = self.store(pre.engine(), self.component_state(wasi), first_instruction);
                store.limiter(|state| &mut state.limits);
                match (self.call, command, service) {
                    (Call::Entry, Some(CommandPre::P2(command)), _) => {
                        command.instantiate_async(&mut store).await.map(|made| Instance::Command(store, made))
                    }
                    (Call::Entry, Some(CommandPre::P3(command)), _) => {
                        command.instantiate_async(&mut store).await.map(|made| Instance::CommandP3(store, made))
                    }
                    (Call::Handler, _, Some(ServicePre::P2(service))) => {
                        service.instantiate_async(&mut store).await.map(|made| Instance::Service(store, made))
                    }
                    (Call::Handler, _, Some(ServicePre::P3(service))) => {
                        service.instantiate_async(&mut store).await.map(|made| Instance::ServiceP3(store, made))
                    }
                    (Call::Handler, _, None) => return Err(Refusal::NotReady(no_handler())),
                    (call, ..) => {
                        let name = if let Call::Export(name) = call { name } else { "run" };
                        let instance = pre.instantiate_async(&mut store).await.map_err(Refusal::Failed)?;
                        let function = instance.get_func(&mut store, name);
                        return function.map(|function| Instance::Export(store, function)).ok_or_else(|| {
                            let text = format!("the component exports no function {name:?}");
                            Refusal::NotReady(Error::InvalidArgument(text))
                        });
                    }
                }
            }
        };
        made.map_err(Refusal::Failed)
    }

    /// Code and WASI. The root lies below directories that only the daemon can enter, and so does code that has to
    /// be mapped first. From then on, the module's own start function being the first, it is the guest that acts.
    fn ready<I, O>(&self, allocation: Allocation, streams: Streams<I, O>) -> Result<(&Prepared, WasiCtxBuilder)>
    where
        I: StdinStream + 'static,
        O: StdoutStream + 'static,
    {
        let around = self.surroundings;
        let as_daemon = matches!(around.files, Files::At(_)) || allocation == Allocation::OnDemand;
        if as_daemon {
            self.guest.act_as_daemon();
        }
        let prepared = self.program.prepared(&self.runtime.engines, allocation)?;
        let mut wasi = WasiCtx::builder();
        wasi.allow_blocking_current_thread(true)
            .args(around.args)
            .envs(around.env)
            .initial_cwd(around.cwd)
            .stdout(streams.stdout)
            .stderr(streams.stderr);
        if let Some(stdin) = streams.stdin {
            wasi.stdin(stdin);
        }
        if self.program.kind() == Kind::Core && !around.env.iter().any(|(name, _)| name == "PWD") {
            wasi.env("PWD", around.cwd);
        }
        if around.names.is_some() {
            // The network itself is where the worker is while it runs this guest; what may be reached is
            // decided there, as for any process of the pod.
            wasi.allow_tcp(true).allow_udp(true).socket_addr_check(|_, _| Box::pin(std::future::ready(true)));
        }
        if let Files::At(root) = around.files {
            open_root(&mut wasi, root)?;
        }
        if as_daemon {
            self.guest.act_as_itself()?;
        }
        Ok((prepared, wasi))
    }

    fn limits(&self) -> Limits {
        Limits::new(self.surroundings.memory.clone(), self.surroundings.starved.clone())
    }

    fn component_state(&self, mut wasi: WasiCtxBuilder) -> ComponentState {
        let mut ctx = wasi.build();
        if let Files::Open(files) = self.surroundings.files {
            ctx.filesystem().clone_from(files);
        }
        ComponentState {
            ctx,
            table: resources(self.surroundings.handles_max),
            limits: self.limits(),
            partly_read_only: self.surroundings.partly_read_only,
            names: self.surroundings.names.clone(),
            http: fields(FIELDS_BYTES_MAX),
            outgoing: (self.surroundings.outgoing)(),
        }
    }

    fn store<T: 'static, F>(&self, engine: &Engine, state: T, first_instruction: Option<F>) -> Store<T>
    where
        F: FnOnce() + Send + Sync + 'static,
    {
        let mut store = Store::new(engine, state);
        store.set_epoch_deadline(if first_instruction.is_some() { 0 } else { 1 });
        let mut tick = self.runtime.scheduler.tick(self.guest);
        let mut first_instruction = first_instruction;
        store.epoch_deadline_callback(move |_| {
            if let Some(first) = first_instruction.take() {
                first();
            }
            tick()
        });
        store
    }
}

fn no_handler() -> Error {
    Error::Internal("a service's program has no HTTP handler".into())
}

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
