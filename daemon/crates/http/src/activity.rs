//! The bytes that move on a client's connection: this file finds idle connections and slow clients.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::{Response, Version};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::flushes::{Answering, Flushes};
use crate::response::{ResponseBody, Transfer};
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
    pub(crate) flushes: Flushes,
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
            flushes: Flushes::default(),
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
        response.map(|body| Answering::new(body, self))
    }

    /// The activity of its connection.
    pub(crate) fn activity(&self) -> &Activity {
        &self.0
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.moved();
        self.0.open.fetch_sub(1, Ordering::Relaxed);
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
            self.activity.flushes.flushed();
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
}
