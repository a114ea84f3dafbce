//! The `start` command: runs the scenarios, daemon and floor in turn.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::bundle::{BundleImage, PodFiles, Recipe, make_dir, remove_dir};
use crate::events::EventSink;
use crate::guest::Module;
use crate::hearthd::{Hearthd, Home};
use crate::lane::{BundleImages, Endpoint, Lane, Setup, StartTimes};
use crate::machine::MachineFacts;
use crate::metrics::{Histogram, Scrape};
use crate::null_server;
use crate::progress::{progress, progress_done};
use crate::report::{DaemonReport, FloorMounts, FloorReport, Phase, Program, Ratios, Report, SCHEMA, ScenarioReport};
use crate::rootfs::MountTimes;
use crate::runtimes::Runtimes;
use crate::scenario::{BundleKind, Plan, Scenario, Stage};
use crate::scratch::{BundleStore, Scratch};
use crate::stats::Summary;

/// The daemon's histogram of the phases of a start, and its label.
const PHASES: (&str, &str) = ("hearth_start_phase_seconds", "phase");

/// The daemon's counter of where modules were found, and its label.
const LOOKUPS: (&str, &str) = ("hearth_module_lookups_total", "source");

/// The daemon's histogram from Create to the guest's first instruction, and its label.
const FIRST_INSTRUCTION: (&str, &str) = ("hearth_start_seconds", "source");

/// The phases in the order of a start; others that the daemon has come behind.
const PHASE_ORDER: [&str; 6] = ["bundle", "lookup", "compile", "mounts", "instantiate", "first_call"];

/// How long one round may take, compiles included, before the run is given up.
const ROUND_DEADLINE: Duration = Duration::from_secs(120);

/// How old images are before the first start: hearthd reads a file again if its last change is less than two seconds
/// old, as the clock might hide another change. Pulled images are older.
const IMAGE_AGE: Duration = Duration::from_secs(3);

/// The parameters of a run.
pub struct Options {
    /// The scenarios, in order.
    pub scenarios: Vec<Scenario>,
    /// The daemon's binary; none measures the floor alone.
    pub hearthd: Option<PathBuf>,
    /// Another build of the daemon, measured in turn with the first.
    pub against: Option<PathBuf>,
    /// The guest.
    pub module: Module,
    /// Fewer iterations.
    pub quick: bool,
    /// Where the bundles are, for the report; the scratch directory was made so.
    pub store: BundleStore,
}

/// Everything a scenario's two sides need.
struct Bench<'a> {
    options: &'a Options,
    scratch: &'a Scratch,
    runtimes: &'a Runtimes,
    events: EventSink,
    null_address: String,
}

/// A scenario with the images for it.
struct Material {
    scenario: Scenario,
    plan: Plan,
    dir: PathBuf,
    /// A set for each of the daemon's clients.
    daemon: Vec<BundleImages>,
    /// A set for each of the other daemon's.
    other: Vec<BundleImages>,
    /// A set for each of the floor's.
    floor: Vec<BundleImages>,
}

/// The clients of one side, each ready for its next start.
struct Side {
    lanes: Vec<Lane>,
    runtime: Handle,
}

/// A daemon with its clients and its measurements.
struct DaemonSide<'a> {
    endpoint: Endpoint,
    program: &'a Path,
    home: Home,
    home_dir: PathBuf,
    events: &'a EventSink,
    daemon: Hearthd,
    side: Side,
    seen: Seen,
}

/// The measurements of the daemon so far.
#[derive(Default)]
struct Seen {
    samples: Vec<StartTimes>,
    first_after_launch: Vec<StartTimes>,
    phases: BTreeMap<String, Histogram>,
    /// Over all sources of modules.
    first_instruction: Histogram,
    lookups: BTreeMap<String, u64>,
}

/// Runs all scenarios. To be called on the main thread, which the daemon is tied to.
///
/// # Errors
/// The first failure ends the run.
pub async fn run(options: &Options, scratch: &Scratch, runtimes: &Runtimes) -> Result<Report> {
    let machine = MachineFacts::here();
    let null_socket = scratch.path().join("null.sock");
    let _null_server = null_server::spawn(&null_socket)?;
    let bench = Bench {
        options,
        scratch,
        runtimes,
        events: EventSink::listen(scratch.path().join("events.sock"))?,
        null_address: null_server::address(&null_socket),
    };
    let all = options.scenarios.iter().enumerate();
    let materials = all.map(|(index, &scenario)| bench.material(index, scenario)).collect::<Result<Vec<_>>>()?;
    if options.hearthd.is_some() {
        progress("letting the images come of age");
        tokio::time::sleep(IMAGE_AGE).await;
        progress_done();
    }
    let mut scenarios = Vec::new();
    for (index, material) in materials.into_iter().enumerate() {
        let scenario = material.scenario;
        eprintln!("hearth-bench: {scenario} ({} of {})", index + 1, options.scenarios.len());
        let report = bench.scenario(material).await.with_context(|| scenario.to_string())?;
        scenarios.push(report);
    }
    if options.hearthd.is_some() {
        eprintln!("hearth-bench: took {} events", bench.events.taken());
    }
    Ok(Report {
        schema: SCHEMA,
        machine,
        hearthd: options.hearthd.as_deref().map(Program::at),
        against: options.against.as_deref().map(Program::at),
        module_bytes: options.module.bytes().len(),
        quick: options.quick,
        bundles_in_memory: options.store == BundleStore::Memory,
        scenarios,
    })
}

