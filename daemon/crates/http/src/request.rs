//! One request, as its client's side sees it: from its head to its response's head. Requests that no guest should see are
//! refused here, and so are requests over a limit.
//!
//! The client's side and the guest's side are two parts of the container on the scheduler. Between them are the response's
//! head, the two bodies, which are channels with room for two pieces, and a
//! [`RequestState`](crate::request_state::RequestState).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::http::uri::Scheme;
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use tokio::sync::oneshot;

use crate::admitted_request::AdmittedRequest;
use crate::client_rate::ClientRate;
use crate::exchange::Exchange;
use crate::isolated::serve_isolated;
use crate::refused::{BUSY, ENDING, Refused};
use crate::request_body::RequestBody;
use crate::request_guard::{RequestGuard, StartedRequest};
use crate::request_state::{ResponseHead, WrittenBody};
use crate::response::{GuestBody, ResponseBody};
use crate::service::Service;
use crate::shared::serve_shared;
use crate::site::Destination;
use hearth_observe::metrics::CutReason;

/// The most of a request's path that a message shows, in characters.
const PATH_SHOWN_MAX: usize = 200;

/// The answer to a client that asks for a WebSocket.
const WEBSOCKET: &str = "WebSockets are not supported: wasi:http 0.2 and 0.3 have no way to pass one to a component; use \
    server-sent events, or a gRPC stream";

/// The client of a connection's requests.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    /// It speaks TLS.
    pub secure: bool,
    /// Its address, where the access log or an application needs it.
    pub address: Option<SocketAddr>,
}

/// Answers a request, and counts the answer.
pub async fn answer(service: Arc<Service>, client: Client, request: Request<Incoming>) -> Response<ResponseBody> {
    let name = name(&request);
    let mut exchange = Exchange::new(&service, client, name, &request);
    let unanswered = Unanswered { service: &service, answered: false };
    let mut response = match handle(&service, client, request, &mut exchange).await {
        Ok(response) => response,
        Err(refused) => {
            if refused == ENDING && service.container.requests.are_closed() {
                // The connection ends with the container, too: the client may get no answer.
                service.counts.cut(CutReason::Killed);
            } else if refused.status == StatusCode::SERVICE_UNAVAILABLE {
                service.counts.refused();
            }
            refused.response().map(ResponseBody::Daemon)
        }
    };
    unanswered.answered();
    let status = response.status().as_u16();
    service.counts.answered(status, exchange.answered(status));
    match response.body_mut() {
        ResponseBody::Guest(body) => body.exchange = Some(exchange),
        ResponseBody::Daemon(body) => {
            exchange.sent = body.size_hint().lower();
            exchange.is_whole = true;
        }
    }
    response
}

/// A request without an answer: if it is dropped, its client has gone or its container was killed.
struct Unanswered<'a> {
    service: &'a Service,
    answered: bool,
}

impl Unanswered<'_> {
    fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.service.client_gone();
        }
    }
}

/// Checks that hyper does not make.
fn check(request: &Request<Incoming>) -> Result<(), Refused> {
    let headers = request.headers();
    let offers = || {
        let offers = headers.get_all(header::UPGRADE).iter().filter_map(|value| value.to_str().ok());
        offers.flat_map(|value| value.split(',').map(str::trim))
    };
    if offers().any(|to| to.eq_ignore_ascii_case("websocket")) {
        return Err(Refused::new(StatusCode::NOT_IMPLEMENTED, WEBSOCKET));
    }
    // Upgrade: h2c is an offer that may be ignored; the client has to learn that any other is refused.
    if request.method() == Method::CONNECT || offers().any(|to| !to.eq_ignore_ascii_case("h2c")) {
        return Err(Refused::new(StatusCode::NOT_IMPLEMENTED, "neither tunnels nor upgrades are supported"));
    }
    if let Some(expected) = headers.get(header::EXPECT)
        && !expected.as_bytes().eq_ignore_ascii_case(b"100-continue")
    {
        return Err(Refused::new(StatusCode::EXPECTATION_FAILED, "the expectation is unknown"));
    }
    let bad = |text| Err(Refused::new(StatusCode::BAD_REQUEST, text));
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (_, Some(_)) => bad("more than one Host"),
        (Some(host), None) if host.to_str().is_err() => bad("the Host is no text"),
        (None, None) if request.uri().authority().is_none() && request.version() == Version::HTTP_11 => {
            bad("the Host is missing")
        }
        _ => Ok(()),
    }
}

