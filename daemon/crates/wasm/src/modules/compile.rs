//! Compiles modules, each in an unprivileged process of its own.
//!
//! ```text
//!  compile() ── queue ── thread ──spawn──▶ hearthd compile ORDER      (see child.rs)
//!                          │  stdin: the module, in a sealed memory file
//!                          │  stdout: a memory file of bounded size
//!                          │  stderr: a pipe, of which the first kilobytes are read
//!                          └─ waits for the process to end or the time to be over
//! ```
//!
//! A compile has a thread of its own from the spawn to the end: a process that is to die with its
//! parent dies with the *thread* that made it, and a pool's threads come and go. Nothing of the
//! daemon's own address space is copied (`posix_spawn`).
//!
//! When it goes wrong: a module that is no good is `InvalidArgument`, with wasmtime's own words; one
//! that is too much for a limit is `ResourceExhausted` and names the limit; a compiler that crashed is
//! `Internal`. Nothing else is affected in any case.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::engine::Kind;
use crate::modules::child::{Exit, Order, is_out_of_memory};
pub use crate::modules::child::{SUBCOMMAND, child_main};
use crate::modules::pace::Pace;
use hearth_base::config::{self, Baseline};
use hearth_base::error::{Error, Result};
use hearth_base::faults::{self, Point};
use hearth_observe::metrics::Metrics;
use hearth_os::memfd;

/// How much of what a compile process says is read, in bytes.
const DIAGNOSTICS_BYTES_MAX: usize = 8 << 10;

/// How much of it goes into a message, in characters.
const MESSAGE_CHARACTERS_MAX: usize = 500;

/// hearthd itself, the very file it was started from even if that has been replaced since: an
/// artifact must come from the same wasmtime.
const PROGRAM: &str = "/proc/self/exe";

/// Makes artifacts.
pub struct Compiler {
    program: PathBuf,
    config: config::Modules,
    engine: config::Engine,
    turns: Arc<Semaphore>,
    /// The one turn of compiles that nobody waits for: they never take a start's.
    pub(super) ahead_turn: Arc<Semaphore>,
    ahead_nice: i32,
    pending: Arc<AtomicUsize>,
    metrics: Arc<Metrics>,
}

impl Compiler {
    /// A compiler for the engine so configured.
    pub fn new(
        config: config::Modules,
        engine: config::Engine,
        ahead: &config::Ahead,
        metrics: Arc<Metrics>,
    ) -> Compiler {
        Compiler {
            ahead_turn: Arc::new(Semaphore::new(1)),
            ahead_nice: ahead.nice,
            program: PROGRAM.into(),
            turns: Arc::new(Semaphore::new(config.compiles_max.min(Semaphore::MAX_PERMITS))),
            config,
            engine,
            pending: Arc::default(),
            metrics,
        }
    }

    /// Compiles what `wasm` gives: a sealed memory file, asked for when it is this compile's turn, so
    /// that those who wait hold no memory. Returns the artifact in another one. Once the process has
    /// started it runs to its end even if the caller goes away.
    ///
    /// # Errors
    /// See the module's head; also those of `wasm`.
    pub async fn compile(
        &self,
        wasm: impl Future<Output = Result<(File, Kind)>>,
        pace: &Arc<Pace>,
    ) -> Result<(File, Kind)> {
        self.run(wasm, pace, Baseline::Never).await
    }

    /// As [`Compiler::compile`], with the baseline compiler, if it is one of those that `modules.baseline` wants
    /// it for.
    ///
    /// # Errors
    /// As [`Compiler::compile`]. Each may be the baseline compiler's alone.
    pub async fn compile_baseline(
        &self,
        wasm: impl Future<Output = Result<(File, Kind)>>,
        pace: &Arc<Pace>,
    ) -> Result<(File, Kind)> {
        self.run(wasm, pace, self.config.baseline).await
    }

