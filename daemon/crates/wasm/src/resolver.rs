//! How guests' names are looked up: by the pod's `/etc/hosts` and `/etc/resolv.conf`, through the pod's network.
//!
//! wasmtime-wasi's own look-up is getaddrinfo(3), which reads the *node's* files and asks from the node's network. Here
//! both files are read inside the guest's root at each look-up, so that a change is seen and nothing is kept for idle
//! guests, and the sockets of the questions are made in the guest's network namespace. [`hearth_names`] decides which
//! server gets which question.
//!
//! A guest decides how often it asks. A container may have `tenant.lookups_max` look-ups under way, so that one
//! with a silent name server delays only its own; the node's bound (`network.lookups_max`) limits sockets, is shared fairly
//! and is taken second. Each look-up has a deadline and ends when its guest drops the stream. Addresses and names of the hosts file
//! wait for neither bound.
//!
//! Without a resolv.conf, names that `/etc/hosts` does not have cannot be resolved: the node's file would tell a pod the
//! node's names.

use std::io::{self, Read};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hearth_names::{Family, Files, Network, Source, literal};
use rustix::fs::{FileType, OFlags};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use hearth_base::config;
use hearth_base::tenant::{Kind, Tenant};
use hearth_os::identity::{self, Identity};
use hearth_os::in_root::RootDir;

use crate::places::{Claim, Places};

pub use hearth_names::Unresolved;

/// The largest `/etc/hosts` or `/etc/resolv.conf` that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Looks up names for all guests of the daemon.
pub struct Resolvers {
    under_way: Arc<Places>,
    deadline: Duration,
    runtime: Handle,
}

impl Resolvers {
    /// Look-ups run on `runtime`.
    pub fn new(config: &config::Network, runtime: Handle) -> Arc<Resolvers> {
        Arc::new(Resolvers {
            under_way: Places::new(config.lookups_max),
            deadline: Duration::from_millis(config.lookup_timeout_ms),
            runtime,
        })
    }

    /// The names that a process with this root and identity can look up, of the container with this budget.
    pub fn names(self: &Arc<Self>, root: PathBuf, identity: Identity, tenant: Arc<Tenant>) -> Names {
        Names { resolvers: self.clone(), root, identity, tenant, claim: Arc::default() }
    }
}

/// The names of one process.
#[derive(Clone)]
pub struct Names {
    resolvers: Arc<Resolvers>,
    /// The guest's root on the host.
    pub root: PathBuf,
    /// The guest's identity: questions are sent from its network.
    pub identity: Identity,
    /// The container's budget.
    pub tenant: Arc<Tenant>,
    /// Made at the first look-up: most processes make none.
    claim: Arc<OnceLock<Arc<Claim>>>,
}

impl Names {
    /// The addresses of a name, or the address that it is.
    ///
    /// # Errors
    /// Why there are none.
    pub async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, Unresolved> {
        if let Some(address) = literal(name)? {
            return Ok(vec![address]);
        }
        let answer = tokio::time::timeout(self.resolvers.deadline, self.resolve(name)).await;
        let found = answer.unwrap_or(Err(Unresolved::Late));
        found.inspect_err(|why| tracing::debug!(name, %why, "a guest's name was not resolved"))
    }

    /// The same on the resolvers' runtime.
    pub(crate) fn ask(&self, name: String) -> LookUp {
        let names = self.clone();
        LookUp(self.resolvers.runtime.spawn(async move { names.addresses(&name).await }))
    }

