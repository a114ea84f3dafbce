//! From what Create names to a prepared program.
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
//! A start that would wait for the compiler gets code of the baseline compiler first, where
//! `modules.baseline` wants that:
//!
//! ```text
//!  start ─▶ baseline compile, at once ─▶ Program, in memory alone ─▶ the start goes on
//!                                           │ then
//!                                           ▼                       takes its place in the LiveProgram
//!           optimising compile, when nobody else computes ─▶ disk ─▶ Program ─▶ of the tasks that run it
//! ```
//!
//! Whether a module is one of those, the compile process tells, and what the baseline compiler does not take
//! goes to the other at once. Compiles ahead of a start use the optimising one alone; a start that comes
//! meanwhile has its baseline code beside it.
//!
//! * [`lookup`] finds the file inside its root, [`identify`] tells what it is, [`origin`] reads it.
//! * [`places`] are what a start can know without reading, [`known`] what was learnt about them.
//! * [`store`] keeps artifacts in a [`directory`] of root's own.
//! * [`inventory`] is what those who look at the node see of it.
//! * [`compile`] is the daemon's side of the compile process, [`child`] its inside, [`world`] what that tells
//!   before it compiles, [`pace`] its priority.
//!
//! One *flight* for each digest does all the work below the digest; whoever needs the same waits for
//! it. A flight belongs to nobody: a caller that goes away does not stop it. Failures are shared like
//! results. A module that cannot be compiled is remembered for a while, so that a container that is
//! restarted over and over costs one compile and not one each time. Running into a limit is not
//! remembered: with less load, or a changed configuration, it can work the next time. A module whose
//! optimising compile fails after its start goes on with what it has, and the next start tries again.
//!
//! Only what the compile process wrote and [`store`] verified is ever mapped.

use std::collections::HashMap;
use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use lru::LruCache;
use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::engine::{Engines, Kind, LiveProgram, Tier};
use crate::modules::compile::Compiler;
use crate::modules::directory::{Directory, Opened};
use crate::modules::known::{Known, KnownPlaces};
use crate::modules::lookup::Found;
use crate::modules::origin::Origin;
use crate::modules::pace::{Pace, Urgency};
use crate::modules::places::{Place, is_settled};
use crate::modules::store::{Store, Used, Verified};
use hearth_base::config::{Baseline, Config};
use hearth_base::digest::Digest;
use hearth_base::error::{Error, Result};
use hearth_base::wanted::Wanted;
use hearth_observe::metrics::{Metrics, Source};

pub mod child;
pub mod compile;
pub mod directory;
pub mod identify;
pub mod inventory;
pub mod known;
pub mod lookup;
pub mod origin;
pub mod pace;
pub mod places;
pub mod store;
pub mod world;

#[cfg(test)]
pub(crate) mod samples;

/// How often a start looks again at bytes that turned out not to be what they were taken for.
const LOOKS_MAX: usize = 3;

/// How long it may take to read a module for the compiler, whose turn it is meanwhile.
const READ_TIME_MAX: Duration = Duration::from_secs(60);

/// How long a module that cannot be compiled is remembered: twice the longest pause kubelet makes
/// between two starts of a container that fails (five minutes).
const REJECTED_FOR: Duration = Duration::from_secs(600);

/// How many such modules are remembered.
const REJECTED_MAX: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// The node's modules.
pub struct ModuleStore {
    rooms: Arc<Rooms>,
}

/// A program and how it was come by.
#[derive(Clone)]
pub struct Loaded {
    /// The program, shared with every other task that runs it.
    pub program: Arc<LiveProgram>,
    /// Of its WebAssembly.
    pub digest: Digest,
    /// The export to call, if the program's name had one.
    pub export: Option<Arc<str>>,
    /// Where it came from.
    pub source: Source,
    /// How long its compile took, the time in the queue included, if there was one.
    pub compile_time: Option<Duration>,
}

/// What all of the store's jobs share.
struct Rooms {
    engines: Arc<Engines>,
    compiler: Compiler,
    store: Store,
    places: KnownPlaces,
    prepared: Mutex<LruCache<Digest, Prepared>>,
    rejected: Mutex<LruCache<Digest, (Instant, Error)>>,
    flights: Mutex<HashMap<(Digest, Depth), Underway>>,
    /// What is being compiled, or waits for it: its name, and since when.
    compiling: Mutex<HashMap<(Digest, Tier), (String, Instant)>>,
    module_bytes_max: u64,
    /// What is started on baseline code.
    baseline: Baseline,
    baseline_bytes_min: u64,
    runtime: Handle,
    metrics: Arc<Metrics>,
}

/// A program kept in memory.
#[derive(Clone)]
struct Prepared {
    digest: Digest,
    program: Arc<LiveProgram>,
    used: Arc<Used>,
    /// What better code is made of, while there is none.
    unoptimised: Option<Arc<Unoptimised>>,
}

impl Prepared {
    fn tier(&self) -> Tier {
        if self.unoptimised.is_some() { Tier::Baseline } else { Tier::Optimised }
    }
}

/// A module that has baseline code only.
struct Unoptimised {
    wasm: Arc<Wasm>,
    /// Whether the optimising compile is under way, and somebody waits for it to put its code in place.
    is_followed: AtomicBool,
}

/// A module in a sealed memory file.
struct Wasm {
    name: String,
    file: File,
    kind: Kind,
}

impl Wasm {
    /// The file, read from its start, whoever else has read it.
    fn open(&self) -> Result<(File, Kind)> {
        let file = File::open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
            .map_err(|e| Error::Internal(format!("cannot read it again from memory: {e}")))?;
        Ok((file, self.kind))
    }
}

/// How far a flight goes for its module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Depth {
    /// To the disk: nobody has the bytes.
    Disk,
    /// To the baseline compiler, and to the other where that has nothing to give.
    Baseline,
    /// To the optimising compiler.
    Optimised,
}

impl Depth {
    /// The least that it is content with.
    fn tier(self) -> Tier {
        match self {
            Depth::Disk | Depth::Baseline => Tier::Baseline,
            Depth::Optimised => Tier::Optimised,
        }
    }
}

/// What a flight brings. None: it went to the disk only, and there was nothing.
type Outcome = Result<Option<Landed>>;

/// Work on one digest that everybody who needs it waits for.
type Flight = Shared<BoxFuture<'static, Outcome>>;

/// A flight, and how fast it goes.
type Underway = (Flight, Arc<Pace>);

/// A flight's result.
#[derive(Clone)]
struct Landed {
    prepared: Prepared,
    source: Source,
    compile_time: Option<Duration>,
}

impl Landed {
    fn warm(prepared: Prepared) -> Landed {
        Landed { prepared, source: Source::Warm, compile_time: None }
    }
}

