//! `ctr`, containerd's own client, and `hearthctl`, ours: run to the end with a deadline, or in the background.
//!
//! Failure paths: a command that outlives its deadline is killed; the panic has its output.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::machine::Machine;
use crate::paths;
use crate::process::{self, Process};
use crate::wait::SHORT;

/// A call of `ctr`, or of another program on the machine, not yet made.
#[must_use = "nothing runs before `run` or `spawn`"]
#[derive(Debug)]
pub struct Ctr<'a> {
    machine: &'a Machine,
    program: PathBuf,
    environment: Vec<(String, OsString)>,
    arguments: Vec<String>,
    stdin: Stdin,
    stdout_is_read: bool,
    on_terminal: bool,
    user: Option<u32>,
    deadline: Duration,
}

#[derive(Debug)]
enum Stdin {
    Closed,
    Bytes(Vec<u8>),
    Open,
}

/// The result of a command that has ended.
#[derive(Debug)]
pub struct Output {
    command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// All it wrote to stdout.
    pub stdout: Vec<u8>,
    /// All it wrote to stderr.
    pub stderr: Vec<u8>,
}

/// A `ctr` in the background. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    command: String,
    process: Process,
    stdin: Option<ChildStdin>,
    stdout: Option<JoinHandle<Vec<u8>>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
    chunks: Receiver<Vec<u8>>,
    seen: Vec<u8>,
}

impl<'a> Ctr<'a> {
    pub(crate) fn new(machine: &'a Machine, arguments: Vec<String>) -> Self {
        Self::program(machine, paths::containerd("ctr"), arguments)
    }

    /// A call of another program.
    pub fn program(machine: &'a Machine, program: PathBuf, arguments: Vec<String>) -> Self {
        let environment = Vec::new();
        Self {
            machine,
            program,
            environment,
            arguments,
            stdin: Stdin::Closed,
            stdout_is_read: true,
            on_terminal: false,
            user: None,
            deadline: SHORT,
        }
    }

