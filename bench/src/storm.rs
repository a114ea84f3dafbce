//! The `storm` command: a thousand starts at once, and starts while the machine is busy.
//!
//! * *burst*: all tasks are prepared, then all are created and started at the same moment over a few
//!   connections; the clock runs from the first Create to the last Start's answer. The floor gets the same
//!   burst, in turn.
//! * *spinning*: starts one after another, while guests compute without end and while they are paused, in
//!   turn.
//! * *compiling*: the same while a large module never seen before is compiled for another task, and while
//!   nothing is.
//!
//! Failure paths: the first call that fails ends the run, with the task's id.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use containerd_shim_protos::api::{CreateTaskRequest, PauseRequest, ResumeRequest};
use containerd_shim_protos::shim_async::TaskClient;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use ttrpc::context;

use crate::bundle::{Bundle, BundleImage, Recipe, make_dir, remove_dir};
use crate::crowd::{self, Probe};
use crate::events::EventSink;
use crate::guest::Module;
use crate::hearthd::{Hearthd, Home};
use crate::lane::{BundleImages, StartTimes};
use crate::machine::MachineFacts;
use crate::null_server;
use crate::progress::{progress, progress_done};
use crate::report::{Program, SCHEMA};
use crate::scratch::Scratch;
use crate::stats::Summary;
use crate::table::{Table, micros};

/// Connections of a burst.
const CONNECTIONS: usize = 16;

/// Guests that spin.
const SPINNERS: usize = 8;

/// Starts of one batch, before the other side has its turn.
const BATCH: usize = 20;

/// The parameters of a run.
pub struct Options {
    /// The daemon's binary.
    pub hearthd: PathBuf,
    /// Tasks of a burst.
    pub tasks: usize,
    /// Bursts at the daemon, each followed by one at the floor.
    pub bursts: usize,
    /// Starts measured in each state of the machine.
    pub starts: usize,
    /// The large module.
    pub large: Module,
}

/// The report. Durations are in microseconds.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// Version of this layout.
    pub schema: u32,
    /// Where and when.
    pub machine: MachineFacts,
    /// The daemon.
    pub hearthd: Program,
    /// Tasks of a burst.
    pub tasks: usize,
    /// Starts in a second, one value for each burst, at the daemon.
    pub starts_per_second: Vec<f64>,
    /// The same at the floor.
    pub floor_per_second: Vec<f64>,
    /// Starts while guests wait.
    pub idle: Summary,
    /// Starts while [`SPINNERS`] guests compute.
    pub spinning: Summary,
    /// Starts while nothing is compiled.
    pub quiet: Summary,
    /// Starts while a large module is compiled.
    pub compiling: Summary,
    /// Its size.
    pub large_bytes: usize,
}

/// A task that is prepared or runs.
struct Prepared {
    client: usize,
    bundle: Bundle,
}

/// The receiver of bursts: the daemon or the floor.
struct Target {
    clients: Vec<TaskClient>,
    dir: PathBuf,
    images: Vec<BundleImage>,
    burst: usize,
    has_guests: bool,
}

/// Runs it. To be called on the main thread.
///
/// # Errors
/// The first failure.
pub async fn run(options: &Options, scratch: &Scratch, crowd: Handle) -> Result<Report> {
    crowd::raise_descriptor_limit();
    let machine = MachineFacts::here();
    let events = EventSink::listen(scratch.path().join("events.sock"))?;
    let slots = options.tasks + 200;
    let config = format!("[engine]\npool_slots = {slots}\n");
    let home = Home::create(scratch.path().join("h"))?.configured(&config);
    let mut daemon = Hearthd::launch(&options.hearthd, &home, &events).await?;
    let null_socket = scratch.path().join("null.sock");
    let _null_server = null_server::spawn(&null_socket)?;
    let floor_address = null_server::address(&null_socket);
    let (address, dir, tasks, bursts) =
        (daemon.task_address.clone(), scratch.bundles().to_owned(), options.tasks, options.bursts);
    let rates = crowd.spawn(async move {
        let mut target = Target::new(&address, dir.join("burst"), tasks, true).await?;
        let mut floor = Target::new(&floor_address, dir.join("floor"), tasks, false).await?;
        // Slots are touched, and memory is mapped, the first time.
        target.burst().await?;
        let (mut rates, mut floors) = (Vec::new(), Vec::new());
        for burst in 0..bursts {
            progress(&format!("burst {} of {bursts}", burst + 1));
            rates.push(tasks as f64 / target.burst().await?.as_secs_f64());
            floors.push(tasks as f64 / floor.burst().await?.as_secs_f64());
        }
        progress_done();
        Ok::<_, anyhow::Error>((rates, floors))
    });
    let (starts_per_second, floor_per_second) = rates.await??;
    let busy = Busy { address: &daemon.task_address, scratch, starts: options.starts };
    let (idle, spinning) = busy.spinning().await?;
    let (quiet, compiling) = busy.compiling(&options.large).await?;
    daemon.end()?;
    Ok(Report {
        schema: SCHEMA,
        machine,
        hearthd: Program::at(&options.hearthd),
        tasks: options.tasks,
        starts_per_second,
        floor_per_second,
        idle,
        spinning,
        quiet,
        compiling,
        large_bytes: options.large.bytes().len(),
    })
}

