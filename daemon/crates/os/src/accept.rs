//! The accept loop of every listening socket: a bound on the connections at once, and the errors of accept(2).
//!
//! accept(2) reports two kinds of errors. Some concern the one connection that it took from the queue (its client has
//! gone, a network error was pending on it): the next call takes the next connection. The others persist until
//! something changes, such as a shortage of descriptors (`EMFILE`, `ENFILE`) or of kernel memory (`ENOBUFS`,
//! `ENOMEM`): the connection stays in the queue and a loop without a pause would spin. [`Acceptor::accept`] returns
//! neither: it goes on at once after the first kind, and after `PAUSE` and a warning after the second.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hearth_base::tenant::{Kind, Permit, Tenant};
use rustix::io::Errno;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The pause after an error that persists: time for other connections to close their descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// A listening socket, or several.
pub trait Listen {
    /// An accepted connection.
    type Stream;

    /// Takes a connection from the kernel's queue.
    ///
    /// # Errors
    /// As accept(2).
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Self::Stream>>;
}

impl Listen for UnixListener {
    type Stream = UnixStream;

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<UnixStream>> {
        let (stream, _) = ready!(UnixListener::poll_accept(self, cx))?;
        Poll::Ready(Ok(stream))
    }
}

impl Listen for TcpListener {
    type Stream = TcpStream;

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<TcpStream>> {
        let (stream, _) = ready!(TcpListener::poll_accept(self, cx))?;
        Poll::Ready(Ok(stream))
    }
}

/// Accepts from all of them.
impl<L: Listen> Listen for Vec<L> {
    type Stream = L::Stream;

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<L::Stream>> {
        for listener in self {
            if let Poll::Ready(accepted) = listener.poll_accept(cx) {
                return Poll::Ready(accepted);
            }
        }
        Poll::Pending
    }
}

/// The right to hold one connection: kept with the connection and dropped after it is closed.
#[derive(Debug)]
pub enum ConnectionPermit {
    /// Of a socket of the daemon.
    Daemon(OwnedSemaphorePermit),
    /// Of a container.
    Container(Permit),
}

/// A listening socket that holds at most a given number of connections. More wait in the kernel's queue.
#[derive(Debug)]
pub struct Acceptor<L> {
    listener: L,
    limit: ConnectionLimit,
    socket: &'static str,
}

/// The bound on a socket's connections. Clones share it.
#[derive(Debug, Clone)]
pub enum ConnectionLimit {
    /// Of a socket of the daemon.
    Daemon {
        /// How many more there may be.
        free: Arc<Semaphore>,
        /// How many there may be.
        connections_max: usize,
    },
    /// Of a container's sockets: its budget.
    Container(Arc<Tenant>),
}

impl ConnectionLimit {
    /// The connections that are open now.
    pub fn open(&self) -> usize {
        match self {
            ConnectionLimit::Daemon { free, connections_max } => {
                connections_max.saturating_sub(free.available_permits())
            }
            ConnectionLimit::Container(tenant) => tenant.used(Kind::HttpConnections) as usize,
        }
    }

    /// A permit, if one is free.
    pub fn try_acquire(&self) -> Option<ConnectionPermit> {
        match self {
            ConnectionLimit::Daemon { free, .. } => free.clone().try_acquire_owned().ok().map(ConnectionPermit::Daemon),
            ConnectionLimit::Container(tenant) => {
                tenant.try_take(Kind::HttpConnections, 1).map(ConnectionPermit::Container)
            }
        }
    }

    async fn acquire(&self) -> ConnectionPermit {
        match self {
            ConnectionLimit::Daemon { free, .. } => match free.clone().acquire_owned().await {
                Ok(permit) => ConnectionPermit::Daemon(permit),
                // The semaphore is never closed.
                Err(_) => std::future::pending().await,
            },
            ConnectionLimit::Container(tenant) => {
                ConnectionPermit::Container(tenant.wait(Kind::HttpConnections, 1).await)
            }
        }
    }
}

impl<L: Listen> Acceptor<L> {
    /// Accepts from `listener`, at most `connections_max` connections at once. Warnings call the socket `socket`, as
    /// in "control socket".
    pub fn new(listener: L, connections_max: usize, socket: &'static str) -> Acceptor<L> {
        let limit = ConnectionLimit::Daemon { free: Arc::new(Semaphore::new(connections_max)), connections_max };
        Acceptor { listener, limit, socket }
    }

    /// As [`Acceptor::new`], for clients of a container: at most as many connections as its budget allows.
    pub fn of_container(listener: L, tenant: Arc<Tenant>, socket: &'static str) -> Acceptor<L> {
        Acceptor { listener, limit: ConnectionLimit::Container(tenant), socket }
    }

