//! A response on its way to the client.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, SizeHint};

use crate::counts::Counts;
use crate::exchange::{Hold, Written};

/// A response's body.
pub enum ResponseBody {
    /// The daemon's.
    Ours(Full<Bytes>),
    /// A guest's.
    Guests(Box<GuestsBody>),
}

/// A body that a guest writes.
pub struct GuestsBody {
    /// What it writes.
    pub body: Written,
    /// Of its declared length; none if it has none.
    pub left: Option<u64>,
    /// Until its end.
    pub hold: Option<Hold>,
    /// What it took.
    pub timer: Option<Timer>,
}

/// Tells how long a request took when it is dropped.
pub struct Timer {
    /// When it came.
    pub began: Instant,
    /// Whom it tells.
    pub counts: Arc<Counts>,
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.counts.ended(self.began.elapsed());
    }
}

/// The guest ended in the middle of its response.
#[derive(Debug, thiserror::Error)]
#[error("the response was cut: {0}")]
pub struct Cut(&'static str);

impl Body for GuestsBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let this = &mut *self;
        let frame = ready!(match &mut this.body {
            Written::P2(body) => Pin::new(body).poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(drop))),
            Written::P3(body) => Pin::new(body).poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(drop))),
        });
        match frame {
            Some(Ok(frame)) => {
                if let (Some(left), Some(data)) = (&mut this.left, frame.data_ref()) {
                    *left = left.saturating_sub(data.len() as u64);
                }
                // hyper asks no further.
                if (this.left == Some(0) || frame.is_trailers())
                    && let Some(hold) = this.hold.take()
                {
                    hold.let_go();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(())) => Poll::Ready(Some(Err(Cut("its guest gave it up")))),
            None => match this.hold.take() {
                Some(hold) => {
                    let failed = hold.exchange.has_failed();
                    // It ends by itself, and its end tells why.
                    hold.let_go();
                    Poll::Ready(failed.then_some(Err(Cut("its guest ended"))))
                }
                None => Poll::Ready(None),
            },
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl ResponseBody {
    /// Whether it is the daemon's.
    pub fn is_ours(&self) -> bool {
        matches!(self, ResponseBody::Ours(_))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match &mut *self {
            ResponseBody::Ours(body) => {
                Pin::new(body).poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(|never| match never {})))
            }
            ResponseBody::Guests(body) => Pin::new(&mut **body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ResponseBody::Ours(body) => body.is_end_stream(),
            ResponseBody::Guests(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ResponseBody::Ours(body) => body.size_hint(),
            ResponseBody::Guests(body) => body.size_hint(),
        }
    }
}
