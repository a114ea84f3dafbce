//! A container of a pod: its options, its life, its log and its use.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::pod::again;
use super::{Node, Pod};
use crate::attach::Attached;
use crate::cri::{Cri, Failed, LogLine, Stream, read_log, text_of, v1};
use crate::wait::{SHORT, within};
use crate::world::Imported;

/// Options of a container beyond its name and image.
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
    /// Whether clients may attach to its stdin.
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
    /// Capabilities added to and removed from the default ones.
    pub capabilities: v1::Capability,
    /// The id of the container whose processes it sees, as of an ephemeral container with `--target`.
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
            // The values of kubelet for a container without requests.
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

impl<'a> ContainerPlan<'a> {
    pub(super) fn new(pod: &'a Pod, name: &str, image: &Imported) -> Self {
        Self { pod, name: name.to_owned(), image: image.name.clone(), options: ContainerOptions::default() }
    }

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
    /// With containerd's error, if it refuses the call.
    #[track_caller]
    pub fn create(self) -> Container {
        self.try_create().unwrap_or_else(|error| panic!("{error}"))
    }

    /// Makes and starts it.
    ///
    /// # Panics
    /// With containerd's error, if it refuses the call.
    #[track_caller]
    pub fn start(self) -> Container {
        let container = self.create();
        container.start();
        container
    }

    /// As [`Self::create`].
    ///
    /// # Errors
    /// containerd's error.
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
            pod_sandbox_id: pod.id().to_owned(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let id = pod.cri.create_container(request)?.container_id;
        Ok(Container { cri: pod.cri.clone(), id, name, log })
    }
}

/// A container that was made. It is removed with its pod.
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
    /// With containerd's error, if it refuses the call.
    #[track_caller]
    pub fn start(&self) {
        self.try_start().unwrap_or_else(|error| panic!("{error}"));
    }

    /// As [`Self::start`].
    ///
    /// # Errors
    /// containerd's error.
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

    /// Waits for its end, and returns its exit code.
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

    /// Its standard output, from its log.
    pub fn stdout(&self) -> String {
        text_of(&self.log(), Stream::Stdout)
    }

    /// Its standard error, from its log.
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
            // In this order: a container's output is in its log before its end is visible.
            let running = self.is_running();
            let seen = self.stdout().contains(text);
            (seen || !running).then_some(seen)
        });
        assert!(seen == Some(true), "container {} did not print {text:?}, but {:?}", self.name, self.log());
    }

    /// Stops it: its stop signal, and SIGKILL after so many seconds.
    ///
    /// # Panics
    /// With containerd's error, if it refuses the call.
    #[track_caller]
    pub fn stop(&self, grace: i64) {
        let request = v1::StopContainerRequest { container_id: self.id.clone(), timeout: grace };
        again(|| self.cri.stop_container(request.clone())).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Removes it.
    ///
    /// # Panics
    /// With containerd's error, if it refuses the call.
    #[track_caller]
    pub fn remove(&self) {
        let request = v1::RemoveContainerRequest { container_id: self.id.clone() };
        self.cri.remove_container(request).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Runs a command in it to its end, as a probe does.
    ///
    /// # Errors
    /// containerd's error.
    pub fn exec<S: Into<String>>(&self, command: impl IntoIterator<Item = S>) -> Result<v1::ExecSyncResponse, Failed> {
        let cmd = command.into_iter().map(Into::into).collect();
        let timeout = SHORT.as_secs() as i64;
        self.cri.exec_sync(v1::ExecSyncRequest { container_id: self.id.clone(), cmd, timeout })
    }

    /// Attaches to its stdin, which it must have; `node` is where it runs.
    ///
    /// # Panics
    /// With containerd's error, if it refuses the call.
    #[track_caller]
    pub fn attach(&self, node: &Node) -> Attached {
        let request = v1::AttachRequest { container_id: self.id.clone(), stdin: true, ..v1::AttachRequest::default() };
        let answer = self.cri.attach(request).unwrap_or_else(|error| panic!("{error}"));
        node.machine().in_network(|| Attached::open(&answer.url))
    }

    /// Its resource usage.
    ///
    /// # Panics
    /// With containerd's error, if it refuses the call.
    #[track_caller]
    pub fn stats(&self) -> v1::ContainerStats {
        let request = v1::ContainerStatsRequest { container_id: self.id.clone() };
        let answer = self.cri.container_stats(request).unwrap_or_else(|error| panic!("{error}"));
        answer.stats.expect("an answer has stats")
    }

    /// Changes its limits.
    ///
    /// # Errors
    /// containerd's error.
    pub fn update(&self, resources: v1::LinuxContainerResources) -> Result<(), Failed> {
        let request = v1::UpdateContainerResourcesRequest { container_id: self.id.clone(), linux: Some(resources) };
        self.cri.update_resources(request).map(drop)
    }
}