impl ModuleStore {
    /// Opens the store below `config.root_dir`. Without a usable disk it works from memory.
    ///
    /// # Errors
    /// `FailedPrecondition` if others could have written to the store's directory.
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
            Opened::Disk(directory) => Some(Arc::new(directory)),
            Opened::Unusable(reason) => {
                tracing::warn!(
                    reason,
                    "no module store on disk: every module is compiled again after a restart; see root_dir"
                );
                None
            }
        };
        let limits = &config.modules;
        let rooms = Rooms {
            store: Store::open(directory.clone(), engines.fingerprint(), limits.store_bytes_max, metrics.clone()),
            places: KnownPlaces::open(directory, limits.places_max),
            prepared: Mutex::new(LruCache::sparse(NonZeroUsize::new(limits.prepared_max).unwrap_or(NonZeroUsize::MIN))),
            rejected: Mutex::new(LruCache::sparse(REJECTED_MAX)),
            flights: Mutex::default(),
            compiling: Mutex::default(),
            module_bytes_max: limits.module_bytes_max,
            baseline: if engines.has_baseline() { limits.baseline } else { Baseline::Never },
            baseline_bytes_min: limits.baseline_bytes_min,
            runtime,
            engines,
            compiler,
            metrics,
        };
        Ok(Arc::new(ModuleStore { rooms: Arc::new(rooms) }))
    }

    /// Removes, in the background, what engines have compiled that no daemon uses any more.
    pub fn remove_unused(&self) {
        let rooms = self.rooms.clone();
        self.rooms.runtime.spawn_blocking(move || rooms.store.remove_unused());
    }

    /// The program in `place`, if it is known and prepared. Waits for nothing; about a microsecond.
    pub fn warm(&self, place: &Place) -> Option<Loaded> {
        let Known { digest, export } = self.rooms.places.get(place)?;
        let prepared = self.rooms.prepared(digest, self.rooms.least(export.as_ref()))?;
        Some(Loaded { export, ..self.rooms.loaded(Landed::warm(prepared)) })
    }

    /// The program of `digest`, if it is prepared. As [`ModuleStore::warm`].
    pub fn warm_digest(&self, digest: Digest) -> Option<Loaded> {
        let prepared = self.rooms.prepared(digest, Tier::Baseline)?;
        Some(self.rooms.loaded(Landed::warm(prepared)))
    }

    /// The program in `place` without its file: from memory, or from a compiled artifact on disk. None
    /// if that takes the file.
    ///
    /// # Errors
    /// `InvalidArgument` if the program has an import that Hearth does not offer.
    pub async fn known(&self, place: &Place) -> Result<Option<Loaded>> {
        let Some(Known { digest, export }) = self.rooms.places.get(place) else { return Ok(None) };
        self.known_digest(digest, export).await
    }

    /// The program of `digest`, as [`ModuleStore::known`]; `export`: what of it to call, if that was named.
    ///
    /// # Errors
    /// As [`ModuleStore::known`].
    pub async fn known_digest(&self, digest: Digest, export: Option<Arc<str>>) -> Result<Option<Loaded>> {
        let landed = self.rooms.fly(digest, None, Depth::Disk, Urgency::Start).await?;
        let landed = landed.filter(|landed| landed.prepared.tier() >= self.rooms.least(export.as_ref()));
        Ok(landed.map(|landed| Loaded { export, ..self.rooms.loaded(landed) }))
    }

    /// Finds the program's file in the directory `root`, with the container's volumes mounted in it.
    ///
    /// # Errors
    /// `InvalidArgument` with what was tried, or why a name was refused.
    pub async fn find(&self, root: OwnedFd, wanted: Wanted) -> Result<Found> {
        blocking(&self.rooms.runtime, move || lookup::find(root.as_fd(), &wanted)).await
    }

    /// The program that `origin` is, by the shortest way there is. Remembers that it is what lies in
    /// `place`, if the search for it depended on nothing else.
    ///
    /// # Errors
    /// `InvalidArgument` if it is not WebAssembly, invalid, or has an import that Hearth does not
    /// offer; `ResourceExhausted` if a limit was in its way; `Unavailable` if it changed meanwhile.
    /// Each message starts with the origin's name.
    pub async fn load(&self, origin: Origin, place: Option<Place>) -> Result<Loaded> {
        self.load_with(origin, place, Urgency::Start).await
    }

    /// As [`ModuleStore::load`], while nobody waits: a compile has what others leave, until a start waits
    /// for it. What comes of it is optimised code.
    ///
    /// # Errors
    /// As [`ModuleStore::load`].
    pub async fn load_ahead(&self, origin: Origin, place: Option<Place>) -> Result<Loaded> {
        self.load_with(origin, place, Urgency::Ahead).await
    }

    async fn load_with(&self, origin: Origin, place: Option<Place>, urgency: Urgency) -> Result<Loaded> {
        let origin = Arc::new(origin);
        let named = |e: Error| e.context(origin.name());
        let (export, place) = match &*origin {
            Origin::File(found) => (found.export.clone(), place.filter(|_| found.on_root_mount)),
            Origin::Layer { export, .. } => (export.clone(), place),
        };
        let mut looks = 0..LOOKS_MAX;
        let (read, landed) = loop {
            let belief = if looks.next() == Some(0) { Belief::InPlaces } else { Belief::InBytes };
            let (rooms, opened) = (self.rooms.clone(), origin.clone());
            let read = move || rooms.read(&opened, belief, SystemTime::now());
            let read = blocking(&self.rooms.runtime, read).await.map_err(named)?;
            let depth = match urgency {
                Urgency::Start => self.rooms.depth(export.as_ref(), read.bytes),
                Urgency::Ahead => Depth::Optimised,
            };
            let material = Material::Origin { origin: origin.clone(), is_read: read.is_read };
            match self.rooms.fly(read.digest, Some(material), depth, urgency).await {
                // The file changed, or its place was believed wrongly, or it is another's file of the
                // same digest, whose flight we joined, that changed.
                Err(Error::Unavailable(_)) if !looks.is_empty() => {}
                landed => break (read, landed.map_err(named)?),
            }
        };
        let landed = landed.ok_or_else(|| Error::Internal("a flight with bytes came back with nothing".into()))?;
        let lessons: Vec<_> = [(place, export.clone()), (read.lesson, None)]
            .into_iter()
            .filter_map(|(place, export)| Some((place?, Known { digest: read.digest, export })))
            .filter(|(place, known)| self.rooms.places.get(place).as_ref() != Some(known))
            .collect();
        if !lessons.is_empty() {
            let rooms = self.rooms.clone();
            let learn = move || {
                lessons.into_iter().for_each(|(place, known)| rooms.places.learn(place, known));
                Ok(())
            };
            blocking(&self.rooms.runtime, learn).await?;
        }
        Ok(Loaded { export, ..self.rooms.loaded(landed) })
    }
}

async fn blocking<T: Send + 'static>(runtime: &Handle, job: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let ended = |e| Error::Internal(format!("reading a module ended early: {e}"));
    runtime.spawn_blocking(job).await.map_err(ended)?
}

/// A module's place in the list of those that are being compiled; taken off on drop.
struct Compiling<'a>(&'a Rooms, (Digest, Tier));

impl Compiling<'_> {
    fn list<'a>(rooms: &'a Rooms, digest: Digest, tier: Tier, name: &str) -> Compiling<'a> {
        rooms.compiling.lock().insert((digest, tier), (name.to_string(), Instant::now()));
        Compiling(rooms, (digest, tier))
    }
}

impl Drop for Compiling<'_> {
    fn drop(&mut self) {
        self.0.compiling.lock().remove(&self.1);
    }
}