/// Gives a request over TLS the scheme `https`. Over HTTP/1.1, requests name no scheme, and a client of HTTP/2 may name a
/// wrong one.
fn mark_secure(request: &mut Request<Incoming>) {
    let mut parts = request.uri().clone().into_parts();
    if parts.authority.is_none() {
        let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()?.parse().ok());
        // It is no authority: the guest gets the request without a scheme.
        let Some(host) = host else { return };
        parts.authority = Some(host);
    }
    parts.scheme = Some(Scheme::HTTPS);
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
}

async fn handle(
    service: &Arc<Service>,
    client: Client,
    mut request: Request<Incoming>,
    exchange: &mut Exchange,
) -> Result<Response<ResponseBody>, Refused> {
    check(&request)?;
    if request.uri().authority().is_none() && !request.headers().contains_key(header::HOST) {
        // HTTP/1.0 allows a request without Host; wasi:http needs an authority.
        request.headers_mut().insert(header::HOST, HeaderValue::from_static("localhost"));
    }
    if client.secure {
        mark_secure(&mut request);
    }
    let component = match service.site.destination(&mut request, client.address)? {
        Destination::Component(component) => component,
        Destination::Daemon(response) => return Ok(response.map(ResponseBody::Daemon)),
    };
    exchange.name = component.name_of(&exchange.name);
    let config = service.http.config();
    let timeout = Duration::from_millis(config.request_timeout_ms);
    let admitted = tokio::time::timeout(timeout, service.admission.admit(&service.counts)).await;
    let admitted = admitted.ok().flatten().ok_or(BUSY)?;
    let admitted = Box::new((admitted, service.counts.begin()));
    exchange.admitted();

    let name = exchange.name.clone();
    let on_slow = {
        let (service, name) = (service.clone(), name.clone());
        Box::new(move || service.note_later(&name, format!("its client sent {}", service.least_rate())))
    };
    let request = request.map(|body| RequestBody::of_client(body, ClientRate::new(&config), on_slow));
    let (send_head, head) = oneshot::channel();
    let (secure, trace) = (client.secure, exchange.trace.clone());
    let admitted = AdmittedRequest { component, request, secure, trace, send_head, name, admitted };
    serve(service, admitted, head, Some(exchange)).await
}

/// Starts a guest of the request's component, and waits for the response's head, which comes by `head`.
///
/// # Errors
/// The answer instead of the guest's.
pub(crate) async fn serve(
    service: &Arc<Service>,
    admitted: AdmittedRequest,
    head: oneshot::Receiver<ResponseHead>,
    exchange: Option<&mut Exchange>,
) -> Result<Response<ResponseBody>, Refused> {
    let (component, name, method) =
        (admitted.component.clone(), admitted.name.clone(), admitted.request.method().clone());
    let StartedRequest { guard, answer } = match &component.shared {
        None => serve_isolated(service, admitted)?,
        Some(instances) => serve_shared(service, instances, admitted)?,
    };
    if let Some(exchange) = exchange {
        exchange.state = Some(guard.state().clone());
    }
    match head.await {
        Ok(head) => respond(service, &method, name, head, guard),
        // There will be none: the guest is gone, or will be in a moment.
        Err(_) => {
            guard.release();
            Err(answer.await.unwrap_or(ENDING))
        }
    }
}

/// How a message calls a request. The client chooses the path, but can put no line feed into it.
pub(crate) fn name<B>(request: &Request<B>) -> Arc<str> {
    let path: String = request.uri().path().chars().take(PATH_SHOWN_MAX).collect();
    format!("{} {path}", request.method()).into()
}

/// The response to a guest's head.
fn respond(
    service: &Arc<Service>,
    method: &Method,
    name: Arc<str>,
    head: ResponseHead,
    guard: RequestGuard,
) -> Result<Response<ResponseBody>, Refused> {
    let response = match head {
        Ok(response) => response,
        Err(code) => {
            guard.release();
            return Err(service.answered_with_error(&name, &code));
        }
    };
    let (parts, body) = response.into_parts();
    let length = parts.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let has_body =
        method != Method::HEAD && parts.status != StatusCode::NO_CONTENT && parts.status != StatusCode::NOT_MODIFIED;
    if has_body {
        let body = GuestBody::new(service, name, parts.status.as_u16(), body, length, guard);
        return Ok(Response::from_parts(parts, ResponseBody::Guest(body)));
    }
    // The guest writes a body that no client receives. Its time runs from now on, as after the end of a response.
    guard.release();
    service.http.runtime.spawn(async move {
        match body {
            WrittenBody::P2(mut body) => while let Some(Ok(_)) = body.frame().await {},
            WrittenBody::P3(mut body) => while let Some(Ok(_)) = body.frame().await {},
        }
    });
    Ok(Response::from_parts(parts, ResponseBody::Daemon(Full::default())))
}
