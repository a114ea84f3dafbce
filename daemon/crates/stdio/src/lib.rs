//! A process's standard streams: FIFOs, files and log programs, as the guest sees them.
//!
//! * `target`: what the strings of a Create request name.
//! * `output`, `input`: the two directions, shared by all of a guest's handles; the headers say how a
//!   full FIFO and the end of input are treated.
//! * `channel`, `wakers`: waiting for a descriptor, only once it is necessary.
//! * `log_program`: the protocol of `binary://`.
//! * `terminal`: what is between all these and the guest if the process has a terminal.
//!
//! Nothing here makes an RPC or another guest wait: opens and writes never block (a write to a
//! `file://` may wait for its disk, on the guest's own thread), and a guest that waits is a pending
//! future.
//!
//! With a URI for stdout an empty stderr means "the same as stdout", as for the runc shim; with a terminal
//! stderr always is. Otherwise an empty string is `/dev/null`.
//!
//! Failures: `InvalidArgument` names the stream, what is wrong with it and what may stand there.
#![forbid(unsafe_code)]

mod channel;
mod input;
mod log_program;
mod output;
mod target;
mod terminal;
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
use hearth_os::fifo;
use hearth_os::pty::Size;
use input::{Input, Reader};
use log_program::{Lease, LogProgram, blocking};
use output::{Output, Writer};
use target::Target;
use terminal::{GuestSide, Terminal};

/// Where a Create request wants a process's stdio.
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
    /// Opens what `paths` names. Only for a log file's disk and for a log program, which has to say that
    /// it is ready, this waits; FIFOs are open when the future is first polled. Tasks and timers of the streams live on
    /// the runtime this is called on.
    ///
    /// # Errors
    /// As the module says; nothing stays open or running then.
    pub async fn open(namespace: &str, id: &str, paths: &StdioPaths, config: &config::Stdio) -> Result<Stdio> {
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

    /// No input, and nobody who wants output.
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

    /// Has to be called when the process starts, before its guest runs: from then on the input does not
    /// end with its client but at CloseIO. With a terminal, `signal` makes what is told the signals that
    /// are typed.
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

    /// CloseIO: input ends once what was written is read and the last client has closed the FIFO.
    pub fn close_stdin(&self) {
        match &self.terminal {
            Some(terminal) => terminal.close_stdin(),
            None => self.stdin.close_asked(),
        }
    }

    /// Sets the terminal's size; nothing without one.
    ///
    /// # Errors
    /// `Internal` if the kernel refuses.
    pub fn resize(&self, size: Size) -> Result<()> {
        self.terminal.as_ref().map_or(Ok(()), |terminal| terminal.resize(size))
    }

    /// Writes a line of the daemon's own to the standard error, after what the guest wrote. Never waits,
    /// and may be lost.
    pub fn write_stderr(&self, text: &str) {
        self.stderr.note(text);
    }

    /// Closes everything once the process has ended, and then calls `then`: at once, or when a client that reads
    /// has read the rest, for up to a tenth of a second (with a terminal: what it still shows).
    pub fn finish(self: &Arc<Self>, then: impl FnOnce() + Send + 'static) {
        let Some(terminal) = &self.terminal else {
            let unread = self.close_guest_side();
            self.log_programs.lock().clear();
            if unread.is_empty() {
                return then();
            }
            self.runtime.spawn(async move {
                output::last_words(unread).await;
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

    /// Gives what its client has still to read.
    fn close_guest_side(&self) -> Vec<fifo::Unread> {
        self.stdin.close();
        [&self.stdout, &self.stderr].into_iter().filter_map(|output| output.close()).collect()
    }

    /// Closes everything at once, so that the client sees the end of the output; streams that still exist
    /// then read and write nothing more. Doing it again does nothing.
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
    namespace: &'a str,
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
            let LogProgram { stdout, stderr: its_stderr, lease } = program;
            let mut leases = vec![lease];
            let stderr = match (same, paths.terminal) {
                (true, false) => self.pipe(its_stderr),
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
                // Its own standard output stays empty: that pipe closes here.
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

/// Opens a log file to append to, making it and the directories above it (0755) if need be.
fn open_log_file(path: &Path) -> std::io::Result<OwnedFd> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    // Without NONBLOCK, a FIFO in the file's place would wait for its reader right here.
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

#[cfg(test)]
mod tests;
