//! A request's stdout and stderr, in whole lines: requests run side by side and share the container's streams.
//!
//! A line without its line feed waits here, up to 16 KiB; the end of the request completes it. Where the pod asks for it,
//! each line begins with the number of its instance in the container.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use hearth_base::env::last;
use hearth_stdio::Stdout;

/// The longest line that is kept whole, in bytes.
const LINE_BYTES_MAX: usize = 16 << 10;

/// The most that one write of WASI 0.3 takes, in bytes.
const PIECE_BYTES_MAX: usize = 64 << 10;

/// The environment variable that asks for marks, with `1`.
pub const MARK: &str = "HEARTH_HTTP_MARK_OUTPUT";

/// Numbers a container's instances, if its environment asks for marks.
#[derive(Debug, Default)]
pub struct Marks(Option<AtomicU64>);

impl Marks {
    /// As the environment asks for it.
    pub fn of(env: &[(String, String)]) -> Marks {
        let asked = last(env, MARK).is_some_and(|value| value.trim() == "1");
        Marks(asked.then(AtomicU64::default))
    }

    /// The mark of the next instance.
    pub fn next(&self) -> Option<u64> {
        self.0.as_ref().map(|last| last.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

/// One request's standard output or error.
#[derive(Clone)]
pub struct Lines {
    stdout: Stdout,
    begun: Arc<Begun>,
}

impl Lines {
    /// Over a stream of the container, each line marked with a number if there is one.
    pub fn new(stdout: Stdout, mark: Option<u64>) -> Lines {
        let begun = Begun { line: Mutex::default(), mark, stdout: stdout.clone() };
        Lines { stdout, begun: Arc::new(begun) }
    }
}

/// A line that has begun; shared by all handles of a request.
struct Begun {
    line: Mutex<Vec<u8>>,
    mark: Option<u64>,
    stdout: Stdout,
}

impl Begun {
    /// Adds bytes, and returns the lines that are whole now.
    fn add(&self, bytes: &[u8]) -> Bytes {
        let mut line = self.line.lock();
        let whole = match bytes.iter().rposition(|byte| *byte == b'\n') {
            Some(at) => {
                let (whole, rest) = bytes.split_at(at + 1);
                line.extend_from_slice(whole);
                std::mem::replace(&mut *line, rest.to_vec())
            }
            None => {
                line.extend_from_slice(bytes);
                if line.len() > LINE_BYTES_MAX { std::mem::take(&mut *line) } else { Vec::new() }
            }
        };
        self.marked(whole).into()
    }

    /// Lines, each with its mark.
    fn marked(&self, lines: Vec<u8>) -> Vec<u8> {
        let Some(mark) = self.mark else { return lines };
        let mark = format!("[{mark}] ");
        lines
            .split_inclusive(|byte| *byte == b'\n')
            .flat_map(|line| [mark.as_bytes(), line])
            .flatten()
            .copied()
            .collect()
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let mut line = std::mem::take(self.line.get_mut());
        if !line.is_empty() {
            line.push(b'\n');
            // Without waiting: it is lost where the stream is not read and much is pending already.
            let _ = self.stdout.p2_stream().write(self.marked(line).into());
        }
    }
}

impl IsTerminal for Lines {
    fn is_terminal(&self) -> bool {
        self.stdout.is_terminal()
    }
}

impl StdoutStream for Lines {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        let inner = Box::into_pin(self.stdout.async_stream());
        Box::new(LineWriter { inner, pending: Bytes::new(), begun: self.begun.clone() })
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(LineStream { inner: self.stdout.p2_stream(), begun: self.begun.clone() })
    }
}

struct LineStream {
    inner: Box<dyn OutputStream>,
    begun: Arc<Begun>,
}

#[async_trait::async_trait]
impl Pollable for LineStream {
    async fn ready(&mut self) {
        self.inner.ready().await;
    }
}

#[async_trait::async_trait]
impl OutputStream for LineStream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        let whole = self.begun.add(&bytes);
        if whole.is_empty() { Ok(()) } else { self.inner.write(whole) }
    }

    fn flush(&mut self) -> StreamResult<()> {
        self.inner.flush()
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        self.inner.check_write()
    }

    async fn blocking_write_and_flush(&mut self, bytes: Bytes) -> StreamResult<()> {
        let whole = self.begun.add(&bytes);
        if whole.is_empty() { Ok(()) } else { self.inner.blocking_write_and_flush(whole).await }
    }
}

/// The same for WASI 0.3.
struct LineWriter {
    inner: Pin<Box<dyn AsyncWrite + Send + Sync>>,
    /// Whole lines on their way.
    pending: Bytes,
    begun: Arc<Begun>,
}

impl LineWriter {
    fn poll_pending(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.pending.is_empty() {
            let written = ready!(self.inner.as_mut().poll_write(cx, &self.pending))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let _ = self.pending.split_to(written);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for LineWriter {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_pending(cx))?;
        let bytes = &bytes[..bytes.len().min(PIECE_BYTES_MAX)];
        self.pending = self.begun.add(bytes);
        // Lines that cannot be written at once are written before the next ones.
        if let Poll::Ready(Err(error)) = self.poll_pending(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_pending(cx))?;
        self.inner.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_pending(cx))?;
        self.inner.as_mut().poll_shutdown(cx)
    }
}

impl Drop for LineWriter {
    fn drop(&mut self) {
        if !self.pending.is_empty() {
            // As for a line that has begun.
            let _ = self.begun.stdout.p2_stream().write(std::mem::take(&mut self.pending));
        }
    }
}
