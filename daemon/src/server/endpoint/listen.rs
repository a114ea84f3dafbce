//! Where the endpoint listens: `host:port`, or `unix:/path`; and TLS.
//!
//! The certificate and its key are read when the daemon starts, so that what is wrong with them is said
//! there, and again when the files have changed: certificates are renewed under a daemon that runs.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, crypto};

use crate::server::operator_calls::METRICS_ADDRESS;
use hearth_base::config::{self, UNIX};
use hearth_os::accept::Listen;

/// How long a client may take for its handshake.
const HANDSHAKE_TIME: Duration = Duration::from_secs(5);

/// Something that bytes go over.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// The endpoint's socket. A Unix socket's file stays when it is dropped: a younger daemon may serve at it.
pub struct Listener {
    socket: Socket,
    tls: Option<Arc<Tls>>,
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

/// A client, before its handshake.
pub struct Accepted {
    stream: Box<dyn Connection>,
    tls: Option<Arc<Tls>>,
}

impl Listener {
    /// Binds `config.address`, unless `passed`, an older daemon's socket, is there already, and writes what it got
    /// to [`METRICS_ADDRESS`] in `state_dir`.
    ///
    /// # Errors
    /// In one line with the key: the address is taken or not the node's, the certificate is damaged, a file cannot
    /// be written.
    pub async fn bind(config: &config::Metrics, passed: Option<OwnedFd>, state_dir: &Path) -> Result<Listener, String> {
        let tls = match (&config.tls_certificate, &config.tls_key) {
            (certificate, _) if certificate.as_os_str().is_empty() => None,
            (certificate, key) => Some(Arc::new(Tls::open(certificate, key)?)),
        };
        let address = &config.address;
        let cannot = |e: io::Error| {
            let hint = match e.kind() {
                io::ErrorKind::AddrInUse => "; another program has it: choose another, or port 0 for any",
                _ => "",
            };
            format!("metrics.address: cannot listen on {address}: {e}{hint}")
        };
        let socket = match (passed.and_then(|passed| inherit(passed, address)), address.strip_prefix(UNIX)) {
            (Some(inherited), _) => inherited.map_err(cannot)?,
            (None, Some(path)) => Socket::Unix(bind_unix(Path::new(path)).map_err(cannot)?, path.into()),
            (None, None) => Socket::Tcp(TcpListener::bind(address).await.map_err(cannot)?),
        };
        let bound = match &socket {
            Socket::Tcp(listener) => listener.local_addr().map_err(cannot)?.to_string(),
            Socket::Unix(..) => address.clone(),
        };
        let file = state_dir.join(METRICS_ADDRESS);
        std::fs::write(&file, format!("{bound}\n")).map_err(|e| format!("cannot write {}: {e}", file.display()))?;
        Ok(Listener { socket, tls })
    }

    /// A second descriptor of the socket.
    ///
    /// # Errors
    /// There are too many.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        match &self.socket {
            Socket::Tcp(listener) => listener.as_fd().try_clone_to_owned(),
            Socket::Unix(listener, _) => listener.as_fd().try_clone_to_owned(),
        }
    }

    /// The file of a Unix socket.
    pub fn file(&self) -> Option<&Path> {
        match &self.socket {
            Socket::Tcp(_) => None,
            Socket::Unix(_, path) => Some(path),
        }
    }
}

impl Listen for Listener {
    type Stream = Accepted;

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        let stream: Box<dyn Connection> = match &self.socket {
            Socket::Tcp(listener) => Box::new(ready!(Listen::poll_accept(listener, cx))?),
            Socket::Unix(listener, _) => Box::new(ready!(Listen::poll_accept(listener, cx))?),
        };
        Poll::Ready(Ok(Accepted { stream, tls: self.tls.clone() }))
    }
}

impl Accepted {
    /// The connection itself.
    ///
    /// # Errors
    /// The fault of the client's TLS, or that the client is too slow.
    pub async fn handshake(self) -> io::Result<Box<dyn Connection>> {
        let Some(tls) = self.tls else { return Ok(self.stream) };
        let shaken = tokio::time::timeout(HANDSHAKE_TIME, tls.acceptor().accept(self.stream)).await;
        Ok(Box::new(shaken.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??))
    }
}

/// The socket of an older daemon, if it is at `address`; with port 0, at any port.
fn inherit(passed: OwnedFd, address: &str) -> Option<io::Result<Socket>> {
    if let Some(path) = address.strip_prefix(UNIX) {
        let passed = std::os::unix::net::UnixListener::from(passed);
        let is_there = passed.local_addr().is_ok_and(|at| at.as_pathname() == Some(Path::new(path)));
        let socket = || passed.set_nonblocking(true).and_then(|()| UnixListener::from_std(passed));
        return is_there.then(|| socket().map(|listener| Socket::Unix(listener, path.into())));
    }
    let passed = std::net::TcpListener::from(passed);
    let at = passed.local_addr().ok()?;
    let is_wanted = |wanted: SocketAddr| at.ip() == wanted.ip() && (wanted.port() == 0 || at.port() == wanted.port());
    let is_there = address.to_socket_addrs().is_ok_and(|mut wanted| wanted.any(is_wanted));
    let socket = || passed.set_nonblocking(true).and_then(|()| TcpListener::from_std(passed));
    is_there.then(|| socket().map(Socket::Tcp))
}

/// A socket for root alone. A stale socket is replaced, one that a process listens on is not.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    let listener = match UnixListener::bind(path) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
            match std::os::unix::net::UnixStream::connect(path) {
                Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
                _ => return Err(e),
            }
            UnixListener::bind(path)?
        }
        bound => bound?,
    };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// A certificate and its key, as they are on the disk.
struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    current: Mutex<(Changed, TlsAcceptor)>,
}

/// When the certificate and the key were written.
type Changed = (Option<SystemTime>, Option<SystemTime>);

impl Tls {
    fn open(certificate: &Path, key: &Path) -> Result<Tls, String> {
        let changed = changed(certificate, key);
        let current = Mutex::new((changed, acceptor(certificate, key)?));
        Ok(Tls { certificate: certificate.into(), key: key.into(), current })
    }

    /// With the files that are on the disk now; with the earlier ones if those are damaged.
    fn acceptor(&self) -> TlsAcceptor {
        let now = changed(&self.certificate, &self.key);
        let mut current = self.current.lock();
        if current.0 != now {
            match acceptor(&self.certificate, &self.key) {
                Ok(fresh) => *current = (now, fresh),
                Err(error) => {
                    tracing::warn!(%error, "the metrics endpoint's new certificate is no good: the old one is used");
                    current.0 = now;
                }
            }
        }
        current.1.clone()
    }
}

fn changed(certificate: &Path, key: &Path) -> Changed {
    let at = |path: &Path| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    (at(certificate), at(key))
}

fn acceptor(certificate: &Path, key: &Path) -> Result<TlsAcceptor, String> {
    let wrong = |name: &str, path: &Path, e: &dyn std::fmt::Display| format!("metrics.{name}: {}: {e}", path.display());
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| wrong("tls_certificate", certificate, &e))?;
    if chain.is_empty() {
        return Err(wrong("tls_certificate", certificate, &"it holds no certificate in PEM form"));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|e| wrong("tls_key", key, &e))?;
    let config = ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, private))
        .map_err(|e| wrong("tls_certificate", certificate, &e))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
