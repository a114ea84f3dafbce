//! The Task API for one containerd instance and namespace: decode, call, encode.
//!
//! The same implementation is served as `containerd.task.v2.Task` and `containerd.task.v3.Task`, whose
//! messages are equal. A method we do not have answers `UNIMPLEMENTED` explicitly: the library's
//! default is `NOT_FOUND`, which containerd reads as "the task is gone".

use std::collections::HashMap;
use std::sync::Arc;
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

use crate::error::{Error, Result};
use crate::metrics::{METHODS, Metrics};
use crate::server::convert::{self, CgroupVersion, Usage};
use crate::task::create::{CreateRequest, Creator};
use crate::task::map::TaskMap;
use crate::task::state::State;
use crate::task::{StdioPaths, Task, pid};
use crate::wasm::instance::World;

/// The service.
pub struct TaskService {
    creator: Creator,
    tasks: Arc<TaskMap>,
    world: Arc<World>,
    metrics: Arc<Metrics>,
    cgroups: CgroupVersion,
}

const NAME_V2: &str = "containerd.task.v2.Task";
const NAME_V3: &str = "containerd.task.v3.Task";

impl TaskService {
    /// A service for the tasks in `tasks`, made by `creator`.
    pub fn new(creator: Creator, tasks: Arc<TaskMap>, world: Arc<World>) -> Arc<TaskService> {
        let metrics = world.metrics.clone();
        Arc::new(TaskService { creator, tasks, world, metrics, cgroups: CgroupVersion::of_host() })
    }

    /// The dispatch tables, under both names.
    pub fn services(self: &Arc<Self>) -> HashMap<String, Service> {
        let table = || create_task(self.clone()).into_values().next();
        [NAME_V2, NAME_V3].into_iter().filter_map(|name| Some((name.to_string(), table()?))).collect()
    }

    /// The task's init process; there are no execs yet.
    fn process(&self, id: &str, exec_id: &str) -> Result<Arc<Task>> {
        let task = self.tasks.get(id)?;
        if exec_id.is_empty() || exec_id == id {
            return Ok(task);
        }
        Err(Error::NotFound(format!("process {exec_id} of task {id} not found")))
    }

