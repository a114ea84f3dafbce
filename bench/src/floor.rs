//! The floor beneath containerd: a daemon that answers a task's calls and does nothing for them. It serves the sockets
//! that `containerd-shim-floor-v1` names, one for each namespace, in one directory.
//!
//! A task of [`Ends::AtOnce`] has ended as soon as it has started; one of [`Ends::WhenKilled`] runs until
//! it is killed, as a pod's must. Neither mounts, opens or starts anything.
//!
//! Failure path: a call for a task that is not there is NOT_FOUND, as for any shim.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{EnumOrUnknown, MessageField};
use containerd_shim_protos::shim_async::{Task, create_task};
use tokio::sync::watch;
use ttrpc::asynchronous::{Server, TtrpcContext};

use crate::process::{Tied, tied_command};
use crate::signals::Signals;

/// Names of containerd's Task API; its messages are equal in both.
const SERVICES: [&str; 2] = ["containerd.task.v2.Task", "containerd.task.v3.Task"];

/// The name containerd finds the shim by.
pub const RUNTIME: &str = "io.containerd.floor.v1";

/// The shim's file.
pub const SHIM: &str = "containerd-shim-floor-v1";

/// Threads that serve requests: hearthd's default.
const WORKER_THREADS: usize = 2;

/// The line that the daemon prints when it listens.
const READY: &str = "ready\n";

/// When tasks of a socket end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    AtOnce,
    WhenKilled,
}

/// A task's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Created,
    Running,
    Stopped(u32),
}

struct Floor {
    ends: Ends,
    tasks: Mutex<HashMap<String, watch::Sender<State>>>,
}

impl Floor {
    fn with<T>(&self, id: &str, look: impl FnOnce(&watch::Sender<State>) -> T) -> ttrpc::Result<T> {
        let tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = || {
            let status = ttrpc::get_status(ttrpc::Code::NOT_FOUND, format!("task {id} not found"));
            ttrpc::Error::RpcStatus(status)
        };
        tasks.get(id).map(look).ok_or_else(missing)
    }
}

fn now() -> MessageField<Timestamp> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    MessageField::some(Timestamp {
        seconds: since.as_secs() as i64,
        nanos: since.subsec_nanos() as i32,
        ..Timestamp::default()
    })
}

/// SIGKILL and the like, as a shell shows their victims.
const SIGNALLED: u32 = 128;

#[async_trait]
impl Task for Floor {
    async fn create(
        &self,
        _: &TtrpcContext,
        request: api::CreateTaskRequest,
    ) -> ttrpc::Result<api::CreateTaskResponse> {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.insert(request.id, watch::Sender::new(State::Created));
        Ok(api::CreateTaskResponse { pid: std::process::id(), ..Default::default() })
    }

    async fn start(&self, _: &TtrpcContext, request: api::StartRequest) -> ttrpc::Result<api::StartResponse> {
        let next = if self.ends == Ends::AtOnce { State::Stopped(0) } else { State::Running };
        self.with(&request.id, |state| state.send_replace(next))?;
        Ok(api::StartResponse { pid: std::process::id(), ..Default::default() })
    }

    async fn state(&self, _: &TtrpcContext, request: api::StateRequest) -> ttrpc::Result<api::StateResponse> {
        let state = self.with(&request.id, |state| *state.borrow())?;
        let (status, code) = match state {
            State::Created => (api::Status::CREATED, 0),
            State::Running => (api::Status::RUNNING, 0),
            State::Stopped(code) => (api::Status::STOPPED, code),
        };
        let (id, pid) = (request.id, std::process::id());
        let status = EnumOrUnknown::new(status);
        Ok(api::StateResponse { id, pid, status, exit_status: code, exited_at: now(), ..Default::default() })
    }

    async fn wait(&self, _: &TtrpcContext, request: api::WaitRequest) -> ttrpc::Result<api::WaitResponse> {
        let mut state = self.with(&request.id, watch::Sender::subscribe)?;
        // A deleted task has ended, too.
        let ended = state.wait_for(|state| matches!(state, State::Stopped(_))).await.map(|state| *state);
        let exit_status = if let Ok(State::Stopped(code)) = ended { code } else { 0 };
        Ok(api::WaitResponse { exit_status, exited_at: now(), ..Default::default() })
    }

