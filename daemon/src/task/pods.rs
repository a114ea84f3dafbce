//! The pods of one containerd instance and namespace, and those among them that the sandbox controller of
//! containerd 2.x has made, which are not tasks.
//!
//! ```text
//!   Create ──▶ Created ── Start ──▶ Ready ── Stop ──▶ Ended ── Shutdown ──▶ forgotten
//!                 └───────────── Stop ─────────────────▲
//! ```
//!
//! A pod that has ended holds nothing of the node any more: not its network namespace, nor its files. One that
//! is being created undoes itself if that fails. If the daemon dies, its pods are not found by the next one,
//! and Kubernetes makes them anew.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::task::map::{self, TaskMap};
use crate::task::pod_files::{Dns, PodFiles};
use crate::task::sandbox::{Membership, Sandbox, SandboxSpec};
use crate::task::{Task, pid};
use hearth_base::bundle::{Role, TaskSpec};
use hearth_base::error::{Error, Result};
use hearth_base::namespace::ContainerdNamespace;
use hearth_base::operator::{PodName, TaskInfo, TaskKind};
use hearth_base::time::unix;

/// The pods.
pub struct Sandboxes {
    tasks: Arc<TaskMap>,
    /// The pods that are no tasks.
    pods: Mutex<HashMap<String, Arc<Pod>>>,
    /// Where their files lie.
    directory: PathBuf,
    /// How many directories have been made in it: those of a pod may still be there when its id is used again.
    made: AtomicU64,
    runtime: Handle,
}

/// The pod that a Create call describes.
#[derive(Debug, Clone, Default)]
pub struct PodSpec {
    /// Its namespaces.
    pub sandbox: SandboxSpec,
    /// The content of its resolv.conf; `None` for the node's.
    pub dns: Option<Dns>,
    /// Its name in Kubernetes.
    pub name: Option<PodName>,
}

/// A pod that is no task.
pub struct Pod {
    /// When it was created.
    pub created_at: SystemTime,
    name: Option<PodName>,
    /// `None` once it has ended.
    sandbox: Mutex<Option<Arc<Sandbox>>>,
    phase: watch::Sender<PodPhase>,
    /// Keeps the id from tasks and other pods, and counts against the limit of tasks.
    _taken: map::Reservation,
}

/// The phases of a pod's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodPhase {
    /// It takes no containers yet.
    Created,
    /// It takes containers.
    Ready,
    /// It has been stopped.
    Ended(SystemTime),
}

impl Sandboxes {
    /// No pods yet. `directory` is made when it is needed; jobs that block run on `runtime`.
    pub fn new(tasks: Arc<TaskMap>, directory: PathBuf, runtime: Handle) -> Arc<Sandboxes> {
        Arc::new(Sandboxes { tasks, pods: Mutex::default(), directory, made: AtomicU64::new(0), runtime })
    }

    /// The sandbox with this id, whether it is a task or was made by the sandbox controller.
    ///
    /// # Errors
    /// `FailedPrecondition` if it is not here or has been stopped.
    pub fn get(&self, id: &str) -> Result<Arc<Sandbox>> {
        if let Ok(pod) = self.pod(id) {
            let sandbox = pod.sandbox.lock().clone();
            return sandbox
                .ok_or_else(|| Error::FailedPrecondition(format!("the pod's sandbox {id} has been stopped")));
        }
        match self.tasks.get(id).map(|task| task.container.pod.clone()) {
            Ok(Membership::Sandbox(sandbox)) => Ok(sandbox),
            Ok(_) | Err(_) => Err(Error::FailedPrecondition(format!(
                "the pod's sandbox {id} is not here (was hearthd restarted?); delete the pod, so that it is made anew"
            ))),
        }
    }

    /// The sandbox of the pod that a container belongs to, if it belongs to one.
    ///
    /// # Errors
    /// As [`Sandboxes::get`].
    pub fn of(&self, spec: &TaskSpec) -> Result<Option<Arc<Sandbox>>> {
        match &spec.role {
            Role::InSandbox(id) => self.get(id).map(Some),
            Role::Alone | Role::Sandbox => Ok(None),
        }
    }

