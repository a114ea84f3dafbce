//! The values of a spec: a task, its process, user, mounts, limits, namespaces and names in CRI.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

/// A mount of the spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecMount {
    /// The path of the mount point in the container.
    pub destination: PathBuf,
    /// File-system type; empty or `bind` for a bind mount.
    pub fstype: String,
    /// The source: a path, or a word such as `proc`.
    pub source: String,
    /// mount(8)-style options.
    pub options: Vec<String>,
}

/// A process of the spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessSpec {
    /// `process.args`; empty for an image without entry point.
    pub args: Vec<String>,
    /// `process.env`, split at the first `=`.
    pub env: Vec<(String, String)>,
    /// `process.cwd`, absolute.
    pub cwd: String,
    /// `process.user`.
    pub user: User,
    /// `process.terminal`.
    pub terminal: bool,
    /// The soft limit of `RLIMIT_NOFILE` in `process.rlimits`.
    pub open_files: Option<u64>,
}

/// A task, as its bundle describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskSpec {
    /// `process`: the task's init process.
    pub process: ProcessSpec,
    /// `root.path`, made absolute with the bundle's path.
    pub root: PathBuf,
    /// `root.readonly`.
    pub read_only: bool,
    /// `mounts`.
    pub mounts: Vec<SpecMount>,
    /// `linux.resources.memory.limit` in bytes, if there is one.
    pub memory_limit: Option<u64>,
    /// `linux.resources.cpu`.
    pub cpu: Cpu,
    /// The network namespace in `linux.namespaces`.
    pub network: NetworkNamespace,
    /// The role of the container in its pod.
    pub role: Role,
    /// The names of the container and its pod in CRI, for metrics and `hearthctl`.
    pub names: CriNames,
    /// The modification time of `config.json`.
    pub written_at: Option<SystemTime>,
    /// `hostname`; may be empty.
    pub hostname: String,
    /// The owners of its other namespaces.
    pub scopes: Scopes,
    /// `linux.sysctl`, by name.
    pub sysctls: BTreeMap<String, String>,
    /// Whether `linux.namespaces` has a user namespace.
    pub user_namespace: bool,
    /// The level of isolation that an annotation asks for ([`crate::isolation`]).
    pub isolation: Option<String>,
    /// The paths in `linux.devices`, without those that every container has by default.
    pub devices: Vec<String>,
    /// `linux.cgroupsPath`; may be empty.
    pub cgroups_path: String,
}

/// The owner of a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scope {
    /// The pod.
    Pod,
    /// The node.
    #[default]
    Node,
}

/// The owners of a pod's namespaces, except the network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scopes {
    /// System V IPC and POSIX message queues.
    pub ipc: Scope,
    /// Processes.
    pub pid: Scope,
    /// The host name.
    pub uts: Scope,
}

/// `process.user`: the user whose rights to files the process has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// The umask; the daemon's (0o022) if absent.
    pub umask: Option<u32>,
    /// The part of `process.capabilities` that concerns a guest.
    pub capabilities: Capabilities,
}

/// The capabilities of `process.capabilities` that decide on a guest's calls: rights to files and privileged ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// `effective`: the capabilities of root.
    pub effective: CapabilitySet,
    /// `ambient`: the capabilities that other users keep when their program is started.
    pub ambient: CapabilitySet,
}

impl Default for Capabilities {
    /// None, as for a spec without `process.capabilities`.
    fn default() -> Capabilities {
        Capabilities { effective: CapabilitySet::empty(), ambient: CapabilitySet::empty() }
    }
}

/// `linux.resources.cpu`; absent or 0 means no limit of that kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cpu {
    /// Weight relative to others, in cgroup v1's unit: 2 to 262,144, 1024 by default.
    pub shares: Option<u64>,
    /// The CPU time per period, in microseconds.
    pub quota: Option<u64>,
    /// The period, in microseconds.
    pub period: Option<u64>,
}

/// The network namespace of a process.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkNamespace {
    /// The node's: the spec lists no network namespace.
    #[default]
    Host,
    /// A namespace that exists, by path.
    Path(PathBuf),
    /// A namespace of its own.
    New,
}

/// The role of a container in CRI, by containerd's annotations.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Role {
    /// A container that CRI has not made.
    #[default]
    Alone,
    /// A pod's sandbox (the pause container).
    Sandbox,
    /// A container in the pod whose sandbox has this id.
    InSandbox(String),
}

/// The names of a container and its pod in CRI, by containerd's annotations. Some versions of containerd omit some.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CriNames {
    /// The pod's namespace.
    pub namespace: Option<String>,
    /// The pod's name.
    pub pod: Option<String>,
    /// The container's name.
    pub container: Option<String>,
    /// The image's name.
    pub image: Option<String>,
}
