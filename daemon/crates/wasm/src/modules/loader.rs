//! One load for each digest: from memory, from the disk, or by a compile; every caller that needs the same waits for it.
//!
//! A load belongs to no caller: it goes on when the caller that started it goes away. Failures are shared like
//! results.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use lru::LruCache;
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::cache::CachedProgram;
use super::compile::Compiler;
use super::compiling::ModuleFile;
use super::known::{KnownModule, KnownPlaces};
use super::origin::Origin;
use super::pace::Pace;
use super::places::{Place, is_settled};
use super::retries::Retries;
use super::store::Store;
use super::{Loaded, blocking};
use crate::engine::{Engines, Tier};
use hearth_base::config::Baseline;
use hearth_base::digest::Digest;
use hearth_base::error::{Error, Result};
use hearth_observe::metrics::{Metrics, Source};

/// The parts that all loads share.
pub(super) struct Loader {
    pub(super) engines: Arc<Engines>,
    pub(super) compiler: Compiler,
    pub(super) store: Store,
    pub(super) places: KnownPlaces,
    pub(super) prepared: Mutex<LruCache<Digest, CachedProgram>>,
    pub(super) rejected: Mutex<LruCache<Digest, (Instant, Error)>>,
    pub(super) retries: Retries,
    pub(super) loads: Mutex<HashMap<(Digest, Depth), PacedLoad>>,
    /// Modules that are being compiled or wait for it: the name, and since when.
    pub(super) compiling: Mutex<HashMap<(Digest, Tier), (String, Instant)>>,
    pub(super) module_bytes_max: u64,
    /// Which modules start on baseline code.
    pub(super) baseline: Baseline,
    pub(super) baseline_bytes_min: u64,
    pub(super) runtime: Handle,
    pub(super) metrics: Arc<Metrics>,
}

/// How far a load goes for its module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Depth {
    /// To the disk: the caller has no bytes to compile.
    Disk,
    /// To the baseline compiler, and to the optimising one if the baseline compiler makes no code for the module.
    Baseline,
    /// To the optimising compiler.
    Optimised,
}

impl Depth {
    /// The least tier that satisfies such a load.
    fn tier(self) -> Tier {
        match self {
            Depth::Disk | Depth::Baseline => Tier::Baseline,
            Depth::Optimised => Tier::Optimised,
        }
    }
}

/// A load's result. `None`: it went to the disk only, and no artifact was there.
pub(super) type LoadOutcome = Result<Option<FinishedLoad>>;

/// The work on one digest, which every caller that needs it waits for.
pub(super) type Load = Shared<BoxFuture<'static, LoadOutcome>>;

/// A load, and the urgency of its compile.
type PacedLoad = (Load, Arc<Pace>);

/// The result of a load for its callers.
#[derive(Clone)]
pub(super) struct FinishedLoad {
    pub(super) prepared: CachedProgram,
    pub(super) source: Source,
    pub(super) compile_time: Option<Duration>,
}

impl FinishedLoad {
    pub(super) fn warm(prepared: CachedProgram) -> FinishedLoad {
        FinishedLoad { prepared, source: Source::Warm, compile_time: None }
    }
}

/// The facts found about an origin's bytes.
pub(super) struct Inspection {
    pub(super) digest: Digest,
    /// The origin's length.
    pub(super) bytes: u64,
    /// Whether the bytes were read to learn the digest.
    pub(super) is_read: bool,
    /// The file's own place, if the digest was just learned and the file's identity stands for its content.
    pub(super) learned: Option<Place>,
}

/// The evidence that an inspection relies on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Evidence {
    /// The digest remembered for the file's place, if there is one.
    InPlaces,
    /// The bytes only.
    InBytes,
}

/// Where a load's compile gets the module.
pub(super) enum CompileInput {
    /// From its origin, which is read.
    Origin {
        origin: Arc<Origin>,
        /// Whether it was read, and counted as a read, before.
        is_read: bool,
    },
    /// From memory, where the baseline compile left it.
    Memory(Arc<ModuleFile>),
}

impl CompileInput {
    pub(super) fn name(&self) -> &str {
        match self {
            CompileInput::Origin { origin, .. } => origin.name(),
            CompileInput::Memory(wasm) => &wasm.name,
        }
    }
}

impl Loader {
    /// The program of `digest`: the one in memory if it has code good enough for `depth`, else by a load of that depth.
    pub(super) async fn single_flight(
        self: &Arc<Self>,
        digest: Digest,
        input: Option<CompileInput>,
        depth: Depth,
        pace: &Arc<Pace>,
    ) -> LoadOutcome {
        if let Some(prepared) = self.prepared(digest, depth.tier()) {
            return Ok(Some(FinishedLoad::warm(prepared)));
        }
        self.join_load(digest, input, depth, pace).await
    }

