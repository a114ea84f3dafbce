//! The `density` command: thousands of idle pods on one daemon, and the time of a start beside them.
//!
//! Two daemons run: one with few pods, one with as many as asked for. Starts are measured at both in turn, so that only
//! the number of pods differs.
//!
//! Each pod is two tasks, as CRI makes them: a sandbox, and a container in it with an overlay, a tmpfs, six
//! binds and a memory limit, whose guest has written a byte and sleeps. They are in the node's network: a
//! network namespace for each would measure the kernel.
//!
//! Failure paths: before anything is started, limits of the machine that this many pods would exceed are named, with
//! the setting to change.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::bundle::{PodFiles, Recipe};
use crate::crowd::{self, Footprint, IdlePods, Probe};
use crate::events::EventSink;
use crate::guest::Module;
use crate::hearthd::{Hearthd, Home};
use crate::lane::{BundleImages, StartTimes};
use crate::machine::MachineFacts;
use crate::progress::{progress, progress_done};
use crate::report::{Program, SCHEMA};
use crate::scraping::Scraping;
use crate::scratch::Scratch;
use crate::stats::Summary;
use crate::table::{Table, micros};

/// Pods of the daemon that has few.
const FEW: usize = 10;

/// Bytes the idle guest itself touches: its data and its stack pointer are on one page.
pub const GUEST_BYTES: u64 = 4096;

/// Mounts of a CRI-like bundle: the overlay, `/dev` and six binds.
const MOUNTS_PER_POD: usize = 8;

/// Descriptors the daemon needs beside the pods'.
const DESCRIPTORS_SPARE: usize = 200;

/// The parameters of a run.
pub struct Options {
    /// The daemon's binary.
    pub hearthd: PathBuf,
    /// Pods of the daemon that has many.
    pub pods: usize,
    /// Whether each has FIFOs for stdout and stderr.
    pub stdio: bool,
    /// Starts measured at each daemon.
    pub starts: usize,
}

/// The report. Durations of starts are in microseconds.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// Version of this layout.
    pub schema: u32,
    /// Where and when.
    pub machine: MachineFacts,
    /// The daemon.
    pub hearthd: Program,
    /// How many pods there were.
    pub pods: usize,
    /// Whether they had FIFOs.
    pub stdio: bool,
    /// The daemon's process without a pod.
    pub empty: Footprint,
    /// With all of them.
    pub full: Footprint,
    /// The proportional set size of one pod, the guest's own page included, in bytes.
    pub pss_bytes_per_pod: f64,
    /// Pods started in a second, a few dozen at a time.
    pub pods_started_per_second: f64,
    /// Pods ended in a second.
    pub pods_ended_per_second: f64,
    /// Starts beside few pods, bare bundles.
    pub beside_few: Summary,
    /// Starts beside all pods, bare bundles.
    pub beside_all: Summary,
    /// Starts beside few pods, CRI-like bundles.
    pub cri_beside_few: Summary,
    /// Starts beside all pods, CRI-like bundles.
    pub cri_beside_all: Summary,
    /// The cost of Prometheus' scrapes beside all pods.
    pub scraping: Scraping,
}

/// A daemon with its pods and the probes that start beside them.
struct CrowdedDaemon {
    daemon: Hearthd,
    pods: IdlePods,
    bare: Probe,
    cri: Probe,
}

/// Runs it. To be called on the main thread.
///
/// # Errors
/// The first failure.
pub async fn run(options: &Options, scratch: &Scratch) -> Result<Report> {
    crowd::raise_descriptor_limit();
    check_limits(options)?;
    let machine = MachineFacts::here();
    let events = EventSink::listen(scratch.path().join("events.sock"))?;
    let mut few = CrowdedDaemon::launch(options, scratch, &events, "few").await?;
    let mut all = CrowdedDaemon::launch(options, scratch, &events, "all").await?;
    few.pods.grow(FEW).await?;
    // The first pod compiles, and the pool touches some memory only once; neither belongs to a pod.
    all.pods.grow(1).await?;
    all.bare.starts(2).await?;
    let empty = Footprint::of(all.daemon.pid())?;
    eprintln!("hearth-bench: starting {} pods", options.pods);
    let took = all.pods.grow(options.pods).await?;
    let full = Footprint::of(all.daemon.pid())?;
    let mut samples: [Vec<StartTimes>; 4] = Default::default();
    const BATCH: usize = 25;
    for batch in 0..options.starts.div_ceil(BATCH) {
        progress(&format!("{} of {} starts", batch * BATCH, options.starts));
        samples[0].extend(few.bare.starts(BATCH).await?);
        samples[1].extend(all.bare.starts(BATCH).await?);
        samples[2].extend(few.cri.starts(BATCH).await?);
        samples[3].extend(all.cri.starts(BATCH).await?);
    }
    progress_done();
    eprintln!("hearth-bench: scraping {} pods, and starts meanwhile", options.pods);
    let scraping = Scraping::measure(&all.daemon, &mut all.bare).await?;
    let [beside_few, beside_all, cri_beside_few, cri_beside_all] = samples.map(|samples| replies(&samples));
    let ended = all.pods.end().await?;
    few.pods.end().await?;
    all.daemon.end()?;
    few.daemon.end()?;
    let per_second = |pods: usize, took: Duration| pods as f64 / took.as_secs_f64();
    Ok(Report {
        schema: SCHEMA,
        machine,
        hearthd: Program::at(&options.hearthd),
        pods: options.pods,
        stdio: options.stdio,
        empty,
        full,
        pss_bytes_per_pod: (full.pss_bytes.saturating_sub(empty.pss_bytes)) as f64 / (options.pods - 1) as f64,
        pods_started_per_second: per_second(options.pods - 1, took),
        pods_ended_per_second: per_second(options.pods, ended),
        beside_few: beside_few?,
        beside_all: beside_all?,
        cri_beside_few: cri_beside_few?,
        cri_beside_all: cri_beside_all?,
        scraping,
    })
}

