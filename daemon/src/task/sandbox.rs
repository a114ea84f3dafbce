//! A pod's sandbox. Kubernetes' CRI makes it as a "pause" container, a process that does nothing but keep
//! the pod's namespaces alive. Here it is a task that runs nothing: no process, no mount, no instance.
//!
//! The pod's network namespace is made by CRI before the sandbox and named by path in the sandbox's
//! spec. The specs of the pod's containers name `/proc/<the sandbox's pid>/ns/net` instead, and that
//! pid is the daemon's: so a container takes its network from its sandbox and not from its own spec.

use std::sync::Arc;

use crate::bundle::{Network, Role, TaskSpec};
use crate::error::{Error, Result};
use crate::os::holder::Holder;
use crate::os::namespaces::Shared;
use crate::os::netns::NetNs;
use crate::task::holders::Holders;
use crate::task::map::TaskMap;
use crate::task::{Task, pid};

impl Task {
    /// The IPC and UTS namespaces of the pod whose sandbox this is, for its native containers.
    ///
    /// # Errors
    /// `Internal` if the kernel gives none.
    pub fn shared_namespaces(&self) -> Result<&Shared> {
        if let Some(shared) = self.container.shared.get() {
            return Ok(shared);
        }
        let made = Shared::new(&self.container.hostname)
            .map_err(|e| Error::Internal(format!("cannot make the pod's IPC and UTS namespaces: {e}")))?;
        // Of two at once, one is kept.
        Ok(self.container.shared.get_or_init(|| made))
    }
}

/// A network that a task is in.
#[derive(Debug, Clone)]
pub struct Joined {
    /// As the spec of the pod's sandbox, or the task's own, has it.
    pub named: Network,
    /// The namespace, kept alive; none for the node's.
    pub namespace: Option<Arc<NetNs>>,
    /// The process that has it, if it was made for this task.
    pub holder: Option<Arc<Holder>>,
}

impl Joined {
    fn open(named: &Network) -> Result<Joined> {
        let namespace = match named {
            Network::Path(path) => Some(NetNs::open(path)?),
            Network::Host | Network::New => None,
        };
        Ok(Joined { named: named.clone(), namespace, holder: None })
    }

    /// The pid by which others find it: its holder's, else the daemon's.
    pub fn pid(&self) -> u32 {
        self.holder.as_ref().map_or_else(pid, |holder| holder.pid())
    }
}

/// The network of a pod, from its sandbox's spec.
///
/// # Errors
/// `InvalidArgument` if the spec leaves it to the runtime to make one, as CRI never does, or if what it
/// names is no network namespace.
pub fn own_network(spec: &TaskSpec) -> Result<Joined> {
    match &spec.network {
        Network::New => Err(Error::InvalidArgument(
            "the sandbox's spec asks for a new network namespace; Hearth takes one that exists (linux.namespaces: path)"
                .into(),
        )),
        named => Joined::open(named),
    }
}

/// The network of a task: its own spec's, or that of the pod it belongs to.
///
/// # Errors
/// `FailedPrecondition` if the pod's sandbox is not among `tasks`, `InvalidArgument` if what the spec names
/// is no network namespace, `Internal` if none can be made.
pub async fn network(tasks: &TaskMap, spec: &TaskSpec, holders: &Arc<Holders>) -> Result<Joined> {
    match (&spec.role, &spec.network) {
        (Role::InSandbox(id), Network::Path(_) | Network::New) => {
            let sandbox = tasks.get(id).map_err(|_| {
                Error::FailedPrecondition(format!(
                    "the pod's sandbox {id} is not here (was hearthd restarted?); delete the pod, so that it is made anew"
                ))
            })?;
            Ok(sandbox.container.network.clone())
        }
        (_, Network::New) => {
            let holder = holders.take().await?;
            let namespace = Some(holder.namespace().clone());
            Ok(Joined { named: Network::New, namespace, holder: Some(Arc::new(holder)) })
        }
        (_, own) => Joined::open(own),
    }
}
