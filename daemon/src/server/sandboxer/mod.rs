//! The sandbox controller of containerd 2.x (`containerd.services.sandbox.v1.Controller`, gRPC), which containerd
//! reaches as a proxy plugin: decode, call, encode. A pod made here costs no process: containerd starts no shim for it
//! and has no pause container.
//!
//! * Each containerd has a socket of its own, since a request does not name its containerd; the namespace is in the
//!   request's metadata.
//! * The containers of such a pod are created on the same task socket as all others of that namespace. Its address is
//!   in the answers to Start and Status, where a restarted containerd finds it.
//! * A pod stays with the generation that made it. The leading generation forwards calls about it.
//!
//! When the daemon is gone, containerd asks again until there is another, which does not know the pod: the pod is not
//! ready then, and Kubernetes makes it anew.
//!
//! * `mod.rs`: the calls, and what a pod's configuration asks for: namespaces, DNS, sysctls, a user namespace.
//! * `sockets.rs`: the sockets, one for each containerd, and their hand-over to the next generation.
//! * `forward.rs`: calls about pods of an older generation.

pub mod forward;
pub mod sockets;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use containerd_client::services::v1::sandbox as api;
use containerd_client::types::{Metric, Platform};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use prost::Message;
use tonic::codegen::async_trait;
use tonic::{Request, Response, Status};

use crate::cells::not_in_a_cell;
use crate::server::convert::{self, CgroupVersion, Usage};
use crate::server::task;
use crate::server::task_sockets::{Entered, TaskSockets, VERSION_3};
use crate::task::pid;
use crate::task::pod_files::Dns;
use crate::task::pods::{PodPhase, PodSpec};
use crate::task::sandbox::SandboxSpec;
use hearth_base::bundle::{NetworkNamespace, Scope, Scopes};
use hearth_base::config::Isolation;
use hearth_base::error::{Error, Result};
use hearth_base::generation::wire::Owner;
use hearth_base::isolation::{ANNOTATION, Level, level_of};
use hearth_base::namespace::ContainerdNamespace;
use hearth_base::operator::PodName;
use hearth_containerd::peer::Key;
use hearth_observe::logging;

use generated::controller_server::Controller as ControllerApi;

#[allow(missing_docs, clippy::too_many_lines, reason = "generated code")]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/containerd.services.sandbox.v1.Controller.rs"));
}

/// The metadata with containerd's namespace (pkg/namespaces/grpc.go of containerd).
const NAMESPACE: &str = "containerd-namespace";

/// Settings that containerd gives a pod's network unless the pod says otherwise
/// (`enable_unprivileged_ports`, `enable_unprivileged_icmp`, on in its 2.x).
const NETWORK_SYSCTLS: [(&str, &str); 2] =
    [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];

/// The pods that this generation has made for one containerd.
pub struct Controller {
    key: Key,
    task_sockets: Arc<TaskSockets>,
    cgroups: CgroupVersion,
}

impl Controller {
    /// For the containerd that is called so.
    pub fn new(key: Key, task_sockets: Arc<TaskSockets>) -> Controller {
        Controller { key, task_sockets, cgroups: CgroupVersion::of_host() }
    }

    /// The key of a pod on this node.
    fn owner(&self, namespace: &ContainerdNamespace, id: &str) -> Owner {
        let Key { grpc: grpc_address, ttrpc: ttrpc_address } = self.key.clone();
        Owner { grpc_address, ttrpc_address, namespace: namespace.to_string(), id: id.to_owned() }
    }

    /// The namespace a request is about, where pods have been made before.
    fn known<T>(&self, request: &Request<T>, id: &str) -> Result<Entered> {
        let namespace = namespace(request)?;
        self.task_sockets.known(&self.key, &namespace).ok_or_else(|| Error::NotFound(format!("sandbox {id} not found")))
    }
}

fn namespace<T>(request: &Request<T>) -> Result<ContainerdNamespace> {
    let found = request.metadata().get(NAMESPACE).and_then(|value| value.to_str().ok());
    found.filter(|namespace| !namespace.is_empty()).map(ContainerdNamespace::from).ok_or_else(|| {
        Error::InvalidArgument(format!("the request names no namespace ({NAMESPACE}): is it containerd that asks?"))
    })
}

