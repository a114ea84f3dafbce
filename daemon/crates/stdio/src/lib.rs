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
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;
    use std::time::Instant;

    use bytes::Bytes;
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    use wasmtime_wasi::p2::StreamError;

    use super::*;
    use hearth_testing::make_fifo;

    const DEADLINE: Duration = Duration::from_secs(30);

    fn paths(stdin: &str, stdout: &str, stderr: &str) -> StdioPaths {
        StdioPaths { stdin: stdin.into(), stdout: stdout.into(), stderr: stderr.into(), terminal: false }
    }

    async fn open(paths: &StdioPaths) -> Result<Stdio> {
        Stdio::open("k8s.io", "task-1", paths, &config::Stdio::default()).await
    }

    async fn say(stream: Stdout, text: &str) {
        stream.p2_stream().blocking_write_and_flush(Bytes::copy_from_slice(text.as_bytes())).await.unwrap();
    }

    /// Opens a FIFO for reading; the end comes when the other side has closed.
    fn reader(path: &Path) -> impl FnOnce() -> String {
        let mut file = fs::File::open(path).unwrap();
        move || {
            let mut text = String::new();
            file.read_to_string(&mut text).unwrap();
            text
        }
    }

    fn text(path: &Path) -> &str {
        path.to_str().unwrap()
    }

    /// Waits for a condition that other processes bring about.
    async fn until(what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !condition() {
            assert!(Instant::now() < deadline, "never: {what}");
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn nothing_named_is_the_null_device() {
        let stdio = open(&paths("", "", "")).await.unwrap();
        say(stdio.stdout(), "x").await;
        say(stdio.stderr(), "x").await;
        assert!(matches!(stdio.stdin().p2_stream().read(1), Err(StreamError::Closed)));
        assert!(!stdio.stdout().is_terminal() && !stdio.stdin().is_terminal());
        stdio.close();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn fifos_of_a_client() {
        let dir = tempfile::tempdir().unwrap();
        let [stdin, stdout, stderr] = ["in", "out", "err"].map(|name| make_fifo(dir.path(), name));
        let stdio = open(&paths(text(&stdin), text(&stdout), text(&stderr))).await.unwrap();
        let (out, err) = (reader(&stdout), reader(&stderr));
        fs::write(&stdin, "input").unwrap();
        stdio.start(|| |_| ());
        let mut input = stdio.stdin().p2_stream();
        assert_eq!(input.blocking_read(100).await.unwrap(), "input");
        assert!(matches!(input.blocking_read(100).await, Err(StreamError::Closed)));
        say(stdio.stdout(), "out").await;
        say(stdio.stderr(), "err").await;
        stdio.write_stderr("hearth: note\n");
        let _alive = (stdio.stdin().p2_stream(), stdio.stdout().p2_stream());
        stdio.close();
        assert_eq!((out(), err()), ("out".into(), "errhearth: note\n".into()));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_dropped_create_leaves_nothing_open() {
        let dir = tempfile::tempdir().unwrap();
        let stdout = make_fifo(dir.path(), "out");
        let stdio = open(&paths("", text(&stdout), "")).await.unwrap();
        let out = reader(&stdout);
        drop(stdio);
        assert_eq!(out(), "");
        open(&paths("", text(&stdout), "/absent")).await.map(drop).unwrap_err();
        let flags = OFlags::WRONLY | OFlags::NONBLOCK;
        assert_eq!(rustix::fs::open(&stdout, flags, Mode::empty()).unwrap_err(), Errno::NXIO, "a reader is left");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn one_fifo_for_both_keeps_the_order() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = make_fifo(dir.path(), "both");
        let stdio = open(&paths("", text(&fifo), text(&fifo))).await.unwrap();
        let out = reader(&fifo);
        say(stdio.stdout(), "1").await;
        say(stdio.stderr(), "2").await;
        say(stdio.stdout(), "3").await;
        stdio.close();
        assert_eq!(out(), "123");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_file_uri_appends_both_streams_and_makes_directories() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("a b/c/log");
        let uri = format!("file://{}", text(&log).replace(' ', "%20"));
        for stderr in ["", uri.as_str()] {
            let stdio = open(&paths("", &uri, stderr)).await.unwrap();
            say(stdio.stdout(), "out,").await;
            say(stdio.stderr(), "err,").await;
            stdio.write_stderr("note,");
            stdio.close();
            until("the note", || fs::read_to_string(&log).unwrap().ends_with("note,")).await;
        }
        assert_eq!(fs::read_to_string(&log).unwrap(), "out,err,note,out,err,note,");
        assert_eq!(fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o644);
        open(&paths("", "file:///dev/null", "")).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_cannot_be_opened_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let fifo = make_fifo(dir.path(), "fifo");
        let at = |path: &Path| text(path).to_string();
        let cases = [
            (paths("", &at(&file), ""), "is a regular file, not a FIFO; to append to a file write file:///"),
            (paths("", "", &at(dir.path())), "stderr: "),
            (paths(&at(&dir.path().join("absent")), "", ""), "does not exist; the client has to make a FIFO there"),
            (paths("file:///x", "", ""), "stdin: \"file:///x\" is a URI; only a FIFO can be read"),
            (paths("", "nonsense", ""), "stdout: \"nonsense\" is neither a path nor a URI"),
            (paths("", &format!("file://{}/x", at(&file)), ""), "stdout: cannot append to "),
            (paths("", &format!("file://{}", at(&fifo)), ""), "cannot append to "),
            (paths("", "binary:///absent", ""), "cannot run the log program /absent: No such file or directory"),
        ];
        for (paths, want) in cases {
            let error = open(&paths).await.map(drop).unwrap_err();
            assert!(matches!(error, Error::InvalidArgument(_)), "{paths:?}: {error:?}");
            assert!(error.to_string().contains(want), "{paths:?}: {error}");
        }
    }

    /// A log program that notes its pid, arguments and environment and then does `script`.
    struct Program {
        dir: tempfile::TempDir,
    }

    impl Program {
        fn new(script: &str) -> Program {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("program");
            let here = dir.path().display();
            let text = format!(
                "#!/bin/sh\necho $$ >{here}/pid\necho \"$*|$CONTAINER_ID|$CONTAINER_NAMESPACE\" >{here}/seen\nD={here}\n{script}\n"
            );
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            Program { dir }
        }

        fn uri(&self) -> String {
            format!("binary://{}/program?key=a+value&flag", self.dir.path().display())
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn read(&self, name: &str) -> String {
            fs::read_to_string(self.path(name)).unwrap_or_default()
        }

        /// Waits until the process is gone, zombie included.
        async fn reaped(&self) {
            let pid = Pid::from_raw(self.read("pid").trim().parse().unwrap()).unwrap();
            until("reaped", || pidfd_open(pid, PidfdFlags::empty()).is_err_and(|e| e == Errno::SRCH)).await;
        }
    }

    const CONFIG: config::Stdio = config::Stdio {
        chunk_bytes: 65_536,
        log_binary_timeout_ms: 30_000,
        log_binary_drain_ms: 30_000,
        linger_ms: 5_000,
        unread_ms: 60_000,
    };

    #[tokio::test(flavor = "multi_thread")]
    async fn a_log_program_gets_everything_and_time_to_finish() {
        for ready in ["exec 5>&-", "echo >&5"] {
            let program = Program::new(&format!(
                "/bin/cat <&4 5>&- >$D/err &\n{ready}\nexec 5>&-\n/bin/cat <&3 >$D/out\nwait\necho x >$D/end"
            ));
            let paths = paths("", &program.uri(), &program.uri());
            let stdio = Stdio::open("k8s.io", "task-1", &paths, &CONFIG).await.unwrap();
            assert_eq!(program.read("seen"), "key a value flag |task-1|k8s.io\n");
            let big = "0123456789".repeat(100_000);
            for chunk in big.as_bytes().chunks(4_096) {
                say(stdio.stdout(), std::str::from_utf8(chunk).unwrap()).await;
            }
            say(stdio.stderr(), "problem").await;
            stdio.close();
            program.reaped().await;
            assert!(program.read("out") == big);
            assert_eq!((program.read("err").as_str(), program.read("end").as_str()), ("problem", "x\n"));
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_log_program_of_stderr_alone() {
        let program = Program::new("exec 5>&-\n/bin/cat <&3 >$D/out\n/bin/cat <&4 >$D/err");
        let stdio = Stdio::open("n", "i", &paths("", "", &program.uri()), &CONFIG).await.unwrap();
        say(stdio.stdout(), "nowhere").await;
        say(stdio.stderr(), "somewhere").await;
        stdio.close();
        program.reaped().await;
        assert_eq!((program.read("out").as_str(), program.read("err").as_str()), ("", "somewhere"));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_terminals_output_goes_to_one_pipe_of_the_program() {
        let program = Program::new("exec 5>&-\n/bin/cat <&3 >$D/out\n/bin/cat <&4 >$D/err");
        let paths = StdioPaths { terminal: true, ..paths("", &program.uri(), "") };
        let stdio = Arc::new(Stdio::open("n", "i", &paths, &CONFIG).await.unwrap());
        stdio.start(|| |_| ());
        say(stdio.stdout(), "1").await;
        say(stdio.stderr(), "2").await;
        stdio.finish(|| ());
        program.reaped().await;
        assert_eq!((program.read("out").as_str(), program.read("err").as_str()), ("12", ""));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_log_program_that_dies_breaks_the_pipe_of_its_task_only() {
        let program = Program::new("exec 5>&-\nread line <&3\nexit 3");
        let stdio = Stdio::open("n", "i", &paths("", &program.uri(), ""), &CONFIG).await.unwrap();
        say(stdio.stdout(), "a line\n").await;
        program.reaped().await;
        let mut stream = stdio.stdout().p2_stream();
        let Err(StreamError::LastOperationFailed(error)) =
            stream.blocking_write_and_flush(Bytes::from_static(b"x")).await
        else {
            panic!("a write to nobody succeeded");
        };
        assert_eq!(error.downcast_ref::<std::io::Error>().unwrap().kind(), std::io::ErrorKind::BrokenPipe);
        stdio.write_stderr("lost");
        stdio.close();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_log_program_that_fails_at_its_start_says_how() {
        let program = Program::new("exit 3");
        let error = Stdio::open("n", "i", &paths("", &program.uri(), ""), &CONFIG).await.map(drop).unwrap_err();
        let Error::FailedPrecondition(text) = &error else { panic!("{error:?}") };
        assert!(text.contains("ended before it was ready (exit status 3)"), "{text}");
        program.reaped().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_log_program_that_is_never_ready_is_ended() {
        let program = Program::new("exec /bin/cat <&3");
        let config = config::Stdio { log_binary_timeout_ms: 300, ..CONFIG };
        let error = Stdio::open("n", "i", &paths("", &program.uri(), ""), &config).await.map(drop).unwrap_err();
        assert!(error.to_string().contains("within 300 ms (stdio.log_binary_timeout_ms)"), "{error}");
        program.reaped().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_create_that_is_given_up_leaves_no_log_program() {
        let program = Program::new("read never </proc/$$/fd/4");
        let config = config::Stdio { log_binary_drain_ms: 1, ..CONFIG };
        let paths = paths("", &program.uri(), "");
        let opening = Stdio::open("n", "i", &paths, &config);
        tokio::select! {
            _ = opening => panic!("it was never ready"),
            () = until("started", || !program.read("pid").is_empty()) => {}
        }
        program.reaped().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_log_program_that_does_not_finish_is_terminated_and_then_killed() {
        for script in
            ["exec 5>&-\nwhile :; do read x </proc/$$/fd/0; done", "trap '' TERM\nexec 5>&-\nwhile :; do :; done"]
        {
            let program = Program::new(script);
            let config = config::Stdio { log_binary_drain_ms: 50, ..CONFIG };
            let stdio = Stdio::open("n", "i", &paths("", &program.uri(), ""), &config).await.unwrap();
            stdio.close();
            program.reaped().await;
        }
    }
}
