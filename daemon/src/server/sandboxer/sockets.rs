//! The sockets on which containerd and other generations ask for pods. Only root may ask (mode 0600, and the peer's
//! credentials are checked).
//!
//! Each containerd has a socket of its own, which is handed from generation to generation as the control socket is:
//! no dial is ever refused. Beside it each generation has one that stays its, where the next one finds the pods
//! that are here ([`peer::controller_socket`]).
//!
//! containerd keeps one connection and waits on it for each pod's end, so the number of calls at once is bounded by
//! `rpc.tasks_max` and not by the protocol's usual hundred. A generation that has handed over says so on it
//! (GOAWAY): calls under way end here, and later calls go to the next generation.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::codegen::Service;

use crate::server::task_sockets::TaskSockets;
use hearth_base::config::Config;
use hearth_containerd::peer::{self, Key};
use hearth_os::accept::{Acceptor, ConnectionLimit};
use hearth_os::sockets;

use super::Controller;
use super::forward::Forwarding;
use super::generated::controller_server::{Controller as ControllerApi, ControllerServer};

/// Connections at once to a socket; more wait in its backlog. containerd has one.
const CONNECTIONS_MAX: usize = 64;

/// Calls at once beyond those that wait for a pod's end.
const OTHER_CALLS_MAX: u32 = 1_024;

/// The largest request, in bytes: that of containerd's own server.
const REQUEST_BYTES_MAX: usize = 16 << 20;

/// How long a containerd may take to notice that another generation has the socket.
const FAREWELL_TIME: Duration = Duration::from_secs(5);

/// The sockets, bound.
pub struct Sockets {
    all: Vec<Socket>,
    /// The files of sockets that are no longer configured.
    left: Vec<PathBuf>,
}

/// A containerd's socket, bound.
struct Socket {
    key: Key,
    path: PathBuf,
    listener: UnixListener,
    own: UnixListener,
}

impl Sockets {
    /// A second descriptor of each that is to be handed on.
    ///
    /// # Errors
    /// There are no more descriptors.
    pub fn descriptors(&self) -> io::Result<Vec<OwnedFd>> {
        self.all.iter().map(|socket| socket.listener.as_fd().try_clone_to_owned()).collect()
    }
}

/// The sockets of the configuration: those that are `handed` over, and the others bound; and our own in
/// `directory`. The caller has been given the state directory's lock. Who handed over goes on as before.
///
/// # Errors
/// One line: which socket cannot be had, and why.
pub fn open(config: &Config, directory: &Path, handed: Vec<OwnedFd>) -> Result<Sockets, String> {
    let mut handed: Vec<_> = handed.into_iter().map(StdUnixListener::from).collect();
    let is_at = |listener: &StdUnixListener, path: &Path| {
        listener.local_addr().is_ok_and(|address| address.as_pathname() == Some(path))
    };
    let mut all = Vec::new();
    for socket in &config.sandboxer.sockets {
        let path = config.state_dir.join(&socket.listen);
        let listener = match handed.iter().position(|listener| is_at(listener, &path)) {
            Some(place) => {
                let listener = handed.swap_remove(place);
                listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener))
            }
            None => sockets::bind(&path),
        };
        let listener = listener.map_err(|e| format!("sandboxer.sockets: cannot listen on {}: {e}", path.display()))?;
        let key = peer::key(socket);
        let own = sockets::bind(&peer::controller_socket(directory, &key))
            .map_err(|e| format!("state_dir: cannot listen in {}: {e}", directory.display()))?;
        all.push(Socket { key, path, listener, own });
    }
    let path = |listener: StdUnixListener| Some(listener.local_addr().ok()?.as_pathname()?.to_owned());
    Ok(Sockets { all, left: handed.into_iter().filter_map(path).collect() })
}

/// The calls that are still served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// All.
    All,
    /// Calls that the generation in charge forwards.
    Own,
    /// Calls under way.
    Nothing,
}

/// The controllers, one for each containerd.
pub struct Controllers {
    serving: JoinSet<()>,
    stage: watch::Sender<Stage>,
    /// When another has taken over.
    handed_over: Option<Instant>,
    /// The connections to each containerd's socket.
    limits: Vec<ConnectionLimit>,
    files: Vec<PathBuf>,
}

