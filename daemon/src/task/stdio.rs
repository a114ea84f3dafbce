//! stand-in
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::unix::AsyncFd;
use wasmtime_wasi::cli::{IsTerminal, StdinStream, StdoutStream};
use wasmtime_wasi::p2::{InputStream, OutputStream, Pollable, StreamError, StreamResult};
use crate::error::*;

/// s
#[derive(Default)]
pub struct Pipe { fd: Mutex<Option<Arc<File>>>, eof: std::sync::atomic::AtomicBool }
/// s
pub struct Stdio { i: Arc<Pipe>, o: Arc<Pipe>, e: Arc<Pipe> }
fn open(path: &str, write: bool) -> Result<Arc<Pipe>> {
    if path.is_empty() { return Ok(Arc::default()); }
    let f = OpenOptions::new().read(true).write(write).custom_flags(libc::O_NONBLOCK).open(path).map_err(|e| Error::InvalidArgument(format!("{path}: {e}")))?;
    Ok(Arc::new(Pipe { fd: Mutex::new(Some(Arc::new(f))), eof: Default::default() }))
}
impl Stdio {
    /// x
    pub async fn open(_: &str, _: &str, p: &crate::task::StdioPaths, _: &crate::config::Stdio) -> Result<Arc<Stdio>> { Ok(Arc::new(Stdio { i: open(&p.stdin, false)?, o: open(&p.stdout, true)?, e: open(&p.stderr, true)? })) }
    /// x
    pub fn stdin(&self) -> S { S(self.i.clone()) }
    /// x
    pub fn stdout(&self) -> S { S(self.o.clone()) }
    /// x
    pub fn stderr(&self) -> S { S(self.e.clone()) }
    /// x
    pub fn close(&self) { for p in [&self.i, &self.o, &self.e] { p.fd.lock().take(); } }
    /// x
    pub fn close_stdin(&self) { self.i.eof.store(true, std::sync::atomic::Ordering::SeqCst); }
    /// x
    pub fn write_stderr(&self, t: &str) { if let Some(f) = &*self.e.fd.lock() { let _ = rustix::io::write(f, t.as_bytes()); } }
}
/// x
#[derive(Clone)]
pub struct S(Arc<Pipe>);
impl IsTerminal for S { fn is_terminal(&self) -> bool { false } }
impl StdinStream for S { fn async_stream(&self) -> Box<dyn tokio::io::AsyncRead + Send + Sync> { Box::new(tokio::io::empty()) } fn p2_stream(&self) -> Box<dyn InputStream> { Box::new(self.clone()) } }
impl StdoutStream for S { fn async_stream(&self) -> Box<dyn tokio::io::AsyncWrite + Send + Sync> { Box::new(tokio::io::sink()) } fn p2_stream(&self) -> Box<dyn OutputStream> { Box::new(self.clone()) } }
impl S { fn fd(&self) -> Option<Arc<File>> { self.0.fd.lock().clone() } }
#[async_trait::async_trait]
impl Pollable for S { async fn ready(&mut self) { 
    if let Some(f) = self.fd() { 
        use rustix::event::{PollFd, PollFlags};
        let mut p = [PollFd::new(&*f, PollFlags::IN | PollFlags::OUT)];
        let _ = rustix::event::poll(&mut p, Some(&Default::default()));
        if !p[0].revents().is_empty() { return; }
        if let Ok(a) = AsyncFd::new(f.try_clone().unwrap()) { let _ = a.ready(tokio::io::Interest::READABLE).await; } } } }
#[async_trait::async_trait]
impl InputStream for S {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        let Some(f) = self.fd() else { return Err(StreamError::Closed) };
        let mut b = vec![0; size.min(65536)];
        match rustix::io::read(&*f, &mut b) { Ok(0) => Err(StreamError::Closed), Ok(n) => { b.truncate(n); Ok(b.into()) } Err(rustix::io::Errno::AGAIN) => Ok(Bytes::new()), Err(e) => Err(StreamError::LastOperationFailed(std::io::Error::from(e).into())) }
    }
}
#[async_trait::async_trait]
impl OutputStream for S {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> { if let Some(f) = self.fd() { let _ = rustix::io::write(&*f, &bytes); } Ok(()) }
    fn flush(&mut self) -> StreamResult<()> { Ok(()) }
    fn check_write(&mut self) -> StreamResult<usize> { Ok(4096) }
}
