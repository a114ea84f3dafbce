//! A request of a component of Spin's first SDKs, which gets the body of a request as a whole, and gives a whole response.
//!
//! The daemon keeps both bodies meanwhile. They count as memory of the container.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Body;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use wasmtime::Store;
use wasmtime_wasi_http::{DEFAULT_FORBIDDEN_HEADERS, WasiBody};

use hearth_wasm::memory::HeldMemory;
use hearth_wasm::spin_handlers::{
    HttpComponent, Method as SpinMethod, Request as SpinRequest, Response as SpinResponse,
};
use hearth_wasm::state::ComponentState;

use crate::refused::{NO_MEMORY, Refused};
use crate::request_body::RequestBody;
use crate::request_state::{RequestState, WrittenBody};

/// The largest body of a request, in bytes.
const BODY_BYTES_MAX: u64 = 16 << 20;

/// The answer to a method that the interface does not have.
const METHOD: Refused = Refused::new(StatusCode::METHOD_NOT_ALLOWED, "the component takes no requests of this method");
/// The answer to a request with too large a body.
const TOO_LARGE: Refused =
    Refused::new(StatusCode::PAYLOAD_TOO_LARGE, "the component takes bodies of up to 16 MiB only");
/// The answer to a request whose body does not arrive.
const NO_BODY: Refused = Refused::new(StatusCode::BAD_REQUEST, "the body of the request did not arrive");
/// The answer to a request with headers that are no text.
const HEADERS: Refused = Refused::new(StatusCode::BAD_REQUEST, "a header of the request is no text");

/// Gives a request to an instance, and waits for the response. `state` is told when the guest is called.
///
/// # Errors
/// The guest trapped or exited.
pub(crate) async fn answer(
    store: &mut Store<ComponentState>,
    component: &HttpComponent,
    request: Request<RequestBody>,
    state: &RequestState,
) -> wasmtime::Result<Response<WrittenBody>> {
    let mut held = store.data().limits.usage().hold();
    let request = match whole(request, &mut held).await {
        Ok(request) => request,
        Err(refused) => return Ok(refused.response().map(written)),
    };
    state.call();
    let response = component.fermyon_spin_inbound_http().call_handle_request(store, &request).await?;
    drop(request);
    if !held.grow(response.body.as_ref().map_or(0, Vec::len) as u64) {
        return Ok(NO_MEMORY.response().map(written));
    }
    // Charged as long as there is a body.
    let keeping = move |frame| {
        let _held = &held;
        frame
    };
    Ok(response_of(response).map(|body| WrittenBody::P3(body.map_frame(keeping).boxed_unsync())))
}

/// The request with its body.
///
/// # Errors
/// The answer instead of the component's.
async fn whole(request: Request<RequestBody>, held: &mut HeldMemory) -> Result<SpinRequest, Refused> {
    let (parts, body) = request.into_parts();
    let method = match parts.method {
        Method::GET => SpinMethod::Get,
        Method::POST => SpinMethod::Post,
        Method::PUT => SpinMethod::Put,
        Method::DELETE => SpinMethod::Delete,
        Method::PATCH => SpinMethod::Patch,
        Method::HEAD => SpinMethod::Head,
        Method::OPTIONS => SpinMethod::Options,
        _ => return Err(METHOD),
    };
    let uri = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let mut headers = Vec::with_capacity(parts.headers.len());
    for (name, value) in &parts.headers {
        headers.push((name.to_string(), std::str::from_utf8(value.as_bytes()).map_err(|_| HEADERS)?.to_owned()));
    }
    let body = Some(collected(body, held).await?);
    Ok(SpinRequest { method, uri, headers, params: Vec::new(), body })
}

/// The bytes of a body.
async fn collected(mut body: RequestBody, held: &mut HeldMemory) -> Result<Vec<u8>, Refused> {
    if body.size_hint().lower() > BODY_BYTES_MAX {
        return Err(TOO_LARGE);
    }
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| NO_BODY)?.into_data() else { continue };
        if (bytes.len() + data.len()) as u64 > BODY_BYTES_MAX {
            return Err(TOO_LARGE);
        }
        if !held.grow(data.len() as u64) {
            return Err(NO_MEMORY);
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

/// The response of a component. Headers that only a server may set are left out.
fn response_of(response: SpinResponse) -> Response<WasiBody> {
    let SpinResponse { status, headers, body } = response;
    let mut made = Response::new(whole_body(Full::from(body.unwrap_or_default())));
    let status = StatusCode::from_u16(status).ok().filter(|status| status.as_u16() < 600);
    *made.status_mut() = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in headers.unwrap_or_default() {
        let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) else { continue };
        if !DEFAULT_FORBIDDEN_HEADERS.contains(&name) {
            made.headers_mut().append(name, value);
        }
    }
    made
}

fn whole_body(body: Full<Bytes>) -> WasiBody {
    body.map_err(|never| match never {}).boxed_unsync()
}

fn written(body: Full<Bytes>) -> WrittenBody {
    WrittenBody::P3(whole_body(body))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hearth_wasm::memory::MemoryUse;

    use super::*;

    fn request(method: &str, body: Vec<u8>) -> Request<RequestBody> {
        let body = whole_body(Full::new(Bytes::from(body)));
        let request = Request::builder().method(method).uri("http://here/a/b?c=d").header("x", "y");
        request.body(RequestBody::Component(body)).unwrap()
    }

    #[tokio::test]
    async fn a_request_is_whole() {
        let memory = Arc::new(MemoryUse::new(1_000));
        let mut held = memory.hold();
        let whole_one = whole(request("PATCH", vec![1; 10]), &mut held).await.unwrap();
        assert!(matches!(whole_one.method, SpinMethod::Patch));
        assert_eq!((whole_one.uri.as_str(), whole_one.body.unwrap().len(), memory.current()), ("/a/b?c=d", 10, 10));
        assert_eq!(whole_one.headers, [("x".to_owned(), "y".to_owned())]);
        assert_eq!(whole(request("TRACE", Vec::new()), &mut held).await.err(), Some(METHOD));
        assert_eq!(whole(request("PUT", vec![1; 1_000]), &mut held).await.err(), Some(NO_MEMORY));
        let large = vec![1; BODY_BYTES_MAX as usize + 1];
        assert_eq!(whole(request("PUT", large), &mut held).await.err(), Some(TOO_LARGE));
    }

    #[test]
    fn a_response_has_a_status_and_headers_that_a_component_may_give() {
        let headers = ["x-a", "connection", "x-a", "bad name"].map(|name| (name.to_owned(), "1".to_owned()));
        let response = SpinResponse { status: 204, headers: Some(headers.into()), body: None };
        let made = response_of(response);
        assert_eq!((made.status(), made.headers().len()), (StatusCode::NO_CONTENT, 2));
        for status in [0, 99, 600, 999] {
            let made = response_of(SpinResponse { status, headers: None, body: None });
            assert_eq!(made.status(), StatusCode::INTERNAL_SERVER_ERROR, "{status}");
        }
    }
}
