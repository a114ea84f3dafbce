//! Where a guest's standard output or error goes.
//!
//! A write is one write(2) on the guest's own thread, inside its poll. What does not fit stays here, no
//! copy made, and the guest gets no permit for more until the reader has made room. All streams over
//! one descriptor share this.
//!
//! ```text
//!   write ──▶ fits ──────────────────────────────▶ done
//!        └──▶ EAGAIN ──▶ pending ──▶ writable ──▶ flushed     ready() waits here; a kill drops it
//!   close ──▶ nothing pending ──▶ closed; but what a FIFO holds that has no reader yet is kept for one,
//!        │                        up to stdio.unread_ms, and a reader that is there gets a moment to take it
//!        │                        before the end is told
//!        └──▶ pending ──▶ lingers, up to stdio.linger_ms ──▶ closed
//! ```
//!
//! Failures: a FIFO has none, since it always has a reader. A log program that died is `EPIPE`, a full
//! disk `ENOSPC`, for the guest alone.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use rustix::io::{Errno, retry_on_intr};
use tokio::io::AsyncWrite;
use tokio::runtime::Handle;
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

use super::channel::Channel;
use super::wakers::Wakers;
use hearth_os::fifo::{self, Unread};

/// Permits a guest may collect by opening its stdout several times, before using any of them.
const PERMITS_MAX: usize = 16;

/// A guest's standard output or error.
pub(super) struct Output {
    sink: Mutex<Sink>,
    wakers: Arc<Wakers>,
    chunk_bytes: usize,
    linger: Duration,
    /// How long what nobody has come for is kept after the end.
    unread: Duration,
    runtime: Handle,
}

enum Sink {
    /// Nobody wants it.
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
        Arc::new(Output { sink: Mutex::new(sink), wakers: Arc::default(), chunk_bytes, linger, unread, runtime })
    }

    /// Throws everything away, without a system call.
    pub(super) fn discard(chunk_bytes: usize, runtime: Handle) -> Arc<Output> {
        Output::new(Sink::Discard, chunk_bytes, Duration::ZERO, Duration::ZERO, runtime)
    }

    /// Appends to a file. A write that waits for the disk holds the guest's thread.
    pub(super) fn file(file: OwnedFd, chunk_bytes: usize, runtime: Handle) -> Arc<Output> {
        Output::new(Sink::File(Arc::new(file)), chunk_bytes, Duration::ZERO, Duration::ZERO, runtime)
    }

    /// Writes to a FIFO that [`fifo::open_output`] opened. What is in it at the end is kept for `unread` if
    /// there is no reader yet.
    pub(super) fn fifo(
        fd: OwnedFd,
        chunk_bytes: usize,
        linger: Duration,
        unread: Duration,
        runtime: Handle,
    ) -> Arc<Output> {
        Output::new(Sink::Pipe(Pipe::new(fd)), chunk_bytes, linger, unread, runtime)
    }

    /// Writes to a non-blocking pipe, whose reader is there.
    pub(super) fn pipe(fd: OwnedFd, chunk_bytes: usize, linger: Duration, runtime: Handle) -> Arc<Output> {
        Output::new(Sink::Pipe(Pipe::new(fd)), chunk_bytes, linger, Duration::ZERO, runtime)
    }

    /// The file, if it is one: it is written to without the lock, because a disk may take its time and
    /// [`Output::close`] must not wait for it.
    fn file_of(sink: &Sink) -> Option<Arc<OwnedFd>> {
        if let Sink::File(file) = sink { Some(file.clone()) } else { None }
    }

    /// Takes all of `bytes`, for which a permit was there; tells whether none of it is pending.
    fn write(&self, bytes: Bytes) -> Result<bool, Refused> {
        let mut sink = self.sink.lock();
        if let Some(file) = Output::file_of(&sink) {
            drop(sink);
            return append(&file, &bytes).map(|()| true).map_err(Refused::Failed);
        }
        sink.take(bytes, self.chunk_bytes * PERMITS_MAX)
    }

    /// Writes some of `bytes` and keeps none.
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

    /// Remembers who waits, and gives what wakes all of them.
    fn waiting(&self, cx: &Context) -> Waker {
        self.wakers.add(cx.waker());
        self.wakers.clone().into()
    }

    /// Writes a line of the daemon's own after everything the guest wrote, without waiting. It is lost
    /// if there is no room for it even after the end.
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

    /// Closes the descriptor, whatever streams still exist, and wakes who waits. What is pending gets
    /// its last chance in the background. Gives what a reader that is there has still to read.
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

    /// Writes what fits and keeps the rest; tells whether there is none.
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

    /// One attempt to write what is pending.
    fn flush(&mut self) -> Result<(), Refused> {
        if let Sink::Pipe(pipe) = self
            && let Some(Err(error)) = pipe.drain()
        {
            return Err(self.broken(error));
        }
        self.check()
    }

    /// Lets a pipe do what may have to wait; anything else is done at once, with `otherwise`.
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

    /// Nothing more can be written.
    fn broken(&mut self, error: Errno) -> Refused {
        tracing::debug!(%error, "a process's output takes no more");
        *self = Sink::Broken(error);
        Refused::Failed(error)
    }

    /// Closes it. Gives what keeps its content for a reader that is yet to come.
    fn keep_unread(self, unread: Duration) -> Option<Unread> {
        let Sink::Pipe(pipe) = self else { return None };
        if unread.is_zero() {
            return None;
        }
        let kept = fifo::keep_unread(pipe.channel.as_fd()).unwrap_or_else(|error| {
            tracing::debug!(%error, "what is in an output's FIFO cannot be kept");
            None
        })?;
        // Ours, which reads too, has to be gone before another reader can be told.
        drop(pipe);
        Some(kept)
    }

    /// Writes what is left, for as long as a reader may need that is slow rather than gone.
    async fn linger(&mut self, most: Duration, runtime: &Handle) {
        let flushed = std::future::poll_fn(|cx| self.poll(|pipe| pipe.poll_flush(|| cx.waker().clone(), runtime), ()));
        if tokio::time::timeout(most, flushed).await.is_err() {
            tracing::debug!("a task's last output was dropped, since nobody read it");
        }
    }
}

/// How long a client gets to read the last words before it hears of the end, and how often to look. One of
/// containerd's closes its side unread if it hears of the end before it has noticed that the FIFO is open.
const LAST_WORDS: Duration = Duration::from_millis(100);
const LAST_WORDS_LOOK: Duration = Duration::from_millis(1);

/// Waits until what is left has been read.
pub(super) async fn last_words(kept: Vec<Unread>) {
    let read = async {
        while !kept.iter().all(Unread::is_over) {
            tokio::time::sleep(LAST_WORDS_LOOK).await;
        }
    };
    // A reader that is slower still finds all of it: only then is it on its own.
    let _ = tokio::time::timeout(LAST_WORDS, read).await;
}

/// How often to look whether a reader has come: the kernel wakes nobody who polls for that.
const READER_LOOK: Duration = Duration::from_millis(20);

/// Keeps a FIFO's content until somebody reads it.
async fn wait_for_reader(kept: Unread, most: Duration) {
    let come = async {
        while !kept.is_safe() {
            tokio::time::sleep(READER_LOOK).await;
        }
    };
    if tokio::time::timeout(most, come).await.is_err() {
        tracing::debug!("a task's output was dropped, since nobody came for it");
    }
}

/// A descriptor that may be full, and what did not fit.
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

/// Writes all of these; `None` if the rest would have to wait.
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

/// The same for one; what was written is gone from `bytes`.
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
