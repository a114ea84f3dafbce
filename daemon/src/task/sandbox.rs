//! A pod's sandbox: namespaces and settings that its containers share. It has no process.
//!
//! Kubernetes' CRI makes it as a "pause" container, which here is a task that runs nothing; or, by the
//! sandbox controller of containerd 2.x, without any task ([`super::pods`]).
//!
//! The pod's network namespace is made by CRI before the sandbox and named by path. The specs of the pod's
//! containers name `/proc/<the sandbox's pid>/ns/…` instead, and that pid is the daemon's: so a container
//! takes its namespaces from its sandbox and not from its own spec. The namespaces that only native containers can
//! tell apart (IPC, host name, processes) are made for the first of them.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::{Arc, OnceLock};

use tokio::runtime::Handle;

use crate::task::holders::Holders;
use crate::task::pid;
use crate::task::pod_files::PodFiles;
use hearth_base::bundle::{NetworkNamespace, Scope, Scopes, SpecMount, TaskSpec};
use hearth_base::error::{Error, Result};
use hearth_base::tenant::{Limits, PodTenant};
use hearth_os::cgroup::parent_memory_limit;
use hearth_os::holder::{Holder, PidHolder};
use hearth_os::identity::{self, Identity};
use hearth_os::namespaces::Shared;
use hearth_os::netns::NetNs;
use hearth_os::sysctl::{Kind, Sysctl};
use hearth_wasm::memory::PodMemory;

/// Which pod a container belongs to.
#[derive(Clone)]
pub enum Membership {
    /// None.
    Alone,
    /// It is the sandbox itself, CRI's pause container.
    Sandbox(Arc<Sandbox>),
    /// The pod with this sandbox.
    In(Arc<Sandbox>),
}

/// The parts that a sandbox is made from.
#[derive(Debug, Clone, Default)]
pub struct SandboxSpec {
    /// Its network.
    pub network: NetworkNamespace,
    /// Its host name; empty for the node's.
    pub hostname: String,
    /// Its other namespaces.
    pub scopes: Scopes,
    /// Kernel settings of its namespaces, by name.
    pub sysctls: BTreeMap<String, String>,
    /// Whether it asks for a user namespace, which is refused.
    pub user_namespace: bool,
}

/// A sandbox.
pub struct Sandbox {
    /// The network of its containers.
    pub network: Joined,
    hostname: String,
    scopes: Scopes,
    /// The settings of the IPC and UTS namespaces.
    sysctls: Vec<Sysctl>,
    /// Made for the first native container.
    shared: OnceLock<Shared>,
    /// Made for the first native container that shares processes.
    pids: OnceLock<PidHolder>,
    /// The pod's files, if CRI has not made them.
    files: Option<PodFiles>,
    /// Set by the first container that names a control group.
    memory: OnceLock<Arc<PodMemory>>,
    /// Made for the first container.
    tenant: OnceLock<Arc<PodTenant>>,
    runtime: Handle,
}

impl Sandbox {
    /// Makes a sandbox, and applies the settings of its network. A few system calls; processes that it starts are reaped
    /// on `runtime`.
    ///
    /// # Errors
    /// `InvalidArgument` if the spec asks for a user namespace, or leaves it to the runtime to make a network, as
    /// CRI never does; if what it names is no network namespace; or for a setting that no pod may have.
    /// `FailedPrecondition` if the kernel refuses a setting.
    pub fn new(spec: SandboxSpec, files: Option<PodFiles>, runtime: Handle) -> Result<Sandbox> {
        if spec.user_namespace {
            return Err(no_user_namespace());
        }
        if spec.network == NetworkNamespace::New {
            return Err(Error::InvalidArgument(
                "the sandbox's spec asks for a new network namespace; Hearth takes one that exists (linux.namespaces: path)"
                    .into(),
            ));
        }
        let network = Joined::open(&spec.network)?;
        let sysctls = spec.sysctls.iter().map(|(name, value)| Sysctl::parse(name, value));
        let sysctls = sysctls.collect::<Result<Vec<_>>>()?;
        let (of_network, others): (Vec<_>, Vec<_>) = sysctls.into_iter().partition(|s| s.kind == Kind::Network);
        let not_its_own = others.iter().any(|s| match s.kind {
            Kind::Network => false,
            Kind::Ipc => spec.scopes.ipc == Scope::Node,
            Kind::Uts => spec.scopes.uts == Scope::Node,
        });
        if not_its_own || (network.namespace.is_none() && !of_network.is_empty()) {
            return Err(Error::InvalidArgument(
                "linux.sysctl: would change the node, whose namespaces the pod shares (hostNetwork, hostIPC)".into(),
            ));
        }
        set_in_network(&network, &of_network)?;
        Ok(Sandbox {
            network,
            hostname: spec.hostname,
            scopes: spec.scopes,
            sysctls: others,
            shared: OnceLock::new(),
            pids: OnceLock::new(),
            files,
            memory: OnceLock::new(),
            tenant: OnceLock::new(),
            runtime,
        })
    }

