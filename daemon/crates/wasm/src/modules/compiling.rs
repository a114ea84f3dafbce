//! A load's compiles: the baseline compile that a start waits for, the optimising one, and the swap of the code.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use super::blocking;
use super::cache::{CachedProgram, Unoptimised};
use super::compile::Failed;
use super::loader::{CompileInput, Depth, FinishedLoad, LoadOutcome, Loader};
use super::pace::{Pace, Urgency};
use super::store::VerifiedArtifact;
use crate::engine::{ModuleKind, Tier};
use hearth_base::config::Baseline;
use hearth_base::digest::Digest;
use hearth_base::error::{Error, Result};
use hearth_observe::metrics::Source;

/// How long reading a module for the compiler may take. The compiler waits meanwhile.
const READ_TIME_MAX: Duration = Duration::from_secs(60);

/// A module in a sealed memory file.
pub(super) struct ModuleFile {
    pub(super) name: String,
    file: File,
    kind: ModuleKind,
}

impl ModuleFile {
    /// A descriptor of the file with an offset of its own, at the start.
    fn open(&self) -> Result<(File, ModuleKind)> {
        let file = File::open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
            .map_err(|e| Error::Internal(format!("cannot read it again from memory: {e}")))?;
        Ok((file, self.kind))
    }
}

/// A module's entry in the list of modules that are being compiled; removed on drop.
struct Compiling<'a>(&'a Loader, (Digest, Tier));

impl Compiling<'_> {
    fn list<'a>(loader: &'a Loader, digest: Digest, tier: Tier, name: &str) -> Compiling<'a> {
        loader.compiling.lock().insert((digest, tier), (name.to_string(), Instant::now()));
        Compiling(loader, (digest, tier))
    }
}

impl Drop for Compiling<'_> {
    fn drop(&mut self) {
        self.0.compiling.lock().remove(&self.1);
    }
}

impl Loader {
    /// Compiles the module with the optimising compiler and keeps the artifact, on the disk too.
    pub(super) async fn compile(
        self: &Arc<Self>,
        digest: Digest,
        input: CompileInput,
        pace: &Arc<Pace>,
    ) -> LoadOutcome {
        let began = Instant::now();
        let compiled = {
            let _listed = Compiling::list(self, digest, Tier::Optimised, input.name());
            let wasm = async { self.module_file(digest, input).await?.open() };
            self.compiler.compile(wasm, pace).await
        };
        let (artifact, kind) = match compiled {
            Ok(compiled) => compiled,
            Err(failed) => {
                let error = self.noted(digest, failed, pace).await;
                // The compiler's finding only: `module_file` gives no error of this kind.
                if matches!(error, Error::InvalidArgument(_)) {
                    self.reject(digest, error.clone(), Instant::now());
                }
                return Err(error);
            }
        };
        let compile_time = Some(began.elapsed());
        let loader = self.clone();
        let prepare = move || {
            loader.retries.succeeded(digest);
            let stored = loader.store.put(digest, kind, artifact);
            loader.prepare(digest, stored, None).inspect_err(|error| {
                // Another compile would give the same artifact.
                if matches!(error, Error::Internal(_)) {
                    loader.store.discard(digest, &error.to_string());
                    loader.reject(digest, error.clone(), Instant::now());
                }
            })
        };
        let prepared = blocking(&self.runtime, prepare).await?;
        Ok(Some(FinishedLoad { prepared, source: Source::Compiled, compile_time }))
    }

    /// The error of a compile. Remembers it if the compile ran into a limit, so that the next one waits for longer. Not of
    /// a compile ahead, whose priority is the lowest: a start's can end in time.
    pub(super) async fn noted(self: &Arc<Self>, digest: Digest, failed: Failed, pace: &Pace) -> Error {
        if failed.is_limit && pace.is_hurried() {
            let (loader, error) = (self.clone(), failed.error.clone());
            // A task that ends early costs the pause and nothing else.
            let _ = self.runtime.spawn_blocking(move || loader.retries.failed(digest, &error, SystemTime::now())).await;
        }
        failed.error
    }

