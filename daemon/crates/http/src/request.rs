//! One request, as its client's side sees it: from its head to its response's.
//!
//! The client's side and the guest's are two parts of the container on the scheduler; between them are the
//! response's head, the two bodies, which are channels with room for two pieces, and an
//! [`Exchange`] of what each has to know of the other.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Version};
use tokio::sync::oneshot;

use crate::exchange::{Exchange, Head, Hold, SendHead, Written};
use crate::response::{GuestsBody, ResponseBody, Timer};
use crate::serve::{self, Verdict};
use crate::service::Service;
use crate::workers::{Given, Workers};
use hearth_base::operator::EndKind;
use hearth_observe::logging;
use hearth_os::identity;
use hearth_wasm::scheduler::{End, Guest};

/// The most of a request's path that a message shows, in characters.
const PATH_SHOWN_MAX: usize = 200;

/// Answers a request, and counts it.
pub async fn answer(service: Arc<Service>, request: Request<Incoming>) -> Response<ResponseBody> {
    let timer = Timer { began: Instant::now(), counts: service.counts.clone() };
    let mut response = match handle(&service, request).await {
        Ok(response) => response,
        Err(refused) => {
            if refused.0 == StatusCode::SERVICE_UNAVAILABLE {
                service.counts.refused();
            }
            refused.response()
        }
    };
    service.counts.answered(response.status().as_u16(), timer.began.elapsed());
    if let ResponseBody::Guests(body) = response.body_mut() {
        body.timer = Some(timer);
    }
    response
}

