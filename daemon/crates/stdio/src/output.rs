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
pub(crate) mod tests {
    use std::io::Read;
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread::Thread;
    use std::time::Instant;

    use tokio::runtime::Runtime;

    use super::*;
    use hearth_testing::make_fifo;

    pub(crate) const CHUNK: usize = 64 << 10;
    const LINGER: Duration = Duration::from_secs(20);

    /// Runs a future as a guest's worker does: on a thread of its own, with no runtime entered.
    pub(crate) fn run<F: Future>(future: F) -> F::Output {
        struct Unpark(Thread, AtomicBool);
        impl Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.1.store(true, Ordering::Release);
                self.0.unpark();
            }
        }
        let unpark = Arc::new(Unpark(std::thread::current(), AtomicBool::new(false)));
        let waker = unpark.clone().into();
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut future = std::pin::pin!(future);
        loop {
            if let Poll::Ready(done) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return done;
            }
            while !unpark.1.swap(false, Ordering::Acquire) {
                assert!(Instant::now() < deadline, "never woken");
                std::thread::park_timeout(Duration::from_secs(60));
            }
        }
    }

    pub(crate) fn is_pending<F: Future>(future: F) -> bool {
        std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    struct Fixture {
        _dir: tempfile::TempDir,
        path: PathBuf,
        runtime: Runtime,
        output: Arc<Output>,
    }

    fn fixture(linger: Duration) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let path = make_fifo(dir.path(), "f");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let fd = fifo::open_output(&path).unwrap();
        let output = Output::pipe(fd, CHUNK, linger, runtime.handle().clone());
        Fixture { _dir: dir, path, runtime, output }
    }

    impl Fixture {
        fn stream(&self) -> Writer {
            Writer(self.output.clone())
        }

        /// Writes without waiting until the FIFO is full and something is pending.
        fn fill(&self) -> usize {
            let mut stream = self.stream();
            let mut written = 0;
            while stream.check_write().unwrap() > 0 {
                stream.write(Bytes::from(vec![b'x'; 10_000])).unwrap();
                written += 10_000;
            }
            written
        }

        fn is_open(&self) -> bool {
            // Nobody but the output has it open for reading, if anybody has.
            let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK;
            rustix::fs::open(&self.path, flags, rustix::fs::Mode::empty()).is_ok()
        }
    }

    /// A blocking reader of everything up to the end.
    fn reader(path: &Path) -> std::thread::JoinHandle<Vec<u8>> {
        let mut file = std::fs::File::open(path).unwrap();
        std::thread::spawn(move || {
            let mut all = Vec::new();
            file.read_to_end(&mut all).unwrap();
            all
        })
    }

    /// Bytes whose order shows.
    pub(crate) fn pattern(length: usize) -> Vec<u8> {
        (0..length as u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).take(length).collect()
    }

    #[test]
    fn ten_megabytes_pass_unchanged_whatever_the_size_of_a_write() {
        for size in [4_096, 1, 5_000, CHUNK] {
            let fixture = fixture(LINGER);
            let all = pattern(if size == 1 { 200_000 } else { 10 << 20 });
            let reading = reader(&fixture.path);
            let mut stream = fixture.stream();
            for chunk in all.chunks(size) {
                run(stream.blocking_write_and_flush(Bytes::copy_from_slice(chunk))).unwrap();
            }
            fixture.output.close();
            assert!(reading.join().unwrap() == all, "changed at write size {size}");
        }
    }

    #[test]
    fn wasi_03_streams_pass_it_unchanged_too() {
        let fixture = fixture(LINGER);
        let all = pattern(3 << 20);
        let reading = reader(&fixture.path);
        run(async {
            let mut stream = fixture.stream();
            tokio::io::AsyncWriteExt::write_all(&mut stream, &all).await.unwrap();
            tokio::io::AsyncWriteExt::flush(&mut stream).await.unwrap();
        });
        fixture.output.close();
        assert!(reading.join().unwrap() == all);
    }

    #[test]
    fn a_full_fifo_gives_no_permit_and_leaves_the_guest_pending_until_it_is_read() {
        let fixture = fixture(LINGER);
        let written = fixture.fill();
        let (mut one, mut two) = (fixture.stream(), fixture.stream());
        assert_eq!(one.check_write().unwrap(), 0);
        assert!(
            is_pending(one.ready())
                && is_pending(two.ready())
                && is_pending(tokio::io::AsyncWriteExt::write_all(&mut one, b"x"))
        );
        let waiting = [one, two].map(|mut stream| std::thread::spawn(move || run(stream.ready())));
        let reading = reader(&fixture.path);
        for wait in waiting {
            wait.join().unwrap();
        }
        assert_eq!(fixture.stream().check_write().unwrap(), CHUNK);
        fixture.output.close();
        assert_eq!(reading.join().unwrap().len(), written);
    }

    #[test]
    fn a_guest_that_ignores_its_permits_is_stopped_at_a_bound() {
        let fixture = fixture(LINGER);
        let mut stream = fixture.stream();
        let chunk = Bytes::from(vec![0; CHUNK]);
        let refused = (0..100).find_map(|n| stream.write(chunk.clone()).err().map(|error| (n, error)));
        let Some((n, StreamError::Trap(_))) = refused else { panic!("{refused:?}") };
        assert!(n <= PERMITS_MAX + 1, "{n}");
    }

    #[test]
    fn close_ends_the_output_and_wakes_a_blocked_guest_though_its_stream_lives() {
        let fixture = fixture(LINGER);
        let reading = reader(&fixture.path);
        let mut stream = fixture.stream();
        run(stream.blocking_write_and_flush(Bytes::from_static(b"last words"))).unwrap();
        fixture.output.close();
        assert_eq!(reading.join().unwrap(), b"last words");
        assert!(matches!(stream.check_write(), Err(StreamError::Closed)));
        assert!(matches!(stream.write(Bytes::from_static(b"x")), Err(StreamError::Closed)));
        assert!(matches!(stream.flush(), Err(StreamError::Closed)));
        fixture.output.close();

        let fixture = self::fixture(Duration::from_millis(1));
        fixture.fill();
        let mut stream = fixture.stream();
        assert!(is_pending(stream.ready()));
        let blocked = std::thread::spawn(move || run(stream.ready()));
        fixture.output.close();
        blocked.join().unwrap();
        // Nobody reads: after the linger time it is closed all the same.
        let deadline = Instant::now() + Duration::from_secs(20);
        while fixture.is_open() {
            assert!(Instant::now() < deadline, "still open");
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_is_pending_at_the_end_reaches_a_reader_who_is_late() {
        let fixture = fixture(LINGER);
        let written = fixture.fill();
        fixture.output.note("hearth: trapped\n");
        fixture.output.close();
        let all = reader(&fixture.path).join().unwrap();
        assert_eq!(all.len(), written + 16);
        assert!(all.ends_with(b"xxhearth: trapped\n"));
    }

    #[test]
    fn a_client_that_leaves_and_comes_back_misses_nothing() {
        let fixture = fixture(LINGER);
        let mut stream = fixture.stream();
        drop(fifo::open_input(&fixture.path).unwrap());
        run(stream.blocking_write_and_flush(Bytes::from_static(b"while away, "))).unwrap();
        std::fs::rename(&fixture.path, fixture.path.with_extension("moved")).unwrap();
        run(stream.blocking_write_and_flush(Bytes::from_static(b"without a name"))).unwrap();
        let reading = reader(&fixture.path.with_extension("moved"));
        fixture.output.close();
        assert_eq!(reading.join().unwrap(), b"while away, without a name");
    }

    #[test]
    fn a_pipe_whose_reader_died_is_epipe_for_the_guest() {
        let fixture = fixture(LINGER);
        let (theirs, ours) = fifo::pipe_to_program().unwrap();
        let output = Output::pipe(ours, CHUNK, LINGER, fixture.runtime.handle().clone());
        let mut stream = Writer(output.clone());
        while stream.check_write().unwrap() > 0 {
            stream.write(Bytes::from(vec![0; CHUNK])).unwrap();
        }
        let mut second = stream.clone();
        assert!(is_pending(second.ready()));
        let blocked = std::thread::spawn(move || run(second.ready()));
        drop(theirs);
        blocked.join().unwrap();
        for _ in 0..2 {
            let Err(StreamError::LastOperationFailed(error)) = stream.check_write() else { panic!() };
            assert_eq!(error.downcast_ref::<io::Error>().unwrap().kind(), io::ErrorKind::BrokenPipe);
        }
        assert_eq!(
            run(tokio::io::AsyncWriteExt::write_all(&mut stream, b"x")).unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
        output.close();
        assert!(matches!(stream.check_write(), Err(StreamError::Closed)));
    }

    #[test]
    fn discarded_output_is_always_taken() {
        let fixture = fixture(LINGER);
        let output = Output::discard(CHUNK, fixture.runtime.handle().clone());
        let mut stream = Writer(output.clone());
        for _ in 0..100 {
            assert_eq!(stream.check_write().unwrap(), CHUNK);
            stream.write(Bytes::from(vec![0; CHUNK])).unwrap();
        }
        assert_eq!(run(tokio::io::AsyncWriteExt::write(&mut stream, b"xyz")).unwrap(), 3);
        output.note("nobody hears it");
        output.close();
        assert!(matches!(stream.check_write(), Err(StreamError::Closed)));
    }

    #[test]
    fn a_reader_that_comes_after_the_end_finds_everything() {
        let dir = tempfile::tempdir().unwrap();
        let path = make_fifo(dir.path(), "f");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let fd = fifo::open_output(&path).unwrap();
        let output = Output::fifo(fd, CHUNK, LINGER, LINGER, runtime.handle().clone());
        run(Writer(output.clone()).blocking_write_and_flush(Bytes::from_static(b"short life"))).unwrap();
        output.close();
        let mut text = String::new();
        std::fs::File::open(&path).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "short life");
    }
}