    async fn run(
        &self,
        wasm: impl Future<Output = Result<(File, Kind)>>,
        pace: &Arc<Pace>,
        baseline: Baseline,
    ) -> Result<(File, Kind)> {
        let waiting = Waiting::enter(self)?;
        let turn = tokio::select! {
            biased;
            turn = self.ahead_turn.clone().acquire_owned(), if !pace.is_hurried() => turn,
            turn = async {
                pace.wait_hurried().await;
                self.turns.clone().acquire_owned().await
            } => turn,
        };
        let turn = turn.map_err(|_| stopped())?;
        let (wasm, kind) = wasm.await?;
        let (result, done) = tokio::sync::oneshot::channel();
        let job = self.job(pace.clone(), baseline);
        let run = move || {
            let artifact = job.run(wasm, kind).map(|artifact| (artifact, kind));
            drop::<(Waiting, OwnedSemaphorePermit)>((waiting, turn));
            // Nobody may be left to hear of it.
            let _ = result.send(artifact);
        };
        std::thread::Builder::new()
            .name("compile".into())
            .spawn(run)
            .map_err(|e| Error::Internal(format!("cannot start a thread for the compiler: {e}")))?;
        done.await.map_err(|_| stopped())?
    }

    fn job(&self, pace: Arc<Pace>, baseline: Baseline) -> Job {
        let threads = match self.config.compile_threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let order = Order {
            component: false,
            baseline,
            engine: self.engine.clone(),
            memory_bytes: self.config.compile_memory_bytes_max,
            cpu_seconds: self.config.compile_cpu_seconds_max,
            artifact_bytes: self.config.artifact_bytes_max,
            uid: self.config.compile_uid,
            parent: rustix::process::getpid().as_raw_nonzero().get(),
        };
        let wall = Duration::from_secs(self.config.compile_seconds_max);
        Job {
            program: self.program.clone(),
            order,
            threads,
            wall,
            pace,
            nice: self.ahead_nice,
            metrics: self.metrics.clone(),
        }
    }
}

fn stopped() -> Error {
    Error::Unavailable("the compiler was stopped: hearthd is ending".into())
}

/// A place in the queue, or a compile that runs.
struct Waiting {
    pending: Arc<AtomicUsize>,
    metrics: Arc<Metrics>,
}

impl Waiting {
    fn enter(compiler: &Compiler) -> Result<Waiting> {
        let config = &compiler.config;
        let room = config.compile_queue_max.saturating_add(config.compiles_max);
        let enter = |pending: usize| (pending < room).then_some(pending + 1);
        if compiler.pending.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enter).is_err() {
            return Err(Error::ResourceExhausted(format!(
                "{} modules wait to be compiled, as many as modules.compile_queue_max allows: try again later or raise it",
                config.compile_queue_max
            )));
        }
        compiler.metrics.compiles.pending.inc();
        Ok(Waiting { pending: compiler.pending.clone(), metrics: compiler.metrics.clone() })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.pending.fetch_sub(1, Ordering::Relaxed);
        self.metrics.compiles.pending.dec();
    }
}

/// One compile process.
struct Job {
    program: PathBuf,
    order: Order,
    threads: usize,
    wall: Duration,
    pace: Arc<Pace>,
    /// While nobody waits for it.
    nice: i32,
    metrics: Arc<Metrics>,
}

