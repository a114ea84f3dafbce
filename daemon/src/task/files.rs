//! The life of a task's root file system: mounted while Create is answered, waited for by the guest, unmounted when the
//! task has ended.
//!
//! ```text
//!   Mounting ──▶ Ready ──▶ Gone          release() before Ready: the mount job undoes its own work
//!       └──────▶ Failed
//! ```

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::task::root::{Plan, Root};
use hearth_base::error::{Error, Result};
use hearth_observe::metrics::{Metrics, Phase};
use hearth_observe::starts::About;

/// A task's root.
pub struct Files {
    phase: watch::Sender<MountPhase>,
    root: Mutex<RootState>,
    path: PathBuf,
    runtime: tokio::runtime::Handle,
}

#[derive(Debug, Clone)]
enum MountPhase {
    Mounting,
    Ready,
    Failed(Error),
    Gone,
}

enum RootState {
    /// The mount job is under way, or there is nothing to unmount.
    Nothing,
    Root(Root),
    Released,
}

impl Files {
    /// A root that is already mounted.
    pub fn ready(root: Root, runtime: tokio::runtime::Handle) -> Arc<Files> {
        let path = root.path().to_path_buf();
        Arc::new(Files {
            phase: watch::Sender::new(MountPhase::Ready),
            root: Mutex::new(RootState::Root(root)),
            path,
            runtime,
        })
    }

    /// No root, for a task that runs nothing.
    pub fn none(runtime: tokio::runtime::Handle) -> Arc<Files> {
        Arc::new(Files {
            phase: watch::Sender::new(MountPhase::Gone),
            root: Mutex::new(RootState::Released),
            path: PathBuf::new(),
            runtime,
        })
    }

    /// Whether there never was one: [`Files::none`].
    pub fn is_none(&self) -> bool {
        self.path.as_os_str().is_empty()
    }

    /// Begins to mount; returns at once. A root without mounts is ready at once.
    pub fn mount(plan: Plan, about: Arc<About>, metrics: Arc<Metrics>, runtime: tokio::runtime::Handle) -> Arc<Files> {
        let bare = plan.is_bare();
        let files = Arc::new(Files {
            phase: watch::Sender::new(MountPhase::Mounting),
            root: Mutex::new(RootState::Nothing),
            path: plan.path().to_path_buf(),
            runtime,
        });
        let theirs = files.clone();
        let job = move || {
            let began = Instant::now();
            let phase = match plan.perform(&metrics) {
                Ok(root) => {
                    about.phase(&metrics, Phase::Mounts, began, began.elapsed());
                    theirs.keep(root)
                }
                Err(error) => MountPhase::Failed(error),
            };
            theirs.phase.send_replace(phase);
        };
        if bare {
            job();
        } else {
            files.runtime.spawn_blocking(job);
        }
        files
    }

    /// Keeps a fresh root, or undoes it at once if the task has ended by now.
    fn keep(&self, root: Root) -> MountPhase {
        let mut held = self.root.lock();
        if matches!(*held, RootState::Released) {
            drop(held);
            drop(root);
            return MountPhase::Gone;
        }
        *held = RootState::Root(root);
        MountPhase::Ready
    }

    /// Where the root is, once [`Files::wait_ready`] has said so.
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// Whether the root can be used already.
    pub fn is_ready(&self) -> bool {
        matches!(*self.phase.borrow(), MountPhase::Ready)
    }

    /// Waits until the root can be used.
    ///
    /// # Errors
    /// Why it could not be mounted, or that it has been released.
    pub async fn wait_ready(&self) -> Result<()> {
        let mut phase = self.phase.subscribe();
        let gone = || Error::FailedPrecondition("the task has ended".into());
        let now = phase.wait_for(|phase| !matches!(phase, MountPhase::Mounting)).await.map_err(|_| gone())?;
        match &*now {
            MountPhase::Failed(error) => Err(error.clone()),
            MountPhase::Gone => Err(gone()),
            MountPhase::Ready | MountPhase::Mounting => Ok(()),
        }
    }

    /// Begins to unmount; returns at once. Doing it again does nothing.
    pub fn release(self: &Arc<Self>) {
        let held = std::mem::replace(&mut *self.root.lock(), RootState::Released);
        match held {
            RootState::Root(root) if root.is_bare() => {
                self.phase.send_replace(MountPhase::Gone);
            }
            RootState::Root(root) => {
                let files = self.clone();
                self.runtime.spawn_blocking(move || {
                    if let Err(error) = root.unmount() {
                        tracing::warn!(path = %files.path.display(), %error, "cannot unmount a task's root; it was detached");
                    }
                    files.phase.send_replace(MountPhase::Gone);
                });
            }
            RootState::Nothing | RootState::Released => {}
        }
    }

    /// Waits until nothing is mounted; only after [`Files::release`].
    pub async fn wait_gone(&self) {
        let mut phase = self.phase.subscribe();
        let _ = phase.wait_for(|phase| matches!(phase, MountPhase::Gone | MountPhase::Failed(_))).await;
    }
}
