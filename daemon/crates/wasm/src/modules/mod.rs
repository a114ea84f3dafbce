//! The module store: from the file or layer that Create names to a prepared program.
//!
//! ```text
//!  snapshot + program's name ─▶ Place ──known──▶ Digest ──prepared──▶ Program        warm: 1 µs, no file
//!                                 │ unknown        │ not in memory
//!                                 ▼                ▼
//!  root ─▶ lookup ─▶ file ──hash──────────────▶ artifact on disk ──checked, mapped──▶ Program
//!                                                  │ none
//!                                                  ▼
//!                                        compile process ─▶ artifact ─▶ disk ─▶ Program
//! ```
//!
//! A start that would wait for the optimising compiler gets code of the baseline compiler first, for the modules that
//! `modules.baseline` names:
//!
//! ```text
//!  start ─▶ baseline compile, at once ─▶ Program, in memory only ─▶ the start goes on
//!                                           │ then
//!                                           ▼                       replaces the code in the LiveProgram
//!           optimising compile, at the lowest priority ─▶ disk ─▶ Program ─▶ of the tasks that run it
//! ```
//!
//! The compile process decides whether a module is one of those. Modules that the baseline compiler does not support
//! go straight to the optimising one. A compile ahead of a start is always an optimising one; a start that comes
//! while it runs gets baseline code without waiting for it.
//!
//! * `programs.rs`: where a process gets the programs of its tasks: its own store, or another process.
//! * `remote.rs`: programs from the node's daemon, for a cell.
//! * `loader.rs`: one load for each digest, however many starts wait for it.
//! * `cache.rs`: programs in memory; modules that cannot be compiled and are not tried again for ten minutes.
//! * `compiling.rs`: the baseline compile of a first start, the optimising compile after it, the swap of the code.
//! * `lookup.rs`: finds the program's file in a root: `PATH`, `.wasm`, `FILE#EXPORT`.
//! * `identify.rs`: tells WebAssembly from native programs, scripts and archives by a file's first bytes.
//! * `origin.rs`: reads and hashes a module's bytes, and copies them for the compiler.
//! * `places.rs`: names where a module is known to be, so that a second start opens no file.
//! * `known.rs`: the digests of known places, in memory and in a journal on the disk.
//! * `directory.rs`: the store's directory: root's own, files appear whole or not at all, the store's key.
//! * `store.rs`: compiled artifacts on disk: verified before use, the least recently used removed.
//! * `artifact_index.rs`: artifacts' names, and which of them are on the disk.
//! * `inventory.rs`: lists, verifies and prunes modules for the operator.
//! * `compile.rs`: the compile queue and its limits.
//! * `retries.rs`: pauses after a compile that ran into a limit, also after a restart.
//! * `turns.rs`: the order of compiles: shares by namespace and pod; long compiles are parked while others have their turn.
//! * `compile_process.rs`: one compile process from its start to its end, and the meaning of its end.
//! * `child.rs`: the inside of the compile process.
//! * `adapt.rs`: makes a component of a core module, for Spin.
//! * `old_bindgen.rs`: renames the functions of modules of wit-bindgen 0.2, for Spin.
//! * `candidates.rs`: gives components of a release candidate of WASI 0.3 the names of the release.
//! * `component.rs`: the program of a component of a Spin application.
//! * `world.rs`: tells HTTP services from other components before they are compiled.
//! * `core_instances.rs`: counts a component's core instances before it is compiled.
//! * `pace.rs`: the priority of a compile, raised when a start waits for it.
//! * `samples.rs`: modules for tests.
//!
//! A module that cannot be compiled is remembered for a while, so that a container that is restarted over and over
//! costs one compile in ten minutes. A compile that ran into a limit can succeed the next time, with less load or a changed
//! configuration: it is tried again, after pauses that grow. A module whose optimising compile fails keeps its baseline code, and
//! the next start tries again.
//!
//! Only artifacts that the compile process wrote and [`store`] verified are mapped.

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lru::LruCache;
use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::engine::{Engines, LiveProgram};
use crate::modules::cache::REJECTED_MAX;
use crate::modules::compile::Compiler;
use crate::modules::directory::{Directory, OpenedDirectory};
use crate::modules::known::{KnownModule, KnownPlaces};
use crate::modules::loader::{CompileInput, Depth, Evidence, FinishedLoad, Loader};
use crate::modules::lookup::ProgramFile;
use crate::modules::origin::Origin;
use crate::modules::pace::{Pace, Urgency};
use crate::modules::places::Place;
use crate::modules::retries::Retries;
use crate::modules::store::Store;
use crate::modules::turns::Owner;
use hearth_base::config::{Baseline, Config};
use hearth_base::digest::Digest;
use hearth_base::error::{Error, Result};
use hearth_base::wanted::Wanted;
use hearth_observe::metrics::{Metrics, Source};