type Answer<T> = std::result::Result<Response<T>, Status>;

#[async_trait]
impl ControllerApi for Controller {
    async fn create(&self, request: Request<api::ControllerCreateRequest>) -> Answer<api::ControllerCreateResponse> {
        let namespace = namespace(&request)?;
        let request = request.into_inner();
        check_level(&self.task_sockets.config().now().isolation, &sandbox_config(&request)?)?;
        let spec = pod_spec(&request)?;
        let entered = self.task_sockets.enter(&self.key, &namespace).await?;
        let created = entered.sandboxes.create(&request.sandbox_id, spec).await;
        created.inspect_err(|error| {
            let sandbox = &request.sandbox_id;
            tracing::info!(target: logging::GUEST, namespace = &*namespace, task = sandbox, sandbox, %error, "a pod was refused");
        })?;
        tracing::debug!(namespace = &*namespace, sandbox = request.sandbox_id, "a pod was created");
        Ok(Response::new(api::ControllerCreateResponse { sandbox_id: request.sandbox_id }))
    }

    async fn start(&self, request: Request<api::ControllerStartRequest>) -> Answer<api::ControllerStartResponse> {
        let id = request.get_ref().sandbox_id.clone();
        let entered = self.known(&request, &id)?;
        let pod = entered.sandboxes.pod(&id)?;
        pod.start()?;
        Ok(Response::new(api::ControllerStartResponse {
            sandbox_id: id,
            pid: pid(),
            created_at: Some(pod.created_at.into()),
            labels: HashMap::new(),
            address: task_address(&entered),
            version: VERSION_3,
        }))
    }

    async fn platform(&self, _: Request<api::ControllerPlatformRequest>) -> Answer<api::ControllerPlatformResponse> {
        // By this CRI decides what a container's spec looks like.
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let platform = Platform { os: "linux".into(), architecture: architecture.into(), ..Default::default() };
        Ok(Response::new(api::ControllerPlatformResponse { platform: Some(platform) }))
    }

    async fn stop(&self, request: Request<api::ControllerStopRequest>) -> Answer<api::ControllerStopResponse> {
        let id = &request.get_ref().sandbox_id;
        let entered = self.known(&request, id)?;
        if let Some(sandbox) = entered.sandboxes.stop(id)? {
            entered.natives.kill_in(&sandbox).await;
        }
        Ok(Response::new(api::ControllerStopResponse {}))
    }

    async fn wait(&self, request: Request<api::ControllerWaitRequest>) -> Answer<api::ControllerWaitResponse> {
        let id = &request.get_ref().sandbox_id;
        let pod = self.known(&request, id)?.sandboxes.pod(id)?;
        let at = pod.ended().await;
        Ok(Response::new(api::ControllerWaitResponse { exit_status: 0, exited_at: Some(at.into()) }))
    }

    async fn status(&self, request: Request<api::ControllerStatusRequest>) -> Answer<api::ControllerStatusResponse> {
        let asked = request.get_ref();
        let id = &asked.sandbox_id;
        let entered = self.known(&request, id)?;
        let pod = entered.sandboxes.pod(id)?;
        let (state, exited_at) = match pod.phase() {
            PodPhase::Ready => ("SANDBOX_READY", None),
            PodPhase::Created => ("SANDBOX_NOTREADY", None),
            PodPhase::Ended(at) => ("SANDBOX_NOTREADY", Some(at.into())),
        };
        let info = match asked.verbose {
            true => HashMap::from([("info".to_owned(), info(&entered, id))]),
            false => HashMap::new(),
        };
        Ok(Response::new(api::ControllerStatusResponse {
            sandbox_id: id.clone(),
            pid: if exited_at.is_none() { pid() } else { 0 },
            state: state.into(),
            info,
            created_at: Some(pod.created_at.into()),
            exited_at,
            extra: None,
            address: task_address(&entered),
            version: VERSION_3,
        }))
    }

