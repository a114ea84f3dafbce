//! The Task API for one containerd instance and namespace: decode, call, encode.
//!
//! The same implementation is served as `containerd.task.v2.Task` and `containerd.task.v3.Task`, whose
//! messages are equal. A method that Hearth does not have answers `UNIMPLEMENTED` explicitly: the library's
//! default is `NOT_FOUND`, which containerd reads as "the task is gone".

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse,
    DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest, PidsRequest, PidsResponse,
    ProcessInfo, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest, StartResponse, StateRequest,
    StateResponse, StatsRequest, StatsResponse, Status, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::protobuf::{EnumOrUnknown, MessageField};
use containerd_shim_protos::shim_async::{Task as TaskApi, create_task};
use ttrpc::r#async::{Service, TtrpcContext};

use crate::cells::not_in_a_cell;
use crate::native::Natives;
use crate::server::convert::{self, CgroupVersion, Usage};
use crate::server::native_calls;
use crate::task::create::{CreateRequest, Creator};
use crate::task::exec::ExecRequest;
use crate::task::map::TaskMap;
use crate::task::process::Process;
use crate::task::world::World;
use crate::task::{Task, pid};
use hearth_base::error::{Error, Result};
use hearth_base::isolation::Level;
use hearth_containerd::time::timestamp;
use hearth_observe::logging;
use hearth_observe::metrics::{METHODS, Metrics};
use hearth_observe::starts::trace::Trace;
use hearth_stdio::StdioPaths;

/// The service.
pub struct TaskService {
    creator: Creator,
    tasks: Arc<TaskMap>,
    natives: Arc<Natives>,
    world: Arc<World>,
    metrics: Arc<Metrics>,
    cgroups: CgroupVersion,
    /// No new tasks are taken.
    draining: Arc<AtomicBool>,
}

const NAME_V2: &str = "containerd.task.v2.Task";
const NAME_V3: &str = "containerd.task.v3.Task";

impl TaskService {
    /// A service for the tasks in `tasks`, made by `creator`.
    pub fn new(
        creator: Creator,
        tasks: Arc<TaskMap>,
        natives: Arc<Natives>,
        world: Arc<World>,
        draining: Arc<AtomicBool>,
    ) -> Arc<TaskService> {
        let metrics = world.runtime.metrics.clone();
        Arc::new(TaskService { creator, tasks, natives, world, metrics, cgroups: CgroupVersion::of_host(), draining })
    }

    /// The dispatch tables, under both names.
    pub fn services(self: &Arc<Self>) -> HashMap<String, Service> {
        let table =
            || create_task(self.clone()).into_values().next().map(|table| native_calls::around(table, &self.natives));
        [NAME_V2, NAME_V3].into_iter().filter_map(|name| Some((name.to_string(), table()?))).collect()
    }

    /// A process of a task: the init, or an exec.
    fn process(&self, id: &str, exec_id: &str) -> Result<Arc<Process>> {
        self.tasks.get(id)?.process(exec_id)
    }

    /// Refuses what a task of this process's isolation level cannot have.
    fn check_level(&self, request: &CreateTaskRequest) -> Result<()> {
        let option = request.options.as_ref().and_then(|any| hearth_shim::config_path(&any.type_url, &any.value));
        match (self.world.level(), Level::of_option(&option.unwrap_or_default())?) {
            (Level::Node, Level::Pod) => Err(not_in_a_cell()),
            (Level::Pod, _) if [&request.stdout, &request.stderr].iter().any(|uri| uri.starts_with("binary:")) => {
                Err(Error::InvalidArgument(
                    "a log program (binary://) is not available at isolation level pod, whose process starts no program: log to FIFOs or to a file".into(),
                ))
            }
            _ => Ok(()),
        }
    }

    /// Creates a task whose program is WebAssembly.
    async fn create_wasm(
        &self,
        context: &TtrpcContext,
        request: CreateTaskRequest,
        began: Instant,
    ) -> Result<CreateTaskResponse> {
        if !request.checkpoint.is_empty() {
            return unimplemented("restoring a checkpoint");
        }
        self.check_level(&request)?;
        if self.draining.load(Ordering::Relaxed) {
            return Err(Error::Unavailable(
                "hearthd takes no new tasks on this node: it is being drained (`hearthctl drain --undo` takes that back)".into(),
            ));
        }
        let trace = self.world.traces.as_ref().and_then(|traces| traces.begin(&context.metadata));
        let task = self.creator.create(&self.tasks, create_request(request, trace), began).await?;
        let trace = task.container.about.trace_id().map(tracing::field::display);
        tracing::debug!(target: "hearthd::task", task = %task.id(), trace, "created");
        Ok(CreateTaskResponse { pid: task.container.pid(), ..Default::default() })
    }

