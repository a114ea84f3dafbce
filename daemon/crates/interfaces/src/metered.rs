//! Bounds of a server's answer to one call.
//!
//! The libraries that speak the protocols keep a whole answer in memory, and a guest chooses the server. So the bytes are
//! counted as they arrive, and charged to the container until the call is over.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use hearth_wasm::memory::{HeldMemory, MemoryUse};

/// The bytes of the answers to the calls under way on one connection.
#[derive(Default)]
pub struct Meter(Mutex<State>);

#[derive(Default)]
struct State {
    calls: usize,
    /// The bytes that all their answers together may still have.
    left: u64,
    held: Option<HeldMemory>,
}

/// A call under way. When the last one is dropped their answers are charged no more.
pub struct Metered<'a>(&'a Meter);

impl Drop for Metered<'_> {
    fn drop(&mut self) {
        let mut state = self.0.0.lock();
        state.calls -= 1;
        if state.calls == 0 {
            *state = State::default();
        }
    }
}

impl Meter {
    /// A call begins, whose answer may have `bytes_max` bytes.
    pub fn begin(&self, bytes_max: u64, memory: &Arc<MemoryUse>) -> Metered<'_> {
        let mut state = self.0.lock();
        state.calls += 1;
        state.left += bytes_max;
        state.held.get_or_insert_with(|| memory.hold());
        Metered(self)
    }

    /// Counts bytes that have arrived.
    fn count(&self, bytes: u64) -> io::Result<()> {
        let mut state = self.0.lock();
        if state.calls == 0 {
            // Bytes that come between calls are a notice, which the library drops.
            return Ok(());
        }
        state.left = state
            .left
            .checked_sub(bytes)
            .ok_or_else(|| io::Error::other("the server's answer is larger than interfaces.answer_bytes_max"))?;
        match state.held.as_mut().is_none_or(|held| held.grow(bytes)) {
            true => Ok(()),
            false => Err(io::Error::other("the container has no memory left for the server's answer")),
        }
    }
}

/// A connection whose incoming bytes are counted.
pub struct MeteredStream<S> {
    inner: S,
    meter: Arc<Meter>,
}

impl<S> MeteredStream<S> {
    /// Counts with `meter`.
    pub fn new(inner: S, meter: Arc<Meter>) -> MeteredStream<S> {
        MeteredStream { inner, meter }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for MeteredStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buffer))?;
        Poll::Ready(self.meter.count((buffer.filled().len() - before) as u64))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for MeteredStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn an_answer_is_bounded_and_charged_for_the_time_of_its_call() {
        let memory = Arc::new(MemoryUse::new(1_000));
        let meter: Arc<Meter> = Arc::default();
        let (ours, mut server) = tokio::io::duplex(4_096);
        let mut stream = MeteredStream::new(ours, meter.clone());
        let mut buffer = [0; 100];
        let call = meter.begin(150, &memory);
        server.write_all(&[1; 200]).await.unwrap();
        stream.read_exact(&mut buffer).await.unwrap();
        assert_eq!(memory.current(), 100);
        let error = stream.read_exact(&mut buffer).await.unwrap_err();
        assert!(error.to_string().contains("interfaces.answer_bytes_max"), "{error}");
        drop(call);
        assert_eq!(memory.current(), 0);
        let _next = meter.begin(150, &memory);
        memory.set_limit(50);
        server.write_all(&[1; 100]).await.unwrap();
        let error = stream.read_exact(&mut buffer).await.unwrap_err();
        assert!(error.to_string().contains("no memory left"), "{error}");
    }
}