    /// The memory of all guests of the pod, whose limit is that of the pod's control group. `cgroups_path`: that of one
    /// of its containers. A read of a file of the kernel.
    pub fn memory(&self, cgroups_path: &str) -> Arc<PodMemory> {
        let path = cgroups_path.to_owned();
        let memory = self.memory.get_or_init(|| Arc::new(PodMemory::new(move || parent_memory_limit(&path))));
        memory.refresh();
        memory.clone()
    }

    /// The budget of its containers together, where each has these limits.
    pub fn tenant(&self, limits: &Limits) -> Arc<PodTenant> {
        self.tenant.get_or_init(|| Arc::new(PodTenant::new(limits))).clone()
    }

    /// Reads the limit of the pod's memory again.
    pub fn refresh_memory(&self) {
        if let Some(memory) = self.memory.get() {
            memory.refresh();
        }
    }

    /// The path by which a native container joins a namespace of the pod; `None` if it is the node's. Blocks if the
    /// namespace has to be made first.
    ///
    /// # Errors
    /// `InvalidArgument` for a kind that the pod has none of, `Internal` if the kernel gives none.
    pub fn namespace(&self, kind: &str) -> Result<Option<String>> {
        let ours = |file: &File| Ok(Some(format!("/proc/{}/fd/{}", pid(), file.as_raw_fd())));
        match (kind, self.scopes) {
            ("network", _) => match &self.network.named {
                NetworkNamespace::Path(path) => Ok(Some(path.display().to_string())),
                NetworkNamespace::Host | NetworkNamespace::New => Ok(None),
            },
            ("ipc", Scopes { ipc: Scope::Node, .. })
            | ("uts", Scopes { uts: Scope::Node, .. })
            | ("pid", Scopes { pid: Scope::Node, .. }) => Ok(None),
            ("ipc", _) => ours(&self.shared()?.ipc),
            ("uts", _) => ours(&self.shared()?.uts),
            ("pid", _) => ours(self.pids()?.namespace()),
            (kind, _) => Err(Error::InvalidArgument(format!(
                "a native container cannot share the {kind} namespace of a pod of Hearth's, which has no process; use another runtime class"
            ))),
        }
    }

    /// Checks that its network is still where CRI has put it: a container in a namespace without a path could not be
    /// reached.
    ///
    /// # Errors
    /// `FailedPrecondition` if it is not.
    pub fn check_network(&self) -> Result<()> {
        match (&self.network.named, &self.network.namespace) {
            (NetworkNamespace::Path(path), Some(namespace)) if !namespace.is_at(path) => {
                Err(Error::FailedPrecondition(format!(
                    "the pod's network namespace {} is gone; delete the pod, so that it is made anew",
                    path.display()
                )))
            }
            _ => Ok(()),
        }
    }

    fn shared(&self) -> Result<&Shared> {
        if let Some(shared) = self.shared.get() {
            return Ok(shared);
        }
        let made = Shared::new(&self.hostname, self.sysctls.clone())
            .map_err(|e| Error::Internal(format!("cannot make the pod's IPC and UTS namespaces: {e}")))?;
        // Of two made at once, one is kept.
        Ok(self.shared.get_or_init(|| made))
    }

    fn pids(&self) -> Result<&PidHolder> {
        if let Some(pids) = self.pids.get() {
            return Ok(pids);
        }
        let made = PidHolder::start(self.runtime.clone())
            .map_err(|e| Error::Internal(format!("cannot make the pod's pid namespace: {e}")))?;
        Ok(self.pids.get_or_init(|| made))
    }