    async fn shutdown(
        &self,
        request: Request<api::ControllerShutdownRequest>,
    ) -> Answer<api::ControllerShutdownResponse> {
        let id = &request.get_ref().sandbox_id;
        let entered = self.known(&request, id)?;
        if let Some(sandbox) = entered.sandboxes.shut_down(id)? {
            entered.natives.kill_in(&sandbox).await;
        }
        Ok(Response::new(api::ControllerShutdownResponse {}))
    }

    async fn metrics(&self, request: Request<api::ControllerMetricsRequest>) -> Answer<api::ControllerMetricsResponse> {
        let id = &request.get_ref().sandbox_id;
        let entered = self.known(&request, id)?;
        let sandbox = entered.sandboxes.pod(id)?.sandbox();
        let tasks = sandbox.map(|sandbox| entered.sandboxes.tasks_in(&sandbox)).unwrap_or_default();
        let usage = tasks.iter().map(|task| task::usage(task)).fold(Usage::default(), Usage::with);
        let Any { type_url, value, .. } = convert::stats(usage, self.cgroups)?;
        let metric = Metric {
            timestamp: Some(SystemTime::now().into()),
            id: id.clone(),
            data: Some(prost_types::Any { type_url, value }),
        };
        Ok(Response::new(api::ControllerMetricsResponse { metrics: Some(metric) }))
    }

    async fn update(&self, request: Request<api::ControllerUpdateRequest>) -> Answer<api::ControllerUpdateResponse> {
        // Labels and the like are containerd's own; limits are those of the containers.
        let id = &request.get_ref().sandbox_id;
        self.known(&request, id)?.sandboxes.pod(id)?;
        Ok(Response::new(api::ControllerUpdateResponse {}))
    }
}

/// As containerd wants it: the protocol, and the socket as a URL.
fn task_address(entered: &Entered) -> String {
    format!("ttrpc+{}", entered.address)
}

/// The JSON text that `crictl inspectp` shows.
fn info(entered: &Entered, id: &str) -> String {
    let sandbox = entered.sandboxes.pod(id).ok().and_then(|pod| pod.sandbox());
    let network = sandbox.as_ref().map(|sandbox| match &sandbox.network.named {
        NetworkNamespace::Path(path) => path.display().to_string(),
        NetworkNamespace::Host | NetworkNamespace::New => "host".into(),
    });
    let tasks = sandbox.map(|sandbox| entered.sandboxes.tasks_in(&sandbox)).unwrap_or_default();
    let tasks: Vec<_> = tasks.iter().map(|task| task.id().to_string()).collect();
    serde_json::json!({
        "runtimeType": "io.containerd.hearth.v1",
        "hearthd": env!("CARGO_PKG_VERSION"),
        "pid": pid(),
        "network": network,
        "tasks": tasks,
    })
    .to_string()
}

/// `runtime.v1.PodSandboxConfig` of CRI, as far as it is used here.
#[derive(Clone, PartialEq, Message)]
struct PodSandboxConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<PodSandboxMetadata>,
    #[prost(string, tag = "2")]
    hostname: String,
    #[prost(message, optional, tag = "4")]
    dns_config: Option<DnsConfig>,
    #[prost(map = "string, string", tag = "7")]
    annotations: HashMap<String, String>,
    #[prost(message, optional, tag = "8")]
    linux: Option<LinuxPodSandboxConfig>,
}

/// `runtime.v1.PodSandboxMetadata`.
#[derive(Clone, PartialEq, Message)]
struct PodSandboxMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

/// `runtime.v1.DNSConfig`.
#[derive(Clone, PartialEq, Message)]
struct DnsConfig {
    #[prost(string, repeated, tag = "1")]
    servers: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    searches: Vec<String>,
    #[prost(string, repeated, tag = "3")]
    options: Vec<String>,
}

/// `runtime.v1.LinuxPodSandboxConfig`.
#[derive(Clone, PartialEq, Message)]
struct LinuxPodSandboxConfig {
    #[prost(message, optional, tag = "2")]
    security_context: Option<LinuxSandboxSecurityContext>,
    #[prost(map = "string, string", tag = "3")]
    sysctls: HashMap<String, String>,
}

