//! One container's client: its connections, and a request's way over one of them.
//!
//! hyper's connection (`hyper::client::conn`) does the protocol. The pool on top of it is ours, since hyper-util's `Client`
//! lacks what a container's bounds need:
//!
//! * Its idle connections are bounded for each host only (`pool_max_idle_per_host`), not for the container
//!   (`http.outgoing_idle_max`).
//! * It cannot close an idle connection when `http.outgoing_connections_max` is reached. A guest that talks to many hosts
//!   would wait for the idle time-out of connections that it does not use.
//! * Its error is one type for all phases, whose cause is found only by going through its sources. `wasi:http` has a code
//!   for each phase.
//! * It tells neither when a connection begins to wait for the server nor which connection a body belongs to. The time-outs
//!   for the first byte and between bytes, which do not count the guest's own time, need both.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::client::conn::http1;
use hyper::http::uri::Scheme;
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody};

use super::body::{Received, Sending, Waiting};
use super::context::OutgoingContext;
use super::fault;
use super::idle::{Idle, Sender, Server};
use super::tls::Trust;
use hearth_base::config;
use hearth_wasm::resolver::{InNetwork, Names};

/// One container's client.
pub struct Client {
    context: Arc<OutgoingContext>,
    names: Names,
    trust: Trust,
    idle: Mutex<Idle>,
    /// Whether a task closes idle connections in time.
    swept: AtomicBool,
    places: Arc<Semaphore>,
}

/// How long each part of a request may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Timeouts {
    connect: Duration,
    first_byte: Duration,
    between_bytes: Duration,
}

impl Timeouts {
    /// What the guest asks for, within the limits of the configuration.
    fn new(options: RequestOptions, config: &config::Http) -> Timeouts {
        let least = |asked: Option<Duration>, max_ms| {
            let max = Duration::from_millis(max_ms);
            asked.map_or(max, |asked| asked.min(max))
        };
        Timeouts {
            connect: least(options.connect_timeout, config.outgoing_connect_timeout_ms),
            first_byte: least(options.first_byte_timeout, config.outgoing_first_byte_timeout_ms),
            between_bytes: least(options.between_bytes_timeout, config.outgoing_between_bytes_timeout_ms),
        }
    }
}

/// Why a request has no response.
enum Unanswered {
    /// The connection had been closed before any of the request was sent.
    Unsent(Box<Request<Sending>>),
    /// The request failed.
    Failed(Error),
}

impl Client {
    /// A container's client: `env` is its environment, which may name the certificates it trusts.
    pub fn new(context: Arc<OutgoingContext>, names: Names, env: &[(String, String)]) -> Arc<Client> {
        let places = Arc::new(Semaphore::new(context.config().outgoing_connections_max));
        let trust = Trust::new(context.clone(), names.root.clone(), env);
        Arc::new(Client { context, names, trust, idle: Mutex::default(), swept: AtomicBool::new(false), places })
    }

    /// The threads that its requests are sent from.
    pub fn runtime(&self) -> &Handle {
        &self.context.runtime
    }

    /// Sends a request and waits for its response's head.
    ///
    /// # Errors
    /// The error code of `wasi:http`.
    pub async fn exchange(
        self: Arc<Self>,
        request: Request<WasiBody>,
        options: RequestOptions,
    ) -> Result<Response<WasiBody>, Error> {
        let answer = self.try_exchange(request, Timeouts::new(options, &self.context.config())).await;
        match &answer {
            Ok(response) => self.context.metrics.http.outgoing.response(response.status().as_u16()),
            Err(error) => {
                tracing::debug!(%error, "a guest's request failed");
                self.context.metrics.http.outgoing.failed.inc();
            }
        }
        answer
    }

    async fn try_exchange(
        self: &Arc<Self>,
        request: Request<WasiBody>,
        timeouts: Timeouts,
    ) -> Result<Response<WasiBody>, Error> {
        let server = server(&request)?;
        let waiting = Waiting::default();
        let mut request = request.map(|body| Sending::new(body, waiting.clone()));
        *request.uri_mut() = request_target(request.method(), request.uri());
        loop {
            let reused = self.idle.lock().take(&server);
            let Some(sender) = reused else { break };
            match self.send(sender, request, &server, &waiting, timeouts).await {
                Ok(response) => return Ok(response),
                Err(Unanswered::Unsent(unsent)) => request = *unsent,
                Err(Unanswered::Failed(error)) => return Err(error),
            }
        }
        let deadline = Instant::now() + timeouts.connect;
        let place = self.place(deadline).await?;
        let connecting = self.connect(&server, place, deadline);
        let sender = tokio::time::timeout_at(deadline.into(), connecting).await;
        let sender = sender.unwrap_or(Err(Error::ConnectionTimeout))?;
        match self.send(sender, request, &server, &waiting, timeouts).await {
            Ok(response) => Ok(response),
            Err(Unanswered::Unsent(_)) => Err(Error::ConnectionTerminated),
            Err(Unanswered::Failed(error)) => Err(error),
        }
    }

