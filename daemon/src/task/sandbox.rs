//! A pod's sandbox. Kubernetes' CRI makes it as a "pause" container, a process that does nothing but keep
//! the pod's namespaces alive. Here it is a task that runs nothing: no process, no mount, no instance.
//!
//! The pod's network namespace is made by CRI before the sandbox and named by path in the sandbox's
//! spec. The specs of the pod's containers name `/proc/<the sandbox's pid>/ns/net` instead, and that
//! pid is the daemon's: so a container takes its network from its sandbox and not from its own spec.

use crate::bundle::{Network, Role, TaskSpec};
use crate::error::{Error, Result};
use crate::task::map::TaskMap;

/// The network of a pod, from its sandbox's spec.
///
/// # Errors
/// `InvalidArgument` if the spec leaves it to the runtime to make one, as CRI never does.
pub fn own_network(spec: &TaskSpec) -> Result<Network> {
    match &spec.network {
        Network::New => Err(Error::InvalidArgument(
            "the sandbox's spec asks for a new network namespace; Hearth takes one that exists (linux.namespaces: path)"
                .into(),
        )),
        named => Ok(named.clone()),
    }
}

/// The network of a task: its own spec's, or that of the pod it belongs to.
///
/// # Errors
/// `FailedPrecondition` if the pod's sandbox is not among `tasks`.
pub fn network(tasks: &TaskMap, spec: &TaskSpec) -> Result<Network> {
    match (&spec.role, &spec.network) {
        (Role::InSandbox(id), Network::Path(_) | Network::New) => {
            let sandbox = tasks.get(id).map_err(|_| {
                Error::FailedPrecondition(format!(
                    "the pod's sandbox {id} is not here (was hearthd restarted?); delete the pod, so that it is made anew"
                ))
            })?;
            Ok(sandbox.network.clone())
        }
        (_, own) => Ok(own.clone()),
    }
}
