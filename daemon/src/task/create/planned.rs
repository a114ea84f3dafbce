//! Third phase of a Create: the container has joined its pod and its network, and it is decided which mounts make
//! its root. Nothing is mounted for the container yet.

use std::path::Path;
use std::sync::Arc;

use containerd_shim_protos::api::Mount;

use crate::task::root::{self, FsMount, Plan, RootSpec};
use crate::task::sandbox::{self, Joined, Sandbox};
use hearth_base::bundle::TaskSpec;
use hearth_base::error::Result;
use hearth_base::faults::{self, Point};
use hearth_base::tenant::{Limits, Tenant};
use hearth_observe::metrics::Phase;

use super::application;
use super::specified::Specified;
use super::{CreateRequest, Creator};

/// The root's directory in a bundle.
pub(super) const ROOTFS: &str = "rootfs";

/// Where in the bundle a root that is no snapshot is mounted.
const OWN_ROOT: &str = "root";

/// A Create whose root is planned.
pub(super) struct Planned {
    pub(super) plan: Plan,
    pub(super) network: Joined,
    /// The sandbox of the pod that the container belongs to.
    pub(super) pod: Option<Arc<Sandbox>>,
    /// The container's budget.
    pub(super) tenant: Arc<Tenant>,
    /// Dropped last.
    pub(super) specified: Specified,
}

impl Specified {
    /// Joins the pod and the network, and plans the root.
    ///
    /// # Errors
    /// `FailedPrecondition` if the pod or its network is gone; `InvalidArgument` for a mount or a network that a
    /// guest cannot have; `ResourceExhausted` for too many volumes.
    pub(super) async fn plan(mut self, creator: &Creator) -> Result<Planned> {
        let pod = creator.sandboxes.of(&self.spec)?;
        if let Some(pod) = &pod {
            let spec = &mut self.spec;
            let has = |path: &str| spec.mounts.iter().any(|m| m.destination == Path::new(path));
            let missing = pod.mounts(spec.read_only, has).await?;
            spec.mounts.extend(missing);
        }
        let network = sandbox::network(&self.spec, pod.as_ref(), &creator.world.holders).await?;
        faults::at(Point::Joined);
        let tenant = self.tenant(creator, pod.as_deref());
        let plan = root::plan(root_spec(&self.request, &self.spec), &creator.config.now().files)?;
        self.about.phase(&creator.world.runtime.metrics, Phase::Bundle, self.began, self.began.elapsed());
        Ok(Planned { plan, network, pod, tenant, specified: self })
    }

    /// The budget of the container.
    pub(super) fn tenant(&self, creator: &Creator, pod: Option<&Sandbox>) -> Arc<Tenant> {
        let limits = Limits::of(&creator.config.now());
        let (namespace, id, refusals) = (&creator.namespace, &self.about.id, &creator.world.refusals);
        Tenant::new(namespace.clone(), id.clone(), pod.map(|pod| pod.tenant(&limits)), &limits, refusals.clone())
    }
}

fn root_spec(request: &CreateRequest, spec: &TaskSpec) -> RootSpec {
    let mount = |mount: &Mount| FsMount {
        fstype: mount.type_.clone(),
        source: mount.source.clone(),
        options: mount.options.clone(),
    };
    RootSpec {
        rootfs: request.rootfs.iter().map(mount).collect(),
        path: spec.root.clone(),
        bundle: request.bundle.clone(),
        own_path: request.bundle.join(OWN_ROOT),
        // No component of an application sees the root itself, and the files of pushed ones are written into it.
        read_only: spec.read_only && !application::is_its_command(&spec.process),
        volumes: spec.mounts.clone(),
    }
}
