//! The floor: a server of the same hyper and tokio, in a process of its own, that answers every request with the bytes
//! of the component's answer.
//!
//! Failure paths: a connection that breaks off is forgotten; without a port the process ends, and says why.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use anyhow::{Context, Result};
use futures_util::stream;
use http_body_util::StreamBody;
use hyper::body::{Bytes, Frame};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};

use crate::null_server::{first_line, say_ready};
use crate::process::{Tied, tied_command};
use crate::signals::Signals;

/// Headers that a connection adds to an answer, and will add again.
const OF_THE_CONNECTION: [HeaderName; 3] = [header::CONNECTION, header::DATE, header::TRANSFER_ENCODING];

/// An answer of the component with status 200, which the floor repeats.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Its own headers.
    headers: Vec<(String, Vec<u8>)>,
    /// All of its body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The part of a response that is the component's own.
    pub fn of(headers: &HeaderMap, body: Bytes) -> Answer {
        let own = headers.iter().filter(|(name, _)| !OF_THE_CONNECTION.contains(name));
        let headers = own.map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect();
        Answer { headers, body: body.into() }
    }

    fn headers(&self) -> Result<HeaderMap> {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            headers.append(HeaderName::try_from(name)?, HeaderValue::from_bytes(value)?);
        }
        Ok(headers)
    }
}

/// Starts the server in a process of its own with the answer, which it reads from a new file, and waits until it
/// listens. To be called on the main thread.
///
/// # Errors
/// If it does not come up.
pub fn spawn(answer: &Answer, file: &Path) -> Result<(Tied, SocketAddr)> {
    std::fs::write(file, serde_json::to_vec(answer)?).with_context(|| format!("cannot write {}", file.display()))?;
    let own = std::env::current_exe().context("cannot find this program's own path")?;
    let mut command = tied_command(own.as_os_str())?;
    command.arg("http-floor").arg(file).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut server = Tied::spawn("the HTTP floor", command)?;
    let line = first_line(&mut server)?;
    let address = line.trim_end().parse().context("the HTTP floor did not come up; its error is above")?;
    Ok((server, address))
}

/// The hidden `http-floor` command: serves the answer in `file` on a free port of the loopback until SIGTERM, with a
/// thread per core.
///
/// # Errors
/// If the file holds no answer, or no port can be had.
pub fn serve(file: &Path) -> Result<()> {
    let text = std::fs::read(file).with_context(|| file.display().to_string())?;
    let answer: Answer = serde_json::from_slice(&text).with_context(|| file.display().to_string())?;
    let (headers, body) = (Arc::new(answer.headers()?), Bytes::from(answer.body));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut signals = Signals::watch()?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("cannot listen on the loopback")?;
        say_ready(&format!("{}\n", listener.local_addr()?))?;
        let accept = async {
            loop {
                let (stream, _) = listener.accept().await.context("cannot accept a connection")?;
                tokio::spawn(connection(stream, headers.clone(), body.clone()));
            }
        };
        tokio::select! {
            _ = signals.first() => Ok(()),
            failed = accept => failed,
        }
    })
}

async fn connection(stream: TcpStream, headers: Arc<HeaderMap>, body: Bytes) {
    // The other servers set it, too.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|_| {
        let (headers, body) = (headers.clone(), body.clone());
        async move {
            // As one piece of unknown length, as a guest's body comes: chunked, unless the component said its length.
            let frames = stream::iter([Ok::<_, Infallible>(Frame::data(body))]);
            let mut response = hyper::Response::new(StreamBody::new(frames));
            *response.headers_mut() = HeaderMap::clone(&headers);
            Ok::<_, Infallible>(response)
        }
    });
    // A client may close its connection at any time.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_the_components_headers_and_not_the_connections() {
        let mut headers = HeaderMap::new();
        headers.insert(header::DATE, HeaderValue::from_static("now"));
        headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        headers.append(header::SET_COOKIE, HeaderValue::from_static("a=1"));
        headers.append(header::SET_COOKIE, HeaderValue::from_bytes(b"b=\xff").unwrap());
        let answer = Answer::of(&headers, Bytes::from_static(b"hello"));
        let written: Answer = serde_json::from_slice(&serde_json::to_vec(&answer).unwrap()).unwrap();
        assert_eq!(written, answer);
        let headers = written.headers().unwrap();
        assert_eq!(headers.len(), 2);
        assert_eq!(headers.get_all(header::SET_COOKIE).iter().nth(1).unwrap().as_bytes(), b"b=\xff");
    }
}
