//! Native containers in a pod of Hearth: init containers and sidecars that are no WebAssembly run in containerd's own
//! `containerd-shim-runc-v2`, with all its features, and calls about them are passed on.
//!
//! ```text
//!  Create ──▶ not Wasm, in a pod of Hearth ──▶ a bundle of its own, namespaces rewritten ──▶ runc's shim
//!  State, Kill, Exec, … ──▶ id is native? ──▶ passed on as they are        events: by runc's shim itself
//! ```
//!
//! * containerd knows one bundle, Hearth's. runc's shim gets one inside the bundle of the pod's sandbox, `native/<id>`,
//!   so that neither overwrites the other's files. It lies there because containerd 2.1 and later run Hearth's shim's
//!   `delete` only for the sandbox when the daemon has died. The sandbox of a pod that the sandbox controller made has
//!   no bundle, and no `delete`: then it lies in the state directory.
//! * CRI writes `/proc/<the sandbox's pid>/ns/…` into the specs of a pod's containers. The pid of the sandbox is the
//!   daemon's, and a container must never join the daemon's namespaces: every such path is replaced by the pod's,
//!   left out where the pod has the node's, or refused.
//! * runc's shim groups by sandbox: the native containers of a pod share one process. It runs in the node's mount
//!   namespace, so that mounts of containers can propagate to the node.
//!
//! Failures: if runc's shim dies, its containers are reported as ended (137) and cleaned up by its own `delete`. If the
//! daemon dies, the `delete` of Hearth's shim cleans up, or the next daemon.
//!
//! * `mod.rs`: the native containers of a namespace; calls passed on; the watch on runc's shim.
//! * `bundle.rs`: the bundle for runc's shim: namespaces, mounts, options; bundles that a dead daemon left.

mod bundle;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use containerd_shim_protos::api::{
    CreateTaskRequest, CreateTaskResponse, DeleteRequest, DeleteResponse, KillRequest, ShutdownRequest, StateRequest,
    StateResponse, Status, WaitRequest, WaitResponse,
};
use containerd_shim_protos::protobuf::{EnumOrUnknown, Message};
use hearth_shim::{NATIVE_ADDRESS_FILE, NATIVE_BUNDLES};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::process::{Child, Command};
use ttrpc::Code;
use ttrpc::r#async::{Client, TtrpcContext};
use ttrpc::proto::{Request, Response};

use crate::task::map::{self, TaskMap};
use crate::task::pid;
use crate::task::pods::Sandboxes;
use crate::task::process::Exit;
use crate::task::sandbox::Sandbox;
use hearth_base::config::{self, Config};
use hearth_base::error::{Error, Result};
use hearth_base::namespace::ContainerdNamespace;
use hearth_containerd::events::{Event, Reservation as Room};
use hearth_containerd::peer::socket_path;
use hearth_containerd::peer::{Key, Peer};
use hearth_containerd::time::{system_time, timestamp};
use hearth_os::mount::in_node_namespace;

use bundle::Mounts;
pub use bundle::{end_leftovers, leftovers};

/// The signal that ends a container at once.
const SIGKILL: u32 = 9;

/// Status of a container whose shim died: as if killed.
const LOST_STATUS: u32 = 128 + SIGKILL;

/// The native containers of one containerd instance and namespace.
pub struct Natives {
    namespace: ContainerdNamespace,
    peer: Arc<Peer>,
    config: config::Native,
    tasks: Arc<TaskMap>,
    sandboxes: Arc<Sandboxes>,
    /// Where bundles lie whose sandbox has none.
    directory: PathBuf,
    known: Mutex<HashMap<String, Arc<Native>>>,
}

/// A native container.
pub struct Native {
    id: Arc<str>,
    shim: Shim,
    /// Keeps the id from tasks and other native containers.
    _taken: map::Reservation,
    /// Room for the exit that Hearth reports if the shim cannot.
    room: Room,
    /// Set once it has ended and its shim has said so.
    ended: Mutex<Option<Exit>>,
    /// Set if its shim is gone.
    lost: Mutex<Option<Exit>>,
    /// Keeps the pod's namespaces, which the container names by descriptors of the daemon.
    sandbox: Arc<Sandbox>,
}