impl Bench<'_> {
    /// Writes a scenario's images.
    fn material(&self, index: usize, scenario: Scenario) -> Result<Material> {
        let plan = scenario.plan(self.options.quick);
        let dir = self.scratch.bundles().join(format!("s{index}"));
        make_dir(&dir)?;
        let images = |endpoint| scenario.images(endpoint, plan, &self.options.module, &dir);
        let (daemon, floor) = (images(Endpoint::Hearthd)?, images(Endpoint::Floor)?);
        let other = self.options.against.is_some().then(|| images(Endpoint::Other)).transpose()?.unwrap_or_default();
        Ok(Material { scenario, plan, dir, daemon, other, floor })
    }

    async fn scenario(&self, material: Material) -> Result<ScenarioReport> {
        let Material { scenario, plan, dir, daemon, other, floor } = material;
        let mut floor_side = self.side(scenario, Endpoint::Floor, floor, &dir, &self.null_address).await?;
        floor_side.rounds(plan.warm_up_rounds).await?;
        let mut daemons = Vec::new();
        for (endpoint, program, images) in
            [(Endpoint::Hearthd, &self.options.hearthd, daemon), (Endpoint::Other, &self.options.against, other)]
        {
            if let Some(program) = program {
                daemons.push(self.daemon_side(scenario, plan, endpoint, program, images, &dir).await?);
            }
        }
        let mut floor = Vec::new();
        for batch in 0..plan.batches {
            progress(&format!("batch {} of {}", batch + 1, plan.batches));
            for daemon in &mut daemons {
                daemon.batch(scenario, plan).await?;
            }
            // No daemon always follows the floor.
            daemons.reverse();
            floor.extend(floor_side.rounds(plan.floor_rounds).await.context("the floor")?);
        }
        progress_done();
        let (mut hearthd, mut against) = (None, None);
        for daemon in daemons {
            let report = if daemon.endpoint == Endpoint::Other { &mut against } else { &mut hearthd };
            *report = Some(daemon.end(scenario)?);
        }
        drop(floor_side);
        remove_dir(&dir)?;
        let floor = floor_report(&floor).context("no samples of the floor")?;
        let ratios = hearthd.as_ref().map(|hearthd| Ratios::of(hearthd, &floor, against.as_ref()));
        Ok(ScenarioReport { name: scenario.to_string(), scenario, plan, hearthd, against, floor, ratios })
    }

    /// A daemon's directory, new for each scenario.
    fn home(&self, endpoint: Endpoint) -> PathBuf {
        self.scratch.path().join(format!("h{}", letter(endpoint)))
    }

    async fn side(
        &self,
        scenario: Scenario,
        endpoint: Endpoint,
        images: Vec<BundleImages>,
        dir: &Path,
        address: &str,
    ) -> Result<Side> {
        let alone = scenario.clients == 1;
        let runtime = self.runtimes.for_clients(scenario.clients);
        let mut lanes = Vec::new();
        for (number, images) in images.into_iter().enumerate() {
            let name = format!("{}{number}", letter(endpoint));
            let recipe = match scenario.bundle {
                BundleKind::Bare => Recipe::Bare,
                BundleKind::Stdio => Recipe::Stdio,
                BundleKind::Cri => Recipe::Cri(PodFiles::create(dir.join(format!("{name}-pod")))?),
            };
            let setup = Setup { endpoint, alone, runtime: runtime.clone(), dir: dir.join(&name), recipe, images };
            lanes.push(Lane::connect(setup, address).await?);
        }
        Ok(Side { lanes, runtime })
    }

    async fn daemon_side<'a>(
        &'a self,
        scenario: Scenario,
        plan: Plan,
        endpoint: Endpoint,
        program: &'a Path,
        images: Vec<BundleImages>,
        dir: &Path,
    ) -> Result<DaemonSide<'a>> {
        let home_dir = self.home(endpoint);
        let home = Home::create(home_dir.clone())?;
        let daemon = Hearthd::launch(program, &home, &self.events).await?;
        let side = self.side(scenario, endpoint, images, dir, &daemon.task_address).await?;
        let (seen, events) = (Seen::default(), &self.events);
        let mut daemon_side = DaemonSide { endpoint, program, home, home_dir, daemon, side, seen, events };
        let warm_up = match scenario.stage {
            // Once around the list: every module is compiled and stored.
            Stage::Disk => plan.warm_up_rounds + plan.rounds,
            Stage::Warm | Stage::Cold => plan.warm_up_rounds,
        };
        daemon_side.rounds(warm_up).await.context("warming up")?;
        Ok(daemon_side)
    }
}

