//! What kubelet does with CRI, as a story says it: pods, their containers, their logs and their end.
//!
//! Dropping a [`Pod`] stops and removes it with its containers. Dropping a [`Node`] checks that containerd
//! knows of no pod any more, and then all that [`World`] checks: mounts, processes, sockets, cgroups,
//! network namespaces.

use std::collections::BTreeMap;
use std::fs;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::attach::{Attached, Forwarded};
use crate::cri::{Cri, Failed, LogLine, Stream, read_log, text_of, v1};
use crate::daemons::{self, HearthdOptions, PAUSE_IMAGE};
use crate::guests::Guest;
use crate::images::Image;
use crate::wait::{SHORT, eventually, within};
use crate::world::{Imported, Runtime, World};

/// containerd's namespace of CRI.
pub const NAMESPACE: &str = "k8s.io";

/// How long a container that ignores its stop signal lives on when a story is over, in seconds.
const GRACE_AT_THE_END: i64 = 1;

/// A [`World`] whose containerd serves pods.
#[derive(Debug)]
pub struct Node {
    cri: Arc<Cri>,
    world: World,
}

impl Node {
    /// Both daemons up, the CRI plugin and its network ready.
    pub fn new() -> Self {
        Self::with(HearthdOptions::default())
    }

    /// As [`Self::new`], `hearthd` with options.
    pub fn with(options: HearthdOptions) -> Self {
        let world = World::for_pods(options);
        let cri = Arc::new(Cri::connect(&world.layout().containerd_socket()));
        cri.wait_until_ready();
        let node = Self { cri, world };
        // Without, there is none to be had: who needs it would fail.
        if !daemons::with_sandboxer() {
            let pause = Guest::PAUSE.native_bytes();
            assert_eq!(node.import(&Image::of_file("pause", "/pause", pause)).name, PAUSE_IMAGE);
        }
        node
    }

    /// The client of CRI.
    pub fn cri(&self) -> &Cri {
        &self.cri
    }

    /// Imports a guest as an image of one file, in the form the runtime runs, for CRI.
    pub fn program(&self, guest: &Guest) -> Imported {
        self.import(&Image::of(guest, self.runtime()))
    }

    /// Imports an image for CRI.
    pub fn import(&self, image: &Image) -> Imported {
        let imported = self.world.import_in(NAMESPACE, image);
        // The plugin hears of it by an event.
        eventually("CRI knows the image", SHORT, || self.cri.has_image(image.name()).then_some(()));
        imported
    }

    /// A pod, not yet run, of the handler that runs the tasks.
    pub fn pod(&self, name: &str) -> PodPlan<'_> {
        PodPlan { node: self, name: name.to_owned(), options: PodOptions::of(self.runtime()) }
    }

    /// Stops containerd and starts it again; returns when it serves pods.
    pub fn restart_containerd(&mut self) {
        self.world.stop_containerd();
        self.world.start_containerd();
        self.cri.wait_until_ready();
    }

    /// The pods containerd knows: id and whether it is ready.
    pub fn pods(&self) -> BTreeMap<String, bool> {
        let listed = self.cri.list_pods(v1::Empty {}).unwrap_or_else(|error| panic!("{error}"));
        let ready = |pod: &v1::PodSandbox| pod.state() == v1::PodSandboxState::SandboxReady;
        listed.items.iter().map(|pod| (pod.id.clone(), ready(pod))).collect()
    }

    /// What all pods use, by id.
    pub fn pod_stats(&self) -> BTreeMap<String, v1::LinuxPodSandboxStats> {
        let listed = self.cri.list_pod_stats(v1::Empty {}).unwrap_or_else(|error| panic!("{error}"));
        let named = |stats: v1::PodSandboxStats| Some((stats.attributes?.id, stats.linux?));
        listed.stats.into_iter().filter_map(named).collect()
    }

    /// What all running containers use, by id.
    pub fn stats(&self) -> BTreeMap<String, v1::ContainerStats> {
        let listed = self.cri.list_stats(v1::Empty {}).unwrap_or_else(|error| panic!("{error}"));
        let named = |stats: v1::ContainerStats| Some((stats.attributes.as_ref()?.id.clone(), stats));
        listed.stats.into_iter().filter_map(named).collect()
    }
}

impl Default for Node {
    fn default() -> Self {
        Self::new()
    }
}

impl Deref for Node {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

impl DerefMut for Node {
    fn deref_mut(&mut self) -> &mut World {
        &mut self.world
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.pods(), BTreeMap::new(), "a story's pods are removed before its node");
        }
    }
}

