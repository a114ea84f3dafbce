//! Where a guest's standard input comes from.
//!
//! The end of input is the hard part: a FIFO ends when its last writer leaves, but clients come and go
//! (containerd restarts), and CloseIO, the call that says "no more", is sometimes sent too early and
//! sometimes never. What the runc shim does, and clients rely on, is to keep a writer of its own until
//! CloseIO; from then on the input ends with the last writer:
//!
//! ```text
//!   Create ──▶ open for reading
//!   Start  ──▶ a writer is there ──▶ keep one of ours ──▶ CloseIO drops it ──▶ the others leave ──▶ end
//!         └──▶ there is none ─────────────────────────────────────────────────────────────────────▶ end
//! ```
//!
//! * Several clients send CloseIO right after Start and go on writing, so it must not end what others
//!   still write.
//! * containerd's own writer for a pod goes when containerd restarts, and comes back: ours bridges it.
//! * `ctr run` (1.6 at least) loses its CloseIO if its input ends before Create is answered, as
//!   `</dev/null` and `echo x |` do; with runc such a container waits for ever. The client has closed
//!   the FIFO by then, which the look at Start notices. Every client opens the FIFO before Create, so
//!   one that has none open at Start will not write.
//!
//! What the FIFO holds is always read before the end.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker, ready};

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::buffer::spare_capacity;
use rustix::io::{Errno, retry_on_intr};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::runtime::Handle;
use wasmtime_wasi::p2::{InputStream, Pollable, StreamError, StreamResult};

use super::channel::Channel;
use super::wakers::Wakers;
use hearth_os::fifo::{self, Readiness};

/// A guest's standard input.
pub(super) struct Input {
    source: Mutex<Source>,
    wakers: Arc<Wakers>,
    chunk_bytes: usize,
    runtime: Handle,
}

enum Source {
    Fifo(Fifo),
    /// There is no more.
    Ended,
    Failed(Errno),
}

struct Fifo {
    channel: Channel,
    /// Our writer.
    keeper: Option<OwnedFd>,
    /// CloseIO has come.
    close_asked: bool,
    /// The last writer has left. What is buffered may still be read, but a writer that comes now is
    /// too late: epoll reports a hang-up only once.
    hung_up: bool,
    end: End,
}

/// What it means that a read finds no bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// There will be no more.
    Final,
    /// A ^D was typed: who reads again waits for what is typed next.
    Typed,
}

/// What a read found.
enum Found {
    Bytes(usize),
    End,
    Failed(Errno),
}

impl Input {
    /// No input: the end at once.
    pub(super) fn none(runtime: Handle) -> Arc<Input> {
        Arc::new(Input { source: Mutex::new(Source::Ended), wakers: Arc::default(), chunk_bytes: 1, runtime })
    }

    /// Reads from a FIFO that [`fifo::open_input`] opened.
    pub(super) fn fifo(fd: OwnedFd, chunk_bytes: usize, runtime: Handle) -> Arc<Input> {
        Input::reading(fd, End::Final, chunk_bytes, runtime)
    }

    /// Reads from a terminal, whose end of input is what is typed on it.
    pub(super) fn terminal(fd: OwnedFd, chunk_bytes: usize, runtime: Handle) -> Arc<Input> {
        Input::reading(fd, End::Typed, chunk_bytes, runtime)
    }

    fn reading(fd: OwnedFd, end: End, chunk_bytes: usize, runtime: Handle) -> Arc<Input> {
        let fifo = Fifo { channel: Channel::input(fd), keeper: None, close_asked: false, hung_up: false, end };
        Arc::new(Input { source: Mutex::new(Source::Fifo(fifo)), wakers: Arc::default(), chunk_bytes, runtime })
    }

    /// The process starts: from now on the input outlives its client, unless that has gone already.
    pub(super) fn start(&self) {
        let mut source = self.source.lock();
        let Source::Fifo(fifo) = &mut *source else { return };
        let fd = fifo.channel.as_fd();
        if fifo.close_asked || fifo::readiness(fd).is_ok_and(|now| now.hung_up) {
            return;
        }
        match fifo::hold_open(fd) {
            Ok(keeper) => fifo.keeper = Some(keeper),
            Err(error) => tracing::warn!(%error, "stdin will end with its client: no writer could be kept"),
        }
    }

    /// The client says that no more will come.
    pub(super) fn close_asked(&self) {
        if let Source::Fifo(fifo) = &mut *self.source.lock() {
            fifo.close_asked = true;
            // If it is the last writer, the hang-up wakes who waits.
            fifo.keeper = None;
        }
    }

    /// Has the kernel deal with what has been typed on the terminal, where it would otherwise do so a little
    /// later: polling a terminal that has nothing to read does that (its n_tty.c, `n_tty_poll`).
    pub(super) fn settle(&self) {
        if let Source::Fifo(fifo) = &*self.source.lock() {
            // What it finds does not matter.
            let _ = fifo::readiness(fifo.channel.as_fd());
        }
    }

    /// Closes the descriptor, whatever streams still exist, and wakes who waits.
    pub(super) fn close(&self) {
        let last = std::mem::replace(&mut *self.source.lock(), Source::Ended);
        drop(last);
        self.wakers.wake_by_ref();
    }

