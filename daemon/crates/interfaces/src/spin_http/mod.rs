//! `fermyon:spin/http`: requests to servers, as Spin's first SDKs send them: with whole bodies.

use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, Response};
use wasmtime::component::{HasSelf, Linker};
use wasmtime_wasi_http::{Error, WasiBody};

use hearth_wasm::host_interface::HostInterface;
use hearth_wasm::memory::HeldMemory;
use hearth_wasm::state::ComponentState;

use crate::spin_v1::http::{Host, add_to_linker as add_http};
use crate::spin_v1::http_types::{
    Host as TypesHost, HttpError, Method as SpinMethod, Request as SpinRequest, Response as SpinResponse,
};

/// The registration. Requests by `wasi:http` need no setting, either.
pub const INTERFACE: HostInterface =
    HostInterface { imports: &["fermyon:spin/http"], is_granted: |_| true, setting: "nothing", add_to_linker };

/// The largest body of a response, in bytes.
const BODY_BYTES_MAX: usize = 16 << 20;

/// The host of a component's own application, for addresses that begin with a slash.
const OWN: &str = "http://self.alt";

impl TypesHost for ComponentState {}

impl Host for ComponentState {
    async fn send_request(&mut self, request: SpinRequest) -> Result<SpinResponse, HttpError> {
        let request = request_of(request)?;
        let sent = self.outgoing.send_request(request, None, Box::new(std::future::ready(Ok(()))));
        let (response, moved) = Box::into_pin(sent).await.map_err(error_of)?;
        drop(moved);
        response_of(response, self.limits.usage().hold()).await
    }
}

fn request_of(request: SpinRequest) -> Result<Request<WasiBody>, HttpError> {
    let SpinRequest { method, uri, headers, body, .. } = request;
    let method = match method {
        SpinMethod::Get => Method::GET,
        SpinMethod::Post => Method::POST,
        SpinMethod::Put => Method::PUT,
        SpinMethod::Delete => Method::DELETE,
        SpinMethod::Patch => Method::PATCH,
        SpinMethod::Head => Method::HEAD,
        SpinMethod::Options => Method::OPTIONS,
    };
    let uri = if uri.starts_with('/') { format!("{OWN}{uri}") } else { uri };
    let uri: hyper::Uri = uri.parse().map_err(|_| HttpError::InvalidUrl)?;
    // A name alone would be read as an authority.
    let authority = uri.authority().filter(|_| uri.scheme().is_some());
    let host = authority.ok_or(HttpError::InvalidUrl)?.as_str().to_owned();
    let body = body.unwrap_or_default();
    let mut made = Request::builder().method(method).uri(uri);
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        made = made.header("host", host);
    }
    for (name, value) in headers {
        // The daemon counts the body itself.
        if !name.eq_ignore_ascii_case("content-length") {
            made = made.header(name, value);
        }
    }
    if !body.is_empty() {
        made = made.header("content-length", body.len());
    }
    let body = Full::from(body).map_err(|never| match never {}).boxed_unsync();
    made.body(body).map_err(|_| HttpError::RuntimeError)
}

/// The response with its body, which counts as memory of the container until the guest has it.
async fn response_of(response: Response<WasiBody>, mut held: HeldMemory) -> Result<SpinResponse, HttpError> {
    let (parts, mut body) = response.into_parts();
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(error_of)?.into_data() else { continue };
        if bytes.len() + data.len() > BODY_BYTES_MAX || !held.grow(data.len() as u64) {
            return Err(HttpError::RuntimeError);
        }
        bytes.extend_from_slice(&data);
    }
    let headers = parts.headers.iter();
    let headers = headers.map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into()));
    Ok(SpinResponse { status: parts.status.as_u16(), headers: Some(headers.collect()), body: Some(bytes) })
}

fn error_of(error: Error) -> HttpError {
    match error {
        Error::HttpRequestDenied => HttpError::DestinationNotAllowed,
        Error::HttpRequestUriInvalid => HttpError::InvalidUrl,
        Error::ConnectionLimitReached => HttpError::TooManyRequests,
        _ => HttpError::RequestError,
    }
}

fn add_to_linker(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    add_http::<_, HasSelf<ComponentState>>(linker, |state| state)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(uri: &str) -> Result<Request<WasiBody>, HttpError> {
        let headers = vec![("Content-Length".into(), "7".into()), ("x-a".into(), "b".into())];
        let (params, body) = (Vec::new(), Some(b"abc".to_vec()));
        request_of(SpinRequest { method: SpinMethod::Put, uri: uri.into(), headers, params, body })
    }

    #[test]
    fn a_request_goes_to_a_server_or_to_its_own_application() {
        let request = to("http://here:81/a").unwrap();
        assert_eq!((request.method(), request.uri().path()), (&Method::PUT, "/a"));
        assert_eq!(
            (&request.headers()["host"], &request.headers()["content-length"]),
            (&"here:81".parse().unwrap(), &"3".parse().unwrap())
        );
        assert_eq!(request.headers()["x-a"], "b");
        assert_eq!(to("/a").unwrap().uri().host(), Some("self.alt"));
        for wrong in ["", "a", "http://", "http://a b/"] {
            assert!(matches!(to(wrong), Err(HttpError::InvalidUrl)), "{wrong}");
        }
    }
}
