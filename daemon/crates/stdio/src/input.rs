//! A guest's standard input, and its end.
//!
//! The end of input is the hard part. A FIFO ends when its last writer closes it, but clients come and go (containerd
//! restarts), and CloseIO, the call that means "no more input", is sometimes sent too early and sometimes never. The runc
//! shim keeps a writer of its own until CloseIO, and clients rely on that; from then on the input ends with the last
//! writer:
//!
//! ```text
//!   Create ──▶ open for reading
//!   Start  ──▶ a writer is there ──▶ keep a writer here ──▶ CloseIO drops it ──▶ the others close ──▶ end
//!         └──▶ there is none ───────────────────────────────────────────────────────────────────────▶ end
//! ```
//!
//! * Several clients send CloseIO right after Start and go on writing, so it must not end their input.
//! * containerd's own writer for a pod closes when containerd restarts, and opens again: the writer here bridges the gap.
//! * `ctr run` (1.6 at least) loses its CloseIO if its input ends before Create is answered, as with `</dev/null` and
//!   `echo x |`; with runc such a container waits for ever. By then the client has closed the FIFO, which the check at
//!   Start notices. Every client opens the FIFO before Create, so a client without an open FIFO at Start will not write.
//!
//! The content of the FIFO is always read before the end.

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
    /// The input has ended.
    Ended,
    Failed(Errno),
}

struct Fifo {
    channel: Channel,
    /// The daemon's own writer.
    keeper: Option<OwnedFd>,
    /// CloseIO has come.
    close_asked: bool,
    /// The last writer has closed. Buffered bytes may still be read, but a new writer is too late: epoll reports a
    /// hang-up only once.
    hung_up: bool,
    end: EndOfInput,
}

/// The meaning of a read without bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EndOfInput {
    /// The input has ended for good.
    Final,
    /// A ^D was typed: the next read waits for further input.
    Typed,
}

/// The result of a read.
enum ReadResult {
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
        Input::reading(fd, EndOfInput::Final, chunk_bytes, runtime)
    }

    /// Reads from a terminal, where the end of input is typed.
    pub(super) fn terminal(fd: OwnedFd, chunk_bytes: usize, runtime: Handle) -> Arc<Input> {
        Input::reading(fd, EndOfInput::Typed, chunk_bytes, runtime)
    }

    fn reading(fd: OwnedFd, end: EndOfInput, chunk_bytes: usize, runtime: Handle) -> Arc<Input> {
        let fifo = Fifo { channel: Channel::input(fd), keeper: None, close_asked: false, hung_up: false, end };
        Arc::new(Input { source: Mutex::new(Source::Fifo(fifo)), wakers: Arc::default(), chunk_bytes, runtime })
    }

    /// The process starts: from now on the input outlives its client, unless the client has closed it already.
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

    /// CloseIO: the client announces that no more input follows.
    pub(super) fn close_asked(&self) {
        if let Source::Fifo(fifo) = &mut *self.source.lock() {
            fifo.close_asked = true;
            // If it is the last writer, the hang-up wakes the futures that wait.
            fifo.keeper = None;
        }
    }

    /// Makes the kernel process the typed bytes at once instead of a little later: poll(2) on a terminal without
    /// readable bytes does that (the kernel's n_tty.c, `n_tty_poll`).
    pub(super) fn settle(&self) {
        if let Source::Fifo(fifo) = &*self.source.lock() {
            // The result does not matter.
            let _ = fifo::readiness(fifo.channel.as_fd());
        }
    }

    /// Closes the descriptor, even if streams still exist, and wakes the futures that wait.
    pub(super) fn close(&self) {
        let last = std::mem::replace(&mut *self.source.lock(), Source::Ended);
        drop(last);
        self.wakers.wake_by_ref();
    }

    /// Remembers the waiting future. Returns a waker for all futures that wait.
    fn waiting(&self, cx: &Context) -> Waker {
        self.wakers.add(cx.waker());
        self.wakers.clone().into()
    }

    /// Reads without waiting, at most `size` bytes; empty if there are none yet.
    fn read(&self, size: usize) -> StreamResult<Bytes> {
        let mut source = self.source.lock();
        let mut buffer = Vec::new();
        let found = match &mut *source {
            Source::Ended => Some(ReadResult::End),
            Source::Failed(error) => Some(ReadResult::Failed(*error)),
            Source::Fifo(_) if size == 0 => return Ok(Bytes::new()),
            Source::Fifo(fifo) => {
                buffer.reserve_exact(size.min(self.chunk_bytes));
                let fd = fifo.channel.as_fd();
                found(retry_on_intr(|| rustix::io::read(fd, spare_capacity(&mut buffer))), fifo.hung_up)
            }
        };
        match found {
            None => Ok(Bytes::new()),
            Some(ReadResult::Bytes(_)) => Ok(buffer.into()),
            Some(ReadResult::End) if source.goes_on() => Err(StreamError::Closed),
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
            Err(error) => ReadResult::Failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
        };
        match found {
            ReadResult::Bytes(read) => {
                buffer.advance(read);
                Poll::Ready(Ok(()))
            }
            ReadResult::End if source.goes_on() => Poll::Ready(Ok(())),
            ReadResult::End => {
                *source = Source::Ended;
                Poll::Ready(Ok(()))
            }
            ReadResult::Failed(error) => {
                *source = Source::Failed(error);
                Poll::Ready(Err(error.into()))
            }
        }
    }
}

impl Source {
    /// Whether more input may follow an end.
    fn goes_on(&self) -> bool {
        matches!(self, Source::Fifo(fifo) if fifo.end == EndOfInput::Typed && !fifo.hung_up)
    }
}

/// `None` if a read would have waited.
fn found(result: Result<usize, Errno>, hung_up: bool) -> Option<ReadResult> {
    match result {
        Ok(0) => Some(ReadResult::End),
        Ok(read) => Some(ReadResult::Bytes(read)),
        Err(Errno::AGAIN) if hung_up => Some(ReadResult::End),
        Err(Errno::AGAIN) => None,
        Err(error) => Some(ReadResult::Failed(error)),
    }
}

impl ReadResult {
    /// The source's state after this result, and the guest's error.
    fn end(self) -> (Source, StreamError) {
        match self {
            ReadResult::Failed(error) => {
                (Source::Failed(error), StreamError::LastOperationFailed(io::Error::from(error).into()))
            }
            ReadResult::End | ReadResult::Bytes(_) => (Source::Ended, StreamError::Closed),
        }
    }
}

/// A guest's handle on its input: a stream of WASI 0.2 (and of preview 1) and of WASI 0.3.
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
