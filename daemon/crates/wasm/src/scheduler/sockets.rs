//! The sockets that workers watch while they wait for work: those of an HTTP component's clients.
//!
//! An idle worker waits in epoll for sockets and for guests at once. What a socket brings is run by the thread that was
//! woken by it; a thread that only watches sockets would have to wake a worker first, which was most of the latency of a
//! short request. Busy workers look at the sockets between two guests, and where all of them compute, the ticker does.

use std::io;
use std::net::TcpStream;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use atomic_waker::AtomicWaker;
use parking_lot::RwLock;
use slab::Slab;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use hearth_os::readiness::{Event, Events, Poller, receive};

/// How long the sockets wait for a look while workers go from guest to guest, in nanoseconds.
const UNSEEN_NS_MAX: u64 = 100_000;

/// The sockets of one scheduler.
#[derive(Debug)]
pub(super) struct Sockets {
    poller: Poller,
    sources: RwLock<Slab<Entry>>,
    /// Sockets in the set.
    count: AtomicUsize,
    /// The generation of the next entry: an event of a socket that is closed is not taken for one of its successor.
    generation: AtomicU64,
    /// When a thread last looked, by the scheduler's clock.
    seen_ns: AtomicU64,
}

#[derive(Debug)]
struct Entry {
    token: u64,
    source: Arc<Source>,
}

/// The place of a socket in the slab: the lower half of its token. The upper half is its generation.
pub(super) fn place(token: u64) -> usize {
    (token & u64::from(u32::MAX)) as usize
}

impl Sockets {
    pub(super) fn new() -> io::Result<Sockets> {
        Ok(Sockets {
            poller: Poller::new()?,
            sources: RwLock::default(),
            count: AtomicUsize::new(0),
            generation: AtomicU64::new(0),
            seen_ns: AtomicU64::new(0),
        })
    }

    /// Whether there is any socket.
    pub(super) fn any(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    /// Whether no thread has looked at them for long. Of several threads that ask, one is told so.
    pub(super) fn are_due(&self, now_ns: u64) -> bool {
        let seen = self.seen_ns.load(Ordering::Relaxed);
        now_ns.saturating_sub(seen) >= UNSEEN_NS_MAX
            && self.seen_ns.compare_exchange(seen, now_ns, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// For how long no thread has looked at them, in nanoseconds.
    pub(super) fn unseen_ns(&self, now_ns: u64) -> u64 {
        now_ns.saturating_sub(self.seen_ns.load(Ordering::Relaxed))
    }

    /// Waits for events, or for [`Sockets::wake`]. `None` waits without end.
    pub(super) fn wait(&self, events: &mut Events, timeout: Option<Duration>) {
        self.poller.wait(events, timeout);
    }

    /// Tells the events to the futures that wait for them.
    pub(super) fn tell(&self, events: &Events, now_ns: u64) {
        self.seen_ns.store(now_ns, Ordering::Relaxed);
        for event in events.iter() {
            let source = {
                let sources = self.sources.read();
                let entry = sources.get(place(event.token)).filter(|entry| entry.token == event.token);
                entry.map(|entry| entry.source.clone())
            };
            // Without the lock: a woken future may be dropped here, and its socket with it.
            if let Some(source) = source {
                source.tell(event);
            }
        }
    }

    /// Wakes one thread that waits.
    pub(super) fn wake(&self) {
        self.poller.wake();
    }

    pub(super) fn add(self: &Arc<Self>, stream: TcpStream) -> io::Result<Socket> {
        let source = Arc::new(Source::default());
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) << 32;
        let token = {
            let mut sources = self.sources.write();
            let vacant = sources.vacant_entry();
            // There are never 2^32 descriptors.
            let token = generation | vacant.key() as u64;
            vacant.insert(Entry { token, source: source.clone() });
            token
        };
        self.count.fetch_add(1, Ordering::Relaxed);
        let socket = Socket { stream, source, token, sockets: self.clone() };
        self.poller.add(&socket.stream, token)?;
        Ok(socket)
    }
}

/// Bits of [`Source::state`].
const READABLE: u64 = 1;
const WRITABLE: u64 = 2;
/// There is always something to read: the end.
const CLOSED: u64 = 4;
/// The bits above count events.
const EVENT: u64 = 8;

/// The readiness of a socket, and the futures that wait for it.
#[derive(Debug, Default)]
struct Source {
    state: AtomicU64,
    reader: AtomicWaker,
    writer: AtomicWaker,
}

impl Source {
    fn tell(&self, event: Event) {
        let bits = [(event.readable, READABLE), (event.writable, WRITABLE), (event.closed, CLOSED)];
        let bits = bits.iter().filter(|(is, _)| *is).fold(0, |all, (_, bit)| all | bit);
        let changed = |state: u64| Some(state.wrapping_add(EVENT) | bits);
        // The update never fails.
        let _ = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, changed);
        if event.readable {
            self.reader.wake();
        }
        if event.writable {
            self.writer.wake();
        }
    }

    /// It would block now. An event since `seen` keeps it ready.
    fn blocks(&self, seen: u64, bit: u64) {
        let _ = self.state.compare_exchange(seen, seen & !bit, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Does something with the socket, and waits while that would block. `attempt` also tells whether it left the socket
    /// with nothing more to do.
    fn poll<T>(
        &self,
        (bit, waker): (u64, &AtomicWaker),
        cx: &mut Context<'_>,
        mut attempt: impl FnMut() -> io::Result<(T, bool)>,
    ) -> Poll<io::Result<T>> {
        loop {
            let seen = self.state.load(Ordering::Acquire);
            if seen & bit == 0 {
                waker.register(cx.waker());
                if self.state.load(Ordering::Acquire) & bit == 0 {
                    return Poll::Pending;
                }
                continue;
            }
            match attempt() {
                Ok((done, exhausted)) => {
                    if exhausted && seen & CLOSED == 0 {
                        self.blocks(seen, bit);
                    }
                    return Poll::Ready(Ok(done));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.blocks(seen, bit),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

/// A socket that workers watch. It has to be used by futures that they run.
#[derive(Debug)]
pub struct Socket {
    stream: TcpStream,
    source: Arc<Source>,
    pub(super) token: u64,
    sockets: Arc<Sockets>,
}

impl Socket {
    fn poll_write_by(
        &self,
        cx: &mut Context<'_>,
        length: usize,
        mut write: impl FnMut(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let attempt = || write(&self.stream).map(|written| (written, written < length));
        self.source.poll((WRITABLE, &self.source.writer), cx, attempt)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.sockets.count.fetch_sub(1, Ordering::Relaxed);
        let entry = self.sockets.sources.write().try_remove(place(self.token));
        drop(entry);
        // A connection that was refused the set is not in it.
        let _ = self.sockets.poller.remove(&self.stream);
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let attempt = || {
            let room = buffer.remaining();
            // Less than there is room for is all that there is (epoll(7)).
            receive(&self.stream, buffer).map(|read| ((), read < room))
        };
        self.source.poll((READABLE, &self.source.reader), cx, attempt)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_by(cx, bytes.len(), |mut stream| io::Write::write(&mut stream, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = parts.iter().map(|part| part.len()).sum();
        self.poll_write_by(cx, length, |mut stream| io::Write::write_vectored(&mut stream, parts))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.stream.shutdown(std::net::Shutdown::Write) {
            // The other side has closed it.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            shut => Poll::Ready(shut),
        }
    }
}