impl Scenario {
    /// Writes the images of one side, a set for each client.
    fn images(&self, endpoint: Endpoint, plan: Plan, module: &Module, dir: &Path) -> Result<Vec<BundleImages>> {
        let path = |suffix: String| dir.join(format!("{}-{suffix}", letter(endpoint)));
        let shared = BundleImage::create(path("image".into()), module)?;
        let of_client = |number: usize| match (endpoint, self.stage, self.bundle) {
            (Endpoint::Hearthd | Endpoint::Other, Stage::Cold, _) => {
                let fresh = path(format!("fresh-{number}"));
                make_dir(&fresh)?;
                Ok(BundleImages::Fresh(fresh, module.clone()))
            }
            (Endpoint::Hearthd | Endpoint::Other, Stage::Disk, _) => {
                // One for the first start after a launch, then one for each of a batch's.
                let list = 0..plan.warm_up_rounds + plan.rounds;
                let image = |i| BundleImage::create(path(format!("image-{number}-{i}")), &module.never_seen());
                Ok(BundleImages::Listed(list.map(image).collect::<Result<VecDeque<_>>>()?))
            }
            // A layer is shared by all containers of an image; other bundles have their own files.
            (_, _, BundleKind::Cri) => Ok(BundleImages::Same(shared.clone())),
            (_, _, BundleKind::Bare | BundleKind::Stdio) => {
                Ok(BundleImages::Same(BundleImage::create(path(format!("image-{number}")), module)?))
            }
        };
        (0..self.clients).map(of_client).collect()
    }
}

/// Begins the names of a side's files and tasks.
fn letter(endpoint: Endpoint) -> char {
    match endpoint {
        Endpoint::Hearthd => 'a',
        Endpoint::Floor => 'b',
        Endpoint::Other => 'c',
    }
}

impl Side {
    async fn rounds(&mut self, rounds: usize) -> Result<Vec<StartTimes>> {
        let mut samples = Vec::with_capacity(rounds * self.lanes.len());
        for _ in 0..rounds {
            let round = timeout(ROUND_DEADLINE, self.round()).await;
            samples.extend(round.map_err(|_| anyhow!("a round was not done within {} s", ROUND_DEADLINE.as_secs()))??);
        }
        Ok(samples)
    }

    /// One start by each client: all are prepared, then all are measured at once, then all are
    /// finished. After an error the side is of no further use.
    async fn round(&mut self) -> Result<Vec<StartTimes>> {
        let mut prepared = Vec::with_capacity(self.lanes.len());
        for mut lane in self.lanes.drain(..) {
            let bundle = lane.prepare()?;
            prepared.push((lane, bundle));
        }
        let mut measuring = JoinSet::new();
        for (lane, bundle) in prepared {
            let measure = async move {
                let measured = lane.measure(bundle).await;
                (lane, measured)
            };
            measuring.spawn_on(measure, &self.runtime);
        }
        let measured = measuring.join_all().await;
        let mut finishing = JoinSet::new();
        for (mut lane, measured) in measured {
            let measured = measured?;
            let finish = async move {
                let sample = lane.finish(measured).await;
                (lane, sample)
            };
            finishing.spawn_on(finish, &self.runtime);
        }
        let mut samples = Vec::with_capacity(finishing.len());
        for (lane, sample) in finishing.join_all().await {
            samples.push(sample?);
            self.lanes.push(lane);
        }
        Ok(samples)
    }
}

impl DaemonSide<'_> {
    async fn rounds(&mut self, rounds: usize) -> Result<Vec<StartTimes>> {
        self.side.rounds(rounds).await.map_err(|error| self.daemon.explain(error))
    }

    async fn batch(&mut self, scenario: Scenario, plan: Plan) -> Result<()> {
        if scenario.stage == Stage::Disk {
            self.relaunch().await?;
            let first = self.rounds(plan.warm_up_rounds).await?;
            self.seen.first_after_launch.extend(first);
        }
        let before = self.daemon.scrape().await?;
        let samples = self.rounds(plan.rounds).await?;
        let after = self.daemon.scrape().await?;
        self.seen.samples.extend(samples);
        self.seen.scraped(&before, &after)
    }

    async fn relaunch(&mut self) -> Result<()> {
        self.daemon.end()?;
        self.daemon = Hearthd::launch(self.program, &self.home, self.events).await?;
        for lane in &mut self.side.lanes {
            lane.reconnect(&self.daemon.task_address).await?;
        }
        Ok(())
    }

    fn end(mut self, scenario: Scenario) -> Result<DaemonReport> {
        self.daemon.end()?;
        remove_dir(&self.home_dir)?;
        self.seen.report(scenario).context("no samples of hearthd")
    }
}

