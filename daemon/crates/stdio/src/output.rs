//! A guest's standard output or error, and its end.
//!
//! A write is one write(2) on the guest's own thread, inside its poll. Bytes that do not fit stay here without a copy,
//! and the guest gets no permit for more until the reader has made room. All streams over one descriptor share this
//! state.
//!
//! ```text
//!   write ──▶ fits ──────────────────────────────▶ done
//!        └──▶ EAGAIN ──▶ pending ──▶ writable ──▶ flushed     ready() waits here; a kill drops it
//!   close ──▶ nothing pending ──▶ closed; the content of a FIFO without a reader is kept for one, up to
//!        │                        stdio.unread_ms; a reader that is there gets a moment to take the rest
//!        │                        before the end is reported
//!        └──▶ pending ──▶ lingers, up to stdio.linger_ms ──▶ closed
//! ```
//!
//! Failures: a FIFO has none, since the daemon itself holds a reader. A dead log program is `EPIPE` and a full disk is
//! `ENOSPC`, for this guest alone.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use rustix::io::{Errno, retry_on_intr};
use tokio::io::AsyncWrite;
use tokio::runtime::Handle;
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

use super::channel::Channel;
use super::unread::wait_for_reader;
use super::wakers::Wakers;
use hearth_os::fifo::{self, Unread};

/// The most permits that a guest may collect by opening its stdout several times, before it uses one.
const PERMITS_MAX: usize = 16;

/// The most lines of the daemon that wait for a file's disk at once.
const LINES_WAITING_MAX: usize = 64;

/// A guest's standard output or error.
pub(super) struct Output {
    sink: Mutex<Sink>,
    wakers: Arc<Wakers>,
    chunk_bytes: usize,
    linger: Duration,
    /// How long content without a reader is kept after the end.
    unread: Duration,
    /// Lines of the daemon that wait for a file's disk.
    lines_waiting: Arc<AtomicUsize>,
    runtime: Handle,
}

enum Sink {
    /// The output is discarded.
    Discard,
    /// A regular file, or the null device.
    File(Arc<OwnedFd>),
    /// A FIFO, or a pipe to a log program.
    Pipe(Pipe),
    /// Writing has failed for good.
    Broken(Errno),
    /// The task has ended.
    Closed,
}

/// Why bytes are not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refused {
    Closed,
    Failed(Errno),
    TooMuch,
}

impl Output {
    fn new(sink: Sink, chunk_bytes: usize, linger: Duration, unread: Duration, runtime: Handle) -> Arc<Output> {
        Arc::new(Output {
            sink: Mutex::new(sink),
            wakers: Arc::default(),
            chunk_bytes,
            linger,
            unread,
            lines_waiting: Arc::default(),
            runtime,
        })
    }

    /// Throws everything away, without a system call.
    pub(super) fn discard(chunk_bytes: usize, runtime: Handle) -> Arc<Output> {
        Output::new(Sink::Discard, chunk_bytes, Duration::ZERO, Duration::ZERO, runtime)
    }

    /// Appends to a file. A write that waits for the disk holds the guest's thread.
    pub(super) fn file(file: OwnedFd, chunk_bytes: usize, runtime: Handle) -> Arc<Output> {
        Output::new(Sink::File(Arc::new(file)), chunk_bytes, Duration::ZERO, Duration::ZERO, runtime)
    }

    /// Writes to a FIFO that [`fifo::open_output`] opened. Its content at the end is kept for `unread` if there is no
    /// reader yet.
    pub(super) fn fifo(
        fd: OwnedFd,
        chunk_bytes: usize,
        linger: Duration,
        unread: Duration,
        runtime: Handle,
    ) -> Arc<Output> {
        Output::new(Sink::Pipe(Pipe::new(fd)), chunk_bytes, linger, unread, runtime)
    }

    /// Writes to a non-blocking pipe that has a reader.
    pub(super) fn pipe(fd: OwnedFd, chunk_bytes: usize, linger: Duration, runtime: Handle) -> Arc<Output> {
        Output::new(Sink::Pipe(Pipe::new(fd)), chunk_bytes, linger, Duration::ZERO, runtime)
    }

    /// The file, if the sink is one. It is written without the lock, because a disk may be slow and [`Output::close`]
    /// must not wait for it.
    fn file_of(sink: &Sink) -> Option<Arc<OwnedFd>> {
        if let Sink::File(file) = sink { Some(file.clone()) } else { None }
    }

