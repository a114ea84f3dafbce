//! A pod: its options, its sandbox, and its end.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::{ContainerPlan, Node};
use crate::attach::Forwarded;
use crate::cri::{Cri, Failed, v1};
use crate::world::{Imported, Runtime};

/// How long a container that ignores its stop signal lives on when a story is over, in seconds.
const GRACE_AT_THE_END: i64 = 1;

/// Options of a pod beyond its name.
#[derive(Clone, Debug)]
pub struct PodOptions {
    /// The name of the runtime handler, as a RuntimeClass says it.
    pub handler: String,
    /// Whether its containers share a pid namespace.
    pub shares_pids: bool,
    /// Whether it is in the node's network.
    pub host_network: bool,
    /// Kernel settings of its namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Its resolv.conf; `None` for the node's.
    pub dns: Option<v1::DnsConfig>,
    /// The pod's annotations.
    pub annotations: BTreeMap<String, String>,
    /// Its control group; `None` for that of the machine.
    pub cgroup_parent: Option<String>,
}

impl PodOptions {
    /// The defaults on a runtime.
    pub fn of(runtime: Runtime) -> Self {
        let (handler, shares_pids) = match runtime {
            Runtime::Hearth => ("hearth", false),
            // As pid 1 of its own namespace a native program would ignore signals that it does not handle.
            Runtime::Runc => ("runc", true),
        };
        Self {
            handler: handler.to_owned(),
            shares_pids,
            host_network: false,
            sysctls: BTreeMap::new(),
            dns: None,
            annotations: BTreeMap::new(),
            cgroup_parent: None,
        }
    }
}

/// A pod, not yet run.
#[must_use = "nothing runs before `run`"]
#[derive(Debug)]
pub struct PodPlan<'a> {
    node: &'a Node,
    name: String,
    options: PodOptions,
}

impl<'a> PodPlan<'a> {
    pub(super) fn new(node: &'a Node, name: &str) -> Self {
        Self { node, name: name.to_owned(), options: PodOptions::of(node.runtime()) }
    }

    /// Changes the options.
    pub fn options(mut self, change: impl FnOnce(&mut PodOptions)) -> Self {
        change(&mut self.options);
        self
    }

    /// Runs its sandbox.
    ///
    /// # Panics
    /// With containerd's error, if it refuses the call.
    #[track_caller]
    pub fn run(self) -> Pod {
        self.try_run().unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`Self::run`].
    ///
    /// # Errors
    /// containerd's error.
    pub fn try_run(self) -> Result<Pod, Failed> {
        let Self { node, name, options } = self;
        let logs = node.path(&format!("logs/{name}"));
        fs::create_dir_all(&logs).expect("the machine's directory is writable");
        let namespaces = namespaces(&options);
        let config = v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: name.clone(),
                uid: format!("{name}-uid"),
                namespace: "stories".into(),
                attempt: 0,
            }),
            // A pod in the node's network has the node's name.
            hostname: if options.host_network { String::new() } else { name },
            log_directory: logs.display().to_string(),
            dns_config: options.dns,
            annotations: options.annotations.into_iter().collect(),
            linux: Some(v1::LinuxPodSandboxConfig {
                cgroup_parent: options.cgroup_parent.unwrap_or_else(|| node.machine().cgroup()),
                security_context: Some(v1::LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces.clone()),
                    ..v1::LinuxSandboxSecurityContext::default()
                }),
                sysctls: options.sysctls.into_iter().collect(),
            }),
            ..v1::PodSandboxConfig::default()
        };
        let request = v1::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: options.handler };
        let id = node.cri.run_pod(request)?.pod_sandbox_id;
        Ok(Pod { cri: node.cri.clone(), id, config, namespaces, logs, attempts: Mutex::default() })
    }
}

