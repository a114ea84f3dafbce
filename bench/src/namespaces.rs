//! Linux namespaces of this program: a private mount namespace, and network namespaces that stand
//! for pods'. Both end with the process.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use nix::sched::CloneFlags;
use rustix::mount::MountPropagationFlags;

/// Moves this process into a mount namespace of its own, a slave of the machine's: only child processes see mounts made
/// here, and the mounts are gone with the last of them.
///
/// To be called before any thread is started, which would stay behind.
///
/// # Errors
/// Without root: one line that says so.
pub fn enter_private_mount_namespace() -> Result<()> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNS)
        .context("cannot make a private mount namespace, which the CRI-like bundles and hearthd need: run as root")?;
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", flags).context("cannot make the mount namespace private")
}

/// A network namespace that exists as long as this value, held by a parked thread.
pub struct PodNetwork {
    path: PathBuf,
    /// Dropped to let the thread go.
    release: Option<mpsc::Sender<()>>,
    holder: Option<JoinHandle<()>>,
}

impl PodNetwork {
    /// Makes a network namespace.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn new() -> Result<PodNetwork> {
        let (release, parked) = mpsc::channel::<()>();
        let (made, result) = mpsc::channel();
        let holder = std::thread::Builder::new()
            .name("pod network".into())
            .spawn(move || {
                let namespace =
                    nix::sched::unshare(CloneFlags::CLONE_NEWNET).map(|()| rustix::thread::gettid().as_raw_nonzero());
                let _ = made.send(namespace);
                // Until the sender is dropped.
                let _ = parked.recv();
            })
            .context("cannot start a thread for a pod's network namespace")?;
        let thread = result
            .recv()
            .context("the thread of a pod's network namespace ended")?
            .context("cannot make a network namespace for a pod: run as root")?;
        let path = format!("/proc/{}/task/{thread}/ns/net", std::process::id());
        Ok(PodNetwork { path: path.into(), release: Some(release), holder: Some(holder) })
    }

    /// A path that names the namespace, for a spec.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for PodNetwork {
    fn drop(&mut self) {
        drop(self.release.take());
        if let Some(holder) = self.holder.take() {
            let _ = holder.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_network_is_another_than_ours_and_ends_with_its_value() {
        let network = PodNetwork::new().unwrap();
        let ours = std::fs::read_link("/proc/self/ns/net").unwrap();
        assert_ne!(std::fs::read_link(network.path()).unwrap(), ours);
        let path = network.path().to_owned();
        drop(network);
        assert!(std::fs::read_link(path).is_err());
    }
}
