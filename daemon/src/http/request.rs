//! One request: from its head to its guest's end.
//!
//! The client's side runs on the `http` threads, the guest's on the scheduler; between them are the
//! response's head, the two bodies, which are channels with room for two pieces, and an exchange of
//! what each has to know of the other.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Version};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use wasmtime::{PoolConcurrencyLimitError, Store};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, Scheme};
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;

use crate::error::Error;
use crate::http::Service;
use crate::http::lines::Lines;
use crate::http::outgoing::Outgoing;
use crate::logging;
use crate::operator::EndKind;
use crate::wasm::engine::{Allocation, Prepared};
use crate::wasm::instance::{Slot, Surroundings};
use crate::wasm::scheduler::{End, Guest};
use crate::wasm::wasi::{ComponentState, Limits, fields, resources};

/// Handles a request's guest may have at once: headers, bodies, streams, files.
const RESOURCES_MAX: usize = 1_024;

/// The largest set of headers a request's guest may make, in bytes. With the former it bounds what a guest
/// makes the daemon keep.
const FIELDS_BYTES_MAX: usize = 64 << 10;

/// The most of a request's path that a message shows, in characters.
const PATH_SHOWN_MAX: usize = 200;

/// Answers a request, and counts it.
pub async fn answer(service: Arc<Service>, request: Request<Incoming>) -> Response<ResponseBody> {
    let began = Instant::now();
    let metrics = service.world.metrics.clone();
    let response = match handle(service, request).await {
        Ok(response) => response,
        Err(refused) => {
            if refused.0 == StatusCode::SERVICE_UNAVAILABLE {
                metrics.http_refused.inc();
            }
            refused.response()
        }
    };
    metrics.http_request(response.status().as_u16());
    metrics.http_request_seconds.observe(began.elapsed().as_secs_f64());
    response
}