    /// Compiles the module with the baseline compiler and queues its optimising compile. If the baseline compiler
    /// makes no code for the module, waits for the optimising compile instead.
    pub(super) async fn compile_baseline(
        self: &Arc<Self>,
        digest: Digest,
        input: CompileInput,
        pace: &Arc<Pace>,
    ) -> LoadOutcome {
        let began = Instant::now();
        let name = input.name().to_string();
        let mut read = None;
        let compiled = {
            let _listed = Compiling::list(self, digest, Tier::Baseline, &name);
            let wasm = async {
                let wasm = self.module_file(digest, input).await?;
                read = Some(wasm.clone());
                if wasm.kind == ModuleKind::Core && self.baseline == Baseline::Services {
                    return Err(Error::FailedPrecondition("it is no component".into()));
                }
                wasm.open()
            };
            self.compiler.compile_baseline(wasm, pace).await
        };
        let (error, wasm) = match (compiled, read) {
            (Ok((artifact, kind)), Some(wasm)) => {
                let (loader, input) = (self.clone(), wasm.clone());
                let unoptimised =
                    Arc::new(Unoptimised { wasm: input, owners: pace.owners(), is_followed: AtomicBool::new(false) });
                let prepare =
                    move || loader.prepare(digest, VerifiedArtifact::in_memory(artifact, kind), Some(unoptimised));
                match blocking(&self.runtime, prepare).await {
                    Ok(prepared) => {
                        self.optimise(&prepared);
                        let compile_time = Some(began.elapsed());
                        return Ok(Some(FinishedLoad { prepared, source: Source::Compiled, compile_time }));
                    }
                    // A fault of the module's imports is found again by the optimising compile, whose artifact and
                    // finding are kept.
                    Err(error) => (error, wasm),
                }
            }
            (Err(error), Some(wasm)) => (error, wasm),
            // The module could not be read, or the compile's turn did not come.
            (Err(error), None) => return Err(error),
            (Ok(_), None) => return Err(Error::Internal("a module was compiled before it was read".into())),
        };
        tracing::debug!(module = %digest, name, %error, "there is no baseline code for a module");
        let optimised = self.single_flight(digest, Some(CompileInput::Memory(wasm)), Depth::Optimised, pace);
        Ok(optimised.await?.map(|finished| match finished.source {
            Source::Compiled => FinishedLoad { compile_time: Some(began.elapsed()), ..finished },
            Source::Warm | Source::Disk => finished,
        }))
    }

    /// The module's bytes for the compiler, in memory. A read from a hung volume ends after [`READ_TIME_MAX`], and the
    /// compiler goes on to the next module.
    async fn module_file(&self, digest: Digest, input: CompileInput) -> Result<Arc<ModuleFile>> {
        let (origin, is_read) = match input {
            CompileInput::Memory(wasm) => return Ok(wasm),
            CompileInput::Origin { origin, is_read } => (origin, is_read),
        };
        if !is_read {
            self.metrics.modules.reads.inc();
        }
        let bytes_max = self.module_bytes_max;
        let read = blocking(&self.runtime, move || {
            let (file, kind) = origin.to_memory(digest, bytes_max)?;
            Ok(Arc::new(ModuleFile { name: origin.name().to_string(), file, kind }))
        });
        let late = |_| Error::Internal(format!("it could not be read within {} seconds", READ_TIME_MAX.as_secs()));
        tokio::time::timeout(READ_TIME_MAX, read).await.map_err(late)?
    }

    /// Queues the optimising compile of a program that has baseline code only, at the lowest priority, and replaces
    /// the program's code when it is done. One compile, however often it is called.
    pub(super) fn optimise(self: &Arc<Self>, prepared: &CachedProgram) {
        let Some(unoptimised) = prepared.unoptimised.clone() else { return };
        if unoptimised.is_followed.swap(true, Ordering::AcqRel) {
            return;
        }
        let (loader, digest, program) = (self.clone(), prepared.digest, prepared.program.clone());
        // A compile ahead of the start may be under way already: joins it.
        let input = CompileInput::Memory(unoptimised.wasm.clone());
        let pace = Pace::new(Urgency::Ahead, unoptimised.owners.clone());
        let load = self.join_load(digest, Some(input), Depth::Optimised, &pace);
        self.runtime.spawn(async move {
            let name = &unoptimised.wasm.name;
            match load.await {
                Ok(Some(finished)) => {
                    // Dropping the last reference to the baseline code unmaps it: blocks.
                    let replace = move || {
                        program.replace(finished.prepared.program.now());
                        Ok(())
                    };
                    if blocking(&loader.runtime, replace).await.is_ok() {
                        loader.metrics.modules.swaps.with_label_values(&["done"]).inc();
                        tracing::debug!(module = %digest, name, "optimised code has taken the place of baseline code");
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    loader.metrics.modules.swaps.with_label_values(&["failed"]).inc();
                    tracing::warn!(module = %digest, name, %error, "a module stays on baseline code, which is slower: it cannot be optimised; the next start tries again");
                    unoptimised.is_followed.store(false, Ordering::Release);
                }
            }
        });
    }
}