impl Job {
    /// Starts the process and waits for its end. Blocks.
    fn run(mut self, wasm: File, kind: Kind) -> Result<File> {
        self.order.component = kind == Kind::Component;
        let began = Instant::now();
        let failed =
            |what: &'static str| move |e: io::Error| Error::Internal(format!("cannot {what} the compiler: {e}"));
        let artifact = memfd::create("hearth-artifact").map_err(failed("make a file for"))?;
        let order = serde_json::to_string(&self.order)
            .map_err(|e| Error::Internal(format!("cannot instruct the compiler: {e}")))?;
        let mut process = Command::new(&self.program)
            .args([SUBCOMMAND, &order])
            .env_clear()
            .env("RAYON_NUM_THREADS", self.threads.to_string())
            .stdin(wasm)
            .stdout(artifact.try_clone().map_err(failed("make a file for"))?)
            .stderr(Stdio::piped())
            // For its priority, which is set for all of its threads at once.
            .process_group(0)
            .spawn()
            .map(|child| Process(child, self.pace.clone()))
            .map_err(failed("start"))?;
        faults::at(Point::Compiling);
        self.pace.begun(Pid::from_child(&process.0), self.nice);
        self.metrics.compiles.running.inc();
        let end = process.wait(began.checked_add(self.wall));
        self.metrics.compiles.running.dec();
        let end = end.map_err(failed("wait for"))?;
        let (seconds, results) = match self.order.baseline {
            Baseline::Never => (&self.metrics.compiles.seconds, &self.metrics.compiles.results),
            Baseline::Services | Baseline::All => {
                (&self.metrics.compiles.baseline_seconds, &self.metrics.compiles.baseline_results)
            }
        };
        seconds.observe(began.elapsed().as_secs_f64());
        // Before a byte of it is believed: whoever might still hold the file cannot change it now.
        let verdict = verdict(&end, &self.order, self.wall).and_then(|()| {
            memfd::seal(&artifact).map_err(|e| Verdict::Crashed(format!("its output cannot be sealed: {e}")))?;
            match artifact.metadata() {
                Ok(metadata) if metadata.len() > 0 => Ok(()),
                _ => Err(Verdict::Crashed("it wrote nothing".into())),
            }
        });
        let result = verdict.as_ref().map_or_else(Verdict::label, |()| "ok");
        results.with_label_values(&[result]).inc();
        tracing::debug!(
            result,
            baseline = self.order.baseline != Baseline::Never,
            took_ms = began.elapsed().as_millis() as u64,
            "compile process ended"
        );
        verdict.map(|()| artifact).map_err(Verdict::into_error)
    }
}

/// A compile process that is gone when this value is.
struct Process(Child, Arc<Pace>);

/// How a process ended.
struct End {
    status: ExitStatus,
    /// Whether we killed it because its time was over.
    out_of_time: bool,
    /// What it said, at most [`DIAGNOSTICS_BYTES_MAX`].
    said: Vec<u8>,
}

