//! One client's connection, HTTP/1.1 or HTTP/2, with TLS or without, until its end.
//!
//! Whatever a client can hold is bounded: connections by `tenant.http_connections_max`, a head by `http.header_bytes_max` and
//! `http.header_timeout_ms`, a connection on which nothing moves by `http.idle_timeout_ms`, a slow one by
//! `http.least_bytes_per_second`. Bodies are never collected: a guest that does not read stops its client, and a client
//! that does not read stops its guest.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::header::{self, HeaderValue};
use hyper::service::service_fn;
use hyper::{StatusCode, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::activity::{Activity, Watched};
use crate::request::{self, Client};
use crate::service::Service;
use crate::tls::handshake;
use crate::tls::stream::{ClientStream, Protocol};
use hearth_base::config;
use hearth_os::accept::ConnectionPermit;
use hearth_os::identity;
use hearth_wasm::scheduler::{Guest, GuestEnd, Socket};

/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 128;

/// How long connections go on when a service drains. A request that comes meanwhile is answered, and the answer closes its
/// connection, so that no request meets a closed connection.
const DRAIN_LINGER: Duration = Duration::from_secs(1);

/// How long a draining connection without a request may be silent. HTTP/2 ends it once its client has answered a
/// last PING; a client that answers nothing would hold the drain for `http.idle_timeout_ms`.
const DRAIN_SILENCE: Duration = Duration::from_secs(5);

/// Serves a client beside the container's guests, in their group: reading and writing are the container's CPU time,
/// and a request goes from its connection to its guest and back without leaving the thread.
pub fn begin(service: &Arc<Service>, stream: TcpStream, permit: ConnectionPermit) {
    let wanted = service.access_log.is_some() || service.site.tells_of_clients();
    // A client that has gone meanwhile has none.
    let address = if wanted { stream.peer_addr().ok() } else { None };
    // Answers are written whole; waiting for more to write only delays them.
    let _ = stream.set_nodelay(true);
    // From the runtime, which accepted it, to the workers.
    let socket = stream.into_std().and_then(|stream| service.runtime.scheduler.socket(stream));
    match socket {
        Ok(socket) => run(service, connection(service.clone(), (socket, address), permit)),
        Err(error) => tracing::warn!(%error, "a client's connection cannot be watched, and is closed"),
    }
}

/// Runs a part of a connection.
fn run<F: Future<Output: Send> + Send + 'static>(service: &Arc<Service>, part: F) {
    let guest = Arc::new(Guest::part(&service.container.guest));
    // The container has ended.
    let Some(member) = service.container.requests.begin(&guest) else { return };
    service.runtime.scheduler.spawn_part(guest, part, move |end| {
        if let GuestEnd::Panicked(panic) = end {
            identity::restore();
            tracing::error!(panic, "a connection to an HTTP component panicked; only this connection ends");
        }
        drop(member);
    });
}

/// Runs the streams of an HTTP/2 connection beside it.
#[derive(Clone)]
struct Beside(Arc<Service>);

impl<F: Future<Output: Send> + Send + 'static> hyper::rt::Executor<F> for Beside {
    fn execute(&self, stream: F) {
        run(&self.0, stream);
    }
}

/// Waits until the service drains.
pub(crate) async fn until(draining: &mut watch::Receiver<bool>) {
    // The sender lives as long as the service.
    let _ = draining.wait_for(|draining| *draining).await;
}

/// Waits until then.
async fn sleep_until(at: Option<Instant>) {
    tokio::time::sleep_until(at.unwrap_or_else(Instant::now).into()).await;
}

/// How hyper reads and answers.
fn builder(service: &Arc<Service>, config: &config::Http, protocol: Protocol) -> auto::Builder<Beside> {
    let mut builder = auto::Builder::new(Beside(service.clone()));
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(config.header_timeout_ms))
        .max_buf_size(config.header_bytes_max);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(u32::try_from(config.header_bytes_max).unwrap_or(u32::MAX));
    match protocol {
        Protocol::Http1 => builder.http1_only(),
        Protocol::Http2 => builder.http2_only(),
        Protocol::Unknown => builder,
    }
}

/// Begins to speak with a client, by TLS if the service does; none if the client goes away, or the service drains first.
async fn greet(service: &Arc<Service>, stream: Socket, activity: &Arc<Activity>) -> Option<ClientStream> {
    let stream = Watched::new(stream, activity.clone());
    let Some(tls) = &service.tls else { return Some(ClientStream::Plain(stream)) };
    let mut draining = service.container.requests.draining();
    let too_late = async {
        until(&mut draining).await;
        tokio::time::sleep(DRAIN_LINGER).await;
    };
    // In a box, which is freed before the first request.
    let shaking_hands = Box::pin(handshake::accept(service, tls, stream, activity));
    tokio::select! {
        stream = shaking_hands => Some(ClientStream::Tls(Box::new(stream?))),
        () = too_late => None,
    }
}

async fn connection(service: Arc<Service>, (stream, address): (Socket, Option<SocketAddr>), _permit: ConnectionPermit) {
    let config = service.http.config();
    let activity = Arc::new(Activity::new());
    let Some(stream) = greet(&service, stream, &activity).await else { return };
    let client = Client { secure: service.tls.is_some(), address };
    let builder = builder(&service, &config, stream.protocol());
    let io = TokioIo::new(stream);
    let mut draining = service.container.requests.draining();
    let answering = {
        let (service, activity, draining) = (service.clone(), activity.clone(), draining.clone());
        service_fn(move |request: hyper::Request<_>| {
            let (service, draining) = (service.clone(), draining.clone());
            let (busy, open) = (activity.wait(request.version()), activity.open());
            async move {
                let closes = request.version() < Version::HTTP_2;
                let mut response = request::answer(service, client, request).await;
                // Its sender and this server may see its end differently.
                let refused = response.status() == StatusCode::BAD_REQUEST && response.body().is_daemons();
                if closes && (refused || *draining.borrow()) {
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                drop(busy);
                Ok::<_, Infallible>(open.watch(response))
            }
        })
    };
    let mut serving = pin!(builder.serve_connection(io, answering));
    let mut idle_or_slow = pin!(activity.idle_or_slow(&config));
    let (mut closes_at, mut closing) = (None, false);
    loop {
        let served = poll_fn(|cx| {
            activity.begin_poll();
            serving.as_mut().poll(cx)
        });
        tokio::select! {
            served = served => {
                if let Err(error) = served {
                    ended_early(&service, &*error);
                }
                return;
            }
            () = until(&mut draining), if closes_at.is_none() => closes_at = Some(Instant::now() + DRAIN_LINGER),
            () = sleep_until(closes_at), if closes_at.is_some() && !closing => {
                closing = true;
                serving.as_mut().graceful_shutdown();
            }
            () = idle_or_slow.as_mut() => return,
            () = activity.silent(DRAIN_SILENCE), if closing => return,
        }
    }
}

/// Counts an answer that hyper has given by itself.
fn ended_early(service: &Service, error: &(dyn std::error::Error + 'static)) {
    tracing::debug!(%error, "a client's connection ended early");
    match error.downcast_ref::<hyper::Error>() {
        Some(error) if error.is_parse_too_large() => {
            service.counts.response(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE.as_u16());
        }
        Some(error) if error.is_parse() => service.counts.response(StatusCode::BAD_REQUEST.as_u16()),
        _ => {}
    }
}
