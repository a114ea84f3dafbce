//! The files of a pod that are mounted in its containers: `/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf` and
//! `/dev/shm`. For a pause container, CRI makes them (internal/cri/server/podsandbox/sandbox_run_linux.go of
//! containerd); for a pod of the sandbox controller they are made here. A file that kubelet mounts itself, such as
//! `/etc/hosts`, is left out.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::mount::MountFlags;
use tokio::runtime::Handle;
use tokio::sync::OnceCell;

use hearth_base::bundle::SpecMount;
use hearth_base::error::{Error, Result};
use hearth_os::mount::{self, Mounted};

/// The contents of a pod's resolv.conf.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    /// Addresses of name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// E.g. `ndots:5`.
    pub options: Vec<String>,
}

impl Dns {
    /// As CRI writes it.
    fn text(&self) -> String {
        let mut text = String::new();
        if !self.searches.is_empty() {
            text += &format!("search {}\n", self.searches.join(" "));
        }
        for server in &self.servers {
            text += &format!("nameserver {server}\n");
        }
        if !self.options.is_empty() {
            text += &format!("options {}\n", self.options.join(" "));
        }
        text
    }
}

/// The size of a pod's `/dev/shm`, in bytes: CRI's.
const SHM_BYTES: u64 = 64 << 20;

/// Where `/dev/shm` is, in the directory.
const SHM: &str = "shm";

/// The files and where containers have them.
const FILES: [(&str, &str); 3] =
    [("hosts", "/etc/hosts"), ("hostname", "/etc/hostname"), ("resolv.conf", "/etc/resolv.conf")];

/// The files. Dropping it removes them.
pub struct PodFiles {
    directory: PathBuf,
    /// Mounted for the first container. Its mount runs on the blocking pool; other containers of the pod wait for
    /// it, and no other pod does.
    shm: Arc<OnceCell<Mounted>>,
}

impl PodFiles {
    /// Writes them into `directory`, which is made. An empty host name stands for the node's, no DNS settings
    /// for the node's own resolv.conf.
    ///
    /// # Errors
    /// `Internal` naming the file.
    pub fn write(directory: PathBuf, hostname: &str, dns: Option<&Dns>) -> Result<PodFiles> {
        let failed =
            |what: &Path, e: std::io::Error| Error::Internal(format!("the pod's files: {}: {e}", what.display()));
        std::fs::create_dir_all(directory.join(SHM)).map_err(|e| failed(&directory, e))?;
        // From here on a failure removes it.
        let files = PodFiles { directory, shm: Arc::default() };
        let node = |path: &str| std::fs::read(path).map_err(|e| failed(Path::new(path), e));
        let hostname = match hostname {
            "" => rustix::system::uname().nodename().to_string_lossy().into_owned(),
            hostname => hostname.to_owned(),
        };
        let resolver = match dns {
            Some(dns) => dns.text().into_bytes(),
            None => node("/etc/resolv.conf")?,
        };
        for ((name, _), bytes) in FILES.into_iter().zip([node("/etc/hosts")?, format!("{hostname}\n").into(), resolver])
        {
            let path = files.directory.join(name);
            std::fs::write(&path, bytes).map_err(|e| failed(&path, e))?;
        }
        Ok(files)
    }

    /// The mounts of the files that a container lacks: `has` says whether it has a mount at a path. `/dev/shm` is
    /// mounted on the blocking pool of `runtime`.
    ///
    /// # Errors
    /// `Internal` if `/dev/shm` cannot be mounted.
    pub async fn mounts(
        &self,
        read_only: bool,
        has: impl Fn(&str) -> bool,
        runtime: &Handle,
    ) -> Result<Vec<SpecMount>> {
        let bind = |source: PathBuf, destination: &str, access: &str| SpecMount {
            destination: destination.into(),
            fstype: "bind".into(),
            source: source.display().to_string(),
            options: ["rbind", "rprivate", access].map(String::from).to_vec(),
        };
        let access = if read_only { "ro" } else { "rw" };
        let missing = FILES.iter().filter(|(_, destination)| !has(destination));
        let mut mounts: Vec<_> =
            missing.map(|(name, destination)| bind(self.directory.join(name), destination, access)).collect();
        if !has("/dev/shm") {
            mounts.push(bind(self.shm(runtime).await?, "/dev/shm", "rw"));
        }
        Ok(mounts)
    }