    /// Feeds stdin with `bytes`, then closes it. Without this and [`Self::open_stdin`] it is `/dev/null`.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Stdin::Bytes(bytes.into());
        self
    }

    /// Leaves stdin open, for [`Running::write`] and [`Running::close_stdin`].
    pub fn open_stdin(mut self) -> Self {
        self.stdin = Stdin::Open;
        self
    }

    /// Leaves its stdout unread: the pipe fills up, as with a reader that hangs.
    pub fn unread_stdout(mut self) -> Self {
        self.stdout_is_read = false;
        self
    }

    /// Makes a terminal its stdin and stdout, with `script` of util-linux. Other methods then write to and read from
    /// the terminal's other side.
    pub fn on_terminal(mut self) -> Self {
        self.on_terminal = true;
        self
    }

    /// One more variable in its environment.
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// As another user, without any privilege.
    pub fn as_user(mut self, user: u32) -> Self {
        self.user = Some(user);
        self
    }

    /// Another deadline than [`SHORT`].
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// If it has not ended at the deadline.
    pub fn run(self) -> Output {
        let deadline = self.deadline;
        self.spawn().wait(deadline)
    }

    /// Runs it to its end, which must be a success.
    ///
    /// # Panics
    /// With its output, if it is not.
    #[track_caller]
    pub fn ok(self) -> Output {
        self.run().assert_code(0)
    }

    /// Starts it in the background.
    pub fn spawn(self) -> Running {
        let mut command = if self.on_terminal {
            let words = std::iter::once(self.program.display().to_string()).chain(self.arguments.iter().cloned());
            let line: Vec<_> = words.map(|word| format!("'{}'", word.replace('\'', "'\\''"))).collect();
            let mut command = self.machine.command("script");
            command.args(["--quiet", "--return", "--command", &line.join(" "), "/dev/null"]);
            command
        } else if let Some(user) = self.user {
            // By descriptor: the user may have no way into the directory.
            const SCRIPT: &str = r#"user=$1; exec 3<"$2"; shift 2
                exec setpriv --reuid="$user" --regid="$user" --clear-groups /proc/self/fd/3 "$@""#;
            let mut command = self.machine.command("sh");
            command.args(["-c", SCRIPT, "sh", &user.to_string()]).arg(&self.program).args(&self.arguments);
            command
        } else {
            let mut command = self.machine.command(&self.program);
            command.args(&self.arguments);
            command
        };
        command
            .envs(self.environment)
            .stdin(match self.stdin {
                Stdin::Closed => Stdio::null(),
                Stdin::Bytes(_) | Stdin::Open => Stdio::piped(),
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = Process::start("the program", &mut command);
        let child = process.child();
        let mut stdin = child.stdin.take();
        let (sender, chunks) = channel();
        let stdout = self.stdout_is_read.then(|| child.stdout.take().expect("stdout is a pipe"));
        let stderr = child.stderr.take().expect("stderr is a pipe");
        if let Stdin::Bytes(bytes) = self.stdin {
            let mut pipe = stdin.take().expect("stdin is a pipe");
            // EPIPE: the reader ended first; its status shows why.
            std::thread::spawn(move || pipe.write_all(&bytes));
        }
        Running {
            command: format!("{} {}", name_of(&self.program), self.arguments.join(" ")),
            process,
            stdin,
            stdout: stdout.map(|stdout| {
                collect(stdout, move |chunk| {
                    // The receiver is dropped when the story has read enough.
                    let _ = sender.send(chunk.to_vec());
                })
            }),
            stderr: Some(collect(stderr, |_| ())),
            chunks,
            seen: Vec::new(),
        }
    }
}

impl Running {
    /// Waits for the end.
    ///
    /// # Panics
    /// If it has not ended at the deadline.
    #[track_caller]
    pub fn wait(mut self, deadline: Duration) -> Output {
        let Some(status) = self.process.wait(deadline) else {
            self.process.signal(rustix::process::Signal::KILL);
            let output = self.collect();
            panic!(
                "not ended within {} s: {}",
                deadline.as_secs(),
                describe(&self.command, "killed", &output.0, &output.1)
            );
        };
        let (stdout, stderr) = self.collect();
        Output { command: std::mem::take(&mut self.command), status, stdout, stderr }
    }

    /// Writes to its stdin.
    ///
    /// # Panics
    /// If stdin is not open, or its reader is gone.
    pub fn write(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().expect("made with open_stdin, not yet closed");
        stdin.write_all(bytes).expect("ctr reads its stdin");
        stdin.flush().expect("ctr reads its stdin");
    }

    /// Closes its stdin.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Waits until its stdout contains `text`.
    ///
    /// # Panics
    /// If it ends first, or [`SHORT`] passes.
    #[track_caller]
    pub fn wait_for_stdout(&mut self, text: &str) {
        let end = std::time::Instant::now() + SHORT;
        while !String::from_utf8_lossy(&self.seen).contains(text) {
            let left = end.saturating_duration_since(std::time::Instant::now());
            match self.chunks.recv_timeout(left) {
                Ok(chunk) => self.seen.extend(chunk),
                Err(error) => panic!(
                    "`{}` did not print {text:?} ({error}), but {:?}",
                    self.command,
                    String::from_utf8_lossy(&self.seen)
                ),
            }
        }
    }

    /// The stdout that [`Running::wait_for_stdout`] has read.
    pub fn seen_of_stdout(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.process.status().is_none()
    }

    /// The process, to signal it.
    pub fn process(&self) -> &Process {
        &self.process
    }

    fn collect(&mut self) -> (Vec<u8>, Vec<u8>) {
        let join = |thread: Option<JoinHandle<Vec<u8>>>| {
            thread.map_or_else(Vec::new, |thread| thread.join().expect("a reader never panics"))
        };
        (join(self.stdout.take()), join(self.stderr.take()))
    }
}

impl Output {
    /// The exit code, or 128 + the signal.
    pub fn code(&self) -> i32 {
        process::code(self.status)
    }

    /// stdout as text.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// stderr as text.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Checks how it ended.
    ///
    /// # Panics
    /// With its output, if it ended otherwise.
    #[track_caller]
    pub fn assert_code(self, expected: i32) -> Self {
        assert!(self.code() == expected, "expected code {expected}: {self}");
        self
    }

    /// Checks that it failed and named the fault: stderr contains each of `words`, without regard to case.
    ///
    /// # Panics
    /// If it did not.
    #[track_caller]
    pub fn assert_fault(self, words: &[&str]) -> Self {
        assert!(!self.status.success(), "expected a failure: {self}");
        let text = self.stderr().to_lowercase();
        for word in words {
            assert!(text.contains(&word.to_lowercase()), "the message does not name {word:?}: {self}");
        }
        self
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let status = self.status.to_string();
        f.write_str(&describe(&self.command, &status, &self.stdout, &self.stderr))
    }
}

fn name_of(program: &Path) -> String {
    program.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn describe(command: &str, status: &str, stdout: &[u8], stderr: &[u8]) -> String {
    const SHOWN_BYTES: usize = 4096;
    let text = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN_BYTES)]).into_owned();
    format!("`{command}` ended with {status}\n--- stdout\n{}\n--- stderr\n{}", text(stdout), text(stderr))
}

/// Reads a pipe to its end on a thread of its own, so that neither pipe of a command fills up.
fn collect(mut pipe: impl Read + Send + 'static, seen: impl Fn(&[u8]) + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut all = Vec::new();
        let mut chunk = [0u8; 16 * 1024];
        while let Ok(length @ 1..) = pipe.read(&mut chunk) {
            seen(&chunk[..length]);
            all.extend_from_slice(&chunk[..length]);
        }
        all
    })
}
