//! One request, as its client's side sees it: from its head to its response's head. Requests that no guest should see are
//! refused here, and so are requests over a limit.
//!
//! The client's side and the guest's side are two parts of the container on the scheduler. Between them are the response's
//! head, the two bodies, which are channels with room for two pieces, and a
//! [`RequestState`](crate::request_state::RequestState).

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Version};
use tokio::sync::oneshot;

use crate::admitted_request::AdmittedRequest;
use crate::client_rate::ClientRate;
use crate::counts::Timer;
use crate::isolated::serve_isolated;
use crate::refused::{BUSY, ENDING, Refused};
use crate::request_body::RequestBody;
use crate::request_guard::{RequestGuard, StartedRequest};
use crate::request_state::{ResponseHead, WrittenBody};
use crate::response::{GuestBody, ResponseBody};
use crate::service::Service;
use crate::shared::serve_shared;
use hearth_observe::metrics::CutReason;

/// The most of a request's path that a message shows, in characters.
const PATH_SHOWN_MAX: usize = 200;

/// Answers a request, and counts the answer.
pub async fn answer(service: Arc<Service>, request: Request<Incoming>) -> Response<ResponseBody> {
    let timer = Timer::new(service.counts.clone());
    let unanswered = Unanswered { service: &service, answered: false };
    let mut response = match handle(&service, request).await {
        Ok(response) => response,
        Err(refused) => {
            if refused == ENDING && service.requests.are_closed() {
                // The connection ends with the container, too: the client may get no answer.
                service.counts.cut(CutReason::Killed);
            } else if refused.status == StatusCode::SERVICE_UNAVAILABLE {
                service.counts.refused();
            }
            refused.response().map(ResponseBody::Daemon)
        }
    };
    unanswered.answered();
    service.counts.answered(response.status().as_u16(), timer.elapsed());
    if let ResponseBody::Guest(body) = response.body_mut() {
        body.timer = Some(timer);
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

/// Checks what hyper does not.
fn check(request: &Request<Incoming>) -> Result<(), Refused> {
    let headers = request.headers();
    // Upgrade: h2c is an offer that may be ignored; the client has to learn that any other is refused.
    let offers = headers.get_all(header::UPGRADE).iter().filter_map(|value| value.to_str().ok());
    let upgrades = offers.flat_map(|value| value.split(',')).any(|to| !to.trim().eq_ignore_ascii_case("h2c"));
    if request.method() == Method::CONNECT || upgrades {
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

async fn handle(service: &Arc<Service>, mut request: Request<Incoming>) -> Result<Response<ResponseBody>, Refused> {
    check(&request)?;
    if request.uri().authority().is_none() && !request.headers().contains_key(header::HOST) {
        // HTTP/1.0 allows a request without Host; wasi:http needs an authority.
        request.headers_mut().insert(header::HOST, HeaderValue::from_static("localhost"));
    }
    let config = service.http.config();
    let timeout = Duration::from_millis(config.request_timeout_ms);
    let admitted = tokio::time::timeout(timeout, service.admission.admit(&service.counts)).await;
    let admitted = admitted.ok().flatten().ok_or(BUSY)?;
    let admitted = Box::new((admitted, service.counts.begin()));

    let method = request.method().clone();
    let name = name(&request);
    let on_slow = {
        let (service, name) = (service.clone(), name.clone());
        Box::new(move || service.note_later(&name, format!("its client sent {}", service.least_rate())))
    };
    let request = request.map(|body| RequestBody::new(body, ClientRate::new(&config), on_slow));
    let (send_head, head) = oneshot::channel();
    let admitted = AdmittedRequest { request, send_head, name: name.clone(), admitted };
    let StartedRequest { guard, answer } = match &service.shared {
        None => serve_isolated(service, admitted)?,
        Some(instances) => serve_shared(service, instances, admitted)?,
    };
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
fn name(request: &Request<Incoming>) -> Arc<str> {
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
