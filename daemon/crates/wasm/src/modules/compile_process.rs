//! One compile process, from its start to its end, and the meaning of its end.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::engine::ModuleKind;
use crate::modules::child::{CompileExit, CompileOrder, SUBCOMMAND};
use crate::modules::compile::Failed;
use crate::modules::pace::Pace;
use crate::modules::turns::Turn;
use hearth_base::config::Baseline;
use hearth_base::error::{Error, Result};
use hearth_base::faults::{self, Point};
use hearth_observe::metrics::Metrics;
use hearth_os::memfd;

/// The most that is read of a compile process's output, in bytes.
const DIAGNOSTICS_BYTES_MAX: usize = 8 << 10;

/// How much of it goes into a message, in characters.
pub(super) const MESSAGE_CHARACTERS_MAX: usize = 500;

/// One compile process.
pub(super) struct CompileJob {
    pub(super) program: PathBuf,
    pub(super) order: CompileOrder,
    pub(super) threads: usize,
    /// How long it may run in all.
    pub(super) wall: Duration,
    /// How long it may run while others wait.
    pub(super) turn: Duration,
    pub(super) pace: Arc<Pace>,
    /// The process' nice value while no start waits for it.
    pub(super) nice: i32,
    pub(super) metrics: Arc<Metrics>,
}

impl CompileJob {
    /// Starts the process and waits for its end; it is stopped while other compiles have their turn. Blocks.
    #[allow(clippy::disallowed_methods, reason = "the compile process, which confines itself: hearth_os::confine")]
    pub(super) fn run(mut self, wasm: File, kind: ModuleKind, turn: &Turn) -> Result<File, Failed> {
        self.order.component = kind == ModuleKind::Component;
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
            .map(|child| CompileProcess(child, self.pace.clone()))
            .map_err(failed("start"))?;
        faults::at(Point::Compiling);
        self.pace.begun(Pid::from_child(&process.0), self.nice);
        self.metrics.compiles.running.inc();
        let end = process.wait(self.wall, |process, used| self.give_way(process, turn, used), self.turn);
        self.metrics.compiles.running.dec();
        let end = end.map_err(failed("wait for"))?;
        let (seconds, results) = match self.order.baseline {
            Baseline::Never => (&self.metrics.compiles.seconds, &self.metrics.compiles.results),
            Baseline::Services | Baseline::All => {
                (&self.metrics.compiles.baseline_seconds, &self.metrics.compiles.baseline_results)
            }
        };
        if !self.order.adapt {
            seconds.observe(end.used.as_secs_f64());
        }
        // Sealed before its content is used: a process that still holds the file cannot change it any more.
        let verdict = verdict(&end, &self.order, self.wall).and_then(|()| {
            memfd::seal(&artifact).map_err(|e| CompileFailure::Crashed(format!("its output cannot be sealed: {e}")))?;
            match artifact.metadata() {
                Ok(metadata) if metadata.len() > 0 => Ok(()),
                _ => Err(CompileFailure::Crashed("it wrote nothing".into())),
            }
        });
        let result = verdict.as_ref().map_or_else(CompileFailure::label, |()| "ok");
        if !self.order.adapt {
            results.with_label_values(&[result]).inc();
        }
        tracing::debug!(
            result,
            baseline = self.order.baseline != Baseline::Never,
            took_ms = began.elapsed().as_millis() as u64,
            "compile process ended"
        );
        verdict.map(|()| artifact).map_err(|failure| {
            let is_limit = matches!(failure, CompileFailure::Limit(_) | CompileFailure::Structure(_));
            Failed { error: failure.into_error(), is_limit }
        })
    }

    /// Stops the process while others have their turn, if any may. `used`: how long it has run.
    fn give_way(&self, process: BorrowedFd<'_>, turn: &Turn, used: Duration) {
        let signal = |signal| {
            if let Err(error) = pidfd_send_signal(process, signal) {
                tracing::debug!(%error, "a compile was not stopped or resumed");
            }
        };
        if turn.must_end(used) {
            signal(Signal::STOP);
            self.metrics.compiles.parked.inc();
            turn.park(used);
            signal(Signal::CONT);
        }
    }
}

/// A compile process; killed and waited for on drop.
struct CompileProcess(Child, Arc<Pace>);

/// How a process ended.
pub(super) struct ProcessEnd {
    pub(super) status: ExitStatus,
    /// Whether the daemon killed it because its time was over.
    pub(super) out_of_time: bool,
    /// How long it ran, without the time in which it was stopped for others.
    pub(super) used: Duration,
    /// The text on its standard error, at most [`DIAGNOSTICS_BYTES_MAX`].
    pub(super) said: Vec<u8>,
}