    /// Joins the load of `digest`, or starts it, at this pace.
    pub(super) fn join_load(
        self: &Arc<Self>,
        digest: Digest,
        input: Option<CompileInput>,
        depth: Depth,
        pace: &Arc<Pace>,
    ) -> Load {
        let (load, its_pace) = {
            let mut loads = self.loads.lock();
            let start = || (self.start_load(digest, depth, input, pace.clone()), pace.clone());
            loads.entry((digest, depth)).or_insert_with(start).clone()
        };
        its_pace.join(pace);
        load
    }

    fn start_load(
        self: &Arc<Self>,
        digest: Digest,
        depth: Depth,
        input: Option<CompileInput>,
        pace: Arc<Pace>,
    ) -> Load {
        /// Takes the load off the list, also if it panics.
        struct Registered(Arc<Loader>, (Digest, Depth));
        impl Drop for Registered {
            fn drop(&mut self) {
                self.0.loads.lock().remove(&self.1);
            }
        }
        let registered = Registered(self.clone(), (digest, depth));
        let loader = self.clone();
        let job = self.runtime.spawn(async move {
            let outcome = loader.perform_load(digest, depth, input, &pace).await;
            // The program is in the cache before the load is off the list: a caller in between finds one of the two.
            drop(registered);
            outcome
        });
        let ended = |e| Error::Internal(format!("preparing a module ended early: {e}"));
        job.map(move |outcome| outcome.map_err(ended)?).boxed().shared()
    }

    /// The work of a load.
    async fn perform_load(
        self: &Arc<Self>,
        digest: Digest,
        depth: Depth,
        input: Option<CompileInput>,
        pace: &Arc<Pace>,
    ) -> LoadOutcome {
        // Another load may have ended since the caller looked.
        if let Some(prepared) = self.prepared(digest, depth.tier()) {
            return Ok(Some(FinishedLoad::warm(prepared)));
        }
        let loader = self.clone();
        if let Some(prepared) = blocking(&self.runtime, move || loader.take_from_disk(digest)).await? {
            return Ok(Some(FinishedLoad { prepared, source: Source::Disk, compile_time: None }));
        }
        let Some(input) = input else { return Ok(None) };
        if let Some(error) = self.rejected(digest, Instant::now()) {
            return Err(error);
        }
        if depth == Depth::Baseline {
            return self.compile_baseline(digest, input, pace).await;
        }
        // Of optimising compiles: baseline code can be had meanwhile.
        match self.retries.refusal(digest, SystemTime::now()) {
            Some(error) => Err(error),
            None => self.compile(digest, input, pace).await,
        }
    }

    /// The least tier that satisfies a start. A function that is called by its name is called once, like a command,
    /// whatever else the component exports.
    pub(super) fn least(&self, export: Option<&Arc<str>>) -> Tier {
        if export.is_some() && self.baseline != Baseline::All { Tier::Optimised } else { Tier::Baseline }
    }

    /// How far a start's load of a file of `bytes` bytes goes.
    pub(super) fn depth(&self, export: Option<&Arc<str>>, bytes: u64) -> Depth {
        let is_worth_it = self.baseline != Baseline::Never && bytes >= self.baseline_bytes_min;
        if is_worth_it && self.least(export) == Tier::Baseline { Depth::Baseline } else { Depth::Optimised }
    }

    pub(super) fn loaded(&self, finished: FinishedLoad) -> Loaded {
        self.metrics.modules.lookup(finished.source);
        Loaded {
            program: finished.prepared.program,
            digest: finished.prepared.digest,
            export: None,
            source: finished.source,
            compile_time: finished.compile_time,
        }
    }

    /// The digest of `origin`; the bytes are read only if `evidence` asks for it or no digest is remembered. Blocks.
    pub(super) fn inspect(&self, origin: &Origin, evidence: Evidence, now: SystemTime) -> Result<Inspection> {
        let place = match origin {
            Origin::File(found) => Place::of_file(&found.file),
            Origin::Layer { .. } => None,
        };
        if evidence == Evidence::InPlaces
            && let Some(KnownModule { digest, .. }) = place.and_then(|place| self.places.get(&place))
        {
            return Ok(Inspection { digest, bytes: origin.length()?, is_read: false, learned: None });
        }
        self.metrics.modules.reads.inc();
        let scanned = origin.scan(self.module_bytes_max)?;
        let learned = match origin {
            // Unchanged while it was read, and its last change is so old that a change since would show.
            Origin::File(found) if Place::of_file(&found.file) == place && is_settled(&found.file, now) => place,
            _ => None,
        };
        Ok(Inspection { digest: scanned.digest, bytes: scanned.bytes, is_read: true, learned })
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.store.save_times();
    }
}