/// `runtime.v1.LinuxSandboxSecurityContext`.
#[derive(Clone, PartialEq, Message)]
struct LinuxSandboxSecurityContext {
    #[prost(message, optional, tag = "1")]
    namespace_options: Option<NamespaceOption>,
}

/// `runtime.v1.NamespaceOption`: numbers of `NamespaceMode`.
#[derive(Clone, PartialEq, Message)]
struct NamespaceOption {
    #[prost(int32, tag = "1")]
    network: i32,
    #[prost(int32, tag = "2")]
    pid: i32,
    #[prost(int32, tag = "3")]
    ipc: i32,
    #[prost(message, optional, tag = "5")]
    user: Option<UserNamespace>,
}

/// `runtime.v1.UserNamespace`.
#[derive(Clone, PartialEq, Message)]
struct UserNamespace {
    #[prost(int32, tag = "1")]
    mode: i32,
}

/// `runtime.v1.NamespaceMode.NODE`.
const NODE: i32 = 2;

/// Refuses a pod that is to have a process of its own: the containers of this controller's pods run in the daemon.
fn check_level(isolation: &Isolation, config: &PodSandboxConfig) -> Result<()> {
    let namespace = config.metadata.as_ref().map(|metadata| metadata.namespace.as_str());
    let annotation = config.annotations.get(ANNOTATION).map(String::as_str);
    match level_of(isolation, Level::Node, namespace, annotation)? {
        Level::Node => Ok(()),
        Level::Pod => Err(not_in_a_cell()),
    }
}

/// The pod that a Create call is for.
fn sandbox_config(request: &api::ControllerCreateRequest) -> Result<PodSandboxConfig> {
    const TYPE: &str = "runtime.v1.PodSandboxConfig";
    let options = request.options.clone().unwrap_or_default();
    if options.type_url.rsplit('/').next() != Some(TYPE) {
        return Err(Error::InvalidArgument(format!(
            "the sandbox's options are {:?}; Hearth makes pods, for which they are a {TYPE}",
            options.type_url
        )));
    }
    PodSandboxConfig::decode(options.value.as_slice())
        .map_err(|e| Error::InvalidArgument(format!("the sandbox's options are no {TYPE}: {e}")))
}

