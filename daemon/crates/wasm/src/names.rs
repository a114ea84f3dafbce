//! Names a guest looks up: by the pod's `/etc/hosts` and `/etc/resolv.conf`, through the pod's network.
//!
//! wasmtime-wasi's own look-up is getaddrinfo(3), which reads the *node's* files and asks from the
//! node's network. Here both files are read inside the guest's root, at each look-up, so that a change
//! is seen and nothing is kept for idle guests; the queries' sockets are made in the guest's network
//! namespace. Search domains, `ndots`, time-outs, attempts, UDP and TCP are hickory's.
//!
//! A guest decides how often it asks, so look-ups under way are bounded for the node (waiting ones
//! belong to guests that wait), and each has a deadline. It ends when its guest drops the stream.
//!
//! Without a resolv.conf, names that `/etc/hosts` does not have cannot be resolved: falling back to the
//! node's would tell a pod the node's names.

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::config::{LookupIpStrategy, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::iocompat::AsyncIoTokioAsStd;
use hickory_resolver::net::runtime::{RuntimeProvider, TokioHandle, TokioTime};
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::{Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, Resolver, system_conf};
use rustix::fs::{FileType, OFlags};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use wasmtime::StoreContextMut;
use wasmtime::component::{Accessor, Linker, Resource, ResourceType};
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddress, Network as NetworkHandle};
use wasmtime_wasi::p2::{DynPollable, Pollable, subscribe};
use wasmtime_wasi::p3::bindings::sockets::{ip_name_lookup as p3, types as p3_types};

use crate::wasi::ComponentState;
use hearth_base::config;
use hearth_os::identity::{self, Identity};
use hearth_os::in_root::RootDir;

/// The largest `/etc/hosts` or `/etc/resolv.conf` that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The longest name, in bytes: a DNS name's 255 as text, with room for a trailing dot.
const NAME_BYTES_MAX: usize = 256;

/// Looks up names for all guests of the daemon.
pub struct Resolvers {
    under_way: Arc<Semaphore>,
    deadline: Duration,
    runtime: Handle,
}

impl Resolvers {
    /// Look-ups run on `runtime`.
    pub fn new(config: &config::Network, runtime: Handle) -> Arc<Resolvers> {
        Arc::new(Resolvers {
            under_way: Arc::new(Semaphore::new(config.lookups_max)),
            deadline: Duration::from_millis(config.lookup_timeout_ms),
            runtime,
        })
    }
}

/// The names of one guest.
#[derive(Clone)]
pub struct Names {
    /// Who looks them up.
    pub resolvers: Arc<Resolvers>,
    /// The guest's root on the host.
    pub root: PathBuf,
    /// Who it is: its network is where it asks.
    pub identity: Identity,
}

/// Why a name has no addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unresolved {
    /// It is no name.
    Invalid,
    /// There is no such name, or it has no address.
    Unknown,
    /// There was no answer in time.
    Late,
    /// The name server cannot tell now.
    Temporary,
    /// The name server will not tell.
    Permanent,
}

impl From<Unresolved> for ErrorCode {
    fn from(why: Unresolved) -> ErrorCode {
        match why {
            Unresolved::Invalid => ErrorCode::InvalidArgument,
            Unresolved::Unknown => ErrorCode::NameUnresolvable,
            Unresolved::Late | Unresolved::Temporary => ErrorCode::TemporaryResolverFailure,
            Unresolved::Permanent => ErrorCode::PermanentResolverFailure,
        }
    }
}

impl From<Unresolved> for p3::ErrorCode {
    fn from(why: Unresolved) -> p3::ErrorCode {
        match why {
            Unresolved::Invalid => p3::ErrorCode::InvalidArgument,
            Unresolved::Unknown => p3::ErrorCode::NameUnresolvable,
            Unresolved::Late | Unresolved::Temporary => p3::ErrorCode::TemporaryResolverFailure,
            Unresolved::Permanent => p3::ErrorCode::PermanentResolverFailure,
        }
    }
}