    /// The pod with this id, made here by [`Sandboxes::create`].
    ///
    /// # Errors
    /// `NotFound` if there is none.
    pub fn pod(&self, id: &str) -> Result<Arc<Pod>> {
        let pod = self.pods.lock().get(id).cloned();
        pod.ok_or_else(|| Error::NotFound(format!("sandbox {id} not found")))
    }

    /// Makes a pod.
    ///
    /// # Errors
    /// `AlreadyExists` if the id is taken, `ResourceExhausted` if there are too many tasks and pods, and as
    /// [`Sandbox::new`] and [`PodFiles::write`]. Nothing is left then.
    pub async fn create(&self, id: &str, spec: PodSpec) -> Result<()> {
        if id.is_empty() {
            return Err(Error::InvalidArgument("the sandbox has no id".into()));
        }
        let taken = self.tasks.reserve(id)?;
        let directory = self.directory.join(self.made.fetch_add(1, Ordering::Relaxed).to_string());
        let (runtime, name) = (self.runtime.clone(), spec.name);
        let make = move || {
            let files = PodFiles::write(directory, &spec.sandbox.hostname, spec.dns.as_ref())?;
            Sandbox::new(spec.sandbox, Some(files), runtime)
        };
        let made = self.runtime.spawn_blocking(make).await;
        let sandbox = made.map_err(|e| Error::Internal(format!("making a sandbox ended early: {e}")))??;
        let pod = Pod {
            created_at: SystemTime::now(),
            name,
            sandbox: Mutex::new(Some(Arc::new(sandbox))),
            phase: watch::Sender::new(PodPhase::Created),
            _taken: taken,
        };
        self.pods.lock().insert(id.to_owned(), Arc::new(pod));
        Ok(())
    }

    /// Ends the pod's guests and releases everything it holds. A second call changes nothing. Returns the sandbox, by
    /// which the pod's native containers are found.
    ///
    /// # Errors
    /// `NotFound` if there is no such pod.
    pub fn stop(&self, id: &str) -> Result<Option<Arc<Sandbox>>> {
        /// SIGKILL of `kill(2)`.
        const KILL: u32 = 9;
        let pod = self.pod(id)?;
        let sandbox = pod.sandbox.lock().take();
        if let Some(sandbox) = &sandbox {
            for task in self.tasks_in(sandbox) {
                // A task that has ended needs no kill.
                let _ = task.init.kill(KILL);
            }
        }
        pod.end();
        Ok(sandbox)
    }

    /// As [`Sandboxes::stop`], and forgets the pod.
    ///
    /// # Errors
    /// `NotFound` if there is no such pod.
    pub fn shut_down(&self, id: &str) -> Result<Option<Arc<Sandbox>>> {
        let sandbox = self.stop(id)?;
        self.pods.lock().remove(id);
        Ok(sandbox)
    }

    /// Ends all of them; for a stop of the daemon.
    pub fn end_all(&self) {
        let pods: Vec<_> = self.pods.lock().values().cloned().collect();
        for pod in pods {
            pod.sandbox.lock().take();
            pod.end();
        }
    }

    /// All pods that are no tasks, as operators see them.
    pub fn infos(&self, namespace: &ContainerdNamespace, generation: &str) -> Vec<TaskInfo> {
        let pods = self.pods.lock();
        pods.iter().map(|(id, pod)| pod.info(namespace, id, generation)).collect()
    }

    /// The tasks of a pod, without its sandbox.
    pub fn tasks_in(&self, sandbox: &Arc<Sandbox>) -> Vec<Arc<Task>> {
        let is_in = |task: &Arc<Task>| matches!(&task.container.pod, Membership::In(pod) if Arc::ptr_eq(pod, sandbox));
        self.tasks.all().into_iter().filter(is_in).collect()
    }
}

impl Pod {
    /// Makes it ready.
    ///
    /// # Errors
    /// `FailedPrecondition` if it has been started or stopped.
    pub fn start(&self) -> Result<()> {
        let started = self.phase.send_if_modified(|phase| {
            let created = *phase == PodPhase::Created;
            if created {
                *phase = PodPhase::Ready;
            }
            created
        });
        if started { Ok(()) } else { Err(Error::FailedPrecondition("the sandbox has been started before".into())) }
    }

