//! The Prometheus endpoint: `/metrics`, `/healthz`, `/readyz`, over plain HTTP/1.1.
//!
//! It binds to localhost unless told otherwise. A client that sends slowly or not at all is cut off;
//! at most `metrics.connections_max` are served at once.

use std::convert::Infallible;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::server::operator::METRICS_ADDRESS;

/// How long a client may take for its request's head.
const HEAD_TIME: Duration = Duration::from_secs(5);

/// How long one connection may last.
const CONNECTION_TIME: Duration = Duration::from_secs(60);

/// Binds the endpoint, unless `passed` is it, and writes the address it got to [`METRICS_ADDRESS`].
///
/// # Errors
/// The address is taken or not ours, or the file cannot be written.
pub async fn bind(address: &str, passed: Option<OwnedFd>, state_dir: &Path) -> std::io::Result<TcpListener> {
    let passed = passed.map(std::net::TcpListener::from).filter(|passed| is_at(passed, address));
    let listener = match passed {
        Some(passed) => TcpListener::from_std(passed)?,
        None => TcpListener::bind(address).await?,
    };
    std::fs::write(state_dir.join(METRICS_ADDRESS), format!("{}\n", listener.local_addr()?))?;
    Ok(listener)
}

/// Whether a listener is the one we want; port 0 wants any.
fn is_at(listener: &std::net::TcpListener, address: &str) -> bool {
    let (Ok(is), Ok(wanted)) = (listener.local_addr(), address.parse::<std::net::SocketAddr>()) else { return false };
    is.ip() == wanted.ip() && (wanted.port() == 0 || is.port() == wanted.port())
}

/// Serves for ever; cancel by dropping. `render` makes the text of a scrape.
pub async fn serve<F, R>(listener: TcpListener, connections_max: usize, render: F)
where
    F: Fn() -> R + Send + Sync + 'static,
    R: Future<Output = String> + Send,
{
    let render = Arc::new(render);
    let places = Arc::new(Semaphore::new(connections_max));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept on the metrics endpoint");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let render = render.clone();
        tokio::spawn(async move {
            let _place = place;
            let service = service_fn(move |request| {
                let render = render.clone();
                async move { Ok::<_, Infallible>(answer(&request, || render()).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIME)
                .serve_connection(TokioIo::new(stream), service);
            if let Ok(Err(error)) = tokio::time::timeout(CONNECTION_TIME, connection).await {
                tracing::debug!(%error, "a scrape failed");
            }
        });
    }
}

async fn answer<R: Future<Output = String>>(
    request: &Request<Incoming>,
    render: impl Fn() -> R,
) -> Response<Full<Bytes>> {
    let (status, kind, body) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => {
            (StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", render().await)
        }
        // The endpoint is served once everything else is.
        (&Method::GET | &Method::HEAD, "/healthz" | "/readyz") => {
            (StatusCode::OK, "text/plain; charset=utf-8", "ok\n".into())
        }
        (&Method::GET | &Method::HEAD, _) => {
            (StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "here are /metrics, /healthz and /readyz\n".into())
        }
        _ => (StatusCode::METHOD_NOT_ALLOWED, "text/plain; charset=utf-8", "only GET and HEAD\n".into()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}
