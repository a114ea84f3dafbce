//! One container's client: its connections, and a request's way over one of them.
//!
//! hyper's connection (`hyper::client::conn`) does the protocol. The pool on top of it is ours, since hyper-util's
//! `Client` lacks parts that a container's bounds need:
//!
//! * Its idle connections are bounded for each host only (`pool_max_idle_per_host`), not for the container
//!   (`http.outgoing_idle_max`).
//! * It cannot close an idle connection when `tenant.outgoing_connections_max` is reached. A guest that talks to many hosts
//!   would wait for the idle time-out of connections that it does not use.
//! * Its error is one type for all phases, whose cause is found only by going through its sources. `wasi:http` has a code
//!   for each phase.
//! * It tells neither when a connection begins to wait for the server nor which connection a body belongs to. The time-outs
//!   for the first byte and between bytes, which do not count the guest's own time, need both.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::client::conn::http1::SendRequest;
use hyper::{Request, Response, StatusCode};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody};

use super::body::{GiveBack, Received, Sending, Waiting};
use super::connect::{Connected, Connector};
use super::context::OutgoingContext;
use super::fault;
use super::idle::Idle;
use super::route::{Dialect, Route, Routes, Server};
use super::sender::{Http2Connection, Sender};
use super::server_origin::ServerOrigin;
use super::tls::Trust;
use hearth_base::config;
use hearth_base::destinations::Destinations;
use hearth_base::tenant::{Kind, Permit, Tenant};
use hearth_wasm::resolver::Names;

/// Tells the container's user, in the container's log.
pub type Tell = Box<dyn Fn(&str) + Send + Sync>;

/// One container's client.
pub struct Client {
    context: Arc<OutgoingContext>,
    routes: Routes,
    destinations: Destinations,
    connector: Connector,
    idle: Mutex<Idle>,
    /// Whether a task closes idle connections in time.
    swept: AtomicBool,
    /// The container's budget, which has its connections.
    tenant: Arc<Tenant>,
    /// Of requests over HTTP/2. Over HTTP/1.1, each request has a connection for itself.
    streams: Arc<Semaphore>,
    tell: Tell,
    /// Whether an unusable proxy was told.
    told: AtomicBool,
}

/// How long each part of a request may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Timeouts {
    connect: Duration,
    pub(crate) first_byte: Duration,
    between_bytes: Duration,
}