fn namespaces(options: &PodOptions) -> v1::NamespaceOption {
    use v1::NamespaceMode::{Container, Node, Pod};
    v1::NamespaceOption {
        network: if options.host_network { Node } else { Pod }.into(),
        pid: if options.shares_pids { Pod } else { Container }.into(),
        ipc: Pod.into(),
        ..v1::NamespaceOption::default()
    }
}

/// A pod that runs. Dropping it stops and removes it with all its containers.
#[derive(Debug)]
pub struct Pod {
    pub(super) cri: Arc<Cri>,
    id: String,
    pub(super) config: v1::PodSandboxConfig,
    pub(super) namespaces: v1::NamespaceOption,
    pub(super) logs: PathBuf,
    /// The number of containers made so far, by name.
    pub(super) attempts: Mutex<BTreeMap<String, u32>>,
}

impl Pod {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A container, not yet made. One of a name used before is its restart.
    pub fn container(&self, name: &str, image: &Imported) -> ContainerPlan<'_> {
        ContainerPlan::new(self, name, image)
    }

    /// Its state and address.
    ///
    /// # Panics
    /// If containerd does not know it.
    #[track_caller]
    pub fn status(&self) -> v1::PodSandboxStatus {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: self.id.clone() };
        let answer = self.cri.pod_status(request).unwrap_or_else(|error| panic!("{error}"));
        answer.status.expect("an answer has a status")
    }

    /// Whether it is ready.
    pub fn is_ready(&self) -> bool {
        self.status().state() == v1::PodSandboxState::SandboxReady
    }

    /// Its address; empty in the node's network.
    pub fn ip(&self) -> String {
        self.status().network.map(|network| network.ip).unwrap_or_default()
    }

    /// A connection to one of its ports; `node` is where it runs.
    ///
    /// # Panics
    /// With containerd's error, if it refuses the call.
    #[track_caller]
    pub fn forward(&self, node: &Node, port: u16) -> Forwarded {
        let request = v1::PortForwardRequest { pod_sandbox_id: self.id.clone(), port: vec![i32::from(port)] };
        let answer = self.cri.port_forward(request).unwrap_or_else(|error| panic!("{error}"));
        node.machine().in_network(|| Forwarded::open(&answer.url, port))
    }

    /// Stops it, its containers and its network. Its status stays available.
    ///
    /// # Panics
    /// With containerd's error, if it refuses the call.
    #[track_caller]
    pub fn stop(&self) {
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: self.id.clone() };
        again(|| self.cri.stop_pod(request.clone())).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Ends the pod as kubelet does: stops the containers, stops the sandbox, and removes both.
    fn end(&self) -> Result<(), Failed> {
        for container in self.cri.list_containers(v1::Empty {})?.containers {
            if container.pod_sandbox_id == self.id && container.state() == v1::ContainerState::ContainerRunning {
                let (container_id, timeout) = (container.id, GRACE_AT_THE_END);
                let request = v1::StopContainerRequest { container_id, timeout };
                again(|| self.cri.stop_container(request.clone()))?;
            }
        }
        let pod_sandbox_id = || self.id.clone();
        again(|| self.cri.stop_pod(v1::StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id() }))?;
        self.cri.remove_pod(v1::RemovePodSandboxRequest { pod_sandbox_id: pod_sandbox_id() })?;
        Ok(())
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // A story that failed leaves its pods to the end of the machine.
        if !std::thread::panicking() {
            self.end().unwrap_or_else(|error| panic!("at the end of pod {}: {error}", self.id));
        }
    }
}

/// Repeats a call that met the end of its container, as kubelet does. containerd closes its connection to the shim when
/// the shim has answered Delete, also under a Kill that is under way, and its client gets `ttrpc: closed`. This happens
/// with every runtime, also with a shim that does nothing.
pub(super) fn again<T>(call: impl Fn() -> Result<T, Failed>) -> Result<T, Failed> {
    match call() {
        Err(error) if error.status.message().contains("ttrpc: closed") => call(),
        result => result,
    }
}