    /// The mounts that a container lacks for the files of its pod, where CRI has not made them: `has` says whether it
    /// has a mount at a path.
    ///
    /// # Errors
    /// `Internal` if a mount cannot be made.
    pub async fn mounts(&self, read_only: bool, has: impl Fn(&str) -> bool) -> Result<Vec<SpecMount>> {
        match &self.files {
            Some(files) => files.mounts(read_only, has, &self.runtime).await,
            None => Ok(Vec::new()),
        }
    }

    /// As [`Sandbox::mounts`], for a thread that may block, and runs no tasks.
    ///
    /// # Errors
    /// As [`Sandbox::mounts`].
    pub fn mounts_blocking(&self, read_only: bool, has: impl Fn(&str) -> bool) -> Result<Vec<SpecMount>> {
        self.runtime.block_on(self.mounts(read_only, has))
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if let Some(files) = self.files.take() {
            // A mount and a few files: not on a thread that answers calls.
            self.runtime.spawn_blocking(move || drop(files));
        }
    }
}

/// Why a pod or a container is refused that asks for a user namespace.
pub(super) fn no_user_namespace() -> Error {
    Error::InvalidArgument(
        "a user namespace (hostUsers: false) is not available: guests run as users of the node; leave hostUsers out, or choose another runtime class"
            .into(),
    )
}

/// Applies settings in the pod's network namespace.
fn set_in_network(network: &Joined, sysctls: &[Sysctl]) -> Result<()> {
    if sysctls.is_empty() {
        return Ok(());
    }
    let identity = Identity::daemon_in(network.namespace.clone())?;
    let set = || sysctls.iter().try_for_each(Sysctl::write);
    let done = identity::bind_as(&identity, set)
        .map_err(|e| Error::Internal(format!("cannot enter the pod's network namespace: {e}")))?;
    done.map_err(|e| Error::FailedPrecondition(format!("linux.sysctl: {e}")))
}

/// A network that a task is in.
#[derive(Debug, Clone)]
pub struct Joined {
    /// As the spec of the pod's sandbox, or of the task, has it.
    pub named: NetworkNamespace,
    /// The namespace, kept alive; `None` for the node's.
    pub namespace: Option<Arc<NetNs>>,
    /// The process that holds it, if it was made for this task.
    pub holder: Option<Arc<Holder>>,
}

impl Joined {
    fn open(named: &NetworkNamespace) -> Result<Joined> {
        let namespace = match named {
            NetworkNamespace::Path(path) => Some(NetNs::open(path)?),
            NetworkNamespace::Host | NetworkNamespace::New => None,
        };
        Ok(Joined { named: named.clone(), namespace, holder: None })
    }

    /// The pid whose `/proc` leads to it: its holder's, else the daemon's.
    pub fn pid(&self) -> u32 {
        self.holder.as_ref().map_or_else(pid, |holder| holder.pid())
    }
}

/// The network of a task: its own spec's, or that of the pod it belongs to, `sandbox`.
///
/// # Errors
/// `InvalidArgument` if what the spec names is no network namespace, `Internal` if none can be made, and as
/// [`Sandbox::check_network`].
pub async fn network(spec: &TaskSpec, sandbox: Option<&Arc<Sandbox>>, holders: &Arc<Holders>) -> Result<Joined> {
    match (sandbox, &spec.network) {
        (Some(sandbox), NetworkNamespace::Path(_) | NetworkNamespace::New) => {
            sandbox.check_network()?;
            Ok(sandbox.network.clone())
        }
        // A cell has entered its pod's network, or made it, and stays in it.
        (_, NetworkNamespace::New) if holders.is_this_process() => {
            Ok(Joined { named: NetworkNamespace::New, namespace: None, holder: None })
        }
        (_, NetworkNamespace::New) => {
            let holder = holders.take().await?;
            let namespace = Some(holder.namespace().clone());
            Ok(Joined { named: NetworkNamespace::New, namespace, holder: Some(Arc::new(holder)) })
        }
        (_, own) => Joined::open(own),
    }
}
