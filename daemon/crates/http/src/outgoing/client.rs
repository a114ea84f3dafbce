//! One container's client: its connections, and a request's way over one.

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
use super::fault;
use super::idle::{Idle, Sender, Target};
use super::tls::Trust;
use crate::context::Http;
use hearth_base::config;
use hearth_wasm::resolver::{InNetwork, Names};

/// One container's client.
pub struct Client {
    http: Arc<Http>,
    names: Names,
    trust: Trust,
    idle: Mutex<Idle>,
    /// Something closes idle connections in time.
    swept: AtomicBool,
    places: Arc<Semaphore>,
}

/// How long a request may take, part by part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limits {
    connect: Duration,
    first_byte: Duration,
    between_bytes: Duration,
}

impl Limits {
    /// What the guest asks for, within what it may have.
    fn new(options: RequestOptions, config: &config::Http) -> Limits {
        let least = |asked: Option<Duration>, max_ms| {
            let max = Duration::from_millis(max_ms);
            asked.map_or(max, |asked| asked.min(max))
        };
        Limits {
            connect: least(options.connect_timeout, config.outgoing_connect_timeout_ms),
            first_byte: least(options.first_byte_timeout, config.outgoing_first_byte_timeout_ms),
            between_bytes: least(options.between_bytes_timeout, config.outgoing_between_bytes_timeout_ms),
        }
    }
}

/// A request that did not get its response.
enum Unanswered {
    /// Nothing of it was sent: the connection had been closed.
    Unsent(Box<Request<Sending>>),
    /// It went wrong.
    Failed(Error),
}

impl Client {
    /// A container's client: `env` is its environment, which may name the certificates it trusts.
    pub fn new(http: Arc<Http>, names: Names, env: &[(String, String)]) -> Arc<Client> {
        let places = Arc::new(Semaphore::new(http.config().outgoing_connections_max));
        let trust = Trust::new(http.clone(), names.root.clone(), env);
        Arc::new(Client { http, names, trust, idle: Mutex::default(), swept: AtomicBool::new(false), places })
    }

    /// Where its requests are sent from.
    pub fn runtime(&self) -> &Handle {
        &self.http.runtime
    }

    /// Sends a request and waits for its response's head.
    ///
    /// # Errors
    /// What `wasi:http` has for it.
    pub async fn exchange(
        self: Arc<Self>,
        request: Request<WasiBody>,
        options: RequestOptions,
    ) -> Result<Response<WasiBody>, Error> {
        let answer = self.try_exchange(request, Limits::new(options, &self.http.config())).await;
        match &answer {
            Ok(response) => self.http.metrics.http.outgoing.response(response.status().as_u16()),
            Err(error) => {
                tracing::debug!(%error, "a guest's request failed");
                self.http.metrics.http.outgoing.failed.inc();
            }
        }
        answer
    }

    async fn try_exchange(
        self: &Arc<Self>,
        request: Request<WasiBody>,
        limits: Limits,
    ) -> Result<Response<WasiBody>, Error> {
        let target = target(&request)?;
        let waiting = Waiting::default();
        let mut request = request.map(|body| Sending::new(body, waiting.clone()));
        *request.uri_mut() = origin_form(request.uri());
        loop {
            let reused = self.idle.lock().take(&target);
            let Some(sender) = reused else { break };
            match self.send(sender, request, &target, &waiting, limits).await {
                Ok(response) => return Ok(response),
                Err(Unanswered::Unsent(unsent)) => request = *unsent,
                Err(Unanswered::Failed(error)) => return Err(error),
            }
        }
        let deadline = Instant::now() + limits.connect;
        let place = self.place(deadline).await?;
        let connecting = self.connect(&target, place, deadline);
        let sender = tokio::time::timeout_at(deadline.into(), connecting).await;
        let sender = sender.unwrap_or(Err(Error::ConnectionTimeout))?;
        match self.send(sender, request, &target, &waiting, limits).await {
            Ok(response) => Ok(response),
            Err(Unanswered::Unsent(_)) => Err(Error::ConnectionTerminated),
            Err(Unanswered::Failed(error)) => Err(error),
        }
    }

