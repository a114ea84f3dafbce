//! Bodies of an outgoing request and of its response. They measure the time-outs between bytes, and the response's body
//! gives its connection back at its end.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use parking_lot::Mutex;
use tokio::time::Sleep;
use wasmtime_wasi_http::{Error, WasiBody};

use super::fault;

/// Since when the server has been waited for; none while the guest is.
#[derive(Debug, Clone)]
pub struct Waiting(Arc<Mutex<Option<Instant>>>);

impl Default for Waiting {
    /// The wait begins now.
    fn default() -> Waiting {
        Waiting(Arc::new(Mutex::new(Some(Instant::now()))))
    }
}

impl Waiting {
    /// The wait begins again.
    pub fn restart(&self) {
        *self.0.lock() = Some(Instant::now());
    }

    /// Waits until the server has been waited for as long as `timeout`, without a break.
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

/// A request's body. While the guest has to write more of it, the server is not waited for.
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

/// Takes a connection that is free for its next request; closes the connection if it is dropped instead.
pub type GiveBack = Box<dyn FnOnce() + Send>;

/// A response's body. At its end the connection is free for the next request.
pub struct Received {
    body: Incoming,
    connection: Option<GiveBack>,
    between_bytes: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Received {
    /// A body that has `between_bytes` for each piece. `connection` is called at its end.
    pub fn new(body: Incoming, connection: GiveBack, between_bytes: Duration) -> Received {
        let mut received = Received { body, connection: Some(connection), between_bytes, timer: None };
        received.give_back_at_end();
        received
    }

    /// Gives the connection back if no more of the body is to come.
    fn give_back_at_end(&mut self) {
        if self.body.is_end_stream()
            && let Some(connection) = self.connection.take()
        {
            connection();
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
                this.give_back_at_end();
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
                    connection();
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