/// A connection to a runc shim.
struct Shim {
    client: Client,
    service: String,
    /// The bundle it was given for this container.
    bundle: PathBuf,
    mounts: Mounts,
    /// How long it may take to answer a call that is not containerd's.
    timeout: Duration,
}

impl Natives {
    /// No containers yet; their ids are taken in `tasks`.
    pub fn new(
        namespace: ContainerdNamespace,
        peer: Arc<Peer>,
        config: &Config,
        tasks: Arc<TaskMap>,
        sandboxes: Arc<Sandboxes>,
    ) -> Arc<Natives> {
        Arc::new(Natives {
            namespace,
            peer,
            config: config.native.clone(),
            tasks,
            sandboxes,
            directory: config.state_dir.join(NATIVE_BUNDLES),
            known: Mutex::default(),
        })
    }

    /// The native container of this id.
    pub fn get(&self, id: &str) -> Option<Arc<Native>> {
        self.known.lock().get(id).cloned()
    }

    /// Whether there is none, as usual.
    pub fn is_empty(&self) -> bool {
        self.known.lock().is_empty()
    }

    /// All of them, for a stop of the daemon.
    pub fn all(&self) -> Vec<Arc<Native>> {
        self.known.lock().values().cloned().collect()
    }

    /// Ends the native containers of a pod.
    pub async fn kill_in(&self, sandbox: &Arc<Sandbox>) {
        for native in self.all() {
            if Arc::ptr_eq(&native.sandbox, sandbox) {
                native.kill().await;
            }
        }
    }

    /// Creates a native container: gives runc's shim a bundle with the pod's namespaces, and the request.
    ///
    /// # Errors
    /// `InvalidArgument` for what a native container of a Hearth pod cannot have, and the errors of runc's shim. Nothing
    /// is left then.
    pub async fn create(
        self: &Arc<Self>,
        context: &TtrpcContext,
        mut create: CreateTaskRequest,
    ) -> ttrpc::Result<CreateTaskResponse> {
        let id = create.id.clone();
        let taken = self.tasks.reserve(&id)?;
        let room = self.peer.events.reserve()?;
        let outer = PathBuf::from(&create.bundle);
        let (natives, name) = (self.clone(), id.clone());
        let prepare = move || bundle::prepare(&outer, &name, &natives.sandboxes, &natives.directory);
        let prepared = tokio::task::spawn_blocking(prepare).await.map_err(|e| Error::Internal(e.to_string()))?;
        let bundle::NativeBundle { bundle, sandbox, systemd_cgroup, mounts } = prepared?;
        create.bundle = bundle.display().to_string();
        create.options = bundle::runc_options(create.options.take(), systemd_cgroup).into();
        let (shim, answer) = match self.create_in_shim(context, &bundle, mounts, &create).await {
            Ok(created) => created,
            Err(error) => {
                self.delete_by_exec(&id, &bundle, mounts).await;
                let _ = std::fs::remove_dir_all(&bundle);
                return Err(error);
            }
        };
        let native = Arc::new(Native {
            id: id.as_str().into(),
            shim,
            _taken: taken,
            room,
            ended: Mutex::default(),
            lost: Mutex::default(),
            sandbox,
        });
        self.known.lock().insert(id, native.clone());
        tokio::spawn(self.clone().watch(native));
        Ok(answer)
    }

    async fn create_in_shim(
        &self,
        context: &TtrpcContext,
        bundle: &Path,
        mounts: Mounts,
        create: &CreateTaskRequest,
    ) -> ttrpc::Result<(Shim, CreateTaskResponse)> {
        let shim = self.start_shim(&create.id, bundle, mounts).await?;
        let request = Request {
            // The caller and its time limit: as with the calls that are passed on.
            metadata: ttrpc::context::to_pb(context.metadata.clone()),
            timeout_nano: context.timeout_nano,
            ..call("Create", create)?
        };
        let response = shim.pass(request).await.map_err(|e| unreachable_shim(&e))?;
        if !is_ok(&response) {
            shim.shut_down(&create.id).await;
            return Err(ttrpc::Error::RpcStatus(response.status.unwrap_or_default()));
        }
        let answer = CreateTaskResponse::parse_from_bytes(&response.payload)
            .map_err(|e| Error::Internal(format!("containerd-shim-runc-v2: Create: {e}")))?;
        Ok((shim, answer))
    }

