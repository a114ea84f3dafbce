//! The report of `node`, and its tables. Pure, except that it asks containerd for its version.

use std::fmt::Write;
use std::process::Command;
use std::time::Duration;

use hearth_tests::paths;
use serde::{Deserialize, Serialize};

use super::memory::Memory;
use super::peers::{FLOOR, HEARTH, Peer};
use crate::machine::MachineFacts;
use crate::report::SCHEMA;
use crate::stats::Summary;
use crate::table::{Table, millis};

/// All that is written to the JSON file. Durations are in microseconds.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// Version of the layout.
    pub schema: u32,
    /// Where and when.
    pub machine: MachineFacts,
    /// The output of `containerd --version`.
    pub containerd: String,
    /// The runtimes measured.
    pub runtimes: Vec<String>,
    /// The runtimes that are installed and do not work here, with their errors.
    pub left_out: Vec<(String, String)>,
    /// One for each level, workload and runtime.
    pub rows: Vec<Row>,
    /// One for each runtime.
    pub memory: Vec<Memory>,
}

/// The times of one runtime at one level.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    /// E.g. `tasks`.
    pub level: String,
    /// The program that was started.
    pub workload: String,
    /// By which runtime.
    pub runtime: String,
    /// How long that took.
    pub took: Summary,
}

impl Row {
    /// None without samples.
    pub fn of(level: &str, workload: &str, runtime: &str, samples: impl IntoIterator<Item = Duration>) -> Option<Row> {
        let took = Summary::of(samples)?;
        Some(Row { level: level.to_owned(), workload: workload.to_owned(), runtime: runtime.to_owned(), took })
    }
}

impl Report {
    /// A report of the measurements.
    pub fn new(
        machine: MachineFacts,
        peers: &[Peer],
        left_out: Vec<(String, String)>,
        rows: Vec<Row>,
        memory: Vec<Memory>,
    ) -> Report {
        let version = Command::new(paths::containerd("containerd")).arg("--version").output();
        let version = version.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        Report {
            schema: SCHEMA,
            machine,
            containerd: version.unwrap_or_else(|_| "unknown".into()),
            runtimes: peers.iter().map(|peer| peer.name.to_owned()).collect(),
            left_out,
            rows,
            memory,
        }
    }

    /// The times of a runtime.
    pub fn took(&self, level: &str, workload: &str, runtime: &str) -> Option<&Summary> {
        let wanted = |row: &&Row| row.level == level && row.workload == workload && row.runtime == runtime;
        self.rows.iter().find(wanted).map(|row| &row.took)
    }

    /// The report as Markdown.
    pub fn markdown(&self) -> String {
        format!("# Through containerd\n\n{}\n\n{}\n\n{}", self.machine.line(), self.containerd, self.tables())
    }

    /// Its tables.
    pub fn tables(&self) -> String {
        let headings = ["level", "workload", "runtime", "n", "p50 ms", "p90", "p99", "÷ floor", "÷ Hearth"];
        let mut table = Table::new(3, &headings);
        for row in &self.rows {
            let over = |runtime: &str| {
                let other = self.took(&row.level, &row.workload, runtime);
                other.map_or_else(String::new, |other| format!("{:.2}", row.took.p50 / other.p50))
            };
            table.row([
                row.level.clone(),
                row.workload.clone(),
                row.runtime.clone(),
                row.took.n.to_string(),
                millis(row.took.p50),
                millis(row.took.p90),
                millis(row.took.p99),
                over(FLOOR),
                over(HEARTH),
            ]);
        }
        let mut memory = Table::new(1, &["an idle pod", "pods", "PSS KiB", "processes"]);
        for row in &self.memory {
            memory.row([
                row.runtime.clone(),
                row.pods.to_string(),
                format!("{:.0}", row.pss_bytes_per_pod / 1024.0),
                format!("{:.1}", row.processes_per_pod),
            ]);
        }
        let mut text = format!("{table}\n{memory}");
        for (runtime, why) in &self.left_out {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "\n{runtime} is installed and was left out: {why}");
        }
        text
    }
}