    /// Takes all of `bytes`, for which the guest had a permit. Returns whether all of it is written.
    fn write(&self, bytes: Bytes) -> Result<bool, Refused> {
        let mut sink = self.sink.lock();
        if let Some(file) = Output::file_of(&sink) {
            drop(sink);
            return append(&file, &bytes).map(|()| true).map_err(Refused::Failed);
        }
        sink.take(bytes, self.chunk_bytes * PERMITS_MAX)
    }

    /// Writes a part of `bytes` and keeps none of it.
    fn poll_write(&self, cx: &mut Context, bytes: &[u8]) -> Poll<Result<usize, Refused>> {
        let bytes = &bytes[..bytes.len().min(self.chunk_bytes)];
        let mut sink = self.sink.lock();
        if let Some(file) = Output::file_of(&sink) {
            drop(sink);
            return Poll::Ready(append(&file, bytes).map(|()| bytes.len()).map_err(Refused::Failed));
        }
        sink.poll(|pipe| pipe.poll_write(bytes, || self.waiting(cx), &self.runtime), bytes.len())
    }

    /// Waits until nothing is pending.
    fn poll_flush(&self, cx: &mut Context) -> Poll<Result<(), Refused>> {
        let mut sink = self.sink.lock();
        if !sink.is_pending() {
            return Poll::Ready(sink.check());
        }
        sink.poll(|pipe| pipe.poll_flush(|| self.waiting(cx), &self.runtime), ())
    }

    /// How much a guest may write next; 0 while something is pending.
    fn permit(&self) -> Result<usize, Refused> {
        let mut sink = self.sink.lock();
        if sink.is_pending() {
            sink.flush()?;
        }
        sink.check()?;
        Ok(if sink.is_pending() { 0 } else { self.chunk_bytes })
    }

    /// Remembers the waiting future. Returns a waker for all futures that wait.
    fn waiting(&self, cx: &Context) -> Waker {
        self.wakers.add(cx.waker());
        self.wakers.clone().into()
    }

    /// Writes a note of the daemon after the guest's own bytes, without waiting. The note is lost if there is no room
    /// for it after the end either.
    pub(super) fn note(&self, text: &str) {
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        let mut sink = self.sink.lock();
        let Some(file) = Output::file_of(&sink) else {
            let _ = sink.take(bytes, self.chunk_bytes * PERMITS_MAX + text.len());
            return;
        };
        drop(sink);
        self.runtime.spawn_blocking(move || {
            if let Err(error) = append(&file, &bytes) {
                tracing::debug!(%error, "cannot append to a task's log file");
            }
        });
    }

    /// Writes a line of the daemon after the guest's own bytes, without waiting. Returns whether there was room for it.
    pub(super) fn line(&self, text: String) -> bool {
        let mut sink = self.sink.lock();
        let Some(file) = Output::file_of(&sink) else {
            let pending_max = self.chunk_bytes * PERMITS_MAX;
            // The guest may write nothing, which would flush the pending bytes.
            return sink.flush().and_then(|()| sink.take(text.into(), pending_max)).is_ok();
        };
        drop(sink);
        let more = |waiting| (waiting < LINES_WAITING_MAX).then_some(waiting + 1);
        if self.lines_waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_err() {
            return false;
        }
        let waiting = self.lines_waiting.clone();
        self.runtime.spawn_blocking(move || {
            if let Err(error) = append(&file, text.as_bytes()) {
                tracing::debug!(%error, "cannot append to a task's log file");
            }
            waiting.fetch_sub(1, Ordering::Relaxed);
        });
        true
    }

    /// Closes the descriptor, even if streams still exist, and wakes the futures that wait. Pending bytes are written
    /// in the background for a while. Returns the content that a present reader has still to read.
    pub(super) fn close(&self) -> Option<Unread> {
        let mut last = {
            let mut sink = self.sink.lock();
            let _ = sink.flush();
            std::mem::replace(&mut *sink, Sink::Closed)
        };
        self.wakers.wake_by_ref();
        let (most, unread, runtime) = (self.linger, self.unread, self.runtime.clone());
        if last.is_pending() {
            self.runtime.spawn(async move {
                last.linger(most, &runtime).await;
                if let Some(kept) = last.keep_unread(unread) {
                    wait_for_reader(kept, unread).await;
                }
            });
            return None;
        }
        let kept = last.keep_unread(unread)?;
        if !kept.is_safe() {
            self.runtime.spawn(wait_for_reader(kept, unread));
            return None;
        }
        (!kept.is_over()).then_some(kept)
    }
}