    async fn send(
        self: &Arc<Self>,
        mut sender: Sender,
        request: Request<Sending>,
        target: &Target,
        waiting: &Waiting,
        limits: Limits,
    ) -> Result<Response<WasiBody>, Unanswered> {
        waiting.restart();
        let answered = tokio::select! {
            answered = sender.try_send_request(request) => answered,
            () = waiting.too_long(limits.first_byte) => return Err(Unanswered::Failed(Error::ConnectionReadTimeout)),
        };
        let response = answered.map_err(|mut error| match error.take_message() {
            Some(unsent) => Unanswered::Unsent(Box::new(unsent)),
            None => Unanswered::Failed(fault::exchanging(error.error())),
        })?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Unanswered::Failed(Error::HttpUpgradeFailed));
        }
        let connection = Return { client: self.clone(), target: target.clone(), sender };
        Ok(response.map(|body| Received::new(body, connection, limits.between_bytes).boxed_unsync()))
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

    async fn connect(&self, target: &Target, place: OwnedSemaphorePermit, deadline: Instant) -> Result<Sender, Error> {
        let addresses = self.names.addresses(&target.host).await.map_err(fault::unresolved)?;
        let addresses: Vec<_> = addresses.into_iter().map(|address| SocketAddr::new(address, target.port)).collect();
        let stream = self.dial(&addresses, deadline).await?;
        if target.secure {
            let stream = self.trust.secure(&target.host, stream).await?;
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
        builder.max_buf_size(self.http.config().header_bytes_max);
        let (sender, connection) =
            builder.handshake(TokioIo::new(stream)).await.map_err(|error| fault::exchanging(&error))?;
        let metrics = self.http.metrics.clone();
        metrics.http.outgoing.connections.inc();
        self.http.runtime.spawn(async move {
            let _place = place;
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a guest's connection ended early");
            }
            metrics.http.outgoing.connections.dec();
        });
        Ok(sender)
    }

    fn keep(self: &Arc<Self>, target: Target, sender: Sender) {
        self.idle.lock().put(target, sender, self.http.config().outgoing_idle_max);
        if self.swept.swap(true, Ordering::AcqRel) {
            return;
        }
        let (client, timeout) =
            (Arc::downgrade(self), Duration::from_millis(self.http.config().outgoing_idle_timeout_ms));
        self.http.runtime.spawn(async move {
            let mut wait = timeout;
            loop {
                tokio::time::sleep(wait).await;
                let Some(client) = client.upgrade() else { return };
                let mut idle = client.idle.lock();
                let now = Instant::now();
                match idle.expire(now, timeout) {
                    Some(next) => wait = next.saturating_duration_since(now),
                    None => {
                        // With the lock held: what is put later starts another.
                        client.swept.store(false, Ordering::Release);
                        return;
                    }
                }
            }
        });
    }
}

/// A connection on its way back.
pub struct Return {
    client: Arc<Client>,
    target: Target,
    sender: Sender,
}

impl Return {
    /// It is free for the next request as soon as this one's is all sent.
    pub fn give_back(self) {
        let Return { client, target, mut sender } = self;
        if sender.is_ready() {
            return client.keep(target, sender);
        }
        let runtime = client.http.runtime.clone();
        runtime.spawn(async move {
            let patience = Duration::from_millis(client.http.config().outgoing_idle_timeout_ms);
            if let Ok(Ok(())) = tokio::time::timeout(patience, sender.ready()).await {
                client.keep(target, sender);
            }
        });
    }
}

/// Where a request goes.
fn target(request: &Request<WasiBody>) -> Result<Target, Error> {
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
    Ok(Target { secure, host, port: authority.port_u16().unwrap_or(if secure { 443 } else { 80 }) })
}

/// What the request line says to a server that is no proxy.
fn origin_form(uri: &Uri) -> Uri {
    uri.path_and_query().cloned().map(Uri::from).unwrap_or_else(|| Uri::from_static("/"))
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
        let at = |uri: &str| target(&to(uri)).unwrap();
        let expected = |secure, host: &str, port| Target { secure, host: host.into(), port };
        assert_eq!(at("http://Peer/a"), expected(false, "peer", 80));
        assert_eq!(at("https://peer/"), expected(true, "peer", 443));
        assert_eq!(at("https://[2001:db8::1]:8443/"), expected(true, "2001:db8::1", 8443));
        assert!(matches!(target(&to("http://user@peer/")), Err(Error::HttpRequestUriInvalid)));
        assert!(matches!(target(&to("/only/a/path")), Err(Error::HttpRequestUriInvalid)));
        assert_eq!(origin_form(to("http://peer/a?b=c").uri()), "/a?b=c");
    }

    #[test]
    fn a_guest_may_wait_for_less_than_the_maximum_but_not_for_more() {
        let config = config::Http { outgoing_connect_timeout_ms: 1_000, ..config::Http::default() };
        let asked = |connect| RequestOptions { connect_timeout: Some(connect), ..RequestOptions::default() };
        let connect = |options| Limits::new(options, &config).connect;
        assert_eq!(connect(RequestOptions::default()), Duration::from_secs(1));
        assert_eq!(connect(asked(Duration::from_millis(5))), Duration::from_millis(5));
        assert_eq!(connect(asked(Duration::from_secs(9))), Duration::from_secs(1));
    }
}
