//! The cut of a response waits for its bytes: when a body fails, hyper closes the connection and drops the bytes that it has
//! not written yet. This file holds the failure back until the head and the body so far have been written.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use parking_lot::Mutex;

use crate::activity::Open;
use crate::response::Cut;

/// How often hyper has written all its bytes on a connection.
#[derive(Default)]
pub struct Flushes {
    count: AtomicU64,
    /// Whether there are `wakers`.
    any_waits: AtomicBool,
    /// The responses that wait for the next flush.
    wakers: Mutex<Vec<Waker>>,
}

impl Flushes {
    /// Their number so far.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Counts one, and wakes the responses that wait for it.
    pub fn flushed(&self) {
        self.count.fetch_add(1, Ordering::AcqRel);
        if self.any_waits.swap(false, Ordering::AcqRel) {
            std::mem::take(&mut *self.wakers.lock()).into_iter().for_each(Waker::wake);
        }
    }

    /// Waits until there have been more than `since`.
    fn poll_since(&self, since: u64, cx: &mut Context<'_>) -> Poll<()> {
        if self.count() > since {
            return Poll::Ready(());
        }
        self.wakers.lock().push(cx.waker().clone());
        self.any_waits.store(true, Ordering::Release);
        // It may have been between the two.
        if self.count() > since { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// A response's body on a connection, whose failure waits for the flush of its other parts.
pub struct Answering<B> {
    body: B,
    open: Open,
    /// The number of flushes when hyper was last given a part of the response.
    given_at: u64,
    cut: Option<Cut>,
}

impl<B> Answering<B> {
    /// The body of a response on the connection of `open`.
    pub fn new(body: B, open: Open) -> Answering<B> {
        let given_at = open.activity().flushes.count();
        Answering { body, open, given_at, cut: None }
    }
}

impl<B: Body<Data = Bytes, Error = Cut> + Unpin> Body for Answering<B> {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let this = &mut *self;
        if this.cut.is_none() {
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Err(cut)) => this.cut = Some(cut),
                frame => {
                    this.given_at = this.open.activity().flushes.count();
                    return Poll::Ready(frame);
                }
            }
        }
        ready!(this.open.activity().flushes.poll_since(this.given_at, cx));
        Poll::Ready(this.cut.take().map(Err))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hyper::Response;

    use super::*;
    use crate::activity::{Activity, Watched};

    /// A body that gives some frames and then fails.
    struct Failing(Vec<&'static str>);

    impl Body for Failing {
        type Data = Bytes;
        type Error = Cut;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
            let next = self.0.pop().map(|text| Ok(Frame::data(Bytes::from_static(text.as_bytes()))));
            Poll::Ready(Some(next.unwrap_or_else(|| Err(Cut::new("a test")))))
        }
    }

    /// All that a client receives that asks for a response with this body.
    async fn received(body: Vec<&'static str>) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        use tokio::net::TcpStream;

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let activity = Arc::new(Activity::new());
        let io = hyper_util::rt::TokioIo::new(Watched::new(stream, activity.clone()));
        let service = hyper::service::service_fn(move |_: hyper::Request<hyper::body::Incoming>| {
            let response = Response::new(Answering::new(Failing(body.clone()), activity.open()));
            std::future::ready(Ok::<_, std::convert::Infallible>(response))
        });
        let serving = tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(io, service));
        client.write_all(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(serving.await.unwrap().is_err(), "the connection ends with the response");
        answer
    }

    #[tokio::test]
    async fn what_there_is_of_a_response_that_is_cut_is_written() {
        let answer = received(Vec::new()).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\n"), "{answer:?}");
        let answer = received(vec!["half", "first "]).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer:?}");
        assert!(answer.ends_with("6\r\nfirst \r\n4\r\nhalf\r\n"), "without a last chunk: {answer:?}");
    }

    #[tokio::test]
    async fn a_cut_waits_until_all_has_been_written() {
        let flushes = Arc::new(Flushes::default());
        flushes.flushed();
        let wait = |since| {
            let flushes = flushes.clone();
            std::future::poll_fn(move |cx| flushes.poll_since(since, cx))
        };
        wait(0).await;
        let waits = tokio::spawn(wait(1));
        tokio::task::yield_now().await;
        assert!(!waits.is_finished());
        flushes.flushed();
        waits.await.unwrap();
    }
}
