//! Requests of guests to others.
//!
//! They are refused: wasmtime-wasi-http would make their connections in the daemon's own network. A guest
//! can use `wasi:sockets`, which are the pod's.

use hyper::{Request, Response};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

/// The most a guest may write of a body in one call, in bytes.
const CHUNK_BYTES: usize = 64 << 10;

/// Refuses every request with `HTTP-request-denied`.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing;

type Sent = Result<(Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>), Error>;

impl WasiHttpHooks for Outgoing {
    fn send_request(
        &mut self,
        _request: Request<WasiBody>,
        _options: Option<RequestOptions>,
        _processed: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        Box::new(std::future::ready(Err(Error::HttpRequestDenied)))
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        CHUNK_BYTES
    }
}
