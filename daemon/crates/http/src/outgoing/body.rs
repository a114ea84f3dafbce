//! Bodies of an outgoing request and of its response, which know when they move.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use parking_lot::Mutex;
use tokio::time::Sleep;
use wasmtime_wasi_http::{Error, WasiBody};

use super::client::Return;
use super::fault;

/// Since when the other side has been waited for.
#[derive(Debug, Clone)]
pub struct Waiting(Arc<Mutex<Option<Instant>>>);

impl Default for Waiting {
    /// From now on.
    fn default() -> Waiting {
        Waiting(Arc::new(Mutex::new(Some(Instant::now()))))
    }
}

impl Waiting {
    /// From now on, again.
    pub fn restart(&self) {
        *self.0.lock() = Some(Instant::now());
    }

    /// Waits until the other side has been waited for as long as `timeout`, without a break.
    pub async fn too_long(&self, timeout: Duration) {
        loop {
            let since = *self.0.lock();
            let waited = since.map_or(Duration::ZERO, |since| since.elapsed());
            if waited >= timeout {
                return;
            }
            tokio::time::sleep(timeout - waited).await;
        }
    }
}

/// A request's body. While it is the guest that has to write more, the other side is not waited for.
pub struct Sending {
    body: WasiBody,
    waiting: Waiting,
}

impl Sending {
    /// A guest's body.
    pub fn new(body: WasiBody, waiting: Waiting) -> Sending {
        Sending { body, waiting }
    }
}

impl Body for Sending {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        *self.waiting.0.lock() = frame.is_ready().then(Instant::now);
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A response's body. At its end the connection is free for the next request.
pub struct Received {
    body: Incoming,
    connection: Option<Return>,
    between_bytes: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Received {
    /// A body that has `between_bytes` for each piece.
    pub fn new(body: Incoming, connection: Return, between_bytes: Duration) -> Received {
        let mut received = Received { body, connection: Some(connection), between_bytes, timer: None };
        received.look();
        received
    }

    /// Gives the connection back if nothing more is to come.
    fn look(&mut self) {
        if self.body.is_end_stream()
            && let Some(connection) = self.connection.take()
        {
            connection.give_back();
        }
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) else {
            let between_bytes = this.between_bytes;
            let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(between_bytes)));
            ready!(timer.as_mut().poll(cx));
            this.connection = None;
            return Poll::Ready(Some(Err(Error::ConnectionReadTimeout)));
        };
        this.timer = None;
        match frame {
            Some(Ok(frame)) => {
                this.look();
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                this.connection = None;
                Poll::Ready(Some(Err(match fault::exchanging(&error) {
                    Error::ConnectionTerminated => Error::HttpResponseIncomplete,
                    other => other,
                })))
            }
            None => {
                if let Some(connection) = this.connection.take() {
                    connection.give_back();
                }
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
