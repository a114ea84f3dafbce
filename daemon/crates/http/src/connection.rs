//! Accepting connections, and one client's connection.
//!
//! All that a client can hold is bounded: connections by `http.connections_max`, a head by
//! `http.header_bytes_max` and `http.header_timeout_ms`, a connection on which nothing moves by
//! `http.idle_timeout_ms`. Bodies are never collected: a guest that does not read stops its client, a client
//! that does not read stops its guest.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::TcpListener as StdListener;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::{self, HeaderValue};
use hyper::service::service_fn;
use hyper::{StatusCode, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use socket2::{SockFilter, SockRef};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::request;
use crate::requests::Member;
use crate::response::{Cut, ResponseBody};
use crate::service::Service;
use hearth_base::config;
use hearth_os::identity;
use hearth_wasm::scheduler::{End, Guest};

/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 128;

/// How long connections go on when a service drains. A request that comes meanwhile is answered and its
/// connection closed by that, so that nobody's request meets a closing connection.
const DRAIN_LINGER: Duration = Duration::from_secs(1);

/// How long a service that drains waits for connections that are being made. A handshake takes as long as a packet
/// there and back; a service nobody ever connected to waits for none.
const HANDSHAKE: Duration = Duration::from_millis(100);

/// How long a draining connection without a request may be silent. HTTP/2 ends it once its client has answered a
/// last PING; one that answers nothing would hold the drain for `http.idle_timeout_ms`.
const DRAIN_SILENCE: Duration = Duration::from_secs(5);

/// How often a connection reads before it lets others go on, however much its client sends.
const READS_MAX: usize = 32;

/// How long accepting rests after a failure: the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a service listens with. The sockets are closed before anybody hears of the end.
struct Listening {
    listeners: Vec<StdListener>,
    _member: Member,
}

/// Serves until the container drains or ends.
pub fn serve(service: Arc<Service>, listeners: Vec<StdListener>) {
    // It has ended meanwhile.
    let Some(member) = service.requests.begin_listening() else { return };
    let listening = Listening { listeners, _member: member };
    let requests = service.requests.clone();
    let task = service.http.runtime.clone().spawn(accept(service, listening));
    requests.set_listener(task.abort_handle());
}

async fn accept(service: Arc<Service>, mut listening: Listening) {
    let mut draining = service.requests.draining();
    {
        let listeners = listening.listeners.drain(..).map(TcpListener::from_std).collect::<io::Result<Vec<_>>>();
        let listeners = match listeners {
            Ok(listeners) => listeners,
            Err(error) => {
                tracing::error!(%error, "a bound port cannot be served");
                return;
            }
        };
        let places = Arc::new(Semaphore::new(service.http.config().connections_max));
        let mut any = false;
        loop {
            tokio::select! {
                () = until(&mut draining) => break,
                (place, accepted) = accept_one(&listeners, &places) => match accepted {
                    Ok(stream) => {
                        any = true;
                        begin(&service, stream, place);
                    }
                    Err(error) => {
                        tracing::debug!(%error, "cannot accept a connection for an HTTP component");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        // Its client takes a connection for made when the kernel here still waits for the last packet.
        listeners.iter().for_each(close_to_new);
        let closes = tokio::time::Instant::now() + if any { HANDSHAKE } else { Duration::ZERO };
        loop {
            tokio::select! {
                biased;
                (place, Ok(stream)) = accept_one(&listeners, &places) => begin(&service, stream, place),
                () = tokio::time::sleep_until(closes) => break,
            }
        }
        for listener in listeners {
            for stream in last_of(listener) {
                let Ok(place) = places.clone().try_acquire_owned() else { break };
                begin(&service, stream, Some(place));
            }
        }
    }
}

/// Serves a client beside the container's guests, in their group: what it costs to read and write is the container's
/// CPU time, and a request goes from its connection to its guest and back without leaving the thread.
fn begin(service: &Arc<Service>, stream: TcpStream, place: Option<OwnedSemaphorePermit>) {
    run(service, connection(service.clone(), stream, place));
}

/// Runs a part of a connection.
fn run<F: Future<Output: Send> + Send + 'static>(service: &Arc<Service>, part: F) {
    let guest = Arc::new(Guest::part(&service.guest));
    // The container has ended.
    let Some(member) = service.requests.begin(&guest) else { return };
    service.runtime.scheduler.spawn_part(guest, part, move |end| {
        if let End::Panicked(panic) = end {
            identity::restore();
            tracing::error!(panic, "a connection to an HTTP component panicked; only this connection ends");
        }
        drop(member);
    });
}

/// Where hyper runs the streams of an HTTP/2 connection.
#[derive(Clone)]
struct Beside(Arc<Service>);

impl<F: Future<Output: Send> + Send + 'static> hyper::rt::Executor<F> for Beside {
    fn execute(&self, stream: F) {
        run(&self.0, stream);
    }
}

/// Waits until nothing new is to be let in.
async fn until(draining: &mut watch::Receiver<bool>) {
    // The sender lives as long as the service.
    let _ = draining.wait_for(|draining| *draining).await;
}

/// Waits until then.
async fn sleep_until(at: Option<Instant>) {
    tokio::time::sleep_until(at.unwrap_or_else(Instant::now).into()).await;
}

/// Waits for a place and for who takes it.
async fn accept_one(
    listeners: &[TcpListener],
    places: &Arc<Semaphore>,
) -> (Option<OwnedSemaphorePermit>, io::Result<TcpStream>) {
    // Never closed.
    let place = places.clone().acquire_owned().await.ok();
    let accepted = poll_fn(|cx| {
        for listener in listeners {
            if let Poll::Ready(accepted) = listener.poll_accept(cx) {
                return Poll::Ready(accepted.map(|(stream, _)| stream));
            }
        }
        Poll::Pending
    });
    (place, accepted.await)
}

/// Lets nobody begin to connect: who tries now tries again a second later, and is refused or finds another. Who has
/// begun goes on.
fn close_to_new(listener: &TcpListener) {
    // Classic BPF, on the TCP header: a packet whose SYN flag is set is kept to 0 bytes, any other whole.
    const LOAD_BYTE: u16 = 0x30;
    const JUMP_IF_SET: u16 = 0x45;
    const RETURN: u16 = 0x06;
    const FLAGS_AT: u32 = 13;
    const SYN: u32 = 0x02;
    let filter = [
        SockFilter::new(LOAD_BYTE, 0, 0, FLAGS_AT),
        SockFilter::new(JUMP_IF_SET, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ];
    if let Err(error) = SockRef::from(listener).attach_filter(&filter) {
        tracing::debug!(%error, "a port cannot be closed without a gap");
    }
}

/// Closes a listener, and gives those who had connected and were not accepted: what is in the kernel's queue when a
/// listener is closed is reset.
fn last_of(listener: TcpListener) -> Vec<TcpStream> {
    // The kernel is asked itself: the runtime only knows of whom it has been told.
    let Ok(listener) = listener.into_std() else { return Vec::new() };
    let accepted = std::iter::from_fn(|| listener.accept().ok());
    let streams = accepted.filter_map(|(stream, _)| {
        stream.set_nonblocking(true).ok()?;
        TcpStream::from_std(stream).ok()
    });
    streams.collect()
}

async fn connection(service: Arc<Service>, stream: TcpStream, _place: Option<OwnedSemaphorePermit>) {
    let config = service.http.config();
    // Answers are written whole; waiting for more to write only delays them.
    let _ = stream.set_nodelay(true);
    let activity = Arc::new(Activity::new());
    let io = TokioIo::new(Watched { stream, activity: activity.clone() });
    let mut draining = service.requests.draining();
    let beside = Beside(service.clone());
    let answering = {
        let (activity, draining) = (activity.clone(), draining.clone());
        service_fn(move |request| {
            let (service, busy, draining) = (service.clone(), activity.wait(), draining.clone());
            let open = activity.open();
            async move {
                let closes = request.version() < Version::HTTP_2;
                let mut response = request::answer(service, request).await;
                // Where a refused request ends, its sender and we may see differently.
                let refused = response.status() == StatusCode::BAD_REQUEST && response.body().is_ours();
                if closes && (refused || *draining.borrow()) {
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                drop(busy);
                Ok::<_, Infallible>(response.map(|body| Answering { body, _open: open }))
            }
        })
    };
    let mut builder = auto::Builder::new(beside);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(config.header_timeout_ms))
        .max_buf_size(config.header_bytes_max);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(u32::try_from(config.header_bytes_max).unwrap_or(u32::MAX));
    let mut serving = pin!(builder.serve_connection(io, answering));
    let mut idle = pin!(activity.idle(&config));
    let (mut closes_at, mut closing) = (None, false);
    loop {
        let served = poll_fn(|cx| {
            activity.reads.store(0, Ordering::Relaxed);
            serving.as_mut().poll(cx)
        });
        tokio::select! {
            served = served => {
                if let Err(error) = served {
                    tracing::debug!(%error, "a client's connection ended early");
                }
                return;
            }
            () = until(&mut draining), if closes_at.is_none() => closes_at = Some(Instant::now() + DRAIN_LINGER),
            () = sleep_until(closes_at), if closes_at.is_some() && !closing => {
                closing = true;
                serving.as_mut().graceful_shutdown();
            }
            () = idle.as_mut() => return,
            () = activity.silent(DRAIN_SILENCE), if closing => return,
        }
    }
}

/// What moves on a connection.
struct Activity {
    began: Instant,
    /// When a byte last moved, in milliseconds since then.
    moved_ms: AtomicU64,
    /// Requests that wait for their response's head.
    waiting: AtomicUsize,
    /// Requests whose responses have not come to their end.
    open: AtomicUsize,
    /// Whether there was a request.
    asked: AtomicBool,
    /// Reads in this poll.
    reads: AtomicUsize,
}

impl Activity {
    fn new() -> Activity {
        Activity {
            began: Instant::now(),
            moved_ms: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            asked: AtomicBool::new(false),
            reads: AtomicUsize::new(0),
        }
    }

    fn moved(&self) {
        self.moved_ms.store(self.began.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    fn wait(self: &Arc<Self>) -> Busy {
        self.asked.store(true, Ordering::Relaxed);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Busy(self.clone())
    }

    fn open(self: &Arc<Self>) -> Open {
        self.open.fetch_add(1, Ordering::Relaxed);
        Open(self.clone())
    }

    /// Waits until there is no request, and nothing has moved for so long.
    async fn silent(&self, time: Duration) {
        loop {
            let now_ms = self.began.elapsed().as_millis() as u64;
            let silence = Duration::from_millis(now_ms.saturating_sub(self.moved_ms.load(Ordering::Relaxed)));
            let is_open = self.open.load(Ordering::Relaxed) > 0;
            if silence >= time && !is_open {
                return;
            }
            tokio::time::sleep(if is_open { time } else { time - silence }).await;
        }
    }

    /// Until when it may stay as it is, in milliseconds since it began.
    fn ends_ms(&self, config: &config::Http, now_ms: u64) -> u64 {
        if !self.asked.load(Ordering::Relaxed) {
            // However slowly it sends its first head, and whatever HTTP that is.
            return config.header_timeout_ms;
        }
        let since =
            if self.waiting.load(Ordering::Relaxed) > 0 { now_ms } else { self.moved_ms.load(Ordering::Relaxed) };
        since + config.idle_timeout_ms
    }

    /// Waits until it has been idle for too long.
    async fn idle(&self, config: &config::Http) {
        loop {
            let now_ms = self.began.elapsed().as_millis() as u64;
            let ends_ms = self.ends_ms(config, now_ms);
            if now_ms >= ends_ms {
                return;
            }
            tokio::time::sleep(Duration::from_millis(ends_ms - now_ms)).await;
        }
    }
}

/// A request that waits for its response's head.
struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.moved();
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request whose response has not come to its end.
struct Open(Arc<Activity>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.moved();
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A response's body, whose end its connection is told.
struct Answering {
    body: ResponseBody,
    _open: Open,
}

impl Body for Answering {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A client's socket, watched.
struct Watched {
    stream: TcpStream,
    activity: Arc<Activity>,
}

impl AsyncRead for Watched {
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

impl AsyncWrite for Watched {
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

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
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
        let busy = activity.wait();
        assert_eq!(activity.ends_ms(&config, 500), 600, "it waits for its guest");
        drop(busy);
        activity.moved_ms.store(20, Ordering::Relaxed);
        assert_eq!(activity.ends_ms(&config, 500), 120);
    }
}