impl Target {
    async fn new(address: &str, dir: PathBuf, tasks: usize, has_guests: bool) -> Result<Target> {
        make_dir(&dir)?;
        let module = Module::hello()?;
        let image = |number| crowd::image(&dir, &format!("image-{number}"), &module);
        let images = (0..tasks).map(image).collect::<Result<_>>()?;
        Ok(Target { clients: crowd::connect(address, CONNECTIONS).await?, dir, images, burst: 0, has_guests })
    }

    /// One burst: returns the time from the first Create to the last Start's answer.
    async fn burst(&mut self) -> Result<Duration> {
        self.burst += 1;
        let dir = self.dir.join(self.burst.to_string());
        make_dir(&dir)?;
        let mut prepared = Vec::new();
        for (number, image) in self.images.drain(..).enumerate() {
            let id = format!("{}-{number}", self.burst);
            let bundle = Bundle::create(dir.join(&id), &id, image, &Recipe::Bare)?;
            prepared.push(Prepared { client: number % CONNECTIONS, bundle });
        }
        let began = Instant::now();
        let mut starts = JoinSet::new();
        for task in &prepared {
            let (client, create) = (self.clients[task.client].clone(), task.bundle.create.clone());
            starts.spawn(async move { crowd::start(&client, &create).await });
        }
        for started in starts.join_all().await {
            started?;
        }
        let took = began.elapsed();
        if self.has_guests {
            let mut ends = JoinSet::new();
            for task in &prepared {
                let (client, id) = (self.clients[task.client].clone(), task.bundle.create.id.clone());
                ends.spawn(async move { crowd::finish(&client, &id).await });
            }
            for status in ends.join_all().await {
                let status = status?;
                ensure!(status == 0, "a guest of the burst ended with status {status} instead of 0");
            }
        }
        for task in prepared {
            self.images.push(task.bundle.remove()?);
        }
        remove_dir(&dir)?;
        Ok(took)
    }
}

/// Starts beside other work of the daemon, and without it.
struct Busy<'a> {
    address: &'a str,
    scratch: &'a Scratch,
    starts: usize,
}

