//! An OpenTelemetry collector that keeps the spans it receives, over OTLP/HTTP and OTLP/gRPC on one port.
//!
//! No collector is packaged for Debian. The messages are types of OpenTelemetry's own crate; this module has the two
//! framings of one call.

use std::convert::Infallible;
use std::io::Read;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use flate2::read::GzDecoder;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use rustls::ServerConfig;
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

/// gRPC's header of a message: whether it is compressed, and its length.
const GRPC_HEADER: usize = 5;

/// How the collector answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    /// With success.
    Well,
    /// Never: it accepts connections and reads nothing.
    Never,
    /// With an error.
    Refusal,
}

/// The collector. Dropping it stops it.
#[derive(Debug)]
pub struct Collector {
    address: String,
    kept: Arc<Mutex<Kept>>,
    _runtime: Option<Runtime>,
    /// The listener of a collector that never answers.
    _silent: Option<TcpListener>,
}

/// The requests it has received.
#[derive(Debug, Default)]
struct Kept {
    requests: Vec<ExportTraceServiceRequest>,
    headers: Vec<HeaderMap>,
}

impl Collector {
    /// Starts one on a free port.
    ///
    /// # Panics
    /// If there is none.
    pub fn start(answers: Answers) -> Self {
        Self::serve(answers, None)
    }

    /// The same by TLS.
    ///
    /// # Panics
    /// If there is no free port.
    pub fn start_with_tls(mut tls: ServerConfig) -> Self {
        tls.alpn_protocols = vec![b"h2".into(), b"http/1.1".into()];
        Self::serve(Answers::Well, Some(Arc::new(tls).into()))
    }

    fn serve(answers: Answers, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it is bound").to_string();
        let kept = Arc::default();
        if answers == Answers::Never {
            return Self { address, kept, _runtime: None, _silent: Some(listener) };
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime can be made");
        listener.set_nonblocking(true).expect("a socket can be made so");
        let _entered = runtime.enter();
        let listener = tokio::net::TcpListener::from_std(listener).expect("it is a socket");
        runtime.spawn(accept(listener, tls, answers, Arc::clone(&kept)));
        Self { address, kept, _runtime: Some(runtime), _silent: None }
    }

    /// `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Every span so far.
    ///
    /// # Panics
    /// If a request before has panicked.
    pub fn spans(&self) -> Vec<Span> {
        let kept = self.kept.lock().expect("no thread panics with the lock held");
        let resources = kept.requests.iter().flat_map(|request| &request.resource_spans);
        resources.flat_map(|resource| &resource.scope_spans).flat_map(|scope| scope.spans.clone()).collect()
    }

    /// The value of an attribute of the sender, in the last request.
    ///
    /// # Panics
    /// If a request before has panicked.
    pub fn resource(&self, name: &str) -> Option<String> {
        let kept = self.kept.lock().expect("no thread panics with the lock held");
        let request = kept.requests.last()?;
        attribute(&request.resource_spans.first()?.resource.as_ref()?.attributes, name)
    }

    /// A header of the last request.
    ///
    /// # Panics
    /// If a request before has panicked.
    pub fn header(&self, name: &str) -> Option<String> {
        let kept = self.kept.lock().expect("no thread panics with the lock held");
        Some(kept.headers.last()?.get(name)?.to_str().ok()?.to_owned())
    }
}

/// The value of an attribute, if it is a text.
pub fn attribute(attributes: &[KeyValue], name: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == name)?;
    match found.value.as_ref()?.value.as_ref()? {
        any_value::Value::StringValue(text) => Some(text.clone()),
        _ => None,
    }
}

async fn accept(listener: tokio::net::TcpListener, tls: Option<TlsAcceptor>, answers: Answers, kept: Arc<Mutex<Kept>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let kept = Arc::clone(&kept);
        let service = service_fn(move |request| {
            let kept = Arc::clone(&kept);
            async move { Ok::<_, Infallible>(take(request, answers, &kept).await) }
        });
        let tls = tls.clone();
        tokio::spawn(async move {
            let server = auto::Builder::new(TokioExecutor::new());
            // A client that closes its connection is no error here.
            match tls {
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        let _ = server.serve_connection(TokioIo::new(stream), service).await;
                    }
                }
                None => {
                    let _ = server.serve_connection(TokioIo::new(stream), service).await;
                }
            }
        });
    }
}

/// Keeps one request, and answers it in the framing of its protocol.
async fn take(
    request: Request<Incoming>,
    answers: Answers,
    kept: &Mutex<Kept>,
) -> Response<BoxBody<Bytes, Infallible>> {
    let (head, body) = request.into_parts();
    let is_grpc = head.headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let path = if is_grpc { "/opentelemetry.proto.collector.trace.v1.TraceService/Export" } else { "/v1/traces" };
    let (is_compressed, message) = match is_grpc {
        true => (body.first() == Some(&1), body.get(GRPC_HEADER..).unwrap_or_default()),
        false => (head.headers.get(CONTENT_ENCODING).is_some_and(|how| how == "gzip"), &body[..]),
    };
    let message = if is_compressed { unpacked(message) } else { Some(message.to_vec()) };
    let message = message.filter(|_| head.uri.path() == path);
    let message = message.and_then(|message| ExportTraceServiceRequest::decode(&message[..]).ok());
    match message {
        Some(message) if answers == Answers::Well => {
            let mut kept = kept.lock().expect("no thread panics with the lock held");
            kept.requests.push(message);
            kept.headers.push(head.headers);
            drop(kept);
            answer(is_grpc, 200, "0")
        }
        Some(_) => answer(is_grpc, 400, "3"),
        None => answer(is_grpc, 404, "12"),
    }
}

fn unpacked(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    GzDecoder::new(bytes).read_to_end(&mut all).ok()?;
    Some(all)
}

/// An empty message, or none: with HTTP's status, or gRPC's.
fn answer(is_grpc: bool, status: u16, grpc_status: &'static str) -> Response<BoxBody<Bytes, Infallible>> {
    let response = Response::builder();
    let response = match is_grpc {
        true => {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static(grpc_status));
            let body = Full::new(Bytes::from_static(&[0; GRPC_HEADER])).with_trailers(async { Some(Ok(trailers)) });
            response.header(CONTENT_TYPE, "application/grpc").body(body.boxed())
        }
        false => response.status(status).header(CONTENT_TYPE, "application/x-protobuf").body(Empty::new().boxed()),
    };
    response.expect("constant parts")
}
