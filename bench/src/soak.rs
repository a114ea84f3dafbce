//! The `soak` command: pods one after another through a private containerd, and the daemon's resources after each
//! thousand. Whatever a pod leaves behind shows as a slope.
//!
//! Failure paths: the first pod that fails ends the run with its name; a failure of the harness is a panic that names the
//! missing program or right; the private machine ends with this process.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use hearth_tests::daemons::HearthdOptions;
use hearth_tests::world::NAMESPACE;
use hearth_tests::{Guest, Image, Node};
use serde::{Deserialize, Serialize};

use crate::crowd::Footprint;
use crate::machine::MachineFacts;
use crate::node::{CriPods, Tasks, hearth};
use crate::progress::{progress, progress_done};
use crate::report::SCHEMA;
use crate::stats::Summary;
use crate::table::{Table, millis};

/// Pods before the first reading: the first compiles, and the pool and the allocator touch some memory only once.
const WARM_UP: u32 = 100;

/// The parameters of a run.
#[derive(Debug)]
pub struct Options {
    /// The daemon's binary.
    pub hearthd: PathBuf,
    /// How many pods.
    pub pods: u32,
    /// After how many the resources are read.
    pub every: u32,
    /// Whole pods through CRI instead of containers through the Tasks API.
    pub cri: bool,
}

/// All that is written to the JSON file.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// Version of the layout.
    pub schema: u32,
    /// Where and when.
    pub machine: MachineFacts,
    /// Whether the pods were whole pods through CRI.
    pub cri: bool,
    /// The readings, the first before the measured pods.
    pub rows: Vec<Row>,
}

/// A reading.
#[derive(Debug, Serialize, Deserialize)]
pub struct Row {
    /// Pods so far.
    pub pods: u32,
    /// Start times since the last reading, in microseconds; none in the first.
    pub starts: Option<Summary>,
    /// The daemon's resources.
    pub footprint: Footprint,
}

/// One pod after another.
#[allow(clippy::large_enum_variant, reason = "there is one value")]
enum Lane {
    Tasks(Tasks),
    Cri(CriPods),
}

impl Lane {
    fn sample(&mut self, node: &Node) -> Result<Duration> {
        match self {
            Lane::Tasks(tasks) => Ok(tasks.sample()?.started),
            Lane::Cri(pods) => pods.sample(node),
        }
    }
}

/// Runs it. To be called on the main thread, and not from within a runtime.
///
/// # Errors
/// containerd's error, or a pod that fails.
pub fn run(options: &Options) -> Result<Report> {
    let machine = MachineFacts::here();
    let node = Node::with(HearthdOptions { program: Some(options.hearthd.clone()), ..HearthdOptions::default() });
    let image = Image::of_file("hello", "/hello.wasm", Guest::HELLO.wasm_bytes());
    let peer = hearth();
    let mut lane = if options.cri {
        Lane::Cri(CriPods::new(&peer, &node.import(&image).name, true))
    } else {
        Lane::Tasks(Tasks::prepare(&node, &peer, &node.import_in(NAMESPACE, &image).name)?)
    };
    for _ in 0..WARM_UP {
        lane.sample(&node)?;
    }
    let footprint = || Footprint::of(node.hearthd().pid().context("hearthd has ended")?.try_into()?);
    let mut rows = vec![Row { pods: 0, starts: None, footprint: footprint()? }];
    let mut done = 0;
    while done < options.pods {
        progress(&format!("{done} of {} pods", options.pods));
        let batch = options.every.min(options.pods - done);
        let samples = (0..batch).map(|_| lane.sample(&node)).collect::<Result<Vec<_>>>()?;
        done += batch;
        rows.push(Row { pods: done, starts: Summary::of(samples), footprint: footprint()? });
    }
    progress_done();
    Ok(Report { schema: SCHEMA, machine, cri: options.cri, rows })
}

impl Report {
    /// The report as Markdown.
    pub fn markdown(&self) -> String {
        let machine = &self.machine;
        format!(
            "{}, one after another, on {} cores of {}, {}; load {}; revision {}, {}.\n\n{}\n{}",
            if self.cri { "Pods through CRI" } else { "Containers through the Tasks API" },
            machine.cores,
            machine.cpu,
            machine.kernel,
            machine.load_average,
            machine.git_revision,
            machine.date,
            self.table(),
            self.slope()
        )
    }

    fn table(&self) -> Table {
        let headings = [
            "pods",
            "start p50, ms",
            "start p99, ms",
            "anonymous, KiB",
            "PSS, KiB",
            "descriptors",
            "mappings",
            "threads",
            "mounts",
        ];
        let mut table = Table::new(1, &headings);
        for row in &self.rows {
            let footprint = &row.footprint;
            let time =
                |of: fn(&Summary) -> f64| row.starts.as_ref().map_or_else(String::new, |starts| millis(of(starts)));
            table.row([
                row.pods.to_string(),
                time(|starts| starts.p50),
                time(|starts| starts.p99),
                (footprint.anonymous_bytes >> 10).to_string(),
                (footprint.pss_bytes >> 10).to_string(),
                footprint.descriptors.to_string(),
                footprint.mappings.to_string(),
                footprint.threads.to_string(),
                footprint.mounts.to_string(),
            ]);
        }
        table
    }

    /// The growth of the second half of the run, in which nothing is new to the daemon.
    fn slope(&self) -> String {
        let (Some(middle), Some(last)) = (self.rows.get(self.rows.len() / 2), self.rows.last()) else {
            return String::new();
        };
        let pods = f64::from(last.pods - middle.pods);
        if pods == 0.0 {
            return "Too few readings for a slope: let --every be at most half of --pods.\n".into();
        }
        let bytes = last.footprint.anonymous_bytes as f64 - middle.footprint.anonymous_bytes as f64;
        format!("Anonymous memory in the second half: {:+.1} bytes a pod.\n", bytes / pods)
    }
}