impl Names {
    /// The addresses of a name, or the one that it is.
    ///
    /// # Errors
    /// Why there are none.
    pub async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, Unresolved> {
        if let Some(address) = literal(name)? {
            return Ok(vec![address]);
        }
        let answer = tokio::time::timeout(self.resolvers.deadline, self.resolve(name)).await;
        answer.unwrap_or(Err(Unresolved::Late))
    }

    /// The same, on the resolvers' runtime.
    fn ask(&self, name: String) -> Asked {
        let names = self.clone();
        Asked(self.resolvers.runtime.spawn(async move { names.addresses(&name).await }))
    }

    fn look_up(&self, name: String) -> Addresses {
        match literal(&name) {
            Ok(Some(address)) => Addresses::Found(vec![address].into_iter()),
            Ok(None) => Addresses::Asked(self.ask(name)),
            Err(why) => Addresses::Failed(why.into()),
        }
    }

    async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, Unresolved> {
        let turn = self.resolvers.under_way.acquire().await;
        let _turn = turn.map_err(|_| Unresolved::Temporary)?;
        let root = self.root.clone();
        // A volume may hang: not on a thread that answers.
        let read = tokio::task::spawn_blocking(move || Files::read(&root)).await;
        let files = read.map_err(|_| Unresolved::Temporary)?.map_err(|error| {
            tracing::debug!(%error, "a guest's resolver files cannot be read");
            Unresolved::Permanent
        })?;
        let known = files.known(name);
        if !known.is_empty() {
            return Ok(known);
        }
        let network = InNetwork { handle: TokioHandle::default(), identity: self.identity.clone() };
        let mut resolver = Resolver::builder_with_config(files.config, network)
            .with_options(files.options)
            .build()
            .map_err(|error| failed(name, &error))?;
        resolver.set_hosts(Arc::new(files.hosts));
        let found = resolver.lookup_ip(name).await.map_err(|error| failed(name, &error))?;
        let found: Vec<_> = found.iter().map(|address| address.to_canonical()).collect();
        // It has none of one kind, and no answer came for the other.
        if found.is_empty() { Err(Unresolved::Temporary) } else { Ok(found) }
    }
}

/// The address that a name is; none if it has to be looked up.
fn literal(name: &str) -> Result<Option<IpAddr>, Unresolved> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(Some(address));
    }
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains('\0') {
        return Err(Unresolved::Invalid);
    }
    Ok(None)
}

/// What a resolver's error means.
fn failed(name: &str, error: &NetError) -> Unresolved {
    tracing::debug!(name, %error, "a guest's name was not resolved");
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => match none.response_code {
            ResponseCode::NoError | ResponseCode::NXDomain => Unresolved::Unknown,
            ResponseCode::ServFail => Unresolved::Temporary,
            _ => Unresolved::Permanent,
        },
        NetError::Timeout => Unresolved::Late,
        NetError::Io(_) => Unresolved::Temporary,
        NetError::Proto(_) => Unresolved::Invalid,
        _ => Unresolved::Permanent,
    }
}

/// What the guest's files say.
#[derive(Debug)]
struct Files {
    config: ResolverConfig,
    options: ResolverOpts,
    hosts: Hosts,
}

impl Files {
    /// Blocks.
    fn read(root: &Path) -> io::Result<Files> {
        let root = RootDir::open(root)?;
        let mut hosts = Hosts::default();
        if let Some(text) = read(&root, "/etc/hosts")? {
            hosts.read_hosts_conf(text.as_slice())?;
        }
        let parsed = match read(&root, "/etc/resolv.conf")? {
            Some(text) => system_conf::parse_resolv_conf(&text)
                .map_err(|error| io::Error::other(format!("/etc/resolv.conf: {error}")))
                .map(Some),
            None => Ok(None),
        };
        let (config, mut options) = match parsed {
            Ok(parsed) => parsed.unwrap_or_default(),
            // What is in the hosts file is still to be found.
            Err(error) => {
                tracing::debug!(%error, "a guest's resolver has no servers");
                Default::default()
            }
        };
        options.use_hosts_file = ResolveHosts::Always;
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        Ok(Files { config, options, hosts })
    }