impl Controllers {
    /// Serves the sockets. Who handed them over does not any more.
    pub fn serve(sockets: Sockets, config: &Config, task_sockets: &Arc<TaskSockets>) -> Controllers {
        for file in &sockets.left {
            let _ = std::fs::remove_file(file);
        }
        let mut all = Controllers {
            serving: JoinSet::new(),
            stage: watch::Sender::new(Stage::All),
            handed_over: None,
            limits: Vec::new(),
            files: Vec::new(),
        };
        let calls_max = u32::try_from(config.rpc.tasks_max).unwrap_or(u32::MAX).saturating_add(OTHER_CALLS_MAX);
        for Socket { key, path, listener, own } in sockets.all {
            let here = Arc::new(Controller::new(key, task_sockets.clone()));
            all.add(own, here.clone(), calls_max, Stage::Own);
            let limit = all.add(listener, Arc::new(Forwarding::new(here)), calls_max, Stage::All);
            all.limits.push(limit);
            all.files.push(path);
        }
        all
    }

    fn add<C: ControllerApi>(
        &mut self,
        listener: UnixListener,
        controller: Arc<C>,
        calls_max: u32,
        until: Stage,
    ) -> ConnectionLimit {
        let service = ControllerServer::from_arc(controller).max_decoding_message_size(REQUEST_BYTES_MAX);
        let acceptor = Acceptor::new(listener, CONNECTIONS_MAX, "sandbox controller's socket");
        let limit = acceptor.limit().clone();
        let ending = Ending { stage: self.stage.subscribe(), until };
        self.serving.spawn(serve(acceptor, service, calls_max, ending));
        limit
    }

    /// Another generation has the sockets now: calls under way end here.
    pub fn hand_over(&mut self) {
        self.handed_over = Some(Instant::now());
        self.stage.send_replace(Stage::Own);
    }

    /// Whether a containerd may still ask here for a new pod, since it has not heard yet that it has to ask
    /// another generation.
    pub fn are_asked(&self) -> bool {
        self.handed_over.is_some_and(|at| at.elapsed() < FAREWELL_TIME)
            && self.limits.iter().any(|limit| limit.open() > 0)
    }

    /// Lets calls under way be answered, until the deadline, and removes the files of the sockets if this
    /// daemon `leads`; else the generation that has taken over has them.
    pub async fn close(mut self, deadline: tokio::time::Instant, leads: bool) {
        self.stage.send_replace(Stage::Nothing);
        let all = async { while self.serving.join_next().await.is_some() {} };
        let _ = tokio::time::timeout_at(deadline, all).await;
        for file in self.files.iter().filter(|_| leads) {
            let _ = std::fs::remove_file(file);
        }
    }
}

/// Tells when nothing more is to be begun.
#[derive(Clone)]
struct Ending {
    stage: watch::Receiver<Stage>,
    /// The last stage in which it is.
    until: Stage,
}

impl Ending {
    async fn come(&mut self) {
        let until = self.until;
        // The sender lives as long as the controllers.
        let _ = self.stage.wait_for(|stage| *stage > until).await;
    }
}

async fn serve<C: ControllerApi>(
    acceptor: Acceptor<UnixListener>,
    service: ControllerServer<C>,
    calls_max: u32,
    mut ending: Ending,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = ending.come() => break,
            (stream, permit) = acceptor.accept() => {
                let (service, ending) = (service.clone(), ending.clone());
                connections.spawn(async move {
                    let _permit = permit;
                    connection(stream, service, calls_max, ending).await;
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
    drop(acceptor);
    while connections.join_next().await.is_some() {}
}

async fn connection<C: ControllerApi>(
    stream: UnixStream,
    service: ControllerServer<C>,
    calls_max: u32,
    mut ending: Ending,
) {
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == 0 => {}
        peer => {
            tracing::warn!(peer = ?peer.map(|peer| peer.uid()), "only root may use the sandbox controller");
            return;
        }
    }
    let answer = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let mut service = service.clone();
        async move { service.call(request.map(tonic::body::Body::new)).await }
    });
    let server = http2::Builder::new(TokioExecutor::new())
        .max_concurrent_streams(calls_max)
        .serve_connection(TokioIo::new(stream), answer);
    let mut server = pin!(server);
    let served = tokio::select! {
        served = server.as_mut() => served,
        () = ending.come() => {
            server.as_mut().graceful_shutdown();
            server.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the sandbox controller ended");
    }
}
