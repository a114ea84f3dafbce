//! A response's body on its way to the client: its length is kept, a body that is cut is told, and a client that takes it
//! too slowly loses it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, SizeHint};
use parking_lot::Mutex;

use crate::client_rate::ClientRate;
use crate::exchange::Exchange;
use crate::request_guard::RequestGuard;
use crate::request_state::WrittenBody;
use crate::service::Service;
use hearth_observe::metrics::CutReason;

/// A response's body.
pub enum ResponseBody {
    /// The daemon's own.
    Daemon(Full<Bytes>),
    /// A guest's.
    Guest(GuestBody),
}

/// The response was cut: its connection is closed, or its stream is reset.
#[derive(Debug, thiserror::Error)]
#[error("the response was cut: {0}")]
pub struct Cut(&'static str);

impl Cut {
    /// A cut for this reason, which only the daemon's log shows.
    pub fn new(reason: &'static str) -> Cut {
        Cut(reason)
    }
}

/// A body that a guest writes.
pub struct GuestBody {
    transfer: Arc<Transfer>,
    /// Set when the response is counted.
    pub exchange: Option<Exchange>,
}

/// A guest's body, shared with the watch over its client's rate.
pub struct Transfer {
    service: Arc<Service>,
    /// Method and path, for messages.
    name: Arc<str>,
    status: u16,
    /// Set once all of the body has gone to hyper.
    is_whole: AtomicBool,
    parts: Mutex<Parts>,
}

struct Parts {
    /// None once the client has lost it.
    body: Option<WrittenBody>,
    /// Bytes to come of the length that the guest declared; none if it declared none.
    left: Option<u64>,
    /// None once the response has come to its end, whichever.
    guard: Option<RequestGuard>,
    rate: ClientRate,
}

/// The next of a guest's body.
enum Next {
    Frame(Frame<Bytes>),
    /// The guest gave the body up; the error's text.
    GivenUp(String),
    End,
}

impl Parts {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Next>> {
        let frame = ready!(match &mut self.body {
            None => return Poll::Ready(None),
            Some(WrittenBody::P2(body)) => Pin::new(body).poll_frame(cx),
            Some(WrittenBody::P3(body)) => Pin::new(body).poll_frame(cx),
        });
        Poll::Ready(Some(match frame {
            Some(Ok(frame)) => Next::Frame(frame),
            Some(Err(error)) => Next::GivenUp(error.to_string()),
            None => Next::End,
        }))
    }
}

/// A frame within the length that is left. Bytes that a guest writes beyond it are left out: its client would take them for
/// the next response.
fn within(frame: Frame<Bytes>, left: &mut Option<u64>) -> Frame<Bytes> {
    let Some(left) = left else { return frame };
    match frame.into_data() {
        Ok(mut data) => {
            data.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= data.len() as u64;
            Frame::data(data)
        }
        Err(frame) => frame,
    }
}

/// Why a body that ends is cut, and how a message says so; none if it is whole. `failure`: why its guest failed, if it
/// did; `given_up`: the error with which the guest gave the body up, if it did.
fn cut_of(failure: Option<CutReason>, left: Option<u64>, given_up: Option<&str>) -> Option<(CutReason, String)> {
    match (failure, left, given_up) {
        (Some(reason), ..) => Some((reason, "its guest ended".into())),
        (None, Some(left), _) if left > 0 => {
            Some((CutReason::Length, format!("the guest's body is {left} bytes shorter than its Content-Length")))
        }
        (None, _, Some(error)) => {
            Some((CutReason::Dropped, format!("the guest gave its body up before its end: {error}")))
        }
        (None, _, None) => None,
    }
}

impl GuestBody {
    /// A body that a guest writes. `length` is its declared length; `guard` is held until the response's end.
    pub fn new(
        service: &Arc<Service>,
        name: Arc<str>,
        status: u16,
        body: WrittenBody,
        length: Option<u64>,
        guard: RequestGuard,
    ) -> GuestBody {
        let rate = ClientRate::new(&service.http.config());
        let is_whole = AtomicBool::new(false);
        let parts = Mutex::new(Parts { body: Some(body), left: length, guard: Some(guard), rate });
        GuestBody {
            transfer: Arc::new(Transfer { service: service.clone(), name, status, is_whole, parts }),
            exchange: None,
        }
    }

    /// The transfer, for the watch over its client's rate.
    pub fn transfer(&self) -> &Arc<Transfer> {
        &self.transfer
    }
}

impl Transfer {
    fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let mut parts = self.parts.lock();
        parts.rate.go_on(Instant::now());
        match ready!(parts.poll_next(cx)) {
            None => Poll::Ready(Some(Err(Cut::new("its client was too slow")))),
            Some(Next::Frame(frame)) => {
                let frame = within(frame, &mut parts.left);
                parts.rate.moved(frame.data_ref().map_or(0, Bytes::len));
                // hyper asks no further after trailers or the declared length.
                if parts.left == Some(0) || frame.is_trailers() {
                    let guard = parts.guard.take();
                    drop(parts);
                    self.is_whole.store(true, Ordering::Relaxed);
                    if let Some(guard) = guard {
                        guard.release();
                    }
                } else {
                    // Until hyper asks for the next frame, it waits for the client.
                    parts.rate.wait(Instant::now());
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Next::GivenUp(error)) => self.ended(parts, Some(&error)),
            Some(Next::End) => self.ended(parts, None),
        }
    }

    /// The body has come to its end, or was given up.
    fn ended(
        &self,
        mut parts: parking_lot::MutexGuard<'_, Parts>,
        given_up: Option<&str>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let Some(guard) = parts.guard.take() else { return Poll::Ready(None) };
        let cut = cut_of(guard.state().failure(), parts.left, given_up);
        drop(parts);
        // The guest ends by itself, and its end is told by itself.
        guard.release();
        let Some((reason, text)) = cut else {
            self.is_whole.store(true, Ordering::Relaxed);
            return Poll::Ready(None);
        };
        self.service.response_cut(reason, &self.name, self.status, &text);
        Poll::Ready(Some(Err(Cut::new("its guest did not finish it"))))
    }

    /// Takes the body from a client that is too slow, and ends its guest; `false` if the client is not.
    pub fn end_if_too_slow(&self, now: Instant) -> bool {
        let lost = {
            let mut parts = self.parts.lock();
            if parts.guard.is_none() || !parts.rate.is_too_slow(now) {
                return false;
            }
            (parts.body.take(), parts.guard.take())
        };
        drop(lost);
        let text = format!("its client took {}", self.service.least_rate());
        self.service.response_cut(CutReason::SlowClient, &self.name, self.status, &text);
        true
    }
}

impl Drop for GuestBody {
    fn drop(&mut self) {
        if let Some(exchange) = &mut self.exchange {
            exchange.is_whole = self.transfer.is_whole.load(Ordering::Relaxed);
        }
        let guard = self.transfer.parts.lock().guard.take();
        if let Some(guard) = guard {
            self.transfer.service.client_gone();
            drop(guard);
        }
    }
}

impl ResponseBody {
    /// Whether it is the daemon's own.
    pub fn is_daemons(&self) -> bool {
        matches!(self, ResponseBody::Daemon(_))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match &mut *self {
            ResponseBody::Daemon(body) => {
                Pin::new(body).poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(|never| match never {})))
            }
            ResponseBody::Guest(body) => {
                let frame = body.transfer.poll_frame(cx);
                if let (Some(exchange), Poll::Ready(Some(Ok(frame)))) = (&mut body.exchange, &frame) {
                    exchange.sent += frame.data_ref().map_or(0, Bytes::len) as u64;
                }
                frame
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ResponseBody::Daemon(body) => body.is_end_stream(),
            ResponseBody::Guest(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ResponseBody::Daemon(body) => body.size_hint(),
            ResponseBody::Guest(body) => {
                body.transfer.parts.lock().left.map_or_else(SizeHint::default, SizeHint::with_exact)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_the_declared_length_is_left_out() {
        let data = |text: &'static str| Frame::data(Bytes::from_static(text.as_bytes()));
        let mut left = Some(5);
        assert_eq!(within(data("abc"), &mut left).into_data().unwrap(), "abc");
        assert_eq!(within(data("defg"), &mut left).into_data().unwrap(), "de");
        assert_eq!(left, Some(0));
        assert_eq!(within(data("abc"), &mut None).into_data().unwrap(), "abc");
        assert!(within(Frame::trailers(Default::default()), &mut left).is_trailers());
    }

    #[test]
    fn a_body_is_whole_or_says_why_it_is_not() {
        assert_eq!(cut_of(None, None, None), None);
        assert_eq!(cut_of(None, Some(0), None), None);
        let (reason, text) = cut_of(None, Some(7), None).unwrap();
        assert!(reason == CutReason::Length && text.contains("7 bytes shorter"), "{text}");
        let (reason, text) = cut_of(None, None, Some("why")).unwrap();
        assert!(reason == CutReason::Dropped && text.ends_with("why"), "{text}");
        assert_eq!(cut_of(None, Some(1), Some("why")).unwrap().0, CutReason::Length);
        assert_eq!(cut_of(Some(CutReason::Trap), Some(1), Some("why")).unwrap().0, CutReason::Trap);
    }
}
