//! A connection that a request can be sent on: one of HTTP/1.1, which the request has for itself, or a stream of HTTP/2
//! beside others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper::{Request, Response};
use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;

use super::body::Sending;
use super::route::{Route, Server};

/// Requests at once on one connection of HTTP/2: what RFC 9113, 6.5.2 recommends servers to allow at least. With a server
/// that allows fewer, requests wait.
const STREAMS_MAX: usize = 100;

/// A connection, to send a request on.
pub enum Sender {
    /// Of HTTP/1.1.
    Http1(http1::SendRequest<Sending>),
    /// A stream of HTTP/2.
    Http2(Http2Stream),
}

impl Sender {
    /// Sends a request and waits for its response's head.
    ///
    /// # Errors
    /// hyper's, with the request if none of it was sent.
    pub async fn send(
        &mut self,
        mut request: Request<Sending>,
        route: &Route,
    ) -> Result<Response<Incoming>, TrySendError<Request<Sending>>> {
        match self {
            Sender::Http1(sender) => {
                route.write_http1(&mut request);
                sender.try_send_request(request).await
            }
            Sender::Http2(stream) => {
                route.write_http2(&mut request);
                let mut sender = stream.connection.sender.clone();
                sender.try_send_request(request).await
            }
        }
    }

    /// No other request is sent on the connection: it did not answer in time, or took no request.
    pub fn retire(&self) {
        if let Sender::Http2(stream) = self {
            stream.connection.is_retired.store(true, Ordering::Relaxed);
        }
    }
}

/// A connection of HTTP/2.
pub struct Http2Connection {
    /// The other end.
    pub server: Server,
    sender: http2::SendRequest<Sending>,
    streams: AtomicUsize,
    free_since: Mutex<Instant>,
    is_retired: AtomicBool,
}

impl Http2Connection {
    /// A new connection, without a stream.
    pub fn new(server: Server, sender: http2::SendRequest<Sending>) -> Arc<Http2Connection> {
        Arc::new(Http2Connection {
            server,
            sender,
            streams: AtomicUsize::new(0),
            free_since: Mutex::new(Instant::now()),
            is_retired: AtomicBool::new(false),
        })
    }

    /// Whether it can have streams.
    pub fn is_open(&self) -> bool {
        !self.sender.is_closed() && !self.is_retired.load(Ordering::Relaxed)
    }

    /// Since when it has had no stream; none while it has one.
    pub fn free_since(&self) -> Option<Instant> {
        (self.streams.load(Ordering::Acquire) == 0).then(|| *self.free_since.lock())
    }

    /// A stream of it; the place back if it has as many as it may have.
    ///
    /// # Errors
    /// The place.
    pub fn stream(self: &Arc<Self>, place: OwnedSemaphorePermit) -> Result<Http2Stream, OwnedSemaphorePermit> {
        let more = |streams| (streams < STREAMS_MAX).then_some(streams + 1);
        match self.streams.fetch_update(Ordering::AcqRel, Ordering::Acquire, more) {
            Ok(_) => Ok(Http2Stream { connection: self.clone(), _place: place }),
            Err(_) => Err(place),
        }
    }
}

/// A request's stream.
pub struct Http2Stream {
    connection: Arc<Http2Connection>,
    /// Its place among the streams of the container.
    _place: OwnedSemaphorePermit,
}

impl Drop for Http2Stream {
    fn drop(&mut self) {
        *self.connection.free_since.lock() = Instant::now();
        self.connection.streams.fetch_sub(1, Ordering::AcqRel);
    }
}