    fn info(&self, namespace: &ContainerdNamespace, id: &str, generation: &str) -> TaskInfo {
        let (state, exit_status) = match self.phase() {
            PodPhase::Created => ("created", None),
            PodPhase::Ready => ("running", None),
            PodPhase::Ended(_) => ("stopped", Some(0)),
        };
        TaskInfo {
            generation: generation.to_owned(),
            namespace: namespace.to_string(),
            id: id.to_owned(),
            kind: TaskKind::Sandbox,
            pod: self.name.clone(),
            state: state.into(),
            exit_status,
            pid: pid(),
            created_at: unix(self.created_at),
            ..TaskInfo::default()
        }
    }

    fn end(&self) {
        self.phase.send_if_modified(|phase| {
            let lives = !matches!(phase, PodPhase::Ended(_));
            if lives {
                *phase = PodPhase::Ended(SystemTime::now());
            }
            lives
        });
    }

    /// Its phase now.
    pub fn phase(&self) -> PodPhase {
        *self.phase.borrow()
    }

    /// The sandbox that its containers share; `None` once it has ended.
    pub fn sandbox(&self) -> Option<Arc<Sandbox>> {
        self.sandbox.lock().clone()
    }

    /// Waits for its end, and returns the time of it.
    pub async fn ended(&self) -> SystemTime {
        let mut phase = self.phase.subscribe();
        // The sender lives as long as the pod.
        match phase.wait_for(|phase| matches!(phase, PodPhase::Ended(_))).await.map(|phase| *phase) {
            Ok(PodPhase::Ended(at)) => at,
            _ => SystemTime::now(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::map::TaskCount;

    fn sandboxes(directory: &tempfile::TempDir) -> Arc<Sandboxes> {
        Sandboxes::new(TaskMap::new(TaskCount::new(2)), directory.path().join("pods"), Handle::current())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_pod_lives_once() {
        let directory = tempfile::tempdir().unwrap();
        let all = sandboxes(&directory);
        all.create("a", PodSpec::default()).await.unwrap();
        assert!(matches!(all.create("a", PodSpec::default()).await, Err(Error::AlreadyExists(_))));
        all.create("b", PodSpec::default()).await.unwrap();
        assert!(matches!(all.create("c", PodSpec::default()).await, Err(Error::ResourceExhausted(_))));
        let pod = all.pod("a").unwrap();
        assert_eq!(pod.phase(), PodPhase::Created);
        pod.start().unwrap();
        assert!(matches!(pod.start(), Err(Error::FailedPrecondition(_))));
        let waiting = tokio::spawn({
            let pod = pod.clone();
            async move { pod.ended().await }
        });
        all.stop("a").unwrap();
        let at = waiting.await.unwrap();
        assert_eq!(pod.phase(), PodPhase::Ended(at));
        all.stop("a").unwrap();
        assert_eq!(pod.ended().await, at, "a second stop changes nothing");
        assert!(matches!(all.get("a"), Err(Error::FailedPrecondition(_))));
        assert!(matches!(pod.start(), Err(Error::FailedPrecondition(_))));
        drop(pod);
        all.shut_down("a").unwrap();
        assert!(matches!(all.stop("a"), Err(Error::NotFound(_))));
        all.create("a", PodSpec::default()).await.unwrap();
        all.end_all();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_pod_with_a_user_namespace_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let all = sandboxes(&directory);
        let sandbox = SandboxSpec { user_namespace: true, ..SandboxSpec::default() };
        let error = all.create("a", PodSpec { sandbox, ..PodSpec::default() }).await.unwrap_err();
        assert!(matches!(&error, Error::InvalidArgument(text) if text.contains("hostUsers")), "{error}");
        assert!(matches!(all.pod("a"), Err(Error::NotFound(_))));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_cannot_be_made_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let all = sandboxes(&directory);
        let network = hearth_base::bundle::NetworkNamespace::Path("/absent/netns".into());
        let spec = PodSpec { sandbox: SandboxSpec { network, ..Default::default() }, ..PodSpec::default() };
        let error = all.create("a", spec).await.unwrap_err().to_string();
        assert!(error.contains("/absent/netns"), "{error}");
        assert_eq!(std::fs::read_dir(directory.path().join("pods")).unwrap().count(), 0);
        all.create("a", PodSpec::default()).await.unwrap();
    }
}