    /// Passes a call on.
    pub async fn pass(&self, native: &Arc<Native>, request: Request) -> Response {
        if let Some(exit) = *native.lost.lock() {
            return native.answer_for_lost(&request, exit, || self.forget(native));
        }
        let is_delete = request.method == "Delete" && is_of_init(&request.payload);
        let error = match native.shim.pass(request.clone()).await {
            Ok(response) => {
                if is_delete && is_ok(&response) {
                    self.known.lock().remove(&*native.id);
                    native.shim.shut_down(&native.id).await;
                    let _ = std::fs::remove_dir_all(&native.shim.bundle);
                }
                return response;
            }
            Err(error) => error,
        };
        // A pod's containers share a shim, which leaves when the last of them is deleted, be it before it has
        // answered that. One that has ended is as deleted as it can be.
        let Some(exit) = *native.ended.lock() else { return failure(&unreachable_shim(&error)) };
        self.delete_by_exec(&native.id, &native.shim.bundle, native.shim.mounts).await;
        *native.lost.lock() = Some(exit);
        native.answer_for_lost(&request, exit, || self.forget(native))
    }

    /// It has been deleted, and its shim is gone.
    fn forget(&self, native: &Native) {
        self.known.lock().remove(&*native.id);
        let _ = std::fs::remove_dir_all(&native.shim.bundle);
    }

    /// Waits for its end, or for that of its shim, which would otherwise never be told.
    async fn watch(self: Arc<Self>, native: Arc<Native>) {
        let wait = WaitRequest { id: native.id.to_string(), ..Default::default() };
        let Ok(request) = call("Wait", &wait) else { return };
        if let Ok(response) = native.shim.pass(request).await {
            if let Ok(end) = WaitResponse::parse_from_bytes(&response.payload)
                && is_ok(&response)
            {
                *native.ended.lock() = Some(Exit { status: end.exit_status, at: system_time(&end.exited_at) });
            }
            return;
        }
        if self.get(&native.id).is_none() {
            return;
        }
        let exit = Exit { status: LOST_STATUS, at: SystemTime::now() };
        tracing::warn!(namespace = %self.namespace, task = %native.id, "containerd-shim-runc-v2 is gone; its container is ended");
        self.delete_by_exec(&native.id, &native.shim.bundle, native.shim.mounts).await;
        *native.lost.lock() = Some(exit);
        native.room.publish(
            &self.namespace,
            Event::Exit {
                container_id: native.id.clone(),
                id: native.id.clone(),
                pid: pid(),
                exit_status: exit.status,
                exited_at: exit.at,
            },
        );
    }