/// What a pod may be given beyond a name.
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
    /// What its resolv.conf says; the node's without.
    pub dns: Option<v1::DnsConfig>,
    /// The pod's annotations.
    pub annotations: BTreeMap<String, String>,
}

impl PodOptions {
    /// The defaults on a runtime.
    pub fn of(runtime: Runtime) -> Self {
        let (handler, shares_pids) = match runtime {
            Runtime::Hearth => ("hearth", false),
            // As pid 1 of its own a native program would ignore the signals it does not handle.
            Runtime::Runc => ("runc", true),
        };
        Self {
            handler: handler.to_owned(),
            shares_pids,
            host_network: false,
            sysctls: BTreeMap::new(),
            dns: None,
            annotations: BTreeMap::new(),
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

impl PodPlan<'_> {
    /// Changes the options.
    pub fn options(mut self, change: impl FnOnce(&mut PodOptions)) -> Self {
        change(&mut self.options);
        self
    }

    /// Runs its sandbox.
    ///
    /// # Panics
    /// With what containerd answered, if it refuses.
    #[track_caller]
    pub fn run(self) -> Pod {
        self.try_run().unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`Self::run`].
    ///
    /// # Errors
    /// What containerd answered.
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
            // In the node's network the node's name holds.
            hostname: if options.host_network { String::new() } else { name },
            log_directory: logs.display().to_string(),
            dns_config: options.dns,
            annotations: options.annotations.into_iter().collect(),
            linux: Some(v1::LinuxPodSandboxConfig {
                cgroup_parent: node.machine().cgroup(),
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
    cri: Arc<Cri>,
    id: String,
    config: v1::PodSandboxConfig,
    namespaces: v1::NamespaceOption,
    logs: PathBuf,
    /// How often a container of a name was made.
    attempts: Mutex<BTreeMap<String, u32>>,
}

impl Pod {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A container, not yet made. One of a name used before is its restart.
    pub fn container(&self, name: &str, image: &Imported) -> ContainerPlan<'_> {
        ContainerPlan {
            pod: self,
            name: name.to_owned(),
            image: image.name.clone(),
            options: ContainerOptions::default(),
        }
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
    /// With what containerd answered, if it refuses.
    #[track_caller]
    pub fn forward(&self, node: &Node, port: u16) -> Forwarded {
        let request = v1::PortForwardRequest { pod_sandbox_id: self.id.clone(), port: vec![i32::from(port)] };
        let answer = self.cri.port_forward(request).unwrap_or_else(|error| panic!("{error}"));
        node.machine().in_network(|| Forwarded::open(&answer.url, port))
    }

    /// Stops it, its containers and its network; it can still be asked about.
    ///
    /// # Panics
    /// With what containerd answered, if it refuses.
    #[track_caller]
    pub fn stop(&self) {
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: self.id.clone() };
        again(|| self.cri.stop_pod(request.clone())).unwrap_or_else(|error| panic!("{error}"));
    }

    /// What kubelet does at the end of a pod: containers first, then the sandbox, then all of it goes.
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

/// Calls again, as kubelet does, what met the end of its container: containerd closes its connection to the shim when
/// that has answered Delete, also to a Kill that is under way there, whatever the runtime (seen with shims that do
/// nothing), and its client is told `ttrpc: closed`.
fn again<T>(call: impl Fn() -> Result<T, Failed>) -> Result<T, Failed> {
    match call() {
        Err(error) if error.status.message().contains("ttrpc: closed") => call(),
        result => result,
    }
}

/// What a container may be given beyond a name and an image.
#[derive(Clone, Debug)]
pub struct ContainerOptions {
    /// In place of the image's entry point.
    pub command: Vec<String>,
    /// After the entry point.
    pub args: Vec<String>,
    /// Environment variables.
    pub env: Vec<(String, String)>,
    /// Volumes.
    pub mounts: Vec<v1::Mount>,
    /// Whether somebody may attach to its stdin.
    pub stdin: bool,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Whether its root is read-only.
    pub read_only_root: bool,
    /// `runAsUser`.
    pub user: Option<i64>,
    /// `runAsGroup`.
    pub group: Option<i64>,
    /// `fsGroup` and `supplementalGroups`.
    pub supplemental_groups: Vec<i64>,
    /// Capabilities beyond the usual ones, and those taken away.
    pub capabilities: v1::Capability,
    /// The id of the container whose processes it shall see, as of an ephemeral one with `--target`.
    pub target: Option<String>,
    /// Limits.
    pub resources: v1::LinuxContainerResources,
}

impl Default for ContainerOptions {
    fn default() -> Self {
        Self {
            command: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
            mounts: Vec::new(),
            stdin: false,
            tty: false,
            read_only_root: false,
            user: None,
            group: None,
            supplemental_groups: Vec::new(),
            capabilities: v1::Capability::default(),
            target: None,
            // What kubelet gives a container that asks for nothing.
            resources: v1::LinuxContainerResources {
                cpu_shares: 2,
                oom_score_adj: 1000,
                ..v1::LinuxContainerResources::default()
            },
        }
    }
}

/// A container, not yet made.
#[must_use = "nothing is made before `create` or `start`"]
#[derive(Debug)]
pub struct ContainerPlan<'a> {
    pod: &'a Pod,
    name: String,
    image: String,
    options: ContainerOptions,
}

impl ContainerPlan<'_> {
    /// Changes the options.
    pub fn options(mut self, change: impl FnOnce(&mut ContainerOptions)) -> Self {
        change(&mut self.options);
        self
    }

    /// Arguments after the image's entry point.
    pub fn args<S: Into<String>>(self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.options(|options| options.args = arguments.into_iter().map(Into::into).collect())
    }

    /// Another command than the image's entry point.
    pub fn command<S: Into<String>>(self, words: impl IntoIterator<Item = S>) -> Self {
        self.options(|options| options.command = words.into_iter().map(Into::into).collect())
    }

    /// A writable volume.
    pub fn volume(self, host: impl AsRef<Path>, path: &str) -> Self {
        self.mount(host.as_ref(), path, false)
    }

    /// A read-only volume.
    pub fn read_only_volume(self, host: impl AsRef<Path>, path: &str) -> Self {
        self.mount(host.as_ref(), path, true)
    }

    fn mount(self, host: &Path, path: &str, readonly: bool) -> Self {
        let (host_path, container_path) = (host.display().to_string(), path.to_owned());
        self.options(|options| {
            options.mounts.push(v1::Mount { container_path, host_path, readonly, ..v1::Mount::default() });
        })
    }

    /// Makes it.
    ///
    /// # Panics
    /// With what containerd answered, if it refuses.
    #[track_caller]
    pub fn create(self) -> Container {
        self.try_create().unwrap_or_else(|error| panic!("{error}"))
    }

    /// Makes and starts it.
    ///
    /// # Panics
    /// With what containerd answered, if it refuses.
    #[track_caller]
    pub fn start(self) -> Container {
        let container = self.create();
        container.start();
        container
    }

    /// As [`Self::create`].
    ///
    /// # Errors
    /// What containerd answered.
    pub fn try_create(self) -> Result<Container, Failed> {
        let Self { pod, name, image, options } = self;
        let attempt = {
            let mut attempts = pod.attempts.lock().expect("no story panics in here");
            let next = attempts.entry(name.clone()).or_default();
            *next += 1;
            *next - 1
        };
        let log_path = format!("{name}/{attempt}.log");
        let log = pod.logs.join(&log_path);
        fs::create_dir_all(log.parent().expect("it is in a directory")).expect("the machine's directory is writable");
        let value = |value| v1::Int64Value { value };
        let mut namespaces = pod.namespaces.clone();
        if let Some(target) = options.target {
            namespaces.set_pid(v1::NamespaceMode::Target);
            namespaces.target_id = target;
        }
        let config = v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: name.clone(), attempt }),
            image: Some(v1::ImageSpec { image }),
            command: options.command,
            args: options.args,
            envs: options.env.into_iter().map(|(key, value)| v1::KeyValue { key, value }).collect(),
            mounts: options.mounts,
            log_path,
            stdin: options.stdin,
            stdin_once: options.stdin,
            tty: options.tty,
            linux: Some(v1::LinuxContainerConfig {
                resources: Some(options.resources),
                security_context: Some(v1::LinuxContainerSecurityContext {
                    capabilities: Some(options.capabilities),
                    namespace_options: Some(namespaces),
                    run_as_user: options.user.map(value),
                    run_as_group: options.group.map(value),
                    readonly_rootfs: options.read_only_root,
                    supplemental_groups: options.supplemental_groups,
                }),
            }),
            ..v1::ContainerConfig::default()
        };
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let id = pod.cri.create_container(request)?.container_id;
        Ok(Container { cri: pod.cri.clone(), id, name, log })
    }
}

