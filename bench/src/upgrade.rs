//! The `upgrade` command: the time of a start while one hearthd takes over from another.
//!
//! Pods live on the first daemon all the time; each is ended, waited for and deleted at the end, when many daemons
//! have come after it. Beside them one client starts a task of a module that is known, at a steady pace. As the shim
//! does, it asks the control socket for the task socket before each, and dials it anew; both are in the number. *Steady*: no
//! upgrade is under way. *Hand-over*: from the launch of a new daemon until it is ready, and the starts right
//! after: the first at a new daemon takes its module from the disk.
//!
//! The daemon's own launch takes its share of the processors, as it does on a node.

use std::fmt::Write;
use std::path::PathBuf;
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::poll;
use serde::Serialize;
use tokio::time::MissedTickBehavior;

use crate::bundle::{BundleImage, PodFiles, Recipe};
use crate::crowd::{self, IdlePods};
use crate::events::EventSink;
use crate::guest::Module;
use crate::hearthd::{Hearthd, Home};
use crate::lane::{BundleImages, Endpoint, Lane, Setup};
use crate::machine::{MachineFacts, version_of};
use crate::progress::{progress, progress_done};
use crate::report::Program;
use crate::runtimes::Runtimes;
use crate::scratch::Scratch;
use crate::stats::Summary;
use crate::table::micros;

/// Starts before each upgrade.
const STEADY: usize = 200;

/// Starts after a new daemon is ready that still count as of the hand-over.
const AFTER: usize = 20;

/// How old the image is before the first start, as in the `start` command.
const IMAGE_AGE: Duration = Duration::from_secs(3);

/// The parameters of a run.
pub struct Options {
    /// The daemon's binary.
    pub hearthd: PathBuf,
    /// How many upgrades, one after another.
    pub upgrades: usize,
    /// Pods that live on the first daemon.
    pub pods: usize,
    /// From one start to the next; zero: at once.
    pub pace: Duration,
}

/// The measurements.
#[derive(Debug, Serialize)]
pub struct Report {
    machine: MachineFacts,
    hearthd: Program,
    upgrades: usize,
    pods: usize,
    /// In seconds.
    pace: f64,
    steady: Summary,
    hand_over: Summary,
    /// From a new daemon's launch until it is ready.
    ready: Summary,
}

/// Runs it. To be called on the main thread, which the daemons are tied to.
///
/// # Errors
/// The first thing that fails ends the run: a start that is refused, too.
pub async fn run(options: &Options, scratch: &Scratch, runtimes: &Runtimes) -> Result<Report> {
    let events = EventSink::listen(scratch.path().join("events.sock"))?;
    let home = Home::create(scratch.path().join("h"))?;
    let image = BundleImage::create(scratch.bundles().join("image"), &Module::hello()?)?;
    progress("letting the image come of age");
    tokio::time::sleep(IMAGE_AGE).await;
    let mut daemons = vec![Hearthd::launch(&options.hearthd, &home, &events).await?];
    let setup = Setup {
        endpoint: Endpoint::Hearthd,
        alone: true,
        runtime: runtimes.for_clients(1),
        dir: scratch.bundles().join("u"),
        recipe: Recipe::Bare,
        images: BundleImages::Same(image),
    };
    let mut lane = Lane::connect(setup, &daemons[0].task_address).await?;
    let idle = crowd::image(scratch.bundles(), "idle", &Module::idle()?)?;
    let files = PodFiles::in_host_network(scratch.layers().join("files"))?;
    let mut pods = IdlePods::new(&daemons[0].task_address, scratch.bundles().join("pods"), files, idle, false).await?;
    pods.grow(options.pods).await?;
    let mut pace = (!options.pace.is_zero()).then(|| tokio::time::interval(options.pace));
    // (One that is late starts at once, and the next after a whole pace.)
    pace.iter_mut().for_each(|pace| pace.set_missed_tick_behavior(MissedTickBehavior::Delay));
    let (mut steady, mut hand_over, mut ready) = (Vec::new(), Vec::new(), Vec::new());
    // The first compiles.
    start(&mut lane, &home, &events, &mut pace).await?;
    for upgrade in 0..options.upgrades {
        progress(&format!("upgrade {} of {}", upgrade + 1, options.upgrades));
        for _ in 0..STEADY {
            steady.push(start(&mut lane, &home, &events, &mut pace).await?);
        }
        let began = Instant::now();
        let mut launch = pin!(Hearthd::replace(&options.hearthd, &home, &events));
        let launched = loop {
            if let std::task::Poll::Ready(launched) = poll!(&mut launch) {
                break launched?;
            }
            hand_over.push(start(&mut lane, &home, &events, &mut pace).await?);
        };
        ready.push(began.elapsed());
        daemons.push(launched);
        for _ in 0..AFTER {
            hand_over.push(start(&mut lane, &home, &events, &mut pace).await?);
        }
    }
    progress_done();
    drop(lane);
    // No pod is lost: each is killed, and its exit is reported.
    pods.end().await?;
    for daemon in daemons.iter_mut().rev() {
        daemon.end()?;
    }
    let summary = |samples: Vec<Duration>| Summary::of(samples).context("no samples");
    Ok(Report {
        machine: MachineFacts::here(),
        hearthd: Program { path: options.hearthd.display().to_string(), version: version_of(&options.hearthd) },
        upgrades: options.upgrades,
        pods: options.pods,
        pace: options.pace.as_secs_f64(),
        steady: summary(steady)?,
        hand_over: summary(hand_over)?,
        ready: summary(ready)?,
    })
}

/// One start, from the question for the task socket to Start's answer.
async fn start(
    lane: &mut Lane,
    home: &Home,
    events: &EventSink,
    pace: &mut Option<tokio::time::Interval>,
) -> Result<Duration> {
    let bundle = lane.prepare()?;
    if let Some(pace) = pace {
        pace.tick().await;
    }
    let began = Instant::now();
    let address = home.ask_task_socket(events)?;
    lane.reconnect(&address).await?;
    let measured = lane.measure(bundle).await?;
    let took = began.elapsed();
    lane.finish(measured).await?;
    Ok(took)
}

impl Report {
    /// The report as Markdown.
    pub fn markdown(&self) -> String {
        let mut text = format!(
            "{} upgrades beside {} pods, one client, {}; ask + connect + Create + Start, in µs\n\n| | n | p50 | p90 | p99 | max |\n|---|---:|---:|---:|---:|---:|\n",
            self.upgrades,
            self.pods,
            if self.pace > 0.0 {
                format!("{:.0} starts a second", 1.0 / self.pace)
            } else {
                "one start after another".into()
            },
        );
        for (name, of) in [("steady", &self.steady), ("hand-over", &self.hand_over), ("new daemon ready", &self.ready)]
        {
            let [p50, p90, p99, max] = [of.p50, of.p90, of.p99, of.max].map(micros);
            // A String takes all that is written to it.
            let _ = writeln!(text, "| {name} | {} | {p50} | {p90} | {p99} | {max} |", of.n);
        }
        let _ = writeln!(text, "\np99 of hand-over / p99 of steady: {:.1}", self.hand_over.p99 / self.steady.p99);
        text
    }
}