    /// Starts runc's shim, or finds the one that serves this pod already.
    async fn start_shim(&self, id: &str, bundle: &Path, mounts: Mounts) -> Result<Shim> {
        let output = self.exec(id, bundle, mounts, "start").await?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            return Err(Error::Unavailable(format!("{} start: {}", self.config.shim.display(), text.trim())));
        }
        let said = String::from_utf8_lossy(&output.stdout);
        let (address, version) = bootstrap(said.trim());
        // For the `delete` of Hearth's shim, or the next daemon, if this daemon has died.
        let owner = format!("{}\n{}\n", self.namespace, self.peer.key.grpc);
        std::fs::write(bundle.join(NATIVE_ADDRESS_FILE), format!("{address}\n{version}\n{owner}"))
            .map_err(|e| Error::Internal(format!("cannot write into {}: {e}", bundle.display())))?;
        let path = socket_path(&address);
        let stream = tokio::net::UnixStream::connect(path)
            .await
            .map_err(|e| Error::Unavailable(format!("containerd-shim-runc-v2 at {path}: {e}")))?;
        let service = format!("containerd.task.v{version}.Task");
        let timeout = Duration::from_millis(self.config.shim_timeout_ms);
        Ok(Shim { client: Client::new(stream.into()), service, bundle: bundle.to_path_buf(), mounts, timeout })
    }

    /// Has runc's shim binary remove whatever there is of a container, without its daemon.
    async fn delete_by_exec(&self, id: &str, bundle: &Path, mounts: Mounts) {
        match self.exec(id, bundle, mounts, "delete").await {
            Ok(output) if output.status.success() => {}
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stderr).into_owned();
                tracing::debug!(task = id, text, "containerd-shim-runc-v2 delete");
            }
            Err(error) => tracing::warn!(task = id, %error, "a native container was not cleaned up"),
        }
    }

    #[allow(clippy::disallowed_methods, reason = "containerd's own shim, called as containerd calls it")]
    async fn exec(&self, id: &str, bundle: &Path, mounts: Mounts, verb: &str) -> Result<Output> {
        let Key { grpc, ttrpc } = &self.peer.key;
        let mut command = Command::new(&self.config.shim);
        command
            .args(["-namespace", &self.namespace, "-address", grpc, "-publish-binary", "containerd", "-id", id])
            .arg("-bundle")
            .arg(bundle)
            .arg(verb)
            .current_dir(bundle)
            .env("TTRPC_ADDRESS", ttrpc)
            .env("GRPC_ADDRESS", grpc)
            .env("NAMESPACE", &*self.namespace)
            .env("MAX_SHIM_VERSION", "2")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let timeout = Duration::from_millis(self.config.shim_timeout_ms);
        let name = self.config.shim.display();
        let output = async { spawn(command, mounts).await?.wait_with_output().await };
        match tokio::time::timeout(timeout, output).await {
            Ok(Ok(output)) => Ok(output),
            Ok(Err(error)) => Err(Error::FailedPrecondition(format!(
                "the container's program is native, and {name}, which would run it, cannot be started: {error}"
            ))),
            Err(_) => Err(Error::Unavailable(format!(
                "{name} {verb}: no answer within native.shim_timeout_ms = {}",
                self.config.shim_timeout_ms
            ))),
        }
    }
}

impl Shim {
    /// Passes a call on; an answer that is an error is an answer.
    async fn pass(&self, request: Request) -> ttrpc::Result<Response> {
        let request = Request { service: self.service.clone(), ..request };
        match self.client.request(request).await {
            Err(ttrpc::Error::RpcStatus(status)) => {
                let mut response = Response::new();
                response.set_status(status);
                Ok(response)
            }
            other => other,
        }
    }

    /// Asks for ourselves. Whatever comes of it is as good as it gets.
    async fn tell(&self, method: &str, message: &impl Message) {
        if let Ok(request) = call(method, message) {
            let timeout_nano = i64::try_from(self.timeout.as_nanos()).unwrap_or(i64::MAX);
            if let Err(error) = self.pass(Request { timeout_nano, ..request }).await {
                tracing::debug!(method, %error, "containerd-shim-runc-v2 did not answer");
            }
        }
    }

    /// Lets the shim go if this was its last container.
    async fn shut_down(&self, id: &str) {
        self.tell("Shutdown", &ShutdownRequest { id: id.into(), ..Default::default() }).await;
    }
}

impl Native {
    /// Ends the container; for a stop of the daemon.
    pub async fn kill(&self) {
        let kill = KillRequest { id: self.id.to_string(), signal: SIGKILL, all: true, ..Default::default() };
        self.shim.tell("Kill", &kill).await;
    }