    async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, Unresolved> {
        let root = self.root.clone();
        // A volume may hang: the files are read on a thread that may wait.
        let read = tokio::task::spawn_blocking(move || read_files(&root)).await;
        let files = read.map_err(|_| Unresolved::Temporary)?.map_err(|error| {
            tracing::debug!(%error, "a guest's resolver files cannot be read");
            Unresolved::Permanent
        })?;
        for problem in files.problems() {
            tracing::debug!(problem, "a line of a guest's resolver files is ignored");
        }
        let network = InNetwork { identity: self.identity.clone() };
        let resolver = hearth_names::Resolver::new(files, network, self.resolvers.deadline);
        let known = resolver.known(name).await;
        if !known.is_empty() {
            return Ok(known);
        }
        let _permit = self.tenant.wait(Kind::Lookups, 1).await;
        let _place = self.claim.get_or_init(|| self.resolvers.under_way.join()).take().await;
        resolver.asked(name).await
    }
}

/// A look-up that ends when this is dropped.
pub(crate) struct LookUp(JoinHandle<Result<Vec<IpAddr>, Unresolved>>);

impl LookUp {
    pub(crate) async fn answer(&mut self) -> Result<Vec<IpAddr>, Unresolved> {
        (&mut self.0).await.unwrap_or(Err(Unresolved::Temporary))
    }
}

impl Drop for LookUp {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The hosts file and the resolv.conf of a root. Blocks.
fn read_files(root: &Path) -> io::Result<Files> {
    let root = RootDir::open(root)?;
    let hosts = read(&root, "/etc/hosts")?;
    // Names of the hosts file are found without it, whatever is wrong with it.
    let resolv_conf = read(&root, "/etc/resolv.conf").unwrap_or_else(|error| {
        tracing::debug!(%error, "a guest's resolv.conf cannot be read");
        None
    });
    Ok(Files::parse(hosts.as_deref(), resolv_conf.as_deref(), None))
}

/// A regular file inside the guest's root; none if there is none. Blocks.
///
/// # Errors
/// If it cannot be read, is no regular file, or is too large.
pub fn read(root: &RootDir, path: &str) -> io::Result<Option<Vec<u8>>> {
    let found = match root.resolve(Path::new(path)) {
        Ok(found) => found,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    // Opening a FIFO or a device could wait or act.
    if FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::other(format!("{path} is not a regular file")));
    }
    let again = format!("/proc/self/fd/{}", found.as_raw_fd());
    let file = rustix::fs::open(again, OFlags::RDONLY | OFlags::CLOEXEC, rustix::fs::Mode::empty())?;
    let mut bytes = Vec::new();
    std::fs::File::from(file).take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("{path} is over {FILE_BYTES_MAX} bytes")));
    }
    Ok(Some(bytes))
}

/// Makes sockets in a guest's network.
pub struct InNetwork {
    identity: Identity,
}

impl InNetwork {
    /// Runs `make` in the network of `identity`. A socket stays in the namespace in which it was made.
    ///
    /// # Errors
    /// Those of `make`, or of taking on the identity.
    pub async fn make<T: Send + 'static>(
        identity: Identity,
        make: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        tokio::task::spawn_blocking(move || identity::bind_as(&identity, make)?).await.map_err(io::Error::other)?
    }
}

impl Network for InNetwork {
    async fn datagram(&self, family: Family) -> io::Result<UdpSocket> {
        let any = match family {
            Family::V4 => IpAddr::from([0; 4]),
            Family::V6 => IpAddr::from([0; 16]),
        };
        let socket = InNetwork::make(self.identity.clone(), move || std::net::UdpSocket::bind((any, 0))).await?;
        socket.set_nonblocking(true)?;
        UdpSocket::from_std(socket)
    }

    async fn stream(&self, family: Family) -> io::Result<TcpSocket> {
        // Registered with the runtime's epoll by the job, which runs inside the runtime.
        let make = move || match family {
            Family::V4 => TcpSocket::new_v4(),
            Family::V6 => TcpSocket::new_v6(),
        };
        InNetwork::make(self.identity.clone(), make).await
    }

    async fn sources(&self, destinations: Vec<IpAddr>) -> io::Result<Vec<Option<Source>>> {
        InNetwork::make(self.identity.clone(), move || Ok(Source::of(&destinations))).await
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use hearth_base::tenant::Limits;

    use super::*;

    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        for (name, text) in files {
            fs::write(root.path().join("etc").join(name), text).unwrap();
        }
        root
    }

