//! One start of one runtime, at each level: the preparation before the clock starts, the measured calls, and the
//! clean-up after the clock has stopped.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest};
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{
    Container, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest, DeleteTaskRequest,
    GetContainerRequest, StartRequest, WaitRequest,
};
use containerd_client::tonic::transport::Channel;
use containerd_client::with_namespace;
use hearth_tests::Node;
use tokio::runtime::Runtime;
use tonic::{Code, Request};

use super::TASKS_NAMESPACE;
use super::peers::Peer;

/// containerd's default.
const SNAPSHOTTER: &str = "overlayfs";

/// The Tasks API: containers like a template that `ctr` made.
pub struct Tasks {
    runtime: Runtime,
    channel: Channel,
    template: Container,
    /// The snapshot of the image.
    parent: String,
    turn: u32,
}

/// One start at the Tasks API.
pub struct TaskSample {
    /// Create sent → Start answered.
    pub started: Duration,
    /// Create sent → Wait answered.
    pub ended: Duration,
}

impl Tasks {
    /// # Errors
    /// containerd's error.
    pub fn prepare(node: &Node, peer: &Peer, image: &str) -> Result<Tasks> {
        let id = format!("template-{}-{}", peer.handler, image.replace(['/', ':'], "-"));
        let mut arguments = vec!["containers".to_owned(), "create".into()];
        arguments.extend(peer.flags());
        arguments.extend([image.to_owned(), id.clone()]);
        node.ctr(arguments).ok();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let channel = runtime.block_on(containerd_client::connect(node.layout().containerd_socket()))?;
        let (template, parent) = runtime.block_on(async {
            let get = GetContainerRequest { id: id.clone() };
            let template = ContainersClient::new(channel.clone()).get(request(get)).await?.into_inner().container;
            let stat = StatSnapshotRequest { snapshotter: SNAPSHOTTER.into(), key: id };
            let info = SnapshotsClient::new(channel.clone()).stat(request(stat)).await?.into_inner().info;
            Ok::<_, tonic::Status>((template, info))
        })?;
        let (template, parent) =
            template.zip(parent.map(|info| info.parent)).context("containerd forgot the template")?;
        Ok(Tasks { runtime, channel, template, parent, turn: 0 })
    }

    /// One container, from its record to nothing.
    ///
    /// # Errors
    /// containerd's error, or a status other than 0.
    pub fn sample(&mut self) -> Result<TaskSample> {
        self.turn += 1;
        let id = format!("{}-{}", self.template.id, self.turn);
        self.runtime.block_on(self.start(&id)).with_context(|| format!("container {id}"))
    }

    async fn start(&self, id: &str) -> Result<TaskSample> {
        let (snapshotter, key) = (SNAPSHOTTER.to_owned(), id.to_owned());
        let mut containers = ContainersClient::new(self.channel.clone());
        let mut snapshots = SnapshotsClient::new(self.channel.clone());
        let mut tasks = TasksClient::new(self.channel.clone());
        // First the record: a snapshot that none names may be collected.
        let container = Some(self.container(id)?);
        containers.create(request(CreateContainerRequest { container })).await.context("its record")?;
        let prepare = PrepareSnapshotRequest {
            snapshotter: snapshotter.clone(),
            key: key.clone(),
            parent: self.parent.clone(),
            ..PrepareSnapshotRequest::default()
        };
        let rootfs = snapshots.prepare(request(prepare)).await.context("its snapshot")?.into_inner().mounts;
        let create = CreateTaskRequest { container_id: key.clone(), rootfs, ..CreateTaskRequest::default() };
        let start = StartRequest { container_id: key.clone(), ..StartRequest::default() };
        let wait = WaitRequest { container_id: key.clone(), ..WaitRequest::default() };

        let began = Instant::now();
        tasks.create(request(create)).await.context("Create")?;
        tasks.start(request(start)).await.context("Start")?;
        let started = began.elapsed();
        let status = tasks.wait(request(wait)).await.context("Wait")?.into_inner().exit_status;
        let ended = began.elapsed();

        tasks.delete(request(DeleteTaskRequest { container_id: key.clone() })).await.context("Delete")?;
        containers.delete(request(DeleteContainerRequest { id: key.clone() })).await?;
        match snapshots.remove(request(RemoveSnapshotRequest { snapshotter, key })).await {
            // containerd collects snapshots without a reference, and may have been faster.
            Err(error) if error.code() == Code::NotFound => {}
            removed => drop(removed.context("the removal of its snapshot")?),
        }
        ensure!(status == 0, "it ended with status {status} instead of 0");
        Ok(TaskSample { started, ended })
    }