impl Seen {
    /// Adds the changes of the daemon's metrics by a batch.
    fn scraped(&mut self, before: &Scrape, after: &Scrape) -> Result<()> {
        for (phase, histogram) in changed(before, after, PHASES)? {
            self.phases.entry(phase).or_default().add(&histogram);
        }
        for histogram in changed(before, after, FIRST_INSTRUCTION)?.values() {
            self.first_instruction.add(histogram);
        }
        let earlier = before.counters(LOOKUPS.0, LOOKUPS.1);
        for (source, now) in after.counters(LOOKUPS.0, LOOKUPS.1) {
            let then = earlier.get(&source).copied().unwrap_or_default();
            *self.lookups.entry(source).or_default() += now.saturating_sub(then);
        }
        Ok(())
    }

    fn report(&self, scenario: Scenario) -> Option<DaemonReport> {
        let of = |samples: &[StartTimes], field: fn(&StartTimes) -> Option<Duration>| {
            Summary::of(samples.iter().filter_map(field))
        };
        Some(DaemonReport {
            start_reply: of(&self.samples, |sample| Some(sample.reply))?,
            first_byte: of(&self.samples, |sample| sample.first_byte),
            create: of(&self.samples, |sample| Some(sample.create))?,
            start: of(&self.samples, |sample| Some(sample.start))?,
            first_after_launch: of(&self.first_after_launch, |sample| Some(sample.reply)),
            first_instruction: Phase::of(FIRST_INSTRUCTION.0, &self.first_instruction),
            phases: self.phases(),
            lookups: self.lookups.clone(),
            doubt: self.doubt(scenario),
        })
    }

    fn phases(&self) -> Vec<Phase> {
        let others = self.phases.keys().map(String::as_str).filter(|n| !PHASE_ORDER.contains(n));
        let names = PHASE_ORDER.into_iter().chain(others);
        names.filter_map(|name| Phase::of(name, self.phases.get(name)?)).collect()
    }

    /// A contradiction between the scenario's stage and the daemon's count of sources, if there is one.
    fn doubt(&self, scenario: Scenario) -> Option<String> {
        let expected = match scenario.stage {
            Stage::Warm => "warm",
            Stage::Disk => "disk",
            Stage::Cold => "compiled",
        };
        let found = self.lookups.get(expected).copied().unwrap_or_default();
        let all: u64 = self.lookups.values().sum();
        let starts = self.samples.len() as u64;
        let sources: Vec<String> = self.lookups.iter().map(|(source, count)| format!("{count} {source}")).collect();
        (found != starts || all != starts).then(|| {
            format!(
                "not what its name says: {starts} look-ups should have ended {expected}; the daemon \
                 counted {}",
                if sources.is_empty() { "none".into() } else { sources.join(", ") }
            )
        })
    }
}

/// The observations of a histogram's children between two scrapes.
fn changed(before: &Scrape, after: &Scrape, (name, label): (&str, &str)) -> Result<BTreeMap<String, Histogram>> {
    let earlier = before.histograms(name, label);
    let difference = |(child, now): (String, Histogram)| {
        let then = earlier.get(&child).cloned().unwrap_or_default();
        Ok((child, now.since(&then)?))
    };
    after.histograms(name, label).into_iter().map(difference).collect()
}

fn floor_report(samples: &[StartTimes]) -> Option<FloorReport> {
    let of = |field: fn(&StartTimes) -> Option<Duration>| Summary::of(samples.iter().filter_map(field));
    let mount = |field: fn(&MountTimes) -> Duration| {
        let mounts = samples.iter().filter_map(|sample| sample.floor?.mounts);
        Summary::of(mounts.map(|times| field(&times)))
    };
    let mounts = || {
        Some(FloorMounts {
            overlay: mount(|times| times.overlay)?,
            dev: mount(|times| times.dev)?,
            mount_points: mount(|times| times.mount_points)?,
            binds: mount(|times| times.binds)?,
            unmount: of(|sample| sample.unmount)?,
        })
    };
    Some(FloorReport {
        total: of(|sample| Some(sample.reply))?,
        rpc_pair: of(|sample| Some(sample.create + sample.start))?,
        fifos: of(|sample| Some(sample.floor?.fifos)),
        mounts: mounts(),
    })
}