/// A container that was made. It goes with its pod.
#[derive(Debug)]
pub struct Container {
    cri: Arc<Cri>,
    id: String,
    name: String,
    log: PathBuf,
}

impl Container {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Starts it.
    ///
    /// # Panics
    /// With what containerd answered, if it refuses.
    #[track_caller]
    pub fn start(&self) {
        self.try_start().unwrap_or_else(|error| panic!("{error}"));
    }

    /// As [`Self::start`].
    ///
    /// # Errors
    /// What containerd answered.
    pub fn try_start(&self) -> Result<(), Failed> {
        self.cri.start_container(v1::StartContainerRequest { container_id: self.id.clone() }).map(drop)
    }

    /// Its state, exit code and reason.
    ///
    /// # Panics
    /// If containerd does not know it.
    #[track_caller]
    pub fn status(&self) -> v1::ContainerStatus {
        let request = v1::ContainerStatusRequest { container_id: self.id.clone() };
        let answer = self.cri.container_status(request).unwrap_or_else(|error| panic!("{error}"));
        answer.status.expect("an answer has a status")
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.status().state() == v1::ContainerState::ContainerRunning
    }

    /// Waits for its end, and gives its exit code.
    ///
    /// # Panics
    /// With its log, if it has not ended after [`SHORT`].
    #[track_caller]
    pub fn wait(&self) -> i32 {
        self.ended().exit_code
    }