    async fn kill(&self, _: &TtrpcContext, request: api::KillRequest) -> ttrpc::Result<api::Empty> {
        self.with(&request.id, |state| state.send_replace(State::Stopped(SIGNALLED + request.signal)))?;
        Ok(api::Empty::default())
    }

    async fn delete(&self, _: &TtrpcContext, request: api::DeleteRequest) -> ttrpc::Result<api::DeleteResponse> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).remove(&request.id);
        Ok(api::DeleteResponse { pid: std::process::id(), exited_at: now(), ..Default::default() })
    }

    async fn pids(&self, _: &TtrpcContext, _: api::PidsRequest) -> ttrpc::Result<api::PidsResponse> {
        let process = api::ProcessInfo { pid: std::process::id(), ..Default::default() };
        Ok(api::PidsResponse { processes: vec![process], ..Default::default() })
    }

    async fn connect(&self, _: &TtrpcContext, _: api::ConnectRequest) -> ttrpc::Result<api::ConnectResponse> {
        let pid = std::process::id();
        Ok(api::ConnectResponse { shim_pid: pid, task_pid: pid, ..Default::default() })
    }

    async fn update(&self, _: &TtrpcContext, _: api::UpdateTaskRequest) -> ttrpc::Result<api::Empty> {
        Ok(api::Empty::default())
    }

    async fn close_io(&self, _: &TtrpcContext, _: api::CloseIORequest) -> ttrpc::Result<api::Empty> {
        Ok(api::Empty::default())
    }

    async fn shutdown(&self, _: &TtrpcContext, _: api::ShutdownRequest) -> ttrpc::Result<api::Empty> {
        Ok(api::Empty::default())
    }
}

/// The hidden `floor-daemon` command: serves in `directory` until SIGTERM. Tasks of the namespace `short` end at once,
/// tasks of `long` when they are killed.
///
/// # Errors
/// If a socket cannot be bound.
pub fn serve(directory: &Path, short: &str, long: &str) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKER_THREADS).enable_all().build()?;
    runtime.block_on(async {
        let mut signals = Signals::watch()?;
        let mut servers = Vec::new();
        for (namespace, ends) in [(short, Ends::AtOnce), (long, Ends::WhenKilled)] {
            let socket = directory.join(format!("{namespace}.sock"));
            let floor = Arc::new(Floor { ends, tasks: Mutex::default() });
            let service = || create_task(floor.clone()).into_values().next();
            let services = SERVICES.into_iter().filter_map(|name| Some((name.to_owned(), service()?))).collect();
            let mut server = Server::new()
                .bind(&crate::null_server::address(&socket))
                .with_context(|| format!("cannot listen on {}", socket.display()))?
                .register_service(services);
            server.start().await?;
            servers.push(server);
        }
        crate::null_server::say_ready(READY)?;
        signals.first().await;
        for server in &mut servers {
            server.shutdown().await?;
        }
        Ok(())
    })
}

/// A shim that does nothing with its daemon, in a directory for containerd's `PATH`.
pub struct FloorShim {
    /// The directory.
    pub directory: PathBuf,
    _daemon: Tied,
}

impl FloorShim {
    /// Copies `shim` into `directory`, which must exist, and starts the daemon there. To be called on the
    /// main thread.
    ///
    /// # Errors
    /// If the copy cannot be made or the daemon does not come up.
    pub fn start(shim: &Path, directory: PathBuf, short: &str, long: &str) -> Result<FloorShim> {
        let copy = directory.join(SHIM);
        std::fs::copy(shim, &copy).with_context(|| format!("cannot copy {} to {}", shim.display(), copy.display()))?;
        let own = std::env::current_exe().context("cannot find this program's own path")?;
        let mut command = tied_command(own.as_os_str())?;
        command.arg("floor-daemon").arg(&directory).args([short, long]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut daemon = Tied::spawn("the floor's daemon", command)?;
        let line = crate::null_server::first_line(&mut daemon)?;
        ensure!(line == READY, "the floor's daemon did not come up; its error is above");
        Ok(FloorShim { directory, _daemon: daemon })
    }
}