    async fn shm(&self, runtime: &Handle) -> Result<PathBuf> {
        let path = self.directory.join(SHM);
        let (shm, target) = (self.shm.clone(), path.clone());
        let mount = || async {
            let made = tokio::task::spawn_blocking(move || {
                let flags = MountFlags::NOEXEC | MountFlags::NOSUID | MountFlags::NODEV;
                let data = ["mode=1777".to_owned(), format!("size={SHM_BYTES}")];
                mount::filesystem("tmpfs", "shm", &target, flags, &data)
            });
            let made = made.await.map_err(|e| Error::Internal(format!("mounting ended early: {e}")))?;
            made.map_err(|e| Error::Internal(format!("the pod's /dev/shm: {e}")))
        };
        // In a task of its own: a caller that disconnects does not undo the mount that another container waits for.
        let mounted = runtime.spawn(async move { shm.get_or_try_init(mount).await.map(|_| ()) }).await;
        mounted.map_err(|e| Error::Internal(format!("mounting ended early: {e}")))??;
        Ok(path)
    }
}

impl Drop for PodFiles {
    fn drop(&mut self) {
        // Shared only while a mount is under way, whose task then undoes it.
        if let Some(mounted) = Arc::get_mut(&mut self.shm).and_then(OnceCell::take)
            && let Err(error) = mounted.unmount()
        {
            tracing::debug!(%error, directory = %self.directory.display(), "a pod's /dev/shm was still in use");
        }
        if let Err(error) = std::fs::remove_dir_all(&self.directory) {
            tracing::warn!(%error, directory = %self.directory.display(), "a pod's files were left behind");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hearth_testing::{in_namespace, mounts_below};

    #[tokio::test]
    async fn a_pods_names_are_written_as_cri_writes_them() {
        let directory = tempfile::tempdir().unwrap();
        let words = |text: &str| text.split(' ').map(String::from).collect::<Vec<_>>();
        let dns = Dns { servers: words("10.0.0.1 10.0.0.2"), searches: words("a.b b"), options: words("ndots:5") };
        let path = directory.path().join("pod");
        let files = PodFiles::write(path.clone(), "web", Some(&dns)).unwrap();
        let text = |name: &str| std::fs::read_to_string(path.join(name)).unwrap();
        assert_eq!(text("resolv.conf"), "search a.b b\nnameserver 10.0.0.1\nnameserver 10.0.0.2\noptions ndots:5\n");
        assert_eq!(text("hostname"), "web\n");
        assert_eq!(text("hosts"), std::fs::read_to_string("/etc/hosts").unwrap());
        // Those that kubelet mounts stay its own.
        let has = |path: &str| matches!(path, "/etc/hosts" | "/dev/shm");
        let mounts = files.mounts(true, has, &Handle::current()).await.unwrap();
        let places: Vec<_> = mounts.iter().map(|mount| mount.destination.to_str().unwrap()).collect();
        assert_eq!(places, ["/etc/hostname", "/etc/resolv.conf"]);
        assert_eq!(mounts[0].options, ["rbind", "rprivate", "ro"]);
        drop(files);
        assert!(!path.exists());
    }

    #[test]
    fn dev_shm_is_mounted_once_for_all_containers_of_a_pod() {
        in_namespace(|base| {
            let files = PodFiles::write(base.join("pod"), "web", None).unwrap();
            // Its blocking threads are started by this thread, and so they have its mount namespace.
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let has = |path: &str| path != "/dev/shm";
            let handle = runtime.handle();
            let (one, two) = runtime
                .block_on(async { tokio::join!(files.mounts(true, has, handle), files.mounts(false, has, handle)) });
            let sources = [one, two].map(|mounts| mounts.unwrap()[0].source.clone());
            assert_eq!(sources, [0, 1].map(|_| base.join("pod/shm").display().to_string()));
            assert_eq!(mounts_below(base), ["pod/shm"]);
            drop(files);
            assert_eq!(mounts_below(base), Vec::<String>::new());
            assert!(!base.join("pod").exists());
        });
    }

    #[test]
    fn without_dns_settings_the_nodes_hold() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pod");
        let _files = PodFiles::write(path.clone(), "", None).unwrap();
        assert_eq!(std::fs::read(path.join("resolv.conf")).unwrap(), std::fs::read("/etc/resolv.conf").unwrap());
        assert!(std::fs::read_to_string(path.join("hostname")).unwrap().len() > 1);
    }
}