mod adapt;
mod artifact_index;
mod cache;
mod candidates;
pub mod child;
pub mod compile;
mod compile_process;
mod compiling;
mod component;
mod core_instances;
pub mod directory;
pub mod identify;
pub mod inventory;
pub mod known;
mod loader;
pub mod lookup;
mod old_bindgen;
pub mod origin;
pub mod pace;
pub mod places;
pub mod programs;
pub mod remote;
mod retries;
pub mod store;
pub mod turns;
pub mod world;

#[cfg(test)]
pub(crate) mod samples;

/// How often a start inspects its module's bytes at most, if they change or a remembered digest is wrong.
const LOOKS_MAX: usize = 3;

/// The node's modules.
pub struct ModuleStore {
    loader: Arc<Loader>,
}

/// A program and where it came from.
#[derive(Clone)]
pub struct Loaded {
    /// The program, shared with every other task that runs it.
    pub program: Arc<LiveProgram>,
    /// The digest of its WebAssembly.
    pub digest: Digest,
    /// The export to call, if the program's name had one.
    pub export: Option<Arc<str>>,
    /// Where it came from.
    pub source: Source,
    /// How long its compile took, with the time in the queue, if it was compiled for this call.
    pub compile_time: Option<Duration>,
}

impl ModuleStore {
    /// Opens the store below `config.root_dir`. Without a usable disk it works from memory.
    ///
    /// # Errors
    /// `FailedPrecondition` if another user could have written to the store's directory.
    pub fn open(
        config: &Config,
        engines: Arc<Engines>,
        metrics: Arc<Metrics>,
        runtime: Handle,
    ) -> Result<Arc<ModuleStore>> {
        let compiler = Compiler::new(config.modules.clone(), config.engine.clone(), &config.ahead, metrics.clone());
        ModuleStore::open_with(config, engines, metrics, runtime, compiler)
    }

    fn open_with(
        config: &Config,
        engines: Arc<Engines>,
        metrics: Arc<Metrics>,
        runtime: Handle,
        compiler: Compiler,
    ) -> Result<Arc<ModuleStore>> {
        let directory = match Directory::open(&config.root_dir)? {
            OpenedDirectory::Disk(directory) => Some(Arc::new(directory)),
            OpenedDirectory::Unusable(reason) => {
                tracing::warn!(
                    reason,
                    "no module store on disk: every module is compiled again after a restart; see root_dir"
                );
                None
            }
        };
        let limits = &config.modules;
        let loader = Loader {
            store: Store::open(directory.clone(), engines.fingerprint(), limits.store_bytes_max, metrics.clone()),
            retries: Retries::open(config, directory.clone()),
            places: KnownPlaces::open(directory, limits.places_max),
            prepared: Mutex::new(LruCache::sparse(NonZeroUsize::new(limits.prepared_max).unwrap_or(NonZeroUsize::MIN))),
            rejected: Mutex::new(LruCache::sparse(REJECTED_MAX)),
            loads: Mutex::default(),
            compiling: Mutex::default(),
            module_bytes_max: limits.module_bytes_max,
            baseline: if engines.has_baseline() { limits.baseline } else { Baseline::Never },
            baseline_bytes_min: limits.baseline_bytes_min,
            runtime,
            engines,
            compiler,
            metrics,
        };
        Ok(Arc::new(ModuleStore { loader: Arc::new(loader) }))
    }

    /// Removes, in the background, the artifacts of engines that no running daemon uses.
    pub fn remove_unused(&self) {
        let loader = self.loader.clone();
        self.loader.runtime.spawn_blocking(move || loader.store.remove_unused());
    }

    /// The program in `place`, if it is known and prepared. Waits for nothing; about a microsecond.
    pub fn warm(&self, place: &Place) -> Option<Loaded> {
        let KnownModule { digest, export } = self.loader.places.get(place)?;
        let prepared = self.loader.prepared(digest, self.loader.least(export.as_ref()))?;
        Some(Loaded { export, ..self.loader.loaded(FinishedLoad::warm(prepared)) })
    }

    /// The program in `place` without its file: from memory, or from a compiled artifact on disk. `None`
    /// if neither has it.
    ///
    /// # Errors
    /// `InvalidArgument` if the program has an import that Hearth does not offer.
    pub async fn known(&self, place: &Place) -> Result<Option<Loaded>> {
        let Some(KnownModule { digest, export }) = self.loader.places.get(place) else { return Ok(None) };
        self.known_digest(digest, export).await
    }

    /// The program of `digest`, as [`ModuleStore::known`]; `export`: the export to call, if the caller names one.
    ///
    /// # Errors
    /// As [`ModuleStore::known`].
    pub async fn known_digest(&self, digest: Digest, export: Option<Arc<str>>) -> Result<Option<Loaded>> {
        let finished =
            self.loader.single_flight(digest, None, Depth::Disk, &Pace::new(Urgency::Start, Vec::new())).await?;
        let finished = finished.filter(|finished| finished.prepared.tier() >= self.loader.least(export.as_ref()));
        Ok(finished.map(|finished| Loaded { export, ..self.loader.loaded(finished) }))
    }