    /// The template under another name, which its spec has in the path of its cgroup.
    fn container(&self, id: &str) -> Result<Container> {
        let mut container = Container { id: id.to_owned(), snapshot_key: id.to_owned(), ..self.template.clone() };
        let spec = container.spec.as_mut().context("the template has no spec")?;
        let mut value: serde_json::Value = serde_json::from_slice(&spec.value)?;
        if value.pointer("/linux/cgroupsPath").is_some() {
            value["linux"]["cgroupsPath"] = format!("/{TASKS_NAMESPACE}/{id}").into();
        }
        spec.value = serde_json::to_vec(&value)?;
        Ok(container)
    }
}

fn request<T>(message: T) -> Request<T> {
    with_namespace!(message, TASKS_NAMESPACE)
}

/// `ctr run --rm`.
pub struct Ctr {
    arguments: Vec<String>,
    name: &'static str,
    turn: u32,
}

impl Ctr {
    /// Of this image.
    pub fn new(peer: &Peer, image: &str) -> Ctr {
        let mut arguments = vec!["run".to_owned(), "--rm".into()];
        arguments.extend(peer.flags());
        arguments.push(image.to_owned());
        Ctr { arguments, name: peer.handler, turn: 0 }
    }

    /// From exec to exit.
    ///
    /// # Errors
    /// If it fails.
    pub fn sample(&mut self, node: &Node) -> Result<Duration> {
        self.turn += 1;
        let id = format!("ctr-{}-{}", self.name, self.turn);
        let arguments = self.arguments.iter().cloned().chain([id]);
        let began = Instant::now();
        let output = node.ctr(arguments).run();
        let took = began.elapsed();
        if !output.status.success() {
            bail!("ctr run of {}: {}", self.name, String::from_utf8_lossy(&output.stderr));
        }
        Ok(took)
    }
}

/// Pods through CRI.
pub struct CriPods {
    handler: &'static str,
    image: hearth_tests::Imported,
    host_network: bool,
    turn: u32,
}

impl CriPods {
    /// Of this image.
    pub fn new(peer: &Peer, image: &str, host_network: bool) -> CriPods {
        let image = hearth_tests::Imported { name: image.to_owned(), entry: Vec::new() };
        CriPods { handler: peer.handler, image, host_network, turn: 0 }
    }

    /// RunPodSandbox sent → StartContainer answered.
    ///
    /// # Errors
    /// containerd's error.
    pub fn sample(&mut self, node: &Node) -> Result<Duration> {
        let began = Instant::now();
        let pod = self.run(node, &[])?;
        let took = began.elapsed();
        // Stopped and removed.
        drop(pod);
        Ok(took)
    }

    /// Runs one pod with its container, which gets these arguments.
    ///
    /// # Errors
    /// containerd's error.
    pub fn run(&mut self, node: &Node, arguments: &[&str]) -> Result<hearth_tests::Pod> {
        self.turn += 1;
        let network = if self.host_network { "host" } else { "own" };
        let name = format!("{}-{network}-{}", self.handler, self.turn);
        let (handler, host_network) = (self.handler.to_owned(), self.host_network);
        // Each with a pid namespace of its own, as Kubernetes has it.
        let plan = node.pod(&name).options(|options| {
            options.handler = handler;
            options.host_network = host_network;
            options.shares_pids = false;
        });
        let pod = plan.try_run()?;
        let container = pod.container("app", &self.image).args(arguments.iter().copied()).try_create()?;
        container.try_start()?;
        Ok(pod)
    }
}
