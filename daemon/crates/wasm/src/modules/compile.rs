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
//! A compile has a thread of its own from the spawn to the end: a process with a parent-death signal dies with the
//! *thread* that made it, and a pool's threads end when they are idle. Nothing of the daemon's address space is
//! copied (`posix_spawn`).
//!
//! Compiles that starts wait for take turns by namespace and pod; a long one is stopped while others have theirs
//! (`turns.rs`). Baseline compiles, which are short, have a turn of their own.
//!
//! Errors: an invalid module is `InvalidArgument`, with wasmtime's text; a module that exceeds a limit is
//! `ResourceExhausted`, which names the limit; a compiler that crashed is `Internal`. The daemon and other
//! modules are not affected.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::engine::ModuleKind;
use crate::modules::child::CompileOrder;
pub use crate::modules::child::{SUBCOMMAND, child_main};
use crate::modules::compile_process::CompileJob;
use crate::modules::pace::Pace;
use crate::modules::turns::{Turn, Turns};
use hearth_base::config::{self, Baseline};
use hearth_base::error::{Error, Result};
use hearth_observe::metrics::Metrics;

/// hearthd itself, the very file it was started from even if that has been replaced since: an
/// artifact must come from the same wasmtime.
const PROGRAM: &str = "/proc/self/exe";

/// Why there is no artifact.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) error: Error,
    /// Whether the compile ran into one of its limits.
    pub(super) is_limit: bool,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Failed {
        Failed { error, is_limit: false }
    }
}

/// Makes artifacts.
pub struct Compiler {
    program: PathBuf,
    config: config::Modules,
    engine: config::Engine,
    /// Of optimising compiles that starts wait for.
    pub(super) turns: Arc<Turns>,
    /// Of baseline compiles and of making components, which are short: they wait for no optimising compile.
    short_turns: Arc<Turns>,
    /// The one turn of compiles ahead of a start: they never take a start's turn.
    pub(super) ahead_turns: Arc<Turns>,
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
            ahead_turns: Turns::new(1, 0),
            short_turns: Turns::new(config.compiles_max, 1),
            ahead_nice: ahead.nice,
            program: PROGRAM.into(),
            turns: Turns::new(config.compiles_max, config.compiles_parked_max),
            config,
            engine,
            pending: Arc::default(),
            metrics,
        }
    }

    /// Compiles the module that `wasm` gives: a sealed memory file. It is polled when it is this compile's turn, so
    /// that queued compiles hold no memory. Returns the artifact in another memory file. Once the process has
    /// started it runs to its end even if the caller goes away.
    ///
    /// # Errors
    /// See the module's head; also those of `wasm`.
    pub(super) async fn compile(
        &self,
        wasm: impl Future<Output = Result<(File, ModuleKind)>>,
        pace: &Arc<Pace>,
    ) -> Result<(File, ModuleKind), Failed> {
        self.run(wasm, pace, Work::Compile(Baseline::Never)).await
    }

    /// A component made of a core module: see `adapt.rs`. As [`Compiler::compile`] in every other respect.
    ///
    /// # Errors
    /// As [`Compiler::compile`].
    pub(super) async fn adapt(
        &self,
        wasm: impl Future<Output = Result<(File, ModuleKind)>>,
        pace: &Arc<Pace>,
    ) -> Result<File, Failed> {
        self.run(wasm, pace, Work::Adapt).await.map(|(component, _)| component)
    }

    /// As [`Compiler::compile`], with the baseline compiler, if the module is one of those that `modules.baseline`
    /// names.
    ///
    /// # Errors
    /// As [`Compiler::compile`]. The optimising compiler may compile a module for which this fails.
    pub(super) async fn compile_baseline(
        &self,
        wasm: impl Future<Output = Result<(File, ModuleKind)>>,
        pace: &Arc<Pace>,
    ) -> Result<(File, ModuleKind)> {
        self.run(wasm, pace, Work::Compile(self.config.baseline)).await.map_err(|failed| failed.error)
    }

    async fn run(
        &self,
        wasm: impl Future<Output = Result<(File, ModuleKind)>>,
        pace: &Arc<Pace>,
        work: Work,
    ) -> Result<(File, ModuleKind), Failed> {
        let queued = QueueEntry::enter(self)?;
        let of_starts = if work == Work::Compile(Baseline::Never) { &self.turns } else { &self.short_turns };
        let turn = tokio::select! {
            biased;
            turn = self.ahead_turns.wait(pace), if !pace.is_hurried() => turn,
            turn = async {
                pace.wait_hurried().await;
                of_starts.wait(pace).await
            } => turn,
        };
        let (wasm, kind) = wasm.await?;
        let (result, done) = tokio::sync::oneshot::channel();
        let job = self.job(pace.clone(), work);
        let run = move || {
            let artifact = job.run(wasm, kind, &turn).map(|artifact| (artifact, kind));
            drop::<(QueueEntry, Turn)>((queued, turn));
            // The caller may have gone away.
            let _ = result.send(artifact);
        };
        std::thread::Builder::new()
            .name("compile".into())
            .spawn(run)
            .map_err(|e| Error::Internal(format!("cannot start a thread for the compiler: {e}")))?;
        done.await.map_err(|_| stopped())?
    }

    fn job(&self, pace: Arc<Pace>, work: Work) -> CompileJob {
        let threads = match self.config.compile_threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let order = CompileOrder {
            component: false,
            adapt: work == Work::Adapt,
            baseline: match work {
                Work::Compile(baseline) => baseline,
                Work::Adapt => Baseline::Never,
            },
            engine: self.engine.clone(),
            memory_bytes: self.config.compile_memory_bytes_max,
            cpu_seconds: self.config.compile_cpu_seconds_max,
            artifact_bytes: self.config.artifact_bytes_max,
            uid: self.config.compile_uid,
            parent: rustix::process::getpid().as_raw_nonzero().get(),
        };
        let wall = Duration::from_secs(self.config.compile_seconds_max);
        CompileJob {
            program: self.program.clone(),
            order,
            threads,
            wall,
            turn: Duration::from_millis(self.config.compile_turn_ms),
            pace,
            nice: self.ahead_nice,
            metrics: self.metrics.clone(),
        }
    }
}

/// The work of a compile process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// Compiles a module, with the compiler that this names.
    Compile(Baseline),
    /// Makes a component of a core module.
    Adapt,
}

fn stopped() -> Error {
    Error::Unavailable("the compiler was stopped: hearthd is ending".into())
}

/// A compile that is queued or runs, counted until drop.
struct QueueEntry {
    pending: Arc<AtomicUsize>,
    metrics: Arc<Metrics>,
}

impl QueueEntry {
    fn enter(compiler: &Compiler) -> Result<QueueEntry> {
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
        Ok(QueueEntry { pending: compiler.pending.clone(), metrics: compiler.metrics.clone() })
    }
}

impl Drop for QueueEntry {
    fn drop(&mut self) {
        self.pending.fetch_sub(1, Ordering::Relaxed);
        self.metrics.compiles.pending.dec();
    }
}

#[cfg(test)]
mod tests;
