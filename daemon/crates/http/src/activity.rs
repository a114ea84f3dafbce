//! The bytes that move on a client's connection: this file finds idle connections and slow clients, and it delays the cut of
//! a response until its head and its body so far have been written.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use hyper::{Response, Version};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::response::{Cut, ResponseBody, Transfer};
use hearth_base::config;

/// How often a connection reads before it lets others go on, however much its client sends.
const READS_MAX: usize = 32;

/// Times here are whole milliseconds. By as much later, a client that has moved too little for as long as a connection may
/// be idle is found to be slow, and its connection is not merely closed as idle.
const ROUNDING: Duration = Duration::from_millis(2);

/// The bytes and requests that move on a connection.
pub struct Activity {
    began: Instant,
    /// When a byte last moved, in milliseconds since then.
    moved_ms: AtomicU64,
    /// Requests that wait for their response's head.
    waiting: AtomicUsize,
    /// Requests whose responses have not come to their end.
    open: AtomicUsize,
    /// Whether there was a request.
    asked: AtomicBool,
    /// Whether the last request was one of HTTP/1, whose connection has one response at a time.
    is_http1: AtomicBool,
    /// Reads in this poll.
    reads: AtomicUsize,
    /// How often hyper has written all its bytes.
    flushes: AtomicU64,
    /// Responses that wait for the next time. The flag tells whether there are any.
    flush_waits: AtomicBool,
    flush_wakers: Mutex<Vec<Waker>>,
    /// Bodies of guests that go to the client.
    transfers: Mutex<Vec<Weak<Transfer>>>,
}

impl Default for Activity {
    fn default() -> Activity {
        Activity::new()
    }
}

impl Activity {
    /// Of a connection that begins now.
    pub fn new() -> Activity {
        Activity {
            began: Instant::now(),
            moved_ms: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            asked: AtomicBool::new(false),
            is_http1: AtomicBool::new(false),
            reads: AtomicUsize::new(0),
            flushes: AtomicU64::new(0),
            flush_waits: AtomicBool::new(false),
            flush_wakers: Mutex::default(),
            transfers: Mutex::default(),
        }
    }

    /// A poll of the connection begins.
    pub fn begin_poll(&self) {
        self.reads.store(0, Ordering::Relaxed);
    }

    fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    fn moved(&self) {
        self.moved_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    /// A request waits for its response's head until the returned guard is dropped.
    pub fn wait(self: &Arc<Self>, version: Version) -> Busy {
        self.is_http1.store(version < Version::HTTP_2, Ordering::Relaxed);
        self.asked.store(true, Ordering::Relaxed);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Busy(self.clone())
    }

    /// A request's response has not come to its end until the returned guard is dropped.
    pub fn open(self: &Arc<Self>) -> Open {
        self.open.fetch_add(1, Ordering::Relaxed);
        Open(self.clone())
    }

    /// Waits until there is no request, and nothing has moved for so long.
    pub async fn silent(&self, time: Duration) {
        loop {
            let silence = Duration::from_millis(self.now_ms().saturating_sub(self.moved_ms.load(Ordering::Relaxed)));
            let is_open = self.open.load(Ordering::Relaxed) > 0;
            if silence >= time && !is_open {
                return;
            }
            tokio::time::sleep(if is_open { time } else { time - silence }).await;
        }
    }

    /// When it has been idle for too long if nothing changes, in milliseconds since it began.
    fn ends_ms(&self, config: &config::Http, now_ms: u64) -> u64 {
        if !self.asked.load(Ordering::Relaxed) {
            // However slowly the client sends its first head, and whatever HTTP that is.
            return config.header_timeout_ms;
        }
        let since =
            if self.waiting.load(Ordering::Relaxed) > 0 { now_ms } else { self.moved_ms.load(Ordering::Relaxed) };
        since + config.idle_timeout_ms
    }

    /// Waits until the connection has to be closed: it has been idle for too long, or its only client is too slow. Of an
    /// HTTP/2 connection, only the responses that their client takes too slowly are ended.
    pub async fn idle_or_slow(&self, config: &config::Http) {
        loop {
            let now_ms = self.now_ms();
            let ends_ms = self.ends_ms(config, now_ms);
            if now_ms >= ends_ms {
                return;
            }
            // The first request may come meanwhile, with which the limits of its body begin.
            let wakes_ms = ends_ms.min(now_ms + config.idle_timeout_ms);
            tokio::time::sleep(Duration::from_millis(wakes_ms - now_ms) + ROUNDING).await;
            if self.end_slow_transfers() && self.is_http1.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    fn end_slow_transfers(&self) -> bool {
        let transfers: Vec<_> = self.transfers.lock().iter().filter_map(Weak::upgrade).collect();
        let now = Instant::now();
        transfers.iter().filter(|transfer| transfer.end_if_too_slow(now)).count() > 0
    }

    fn watch(&self, transfer: &Arc<Transfer>) {
        let mut transfers = self.transfers.lock();
        if transfers.len() > 2 * self.open.load(Ordering::Relaxed) {
            transfers.retain(|transfer| transfer.strong_count() > 0);
        }
        transfers.push(Arc::downgrade(transfer));
    }

    fn flushed(&self) {
        self.flushes.fetch_add(1, Ordering::AcqRel);
        if self.flush_waits.swap(false, Ordering::AcqRel) {
            std::mem::take(&mut *self.flush_wakers.lock()).into_iter().for_each(Waker::wake);
        }
    }

    /// Waits until all has been written since there were `since` flushes.
    fn poll_flushed(&self, since: u64, cx: &mut Context<'_>) -> Poll<()> {
        if self.flushes.load(Ordering::Acquire) > since {
            return Poll::Ready(());
        }
        self.flush_wakers.lock().push(cx.waker().clone());
        self.flush_waits.store(true, Ordering::Release);
        // It may have been between the two.
        if self.flushes.load(Ordering::Acquire) > since { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// A request that waits for its response's head.
pub struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.moved();
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request whose response has not come to its end.
pub struct Open(Arc<Activity>);

impl Open {
    /// The response, watched until its end.
    pub fn watch(self, response: Response<ResponseBody>) -> Response<Answering<ResponseBody>> {
        if let ResponseBody::Guest(body) = response.body() {
            self.0.watch(body.transfer());
        }
        self.until_end(response)
    }

    fn until_end<B>(self, response: Response<B>) -> Response<Answering<B>> {
        let given_at = self.0.flushes.load(Ordering::Acquire);
        response.map(|body| Answering { body, open: self, given_at, cut: None })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.moved();
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A response's body on a connection. When a body fails, hyper drops the bytes that it has not written yet. So a failure is
/// held back until the head and the body so far have been written.
pub struct Answering<B> {
    body: B,
    open: Open,
    /// The number of flushes when hyper was last given a part of the response.
    given_at: u64,
    cut: Option<Cut>,
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
                    this.given_at = this.open.0.flushes.load(Ordering::Acquire);
                    return Poll::Ready(frame);
                }
            }
        }
        ready!(this.open.0.poll_flushed(this.given_at, cx));
        Poll::Ready(this.cut.take().map(Err))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A client's socket, watched.
pub struct Watched<S> {
    stream: S,
    activity: Arc<Activity>,
}

impl<S> Watched<S> {
    /// Tells `activity` of each byte that moves on `stream`.
    pub fn new(stream: S, activity: Arc<Activity>) -> Watched<S> {
        Watched { stream, activity }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.activity.reads.fetch_add(1, Ordering::Relaxed) >= READS_MAX {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if read.is_ready() {
            self.activity.moved();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if written.is_ready() {
            self.activity.moved();
        }
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        if written.is_ready() {
            self.activity.moved();
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// hyper calls it when it has written all it had.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if matches!(flushed, Poll::Ready(Ok(()))) {
            self.activity.flushed();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_has_its_time_for_a_head_and_then_for_each_byte() {
        let config = config::Http { header_timeout_ms: 10, idle_timeout_ms: 100, ..config::Http::default() };
        let activity = Arc::new(Activity::new());
        activity.moved_ms.store(9, Ordering::Relaxed);
        assert_eq!(activity.ends_ms(&config, 9), 10, "bytes that are no head gain nothing");
        let busy = activity.wait(Version::HTTP_11);
        assert_eq!(activity.ends_ms(&config, 500), 600, "it waits for its guest");
        drop(busy);
        activity.moved_ms.store(20, Ordering::Relaxed);
        assert_eq!(activity.ends_ms(&config, 500), 120);
    }

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
            let response = activity.open().until_end(Response::new(Failing(body.clone())));
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
        let activity = Arc::new(Activity::new());
        activity.flushed();
        let wait = |since| {
            let activity = activity.clone();
            std::future::poll_fn(move |cx| activity.poll_flushed(since, cx))
        };
        wait(0).await;
        let waits = tokio::spawn(wait(1));
        tokio::task::yield_now().await;
        assert!(!waits.is_finished());
        activity.flushed();
        waits.await.unwrap();
    }
}