impl Busy<'_> {
    async fn probe(&self, name: &str) -> Result<Probe> {
        let dir = self.scratch.bundles();
        let image = crowd::image(dir, &format!("{name}-image"), &Module::hello()?)?;
        let mut probe = Probe::new(self.address, dir.join(name), BundleImages::Same(image), Recipe::Bare).await?;
        probe.starts(BATCH).await?;
        Ok(probe)
    }

    async fn spinning(&self) -> Result<(Summary, Summary)> {
        let dir = self.scratch.bundles().join("spin");
        make_dir(&dir)?;
        let client = crowd::connect(self.address, 1).await?.remove(0);
        let mut spinners = Vec::new();
        for number in 0..SPINNERS {
            let image = crowd::image(&dir, &format!("image-{number}"), &Module::spin()?)?;
            let id = format!("spin-{number}");
            let bundle = Bundle::create(dir.join(&id), &id, image, &Recipe::Bare)?;
            crowd::start(&client, &bundle.create).await?;
            spinners.push(id);
        }
        let mut probe = self.probe("beside-spinners").await?;
        let (mut idle, mut busy) = (Vec::new(), Vec::new());
        for batch in 0..self.starts.div_ceil(BATCH) {
            progress(&format!("beside spinning guests: {} of {} starts", batch * BATCH, self.starts));
            busy.extend(probe.starts(BATCH).await?);
            for id in &spinners {
                let pause = PauseRequest { id: id.clone(), ..PauseRequest::default() };
                client.pause(context::Context::default(), &pause).await.context("Pause")?;
            }
            // The first sees the pauses take effect.
            probe.start().await?;
            idle.extend(probe.starts(BATCH).await?);
            for id in &spinners {
                let resume = ResumeRequest { id: id.clone(), ..ResumeRequest::default() };
                client.resume(context::Context::default(), &resume).await.context("Resume")?;
            }
        }
        progress_done();
        for id in &spinners {
            crowd::end(&client, id).await?;
        }
        Ok((replies(&idle)?, replies(&busy)?))
    }

    /// Create compiles, so while it has not answered something is being compiled.
    async fn compiling(&self, large: &Module) -> Result<(Summary, Summary)> {
        let dir = self.scratch.bundles().join("large");
        make_dir(&dir)?;
        let client = crowd::connect(self.address, 1).await?.remove(0);
        let mut probe = self.probe("beside-compiles").await?;
        let (mut quiet, mut busy) = (Vec::new(), Vec::new());
        let mut number = 0;
        while busy.len() < self.starts {
            progress(&format!("beside compiles: {} of {} starts", busy.len(), self.starts));
            quiet.extend(probe.starts(BATCH).await?);
            number += 1;
            let id = format!("large-{number}");
            let image = crowd::image(&dir, &format!("image-{number}"), &large.never_seen())?;
            let bundle = Bundle::create(dir.join(&id), &id, image, &Recipe::Bare)?;
            let compile = tokio::spawn(create(client.clone(), bundle.create.clone()));
            // The module is read and hashed before it is compiled.
            tokio::time::sleep(COMPILE_BEGINS_WITHIN).await;
            while !compile.is_finished() && busy.len() < self.starts {
                busy.push(probe.start().await?);
            }
            compile.await??;
            crowd::remove(&client, &id).await?;
            bundle.remove()?;
        }
        progress_done();
        Ok((replies(&quiet)?, replies(&busy)?))
    }
}

/// How long reading and hashing the large module may take.
const COMPILE_BEGINS_WITHIN: Duration = Duration::from_millis(100);

async fn create(client: TaskClient, create: CreateTaskRequest) -> Result<()> {
    client.create(context::Context::default(), &create).await.context("Create of the large module")?;
    Ok(())
}

fn replies(samples: &[StartTimes]) -> Result<Summary> {
    Summary::of(samples.iter().map(|sample| sample.reply)).context("no starts were measured")
}

/// The median; 0 for an empty list.
pub fn median(rates: &[f64]) -> f64 {
    let mut rates = rates.to_vec();
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().unwrap_or_default()
}

impl Report {
    /// The report as Markdown.
    pub fn markdown(&self) -> String {
        format!("# Storms\n\n{}\n\n{}", self.machine.line(), self.tables())
    }

    /// Its tables.
    pub fn tables(&self) -> String {
        let mut table = Table::new(1, &["Create + Start", "n", "p50", "p90", "p99", "p50 ÷", "p99 ÷"]);
        let mut row = |label: String, summary: &Summary, calm: &Summary| {
            table.row([
                label,
                summary.n.to_string(),
                micros(summary.p50),
                micros(summary.p90),
                micros(summary.p99),
                format!("{:.2}", summary.p50 / calm.p50),
                format!("{:.2}", summary.p99 / calm.p99),
            ]);
        };
        row(format!("{SPINNERS} guests paused"), &self.idle, &self.idle);
        row(format!("{SPINNERS} guests spin"), &self.spinning, &self.idle);
        row("nothing compiles".into(), &self.quiet, &self.quiet);
        row(format!("a module of {:.1} MB compiles", self.large_bytes as f64 / 1e6), &self.compiling, &self.quiet);
        format!(
            "{} starts at once: {:.0} starts/s (median of {} bursts); the floor: {:.0} pairs/s.\n\n{table}",
            self.tasks,
            median(&self.starts_per_second),
            self.starts_per_second.len(),
            median(&self.floor_per_second),
        )
    }
}