impl Sink {
    fn check(&self) -> Result<(), Refused> {
        match self {
            Sink::Discard | Sink::File(_) | Sink::Pipe(_) => Ok(()),
            Sink::Broken(error) => Err(Refused::Failed(*error)),
            Sink::Closed => Err(Refused::Closed),
        }
    }

    fn is_pending(&self) -> bool {
        matches!(self, Sink::Pipe(pipe) if !pipe.pending.is_empty())
    }

    /// Writes the bytes that fit and keeps the rest. Returns whether all of them are written.
    fn take(&mut self, mut bytes: Bytes, pending_max: usize) -> Result<bool, Refused> {
        let Sink::Pipe(pipe) = self else { return self.check().map(|()| true) };
        if pipe.pending.is_empty() {
            match drain_one(pipe.channel.as_fd(), &mut bytes) {
                Some(Ok(())) => return Ok(true),
                Some(Err(error)) => return Err(self.broken(error)),
                None => {}
            }
        }
        if pipe.pending_bytes + bytes.len() > pending_max {
            return Err(Refused::TooMuch);
        }
        pipe.push(bytes);
        Ok(false)
    }

    /// One attempt to write the pending bytes.
    fn flush(&mut self) -> Result<(), Refused> {
        if let Sink::Pipe(pipe) = self
            && let Some(Err(error)) = pipe.drain()
        {
            return Err(self.broken(error));
        }
        self.check()
    }

    /// Lets a pipe attempt an operation that may wait. Any other sink is done at once, with `otherwise`.
    fn poll<T>(
        &mut self,
        attempt: impl FnOnce(&mut Pipe) -> Poll<Result<T, Errno>>,
        otherwise: T,
    ) -> Poll<Result<T, Refused>> {
        let Sink::Pipe(pipe) = self else { return Poll::Ready(self.check().map(|()| otherwise)) };
        match ready!(attempt(pipe)) {
            Ok(done) => Poll::Ready(Ok(done)),
            Err(error) => Poll::Ready(Err(self.broken(error))),
        }
    }

    /// Records that no more bytes can be written.
    fn broken(&mut self, error: Errno) -> Refused {
        tracing::debug!(%error, "a process's output takes no more");
        *self = Sink::Broken(error);
        Refused::Failed(error)
    }

    /// Closes the sink. Returns the guard that keeps its content for a later reader.
    fn keep_unread(self, unread: Duration) -> Option<Unread> {
        let Sink::Pipe(pipe) = self else { return None };
        if unread.is_zero() {
            return None;
        }
        let kept = fifo::keep_unread(pipe.channel.as_fd()).unwrap_or_else(|error| {
            tracing::debug!(%error, "what is in an output's FIFO cannot be kept");
            None
        })?;
        // The daemon's own descriptor reads, too: it has to be closed before another reader can be recognised.
        drop(pipe);
        Some(kept)
    }

    /// Writes the rest, for as long as a slow reader may need.
    async fn linger(&mut self, most: Duration, runtime: &Handle) {
        let flushed = std::future::poll_fn(|cx| self.poll(|pipe| pipe.poll_flush(|| cx.waker().clone(), runtime), ()));
        if tokio::time::timeout(most, flushed).await.is_err() {
            tracing::debug!("a task's last output was dropped: it had no reader");
        }
    }
}

/// A descriptor that may be full, and the bytes that did not fit.
struct Pipe {
    channel: Channel,
    pending: VecDeque<Bytes>,
    pending_bytes: usize,
}

impl Pipe {
    fn new(fd: OwnedFd) -> Pipe {
        Pipe { channel: Channel::output(fd), pending: VecDeque::new(), pending_bytes: 0 }
    }

    fn push(&mut self, bytes: Bytes) {
        self.pending_bytes += bytes.len();
        self.pending.push_back(bytes);
    }

    /// `None` if it would wait.
    fn drain(&mut self) -> Option<Result<(), Errno>> {
        drain(self.channel.as_fd(), &mut self.pending, &mut self.pending_bytes)
    }

    fn poll_flush(&mut self, waker: impl FnOnce() -> Waker, runtime: &Handle) -> Poll<Result<(), Errno>> {
        let (pending, pending_bytes) = (&mut self.pending, &mut self.pending_bytes);
        let polled = self.channel.poll(waker, runtime, |fd, _| drain(fd, pending, pending_bytes));
        polled.map(flatten)
    }