impl CrowdedDaemon {
    async fn launch(options: &Options, scratch: &Scratch, events: &EventSink, name: &str) -> Result<CrowdedDaemon> {
        let slots = options.pods + 200;
        let config = format!("[engine]\npool_slots = {slots}\n[rpc]\ntasks_max = {}\n", 2 * slots);
        let home = Home::create(scratch.path().join(format!("h-{name}")))?.configured(&config);
        let daemon = Hearthd::launch(&options.hearthd, &home, events).await?;
        let (bundles, layers) = (scratch.bundles(), scratch.layers());
        let path = |part: &str| bundles.join(format!("{name}-{part}"));
        let layer = |part: &str| layers.join(format!("{name}-{part}"));
        let image = |dir, part: &str, module| crowd::image(dir, &format!("{name}-{part}"), module);
        let (idle, hello) = (Module::idle()?, Module::hello()?);
        let address = &daemon.task_address;
        let files = PodFiles::in_host_network(layer("files"))?;
        let pods = IdlePods::new(address, path("pods"), files, image(layers, "idle", &idle)?, options.stdio).await?;
        // The image is moved into its bundle, which copies nothing on the same file system.
        let images = BundleImages::Same(image(bundles, "hello", &hello)?);
        let bare = Probe::new(address, path("bare"), images, Recipe::Bare).await?;
        let pod = Recipe::Cri(PodFiles::create(layer("pod"))?);
        let cri = Probe::new(address, path("cri"), BundleImages::Same(image(layers, "hello", &hello)?), pod).await?;
        Ok(CrowdedDaemon { daemon, pods, bare, cri })
    }
}

fn replies(samples: &[StartTimes]) -> Result<Summary> {
    let summary = Summary::of(samples.iter().map(|sample| sample.reply));
    summary.ok_or_else(|| anyhow::anyhow!("no starts were measured"))
}

/// Descriptors of one pod in the daemon: its root, and its FIFOs.
fn descriptors_per_pod(stdio: bool) -> usize {
    if stdio { 3 } else { 1 }
}

/// Checks the machine's limits before this many pods exceed them.
fn check_limits(options: &Options) -> Result<()> {
    use rustix::process::{Resource, getrlimit};
    ensure!(options.pods > FEW, "--pods must be more than {FEW}");
    let descriptors = options.pods * descriptors_per_pod(options.stdio) + DESCRIPTORS_SPARE;
    let limit = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    ensure!(
        descriptors as u64 <= limit,
        "{} pods need {descriptors} descriptors and the hard limit of this shell is {limit}: raise it (ulimit -Hn), or ask for fewer pods{}",
        options.pods,
        if options.stdio { ", or leave out --stdio" } else { "" }
    );
    let mounts = options.pods * MOUNTS_PER_POD;
    let text = std::fs::read_to_string("/proc/sys/fs/mount-max").unwrap_or_default();
    let limit: usize = text.trim().parse().unwrap_or(usize::MAX);
    ensure!(
        mounts < limit,
        "{} pods need {mounts} mounts and fs.mount-max is {limit}: sysctl fs.mount-max={}",
        options.pods,
        2 * mounts
    );
    Ok(())
}

impl Report {
    /// The report as Markdown.
    pub fn markdown(&self) -> String {
        format!("# {} idle pods\n\n{}\n\n{}", self.pods, self.machine.line(), self.tables())
    }

    /// Its tables.
    pub fn tables(&self) -> String {
        let mut starts = Table::new(1, &["Create + Start beside", "n", "p50", "p90", "p99", "p50 ÷", "p99 ÷"]);
        let mut row = |label: String, summary: &Summary, few: &Summary| {
            starts.row([
                label,
                summary.n.to_string(),
                micros(summary.p50),
                micros(summary.p90),
                micros(summary.p99),
                format!("{:.2}", summary.p50 / few.p50),
                format!("{:.2}", summary.p99 / few.p99),
            ]);
        };
        row(format!("{FEW} pods, bare"), &self.beside_few, &self.beside_few);
        row(format!("{} pods, bare", self.pods), &self.beside_all, &self.beside_few);
        row(format!("{FEW} pods, CRI-like"), &self.cri_beside_few, &self.cri_beside_few);
        row(format!("{} pods, CRI-like", self.pods), &self.cri_beside_all, &self.cri_beside_few);
        let mut table = Table::new(1, &["hearthd with", "PSS MiB", "mappings", "descriptors", "threads", "mounts"]);
        for (pods, footprint) in [(1, &self.empty), (self.pods, &self.full)] {
            table.row([
                format!("{pods} pods"),
                format!("{:.1}", footprint.pss_bytes as f64 / f64::from(1 << 20)),
                footprint.mappings.to_string(),
                footprint.descriptors.to_string(),
                footprint.threads.to_string(),
                footprint.mounts.to_string(),
            ]);
        }
        format!(
            "{table}\nA pod (sandbox and container{}) takes {:.1} KiB PSS, of which the guest itself touches {} KiB. \
             {:.0} pods are started in a second, {:.0} ended.\n\n{starts}\n{}",
            if self.stdio { ", with FIFOs" } else { "" },
            self.pss_bytes_per_pod / 1024.0,
            GUEST_BYTES / 1024,
            self.pods_started_per_second,
            self.pods_ended_per_second,
            self.scraping.table(),
        )
    }
}