    async fn send(
        self: &Arc<Self>,
        mut sender: Sender,
        request: Request<Sending>,
        server: &Server,
        waiting: &Waiting,
        timeouts: Timeouts,
    ) -> Result<Response<WasiBody>, Unanswered> {
        waiting.restart();
        let answered = tokio::select! {
            answered = sender.try_send_request(request) => answered,
            () = waiting.too_long(timeouts.first_byte) => return Err(Unanswered::Failed(Error::ConnectionReadTimeout)),
        };
        let response = answered.map_err(|mut error| match error.take_message() {
            Some(unsent) => Unanswered::Unsent(Box::new(unsent)),
            None => Unanswered::Failed(fault::exchanging(error.error())),
        })?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Unanswered::Failed(Error::HttpUpgradeFailed));
        }
        let (client, server) = (self.clone(), server.clone());
        let give_back = Box::new(move || client.give_back(server, sender));
        Ok(response.map(|body| Received::new(body, give_back, timeouts.between_bytes).boxed_unsync()))
    }

    /// Room for one more connection.
    async fn place(&self, deadline: Instant) -> Result<OwnedSemaphorePermit, Error> {
        if let Ok(place) = self.places.clone().try_acquire_owned() {
            return Ok(place);
        }
        self.idle.lock().close_one();
        let place = tokio::time::timeout_at(deadline.into(), self.places.clone().acquire_owned()).await;
        place.ok().and_then(Result::ok).ok_or(Error::ConnectionLimitReached)
    }

    async fn connect(&self, server: &Server, place: OwnedSemaphorePermit, deadline: Instant) -> Result<Sender, Error> {
        let addresses = self.names.addresses(&server.host).await.map_err(fault::unresolved)?;
        let addresses: Vec<_> = addresses.into_iter().map(|address| SocketAddr::new(address, server.port)).collect();
        let stream = self.dial(&addresses, deadline).await?;
        if server.secure {
            let stream = self.trust.secure(&server.host, stream).await?;
            self.shake_hands(stream, place).await
        } else {
            self.shake_hands(stream, place).await
        }
    }

    /// A connection to the first address that takes one; each has its share of the time that is left.
    async fn dial(&self, addresses: &[SocketAddr], deadline: Instant) -> Result<TcpStream, Error> {
        let mut last = Error::DnsError { rcode: Some("NXDOMAIN".into()), info_code: None };
        for (index, address) in addresses.iter().enumerate() {
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
            match tokio::time::timeout(share, self.dial_one(*address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = fault::connecting(&error),
                Err(_) => last = Error::ConnectionTimeout,
            }
        }
        Err(last)
    }

    async fn dial_one(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let make = move || if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        let socket = InNetwork::make(self.names.identity.clone(), make).await?;
        // Requests are written whole; waiting for more to write only delays them.
        socket.set_nodelay(true)?;
        socket.connect(address).await
    }

    async fn shake_hands<S>(&self, stream: S, place: OwnedSemaphorePermit) -> Result<Sender, Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut builder = http1::Builder::new();
        builder.max_buf_size(self.context.config().header_bytes_max);
        let (sender, connection) =
            builder.handshake(TokioIo::new(stream)).await.map_err(|error| fault::exchanging(&error))?;
        let metrics = self.context.metrics.clone();
        metrics.http.outgoing.connections.inc();
        self.context.runtime.spawn(async move {
            let _place = place;
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a guest's connection ended early");
            }
            metrics.http.outgoing.connections.dec();
        });
        Ok(sender)
    }

    /// Keeps a connection for the next request as soon as this one's request is sent.
    fn give_back(self: &Arc<Self>, server: Server, mut sender: Sender) {
        if sender.is_ready() {
            return self.keep(server, sender);
        }
        let client = self.clone();
        self.context.runtime.spawn(async move {
            let patience = Duration::from_millis(client.context.config().outgoing_idle_timeout_ms);
            if let Ok(Ok(())) = tokio::time::timeout(patience, sender.ready()).await {
                client.keep(server, sender);
            }
        });
    }

    fn keep(self: &Arc<Self>, server: Server, sender: Sender) {
        self.idle.lock().put(server, sender, self.context.config().outgoing_idle_max);
        if self.swept.swap(true, Ordering::AcqRel) {
            return;
        }
        let (client, timeout) =
            (Arc::downgrade(self), Duration::from_millis(self.context.config().outgoing_idle_timeout_ms));
        self.context.runtime.spawn(async move {
            let mut wait = timeout;
            loop {
                tokio::time::sleep(wait).await;
                let Some(client) = client.upgrade() else { return };
                let mut idle = client.idle.lock();
                let now = Instant::now();
                match idle.expire(now, timeout) {
                    Some(next) => wait = next.saturating_duration_since(now),
                    None => {
                        // With the lock held: a connection that is kept later starts another task.
                        client.swept.store(false, Ordering::Release);
                        return;
                    }
                }
            }
        });
    }
}

