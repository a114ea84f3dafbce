//! A request's stdout and stderr, in whole lines: requests run side by side and share the container's.
//!
//! What has no line feed yet waits here, up to 16 KiB; the end of the request completes it.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use crate::task::stdio::Stdout;

/// The longest line that is kept whole, in bytes.
const LINE_BYTES_MAX: usize = 16 << 10;

/// One request's standard output or error.
#[derive(Clone)]
pub struct Lines {
    stdout: Stdout,
    begun: Arc<Begun>,
}

impl Lines {
    /// Over the container's.
    pub fn new(stdout: Stdout) -> Lines {
        let begun = Begun { line: Mutex::default(), stdout: stdout.clone() };
        Lines { stdout, begun: Arc::new(begun) }
    }
}

/// A line that has begun; shared by all handles of a request.
struct Begun {
    line: Mutex<Vec<u8>>,
    stdout: Stdout,
}

impl Begun {
    /// What can be written now that these bytes have come.
    fn add(&self, bytes: &[u8]) -> Bytes {
        let mut line = self.line.lock();
        match bytes.iter().rposition(|byte| *byte == b'\n') {
            Some(at) => {
                let (whole, rest) = bytes.split_at(at + 1);
                line.extend_from_slice(whole);
                std::mem::replace(&mut *line, rest.to_vec()).into()
            }
            None => {
                line.extend_from_slice(bytes);
                if line.len() > LINE_BYTES_MAX { std::mem::take(&mut *line).into() } else { Bytes::new() }
            }
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let line = self.line.get_mut();
        if !line.is_empty() {
            line.push(b'\n');
            // Without waiting: it is lost where nobody reads and much is pending already.
            let _ = self.stdout.p2_stream().write(std::mem::take(line).into());
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
        // WASI 0.3's, which services of 0.2 do not have.
        self.stdout.async_stream()
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