    /// Finds the program's file in the directory `root`, with the container's volumes mounted in it.
    ///
    /// # Errors
    /// `InvalidArgument` with what was tried, or why a name was refused.
    pub async fn find(&self, root: OwnedFd, wanted: Wanted) -> Result<ProgramFile> {
        blocking(&self.loader.runtime, move || lookup::find(root.as_fd(), &wanted)).await
    }

    /// The program of `origin`, for `owner`: from memory, from the disk, or compiled. Remembers its digest for `place`, if the
    /// search for its file left the root's own mount nowhere.
    ///
    /// # Errors
    /// `InvalidArgument` if it is not WebAssembly, invalid, or has an import that Hearth does not
    /// offer; `ResourceExhausted` if a limit is reached; `Unavailable` if it changed meanwhile.
    /// Each message starts with the origin's name.
    pub async fn load(&self, origin: Origin, place: Option<Place>, owner: Owner) -> Result<Loaded> {
        self.load_shared(Arc::new(origin), place, None, &Pace::new(Urgency::Start, vec![owner])).await
    }

    /// As [`ModuleStore::load`], before a start asks for it: the compile is an optimising one, at the lowest priority
    /// until a start waits for it.
    ///
    /// # Errors
    /// As [`ModuleStore::load`].
    pub async fn load_ahead(&self, origin: Origin, place: Option<Place>) -> Result<Loaded> {
        let pace = Pace::new(Urgency::Ahead, Vec::new());
        self.load_shared(Arc::new(origin), place, Some(Depth::Optimised), &pace).await
    }

    /// As [`ModuleStore::load`], with code of the optimising compiler, which the start waits for: for a process that has
    /// no other engine.
    ///
    /// # Errors
    /// As [`ModuleStore::load`].
    pub async fn load_optimised(&self, origin: Origin, place: Option<Place>, owner: Owner) -> Result<Loaded> {
        let pace = Pace::new(Urgency::Start, vec![owner]);
        self.load_shared(Arc::new(origin), place, Some(Depth::Optimised), &pace).await
    }

    /// `depth`: how far the load goes; `None`: as the configuration says for a start.
    async fn load_shared(
        &self,
        origin: Arc<Origin>,
        place: Option<Place>,
        depth: Option<Depth>,
        pace: &Arc<Pace>,
    ) -> Result<Loaded> {
        let named = |e: Error| e.context(origin.name());
        let (export, place) = match &*origin {
            Origin::File(found) => (found.export.clone(), place.filter(|_| found.on_root_mount)),
            Origin::Layer { export, .. } => (export.clone(), place),
        };
        let mut looks = 0..LOOKS_MAX;
        let (read, finished) = loop {
            let evidence = if looks.next() == Some(0) { Evidence::InPlaces } else { Evidence::InBytes };
            let (loader, opened) = (self.loader.clone(), origin.clone());
            let read = move || loader.inspect(&opened, evidence, SystemTime::now());
            let read = blocking(&self.loader.runtime, read).await.map_err(named)?;
            let depth = depth.unwrap_or_else(|| self.loader.depth(export.as_ref(), read.bytes));
            let input = CompileInput::Origin { origin: origin.clone(), is_read: read.is_read };
            match self.loader.single_flight(read.digest, Some(input), depth, pace).await {
                // The file changed, or the digest remembered for its place is wrong, or this call joined the load of
                // another file of the same digest and that file changed.
                Err(Error::Unavailable(_)) if !looks.is_empty() => {}
                finished => break (read, finished.map_err(named)?),
            }
        };
        let finished = finished.ok_or_else(|| Error::Internal("a load with bytes gave nothing".into()))?;
        let learned_places: Vec<_> = [(place, export.clone()), (read.learned, None)]
            .into_iter()
            .filter_map(|(place, export)| Some((place?, KnownModule { digest: read.digest, export })))
            .filter(|(place, known)| self.loader.places.get(place).as_ref() != Some(known))
            .collect();
        if !learned_places.is_empty() {
            let loader = self.loader.clone();
            let learn = move || {
                learned_places.into_iter().for_each(|(place, known)| loader.places.learn(place, known));
                Ok(())
            };
            blocking(&self.loader.runtime, learn).await?;
        }
        Ok(Loaded { export, ..self.loader.loaded(finished) })
    }
}

async fn blocking<T: Send + 'static>(runtime: &Handle, job: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let ended = |e| Error::Internal(format!("reading a module ended early: {e}"));
    runtime.spawn_blocking(job).await.map_err(ended)?
}

#[cfg(test)]
mod tests;