    const OWN_MAX: u64 = 4;

    fn container() -> Arc<Tenant> {
        Tenant::unnamed(&Limits::none().with(Kind::Lookups, OWN_MAX))
    }

    fn names(root: &tempfile::TempDir) -> Names {
        let resolvers = Resolvers::new(&config::Network::default(), Handle::current());
        resolvers.names(root.path().to_path_buf(), Identity::default(), container())
    }

    #[tokio::test]
    async fn the_hosts_file_is_read_at_each_look_up_and_waits_for_no_bound() {
        let root = root(&[
            ("hosts", "127.0.0.1 localhost\n10.1.2.3 peer peer.pod\n"),
            ("resolv.conf", "nameserver 192.0.2.1\n"),
        ]);
        let names = names(&root);
        // All look-ups that may be under way are.
        let greedy = names.resolvers.under_way.join();
        let _all: Vec<_> = std::iter::from_fn(|| greedy.try_take()).collect();
        let _own = names.tenant.take(Kind::Lookups, OWN_MAX).unwrap();
        assert_eq!(names.addresses("peer").await.unwrap(), ["10.1.2.3".parse::<IpAddr>().unwrap()]);
        fs::write(root.path().join("etc/hosts"), "10.9.9.9 peer\n").unwrap();
        assert_eq!(names.addresses("PEER").await.unwrap(), ["10.9.9.9".parse::<IpAddr>().unwrap()]);
        assert_eq!(names.addresses("127.1").await.unwrap(), ["127.0.0.1".parse::<IpAddr>().unwrap()]);
    }

    #[tokio::test]
    async fn files_that_cannot_be_used_are_told_from_names_that_are_not_there() {
        let nonsense = root(&[
            ("resolv.conf", "nameserver nonsense\noptions ndots:x\n\0\u{7f}\n"),
            ("hosts", "::: x\n10.0.0.1 y\n"),
        ]);
        assert_eq!(names(&nonsense).addresses("y").await.unwrap(), ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        let empty = root(&[]);
        assert_eq!(names(&empty).addresses("name").await.unwrap_err(), Unresolved::NoResolver);
        // An open of a FIFO without a writer would wait.
        hearth_testing::make_fifo(&empty.path().join("etc"), "resolv.conf");
        assert_eq!(names(&empty).addresses("name").await.unwrap_err(), Unresolved::NoResolver);
        for name in ["", "a\0b", &"x".repeat(300)] {
            assert_eq!(names(&empty).addresses(name).await.unwrap_err(), Unresolved::Invalid, "{name:?}");
        }
    }

    #[tokio::test]
    async fn a_container_with_a_silent_server_leaves_the_others_their_look_ups() {
        let root = root(&[("resolv.conf", "nameserver 192.0.2.1\n")]);
        let silent = names(&root);
        // An exec of the same container.
        let exec = silent.resolvers.names(silent.root.clone(), Identity::default(), silent.tenant.clone());
        let asked = |names: &Names| (0..OWN_MAX).map(|at| names.ask(format!("n{at}.example"))).collect::<Vec<_>>();
        let under_way = [asked(&silent), asked(&exec)];
        while silent.tenant.refused(Kind::Lookups) < OWN_MAX {
            tokio::task::yield_now().await;
        }
        assert_eq!(silent.tenant.used(Kind::Lookups), OWN_MAX);
        let other = silent.resolvers.names(silent.root.clone(), Identity::default(), container());
        let own = asked(&other);
        while other.tenant.used(Kind::Lookups) < OWN_MAX {
            tokio::task::yield_now().await;
        }
        drop((own, under_way));
        while silent.tenant.used(Kind::Lookups) + other.tenant.used(Kind::Lookups) > 0 {
            tokio::task::yield_now().await;
        }
    }
}
