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
//! * `shim.rs`: starting runc's shim, calls to it, and its `delete`.
//! * `bundle.rs`: the bundle for runc's shim: namespaces, mounts, options; bundles that a dead daemon left.

mod bundle;
mod shim;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use containerd_shim_protos::api::{
    CreateTaskRequest, CreateTaskResponse, DeleteRequest, DeleteResponse, KillRequest, StateRequest, StateResponse,
    Status, WaitRequest, WaitResponse,
};
use containerd_shim_protos::protobuf::{EnumOrUnknown, Message};
use hearth_shim::NATIVE_BUNDLES;
use parking_lot::Mutex;
use ttrpc::Code;
use ttrpc::r#async::TtrpcContext;
use ttrpc::proto::{Request, Response};

use crate::task::map::{self, TaskMap};
use crate::task::pid;
use crate::task::pods::Sandboxes;
use crate::task::process::Exit;
use crate::task::sandbox::Sandbox;
use hearth_base::config::Config;
use hearth_base::error::Error;
use hearth_base::namespace::ContainerdNamespace;
use hearth_containerd::events::{Event, Reservation as Room};
use hearth_containerd::peer::Peer;
use hearth_containerd::time::{system_time, timestamp};

pub use bundle::{end_leftovers, leftovers};
use shim::{Shim, ShimBundle, ShimProgram, call, unreachable_shim};

/// The signal that ends a container at once.
const SIGKILL: u32 = 9;

/// Status of a container whose shim died: as if killed.
const LOST_STATUS: u32 = 128 + SIGKILL;

/// The native containers of one containerd instance and namespace.
pub struct Natives {
    namespace: ContainerdNamespace,
    peer: Arc<Peer>,
    program: ShimProgram,
    tasks: Arc<TaskMap>,
    sandboxes: Arc<Sandboxes>,
    /// Where bundles lie whose sandbox has none.
    directory: PathBuf,
    known: Mutex<HashMap<String, Arc<Native>>>,
}

/// A native container.
pub struct Native {
    id: Arc<str>,
    bundle: ShimBundle,
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

impl Natives {
    /// No containers yet; their ids are taken in `tasks`.
    pub fn new(
        namespace: ContainerdNamespace,
        peer: Arc<Peer>,
        config: &Config,
        tasks: Arc<TaskMap>,
        sandboxes: Arc<Sandboxes>,
    ) -> Arc<Natives> {
        let program = ShimProgram::new(namespace.clone(), peer.key.clone(), config.native.clone());
        Arc::new(Natives {
            namespace,
            peer,
            program,
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
        let bundle = ShimBundle { id: id.as_str().into(), path: bundle, mounts };
        let (shim, answer) = match self.create_in_shim(context, &bundle, &create).await {
            Ok(created) => created,
            Err(error) => {
                self.program.delete(&bundle).await;
                let _ = std::fs::remove_dir_all(&bundle.path);
                return Err(error);
            }
        };
        let native = Arc::new(Native {
            id: bundle.id.clone(),
            bundle,
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
        bundle: &ShimBundle,
        create: &CreateTaskRequest,
    ) -> ttrpc::Result<(Shim, CreateTaskResponse)> {
        let shim = self.program.start(bundle).await?;
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
                    // Before its shim goes, which the watch would take for a loss.
                    self.known.lock().remove(&*native.id);
                    native.shim.shut_down(&native.id).await;
                    let _ = std::fs::remove_dir_all(&native.bundle.path);
                }
                return response;
            }
            Err(error) => error,
        };
        // A pod's containers share a shim, which leaves when the last of them is deleted, be it before it has
        // answered that. One that has ended is as deleted as it can be.
        let Some(exit) = *native.ended.lock() else { return failure(&unreachable_shim(&error)) };
        self.program.delete(&native.bundle).await;
        *native.lost.lock() = Some(exit);
        native.answer_for_lost(&request, exit, || self.forget(native))
    }

    /// It has been deleted, and its shim is gone.
    fn forget(&self, native: &Native) {
        self.known.lock().remove(&*native.id);
        let _ = std::fs::remove_dir_all(&native.bundle.path);
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
        self.program.delete(&native.bundle).await;
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

#[cfg(test)]
mod tests {
    use super::*;

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
