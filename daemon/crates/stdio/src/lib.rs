//! A process's standard streams: FIFOs, files, log programs and terminals, as the guest's WASI streams.
//!
//! ```text
//!   client ── FIFO ──▶ Input ──▶ guest's stdin                    with a terminal:
//!   client ◀─ FIFO, file, log program ─ Output ◀─ guest's stdout      client ◀─▶ Terminal ◀─▶ guest
//!   client ◀─ FIFO, file, log program ─ Output ◀─ guest's stderr, and the daemon's notes
//! ```
//!
//! Promises: no RPC and no other guest waits for a stream. Opens and writes do not block, except that a write to a
//! `file://` may wait for its disk on the guest's own thread; a guest that waits is a pending future.
//!
//! With a URI for stdout, an empty stderr means the same target as stdout, as for the runc shim. With a terminal, stderr
//! is always the same as stdout. Otherwise an empty string is `/dev/null`.
//!
//! Errors: `InvalidArgument` names the stream, the mistake and the values that are possible.
//!
//! * `target.rs`: parses the stdio strings of a Create request: FIFO, `file://`, `binary://`.
//! * `input.rs`: standard input: when it ends, CloseIO, clients that come and go.
//! * `output.rs`: standard output and error: a full FIFO, output without a reader, notes of the daemon, the end.
//! * `unread.rs`: output that no client has read when its process ends: waiting for a reader.
//! * `channel.rs`: waits for a descriptor, and registers it with epoll only then.
//! * `wakers.rs`: several futures of a guest that wait for one stream.
//! * `log_program.rs`: the protocol of `binary://`: start, readiness, drain and end of a log program.
//! * `terminal.rs`: the pseudo-terminal of a process: echo, ^C and ^\, its size, its end.
#![forbid(unsafe_code)]

mod channel;
mod input;
mod log_program;
mod output;
mod target;
mod terminal;
mod unread;
mod wakers;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use wasmtime_wasi::cli::{IsTerminal, StdinStream, StdoutStream};
use wasmtime_wasi::p2::{InputStream, OutputStream};

use hearth_base::config;
use hearth_base::error::{Error, Result};
use hearth_base::namespace::ContainerdNamespace;
use hearth_base::tenant::Notes;
use hearth_os::fifo;
use hearth_os::pty::Size;
use input::{Input, Reader};
use log_program::{Lease, LogProgram, blocking};
use output::{Output, Writer};
use target::Target;
use terminal::{GuestSide, Terminal};

/// The stdio of a process, as a Create request names it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StdioPaths {
    /// FIFO, or empty.
    pub stdin: String,
    /// FIFO, `file://` or `binary://` URI, or empty.
    pub stdout: String,
    /// As `stdout`.
    pub stderr: String,
    /// Whether the process has a terminal.
    pub terminal: bool,
}

/// The standard streams of one process.
pub struct Stdio {
    stdin: Arc<Input>,
    stdout: Arc<Output>,
    stderr: Arc<Output>,
    terminal: Option<Terminal>,
    log_programs: Mutex<Vec<Lease>>,
    runtime: Handle,
}

impl Stdio {
    /// Opens the streams that `paths` names. It waits only for the disk of a log file and for the readiness of a log
    /// program; FIFOs are open after the first poll. Tasks and timers of the streams run on the caller's runtime.
    ///
    /// # Errors
    /// As on the crate's page; after an error nothing stays open or running.
    pub async fn open(
        namespace: &ContainerdNamespace,
        id: &str,
        paths: &StdioPaths,
        config: &config::Stdio,
    ) -> Result<Stdio> {
        let runtime = Handle::current();
        let stdin = match Target::parse("stdin", &paths.stdin)? {
            Target::Null => Input::none(runtime.clone()),
            Target::Fifo(path) => {
                let fd = fifo::open_input(&path).map_err(|e| fifo_failed("stdin", &path, e))?;
                Input::fifo(fd, config.chunk_bytes, runtime.clone())
            }
            Target::File(_) | Target::Program { .. } => {
                return Err(Error::InvalidArgument(format!(
                    "stdin: {:?} is a URI; only a FIFO can be read",
                    paths.stdin
                )));
            }
        };
        let opener = Opener { namespace, id, config, runtime: runtime.clone() };
        let (stdout, stderr, log_programs) = opener.outputs(paths).await?;
        let log_programs = Mutex::new(log_programs);
        if !paths.terminal {
            return Ok(Stdio { stdin, stdout, stderr, terminal: None, log_programs, runtime });
        }
        let (terminal, GuestSide { stdin, stdout }) = Terminal::open(stdin, stdout, config, runtime.clone())?;
        Ok(Stdio { stdin, stderr: stdout.clone(), stdout, terminal: Some(terminal), log_programs, runtime })
    }