    /// Measures a call and turns its error into the wire's.
    fn answer<T>(&self, method: Method, began: Instant, result: Result<T>) -> ttrpc::Result<T> {
        self.metrics.rpc(method as usize).observe(began.elapsed().as_secs_f64());
        result.map_err(|error| {
            self.metrics.rpc_errors.with_label_values(&[METHODS[method as usize]]).inc();
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

fn unimplemented<T>(what: &str) -> Result<T> {
    Err(Error::Unimplemented(format!("Hearth does not support {what} of a Wasm task")))
}

#[async_trait]
impl TaskApi for TaskService {
    async fn create(&self, _: &TtrpcContext, request: CreateTaskRequest) -> ttrpc::Result<CreateTaskResponse> {
        let began = Instant::now();
        let created = async {
            if !request.checkpoint.is_empty() {
                return unimplemented("restoring a checkpoint");
            }
            let task = self.creator.create(&self.tasks, create_request(request), began).await?;
            tracing::debug!(task = %task.id, "created");
            Ok(CreateTaskResponse { pid: pid(), ..Default::default() })
        };
        let result = created.await;
        if let Err(error) = &result {
            self.metrics.starts_failed.inc();
            tracing::info!(%error, "a task was refused");
        }
        self.answer(Method::Create, began, result)
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let began = Instant::now();
        let result = match self.process(&request.id, &request.exec_id) {
            Ok(task) => task.start(&self.world).await,
            Err(error) => Err(error),
        };
        if let Err(error) = &result {
            tracing::info!(task = %request.id, %error, "a task could not be started");
        }
        self.answer(Method::Start, began, result.map(|pid| StartResponse { pid, ..Default::default() }))
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        let began = Instant::now();
        let result = self.process(&request.id, &request.exec_id).map(|task| state_response(&task));
        self.answer(Method::State, began, result)
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let began = Instant::now();
        let result = match self.process(&request.id, &request.exec_id) {
            Ok(task) => task.wait().await,
            Err(error) => Err(error),
        };
        let result = result.map(|exit| WaitResponse {
            exit_status: exit.status,
            exited_at: convert::timestamp(exit.at),
            ..Default::default()
        });
        self.answer(Method::Wait, began, result)
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let began = Instant::now();
        let result = self.process(&request.id, &request.exec_id).and_then(|task| task.kill(request.signal));
        self.answer(Method::Kill, began, result.map(|()| Empty::default()))
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        let began = Instant::now();
        let result = match self.process(&request.id, &request.exec_id) {
            Ok(task) => task.delete(&self.tasks).await,
            Err(error) => Err(error),
        };
        let result = result.map(|exit| DeleteResponse {
            pid: pid(),
            exit_status: exit.status,
            exited_at: convert::timestamp(exit.at),
            ..Default::default()
        });
        self.answer(Method::Delete, began, result)
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let began = Instant::now();
        // Never empty for a live task: a restarting containerd deletes a container without pids.
        let result = self.tasks.get(&request.id).map(|_| PidsResponse {
            processes: vec![ProcessInfo { pid: pid(), ..Default::default() }],
            ..Default::default()
        });
        self.answer(Method::Pids, began, result)
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        let began = Instant::now();
        let result = self.process(&request.id, &request.exec_id).map(|task| {
            if request.stdin {
                task.close_stdin();
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
        let result = self.tasks.get(&request.id).map(|_| ConnectResponse {
            shim_pid: pid(),
            task_pid: pid(),
            version: env!("CARGO_PKG_VERSION").into(),
            ..Default::default()
        });
        self.answer(Method::Connect, began, result)
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> ttrpc::Result<Empty> {
        // It comes for each task, and the socket is shared: there is nothing to shut down.
        self.answer(Method::Shutdown, Instant::now(), Ok(Empty::default()))
    }

    async fn exec(&self, _: &TtrpcContext, _: ExecProcessRequest) -> ttrpc::Result<Empty> {
        self.answer(Method::Exec, Instant::now(), unimplemented("exec"))
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        let began = Instant::now();
        let result = self.tasks.get(&request.id).and_then(|task| task.pause());
        self.answer(Method::Pause, began, result.map(|()| Empty::default()))
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        let began = Instant::now();
        let result = self.tasks.get(&request.id).and_then(|task| task.resume());
        self.answer(Method::Resume, began, result.map(|()| Empty::default()))
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        self.answer(Method::Checkpoint, Instant::now(), unimplemented("a checkpoint"))
    }

    async fn resize_pty(&self, _: &TtrpcContext, _: ResizePtyRequest) -> ttrpc::Result<Empty> {
        self.answer(Method::ResizePty, Instant::now(), unimplemented("a terminal"))
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let began = Instant::now();
        let result =
            self.tasks.get(&request.id).and_then(|task| task.update(&convert::resources(request.resources.as_ref())?));
        self.answer(Method::Update, began, result.map(|()| Empty::default()))
    }
}

fn create_request(request: CreateTaskRequest) -> CreateRequest {
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
    }
}

fn state_response(task: &Task) -> StateResponse {
    let snapshot = task.snapshot();
    let status: Status = (&snapshot.state).into();
    let mut response = StateResponse {
        id: task.id.to_string(),
        bundle: task.bundle.display().to_string(),
        pid: pid(),
        status: EnumOrUnknown::new(status),
        stdin: task.stdio_paths.stdin.clone(),
        stdout: task.stdio_paths.stdout.clone(),
        stderr: task.stdio_paths.stderr.clone(),
        terminal: task.stdio_paths.terminal,
        ..Default::default()
    };
    if let Some(exit) = snapshot.exit {
        response.exit_status = exit.status;
        response.exited_at = convert::timestamp(exit.at);
    }
    response
}

fn usage(task: &Task) -> Usage {
    let alive = matches!(task.snapshot().state, State::Starting | State::Running | State::Paused);
    Usage {
        cpu: task.cpu_time(),
        throttling: task.throttling(),
        memory: task.memory.current(),
        memory_peak: task.memory.peak(),
        memory_limit: task.memory.limit(),
        memory_refused: task.memory.refused(),
        out_of_memory: task.memory.was_fatal(),
        processes: u64::from(alive),
    }
}