    /// Measures a call and turns its error into the wire's.
    fn answer<T>(&self, method: Method, began: Instant, result: Result<T>) -> ttrpc::Result<T> {
        self.metrics.rpcs.latency(method as usize).observe(began.elapsed().as_secs_f64());
        result.map_err(|error| {
            self.metrics.rpcs.errors.with_label_values(&[METHODS[method as usize]]).inc();
            tracing::debug!(method = METHODS[method as usize], %error, code = ?error.code(), "a call was refused");
            error.into()
        })
    }
}

/// Index into [`METHODS`].
#[derive(Clone, Copy)]
enum Method {
    State,
    Create,
    Start,
    Delete,
    Pids,
    Pause,
    Resume,
    Checkpoint,
    Kill,
    Exec,
    ResizePty,
    CloseIo,
    Update,
    Wait,
    Stats,
    Connect,
    Shutdown,
}

/// Why a native container is refused in a pod with a process of its own.
fn no_native(text: &str) -> Error {
    Error::InvalidArgument(format!(
        "{text}: a native container is not available in a pod at isolation level pod; give the pod a runtime class of level node"
    ))
}

fn unimplemented<T>(what: &str) -> Result<T> {
    Err(Error::Unimplemented(format!("Hearth does not support {what} of a Wasm task")))
}

#[async_trait]
impl TaskApi for TaskService {
    async fn create(&self, context: &TtrpcContext, request: CreateTaskRequest) -> ttrpc::Result<CreateTaskResponse> {
        let began = Instant::now();
        // For runc's shim, should the program be native.
        let again = request.clone();
        let (id, namespace) = (again.id.clone(), &**self.creator.namespace());
        let result = self.create_wasm(context, request, began).await;
        if result.is_err() {
            self.tasks.turned_away(&id);
        }
        let result = match result {
            Err(Error::Native(text)) if self.world.level() == Level::Pod => Err(no_native(&text)),
            Err(Error::Native(_)) => {
                return self.natives.create(context, again).await.inspect_err(|error| {
                    tracing::info!(target: logging::GUEST, namespace, task = id, %error, "a native container was refused");
                });
            }
            result => result.inspect_err(|error| {
                self.metrics.starts.failed.inc();
                tracing::info!(target: logging::GUEST, namespace, task = id, %error, "a task was refused");
            }),
        };
        self.answer(Method::Create, began, result)
    }