/// A request that gets no answer of a guest's: the status, and a word for who looks.
struct Refused(StatusCode, &'static str);

impl Refused {
    fn response(&self) -> Response<ResponseBody> {
        let body = Bytes::from(format!("{}\n", self.1));
        let mut response = Response::new(ResponseBody::Ours(Full::new(body)));
        *response.status_mut() = self.0;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if self.0 == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

const BUSY: Refused = Refused(StatusCode::SERVICE_UNAVAILABLE, "too many requests at once");
const ENDING: Refused = Refused(StatusCode::SERVICE_UNAVAILABLE, "the service is ending");
const FAILED: Refused = Refused(StatusCode::INTERNAL_SERVER_ERROR, "the service failed");
const LATE: Refused = Refused(StatusCode::GATEWAY_TIMEOUT, "the service took too long");

/// Checks what hyper does not.
fn check(request: &Request<Incoming>) -> Result<(), Refused> {
    let headers = request.headers();
    // Upgrade: h2c is an offer that may be ignored; of others the client needs to know.
    let offers = headers.get_all(header::UPGRADE).iter().filter_map(|value| value.to_str().ok());
    let upgrades = offers.flat_map(|value| value.split(',')).any(|to| !to.trim().eq_ignore_ascii_case("h2c"));
    if request.method() == Method::CONNECT || upgrades {
        return Err(Refused(StatusCode::NOT_IMPLEMENTED, "neither tunnels nor upgrades are supported"));
    }
    if let Some(expected) = headers.get(header::EXPECT)
        && !expected.as_bytes().eq_ignore_ascii_case(b"100-continue")
    {
        return Err(Refused(StatusCode::EXPECTATION_FAILED, "the expectation is unknown"));
    }
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (_, Some(_)) => Err(Refused(StatusCode::BAD_REQUEST, "more than one Host")),
        (Some(host), None) if host.to_str().is_err() => Err(Refused(StatusCode::BAD_REQUEST, "the Host is no text")),
        (None, None) if request.uri().authority().is_none() && request.version() == Version::HTTP_11 => {
            Err(Refused(StatusCode::BAD_REQUEST, "the Host is missing"))
        }
        _ => Ok(()),
    }
}

async fn handle(service: Arc<Service>, mut request: Request<Incoming>) -> Result<Response<ResponseBody>, Refused> {
    check(&request)?;
    if request.uri().authority().is_none() && !request.headers().contains_key(header::HOST) {
        // Of HTTP/1.0, where it may be missing and wasi:http still wants one.
        request.headers_mut().insert(header::HOST, HeaderValue::from_static("localhost"));
    }
    let timeout = Duration::from_millis(service.world.http.config.request_timeout_ms);
    let place = async {
        let turn = service.turns.take().await?;
        // Never closed. Those that wait here have their turns: there are so many of each container.
        let place = service.world.http.places.clone().acquire_owned().await.ok()?;
        Some((turn, place))
    };
    let place = tokio::time::timeout(timeout, place).await.ok().flatten().ok_or(BUSY)?;
    let slot = service.world.slots.take(service.program.fits_pool()).map_err(|_| BUSY)?;
    let guest = Arc::new(Guest::member(&service.guest));
    let member = service.requests.begin(&guest).ok_or(ENDING)?;

    let method = request.method().clone();
    let name = name(&request);
    let exchange = Arc::new(Exchange::default());
    // From here on its client's leaving ends it.
    let hold = Hold { guest: guest.clone(), exchange: exchange.clone(), armed: true };
    let (send_head, head) = oneshot::channel();
    let (tell, told) = oneshot::channel();
    let metrics = service.world.metrics.clone();
    metrics.http_in_flight.inc();
    let future = run(service.clone(), guest.clone(), slot, request, send_head, exchange);
    let ended = {
        let service = service.clone();
        move |end| {
            let _ = tell.send(service.ended(end, &name));
            service.world.metrics.http_in_flight.dec();
            drop(place);
            // Last: the container may end with it.
            drop(member);
        }
    };
    service.world.scheduler.spawn(guest, future, ended);
    match head.await {
        Ok(Ok(response)) => Ok(service.respond(&method, response, hold)),
        Ok(Err(_)) => {
            hold.let_go();
            Err(FAILED)
        }
        // There will be none: the guest is gone, or will be in a moment.
        Err(_) => {
            hold.let_go();
            Err(told.await.unwrap_or(ENDING))
        }
    }
}

/// How a message calls a request. The path is the client's, who can put no line feed into it.
fn name(request: &Request<Incoming>) -> String {
    let path: String = request.uri().path().chars().take(PATH_SHOWN_MAX).collect();
    format!("{} {path}", request.method())
}

impl Service {
    /// What becomes of a response.
    fn respond(&self, method: &Method, response: Response<HyperOutgoingBody>, hold: Hold) -> Response<ResponseBody> {
        let (parts, body) = response.into_parts();
        let length = parts.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let has_body = method != Method::HEAD
            && parts.status != StatusCode::NO_CONTENT
            && parts.status != StatusCode::NOT_MODIFIED;
        if has_body {
            let body = GuestsBody { body, left: length, hold: Some(hold) };
            return Response::from_parts(parts, ResponseBody::Guests(Box::new(body)));
        }
        // The guest need not know that nobody wants it. Its time runs, since no client's does.
        hold.let_go();
        self.world.http.runtime.spawn(async move {
            let mut body = body;
            while let Some(Ok(_)) = body.frame().await {}
        });
        Response::from_parts(parts, ResponseBody::Ours(Full::default()))
    }

    /// Counts a guest's trap, and has it remembered.
    fn trapped(&self, kind: EndKind, text: &str) {
        let (metrics, about) = (&self.world.metrics, &self.about);
        metrics.http_traps.inc();
        about.traps.fetch_add(1, Ordering::Relaxed);
        self.world.recent.ended(about, kind, FAILED.0.as_u16().into(), text);
        tracing::info!(target: logging::GUEST, namespace = %about.namespace, task = %about.id, text, "the guest of a request trapped");
    }

    /// Tells of a guest's end, and what to answer if it left no response.
    fn ended(&self, end: End<Verdict>, name: &str) -> Refused {
        let (note, refused) = match end {
            End::Completed(Verdict::Returned) => (None, Refused(FAILED.0, "the service gave no response")),
            End::Completed(Verdict::Full) => (None, BUSY),
            End::Completed(Verdict::Late) => {
                let ms = self.world.http.config.request_timeout_ms;
                (Some(format!("took over {ms} ms (http.request_timeout_ms)")), LATE)
            }
            End::Completed(Verdict::NotStarted(error)) => (Some(error.to_string()), FAILED),
            End::Completed(Verdict::Trapped(text)) => {
                self.trapped(EndKind::Request, &text);
                (Some(text), FAILED)
            }
            End::Killed => (None, ENDING),
            End::Panicked(text) => {
                tracing::error!(panic = %text, "a host function panicked; only this request ends");
                self.trapped(EndKind::Panic, &text);
                (Some(format!("hearthd failed in a host function: {text}")), FAILED)
            }
        };
        if let Some(note) = note {
            self.notes.write(&self.stdio, &format!("{name}: {note}"));
        }
        refused
    }
}

/// How a request's guest came to its end by itself.
enum Verdict {
    /// It returned.
    Returned,
    /// It trapped, or exited with an error; the text.
    Trapped(String),
    /// It took too long.
    Late,
    /// The node is full.
    Full,
    /// There was no instance.
    NotStarted(Error),
}

/// What the two sides of a request know of each other.
#[derive(Default)]
struct Exchange {
    /// The guest ended otherwise than by returning: a body that ends now has been cut.
    failed: AtomicBool,
    phase: Mutex<Phase>,
}

/// Where the response is.
#[derive(Clone, Copy, Default)]
enum Phase {
    /// The head is not out.
    #[default]
    Head,
    /// The client gets the body.
    Body,
    /// It has all of it, since then.
    Over(Instant),
}

impl Exchange {
    /// When the guest's time ends, at the end of `timeout` since the request or an earlier answer of
    /// this; none if it has ended.
    fn more_time(&self, now: Instant, timeout: Duration) -> Option<Duration> {
        match *self.phase.lock() {
            Phase::Head => None,
            // The connection's own time-out sees to it that it moves.
            Phase::Body => Some(timeout),
            Phase::Over(since) => Some((since + timeout).saturating_duration_since(now)).filter(|left| !left.is_zero()),
        }
    }
}

/// The client's hold on a guest: dropped before the response's end, it ends the guest.
struct Hold {
    guest: Arc<Guest>,
    exchange: Arc<Exchange>,
    armed: bool,
}

impl Hold {
    /// The guest may end by itself.
    fn let_go(mut self) {
        self.armed = false;
        *self.exchange.phase.lock() = Phase::Over(Instant::now());
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.armed {
            self.guest.kill();
        }
    }
}

/// Marks a request as failed unless told that it has not; dropped before the store, so that the body's
/// end is seen later.
struct FailedUnlessDone(Option<Arc<Exchange>>);

impl Drop for FailedUnlessDone {
    fn drop(&mut self) {
        if let Some(exchange) = &self.0 {
            exchange.failed.store(true, Ordering::Release);
        }
    }
}

type SendHead = oneshot::Sender<Result<Response<HyperOutgoingBody>, ErrorCode>>;

/// The guest's future.
async fn run(
    service: Arc<Service>,
    guest: Arc<Guest>,
    mut slot: Slot,
    request: Request<Incoming>,
    send_head: SendHead,
    exchange: Arc<Exchange>,
) -> Verdict {
    let began = Instant::now();
    let mut instance = service.instantiate(&guest, &slot).await;
    if matches!(instance, Err(Verdict::Full)) && slot.allocation() == Allocation::Pooling {
        // Out of some part that this component needs more of than most.
        match service.world.slots.take_on_demand() {
            Ok(beyond) => slot = beyond,
            Err(_) => return Verdict::Full,
        }
        instance = service.instantiate(&guest, &slot).await;
    }
    let (mut store, proxy) = match instance {
        Ok(instance) => instance,
        Err(verdict) => return verdict,
    };
    service.world.metrics.http_instantiate_seconds.observe(began.elapsed().as_secs_f64());
    let mut done = FailedUnlessDone(Some(exchange.clone()));
    let (on_head, in_body) = (send_head, exchange.clone());
    let pushed = (|| {
        let mut http = store.data_mut().http();
        let request = http.new_incoming_request(Scheme::Http, request)?;
        let out = http.new_response_outparam_from_callback(move |head| {
            *in_body.phase.lock() = Phase::Body;
            // Its client may be gone.
            let _ = on_head.send(head);
        })?;
        Ok::<_, wasmtime::Error>((request, out))
    })();
    let (request, out) = match pushed {
        Ok(pushed) => pushed,
        Err(error) => return Verdict::NotStarted(Error::Internal(format!("the request cannot be told: {error:#}"))),
    };
    let timeout = Duration::from_millis(service.world.http.config.request_timeout_ms);
    let called = {
        let mut call = pin!(proxy.wasi_http_incoming_handler().call_handle(&mut store, request, out));
        let mut time = pin!(tokio::time::sleep(timeout));
        loop {
            tokio::select! {
                biased;
                called = &mut call => break called,
                () = &mut time => match exchange.more_time(Instant::now(), timeout) {
                    Some(more) => time.as_mut().reset(tokio::time::Instant::now() + more),
                    None => return Verdict::Late,
                },
            }
        }
    };
    match called {
        Ok(()) => {
            done.0 = None;
            Verdict::Returned
        }
        Err(error) => match error.downcast_ref::<I32Exit>() {
            Some(I32Exit(0)) => {
                done.0 = None;
                Verdict::Returned
            }
            Some(I32Exit(code)) => Verdict::Trapped(format!("the guest exited with {code}")),
            None => Verdict::Trapped(service.describe(&error, &store)),
        },
    }
}

type Instance = (Store<ComponentState>, wasmtime_wasi_http::p2::bindings::Proxy);

impl Service {
    /// A store and an instance for one request. The root is opened as the daemon; from then on it is the
    /// guest that acts.
    async fn instantiate(&self, guest: &Arc<Guest>, slot: &Slot) -> Result<Instance, Verdict> {
        guest.act_as_daemon();
        let prepared = self.program.prepared(&self.world.engines, slot.allocation()).map_err(Verdict::NotStarted)?;
        let Prepared::Component { service: Some(pre), .. } = prepared else {
            return Err(Verdict::NotStarted(Error::Internal("a service's program is none".into())));
        };
        let surroundings = Surroundings {
            args: &self.args,
            env: &self.env,
            cwd: &self.cwd,
            root: &self.root,
            networked: self.names.is_some(),
        };
        let (stdout, stderr) = (Lines::new(self.stdio.stdout()), Lines::new(self.stdio.stderr()));
        let mut wasi = surroundings.context(stdout, stderr).map_err(Verdict::NotStarted)?;
        guest.act_as_itself().map_err(Verdict::NotStarted)?;
        let state = ComponentState {
            ctx: wasi.build(),
            table: resources(RESOURCES_MAX),
            limits: Limits::new(self.memory.clone(), Arc::default()),
            names: self.names.clone(),
            http: fields(FIELDS_BYTES_MAX),
            outgoing: Outgoing,
        };
        let mut store = Store::new(pre.engine(), state);
        store.limiter(|state| &mut state.limits);
        store.set_epoch_deadline(1);
        let mut tick = self.world.scheduler.tick(guest);
        store.epoch_deadline_callback(move |_| tick());
        match pre.instantiate_async(&mut store).await {
            Ok(proxy) => Ok((store, proxy)),
            Err(error) if error.is::<PoolConcurrencyLimitError>() => Err(Verdict::Full),
            Err(error) => Err(Verdict::Trapped(self.describe(&error, &store))),
        }
    }

    /// A trap's text.
    fn describe(&self, error: &wasmtime::Error, store: &Store<ComponentState>) -> String {
        if store.data().limits.is_starved() {
            return format!("out of memory: the container's limit is {} bytes\n{error:?}", self.memory.limit());
        }
        format!("{error:?}")
    }
}

/// A response's body.
pub enum ResponseBody {
    /// The daemon's.
    Ours(Full<Bytes>),
    /// A guest's.
    Guests(Box<GuestsBody>),
}

/// A body that a guest writes.
pub struct GuestsBody {
    body: HyperOutgoingBody,
    /// Of its declared length; none if it has none.
    left: Option<u64>,
    /// Until its end.
    hold: Option<Hold>,
}

/// The guest ended in the middle of its response.
#[derive(Debug, thiserror::Error)]
#[error("the response was cut: {0}")]
pub struct Cut(&'static str);

impl Body for GuestsBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let this = &mut *self;
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        match frame {
            Some(Ok(frame)) => {
                if let (Some(left), Some(data)) = (&mut this.left, frame.data_ref()) {
                    *left = left.saturating_sub(data.len() as u64);
                }
                // hyper asks no further.
                if (this.left == Some(0) || frame.is_trailers())
                    && let Some(hold) = this.hold.take()
                {
                    hold.let_go();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(_)) => Poll::Ready(Some(Err(Cut("its guest gave it up")))),
            None => match this.hold.take() {
                Some(hold) => {
                    let failed = hold.exchange.failed.load(Ordering::Acquire);
                    // It ends by itself, and its end tells why.
                    hold.let_go();
                    Poll::Ready(failed.then_some(Err(Cut("its guest ended"))))
                }
                None => Poll::Ready(None),
            },
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match &mut *self {
            ResponseBody::Ours(body) => {
                Pin::new(body).poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(|never| match never {})))
            }
            ResponseBody::Guests(body) => Pin::new(&mut **body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ResponseBody::Ours(body) => body.is_end_stream(),
            ResponseBody::Guests(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ResponseBody::Ours(body) => body.size_hint(),
            ResponseBody::Guests(body) => body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_time_ends_before_the_head_and_after_the_body_only() {
        let (exchange, second) = (Exchange::default(), Duration::from_secs(1));
        let now = Instant::now();
        assert_eq!(exchange.more_time(now, second), None);
        *exchange.phase.lock() = Phase::Body;
        assert_eq!(exchange.more_time(now, second), Some(second));
        *exchange.phase.lock() = Phase::Over(now);
        assert_eq!(exchange.more_time(now, second), Some(second));
        assert_eq!(exchange.more_time(now + second, second), None);
    }
}