impl Timeouts {
    /// The guest's time-outs, within the limits of the configuration.
    pub(crate) fn new(options: RequestOptions, config: &config::Http) -> Timeouts {
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
    /// A component's client, which sends to `destinations` only: `env` is its environment, which may name the certificates
    /// it trusts, proxies, and servers of HTTP/2.
    pub fn new(
        context: Arc<OutgoingContext>,
        names: Names,
        destinations: Destinations,
        env: &[(String, String)],
        tell: Tell,
    ) -> Arc<Client> {
        let tenant = names.tenant.clone();
        let streams_max = usize::try_from(tenant.limit(Kind::OutgoingConnections)).unwrap_or(usize::MAX);
        let trust = Trust::new(context.clone(), names.root.clone(), env);
        Arc::new(Client {
            connector: Connector::new(context.clone(), names, destinations.clone(), trust),
            destinations,
            context,
            routes: Routes::new(env),
            idle: Mutex::default(),
            swept: AtomicBool::new(false),
            tenant,
            streams: Arc::new(Semaphore::new(streams_max.min(Semaphore::MAX_PERMITS))),
            tell,
            told: AtomicBool::new(false),
        })
    }

    /// The threads that its requests are sent from.
    pub fn runtime(&self) -> &Handle {
        &self.context.runtime
    }

    /// Checks that requests may be sent to a server.
    ///
    /// # Errors
    /// `HTTP-request-denied`; it counts as a failed request.
    pub fn check(&self, server: &ServerOrigin) -> Result<(), Error> {
        if self.destinations.host(server.scheme(), &server.host, server.port) {
            return Ok(());
        }
        tracing::debug!(%server, "a guest's request is not allowed");
        self.context.metrics.http.outgoing.failed.inc();
        Err(Error::HttpRequestDenied)
    }

    /// Sends a request to its server and waits for the response's head. The server has passed [`Client::check`].
    ///
    /// # Errors
    /// The error code of `wasi:http`.
    pub async fn exchange(
        self: Arc<Self>,
        server: ServerOrigin,
        request: Request<WasiBody>,
        options: RequestOptions,
    ) -> Result<Response<WasiBody>, Error> {
        let answer = self.try_exchange(server, request, Timeouts::new(options, &self.context.config())).await;
        match &answer {
            Ok(response) => self.context.metrics.http.outgoing.response(response.status().as_u16()),
            Err(error) => self.failed(error),
        }
        answer
    }

    /// Counts a request that failed.
    pub fn failed(&self, error: &Error) {
        tracing::debug!(%error, "a guest's request failed");
        self.context.metrics.http.outgoing.failed.inc();
    }

    async fn try_exchange(
        self: &Arc<Self>,
        server: ServerOrigin,
        request: Request<WasiBody>,
        timeouts: Timeouts,
    ) -> Result<Response<WasiBody>, Error> {
        let route = self.route(server, &request)?;
        let waiting = Waiting::default();
        let mut request = request.map(|body| Sending::new(body, waiting.clone()));
        let deadline = Instant::now() + timeouts.connect;
        while let Some(sender) = self.reuse(&route.server, deadline).await? {
            match self.send(sender, request, &route, &waiting, timeouts).await {
                Ok(response) => return Ok(response),
                Err(Unanswered::Unsent(unsent)) => request = *unsent,
                Err(Unanswered::Failed(error)) => return Err(error),
            }
        }
        // The time of earlier connections does not count.
        let deadline = Instant::now() + timeouts.connect;
        let connecting = tokio::time::timeout_at(deadline.into(), self.connect(&route.server, deadline)).await;
        let sender = connecting.unwrap_or(Err(Error::ConnectionTimeout))?;
        match self.send(sender, request, &route, &waiting, timeouts).await {
            Ok(response) => Ok(response),
            Err(Unanswered::Unsent(_)) => Err(Error::ConnectionTerminated),
            Err(Unanswered::Failed(error)) => Err(error),
        }
    }

    fn route(&self, server: ServerOrigin, request: &Request<WasiBody>) -> Result<Route, Error> {
        let route = self.routes.of(server, request);
        if let (Err(Error::ConfigurationError), Some(text)) = (&route, self.routes.unusable_proxy())
            && !self.told.swap(true, Ordering::Relaxed)
        {
            (self.tell)(&format!("{text}: the guest's requests fail with configuration-error"));
        }
        route
    }

    /// A connection to the server that is there already, if there is one.
    async fn reuse(&self, server: &Server, deadline: Instant) -> Result<Option<Sender>, Error> {
        if let Some(sender) = self.idle.lock().take(server) {
            return Ok(Some(Sender::Http1(sender)));
        }
        if server.dialect == Dialect::Http1 || !self.idle.lock().has_http2(server) {
            return Ok(None);
        }
        let place = acquire(&self.streams, deadline).await?;
        Ok(self.idle.lock().stream(server, place).ok().map(Sender::Http2))
    }

    async fn send(
        self: &Arc<Self>,
        mut sender: Sender,
        request: Request<Sending>,
        route: &Route,
        waiting: &Waiting,
        timeouts: Timeouts,
    ) -> Result<Response<WasiBody>, Unanswered> {
        waiting.restart();
        let answered = tokio::select! {
            answered = sender.send(request, route) => Some(answered),
            () = waiting.too_long(timeouts.first_byte) => None,
        };
        let Some(answered) = answered else {
            sender.retire();
            return Err(Unanswered::Failed(Error::ConnectionReadTimeout));
        };
        let response = answered.map_err(|mut error| match error.take_message() {
            Some(unsent) => {
                // It is about to close.
                sender.retire();
                Unanswered::Unsent(Box::new(unsent))
            }
            None => Unanswered::Failed(fault::exchanging(error.error())),
        })?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Unanswered::Failed(Error::HttpUpgradeFailed));
        }
        let give_back: GiveBack = match sender {
            Sender::Http1(sender) => {
                let (client, server) = (self.clone(), route.server.clone());
                Box::new(move || client.give_back(server, sender))
            }
            Sender::Http2(stream) => Box::new(move || drop(stream)),
        };
        Ok(response.map(|body| Received::new(body, give_back, timeouts.between_bytes).boxed_unsync()))
    }

    /// Room for one more connection.
    async fn place(&self, deadline: Instant) -> Result<Permit, Error> {
        if let Some(place) = self.tenant.try_take(Kind::OutgoingConnections, 1) {
            return Ok(place);
        }
        self.idle.lock().close_one();
        let place = tokio::time::timeout_at(deadline.into(), self.tenant.wait(Kind::OutgoingConnections, 1)).await;
        place.map_err(|_| Error::ConnectionLimitReached)
    }

    /// A new connection.
    async fn connect(self: &Arc<Self>, server: &Server, deadline: Instant) -> Result<Sender, Error> {
        let place = self.place(deadline).await?;
        let sender = match self.connector.connect(server, place, deadline).await? {
            Connected::Http1(sender) => return Ok(Sender::Http1(sender)),
            Connected::Http2(sender) => sender,
        };
        let connection = Http2Connection::new(server.clone(), sender);
        let place = acquire(&self.streams, deadline).await?;
        let stream = connection.stream(place).map_err(|_| Error::ConnectionLimitReached)?;
        self.idle.lock().put_http2(connection, self.context.config().outgoing_idle_max);
        self.sweep();
        Ok(Sender::Http2(stream))
    }

    /// Keeps a connection for the next request as soon as this one's request is sent.
    fn give_back(self: &Arc<Self>, server: Server, mut sender: SendRequest<Sending>) {
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

    fn keep(self: &Arc<Self>, server: Server, sender: SendRequest<Sending>) {
        self.idle.lock().put(server, sender, self.context.config().outgoing_idle_max);
        self.sweep();
    }

    /// Closes idle connections in time, as long as there are connections.
    fn sweep(self: &Arc<Self>) {
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

/// A place, once there is one.
async fn acquire(of: &Arc<Semaphore>, deadline: Instant) -> Result<OwnedSemaphorePermit, Error> {
    let place = tokio::time::timeout_at(deadline.into(), of.clone().acquire_owned()).await;
    place.ok().and_then(Result::ok).ok_or(Error::ConnectionLimitReached)
}

#[cfg(test)]
mod tests {
    use super::*;

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