    /// Remembers who waits, and gives what wakes all of them.
    fn waiting(&self, cx: &Context) -> Waker {
        self.wakers.add(cx.waker());
        self.wakers.clone().into()
    }

    /// Reads without waiting, at most `size` bytes; empty if there are none yet.
    fn read(&self, size: usize) -> StreamResult<Bytes> {
        let mut source = self.source.lock();
        let mut buffer = Vec::new();
        let found = match &mut *source {
            Source::Ended => Some(Found::End),
            Source::Failed(error) => Some(Found::Failed(*error)),
            Source::Fifo(_) if size == 0 => return Ok(Bytes::new()),
            Source::Fifo(fifo) => {
                buffer.reserve_exact(size.min(self.chunk_bytes));
                let fd = fifo.channel.as_fd();
                found(retry_on_intr(|| rustix::io::read(fd, spare_capacity(&mut buffer))), fifo.hung_up)
            }
        };
        match found {
            None => Ok(Bytes::new()),
            Some(Found::Bytes(_)) => Ok(buffer.into()),
            Some(Found::End) if source.goes_on() => Err(StreamError::Closed),
            Some(other) => {
                let (next, error) = other.end();
                *source = next;
                Err(error)
            }
        }
    }

    fn poll_readable(&self, cx: &mut Context) -> Poll<()> {
        let mut source = self.source.lock();
        let Source::Fifo(fifo) = &mut *source else { return Poll::Ready(()) };
        let hung_up = &mut fifo.hung_up;
        let polled = fifo.channel.poll(
            || self.waiting(cx),
            &self.runtime,
            |fd, closed| {
                *hung_up |= closed;
                let now = fifo::readiness(fd).unwrap_or(Readiness { readable: true, hung_up: false });
                *hung_up |= now.hung_up;
                (*hung_up || now.readable).then_some(())
            },
        );
        if let Err(error) = ready!(polled) {
            *source = Source::Failed(Errno::from_io_error(&error).unwrap_or(Errno::IO));
        }
        Poll::Ready(())
    }

    fn poll_read(&self, cx: &mut Context, buffer: &mut ReadBuf) -> Poll<io::Result<()>> {
        let mut source = self.source.lock();
        let fifo = match &mut *source {
            Source::Fifo(fifo) => fifo,
            Source::Ended => return Poll::Ready(Ok(())),
            Source::Failed(error) => return Poll::Ready(Err((*error).into())),
        };
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let room = buffer.initialize_unfilled_to(buffer.remaining().min(self.chunk_bytes));
        let hung_up = &mut fifo.hung_up;
        let polled = fifo.channel.poll(
            || self.waiting(cx),
            &self.runtime,
            |fd, closed| {
                *hung_up |= closed;
                found(retry_on_intr(|| rustix::io::read(fd, &mut *room)), *hung_up)
            },
        );
        let found = match ready!(polled) {
            Ok(found) => found,
            Err(error) => Found::Failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
        };
        match found {
            Found::Bytes(read) => {
                buffer.advance(read);
                Poll::Ready(Ok(()))
            }
            Found::End if source.goes_on() => Poll::Ready(Ok(())),
            Found::End => {
                *source = Source::Ended;
                Poll::Ready(Ok(()))
            }
            Found::Failed(error) => {
                *source = Source::Failed(error);
                Poll::Ready(Err(error.into()))
            }
        }
    }
}

impl Source {
    /// Whether there may be more after an end.
    fn goes_on(&self) -> bool {
        matches!(self, Source::Fifo(fifo) if fifo.end == End::Typed && !fifo.hung_up)
    }
}

/// `None` if a read would have waited.
fn found(result: Result<usize, Errno>, hung_up: bool) -> Option<Found> {
    match result {
        Ok(0) => Some(Found::End),
        Ok(read) => Some(Found::Bytes(read)),
        Err(Errno::AGAIN) if hung_up => Some(Found::End),
        Err(Errno::AGAIN) => None,
        Err(error) => Some(Found::Failed(error)),
    }
}

impl Found {
    /// What the source is after this, and what the guest is told.
    fn end(self) -> (Source, StreamError) {
        match self {
            Found::Failed(error) => {
                (Source::Failed(error), StreamError::LastOperationFailed(io::Error::from(error).into()))
            }
            Found::End | Found::Bytes(_) => (Source::Ended, StreamError::Closed),
        }
    }
}

/// One of a guest's handles on its input: a stream of WASI 0.2 (and of preview 1) and of WASI 0.3.
#[derive(Clone)]
pub(super) struct Reader(pub(super) Arc<Input>);

#[async_trait::async_trait]
impl Pollable for Reader {
    async fn ready(&mut self) {
        std::future::poll_fn(|cx| self.0.poll_readable(cx)).await;
    }
}

#[async_trait::async_trait]
impl InputStream for Reader {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        self.0.read(size)
    }

    /// Reads first and waits only if it must.
    async fn blocking_read(&mut self, size: usize) -> StreamResult<Bytes> {
        loop {
            let bytes = self.0.read(size)?;
            if !bytes.is_empty() || size == 0 {
                return Ok(bytes);
            }
            self.ready().await;
        }
    }
}

impl AsyncRead for Reader {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.poll_read(cx, buffer)
    }
}

#[cfg(test)]
mod tests;
