//! From a Create request to a task, in phases that undo themselves.
//!
//! ```text
//!   Reserved ──▶ Specified ──▶ Planned ──▶ Located ──▶ Opened ──▶ Assembled ──▶ published
//!   id, room     config.json   pod,        program,    entry,     task
//!   for events                 network,    root        stdio
//!                    │         root plan                             ▲
//!                    └──── a pod's sandbox: network, no program ─────┘
//! ```
//!
//! Each phase is a value that owns the phase before it. A phase consumes that value, so none can be left out or
//! done twice; the drop of a phase undoes it and every phase before it. A refusal, a panic, or a caller that
//! disconnects leaves nothing behind, and the id is free again once the rest is undone.
//!
//! The program is located in one of two ways. **Warm**: the place (image layers and path, or the file's own
//! identity) is known and its program prepared. Nothing is opened, the root is mounted while Create is answered,
//! and the guest waits for it. **Cold**: the root is mounted first; then the program is looked up in it, read,
//! hashed, and mapped or compiled before Create is answered, so that a fault of the image is Create's error.
//!
//! * `reserved.rs`: the id of the task, and room for its events.
//! * `specified.rs`: the bundle's config.json.
//! * `planned.rs`: the pod and the network that the container joins, and which mounts make its root.
//! * `application.rs`: the Spin application that a container is, in its root or pushed.
//! * `located.rs`: the program, warm or cold, from the root or from a Wasm artifact.
//! * `opened.rs`: the entry point, refusals of unsupported settings, the memory limit, the user, stdio.
//! * `sandbox.rs`: the task of a pod's sandbox, which runs no program.
//! * `assembled.rs`: the task, and TaskCreate.

mod application;
mod assembled;
mod located;
mod opened;
mod planned;
mod reserved;
mod sandbox;
mod specified;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use containerd_shim_protos::api::Mount;

use crate::task::Task;
use crate::task::map::TaskMap;
use crate::task::pods::Sandboxes;
use crate::task::world::World;
use hearth_base::config::Live;
use hearth_base::error::{Error, Result};
use hearth_base::namespace::ContainerdNamespace;
use hearth_containerd::peer::Peer;
use hearth_observe::starts::trace::Trace;
use hearth_stdio::StdioPaths;
use hearth_wasm::modules::programs::Programs;

use reserved::Reserved;
use specified::Specified;

/// A Create call.
#[derive(Debug)]
pub struct CreateRequest {
    /// The task's id.
    pub id: String,
    /// The bundle's directory.
    pub bundle: PathBuf,
    /// The snapshot's mounts.
    pub rootfs: Vec<Mount>,
    /// Where stdio goes.
    pub stdio: StdioPaths,
    /// The trace of the start, if one is recorded.
    pub trace: Option<Trace>,
}

/// Makes the tasks of one containerd instance and namespace.
pub struct Creator {
    pub(super) namespace: ContainerdNamespace,
    pub(super) peer: Arc<Peer>,
    pub(super) config: Arc<Live>,
    pub(super) modules: Arc<dyn Programs>,
    pub(super) world: Arc<World>,
    sandboxes: Arc<Sandboxes>,
    /// Its blocking pool mounts and looks up files.
    runtime: tokio::runtime::Handle,
}

impl Creator {
    /// A creator for one namespace.
    pub fn new(
        namespace: ContainerdNamespace,
        peer: Arc<Peer>,
        config: Arc<Live>,
        modules: Arc<dyn Programs>,
        world: Arc<World>,
        sandboxes: Arc<Sandboxes>,
        runtime: tokio::runtime::Handle,
    ) -> Creator {
        Creator { namespace, peer, config, modules, world, sandboxes, runtime }
    }

    /// containerd's namespace.
    pub fn namespace(&self) -> &ContainerdNamespace {
        &self.namespace
    }

    /// Makes a task and puts it into `map`. `began`: when the request arrived.
    ///
    /// # Errors
    /// The fault of the request, the bundle, the image or the node, in one line. `Native`: the container is
    /// a native one of a pod, and runs elsewhere.
    pub async fn create(&self, map: &Arc<TaskMap>, request: CreateRequest, began: Instant) -> Result<Arc<Task>> {
        let specified = Reserved::new(self, map, &request.id)?.specify(self, request, began)?;
        if specified.is_sandbox() {
            return Ok(specified.make_sandbox(self).await?.publish(self));
        }
        let about = specified.about.clone();
        self.create_container(specified).await.inspect_err(|error| {
            // A native container starts elsewhere; that is no failed start.
            if !matches!(error, Error::Native(_)) {
                self.world.runtime.recent.failed(&about, &error.to_string());
            }
        })
    }

    async fn create_container(&self, specified: Specified) -> Result<Arc<Task>> {
        let planned = specified.plan(self).await?;
        let located = planned.locate(self).await?;
        // Not before it is known that the container is none of runc's, whose memory is not the daemon's.
        self.world.shortage.check()?;
        let opened = located.open(self).await?;
        Ok(opened.assemble(self)?.publish(self))
    }
}