/// The pod that a Create call describes.
fn pod_spec(request: &api::ControllerCreateRequest) -> Result<PodSpec> {
    let config = sandbox_config(request)?;
    let linux = config.linux.unwrap_or_default();
    let modes = linux.security_context.and_then(|context| context.namespace_options).unwrap_or_default();
    let scope = |mode| if mode == NODE { Scope::Node } else { Scope::Pod };
    let mut sysctls: std::collections::BTreeMap<_, _> = linux.sysctls.into_iter().collect();
    let network = match (scope(modes.network), request.netns_path.as_str()) {
        (Scope::Node, _) => NetworkNamespace::Host,
        (Scope::Pod, path) if path.starts_with('/') && !path.contains('\0') => {
            for (name, value) in NETWORK_SYSCTLS {
                sysctls.entry(name.into()).or_insert_with(|| value.into());
            }
            NetworkNamespace::Path(path.into())
        }
        (Scope::Pod, path) => {
            return Err(Error::InvalidArgument(format!(
                "the pod's network namespace {path:?} is not an absolute path"
            )));
        }
    };
    Ok(PodSpec {
        sandbox: SandboxSpec {
            network,
            hostname: config.hostname,
            // In the node's network the node's name holds.
            scopes: Scopes { ipc: scope(modes.ipc), pid: scope(modes.pid), uts: scope(modes.network) },
            sysctls,
            // Absent, or with the mode NODE, unless the pod has `hostUsers: false`.
            user_namespace: modes.user.is_some_and(|user| user.mode != NODE),
        },
        dns: config.dns_config.map(|DnsConfig { servers, searches, options }| Dns { servers, searches, options }),
        name: config.metadata.map(|PodSandboxMetadata { name, namespace }| PodName {
            namespace,
            name,
            container: String::new(),
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(config: &PodSandboxConfig, netns_path: &str) -> api::ControllerCreateRequest {
        api::ControllerCreateRequest {
            sandbox_id: "s".into(),
            netns_path: netns_path.into(),
            options: Some(prost_types::Any {
                type_url: "runtime.v1.PodSandboxConfig".into(),
                value: config.encode_to_vec(),
            }),
            ..Default::default()
        }
    }

    fn config(network: i32, pid: i32, sysctls: &[(&str, &str)]) -> PodSandboxConfig {
        PodSandboxConfig {
            annotations: HashMap::new(),
            metadata: Some(PodSandboxMetadata { name: "web-0".into(), namespace: "shop".into() }),
            hostname: "web".into(),
            dns_config: Some(DnsConfig { servers: vec!["10.0.0.1".into()], ..Default::default() }),
            linux: Some(LinuxPodSandboxConfig {
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(NamespaceOption { network, pid, ipc: 0, user: None }),
                }),
                sysctls: sysctls.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
            }),
        }
    }

    #[test]
    fn a_pods_configuration_is_read() {
        let spec = pod_spec(&create(&config(0, 1, &[("net.ipv4.ping_group_range", "1 1")]), "/run/netns/x")).unwrap();
        let name = spec.name.unwrap();
        assert_eq!((name.namespace.as_str(), name.name.as_str(), name.container.as_str()), ("shop", "web-0", ""));
        assert_eq!((spec.sandbox.hostname.as_str(), spec.dns.unwrap().servers.len()), ("web", 1));
        assert_eq!(spec.sandbox.network, NetworkNamespace::Path("/run/netns/x".into()));
        assert_eq!(spec.sandbox.scopes, Scopes { ipc: Scope::Pod, pid: Scope::Pod, uts: Scope::Pod });
        // containerd's own defaults, and what the pod says instead.
        let sysctls = spec.sandbox.sysctls;
        assert_eq!(sysctls["net.ipv4.ip_unprivileged_port_start"], "0");
        assert_eq!(sysctls["net.ipv4.ping_group_range"], "1 1");
    }

    #[test]
    fn a_pod_in_the_nodes_network_has_the_nodes_name() {
        let spec = pod_spec(&create(&config(NODE, NODE, &[]), "")).unwrap().sandbox;
        assert_eq!((spec.network, spec.sysctls.len()), (NetworkNamespace::Host, 0));
        assert_eq!(spec.scopes, Scopes { ipc: Scope::Pod, pid: Scope::Node, uts: Scope::Node });
    }

    #[test]
    fn a_user_namespace_is_read_as_kubelet_asks_for_it() {
        /// `runtime.v1.NamespaceMode.POD`.
        const POD: i32 = 0;
        for (user, asked) in
            [(None, false), (Some(UserNamespace { mode: NODE }), false), (Some(UserNamespace { mode: POD }), true)]
        {
            let mut config = config(0, 0, &[]);
            let linux = config.linux.as_mut().unwrap();
            linux.security_context.as_mut().unwrap().namespace_options.as_mut().unwrap().user = user;
            assert_eq!(pod_spec(&create(&config, "/x")).unwrap().sandbox.user_namespace, asked, "{config:?}");
        }
    }

    #[test]
    fn what_is_no_pod_is_refused() {
        let mut other = create(&config(0, 0, &[]), "/x");
        other.options = None;
        assert!(pod_spec(&other).unwrap_err().to_string().contains("PodSandboxConfig"));
        let mut damaged = create(&config(0, 0, &[]), "/x");
        damaged.options.as_mut().unwrap().value = vec![0xff];
        assert!(pod_spec(&damaged).unwrap_err().to_string().contains("PodSandboxConfig"));
        for path in ["", "x", "/x\0"] {
            let error = pod_spec(&create(&config(0, 0, &[]), path)).unwrap_err().to_string();
            assert!(error.contains("network namespace"), "{error}");
        }
    }
}