    /// As [`Self::wait`], with its whole status.
    #[track_caller]
    pub fn ended(&self) -> v1::ContainerStatus {
        let ended = within(SHORT, || {
            let status = self.status();
            (status.state() == v1::ContainerState::ContainerExited).then_some(status)
        });
        ended.unwrap_or_else(|| panic!("container {} did not end; its log: {:?}", self.name, self.log()))
    }

    /// Its log so far.
    pub fn log(&self) -> Vec<LogLine> {
        read_log(&self.log)
    }

    /// What it wrote to standard output, as its log has it.
    pub fn stdout(&self) -> String {
        text_of(&self.log(), Stream::Stdout)
    }

    /// What it wrote to standard error, as its log has it.
    pub fn stderr(&self) -> String {
        text_of(&self.log(), Stream::Stderr)
    }

    /// Waits until its log has `text` on standard output.
    ///
    /// # Panics
    /// With its log, when it ends without, or after [`SHORT`].
    #[track_caller]
    pub fn wait_for_stdout(&self, text: &str) {
        let seen = within(SHORT, || {
            // In this order: what a container printed is in its log before it is seen to have ended.
            let running = self.is_running();
            let seen = self.stdout().contains(text);
            (seen || !running).then_some(seen)
        });
        assert!(seen == Some(true), "container {} did not print {text:?}, but {:?}", self.name, self.log());
    }

    /// Stops it: its stop signal, and SIGKILL after so many seconds.
    ///
    /// # Panics
    /// With what containerd answered, if it refuses.
    #[track_caller]
    pub fn stop(&self, grace: i64) {
        let request = v1::StopContainerRequest { container_id: self.id.clone(), timeout: grace };
        again(|| self.cri.stop_container(request.clone())).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Removes it.
    ///
    /// # Panics
    /// With what containerd answered, if it refuses.
    #[track_caller]
    pub fn remove(&self) {
        let request = v1::RemoveContainerRequest { container_id: self.id.clone() };
        self.cri.remove_container(request).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Runs a command in it to its end, as a probe does.
    ///
    /// # Errors
    /// What containerd answered.
    pub fn exec<S: Into<String>>(&self, command: impl IntoIterator<Item = S>) -> Result<v1::ExecSyncResponse, Failed> {
        let cmd = command.into_iter().map(Into::into).collect();
        let timeout = SHORT.as_secs() as i64;
        self.cri.exec_sync(v1::ExecSyncRequest { container_id: self.id.clone(), cmd, timeout })
    }

    /// Attaches to its stdin, which it must have; `node` is where it runs.
    ///
    /// # Panics
    /// With what containerd answered, if it refuses.
    #[track_caller]
    pub fn attach(&self, node: &Node) -> Attached {
        let request = v1::AttachRequest { container_id: self.id.clone(), stdin: true, ..v1::AttachRequest::default() };
        let answer = self.cri.attach(request).unwrap_or_else(|error| panic!("{error}"));
        node.machine().in_network(|| Attached::open(&answer.url))
    }

    /// What it uses.
    ///
    /// # Panics
    /// With what containerd answered, if it refuses.
    #[track_caller]
    pub fn stats(&self) -> v1::ContainerStats {
        let request = v1::ContainerStatsRequest { container_id: self.id.clone() };
        let answer = self.cri.container_stats(request).unwrap_or_else(|error| panic!("{error}"));
        answer.stats.expect("an answer has stats")
    }

    /// Changes its limits.
    ///
    /// # Errors
    /// What containerd answered.
    pub fn update(&self, resources: v1::LinuxContainerResources) -> Result<(), Failed> {
        let request = v1::UpdateContainerResourcesRequest { container_id: self.id.clone(), linux: Some(resources) };
        self.cri.update_resources(request).map(drop)
    }
}