/// A request that gets no answer of a guest's: the status, and a word for who looks.
#[derive(Debug, Clone, Copy)]
pub struct Refused(StatusCode, &'static str);

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

/// What a request holds as long as it is under way, whatever it is.
type Places = Box<dyn Any + Send + Sync>;

async fn handle(service: &Arc<Service>, mut request: Request<Incoming>) -> Result<Response<ResponseBody>, Refused> {
    check(&request)?;
    if request.uri().authority().is_none() && !request.headers().contains_key(header::HOST) {
        // Of HTTP/1.0, where it may be missing and wasi:http still wants one.
        request.headers_mut().insert(header::HOST, HeaderValue::from_static("localhost"));
    }
    let timeout = Duration::from_millis(service.http.config().request_timeout_ms);
    let place = async {
        let turn = service.turns.take(&service.counts).await?;
        // Never closed. Those that wait here have their turns: there are so many of each container.
        let place = service.http.places.clone().acquire_owned().await.ok()?;
        Some((turn, place))
    };
    let place = tokio::time::timeout(timeout, place).await.ok().flatten().ok_or(BUSY)?;
    let places: Places = Box::new((place, service.counts.begin()));

    let method = request.method().clone();
    let name = name(&request);
    let (send_head, head) = oneshot::channel();
    let (hold, told) = match &service.workers {
        None => alone(service, request, send_head, name, places)?,
        Some(workers) => together(service, workers, request, send_head, name, places)?,
    };
    match head.await {
        Ok(head) => service.respond(&method, head, hold),
        // There will be none: the guest is gone, or will be in a moment.
        Err(_) => {
            hold.let_go();
            Err(told.await.unwrap_or(ENDING))
        }
    }
}

/// The client's hold on the guest, and what the guest's end says if it leaves no response.
type Begun = (Hold, oneshot::Receiver<Refused>);

/// Gives a request an instance of WASI 0.2, which has no other.
fn alone(
    service: &Arc<Service>,
    request: Request<Incoming>,
    send_head: SendHead,
    name: String,
    places: Places,
) -> Result<Begun, Refused> {
    let program = service.program.now();
    let slot = service.runtime.slots.take(program.fits_pool()).map_err(|_| BUSY)?;
    let guest = Arc::new(Guest::part(&service.guest));
    let member = service.requests.begin(&guest).ok_or(ENDING)?;
    let exchange = Arc::new(Exchange::default());
    // From here on its client's leaving ends it.
    let hold = Hold { guest: Some(guest.clone()), exchange: exchange.clone(), occupied: None, armed: true };
    let (tell, told) = oneshot::channel();
    let future = serve::alone(service.clone(), guest.clone(), (program, slot), request, send_head, exchange);
    let ended = {
        let service = service.clone();
        move |end| {
            let _ = tell.send(service.ended(end, || name));
            drop(places);
            // Last: the container may end with it.
            drop(member);
        }
    };
    service.runtime.scheduler.spawn_part(guest, future, ended);
    Ok((hold, told))
}

/// Gives a request an instance of WASI 0.3, which may have others.
fn together(
    service: &Arc<Service>,
    workers: &Workers,
    request: Request<Incoming>,
    send_head: SendHead,
    name: String,
    places: Places,
) -> Result<Begun, Refused> {
    let exchange = Arc::new(Exchange::default());
    let Given { occupied, told, new } = workers.give(request, send_head, exchange.clone(), name, places);
    let mut hold = Hold { guest: None, exchange, occupied: Some(occupied), armed: true };
    let Some((worker, queue)) = new else { return Ok((hold, told)) };
    let guest = Arc::new(Guest::part(&service.guest));
    let program = service.program.now();
    let slot = service.runtime.slots.take(program.fits_pool()).map_err(|_| BUSY);
    let begun = slot.and_then(|slot| Ok((slot, service.requests.begin(&guest).ok_or(ENDING)?)));
    let (slot, member) = match begun {
        Ok(begun) => begun,
        Err(refused) => {
            workers.ended(&worker, || refused);
            return Err(refused);
        }
    };
    if !workers.share() {
        hold.guest = Some(guest.clone());
    }
    let future = serve::together(service.clone(), guest.clone(), (program, slot), worker.clone(), queue);
    let ended = {
        let service = service.clone();
        move |end| {
            let refused = service.ended(end, || worker.names());
            if let Some(workers) = &service.workers {
                workers.ended(&worker, || refused);
            }
            drop(member);
        }
    };
    service.runtime.scheduler.spawn_part(guest, future, ended);
    Ok((hold, told))
}

/// How a message calls a request. The path is the client's, who can put no line feed into it.
fn name(request: &Request<Incoming>) -> String {
    let path: String = request.uri().path().chars().take(PATH_SHOWN_MAX).collect();
    format!("{} {path}", request.method())
}

impl Service {
    /// What becomes of a response.
    fn respond(&self, method: &Method, head: Head, hold: Hold) -> Result<Response<ResponseBody>, Refused> {
        let response = match head {
            Ok(response) => response,
            Err(code) => {
                hold.let_go();
                self.notes.write(&self.stdio, &format!("the guest answered with the error {code}"));
                return Err(FAILED);
            }
        };
        let (parts, body) = response.into_parts();
        let length = parts.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let has_body = method != Method::HEAD
            && parts.status != StatusCode::NO_CONTENT
            && parts.status != StatusCode::NOT_MODIFIED;
        if has_body {
            let body = GuestsBody { body, left: length, hold: Some(hold), timer: None };
            return Ok(Response::from_parts(parts, ResponseBody::Guests(Box::new(body))));
        }
        // The guest need not know that nobody wants it. Its time runs, since no client's does.
        hold.let_go();
        self.http.runtime.spawn(async move {
            match body {
                Written::P2(mut body) => while let Some(Ok(_)) = body.frame().await {},
                Written::P3(mut body) => while let Some(Ok(_)) = body.frame().await {},
            }
        });
        Ok(Response::from_parts(parts, ResponseBody::Ours(Full::default())))
    }

    /// Counts a guest's trap, and has it remembered.
    fn trapped(&self, kind: EndKind, text: &str) {
        let about = &self.about;
        self.counts.trapped();
        about.traps.fetch_add(1, Ordering::Relaxed);
        self.runtime.recent.ended(about, kind, FAILED.0.as_u16().into(), text);
        tracing::info!(target: logging::GUEST, namespace = %about.namespace, task = %about.id, text, "the guest of a request trapped");
    }

    /// Tells of a guest's end, and what to answer if it left no response. `name` is how a message calls what
    /// it was doing.
    fn ended(&self, end: End<Verdict>, name: impl FnOnce() -> String) -> Refused {
        if !matches!(end, End::Completed(Verdict::Returned)) {
            // What is told and remembered, the daemon tells.
            identity::restore();
        }
        let (note, refused) = match end {
            End::Completed(Verdict::Returned) => (None, Refused(FAILED.0, "the service gave no response")),
            End::Completed(Verdict::Full) => (None, BUSY),
            End::Completed(Verdict::Late) => {
                let ms = self.http.config().request_timeout_ms;
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
            self.notes.write(&self.stdio, &format!("{}: {note}", name()));
        }
        refused
    }
}