/// What a look at an origin told.
struct Read {
    digest: Digest,
    /// How many bytes there are.
    bytes: u64,
    /// Whether its bytes were read for that.
    is_read: bool,
    /// The file's own place, if its content has just been found out and will stay so.
    lesson: Option<Place>,
}

/// What a look at an origin believes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Belief {
    /// What was learnt about its place, if anything was.
    InPlaces,
    /// Its bytes only.
    InBytes,
}

/// What a flight to the compiler takes along.
enum Material {
    /// What to read.
    Origin {
        origin: Arc<Origin>,
        /// Whether it was read, and counted as such, before.
        is_read: bool,
    },
    /// What was read for the baseline compiler.
    Memory(Arc<Wasm>),
}

impl Material {
    fn name(&self) -> &str {
        match self {
            Material::Origin { origin, .. } => origin.name(),
            Material::Memory(wasm) => &wasm.name,
        }
    }
}

impl Rooms {
    /// The program of `digest`: one in memory that is good enough, or by the flight that goes so far.
    async fn fly(
        self: &Arc<Self>,
        digest: Digest,
        material: Option<Material>,
        depth: Depth,
        urgency: Urgency,
    ) -> Outcome {
        if let Some(prepared) = self.prepared(digest, depth.tier()) {
            return Ok(Some(Landed::warm(prepared)));
        }
        self.join(digest, material, depth, urgency).await
    }

    /// Joins the flight for `digest`, or starts it.
    fn join(self: &Arc<Self>, digest: Digest, material: Option<Material>, depth: Depth, urgency: Urgency) -> Flight {
        let (flight, pace) = {
            let mut flights = self.flights.lock();
            let start = || {
                let pace = Pace::new(urgency);
                (self.start_flight(digest, depth, material, pace.clone()), pace)
            };
            flights.entry((digest, depth)).or_insert_with(start).clone()
        };
        if urgency == Urgency::Start {
            pace.hurry();
        }
        flight
    }

    fn start_flight(
        self: &Arc<Self>,
        digest: Digest,
        depth: Depth,
        material: Option<Material>,
        pace: Arc<Pace>,
    ) -> Flight {
        /// Takes the flight off the list, also when it crashes.
        struct Listed(Arc<Rooms>, (Digest, Depth));
        impl Drop for Listed {
            fn drop(&mut self) {
                self.0.flights.lock().remove(&self.1);
            }
        }
        let listed = Listed(self.clone(), (digest, depth));
        let rooms = self.clone();
        let job = self.runtime.spawn(async move {
            let outcome = rooms.bring(digest, depth, material, &pace).await;
            // First it is prepared, then the flight ends: who comes in between finds the one or the other.
            drop(listed);
            outcome
        });
        let ended = |e| Error::Internal(format!("preparing a module ended early: {e}"));
        job.map(move |outcome| outcome.map_err(ended)?).boxed().shared()
    }

    /// The least that a start is content with. A function that is called by its name is called once, like a
    /// command, whatever else the component is.
    fn least(&self, export: Option<&Arc<str>>) -> Tier {
        if export.is_some() && self.baseline != Baseline::All { Tier::Optimised } else { Tier::Baseline }
    }

    /// How far a start of a file of so many bytes goes.
    fn depth(&self, export: Option<&Arc<str>>, bytes: u64) -> Depth {
        let is_worth_it = self.baseline != Baseline::Never && bytes >= self.baseline_bytes_min;
        if is_worth_it && self.least(export) == Tier::Baseline { Depth::Baseline } else { Depth::Optimised }
    }

    /// What is prepared for `digest`, if it is good enough. If there should be better code and nobody makes it
    /// (it has failed before), somebody does now.
    fn prepared(self: &Arc<Self>, digest: Digest, least: Tier) -> Option<Prepared> {
        let prepared = self.prepared.lock().get(&digest)?.clone();
        prepared.used.now();
        self.optimise(&prepared);
        Some(prepared).filter(|prepared| prepared.tier() >= least)
    }

