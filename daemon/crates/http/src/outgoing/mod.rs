//! Requests of guests to others: `wasi:http`'s outgoing handler (0.2) and client (0.3).
//!
//! ```text
//!  guest ─ send_request ─▶ a job on the `http` threads, ended with the guest
//!                             │ an idle connection to the same place, or
//!                             ▼
//!                          names (the pod's) ─▶ a socket (made in the pod's network) ─▶ TLS (the image's roots)
//!                             │
//!                             ▼
//!                          head ─▶ guest;  body ─▶ piece by piece, as the guest reads;  connection ─▶ idle
//! ```
//!
//! wasmtime-wasi-http's own way of sending is not even compiled in: it would look up names by the node's
//! files and connect from the node's network.
//!
//! A guest that ends, however it does, takes its requests with it: those without a response yet have their
//! connection closed, and so have those whose body has not been read to its end.
//!
//! HTTP/1.1, over TLS too; one request at a time on a connection, which is kept for the next.
//!
//! Failure paths are `wasi:http`'s error codes, see [`fault`].
//!
//! * [`client`]: one container's connections.
//! * [`idle`]: those that wait for their next request.
//! * [`body`]: bodies that know when they move.
//! * [`tls`]: whom a container trusts.
//! * [`fault`]: what went wrong, in `wasi:http`'s words.

pub mod body;
pub mod client;
pub mod fault;
pub mod idle;
pub mod tls;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::{Request, Response};
use tokio::task::JoinHandle;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use client::Client;

/// The most a guest may write of a body in one call, in bytes.
const CHUNK_BYTES: usize = 64 << 10;

/// What becomes of a guest's requests.
#[derive(Clone)]
pub struct Outgoing(Option<Arc<Client>>);

impl Outgoing {
    /// They are sent by this client; without one they are refused with `HTTP-request-denied`.
    pub fn new(client: Option<Arc<Client>>) -> Outgoing {
        Outgoing(client)
    }
}

type Sent = Result<(Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>), Error>;

impl WasiHttpHooks for Outgoing {
    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _processed: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        let Some(client) = self.0.clone() else {
            return Box::new(std::future::ready(Err(Error::HttpRequestDenied)));
        };
        let runtime = client.runtime().clone();
        let job = Job(runtime.spawn(client.exchange(request, options.unwrap_or_default())));
        Box::new(async move {
            let response = job.await?;
            // Its connection moves by itself.
            let moving: Box<dyn Future<Output = _> + Send> = Box::new(std::future::ready(Ok(())));
            Ok((response, moving))
        })
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        CHUNK_BYTES
    }

    fn p3_outgoing_body_chunk_size(&mut self) -> usize {
        CHUNK_BYTES
    }
}

/// A request under way, which ends with whoever waits for its response.
struct Job(JoinHandle<Result<Response<WasiBody>, Error>>);

impl Future for Job {
    type Output = Result<Response<WasiBody>, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let done = Pin::new(&mut self.0).poll(cx);
        done.map(|done| done.unwrap_or_else(|_| Err(Error::InternalError(Some("the request was given up".into())))))
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.0.abort();
    }
}