impl CompileProcess {
    /// Waits for the end, for at most `wall` in which it runs, and reads the diagnostics meanwhile. `give_way` is called
    /// each time the process has run for a `turn`, with how long it has run; that it takes does not count.
    fn wait(
        &mut self,
        wall: Duration,
        give_way: impl Fn(BorrowedFd<'_>, Duration),
        turn: Duration,
    ) -> io::Result<ProcessEnd> {
        let pid = Pid::from_raw(self.0.id().try_into().map_err(io::Error::other)?)
            .ok_or_else(|| io::Error::other("no process id"))?;
        let ended = pidfd_open(pid, PidfdFlags::empty())?;
        let mut stderr = self.0.stderr.take();
        if let Some(stderr) = &stderr {
            rustix::io::ioctl_fionbio(stderr, true)?;
        }
        let mut said = Vec::new();
        let mut out_of_time = false;
        let mut used = Duration::ZERO;
        let mut next_turn = turn;
        loop {
            let left = wall.min(next_turn).saturating_sub(used);
            let timeout =
                Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
            let mut waits = vec![PollFd::new(&ended, PollFlags::IN)];
            waits.extend(stderr.as_ref().map(|stderr| PollFd::from_borrowed_fd(stderr.as_fd(), PollFlags::IN)));
            let began = Instant::now();
            let polled = poll(&mut waits, Some(&timeout));
            used += began.elapsed();
            match polled {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            if !waits[0].revents().is_empty() {
                break;
            }
            // Also of a process that writes all the time.
            if used >= wall {
                out_of_time = true;
                self.0.kill()?;
                break;
            }
            if used >= next_turn {
                give_way(ended.as_fd(), used);
                next_turn = used + turn;
            }
            take(&mut stderr, &mut said);
        }
        self.1.ends();
        let status = self.0.wait()?;
        take(&mut stderr, &mut said);
        Ok(ProcessEnd { status, out_of_time, used, said })
    }
}

impl Drop for CompileProcess {
    fn drop(&mut self) {
        self.1.ends();
        // It has ended and was waited for already, unless waiting failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reads what the stream has; keeps the beginning. Drops the stream at its end.
fn take(stream: &mut Option<ChildStderr>, said: &mut Vec<u8>) {
    let mut piece = [0; 4096];
    // Bounded: a process that writes faster than this loop reads is read again at the next turn.
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
pub(super) enum CompileFailure {
    /// The module's fault, or of the baseline compiler: it does not support the module.
    Invalid(String),
    /// The configuration wants no baseline code for the module.
    Unwanted(String),
    /// A limit was reached; the text says which.
    Limit(String),
    /// The component has more core instances than the configuration allows.
    Structure(String),
    /// The compiler's fault.
    Crashed(String),
    /// The node's fault.
    Failed(String),
}

impl CompileFailure {
    /// The metric's label.
    pub(super) fn label(&self) -> &'static str {
        match self {
            CompileFailure::Invalid(_) => "invalid",
            CompileFailure::Unwanted(_) => "unwanted",
            CompileFailure::Limit(_) | CompileFailure::Structure(_) => "limit",
            CompileFailure::Crashed(_) => "crashed",
            CompileFailure::Failed(_) => "failed",
        }
    }

    pub(super) fn into_error(self) -> Error {
        match self {
            CompileFailure::Invalid(text) => Error::InvalidArgument(format!("it cannot be compiled: {text}")),
            CompileFailure::Unwanted(text) => Error::FailedPrecondition(text),
            CompileFailure::Limit(text) => Error::ResourceExhausted(format!("compiling it {text}")),
            CompileFailure::Structure(text) => {
                Error::ResourceExhausted(format!("{text}: raise engine.component_core_instances_max"))
            }
            CompileFailure::Crashed(text) => {
                Error::Internal(format!("the compiler crashed on this module ({text}); nothing else was affected"))
            }
            CompileFailure::Failed(text) => Error::Internal(format!("the compiler could not do its work: {text}")),
        }
    }
}

/// The result that a process's end means.
pub(super) fn verdict(end: &ProcessEnd, order: &CompileOrder, wall: Duration) -> Result<(), CompileFailure> {
    let said = one_line(&end.said);
    let memory = || {
        CompileFailure::Limit(format!(
            "needs more than {} bytes of address space: raise modules.compile_memory_bytes_max or lower modules.compile_threads",
            order.memory_bytes
        ))
    };
    let too_large = || {
        CompileFailure::Limit(format!(
            "gives more than {} bytes: raise modules.artifact_bytes_max",
            order.artifact_bytes
        ))
    };
    let cpu = || {
        CompileFailure::Limit(format!(
            "takes more than {} seconds of CPU time: raise modules.compile_cpu_seconds_max",
            order.cpu_seconds
        ))
    };
    if end.out_of_time {
        return Err(CompileFailure::Limit(format!(
            "takes longer than {} seconds: raise modules.compile_seconds_max",
            wall.as_secs_f64()
        )));
    }
    if let Some(signal) = end.status.signal() {
        return Err(match signal {
            libc::SIGXCPU => cpu(),
            libc::SIGXFSZ => too_large(),
            // Not the daemon's own kill, and not the CPU limit's second step, which comes after SIGXCPU.
            libc::SIGKILL => CompileFailure::Limit(
                "was ended with SIGKILL by another process, most likely by the kernel for want of memory: give hearthd's service more, or lower modules.compile_threads".into(),
            ),
            signal if said.is_empty() => CompileFailure::Crashed(format!("signal {signal}")),
            signal => CompileFailure::Crashed(format!("signal {signal}: {said}")),
        });
    }
    let code = end.status.code();
    match CompileExit::ALL.into_iter().find(|exit| code == Some(*exit as i32)) {
        Some(CompileExit::Done) => Ok(()),
        Some(CompileExit::Invalid) => Err(CompileFailure::Invalid(said)),
        Some(CompileExit::Unwanted) => Err(CompileFailure::Unwanted(said)),
        Some(CompileExit::Memory) => Err(memory()),
        Some(CompileExit::TooLarge) => Err(too_large()),
        Some(CompileExit::Structure) => Err(CompileFailure::Structure(said)),
        Some(CompileExit::Unready | CompileExit::Streams) => Err(CompileFailure::Failed(said)),
        None => Err(CompileFailure::Crashed(format!("exit status {}: {said}", code.unwrap_or(-1)))),
    }
}

/// The text on one line, without control characters, and cut to [`MESSAGE_CHARACTERS_MAX`].
pub(super) fn one_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let words: Vec<_> =
        text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()).collect();
    let line = words.join(" ");
    match line.char_indices().nth(MESSAGE_CHARACTERS_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}