    fn poll_write(&mut self, bytes: &[u8], waker: impl Fn() -> Waker, runtime: &Handle) -> Poll<Result<usize, Errno>> {
        if !self.pending.is_empty() {
            ready!(self.poll_flush(&waker, runtime))?;
        }
        self.channel.poll(waker, runtime, |fd, _| write_some(fd, bytes)).map(flatten)
    }
}

fn flatten<T>(result: io::Result<Result<T, Errno>>) -> Result<T, Errno> {
    result.unwrap_or_else(|error| Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)))
}

/// Writes all pending bytes; `None` if the rest would have to wait.
fn drain(fd: BorrowedFd, pending: &mut VecDeque<Bytes>, pending_bytes: &mut usize) -> Option<Result<(), Errno>> {
    while let Some(first) = pending.front_mut() {
        let before = first.len();
        let drained = drain_one(fd, first);
        *pending_bytes -= before - first.len();
        if !matches!(drained, Some(Ok(()))) {
            return drained;
        }
        pending.pop_front();
    }
    Some(Ok(()))
}

/// Writes `bytes`, and removes from it the part that is written; `None` if the rest would have to wait.
fn drain_one(fd: BorrowedFd, bytes: &mut Bytes) -> Option<Result<(), Errno>> {
    while !bytes.is_empty() {
        match write_some(fd, bytes)? {
            Ok(written) => bytes.advance(written),
            Err(error) => return Some(Err(error)),
        }
    }
    Some(Ok(()))
}

/// `None` if it would wait.
fn write_some(fd: BorrowedFd, bytes: &[u8]) -> Option<Result<usize, Errno>> {
    match retry_on_intr(|| rustix::io::write(fd, bytes)) {
        Err(Errno::AGAIN) => None,
        written => Some(written),
    }
}

fn append(file: &OwnedFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match retry_on_intr(|| rustix::io::write(file, bytes))? {
            0 => return Err(Errno::IO),
            written => bytes = &bytes[written..],
        }
    }
    Ok(())
}

impl From<Refused> for StreamError {
    fn from(refused: Refused) -> StreamError {
        match refused {
            Refused::Closed => StreamError::Closed,
            // With the system's error the guest sees its errno.
            Refused::Failed(error) => StreamError::LastOperationFailed(io::Error::from(error).into()),
            Refused::TooMuch => {
                StreamError::trap("more was written to stdout or stderr than check-write had permitted")
            }
        }
    }
}

impl From<Refused> for io::Error {
    fn from(refused: Refused) -> io::Error {
        match refused {
            Refused::Closed => io::ErrorKind::BrokenPipe.into(),
            Refused::Failed(error) => error.into(),
            Refused::TooMuch => io::ErrorKind::InvalidInput.into(),
        }
    }
}

/// One of a guest's handles on an output: a stream of WASI 0.2 (and of preview 1) and of WASI 0.3.
#[derive(Clone)]
pub(super) struct Writer(pub(super) Arc<Output>);

#[async_trait::async_trait]
impl Pollable for Writer {
    async fn ready(&mut self) {
        // An error is told by the call that follows.
        let _ = std::future::poll_fn(|cx| self.0.poll_flush(cx)).await;
    }
}

#[async_trait::async_trait]
impl OutputStream for Writer {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.0.write(bytes)?;
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        // Nothing is kept that could be written, and check_write permits nothing until it is.
        Ok(self.0.sink.lock().check()?)
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(self.0.permit()?)
    }

    /// The one way preview 1 and most libraries write: at most 4 KiB, and usually one write(2).
    async fn blocking_write_and_flush(&mut self, mut bytes: Bytes) -> StreamResult<()> {
        loop {
            let chunk = bytes.split_to(bytes.len().min(self.0.chunk_bytes));
            if !self.0.write(chunk)? {
                std::future::poll_fn(|cx| self.0.poll_flush(cx)).await?;
            }
            if bytes.is_empty() {
                return Ok(());
            }
        }
    }
}

impl AsyncWrite for Writer {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.poll_write(cx, bytes).map_err(io::Error::from)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_flush(cx).map_err(io::Error::from)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Other handles go on; only the end of the task closes it.
        self.poll_flush(cx)
    }
}

#[cfg(test)]
pub(crate) mod tests;