    /// The answer that its shim would give.
    fn answer_for_lost(&self, request: &Request, exit: Exit, forget: impl FnOnce()) -> Response {
        let at = timestamp(exit.at);
        let encoded = match request.method.as_str() {
            "State" => StateRequest::parse_from_bytes(&request.payload).ok().and_then(|asked| {
                let state = StateResponse {
                    id: asked.id,
                    pid: pid(),
                    status: EnumOrUnknown::new(Status::STOPPED),
                    exit_status: exit.status,
                    exited_at: at,
                    ..Default::default()
                };
                state.write_to_bytes().ok()
            }),
            "Wait" => {
                WaitResponse { exit_status: exit.status, exited_at: at, ..Default::default() }.write_to_bytes().ok()
            }
            "Delete" => {
                forget();
                let deleted =
                    DeleteResponse { pid: pid(), exit_status: exit.status, exited_at: at, ..Default::default() };
                deleted.write_to_bytes().ok()
            }
            _ => None,
        };
        match encoded {
            Some(payload) => {
                let mut response = Response::new();
                response.set_status(ttrpc::get_status(Code::OK, ""));
                response.payload = payload;
                response
            }
            None => failure(&Error::NotFound("process already finished".into())),
        }
    }
}

/// Starts runc's shim binary in a mount namespace.
async fn spawn(mut command: Command, mounts: Mounts) -> io::Result<Child> {
    if mounts == Mounts::Daemon {
        return command.spawn();
    }
    let runtime = tokio::runtime::Handle::current();
    let spawn = move || {
        in_node_namespace(|| {
            // The runtime watches the child.
            let _runtime = runtime.enter();
            command.spawn()
        })
    };
    tokio::task::spawn_blocking(spawn).await.map_err(io::Error::other)??
}

/// A call of the Task API.
fn call(method: &str, message: &impl Message) -> Result<Request> {
    let payload = message.write_to_bytes().map_err(|e| Error::Internal(format!("{method}: {e}")))?;
    Ok(Request { method: method.into(), payload, ..Default::default() })
}

fn unreachable_shim(error: &ttrpc::Error) -> Error {
    Error::Unavailable(format!("containerd-shim-runc-v2: {error}"))
}

/// An error as an answer.
fn failure(error: &Error) -> Response {
    let mut response = Response::new();
    response.set_status(ttrpc::get_status(error.code(), error.to_string()));
    response
}

/// Whether an answer is no error.
fn is_ok(response: &Response) -> bool {
    response.status.as_ref().is_none_or(|status| status.code() == Code::OK)
}

/// The id in any request of the Task API: field 1 of each of them.
pub fn task_id(payload: &[u8]) -> Option<String> {
    // Field 1 is the id in all of them, and unknown fields are skipped.
    StateRequest::parse_from_bytes(payload).ok().map(|request| request.id)
}

fn is_of_init(payload: &[u8]) -> bool {
    DeleteRequest::parse_from_bytes(payload).is_ok_and(|request| request.exec_id.is_empty())
}

/// The output of `start`: an address (containerd 1.x), or JSON with the version of the Task API.
fn bootstrap(said: &str) -> (String, u64) {
    let parsed = serde_json::from_str::<Value>(said).ok();
    let address = parsed.as_ref().and_then(|said| said["address"].as_str());
    let version = parsed.as_ref().and_then(|said| said["version"].as_u64());
    (address.unwrap_or(said).to_string(), version.unwrap_or(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_shims_answer_are_understood() {
        assert_eq!(bootstrap("unix:///run/x"), ("unix:///run/x".into(), 2));
        let json = r#"{"version":3,"address":"unix:///run/y","protocol":"ttrpc"}"#;
        assert_eq!(bootstrap(json), ("unix:///run/y".into(), 3));
    }

    #[test]
    fn the_id_of_any_request_is_found() {
        let create = CreateTaskRequest { id: "a".into(), bundle: "/b".into(), terminal: true, ..Default::default() };
        assert_eq!(task_id(&create.write_to_bytes().unwrap()).as_deref(), Some("a"));
        let delete = DeleteRequest { id: "b".into(), exec_id: "e".into(), ..Default::default() };
        let payload = delete.write_to_bytes().unwrap();
        assert_eq!((task_id(&payload).as_deref(), is_of_init(&payload)), (Some("b"), false));
        assert_eq!(task_id(b"\xff"), None);
    }
}