impl Process {
    /// Waits for the end, at most until `deadline`, while taking what it says. No deadline is one
    /// beyond what the clock can say.
    fn wait(&mut self, deadline: Option<Instant>) -> io::Result<End> {
        let pid = Pid::from_raw(self.0.id().try_into().map_err(io::Error::other)?)
            .ok_or_else(|| io::Error::other("no process id"))?;
        let ended = pidfd_open(pid, PidfdFlags::empty())?;
        let mut stderr = self.0.stderr.take();
        if let Some(stderr) = &stderr {
            rustix::io::ioctl_fionbio(stderr, true)?;
        }
        let mut said = Vec::new();
        let mut out_of_time = false;
        loop {
            let timeout = deadline.map(|deadline| {
                let left = deadline.saturating_duration_since(Instant::now());
                Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() }
            });
            let mut waits = vec![PollFd::new(&ended, PollFlags::IN)];
            waits.extend(stderr.as_ref().map(|stderr| PollFd::from_borrowed_fd(stderr.as_fd(), PollFlags::IN)));
            match poll(&mut waits, timeout.as_ref()) {
                Ok(0) => {
                    out_of_time = true;
                    self.0.kill()?;
                    break;
                }
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            if !waits[0].revents().is_empty() {
                break;
            }
            take(&mut stderr, &mut said);
        }
        self.1.ends();
        let status = self.0.wait()?;
        take(&mut stderr, &mut said);
        Ok(End { status, out_of_time, said })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.1.ends();
        // Gone and waited for already, unless waiting failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Takes what there is to read; keeps the beginning. Forgets the stream at its end.
fn take(stream: &mut Option<ChildStderr>, said: &mut Vec<u8>) {
    let mut piece = [0; 4096];
    // Bounded: who writes faster than we read is read again at the next turn.
    for _ in 0..64 {
        match stream.as_mut().map(|stream| stream.read(&mut piece)) {
            Some(Ok(0)) | None => {
                *stream = None;
                return;
            }
            Some(Ok(read)) => {
                let room = DIAGNOSTICS_BYTES_MAX - said.len();
                said.extend_from_slice(&piece[..read.min(room)]);
            }
            Some(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
            Some(Err(e)) if e.kind() == io::ErrorKind::WouldBlock => return,
            Some(Err(_)) => {
                *stream = None;
                return;
            }
        }
    }
}

/// Why there is no artifact.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// The module's fault; of the baseline compiler: it may lack something for it.
    Invalid(String),
    /// The baseline compiler is not wanted for it.
    Unwanted(String),
    /// A limit of ours was reached; the text says which.
    Limit(String),
    /// The compiler's fault.
    Crashed(String),
    /// The node's fault.
    Failed(String),
}

impl Verdict {
    /// The metric's label.
    fn label(&self) -> &'static str {
        match self {
            Verdict::Invalid(_) => "invalid",
            Verdict::Unwanted(_) => "unwanted",
            Verdict::Limit(_) => "limit",
            Verdict::Crashed(_) => "crashed",
            Verdict::Failed(_) => "failed",
        }
    }

    fn into_error(self) -> Error {
        match self {
            Verdict::Invalid(text) => Error::InvalidArgument(format!("it cannot be compiled: {text}")),
            Verdict::Unwanted(text) => Error::FailedPrecondition(text),
            Verdict::Limit(text) => Error::ResourceExhausted(format!("compiling it {text}")),
            Verdict::Crashed(text) => {
                Error::Internal(format!("the compiler crashed on this module ({text}); nothing else was affected"))
            }
            Verdict::Failed(text) => Error::Internal(format!("the compiler could not do its work: {text}")),
        }
    }
}

/// What a process' end means.
fn verdict(end: &End, order: &Order, wall: Duration) -> Result<(), Verdict> {
    let said = one_line(&end.said);
    let memory = || {
        Verdict::Limit(format!(
            "needs more than {} bytes of address space: raise modules.compile_memory_bytes_max or lower modules.compile_threads",
            order.memory_bytes
        ))
    };
    let too_large =
        || Verdict::Limit(format!("gives more than {} bytes: raise modules.artifact_bytes_max", order.artifact_bytes));
    let cpu = || {
        Verdict::Limit(format!(
            "takes more than {} seconds of CPU time: raise modules.compile_cpu_seconds_max",
            order.cpu_seconds
        ))
    };
    if end.out_of_time {
        return Err(Verdict::Limit(format!(
            "takes longer than {} seconds: raise modules.compile_seconds_max",
            wall.as_secs_f64()
        )));
    }
    if let Some(signal) = end.status.signal() {
        return Err(match signal {
            libc::SIGXCPU => cpu(),
            libc::SIGXFSZ => too_large(),
            libc::SIGABRT if is_out_of_memory(&said) => memory(),
            // Neither we nor the CPU limit's second step: that comes after SIGXCPU.
            libc::SIGKILL => Verdict::Limit(
                "was ended with SIGKILL by somebody else, most likely the kernel for want of memory: give hearthd's service more, or lower modules.compile_threads".into(),
            ),
            signal if said.is_empty() => Verdict::Crashed(format!("signal {signal}")),
            signal => Verdict::Crashed(format!("signal {signal}: {said}")),
        });
    }
    let code = end.status.code();
    match Exit::ALL.into_iter().find(|exit| code == Some(*exit as i32)) {
        Some(Exit::Done) => Ok(()),
        Some(Exit::Invalid) => Err(Verdict::Invalid(said)),
        Some(Exit::Unwanted) => Err(Verdict::Unwanted(said)),
        Some(Exit::Memory) => Err(memory()),
        Some(Exit::TooLarge) => Err(too_large()),
        Some(Exit::Unready | Exit::Streams) => Err(Verdict::Failed(said)),
        // A panic: of want of memory for a thread, or of a fault in the compiler.
        None if is_out_of_memory(&said) => Err(memory()),
        None => Err(Verdict::Crashed(format!("exit status {}: {said}", code.unwrap_or(-1)))),
    }
}

/// The text on one line, without what could disturb a terminal or a log, and not too long.
fn one_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let words: Vec<_> =
        text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()).collect();
    let line = words.join(" ");
    match line.char_indices().nth(MESSAGE_CHARACTERS_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::modules::pace::Urgency;
    use crate::modules::samples;

    fn memory(bytes: &[u8]) -> File {
        let file = memfd::create("test").unwrap();
        file.write_all_at(bytes, 0).unwrap();
        memfd::seal(&file).unwrap();
        file
    }

    fn compiler(change: impl FnOnce(&mut config::Modules)) -> Compiler {
        let mut modules = config::Modules::default();
        change(&mut modules);
        Compiler::new(modules, config::Engine::default(), &config::Ahead::default(), Arc::new(Metrics::new()))
    }

    /// A compiler whose program is this shell script.
    fn script(directory: &tempfile::TempDir, text: &str) -> Compiler {
        let program = directory.path().join("program");
        // Written by another process: a descriptor of ours could be inherited by what another test
        // starts meanwhile, and a file that somebody has open to write cannot be executed.
        let mut install =
            Command::new("install").args(["-m755", "/dev/stdin"]).arg(&program).stdin(Stdio::piped()).spawn().unwrap();
        writeln!(install.stdin.take().unwrap(), "#!/bin/sh\n{text}").unwrap();
        assert!(install.wait().unwrap().success());
        Compiler { program, ..compiler(|_| {}) }
    }

    fn pace() -> Arc<Pace> {
        Pace::new(Urgency::Start)
    }

    /// Runs one process and returns its result and the metric's label.
    fn run(compiler: &Compiler, wasm: &[u8], wall: Option<Duration>) -> (Result<File>, &'static str) {
        let mut job = compiler.job(pace(), Baseline::Never);
        job.wall = wall.unwrap_or(job.wall);
        let result = job.run(memory(wasm), Kind::Core);
        let counted: Vec<_> = ["ok", "invalid", "limit", "crashed", "failed"]
            .into_iter()
            .filter(|label| compiler.metrics.compiles.results.with_label_values(&[label]).get() == 1)
            .collect();
        assert_eq!(counted.len(), 1, "counted once: {counted:?}");
        assert_eq!(compiler.metrics.compiles.seconds.get_sample_count(), 1);
        (result, counted[0])
    }

    fn limit(compiler: &Compiler, wasm: &[u8], key: &str) {
        let (result, label) = run(compiler, wasm, None);
        let Err(Error::ResourceExhausted(text)) = result else { panic!("{key}: {result:?}") };
        assert!(text.contains(key) && !text.contains('\n'), "{text}");
        assert_eq!(label, "limit");
    }

    #[test]
    fn a_module_becomes_an_artifact_that_nobody_can_change() {
        let (artifact, label) = run(&compiler(|_| {}), &samples::command(1), None);
        let artifact = artifact.unwrap();
        assert_eq!(label, "ok");
        assert!(artifact.metadata().unwrap().len() > 100);
        assert!(artifact.write_at(b"x", 0).is_err() && artifact.set_len(0).is_err());
    }

    #[test]
    fn a_module_that_is_no_good_is_told_in_wasmtimes_words() {
        for (wasm, words) in
            [(samples::invalid(), "type mismatch"), (b"\0asm\x01\0\0\0\xff".to_vec(), "malformed section id")]
        {
            let (result, label) = run(&compiler(|_| {}), &wasm, None);
            let Err(Error::InvalidArgument(text)) = result else { panic!("{result:?}") };
            assert!(
                text.starts_with("it cannot be compiled: ") && text.contains(words) && !text.contains('\n'),
                "{text}"
            );
            assert_eq!(label, "invalid");
        }
    }

    #[test]
    fn a_module_that_is_too_much_is_stopped_at_the_limit_and_names_it() {
        let heavy = samples::heavy();
        limit(&compiler(|modules| modules.compile_cpu_seconds_max = 1), &heavy, "modules.compile_cpu_seconds_max");
        limit(
            &compiler(|modules| modules.compile_memory_bytes_max = 400 << 20),
            &heavy,
            "modules.compile_memory_bytes_max",
        );
        limit(&compiler(|modules| modules.compile_seconds_max = 1), &heavy, "modules.compile_seconds_max");
        limit(
            &compiler(|modules| modules.artifact_bytes_max = 100),
            &samples::command(1),
            "modules.artifact_bytes_max",
        );
    }

    #[test]
    fn a_compiler_that_dies_is_told_from_a_bad_module() {
        let directory = tempfile::tempdir().unwrap();
        // kill -9 of somebody else's, a crash, silence, a program that is no compiler.
        let table = [
            ("kill -9 $$", "limit", "SIGKILL by somebody else"),
            ("kill -SEGV $$", "crashed", "crashed on this module (signal 11); nothing else was affected"),
            ("echo thread main panicked >&2; exit 101", "crashed", "exit status 101: thread main panicked"),
            ("exit 0", "crashed", "it wrote nothing"),
            ("kill -XFSZ $$", "limit", "modules.artifact_bytes_max"),
            (
                "echo 'memory allocation of 9 bytes failed' >&2; kill -ABRT $$",
                "limit",
                "modules.compile_memory_bytes_max",
            ),
            ("echo cannot confine >&2; exit 64", "failed", "could not do its work: cannot confine"),
        ];
        for (text, want, words) in table {
            let (result, label) = run(&script(&directory, text), b"", None);
            let error = result.unwrap_err();
            assert!(error.to_string().contains(words), "{text}: {error}");
            assert_eq!(label, want, "{text}");
            assert_eq!(matches!(error, Error::ResourceExhausted(_)), label == "limit", "{error:?}");
        }
        let gone = Compiler { program: directory.path().join("none"), ..compiler(|_| {}) };
        let Err(Error::Internal(text)) = gone.job(pace(), Baseline::Never).run(memory(b""), Kind::Core) else {
            panic!()
        };
        assert!(text.contains("cannot start the compiler"), "{text}");
    }

    #[test]
    fn what_it_says_is_bounded_and_on_one_line() {
        let directory = tempfile::tempdir().unwrap();
        let flood = script(&directory, "head -c 3000000 /dev/zero | tr '\\0' 'x' >&2; printf 'y\\033\\n' >&2; exit 65");
        let (result, label) = run(&flood, b"", None);
        let text = result.unwrap_err().to_string();
        assert_eq!(label, "invalid");
        assert!(text.chars().count() < MESSAGE_CHARACTERS_MAX + 100 && text.ends_with('…'), "{text}");
        assert_eq!(one_line(b" a\n\tb\x1b[31m\xff "), "a b [31m\u{fffd}");
    }

    #[test]
    fn a_compiler_that_hangs_is_killed_even_if_it_closed_its_streams() {
        let directory = tempfile::tempdir().unwrap();
        for text in ["exec sleep 1000", "exec sleep 1000 2>&-"] {
            let began = Instant::now();
            let (result, label) = run(&script(&directory, text), b"", Some(Duration::from_millis(50)));
            let Err(Error::ResourceExhausted(text)) = result else { panic!("{result:?}") };
            assert!(text.contains("modules.compile_seconds_max"), "{text}");
            assert_eq!(label, "limit");
            assert!(began.elapsed() < Duration::from_secs(100));
        }
    }

    #[test]
    fn it_gets_the_module_its_order_and_nothing_of_our_environment() {
        let directory = tempfile::tempdir().unwrap();
        let (artifact, _) = run(&script(&directory, "cat; echo; echo \"$1 $2\"; env"), b"the module", None);
        let mut bytes = vec![0; 10_000];
        let read = artifact.unwrap().read_at(&mut bytes, 0).unwrap();
        let text = String::from_utf8(bytes[..read].to_vec()).unwrap();
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("the module"));
        let order: Order = serde_json::from_str(lines.next().unwrap().strip_prefix("compile ").unwrap()).unwrap();
        assert_eq!((order.uid, order.engine), (65_534, config::Engine::default()));
        let left: Vec<_> = lines
            .filter(|line| {
                !line.starts_with("RAYON_NUM_THREADS=") && !line.starts_with("PWD=") && !line.starts_with("_=")
            })
            .collect();
        assert_eq!(left, Vec::<&str>::new());
    }

    /// A script that runs until something is written into the FIFO beside it.
    fn waiting_script(directory: &tempfile::TempDir) -> (Compiler, PathBuf) {
        let fifo = directory.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        (script(directory, &format!("read line < {}; echo \"$line\"", fifo.display())), fifo)
    }

    #[tokio::test]
    async fn the_queue_is_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let (mut compiler, fifo) = waiting_script(&directory);
        compiler.config.compile_queue_max = 1;
        let pace = pace();
        let compile = || compiler.compile(async { Ok((memory(b""), Kind::Core)) }, &pace);
        let (first, second) = (compile(), compile());
        tokio::pin!(first, second);
        assert!(futures_util::poll!(&mut first).is_pending());
        assert!(futures_util::poll!(&mut second).is_pending());
        assert_eq!(compiler.metrics.compiles.pending.get(), 2);
        let Err(Error::ResourceExhausted(text)) = compile().await else { panic!() };
        assert!(text.contains("modules.compile_queue_max"), "{text}");
        // Opening waits for the script, so each of them gets one line; the second starts when the
        // first has ended.
        let write = |fifo: PathBuf| tokio::task::spawn_blocking(move || fs::write(fifo, "go\n").unwrap());
        let ((), result) = (write(fifo.clone()).await.unwrap(), first.await);
        result.unwrap();
        assert_eq!(compiler.metrics.compiles.pending.get(), 1);
        let (result, written) = tokio::join!(second, write(fifo));
        result.unwrap();
        written.unwrap();
        assert_eq!(compiler.metrics.compiles.pending.get(), 0);
        assert_eq!(compiler.metrics.compiles.results.with_label_values(&["ok"]).get(), 2);
    }

    #[tokio::test]
    async fn a_caller_that_goes_away_does_not_stop_a_compile_and_leaves_no_place_taken() {
        let directory = tempfile::tempdir().unwrap();
        let (compiler, fifo) = waiting_script(&directory);
        {
            let pace = pace();
            let running = compiler.compile(async { Ok((memory(b""), Kind::Core)) }, &pace);
            let queued = compiler.compile(async { unreachable!("its caller is gone") }, &pace);
            tokio::pin!(running, queued);
            assert!(futures_util::poll!(&mut running).is_pending());
            assert!(futures_util::poll!(&mut queued).is_pending());
        }
        assert_eq!(compiler.metrics.compiles.pending.get(), 1);
        tokio::task::spawn_blocking(move || fs::write(fifo, "go\n").unwrap()).await.unwrap();
        drop(compiler.turns.acquire().await.unwrap());
        assert_eq!(compiler.metrics.compiles.results.with_label_values(&["ok"]).get(), 1);
    }
}
