//! The endpoint of the node's operators: `/metrics` for Prometheus, `/healthz` and `/readyz` for probes, and `/`, a page
//! for browsers. HTTP/1.1, over TCP or a Unix socket, with TLS if the configuration has a certificate.
//!
//! It binds to localhost by default. A client that sends slowly or not at all is disconnected; at most
//! `metrics.connections_max` are served at once. The contents are read on the blocking pool.
//!
//! * `mod.rs`: the requests: paths, token, time limits, health.
//! * `listen.rs`: the socket, TLS, and certificates that are renewed while the daemon runs.
//! * `page.rs`: the page for browsers, as HTML.

use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};

use crate::server::operator_calls::Operator;
use hearth_os::accept::Acceptor;
use listen::{Accepted, Connection, Listener};

pub mod listen;
pub mod page;

/// How long a client may take for its request's head.
const HEAD_TIME: Duration = Duration::from_secs(5);

/// How long one connection may last.
const CONNECTION_TIME: Duration = Duration::from_secs(60);

/// How long the daemon may take to show that it lives.
const HEALTH_TIME: Duration = Duration::from_secs(2);

/// Longer tokens are none, in bytes.
const TOKEN_BYTES_MAX: u64 = 4 << 10;

/// The parts that answer the endpoint's requests.
pub struct Endpoint {
    /// Where it looks.
    pub operator: Arc<Operator>,
    /// The file of the token that a client needs for all but probes; none if it needs none (`metrics.token_file`).
    pub token_file: Option<PathBuf>,
    /// Connections at once.
    pub connections_max: usize,
}

/// Serves for ever; cancel by dropping.
pub async fn serve(listener: Listener, endpoint: Endpoint) {
    let acceptor = Acceptor::new(listener, endpoint.connections_max, "metrics endpoint");
    let endpoint = Arc::new(endpoint);
    let begin = |accepted: Accepted| {
        let endpoint = endpoint.clone();
        let served = async { serve_connection(accepted.handshake().await?, endpoint).await.map_err(io::Error::other) };
        // One that is too slow is cut off.
        async { tokio::time::timeout(CONNECTION_TIME, served).await? }
    };
    acceptor.serve(begin).await;
}

async fn serve_connection(stream: Box<dyn Connection>, endpoint: Arc<Endpoint>) -> hyper::Result<()> {
    let service = service_fn(move |request| {
        let endpoint = endpoint.clone();
        async move { Ok::<_, Infallible>(answer(&request, &endpoint).await) }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

/// A status, a content type, a body.
type Answer = (StatusCode, &'static str, String);

const TEXT: &str = "text/plain; charset=utf-8";

async fn answer(request: &Request<Incoming>, endpoint: &Arc<Endpoint>) -> Response<Full<Bytes>> {
    if !matches!(request.method(), &Method::GET | &Method::HEAD) {
        let mut response = respond((StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n".into()));
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let path = request.uri().path();
    // Kubelet's probes bring no token, and learn next to nothing.
    match path {
        "/healthz" => return respond(health(&endpoint.operator).await),
        "/readyz" => return respond(readiness(&endpoint.operator).await),
        _ => {}
    }
    match admits(request, endpoint).await {
        Ok(true) => {}
        Ok(false) => return unauthorized(),
        Err(error) => {
            tracing::warn!(%error, "metrics.token_file cannot be read: nobody is let in");
            let text = "the daemon cannot read its metrics.token_file; see its log\n".to_string();
            return respond((StatusCode::SERVICE_UNAVAILABLE, TEXT, text));
        }
    }
    match path {
        "/metrics" => {
            let kind = "text/plain; version=0.0.4; charset=utf-8";
            respond(found(kind, endpoint.operator.scrape_all().await))
        }
        "/" => {
            let kind = "text/html; charset=utf-8";
            let mut response = respond(look(endpoint, kind, |operator| page::render(&operator.page())).await);
            let headers = response.headers_mut();
            // It has no script and loads nothing: whatever a guest smuggles into it stays text.
            let policy = HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'");
            headers.insert(header::CONTENT_SECURITY_POLICY, policy);
            headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
            response
        }
        _ => respond((StatusCode::NOT_FOUND, TEXT, "here are /, /metrics, /healthz and /readyz\n".into())),
    }
}

/// Looks something up off the threads that others wait for.
async fn look(
    endpoint: &Arc<Endpoint>,
    kind: &'static str,
    look: impl FnOnce(&Operator) -> String + Send + 'static,
) -> Answer {
    let operator = endpoint.operator.clone();
    found(kind, tokio::task::spawn_blocking(move || look(&operator)).await)
}

fn found(kind: &'static str, body: Result<String, impl std::fmt::Display>) -> Answer {
    match body {
        Ok(body) => (StatusCode::OK, kind, body),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
    }
}

fn respond((status, kind, body): Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn unauthorized() -> Response<Full<Bytes>> {
    let text = "a token is needed: Authorization: Bearer ...\n".to_string();
    let mut response = respond((StatusCode::UNAUTHORIZED, TEXT, text));
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

/// Whether the client may look. The file is read each time: secrets are rotated under a daemon that runs.
async fn admits(request: &Request<Incoming>, endpoint: &Endpoint) -> std::io::Result<bool> {
    let Some(path) = endpoint.token_file.clone() else { return Ok(true) };
    let wanted = tokio::task::spawn_blocking(move || read_token(&path)).await.map_err(std::io::Error::other)??;
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given =
        given.and_then(|value| value.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    // blake3's hashes are compared in constant time.
    Ok(given.is_some_and(|(_, token)| blake3::hash(token.trim().as_bytes()) == blake3::hash(wanted.as_bytes())))
}

/// The token in a file.
///
/// # Errors
/// It cannot be read, or holds none.
pub fn read_token(path: &std::path::Path) -> std::io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path)?.take(TOKEN_BYTES_MAX + 1).read_to_string(&mut text)?;
    match text.trim() {
        "" => Err(std::io::Error::other("it holds no token")),
        _ if text.len() as u64 > TOKEN_BYTES_MAX => Err(std::io::Error::other("it is too long for a token")),
        token => Ok(token.into()),
    }
}

/// Checks that the daemon lives: its runtimes run tasks, and the guests' ticker goes round.
async fn health(operator: &Operator) -> Answer {
    let alive = async {
        let answering = operator.answering.spawn(std::future::ready(())).await.is_ok();
        operator.world.runtime.scheduler.ticked().await;
        answering
    };
    match tokio::time::timeout(HEALTH_TIME, alive).await {
        Ok(true) => (StatusCode::OK, TEXT, "ok\n".into()),
        _ => (StatusCode::SERVICE_UNAVAILABLE, TEXT, "the daemon hangs: its threads do not go round\n".into()),
    }
}

/// Checks that it takes new tasks.
async fn readiness(operator: &Operator) -> Answer {
    if operator.task_sockets.is_draining() {
        let text = "draining: no new tasks (hearthctl drain --undo takes it back)\n";
        return (StatusCode::SERVICE_UNAVAILABLE, TEXT, text.into());
    }
    health(operator).await
}
