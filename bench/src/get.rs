//! One HTTP request over a connection of its own; for a load there is wrk.

use anyhow::Result;
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;

/// Asks `http://<address><path>` over a connection of its own.
///
/// # Errors
/// If nothing answers there, or not with HTTP/1.1. Any status is an answer.
pub async fn get(address: &str, path: &str) -> Result<Response<Bytes>> {
    let stream = tokio::net::TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request =
        Request::get(path).header("host", address).header("connection", "close").body(Empty::<Bytes>::new())?;
    let (head, body) = sender.send_request(request).await?.into_parts();
    let body = body.collect().await?.to_bytes();
    connection.abort();
    Ok(Response::from_parts(head, body))
}