    /// The addresses that the hosts file has for a name. If there are any, of one kind alone even, no server is
    /// asked: as with libc, the file goes first. (hickory asks for the kind that is not there.)
    fn known(&self, name: &str) -> Vec<IpAddr> {
        let Ok(name) = Name::from_str(name) else {
            return Vec::new();
        };
        let of = |kind| self.hosts.lookup_static_host(&Query::query(name.clone(), kind));
        let lookups = [RecordType::A, RecordType::AAAA].into_iter().filter_map(of);
        let addresses = |lookup: Lookup| lookup.answers().iter().filter_map(|record| record.data.ip_addr()).collect();
        lookups.flat_map::<Vec<_>, _>(addresses).collect()
    }
}

/// A regular file inside the guest's root; none if there is none. Blocks.
///
/// # Errors
/// If it cannot be read, is no regular file, or is too large.
pub fn read(root: &RootDir, path: &str) -> io::Result<Option<Vec<u8>>> {
    use std::os::fd::AsRawFd;
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
#[derive(Clone)]
pub struct InNetwork {
    handle: TokioHandle,
    identity: Identity,
}

impl InNetwork {
    /// A socket stays in the namespace it was made in, whoever uses it.
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

type Reply<T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send>>;

impl RuntimeProvider for InNetwork {
    type Handle = TokioHandle;
    type Timer = TokioTime;
    type Udp = UdpSocket;
    type Tcp = AsyncIoTokioAsStd<TcpStream>;

    fn create_handle(&self) -> TokioHandle {
        self.handle.clone()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        local: Option<SocketAddr>,
        wait_for: Option<Duration>,
    ) -> Reply<Self::Tcp> {
        let identity = self.identity.clone();
        Box::pin(async move {
            // Registered with the runtime's epoll by the job, which runs inside the runtime.
            let make = move || if server.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
            let socket = InNetwork::make(identity, make).await?;
            if let Some(local) = local {
                socket.bind(local)?;
            }
            socket.set_nodelay(true)?;
            let connected = tokio::time::timeout(wait_for.unwrap_or(Duration::from_secs(5)), socket.connect(server));
            Ok(AsyncIoTokioAsStd(connected.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??))
        })
    }

    fn bind_udp(&self, local: SocketAddr, _server: SocketAddr) -> Reply<UdpSocket> {
        let identity = self.identity.clone();
        Box::pin(async move {
            let socket = InNetwork::make(identity, move || std::net::UdpSocket::bind(local)).await?;
            socket.set_nonblocking(true)?;
            UdpSocket::from_std(socket)
        })
    }
}

/// `resolve-address-stream`.
enum Addresses {
    Asked(Asked),
    Found(std::vec::IntoIter<IpAddr>),
    Failed(ErrorCode),
}

/// A look-up that ends with whoever asked.
struct Asked(JoinHandle<Result<Vec<IpAddr>, Unresolved>>);

impl Asked {
    async fn answer(&mut self) -> Result<Vec<IpAddr>, Unresolved> {
        (&mut self.0).await.unwrap_or(Err(Unresolved::Temporary))
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[async_trait::async_trait]
impl Pollable for Addresses {
    async fn ready(&mut self) {
        if let Addresses::Asked(asked) = self {
            *self = match asked.answer().await {
                Ok(found) => Addresses::Found(found.into_iter()),
                Err(why) => Addresses::Failed(why.into()),
            };
        }
    }
}

impl Addresses {
    fn next(&mut self) -> Result<Option<IpAddress>, ErrorCode> {
        if let Addresses::Asked(_) = self {
            let ready = std::pin::pin!(self.ready());
            // One look; who wants to wait subscribes.
            if ready.poll(&mut std::task::Context::from_waker(std::task::Waker::noop())).is_pending() {
                return Err(ErrorCode::WouldBlock);
            }
        }
        match self {
            Addresses::Asked(_) => Err(ErrorCode::WouldBlock),
            Addresses::Found(found) => Ok(found.next().map(IpAddress::from)),
            Addresses::Failed(error) => Err(*error),
        }
    }
}

/// The interface, as wasmtime-wasi 48 has it; a guest's older 0.2 is linked to it too.
const INTERFACE: &str = "wasi:sockets/ip-name-lookup@0.2.12";

/// WASI 0.3's.
const INTERFACE_P3: &str = "wasi:sockets/ip-name-lookup@0.3.0";

/// Puts these look-ups in the place of wasmtime-wasi's.
///
/// # Errors
/// None in practice: the names are there once.
pub fn replace(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    type Caller<'a> = StoreContextMut<'a, ComponentState>;
    linker.allow_shadowing(true);
    let mut interface = linker.instance(INTERFACE)?;
    let kind = ResourceType::host::<Addresses>();
    interface.resource("resolve-address-stream", kind, |mut store, rep| {
        store.data_mut().table.delete(Resource::<Addresses>::new_own(rep))?;
        Ok(())
    })?;
    interface.func_wrap(
        "resolve-addresses",
        |mut store: Caller, (network, name): (Resource<NetworkHandle>, String)| {
            let state = store.data_mut();
            // Holding one is the right to ask.
            state.table.get(&network)?;
            let addresses = match &state.names {
                Some(names) => names.look_up(name),
                None => Addresses::Failed(ErrorCode::AccessDenied),
            };
            // What is wrong with the name is told at once.
            if let Addresses::Failed(error) = addresses {
                return Ok((Err(error),));
            }
            Ok((Ok(state.table.push(addresses)?),))
        },
    )?;
    interface.func_wrap(
        "[method]resolve-address-stream.resolve-next-address",
        |mut store: Caller, (stream,): (Resource<Addresses>,)| Ok((store.data_mut().table.get_mut(&stream)?.next(),)),
    )?;
    interface.func_wrap(
        "[method]resolve-address-stream.subscribe",
        |mut store: Caller, (stream,): (Resource<Addresses>,)| -> wasmtime::Result<(Resource<DynPollable>,)> {
            Ok((subscribe(&mut store.data_mut().table, stream)?,))
        },
    )?;
    linker.instance(INTERFACE_P3)?.func_wrap_concurrent(
        "resolve-addresses",
        |store: &Accessor<ComponentState>, (name,): (String,)| {
            let names = store.with(|mut store| store.data_mut().names.clone());
            Box::pin(async move {
                let Some(names) = names else { return Ok((Err(p3::ErrorCode::AccessDenied),)) };
                let found = names.ask(name).answer().await;
                let found = found.map(|found| found.into_iter().map(p3_types::IpAddress::from).collect::<Vec<_>>());
                Ok((found.map_err(p3::ErrorCode::from),))
            })
        },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A name server on the loopback that knows one name, by UDP.
    async fn server(name: &'static [u8], address: [u8; 4]) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let at = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let question = &buffer[12..length];
                let end = question.iter().position(|byte| *byte == 0).unwrap() + 5;
                let (asked, kind) = (question[..end - 4].to_ascii_lowercase(), question[end - 3]);
                let known = asked == name;
                let answers = u8::from(known && kind == 1);
                let code = if known { 0x80 } else { 0x83 };
                let mut reply = vec![buffer[0], buffer[1], 0x81, code, 0, 1, 0, answers, 0, 0, 0, 0];
                reply.extend_from_slice(&question[..end]);
                if answers == 1 {
                    reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                    reply.extend_from_slice(&address);
                }
                socket.send_to(&reply, from).await.unwrap();
            }
        });
        at
    }

    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        for (name, text) in files {
            fs::write(root.path().join("etc").join(name), text).unwrap();
        }
        root
    }

    fn names(root: &tempfile::TempDir) -> Names {
        let resolvers = Resolvers::new(&config::Network::default(), Handle::current());
        Names { resolvers, root: root.path().to_path_buf(), identity: Identity::default() }
    }

    #[tokio::test]
    async fn the_hosts_file_answers_first_and_without_servers() {
        let root = root(&[("hosts", "127.0.0.1 localhost\n10.1.2.3 peer peer.pod\n")]);
        let names = names(&root);
        assert_eq!(names.resolve("peer").await.unwrap(), ["10.1.2.3".parse::<IpAddr>().unwrap()]);
        assert!(names.resolve("other").await.is_err());
        // Read anew each time.
        fs::write(root.path().join("etc/hosts"), "10.9.9.9 peer\n").unwrap();
        assert_eq!(names.resolve("peer").await.unwrap(), ["10.9.9.9".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn who_is_in_the_hosts_file_with_one_kind_of_address_is_asked_for_nowhere() {
        let text = "10.1.2.3 peer Peer.pod\n::1 both\n127.0.0.1 both\n";
        let root = root(&[("hosts", text), ("resolv.conf", "nameserver 192.0.2.1\n")]);
        let files = Files::read(root.path()).unwrap();
        let peer: Vec<IpAddr> = vec!["10.1.2.3".parse().unwrap()];
        for name in ["peer", "PEER", "peer.pod", "peer.pod."] {
            assert_eq!(files.known(name), peer, "{name}");
        }
        assert_eq!(files.known("both").len(), 2);
        assert_eq!(files.known("other"), Vec::<IpAddr>::new());
    }

    #[tokio::test]
    async fn a_short_name_is_searched_for_in_the_pods_domains() {
        let at = server(b"\x03web\x07default\x03svc\x00", [10, 0, 0, 7]).await;
        let root = root(&[(
            "resolv.conf",
            "search default.svc svc\nnameserver 127.0.0.1\noptions ndots:5 timeout:1 attempts:1\n",
        )]);
        let mut files = Files::read(root.path()).unwrap();
        assert_eq!((files.options.ndots, files.options.timeout), (5, Duration::from_secs(1)));
        // A resolv.conf cannot name a port.
        for server in &mut files.config.name_servers {
            server.connections.iter_mut().for_each(|connection| connection.port = at.port());
        }
        let network = InNetwork { handle: TokioHandle::default(), identity: Identity::default() };
        let resolver =
            Resolver::builder_with_config(files.config, network).with_options(files.options).build().unwrap();
        let found: Vec<IpAddr> = resolver.lookup_ip("web").await.unwrap().iter().collect();
        assert_eq!(found, ["10.0.0.7".parse::<IpAddr>().unwrap()]);
        let error = resolver.lookup_ip("nobody").await.unwrap_err();
        assert_eq!(failed("nobody", &error), Unresolved::Unknown);
    }

    #[tokio::test]
    async fn nonsense_harms_nobody() {
        let nonsense =
            root(&[("resolv.conf", "nameserver nonsense\noptions ndots:x\n\0\u{7f}\n"), ("hosts", "::: x\n")]);
        assert!(names(&nonsense).resolve("name").await.is_err());
        let empty = root(&[]);
        assert!(names(&empty).resolve("name").await.is_err());
        rustix::fs::mknodat(rustix::fs::CWD, empty.path().join("etc/resolv.conf"), FileType::Fifo, 0o600.into(), 0)
            .unwrap();
        assert_eq!(names(&empty).resolve("name").await.unwrap_err(), Unresolved::Permanent);
        for name in ["", "a\0b", &"x".repeat(300)] {
            assert!(matches!(names(&empty).look_up(name.into()), Addresses::Failed(ErrorCode::InvalidArgument)));
        }
        assert!(matches!(names(&empty).look_up("::1".into()), Addresses::Found(_)));
    }
}