/// The server of a request.
fn server(request: &Request<WasiBody>) -> Result<Server, Error> {
    if request.method() == Method::CONNECT {
        return Err(Error::HttpRequestMethodInvalid);
    }
    let uri = request.uri();
    let authority = uri.authority().ok_or(Error::HttpRequestUriInvalid)?;
    if authority.host().is_empty() || authority.as_str().contains('@') {
        return Err(Error::HttpRequestUriInvalid);
    }
    let secure = uri.scheme() == Some(&Scheme::HTTPS);
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    Ok(Server { secure, host, port: authority.port_u16().unwrap_or(if secure { 443 } else { 80 }) })
}

/// The request target (RFC 9112, 3.2) for a server that is no proxy: the path and the query. An empty path is `/`; with
/// OPTIONS, where there is no query either, it is `*`.
fn request_target(method: &Method, uri: &Uri) -> Uri {
    let Some(path_and_query) = uri.path_and_query() else { return Uri::from_static("/") };
    // A Uri without scheme shows an empty path as it is; one with a scheme shows it as `/`.
    let target = Uri::from(path_and_query.clone());
    if !target.path().is_empty() && path_and_query.as_str().starts_with(['/', '*']) {
        return target;
    }
    match target.query() {
        None if method == Method::OPTIONS => Uri::from_static("*"),
        None => Uri::from_static("/"),
        // It was part of a valid Uri.
        Some(query) => format!("/?{query}").parse().unwrap_or(target),
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Empty;

    use super::*;

    fn to(uri: &str) -> Request<WasiBody> {
        Request::builder().uri(uri).body(Empty::new().map_err(|never| match never {}).boxed_unsync()).unwrap()
    }

    #[test]
    fn a_request_says_where_it_goes() {
        let at = |uri: &str| server(&to(uri)).unwrap();
        let expected = |secure, host: &str, port| Server { secure, host: host.into(), port };
        assert_eq!(at("http://Peer/a"), expected(false, "peer", 80));
        assert_eq!(at("https://peer/"), expected(true, "peer", 443));
        assert_eq!(at("https://[2001:db8::1]:8443/"), expected(true, "2001:db8::1", 8443));
        assert!(matches!(server(&to("http://user@peer/")), Err(Error::HttpRequestUriInvalid)));
        assert!(matches!(server(&to("/only/a/path")), Err(Error::HttpRequestUriInvalid)));
    }

    #[test]
    fn a_request_line_has_a_target_whatever_the_path() {
        let target = |method: Method, uri: &str| request_target(&method, to(uri).uri()).to_string();
        assert_eq!(target(Method::GET, "http://peer/a?b=c"), "/a?b=c");
        assert_eq!(target(Method::GET, "http://peer/"), "/");
        assert_eq!(target(Method::GET, "http://peer"), "/");
        assert_eq!(target(Method::GET, "http://peer?b=c"), "/?b=c");
        assert_eq!(target(Method::OPTIONS, "http://peer/"), "/");
        assert_eq!(target(Method::OPTIONS, "http://peer?b=c"), "/?b=c");
        // As a guest has it that gives the empty string as the path.
        let empty = Uri::builder().scheme("http").authority("peer").path_and_query("").build().unwrap();
        assert_eq!(request_target(&Method::GET, &empty), "/");
        assert_eq!(request_target(&Method::OPTIONS, &empty), "*");
    }

    #[test]
    fn a_guest_may_wait_for_less_than_the_maximum_but_not_for_more() {
        let config = config::Http { outgoing_connect_timeout_ms: 1_000, ..config::Http::default() };
        let asked = |connect| RequestOptions { connect_timeout: Some(connect), ..RequestOptions::default() };
        let connect = |options| Timeouts::new(options, &config).connect;
        assert_eq!(connect(RequestOptions::default()), Duration::from_secs(1));
        assert_eq!(connect(asked(Duration::from_millis(5))), Duration::from_millis(5));
        assert_eq!(connect(asked(Duration::from_secs(9))), Duration::from_secs(1));
    }
}