    async fn start(&self, context: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let began = Instant::now();
        let result = match self.process(&request.id, &request.exec_id) {
            Ok(process) => {
                if let Some(trace) = &process.container().about.trace {
                    trace.start_began(&context.metadata);
                }
                process.start(&self.world).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = &result {
            let namespace = &**self.creator.namespace();
            tracing::info!(target: logging::GUEST, namespace, task = %request.id, %error, "a task could not be started");
        }
        self.answer(Method::Start, began, result.map(|pid| StartResponse { pid, ..Default::default() }))
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        let began = Instant::now();
        let result = self.process(&request.id, &request.exec_id).map(|process| state_response(&process));
        self.answer(Method::State, began, result)
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let began = Instant::now();
        let result = match self.process(&request.id, &request.exec_id) {
            Ok(process) => process.wait().await,
            Err(error) => Err(error),
        };
        let result = result.map(|exit| WaitResponse {
            exit_status: exit.status,
            exited_at: timestamp(exit.at),
            ..Default::default()
        });
        self.answer(Method::Wait, began, result)
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let began = Instant::now();
        let result = self.process(&request.id, &request.exec_id).and_then(|process| process.kill(request.signal));
        self.answer(Method::Kill, began, result.map(|()| Empty::default()))
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        let began = Instant::now();
        let task = self.tasks.get(&request.id);
        let pid = task.as_ref().map_or(0, |task| task.container.pid());
        let result = match task {
            Ok(task) if task.is_init(&request.exec_id) => task.delete(&self.tasks).await,
            Ok(task) => task.delete_exec(&request.exec_id).await,
            Err(error) => Err(error),
        };
        let result = result.map(|exit| DeleteResponse {
            pid,
            exit_status: exit.status,
            exited_at: timestamp(exit.at),
            ..Default::default()
        });
        self.answer(Method::Delete, began, result)
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let began = Instant::now();
        let result = self.tasks.get(&request.id).and_then(|task| pids(&task));
        self.answer(Method::Pids, began, result)
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        let began = Instant::now();
        let result = self.process(&request.id, &request.exec_id).map(|process| {
            if request.stdin {
                process.close_stdin();
            }
            Empty::default()
        });
        self.answer(Method::CloseIo, began, result)
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let began = Instant::now();
        let result = self
            .tasks
            .get(&request.id)
            .and_then(|task| convert::stats(usage(&task), self.cgroups))
            .map(|stats| StatsResponse { stats: MessageField::some(stats), ..Default::default() });
        self.answer(Method::Stats, began, result)
    }

    async fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        let began = Instant::now();
        let result = self.tasks.settled(&request.id).await.map(|task| ConnectResponse {
            shim_pid: pid(),
            task_pid: task.container.pid(),
            version: env!("CARGO_PKG_VERSION").into(),
            ..Default::default()
        });
        self.answer(Method::Connect, began, result)
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> ttrpc::Result<Empty> {
        // It comes for each task, and the socket is shared: there is nothing to shut down.
        self.answer(Method::Shutdown, Instant::now(), Ok(Empty::default()))
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        let began = Instant::now();
        let result = match self.tasks.get(&request.id) {
            Ok(task) => self.creator.exec(&task, exec_request(request)).await,
            Err(error) => Err(error),
        };
        self.answer(Method::Exec, began, result.map(|()| Empty::default()))
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        let began = Instant::now();
        let result = self.tasks.get(&request.id).and_then(|task| task.init.pause());
        self.answer(Method::Pause, began, result.map(|()| Empty::default()))
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        let began = Instant::now();
        let result = self.tasks.get(&request.id).and_then(|task| task.init.resume());
        self.answer(Method::Resume, began, result.map(|()| Empty::default()))
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        self.answer(Method::Checkpoint, Instant::now(), unimplemented("a checkpoint"))
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> ttrpc::Result<Empty> {
        let began = Instant::now();
        let size = convert::terminal_size(request.width, request.height);
        let result = self.process(&request.id, &request.exec_id).and_then(|process| process.resize(size));
        self.answer(Method::ResizePty, began, result.map(|()| Empty::default()))
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let began = Instant::now();
        let result =
            self.tasks.get(&request.id).and_then(|task| task.update(&convert::resources(request.resources.as_ref())?));
        self.answer(Method::Update, began, result.map(|()| Empty::default()))
    }
}

fn create_request(request: CreateTaskRequest, trace: Option<Trace>) -> CreateRequest {
    CreateRequest {
        id: request.id,
        bundle: request.bundle.into(),
        rootfs: request.rootfs,
        stdio: StdioPaths {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        },
        trace,
    }
}

fn exec_request(request: ExecProcessRequest) -> ExecRequest {
    ExecRequest {
        exec_id: request.exec_id,
        spec: request.spec.into_option().map(|spec| spec.value).unwrap_or_default(),
        stdio: StdioPaths {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        },
    }
}

fn state_response(process: &Process) -> StateResponse {
    let snapshot = process.snapshot();
    let status: Status = (&snapshot.state).into();
    let mut response = StateResponse {
        id: process.id.to_string(),
        bundle: process.container().bundle.display().to_string(),
        pid: process.container().pid(),
        status: EnumOrUnknown::new(status),
        stdin: process.stdio_paths.stdin.clone(),
        stdout: process.stdio_paths.stdout.clone(),
        stderr: process.stdio_paths.stderr.clone(),
        terminal: process.stdio_paths.terminal,
        ..Default::default()
    };
    if let Some(exit) = snapshot.exit {
        response.exit_status = exit.status;
        response.exited_at = timestamp(exit.at);
    }
    response
}

/// One entry for the init, so that it is never empty for a live task (a restarting containerd deletes a
/// container without pids), and one for each exec that runs, named in its details.
fn pids(task: &Task) -> Result<PidsResponse> {
    let mut processes = vec![ProcessInfo { pid: task.container.pid(), ..Default::default() }];
    for exec in task.execs.all() {
        if exec.is_running() {
            let info = MessageField::some(convert::process_details(&exec.id)?);
            processes.push(ProcessInfo { pid: task.container.pid(), info, ..Default::default() });
        }
    }
    Ok(PidsResponse { processes, ..Default::default() })
}

/// The resources that a task uses.
pub(super) fn usage(task: &Task) -> Usage {
    let execs = task.execs.all();
    let running = [&task.init].into_iter().chain(&execs).filter(|process| process.is_running()).count();
    let memory = &task.container.memory;
    Usage {
        cpu: task.cpu_time(),
        throttling: task.init.throttling(),
        memory: memory.current(),
        memory_peak: memory.peak(),
        memory_limit: memory.limit(),
        memory_refused: memory.refused(),
        out_of_memory: memory.was_fatal(),
        processes: running as u64,
    }
}
