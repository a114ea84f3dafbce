//! A request's body on its way to the guest, from a client or from another component. A client that sends it too slowly
//! is given up: the guest's next read fails with `connection-read-timeout`, and the client gets the guest's answer to that.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::Sleep;
use wasmtime_wasi_http::{Error, WasiBody};

use crate::client_rate::ClientRate;

/// A request's body.
pub enum RequestBody {
    /// A client sends it.
    Client(ClientBody),
    /// Another component of the application writes it.
    Component(WasiBody),
}

impl RequestBody {
    /// The body that a client sends. `on_slow` is called if the client is too slow.
    pub fn of_client(body: Incoming, rate: ClientRate, on_slow: Box<dyn FnOnce() + Send>) -> RequestBody {
        RequestBody::Client(ClientBody { body, rate, timer: None, on_slow: Some(on_slow) })
    }
}

/// A body that a client sends.
pub struct ClientBody {
    body: Incoming,
    rate: ClientRate,
    timer: Option<Pin<Box<Sleep>>>,
    /// Taken when the client is given up.
    on_slow: Option<Box<dyn FnOnce() + Send>>,
}

impl ClientBody {
    /// Waits for the end of the time that the client may take.
    fn poll_too_slow(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let now = Instant::now();
            self.rate.wait(now);
            if self.rate.is_too_slow(now) {
                return Poll::Ready(());
            }
            let end = tokio::time::Instant::from_std(now + self.rate.left(now));
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(end)));
            if timer.is_elapsed() {
                timer.as_mut().reset(end);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match &mut *self {
            RequestBody::Client(body) => Pin::new(body).poll_frame(cx),
            RequestBody::Component(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            RequestBody::Client(body) => body.is_end_stream(),
            RequestBody::Component(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            RequestBody::Client(body) => body.size_hint(),
            RequestBody::Component(body) => body.size_hint(),
        }
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        if this.on_slow.is_none() {
            return Poll::Ready(Some(Err(Error::ConnectionReadTimeout)));
        }
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                if this.timer.is_some() {
                    this.rate.go_on(Instant::now());
                }
                if let Some(Ok(frame)) = &frame {
                    this.rate.moved(frame.data_ref().map_or(0, Bytes::len));
                }
                Poll::Ready(frame.map(|frame| frame.map_err(Error::from)))
            }
            Poll::Pending => {
                if this.poll_too_slow(cx).is_pending() {
                    return Poll::Pending;
                }
                if let Some(on_slow) = this.on_slow.take() {
                    on_slow();
                }
                Poll::Ready(Some(Err(Error::ConnectionReadTimeout)))
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