    /// No input, and output that is discarded.
    pub fn none(config: &config::Stdio) -> Stdio {
        let runtime = Handle::current();
        let nowhere = Output::discard(config.chunk_bytes, runtime.clone());
        Stdio {
            stdin: Input::none(runtime.clone()),
            stdout: nowhere.clone(),
            stderr: nowhere,
            terminal: None,
            log_programs: Mutex::default(),
            runtime,
        }
    }

    /// Has to be called when the process starts, before its guest runs. From then on the input ends at CloseIO and not
    /// with its client. With a terminal, the function that `signal` makes receives the signals that are typed.
    pub fn start<F: Fn(u32) + Send + 'static>(&self, signal: impl FnOnce() -> F) {
        match &self.terminal {
            Some(terminal) => terminal.start(signal()),
            None => self.stdin.start(),
        }
    }

    /// The guest's standard input.
    pub fn stdin(&self) -> Stdin {
        Stdin { input: self.stdin.clone(), terminal: self.terminal.is_some() }
    }

    /// The guest's standard output.
    pub fn stdout(&self) -> Stdout {
        Stdout { output: self.stdout.clone(), terminal: self.terminal.is_some() }
    }

    /// The guest's standard error.
    pub fn stderr(&self) -> Stdout {
        Stdout { output: self.stderr.clone(), terminal: self.terminal.is_some() }
    }

    /// CloseIO: the input ends when all written bytes are read and the last client has closed the FIFO.
    pub fn close_stdin(&self) {
        match &self.terminal {
            Some(terminal) => terminal.close_stdin(),
            None => self.stdin.close_asked(),
        }
    }

    /// Sets the terminal's size. Without a terminal it has no effect.
    ///
    /// # Errors
    /// `Internal` if the kernel refuses.
    pub fn resize(&self, size: Size) -> Result<()> {
        self.terminal.as_ref().map_or(Ok(()), |terminal| terminal.resize(size))
    }

    /// Writes a note of the daemon to the standard error, after the guest's own bytes. It does not wait, and the note
    /// may be lost. The caller bounds and escapes any text of a guest in it.
    pub fn write_stderr(&self, text: &str) {
        self.stderr.note(text);
    }

    /// Writes a line of the daemon to the standard output, after the guest's own bytes. It does not wait. Returns whether
    /// there was room for the line. The caller bounds and escapes any text of a guest or a client in it.
    pub fn write_stdout_line(&self, line: String) -> bool {
        self.stdout.line(line)
    }

    /// Closes all streams after the end of the process, and then calls `then`: at once, or when a client that reads has
    /// read the rest, for up to a tenth of a second. With a terminal, the rest of its output comes first.
    pub fn finish(self: &Arc<Self>, then: impl FnOnce() + Send + 'static) {
        let Some(terminal) = &self.terminal else {
            let unread = self.close_guest_side();
            self.log_programs.lock().clear();
            if unread.is_empty() {
                return then();
            }
            self.runtime.spawn(async move {
                unread::last_read(unread).await;
                then();
            });
            return;
        };
        self.close_guest_side();
        let stdio = self.clone();
        terminal.finish(move || {
            stdio.close();
            then();
        });
    }

    /// Closes the guest's side. Returns the output that clients have still to read.
    fn close_guest_side(&self) -> Vec<fifo::Unread> {
        self.stdin.close();
        [&self.stdout, &self.stderr].into_iter().filter_map(|output| output.close()).collect()
    }

    /// Closes all streams at once, so that the client sees the end of the output. Streams that still exist read and
    /// write nothing more. A second call has no effect.
    pub fn close(&self) {
        self.close_guest_side();
        if let Some(terminal) = &self.terminal {
            terminal.close();
        }
        self.log_programs.lock().clear();
    }
}

impl Drop for Stdio {
    fn drop(&mut self) {
        self.close();
    }
}

/// Opens outputs for one process.
struct Opener<'a> {
    namespace: &'a ContainerdNamespace,
    id: &'a str,
    config: &'a config::Stdio,
    runtime: Handle,
}