    /// Has optimised code made for what has none, when nobody else computes, and puts it in its place. Once for
    /// all that call it.
    fn optimise(self: &Arc<Self>, prepared: &Prepared) {
        let Some(unoptimised) = prepared.unoptimised.clone() else { return };
        if unoptimised.is_followed.swap(true, Ordering::AcqRel) {
            return;
        }
        let (rooms, digest, program) = (self.clone(), prepared.digest, prepared.program.clone());
        // It may be under way, ahead of the start.
        let material = Material::Memory(unoptimised.wasm.clone());
        let flight = self.join(digest, Some(material), Depth::Optimised, Urgency::Ahead);
        self.runtime.spawn(async move {
            let name = &unoptimised.wasm.name;
            match flight.await {
                Ok(Some(landed)) => {
                    // The last one that holds the old code unmaps it, which may be this one.
                    let replace = move || {
                        program.replace(landed.prepared.program.now());
                        Ok(())
                    };
                    if blocking(&rooms.runtime, replace).await.is_ok() {
                        rooms.metrics.modules.swaps.with_label_values(&["done"]).inc();
                        tracing::debug!(module = %digest, name, "optimised code has taken the place of baseline code");
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    rooms.metrics.modules.swaps.with_label_values(&["failed"]).inc();
                    tracing::warn!(module = %digest, name, %error, "a module stays on baseline code, which is slower: it cannot be optimised; the next start tries again");
                    unoptimised.is_followed.store(false, Ordering::Release);
                }
            }
        });
    }

    fn loaded(&self, landed: Landed) -> Loaded {
        self.metrics.modules.lookup(landed.source);
        Loaded {
            program: landed.prepared.program,
            digest: landed.prepared.digest,
            export: None,
            source: landed.source,
            compile_time: landed.compile_time,
        }
    }

    /// What `origin` hashes to; read only if its place does not tell. Blocks.
    fn read(&self, origin: &Origin, belief: Belief, now: SystemTime) -> Result<Read> {
        let place = match origin {
            Origin::File(found) => Place::of_file(&found.file),
            Origin::Layer { .. } => None,
        };
        if belief == Belief::InPlaces
            && let Some(Known { digest, .. }) = place.and_then(|place| self.places.get(&place))
        {
            return Ok(Read { digest, bytes: origin.length()?, is_read: false, lesson: None });
        }
        self.metrics.modules.reads.inc();
        let scanned = origin.scan(self.module_bytes_max)?;
        let lesson = match origin {
            // Unchanged while it was read, and long enough before that a change would show.
            Origin::File(found) if Place::of_file(&found.file) == place && is_settled(&found.file, now) => place,
            _ => None,
        };
        Ok(Read { digest: scanned.digest, bytes: scanned.bytes, is_read: true, lesson })
    }

    /// The work of a flight.
    async fn bring(
        self: &Arc<Self>,
        digest: Digest,
        depth: Depth,
        material: Option<Material>,
        pace: &Arc<Pace>,
    ) -> Outcome {
        // Somebody's flight may have landed since its caller looked.
        if let Some(prepared) = self.prepared(digest, depth.tier()) {
            return Ok(Some(Landed::warm(prepared)));
        }
        let rooms = self.clone();
        if let Some(prepared) = blocking(&self.runtime, move || rooms.take_from_disk(digest)).await? {
            return Ok(Some(Landed { prepared, source: Source::Disk, compile_time: None }));
        }
        let Some(material) = material else { return Ok(None) };
        if let Some(error) = self.rejected(digest, Instant::now()) {
            return Err(error);
        }
        match depth {
            Depth::Baseline => self.compile_baseline(digest, material, pace).await,
            Depth::Disk | Depth::Optimised => self.compile(digest, material, pace).await,
        }
    }

    /// Compiles and keeps it, on the disk too.
    async fn compile(self: &Arc<Self>, digest: Digest, material: Material, pace: &Arc<Pace>) -> Outcome {
        let began = Instant::now();
        let compiled = {
            let _listed = Compiling::list(self, digest, Tier::Optimised, material.name());
            let wasm = async { self.wasm(digest, material).await?.open() };
            self.compiler.compile(wasm, pace).await
        };
        // Only of the compiler's own finding: `wasm` says nothing of this kind.
        let (artifact, kind) = compiled.inspect_err(|error| {
            if matches!(error, Error::InvalidArgument(_)) {
                self.reject(digest, error.clone(), Instant::now());
            }
        })?;
        let compile_time = Some(began.elapsed());
        let rooms = self.clone();
        let prepare = move || {
            let stored = rooms.store.put(digest, kind, artifact);
            rooms.prepare(digest, stored, None).inspect_err(|error| {
                // Compiling it again would only give the same.
                if matches!(error, Error::Internal(_)) {
                    rooms.store.discard(digest, &error.to_string());
                    rooms.reject(digest, error.clone(), Instant::now());
                }
            })
        };
        let prepared = blocking(&self.runtime, prepare).await?;
        Ok(Some(Landed { prepared, source: Source::Compiled, compile_time }))
    }

    /// Compiles with the baseline compiler, and has better code made after that; where there is no baseline
    /// code to be had, waits for the better at once.
    async fn compile_baseline(self: &Arc<Self>, digest: Digest, material: Material, pace: &Arc<Pace>) -> Outcome {
        let began = Instant::now();
        let name = material.name().to_string();
        let mut read = None;
        let compiled = {
            let _listed = Compiling::list(self, digest, Tier::Baseline, &name);
            let wasm = async {
                let wasm = self.wasm(digest, material).await?;
                read = Some(wasm.clone());
                if wasm.kind == Kind::Core && self.baseline == Baseline::Services {
                    return Err(Error::FailedPrecondition("it is no component".into()));
                }
                wasm.open()
            };
            self.compiler.compile_baseline(wasm, pace).await
        };
        let (error, wasm) = match (compiled, read) {
            (Ok((artifact, kind)), Some(wasm)) => {
                let (rooms, wasm_too) = (self.clone(), wasm.clone());
                let unoptimised = Arc::new(Unoptimised { wasm: wasm_too, is_followed: AtomicBool::new(false) });
                let prepare = move || rooms.prepare(digest, Verified::in_memory(artifact, kind), Some(unoptimised));
                match blocking(&self.runtime, prepare).await {
                    Ok(prepared) => {
                        self.optimise(&prepared);
                        let compile_time = Some(began.elapsed());
                        return Ok(Some(Landed { prepared, source: Source::Compiled, compile_time }));
                    }
                    // What is wrong with its imports the other compiler does not mend, but it is its finding that
                    // is kept on the disk.
                    Err(error) => (error, wasm),
                }
            }
            (Err(error), Some(wasm)) => (error, wasm),
            // It could not be read, or its turn did not come.
            (Err(error), None) => return Err(error),
            (Ok(_), None) => return Err(Error::Internal("a module was compiled before it was read".into())),
        };
        tracing::debug!(module = %digest, name, %error, "there is no baseline code for a module");
        let landed = self.fly(digest, Some(Material::Memory(wasm)), Depth::Optimised, Urgency::Start).await?;
        Ok(landed.map(|landed| match landed.source {
            Source::Compiled => Landed { compile_time: Some(began.elapsed()), ..landed },
            Source::Warm | Source::Disk => landed,
        }))
    }

    /// The bytes for the compiler. A volume that hangs has its time, then the compiler's turn is the
    /// next one's.
    async fn wasm(&self, digest: Digest, material: Material) -> Result<Arc<Wasm>> {
        let (origin, is_read) = match material {
            Material::Memory(wasm) => return Ok(wasm),
            Material::Origin { origin, is_read } => (origin, is_read),
        };
        if !is_read {
            self.metrics.modules.reads.inc();
        }
        let bytes_max = self.module_bytes_max;
        let read = blocking(&self.runtime, move || {
            let (file, kind) = origin.to_memory(digest, bytes_max)?;
            Ok(Arc::new(Wasm { name: origin.name().to_string(), file, kind }))
        });
        let late = |_| Error::Internal(format!("it could not be read within {} seconds", READ_TIME_MAX.as_secs()));
        tokio::time::timeout(READ_TIME_MAX, read).await.map_err(late)?
    }

    /// Prepares an artifact from the disk, if there is one that is good. Blocks.
    fn take_from_disk(&self, digest: Digest) -> Result<Option<Prepared>> {
        let Some(verified) = self.store.get(digest) else { return Ok(None) };
        match self.prepare(digest, verified, None) {
            Ok(prepared) => Ok(Some(prepared)),
            // wasmtime does not take what our code says is whole.
            Err(Error::Internal(why)) => {
                self.store.discard(digest, &why);
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// Maps and links a verified artifact, which is baseline code if better is to be made of what is
    /// `unoptimised`, and keeps it. Blocks.
    #[allow(unsafe_code, reason = "the one place where artifacts become code; see the comment")]
    fn prepare(&self, digest: Digest, artifact: Verified, unoptimised: Option<Arc<Unoptimised>>) -> Result<Prepared> {
        let Verified { file, kind, used } = artifact;
        let tier = if unoptimised.is_some() { Tier::Baseline } else { Tier::Optimised };
        // SAFETY: a `Verified` holds either the open file whose bytes the store has just checked
        // against a code made with root's own key, which it gives only to what the compile process
        // wrote; or a sealed memory file with such bytes. Nobody can write to the latter. The former
        // lies in a directory that is root's alone, in which files are replaced and removed but never
        // written to or truncated, which holds for the open file as long as it is mapped.
        let program = unsafe { self.engines.load(file, kind, tier) }.map_err(|error| match error {
            // No descriptors, mappings or memory left: that says nothing about the artifact.
            Error::Internal(text) if text.contains("(os error ") => {
                Error::ResourceExhausted(format!("no room to map the compiled module: {text}"))
            }
            error => error,
        })?;
        let prepared = Prepared { digest, program: Arc::new(LiveProgram::new(program)), used, unoptimised };
        let (kept, evicted) = {
            let mut all = self.prepared.lock();
            // A flight to the disk and one to the compiler may both have been under way.
            match all.get(&digest).cloned() {
                Some(first) if first.tier() >= prepared.tier() => (first, Some((digest, prepared))),
                _ => (prepared.clone(), all.push(digest, prepared)),
            }
        };
        // Its mappings go with its last task; not under the lock.
        drop(evicted);
        self.metrics.modules.prepared.set(self.prepared.lock().len() as i64);
        Ok(kept)
    }

    /// Why a module was rejected a while ago.
    fn rejected(&self, digest: Digest, now: Instant) -> Option<Error> {
        let mut rejected = self.rejected.lock();
        let (since, error) = rejected.get(&digest)?;
        if now.duration_since(*since) < REJECTED_FOR {
            return Some(error.clone());
        }
        rejected.pop(&digest);
        None
    }

    fn reject(&self, digest: Digest, error: Error, now: Instant) {
        self.rejected.lock().put(digest, (now, error));
    }
}

impl Drop for Rooms {
    fn drop(&mut self) {
        self.store.save_times();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::FileExt;
    use std::path::{Path, PathBuf};

    use tokio::sync::OwnedSemaphorePermit;

    use super::*;
    use crate::modules::places::RootMount;
    use hearth_os::memfd;

    /// A node with a root file system; each [`Node::daemon`] is a life of the daemon.
    struct Node {
        directory: tempfile::TempDir,
        config: Config,
    }

    /// One life of the daemon.
    struct Daemon {
        modules: Arc<ModuleStore>,
        metrics: Arc<Metrics>,
        rootfs: PathBuf,
    }

    impl Node {
        fn new() -> Node {
            let directory = tempfile::tempdir().unwrap();
            let mut config = Config { root_dir: directory.path().join("lib"), ..Config::default() };
            config.engine.pool_slots = 2;
            for name in ["rootfs", "layer", "up"] {
                fs::create_dir(directory.path().join(name)).unwrap();
            }
            Node { directory, config }
        }

        fn daemon(&self) -> Daemon {
            let metrics = Arc::new(Metrics::new());
            let engines = Arc::new(Engines::new(&self.config.engine, self.config.modules.baseline).unwrap());
            let modules = ModuleStore::open(&self.config, engines, metrics.clone(), Handle::current()).unwrap();
            Daemon { modules, metrics, rootfs: self.directory.path().join("rootfs") }
        }

        /// The place of `/app.wasm` in a snapshot.
        fn place(&self) -> Place {
            let at = |name: &str| self.directory.path().join(name).display().to_string();
            let options = [format!("lowerdir={}", at("layer")), format!("upperdir={}", at("up"))];
            Place::of_snapshot(&[RootMount { fstype: "overlay", options: &options }], &wanted("/app.wasm"), &[])
                .unwrap()
        }

        fn artifacts(&self) -> Vec<PathBuf> {
            let files = fs::read_dir(self.config.root_dir.join("modules")).unwrap().map(|entry| entry.unwrap().path());
            files.filter(|path| path.extension().is_some_and(|extension| extension == "artifact")).collect()
        }
    }

    fn wanted(program: &str) -> Wanted {
        Wanted { program: program.into(), path: None, cwd: "/".into() }
    }

    impl Daemon {
        fn write(&self, wasm: &[u8]) {
            fs::write(self.rootfs.join("app.wasm"), wasm).unwrap();
        }

        async fn find(&self, program: &str) -> Origin {
            let root = fs::File::open(&self.rootfs).unwrap();
            Origin::File(self.modules.find(root.into(), wanted(program)).await.unwrap())
        }

        /// Starts `/app.wasm`, by the root's own file.
        async fn load(&self, place: Option<Place>) -> Result<Loaded> {
            let origin = self.find("/app.wasm").await;
            self.modules.load(origin, place).await
        }

        async fn layer(&self, wasm: Vec<u8>) -> Result<Loaded> {
            self.modules.load(image(wasm), None).await
        }

        fn compiles(&self, result: &str) -> u64 {
            self.metrics.compiles.results.with_label_values(&[result]).get()
        }

        fn reads(&self) -> u64 {
            self.metrics.modules.reads.get()
        }
    }

    /// A Wasm artifact.
    fn image(wasm: Vec<u8>) -> Origin {
        Origin::Layer { name: "image:1".into(), digest: Digest::of(&wasm), bytes: wasm.into(), export: None }
    }

    fn text(result: Result<Loaded>) -> String {
        match result {
            Ok(_) => panic!("it was loaded"),
            Err(error) => {
                let text = error.to_string();
                assert!(!text.contains('\n'), "{text}");
                text
            }
        }
    }

    #[tokio::test]
    async fn the_second_start_reads_and_compiles_nothing_after_a_restart_neither() {
        let node = Node::new();
        let place = node.place();
        let daemon = node.daemon();
        daemon.write(&samples::command(1));
        assert!(daemon.modules.warm(&place).is_none());
        assert!(daemon.modules.known(&place).await.unwrap().is_none());
        let first = daemon.load(Some(place)).await.unwrap();
        assert_eq!(first.source, Source::Compiled);
        assert!(first.compile_time.is_some_and(|time| time > Duration::ZERO));
        assert_eq!((daemon.reads(), daemon.compiles("ok")), (1, 1));
        let second = daemon.modules.warm(&place).unwrap();
        assert_eq!((second.source, second.compile_time), (Source::Warm, None));
        assert!(Arc::ptr_eq(&first.program, &second.program));
        assert_eq!((daemon.reads(), daemon.compiles("ok")), (1, 1));
        assert_eq!(daemon.metrics.modules.prepared.get(), 1);

        fs::remove_file(daemon.rootfs.join("app.wasm")).unwrap();
        let daemon = node.daemon();
        assert!(daemon.modules.warm(&place).is_none());
        let known = daemon.modules.known(&place).await.unwrap().unwrap();
        assert_eq!((known.source, known.compile_time), (Source::Disk, None));
        assert!(daemon.modules.warm(&place).is_some());
        assert_eq!((daemon.reads(), daemon.compiles("ok")), (0, 0));
        let text = daemon.metrics.render();
        assert!(text.contains("hearth_module_lookups_total{source=\"disk\"} 1"), "{text}");
        assert!(text.contains("hearth_module_lookups_total{source=\"warm\"} 1"), "{text}");
    }

    #[tokio::test]
    async fn an_export_belongs_to_its_place() {
        let node = Node::new();
        let daemon = node.daemon();
        daemon.write(&samples::command(1));
        let (plain, named) = (Place([1; 32]), Place([2; 32]));
        assert_eq!(daemon.load(Some(plain)).await.unwrap().export, None);
        let origin = daemon.find("/app.wasm#run").await;
        assert_eq!(daemon.modules.load(origin, Some(named)).await.unwrap().export.as_deref(), Some("run"));
        for daemon in [daemon, node.daemon()] {
            assert_eq!(daemon.modules.known(&plain).await.unwrap().unwrap().export, None);
            assert_eq!(daemon.modules.known(&named).await.unwrap().unwrap().export.as_deref(), Some("run"));
        }
    }

    #[tokio::test]
    async fn a_search_that_met_a_volume_is_not_remembered_for_the_snapshot() {
        let node = Node::new();
        let daemon = node.daemon();
        daemon.write(&samples::command(1));
        let Origin::File(found) = daemon.find("/app.wasm").await else { unreachable!() };
        let place = node.place();
        let origin = Origin::File(Found { on_root_mount: false, ..found });
        daemon.modules.load(origin, Some(place)).await.unwrap();
        assert!(daemon.modules.warm(&place).is_none());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn fifty_at_once_are_one_compile() {
        let node = Node::new();
        let daemon = node.daemon();
        daemon.write(&samples::command(1));
        let loads: Vec<_> = (0..50)
            .map(|number| {
                let modules = daemon.modules.clone();
                let root = fs::File::open(&daemon.rootfs).unwrap();
                // Half of them as a layer of an image: it is the bytes that count.
                tokio::spawn(async move {
                    let origin = match number % 2 {
                        0 => Origin::File(modules.find(root.into(), wanted("/app.wasm")).await?),
                        _ => {
                            let wasm = samples::command(1);
                            Origin::Layer {
                                name: "image:1".into(),
                                digest: Digest::of(&wasm),
                                bytes: wasm.into(),
                                export: None,
                            }
                        }
                    };
                    modules.load(origin, None).await
                })
            })
            .collect();
        let mut programs = Vec::new();
        for load in loads {
            programs.push(load.await.unwrap().unwrap().program);
        }
        assert_eq!(daemon.compiles("ok"), 1);
        assert!(programs.iter().all(|program| Arc::ptr_eq(program, &programs[0])));
        assert_eq!(node.artifacts().len(), 1);
        assert!(daemon.modules.rooms.flights.lock().is_empty());

        // The same for an artifact on the disk.
        let daemon = node.daemon();
        let digest = Digest::of(&samples::command(1));
        let loads: Vec<_> = (0..50)
            .map(|_| {
                let modules = daemon.modules.clone();
                tokio::spawn(async move { modules.known_digest(digest, None).await })
            })
            .collect();
        let mut programs = Vec::new();
        for load in loads {
            programs.push(load.await.unwrap().unwrap().unwrap().program);
        }
        assert!(programs.iter().all(|program| Arc::ptr_eq(program, &programs[0])));
    }

    #[tokio::test]
    async fn a_caller_that_goes_away_stops_nothing() {
        let node = Node::new();
        let daemon = node.daemon();
        daemon.write(&samples::command(1));
        let origin = daemon.find("/app.wasm").await;
        {
            let load = daemon.modules.load(origin, None);
            tokio::pin!(load);
            // Until the flight has started.
            while daemon.modules.rooms.flights.lock().is_empty() {
                assert!(futures_util::poll!(&mut load).is_pending());
                tokio::task::yield_now().await;
            }
        }
        daemon.load(None).await.unwrap();
        assert_eq!(daemon.compiles("ok"), 1);
    }

    #[tokio::test]
    async fn core_modules_and_components_are_told_apart() {
        let node = Node::new();
        for daemon in [node.daemon(), node.daemon()] {
            let core = daemon.layer(samples::command(1)).await.unwrap();
            let component = daemon.layer(samples::component()).await.unwrap();
            assert_eq!((core.program.now().kind(), component.program.now().kind()), (Kind::Core, Kind::Component));
        }
        assert_eq!(node.artifacts().len(), 2);
    }

    #[tokio::test]
    async fn a_damaged_artifact_is_compiled_again() {
        let node = Node::new();
        drop(node.daemon().layer(samples::command(1)).await.unwrap());
        let artifact = &node.artifacts()[0];
        let file = fs::OpenOptions::new().write(true).open(artifact).unwrap();
        file.write_all_at(b"\x90", file.metadata().unwrap().len() / 2).unwrap();
        let daemon = node.daemon();
        assert_eq!(daemon.layer(samples::command(1)).await.unwrap().source, Source::Compiled);
        assert_eq!((daemon.metrics.store.damaged.get(), daemon.compiles("ok")), (1, 1));
        assert_eq!(node.daemon().layer(samples::command(1)).await.unwrap().source, Source::Disk);
    }

    #[tokio::test]
    async fn an_artifact_that_wasmtime_refuses_is_compiled_again() {
        let node = Node::new();
        let daemon = node.daemon();
        let wasm = samples::command(1);
        let memory = memfd::create("test").unwrap();
        memory.write_all_at(b"no code at all", 0).unwrap();
        daemon.modules.rooms.store.put(Digest::of(&wasm), Kind::Core, memory);
        assert_eq!(daemon.layer(wasm).await.unwrap().source, Source::Compiled);
        assert_eq!(daemon.metrics.store.damaged.get(), 1);
        assert_eq!(node.artifacts().len(), 1);
    }

    #[tokio::test]
    async fn an_invalid_module_is_named_and_compiled_once() {
        let node = Node::new();
        let daemon = node.daemon();
        daemon.write(&samples::invalid());
        for _ in 0..3 {
            let error = text(daemon.load(None).await);
            assert!(
                error.starts_with("/app.wasm: it cannot be compiled: ") && error.contains("type mismatch"),
                "{error}"
            );
        }
        let error = text(daemon.layer(samples::invalid()).await);
        assert!(error.starts_with("image:1: it cannot be compiled: "), "{error}");
        assert_eq!(daemon.compiles("invalid"), 1);
        // Not for ever.
        let (rooms, digest) = (&daemon.modules.rooms, Digest::of(&samples::invalid()));
        let later = Instant::now() + REJECTED_FOR;
        assert!(rooms.rejected(digest, Instant::now()).is_some());
        assert!(rooms.rejected(digest, later).is_none());
        text(daemon.load(None).await);
        assert_eq!(daemon.compiles("invalid"), 2);
    }

    #[tokio::test]
    async fn a_limit_that_was_reached_is_tried_again() {
        let mut node = Node::new();
        node.config.modules.artifact_bytes_max = 100;
        let daemon = node.daemon();
        for _ in 0..2 {
            let Err(Error::ResourceExhausted(text)) = daemon.layer(samples::command(1)).await else { panic!() };
            assert!(text.starts_with("image:1: ") && text.contains("modules.artifact_bytes_max"), "{text}");
        }
        assert_eq!(daemon.compiles("limit"), 2);
    }

    #[tokio::test]
    async fn an_unknown_import_is_named_and_its_artifact_kept() {
        let node = Node::new();
        for daemon in [node.daemon(), node.daemon()] {
            let error = text(daemon.layer(samples::unknown_import()).await);
            assert!(error.contains("moon") && error.contains("landing"), "{error}");
        }
        assert_eq!(node.artifacts().len(), 1);
        assert_eq!(node.daemon().metrics.store.damaged.get(), 0);
    }

    #[tokio::test]
    async fn what_is_not_wasm_is_refused_before_a_process_is_started() {
        let daemon = Node::new().daemon();
        let error = text(daemon.layer(b"#!/bin/sh\n".to_vec()).await);
        assert!(error.starts_with("image:1: it is a script"), "{error}");
        let metrics = daemon.metrics.render();
        assert!(metrics.contains("hearth_compile_seconds_count 0"), "{metrics}");
    }

    #[tokio::test]
    async fn without_a_disk_it_runs_from_memory() {
        let mut node = Node::new();
        node.config.root_dir = Path::new("/proc/hearth").into();
        let daemon = node.daemon();
        let place = Place([1; 32]);
        daemon.write(&samples::command(1));
        assert_eq!(daemon.load(Some(place)).await.unwrap().source, Source::Compiled);
        assert_eq!(daemon.metrics.store.write_failures.get(), 1);
        assert!(daemon.modules.warm(&place).is_some());
    }

    #[tokio::test]
    async fn programs_in_memory_are_bounded_and_those_in_use_live_on() {
        let mut node = Node::new();
        node.config.modules.prepared_max = 1;
        let daemon = node.daemon();
        let first = daemon.layer(samples::command(1)).await.unwrap();
        daemon.layer(samples::command(2)).await.unwrap();
        assert_eq!(daemon.metrics.modules.prepared.get(), 1);
        assert_eq!(first.program.now().kind(), Kind::Core);
        let again = daemon.layer(samples::command(1)).await.unwrap();
        assert_eq!((again.source, daemon.compiles("ok")), (Source::Disk, 2));
    }

    #[tokio::test]
    async fn a_file_is_read_once_when_it_is_old_enough() {
        let node = Node::new();
        let daemon = node.daemon();
        daemon.write(&samples::command(1));
        let rooms = &daemon.modules.rooms;
        let origin = daemon.find("/app.wasm").await;
        let Origin::File(found) = &origin else { unreachable!() };
        let Some(place) = Place::of_file(&found.file) else { return };
        let now = SystemTime::now();
        assert_eq!(
            rooms.read(&origin, Belief::InPlaces, now).unwrap().lesson,
            None,
            "it may change within the same instant"
        );
        let read = rooms.read(&origin, Belief::InPlaces, now + Duration::from_secs(10)).unwrap();
        assert_eq!(read.lesson, Some(place));
        rooms.places.learn(place, Known { digest: read.digest, export: None });
        let reads = daemon.reads();
        daemon.modules.load(origin, None).await.unwrap();
        assert_eq!(daemon.reads(), reads + 1, "for the compiler");
        daemon.load(None).await.unwrap();
        assert_eq!(daemon.reads(), reads + 1);
    }

    #[tokio::test]
    async fn what_is_wrongly_known_of_a_file_is_corrected() {
        let node = Node::new();
        let daemon = node.daemon();
        daemon.write(&samples::command(1));
        let Origin::File(found) = daemon.find("/app.wasm").await else { unreachable!() };
        let Some(place) = Place::of_file(&found.file) else { return };
        daemon.modules.rooms.places.learn(place, Known { digest: Digest([7; 32]), export: None });
        let loaded = daemon.modules.load(Origin::File(found), None).await.unwrap();
        assert_eq!(loaded.source, Source::Compiled);
        assert!(daemon.modules.warm_digest(Digest::of(&samples::command(1))).is_some());
        assert!(daemon.modules.warm_digest(Digest([7; 32])).is_none());
    }

    #[tokio::test]
    async fn a_file_that_changes_under_way_harms_no_other_of_the_same_digest() {
        let node = Node::new();
        let daemon = node.daemon();
        let wasm = samples::command(1);
        let digest = Digest::of(&wasm);
        daemon.write(b"#!/bin/sh\n");
        let origin = Arc::new(daemon.find("/app.wasm").await);
        let changed = daemon
            .modules
            .rooms
            .fly(digest, Some(Material::Origin { origin, is_read: true }), Depth::Optimised, Urgency::Start)
            .await;
        assert!(matches!(changed, Err(Error::Unavailable(_))));
        assert_eq!(daemon.layer(wasm).await.unwrap().source, Source::Compiled, "it is not taken for a script");
    }

    /// A node on which even a service of a few bytes is worth baseline code.
    fn node_with(baseline: Baseline) -> Node {
        let mut node = Node::new();
        node.config.modules.baseline = baseline;
        node.config.modules.baseline_bytes_min = 1;
        node
    }

    impl Daemon {
        /// Has optimising compiles that no start waits for wait for us.
        async fn hold_optimising(&self) -> OwnedSemaphorePermit {
            self.modules.rooms.compiler.ahead_turn.clone().acquire_owned().await.unwrap()
        }

        async fn ahead(&self, wasm: Vec<u8>) -> Result<Loaded> {
            self.modules.load_ahead(image(wasm), None).await
        }

        fn baseline_compiles(&self, result: &str) -> u64 {
            self.metrics.compiles.baseline_results.with_label_values(&[result]).get()
        }

        /// Of all results.
        fn baseline_processes(&self) -> u64 {
            self.metrics.compiles.baseline_seconds.get_sample_count()
        }

        fn swaps(&self, result: &str) -> u64 {
            self.metrics.modules.swaps.with_label_values(&[result]).get()
        }

        /// Waits until so many modules have other code, or will not get it.
        async fn wait_for_swaps(&self, result: &str, count: u64) {
            while self.swaps(result) < count {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    fn tier(loaded: &Loaded) -> Tier {
        loaded.program.now().tier()
    }

    #[tokio::test]
    async fn a_service_starts_on_baseline_code_and_is_given_better_code_once() {
        let node = node_with(Baseline::Services);
        let daemon = node.daemon();
        let place = node.place();
        daemon.write(&samples::service());
        let optimising = daemon.hold_optimising().await;
        let first = daemon.load(Some(place)).await.unwrap();
        assert_eq!((first.source, tier(&first)), (Source::Compiled, Tier::Baseline));
        assert!(first.compile_time.is_some_and(|time| time > Duration::ZERO));
        assert!(!first.program.now().fits_pool());
        // Ten more while it has nothing better.
        for _ in 0..5 {
            let warm = daemon.modules.warm(&place).unwrap();
            assert!(Arc::ptr_eq(&first.program, &warm.program));
            assert!(Arc::ptr_eq(&first.program, &daemon.load(None).await.unwrap().program));
        }
        assert_eq!((daemon.baseline_compiles("ok"), daemon.compiles("ok"), daemon.swaps("done")), (1, 0, 0));
        assert!(daemon.modules.inventory().compiled[0].baseline);
        assert_eq!(daemon.modules.inventory().compiling.len(), 1);
        assert_eq!(node.artifacts().len(), 0, "baseline code is in memory only");
        let old = Arc::downgrade(&first.program.now());

        drop(optimising);
        daemon.wait_for_swaps("done", 1).await;
        assert_eq!(tier(&first), Tier::Optimised);
        assert!(first.program.now().fits_pool());
        assert!(old.upgrade().is_none(), "nobody holds the baseline code any more");
        let warm = daemon.modules.warm(&place).unwrap();
        assert_eq!((warm.source, tier(&warm)), (Source::Warm, Tier::Optimised));
        assert!(!daemon.modules.inventory().compiled[0].baseline);
        assert_eq!((daemon.baseline_compiles("ok"), daemon.compiles("ok"), daemon.swaps("done")), (1, 1, 1));
        assert_eq!((node.artifacts().len(), daemon.metrics.modules.prepared.get()), (1, 1));

        let daemon = node.daemon();
        let known = daemon.modules.known(&place).await.unwrap().unwrap();
        assert_eq!((known.source, tier(&known)), (Source::Disk, Tier::Optimised));
        assert_eq!((daemon.baseline_processes(), daemon.compiles("ok")), (0, 0));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn fifty_starts_at_once_are_one_compile_of_each() {
        let daemon = node_with(Baseline::Services).daemon();
        let loads: Vec<_> = (0..50)
            .map(|_| {
                let modules = daemon.modules.clone();
                let wasm = samples::service();
                let origin = Origin::Layer {
                    name: "image:1".into(),
                    digest: Digest::of(&wasm),
                    bytes: wasm.into(),
                    export: None,
                };
                tokio::spawn(async move { modules.load(origin, None).await })
            })
            .collect();
        for load in loads {
            load.await.unwrap().unwrap();
        }
        daemon.wait_for_swaps("done", 1).await;
        assert_eq!((daemon.baseline_compiles("ok"), daemon.compiles("ok"), daemon.swaps("done")), (1, 1, 1));
        assert!(daemon.modules.rooms.flights.lock().is_empty());
    }

    #[tokio::test]
    async fn a_start_does_not_wait_for_a_compile_ahead_whose_code_it_gets_later() {
        let daemon = node_with(Baseline::Services).daemon();
        let optimising = daemon.hold_optimising().await;
        let ahead = daemon.ahead(samples::service());
        tokio::pin!(ahead);
        while daemon.modules.rooms.flights.lock().is_empty() {
            assert!(futures_util::poll!(&mut ahead).is_pending());
            tokio::task::yield_now().await;
        }
        let start = daemon.layer(samples::service()).await.unwrap();
        assert_eq!(tier(&start), Tier::Baseline);
        assert!(futures_util::poll!(&mut ahead).is_pending(), "it is not content with baseline code");
        drop(optimising);
        assert_eq!(tier(&ahead.await.unwrap()), Tier::Optimised);
        daemon.wait_for_swaps("done", 1).await;
        assert_eq!((tier(&start), daemon.compiles("ok")), (Tier::Optimised, 1));
    }

    #[tokio::test]
    async fn a_compile_ahead_of_a_start_is_an_optimising_one() {
        let daemon = node_with(Baseline::All).daemon();
        assert_eq!(tier(&daemon.ahead(samples::service()).await.unwrap()), Tier::Optimised);
        assert_eq!((daemon.baseline_processes(), daemon.compiles("ok")), (0, 1));
        let start = daemon.layer(samples::service()).await.unwrap();
        assert_eq!((start.source, tier(&start), daemon.compiles("ok")), (Source::Warm, Tier::Optimised, 1));
    }

    #[tokio::test]
    async fn what_the_baseline_compiler_does_not_take_goes_to_the_other() {
        let node = node_with(Baseline::Services);
        let daemon = node.daemon();
        let loaded = daemon.layer(samples::tail_calling_service()).await.unwrap();
        assert_eq!((loaded.source, tier(&loaded)), (Source::Compiled, Tier::Optimised));
        assert_eq!((daemon.baseline_compiles("invalid"), daemon.compiles("ok")), (1, 1));
        assert_eq!((daemon.swaps("done"), daemon.swaps("failed"), node.artifacts().len()), (0, 0, 1));
    }

    #[tokio::test]
    async fn an_invalid_service_is_told_in_the_same_words() {
        let mut texts = Vec::new();
        for baseline in [Baseline::Never, Baseline::Services] {
            let daemon = node_with(baseline).daemon();
            texts.push(text(daemon.layer(samples::invalid_service()).await));
            assert_eq!(text(daemon.layer(samples::invalid_service()).await), texts[0]);
            assert_eq!(daemon.compiles("invalid"), 1, "it is remembered");
        }
        assert_eq!(texts[0], texts[1]);
    }

    #[tokio::test]
    async fn baseline_code_is_for_what_the_configuration_says() {
        use Baseline::{All, Never, Services};
        use Tier::{Baseline as Slow, Optimised};
        let table = [
            (Never, samples::service(), Optimised, 0),
            (Services, samples::service(), Slow, 1),
            (Services, samples::command_component(), Optimised, 1),
            (Services, samples::command(1), Optimised, 0),
            (All, samples::service(), Slow, 1),
            (All, samples::command_component(), Slow, 1),
            (All, samples::command(1), Slow, 1),
        ];
        for (baseline, wasm, want, processes) in table {
            let node = node_with(baseline);
            let daemon = node.daemon();
            let optimising = daemon.hold_optimising().await;
            assert_eq!(tier(&daemon.layer(wasm.clone()).await.unwrap()), want, "{baseline:?}");
            assert_eq!(daemon.baseline_processes(), processes, "{baseline:?}");
            assert_eq!(daemon.baseline_compiles("unwanted"), u64::from(want == Optimised) * processes);
            drop(optimising);
        }
        let mut small = node_with(All);
        small.config.modules.baseline_bytes_min = samples::service().len() as u64 + 1;
        let daemon = small.daemon();
        assert_eq!(tier(&daemon.layer(samples::service()).await.unwrap()), Optimised);
        assert_eq!(daemon.baseline_processes(), 0);
    }

    #[tokio::test]
    async fn a_function_that_is_called_by_name_has_optimised_code() {
        let node = node_with(Baseline::Services);
        let daemon = node.daemon();
        daemon.write(&samples::service());
        let (plain, named) = (Place([1; 32]), Place([2; 32]));
        let optimising = daemon.hold_optimising().await;
        assert_eq!(tier(&daemon.load(Some(plain)).await.unwrap()), Tier::Baseline);
        let known = Known { digest: Digest::of(&samples::service()), export: Some("run".into()) };
        daemon.modules.rooms.places.learn(named, known);
        assert!(daemon.modules.warm(&named).is_none());
        assert!(daemon.modules.known(&named).await.unwrap().is_none());
        let origin = daemon.find("/app.wasm#run").await;
        let called = daemon.modules.load(origin, Some(named)).await.unwrap();
        assert_eq!(tier(&called), Tier::Optimised);
        drop(optimising);
        daemon.wait_for_swaps("done", 1).await;
        assert_eq!((daemon.compiles("ok"), daemon.baseline_compiles("ok")), (1, 1));
    }

    #[tokio::test]
    async fn a_module_that_cannot_be_optimised_goes_on_and_the_next_start_tries_again() {
        let node = node_with(Baseline::Services);
        let daemon = node.daemon();
        let (wasm, rooms) = (samples::service(), &daemon.modules.rooms);
        let digest = Digest::of(&wasm);
        let optimising = daemon.hold_optimising().await;
        // A compile ahead, of a file that will have changed when its turn comes.
        daemon.write(b"#!/bin/sh\n");
        let changed = Material::Origin { origin: Arc::new(daemon.find("/app.wasm").await), is_read: true };
        let ahead = rooms.join(digest, Some(changed), Depth::Optimised, Urgency::Ahead);
        let first = daemon.layer(wasm.clone()).await.unwrap();
        drop(optimising);
        assert!(ahead.await.is_err());
        daemon.wait_for_swaps("failed", 1).await;
        assert_eq!(tier(&first), Tier::Baseline);
        let second = daemon.layer(wasm).await.unwrap();
        assert!(Arc::ptr_eq(&first.program, &second.program));
        daemon.wait_for_swaps("done", 1).await;
        assert_eq!((tier(&first), daemon.baseline_compiles("ok"), daemon.compiles("ok")), (Tier::Optimised, 1, 1));
    }
}