    /// The next connection, and the permit for it. Waits while the limit is reached. No connection is lost if the
    /// future is dropped.
    pub async fn accept(&self) -> (L::Stream, ConnectionPermit) {
        let permit = self.limit.acquire().await;
        loop {
            match poll_fn(|cx| self.listener.poll_accept(cx)).await {
                Ok(stream) => return (stream, permit),
                Err(error) if concerns_one_connection(&error) => {
                    tracing::debug!(%error, socket = self.socket, "a connection was gone before it was accepted");
                }
                Err(error) => {
                    tracing::warn!(%error, socket = self.socket, "cannot accept connections for a moment");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Serves for ever, each connection in a task of its own; cancel by dropping, which ends no connection. `begin` is
    /// called when a connection is accepted. Its future serves the connection, and holds the permit.
    pub async fn serve<F>(self, begin: impl Fn(L::Stream) -> F)
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        loop {
            let (stream, permit) = self.accept().await;
            let (serving, socket) = (begin(stream), self.socket);
            tokio::spawn(async move {
                let _permit = permit;
                if let Err(error) = serving.await {
                    tracing::debug!(%error, socket, "a connection failed");
                }
            });
        }
    }

    /// The bound on the connections, which outlives the listening socket.
    pub fn limit(&self) -> &ConnectionLimit {
        &self.limit
    }

    /// The listening socket.
    pub fn listener(&self) -> &L {
        &self.listener
    }

    /// The listening socket, to be closed in a way of the caller's.
    pub fn into_listener(self) -> L {
        self.listener
    }
}

/// Whether an error of accept(2) concerns only the connection that the call took from the queue. The list is that of
/// accept(2), "Error handling", and `ECONNABORTED`.
fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(
            Errno::CONNABORTED
                | Errno::PROTO
                | Errno::NOPROTOOPT
                | Errno::NETDOWN
                | Errno::NETUNREACH
                | Errno::NONET
                | Errno::HOSTDOWN
                | Errno::HOSTUNREACH
                | Errno::OPNOTSUPP
                | Errno::INTR
        )
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Instant;

    use hearth_base::tenant::Limits;

    use super::*;

    /// Fails with each of the errors in turn, and then accepts.
    struct Failing(Mutex<Vec<Errno>>);

    impl Listen for Failing {
        type Stream = ();

        fn poll_accept(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(self.0.lock().unwrap().pop().map_or(Ok(()), |errno| Err(errno.into())))
        }
    }

    #[tokio::test]
    async fn connections_that_are_gone_cost_no_pause() {
        // With a pause for each, they would take twenty minutes.
        let errors = [Errno::CONNABORTED, Errno::PROTO, Errno::NETDOWN].repeat(4_000);
        let acceptor = Acceptor::new(Failing(Mutex::new(errors)), 1, "socket of a test");
        let ((), _permit) = tokio::time::timeout(Duration::from_secs(60), acceptor.accept()).await.unwrap();
    }

    #[tokio::test]
    async fn a_shortage_costs_a_pause_each_time() {
        let errors = vec![Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
        let acceptor = Acceptor::new(Failing(Mutex::new(errors)), 1, "socket of a test");
        let began = Instant::now();
        let ((), _permit) = acceptor.accept().await;
        assert!(began.elapsed() >= 4 * PAUSE, "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn a_connection_beyond_the_limit_waits_in_the_queue_until_one_closes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let acceptor = Acceptor::new(UnixListener::bind(&path).unwrap(), 1, "socket of a test");
        let (_first, _second) = (UnixStream::connect(&path).await.unwrap(), UnixStream::connect(&path).await.unwrap());
        let (stream, permit) = acceptor.accept().await;
        assert_eq!(acceptor.limit().open(), 1);
        assert!(acceptor.limit().try_acquire().is_none());
        {
            // Dropped while it waits: no connection is lost by that.
            let mut waiting = std::pin::pin!(acceptor.accept());
            assert!(poll_fn(|cx| Poll::Ready(waiting.as_mut().poll(cx).is_pending())).await);
        }
        drop((stream, permit));
        assert_eq!(acceptor.limit().open(), 0);
        acceptor.accept().await;
    }

    #[tokio::test]
    async fn the_connections_of_a_container_are_in_its_budget() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tenant = Tenant::unnamed(&Limits::none().with(Kind::HttpConnections, 1));
        let acceptor = Acceptor::of_container(listener, tenant.clone(), "socket of a test");
        let (_first, _second) =
            (TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap());
        let (_stream, permit) = acceptor.accept().await;
        assert_eq!((tenant.used(Kind::HttpConnections), acceptor.limit().open()), (1, 1));
        let mut waiting = std::pin::pin!(acceptor.accept());
        assert!(poll_fn(|cx| Poll::Ready(waiting.as_mut().poll(cx).is_pending())).await);
        drop(permit);
        waiting.await;
    }

    #[tokio::test]
    async fn several_listeners_are_one() {
        let bind = || TcpListener::bind("127.0.0.1:0");
        let listeners = vec![bind().await.unwrap(), bind().await.unwrap()];
        let addresses: Vec<_> = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
        let acceptor = Acceptor::new(listeners, 2, "socket of a test");
        for address in addresses.iter().rev() {
            let _client = TcpStream::connect(address).await.unwrap();
            let (stream, _permit) = acceptor.accept().await;
            assert_eq!(stream.local_addr().unwrap(), *address);
        }
    }
}