impl Opener<'_> {
    async fn outputs(&self, paths: &StdioPaths) -> Result<(Arc<Output>, Arc<Output>, Vec<Lease>)> {
        let stdout = Target::parse("stdout", &paths.stdout)?;
        // A terminal has one output.
        let stderr = if paths.terminal { Target::Null } else { Target::parse("stderr", &paths.stderr)? };
        let uri = matches!(stdout, Target::File(_) | Target::Program { .. });
        let same = stdout == stderr || (stderr == Target::Null && (uri || paths.terminal));
        if let Target::Program { path, args } = stdout {
            let program = log_program::start(path, &args, self.namespace, self.id, self.config).await?;
            let LogProgram { stdout, stderr: program_stderr, lease } = program;
            let mut leases = vec![lease];
            let stderr = match (same, paths.terminal) {
                (true, false) => self.pipe(program_stderr),
                (true, true) => return Ok(self.one_for_both(stdout, leases)),
                (false, _) => self.output("stderr", stderr, &mut leases).await?,
            };
            return Ok((self.pipe(stdout), stderr, leases));
        }
        let mut leases = Vec::new();
        let stdout = self.output("stdout", stdout, &mut leases).await?;
        let stderr = if same { stdout.clone() } else { self.output("stderr", stderr, &mut leases).await? };
        Ok((stdout, stderr, leases))
    }

    fn one_for_both(&self, pipe: OwnedFd, leases: Vec<Lease>) -> (Arc<Output>, Arc<Output>, Vec<Lease>) {
        let both = self.pipe(pipe);
        (both.clone(), both, leases)
    }

    async fn output(&self, name: &str, target: Target, leases: &mut Vec<Lease>) -> Result<Arc<Output>> {
        match target {
            Target::Null => Ok(Output::discard(self.config.chunk_bytes, self.runtime.clone())),
            Target::Fifo(path) => Ok(self.fifo(fifo::open_output(&path).map_err(|e| fifo_failed(name, &path, e))?)),
            Target::File(path) => {
                let open = move || {
                    let failed = |e| format!("{}: {e}", path.display());
                    open_log_file(&path).map_err(failed)
                };
                let file = blocking(open).await?;
                let file = file.map_err(|e| Error::InvalidArgument(format!("{name}: cannot append to {e}")))?;
                Ok(Output::file(file, self.config.chunk_bytes, self.runtime.clone()))
            }
            Target::Program { path, args } => {
                let program = log_program::start(path, &args, self.namespace, self.id, self.config).await?;
                leases.push(program.lease);
                // The pipe of the program's stdout descriptor closes here, unused.
                Ok(self.pipe(program.stderr))
            }
        }
    }

    fn fifo(&self, fd: OwnedFd) -> Arc<Output> {
        let [linger, unread] = [self.config.linger_ms, self.config.unread_ms].map(Duration::from_millis);
        Output::fifo(fd, self.config.chunk_bytes, linger, unread, self.runtime.clone())
    }

    fn pipe(&self, fd: OwnedFd) -> Arc<Output> {
        let linger = Duration::from_millis(self.config.linger_ms);
        Output::pipe(fd, self.config.chunk_bytes, linger, self.runtime.clone())
    }
}

fn fifo_failed(name: &str, path: &Path, error: fifo::OpenError) -> Error {
    use fifo::OpenError;
    let path = path.display();
    match error {
        OpenError::NotFifo("a regular file") => Error::InvalidArgument(format!(
            "{name}: {path} is a regular file, not a FIFO; to append to a file write file://{path}"
        )),
        OpenError::Os(Errno::MFILE | Errno::NFILE) => {
            Error::ResourceExhausted(format!("{name}: {path} {error}; raise LimitNOFILE of hearthd"))
        }
        OpenError::Missing | OpenError::NotFifo(_) | OpenError::Os(_) => Error::InvalidArgument(format!(
            "{name}: {path} {error}; the client has to make a FIFO there before it creates the task"
        )),
    }
}

/// Opens a log file to append to. Creates it and the directories above it (0755) if they are missing.
fn open_log_file(path: &Path) -> std::io::Result<OwnedFd> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    // Without NONBLOCK, the open of a FIFO in the file's place would wait for a reader.
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::APPEND | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::from_raw_mode(0o644))?;
    let stat = rustix::fs::fstat(&file)?;
    let null_device = rustix::fs::makedev(1, 3);
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(file),
        FileType::CharacterDevice if stat.st_rdev == null_device => Ok(file),
        FileType::Fifo => Err(std::io::Error::other("it is a FIFO; give its path without file://")),
        _ => Err(std::io::Error::other("it is no regular file")),
    }
}

/// A guest's standard input, for wasmtime.
#[derive(Clone)]
pub struct Stdin {
    input: Arc<Input>,
    terminal: bool,
}

impl IsTerminal for Stdin {
    fn is_terminal(&self) -> bool {
        self.terminal
    }
}

impl StdinStream for Stdin {
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        Box::new(Reader(self.input.clone()))
    }

    fn p2_stream(&self) -> Box<dyn InputStream> {
        Box::new(Reader(self.input.clone()))
    }
}

/// A guest's standard output or error, for wasmtime.
#[derive(Clone)]
pub struct Stdout {
    output: Arc<Output>,
    terminal: bool,
}

impl IsTerminal for Stdout {
    fn is_terminal(&self) -> bool {
        self.terminal
    }
}

impl StdoutStream for Stdout {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(Writer(self.output.clone()))
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(Writer(self.output.clone()))
    }
}

impl Notes for Stdio {
    fn note(&self, text: &str) {
        self.write_stderr(text);
    }
}

#[cfg(test)]
mod tests;
