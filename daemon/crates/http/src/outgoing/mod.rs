//! Requests that guests send: `wasi:http`'s outgoing handler (0.2) and client (0.3).
//!
//! ```text
//!  guest ─ send_request ─▶ a job on the `http` threads, ended with the guest
//!                             │ an idle connection to the same server, or
//!                             ▼
//!                          names (the pod's) ─▶ a socket (made in the pod's network), perhaps to a proxy
//!                             │                     ─▶ TLS (the image's roots)
//!                             │
//!                             ▼
//!                          head ─▶ guest;  body ─▶ piece by piece, as the guest reads;  connection ─▶ idle
//! ```
//!
//! wasmtime-wasi-http's own way of sending is not even compiled in: it would look up names by the node's
//! files and connect from the node's network.
//!
//! A guest that ends, however it does, takes its requests with it: a request without a response yet has its connection
//! closed, and so has a request whose response has not been read to its end.
//!
//! HTTP/1.1, one request at a time on a connection, which is kept for the next; and HTTP/2, several requests on a
//! connection. Over TLS, the server chooses.
//!
//! Failures are `wasi:http`'s error codes, see [`fault`].
//!
//! * `client.rs`: one container's requests: which connection each goes over, and its time-outs.
//! * `route.rs`: where a request goes: the server, the protocol, proxies, the request line.
//! * `connect.rs`: making a connection: addresses, the tunnel through a proxy, TLS, HTTP/1.1 or HTTP/2.
//! * `server_origin.rs`: the server that a request names: scheme, host and port.
//! * `sender.rs`: a connection that a request can be sent on, or a stream of one.
//! * `idle.rs`: connections that are kept: those that wait for their next request, and those of HTTP/2.
//! * `body.rs`: bodies of requests and responses, and the time-out between bytes.
//! * `context.rs`: the context that the clients of all containers share.
//! * `tls.rs`: the certificates that a container trusts.
//! * `tls_configurations.rs`: one TLS configuration for each set of certificates.
//! * `fault.rs`: which failure has which error code.

pub mod body;
pub mod client;
pub mod connect;
pub mod context;
pub mod fault;
pub mod idle;
pub mod route;
pub mod sender;
pub mod server_origin;
pub mod tls;
pub mod tls_configurations;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::{Request, Response};
use tokio::task::JoinHandle;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use crate::calls::{Called, Caller};
use crate::trace_context::CurrentTrace;
use client::Client;
use server_origin::ServerOrigin;

/// The most a guest may write of a body in one call, in bytes.
const CHUNK_BYTES: usize = 64 << 10;

/// Sends a guest's requests.
#[derive(Clone)]
pub struct Outgoing {
    client: Option<Arc<Client>>,
    /// The component that sends them, of an application.
    caller: Option<Caller>,
    trace: CurrentTrace,
}

impl Outgoing {
    /// By this client; without one they are refused with `HTTP-request-denied`.
    pub fn new(client: Option<Arc<Client>>) -> Outgoing {
        Outgoing { client, caller: None, trace: CurrentTrace::default() }
    }

    /// The same for a component of an application, which may call others, and whose hosts are restricted.
    pub fn of_application(client: Option<Arc<Client>>, caller: Caller) -> Outgoing {
        Outgoing { client, caller: Some(caller), trace: CurrentTrace::default() }
    }

    /// The same, for an instance whose requests belong to `trace`.
    pub fn traced(self, trace: &CurrentTrace) -> Outgoing {
        Outgoing { trace: trace.clone(), ..self }
    }
}

/// The head of a response, once it is there.
type Pending = Pin<Box<dyn Future<Output = Result<Response<WasiBody>, Error>> + Send>>;

type Sent = Result<(Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>), Error>;

impl WasiHttpHooks for Outgoing {
    fn send_request(
        &mut self,
        mut request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _processed: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        self.trace.carry_on(request.headers_mut());
        let options = options.unwrap_or_default();
        let server = ServerOrigin::of(request.uri()).inspect_err(|error| {
            if let Some(client) = &self.client {
                client.failed(error);
            }
        });
        let sent = server.and_then(|server| self.send(server, request, options));
        match sent {
            Ok(pending) => Box::new(async move { Ok((pending.await?, moved())) }),
            Err(error) => Box::new(std::future::ready(Err(error))),
        }
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        CHUNK_BYTES
    }

    fn p3_outgoing_body_chunk_size(&mut self) -> usize {
        CHUNK_BYTES
    }
}

impl Outgoing {
    /// Sends a request to a component of the own application, or to a server that may be reached.
    fn send(
        &self,
        server: ServerOrigin,
        request: Request<WasiBody>,
        options: RequestOptions,
    ) -> Result<Pending, Error> {
        let request = match &self.caller {
            None => request,
            Some(caller) => match caller.route(&server, request)? {
                Called::Answered(response) => return Ok(Box::pin(std::future::ready(Ok(response)))),
                Called::Component(component, request) => {
                    return Ok(Box::pin(caller.clone().call(component, request, options)));
                }
                Called::Server(request) => request,
            },
        };
        let client = self.client.clone().ok_or(Error::HttpRequestDenied)?;
        client.check(&server).map_err(|error| self.caller.as_ref().map_or(error, |caller| caller.denied(&server)))?;
        let runtime = client.runtime().clone();
        Ok(Box::pin(PendingRequest(runtime.spawn(client.exchange(server, request, options)))))
    }
}

/// The part of a response that a guest's store would have to move: none. Connections are driven by tasks of their own.
fn moved() -> Box<dyn Future<Output = Result<(), Error>> + Send> {
    Box::new(std::future::ready(Ok(())))
}

/// A request under way, which ends when it is dropped.
struct PendingRequest(JoinHandle<Result<Response<WasiBody>, Error>>);

impl Future for PendingRequest {
    type Output = Result<Response<WasiBody>, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let done = Pin::new(&mut self.0).poll(cx);
        done.map(|done| done.unwrap_or_else(|_| Err(Error::InternalError(Some("the request was given up".into())))))
    }
}

impl Drop for PendingRequest {
    fn drop(&mut self) {
        self.0.abort();
    }
}
