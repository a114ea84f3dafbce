//! The report of `start`: the contents of the JSON file, and the tables made of it. Pure.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::machine::{MachineFacts, version_of};
use crate::metrics::Histogram;
use crate::scenario::{Plan, Scenario};
use crate::stats::Summary;
use crate::table::{Table, micros};

/// Version of the JSON's layout.
pub const SCHEMA: u32 = 1;

/// All that is written to the JSON file. Every duration is in microseconds.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Where and when.
    pub machine: MachineFacts,
    /// The daemon measured; none with `--floor-only`.
    pub hearthd: Option<Program>,
    /// The other build it was measured against.
    pub against: Option<Program>,
    /// The guest's size.
    pub module_bytes: usize,
    /// Fewer iterations: the tails mean nothing.
    pub quick: bool,
    /// Whether bundles and images were on a tmpfs.
    pub bundles_in_memory: bool,
    /// One entry a scenario.
    pub scenarios: Vec<ScenarioReport>,
}

/// A program measured.
#[derive(Debug, Serialize, Deserialize)]
pub struct Program {
    /// Its path.
    pub path: String,
    /// The output of its `--version`.
    pub version: String,
}

/// One scenario's numbers.
#[derive(Debug, Serialize, Deserialize)]
pub struct ScenarioReport {
    /// `stage/clients/bundle`.
    pub name: String,
    /// Its parts.
    #[serde(flatten)]
    pub scenario: Scenario,
    /// How often it was run.
    pub plan: Plan,
    /// At the daemon.
    pub hearthd: Option<DaemonReport>,
    /// At the other build, in turn with both.
    pub against: Option<DaemonReport>,
    /// At the floor, in turn with the daemon.
    pub floor: FloorReport,
    /// Daemon over floor.
    pub ratios: Option<Ratios>,
}

/// The daemon's starts, as clients and the daemon itself measured them.
#[derive(Debug, Serialize, Deserialize)]
pub struct DaemonReport {
    /// Create sent → Start answered.
    pub start_reply: Summary,
    /// Create sent → the guest's first byte read, where it has a FIFO.
    pub first_byte: Option<Summary>,
    /// Create's round trip.
    pub create: Summary,
    /// Start's round trip.
    pub start: Summary,
    /// The very first start after each launch (disk only), as `start_reply`; in no other figure.
    pub first_after_launch: Option<Summary>,
    /// Create's arrival at the daemon → the guest's first instruction, by the daemon's own clock and without the
    /// client's time between the calls.
    pub first_instruction: Option<Phase>,
    /// The daemon's own phases, from its histograms.
    pub phases: Vec<Phase>,
    /// Where the daemon found the modules of the starts measured, by its own count.
    pub lookups: BTreeMap<String, u64>,
    /// The contradiction, if that is not the scenario's stage.
    pub doubt: Option<String>,
}

/// One phase by the daemon's histogram.
#[derive(Debug, Serialize, Deserialize)]
pub struct Phase {
    /// The label's value.
    pub phase: String,
    /// Observations.
    pub n: u64,
    /// Exact.
    pub mean: f64,
    /// Estimated within the histogram's bucket.
    pub p50: f64,
    /// Estimated within the histogram's bucket.
    pub p99: f64,
}

/// The floor's numbers.
#[derive(Debug, Serialize, Deserialize)]
pub struct FloorReport {
    /// Mounts and FIFO opens, where the bundle has them, and the empty pair.
    pub total: Summary,
    /// Empty Create and empty Start, one after the other.
    pub rpc_pair: Summary,
    /// Opening two FIFOs, which is part of `total`.
    pub fifos: Option<Summary>,
    /// Parts of `total` before the pair, and the unmount, which is not in it.
    pub mounts: Option<FloorMounts>,
}

/// The floor's mounts, step by step.
#[derive(Debug, Serialize, Deserialize)]
pub struct FloorMounts {
    /// Mounting the read-write overlay.
    pub overlay: Summary,
    /// tmpfs on `/dev`.
    pub dev: Summary,
    /// Making the mount points.
    pub mount_points: Summary,
    /// Six binds, one of them read-only.
    pub binds: Summary,
    /// Unmounting it all, which the daemon does after the guest's end.
    pub unmount: Summary,
}

/// Daemon over floor, of the same run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ratios {
    /// `start_reply` over the floor's `total`, medians.
    pub start_reply_p50: f64,
    /// The same of the 99th percentiles.
    pub start_reply_p99: f64,
    /// `first_byte` over the floor's `total`, medians.
    pub first_byte_p50: Option<f64>,
    /// `start_reply` over the other build's, medians.
    pub against_p50: Option<f64>,
    /// The same of the 99th percentiles.
    pub against_p99: Option<f64>,
}

impl Program {
    /// Asks it for its version.
    pub fn at(path: &Path) -> Program {
        Program { path: path.display().to_string(), version: version_of(path) }
    }
}

impl Phase {
    /// A phase from its histogram, which is in seconds; none if nothing was observed.
    pub fn of(name: &str, histogram: &Histogram) -> Option<Phase> {
        let micros = |seconds: f64| (seconds * 1e7).round() / 10.0;
        Some(Phase {
            phase: name.to_owned(),
            n: histogram.count(),
            mean: micros(histogram.mean()?),
            p50: micros(histogram.quantile(0.5)?),
            p99: micros(histogram.quantile(0.99)?),
        })
    }
}

impl Ratios {
    /// Divides.
    pub fn of(hearthd: &DaemonReport, floor: &FloorReport, against: Option<&DaemonReport>) -> Ratios {
        let ratio = |over: f64, under: f64| (over / under * 100.0).round() / 100.0;
        Ratios {
            start_reply_p50: ratio(hearthd.start_reply.p50, floor.total.p50),
            start_reply_p99: ratio(hearthd.start_reply.p99, floor.total.p99),
            first_byte_p50: hearthd.first_byte.as_ref().map(|s| ratio(s.p50, floor.total.p50)),
            against_p50: against.map(|other| ratio(hearthd.start_reply.p50, other.start_reply.p50)),
            against_p99: against.map(|other| ratio(hearthd.start_reply.p99, other.start_reply.p99)),
        }
    }
}

impl Report {
    /// The report as Markdown.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        let machine = &self.machine;
        // Writing to a string cannot fail.
        let _ = writeln!(text, "# Create + Start → first guest instruction\n");
        let _ = writeln!(
            text,
            "{} · {} · {} cores · {} · load {} · {}{}\n",
            machine.date,
            machine.cpu,
            machine.cores,
            machine.kernel,
            machine.load_average,
            machine.git_revision,
            if self.quick { " · QUICK: the tails mean nothing" } else { "" },
        );
        if let Some(program) = &self.hearthd {
            let _ = writeln!(text, "{} ({})\n", program.path, program.version);
        }
        let store = if self.bundles_in_memory { "a tmpfs" } else { "the scratch directory's disk" };
        let _ = writeln!(
            text,
            "All in µs. Ratios are to the floor of the same run. Module of {} bytes, bundles on {store}.\n",
            self.module_bytes
        );
        if self.hearthd.is_some() {
            let _ = writeln!(text, "{}", self.starts());
            if let Some(other) = &self.against {
                let _ = writeln!(text, "## Against {} ({})\n\n{}", other.path, other.version, self.comparison());
            }
            let _ = writeln!(text, "## The daemon's phases, by its histograms\n\n{}", self.phases());
        }
        let _ = writeln!(text, "## The floor\n\n{}", self.floor());
        for scenario in &self.scenarios {
            if let Some(doubt) = scenario.hearthd.as_ref().and_then(|h| h.doubt.as_ref()) {
                let _ = writeln!(text, "**{}**: {doubt}", scenario.name);
            }
        }
        text
    }

    fn starts(&self) -> Table {
        let mut table = Table::new(
            1,
            &[
                "scenario",
                "n",
                "Start reply p50",
                "p90",
                "p99",
                "first byte p50",
                "p99",
                "floor p50",
                "p99",
                "reply ÷ floor p50",
                "p99",
                "byte ÷ floor p50",
                "Create p50",
                "Start p50",
                "first after launch p50",
            ],
        );
        for scenario in &self.scenarios {
            let (Some(hearthd), Some(ratios)) = (&scenario.hearthd, &scenario.ratios) else {
                continue;
            };
            let reply = &hearthd.start_reply;
            let byte = hearthd.first_byte.as_ref();
            table.row([
                scenario.name.clone(),
                reply.n.to_string(),
                micros(reply.p50),
                micros(reply.p90),
                micros(reply.p99),
                byte.map_or_else(String::new, |byte| micros(byte.p50)),
                byte.map_or_else(String::new, |byte| micros(byte.p99)),
                micros(scenario.floor.total.p50),
                micros(scenario.floor.total.p99),
                format!("{:.2}", ratios.start_reply_p50),
                format!("{:.2}", ratios.start_reply_p99),
                ratios.first_byte_p50.map_or_else(String::new, |ratio| format!("{ratio:.2}")),
                micros(hearthd.create.p50),
                micros(hearthd.start.p50),
                hearthd.first_after_launch.as_ref().map_or_else(String::new, |s| micros(s.p50)),
            ]);
        }
        table
    }

    fn comparison(&self) -> Table {
        let headings =
            ["scenario", "this p50", "p99", "other p50", "p99", "this ÷ other p50", "p99", "byte ÷ byte p50"];
        let mut table = Table::new(1, &headings);
        for scenario in &self.scenarios {
            let (Some(this), Some(other)) = (&scenario.hearthd, &scenario.against) else {
                continue;
            };
            let over = |this: f64, other: f64| format!("{:.3}", this / other);
            let byte = this.first_byte.as_ref().zip(other.first_byte.as_ref());
            table.row([
                scenario.name.clone(),
                micros(this.start_reply.p50),
                micros(this.start_reply.p99),
                micros(other.start_reply.p50),
                micros(other.start_reply.p99),
                over(this.start_reply.p50, other.start_reply.p50),
                over(this.start_reply.p99, other.start_reply.p99),
                byte.map_or_else(String::new, |(this, other)| over(this.p50, other.p50)),
            ]);
        }
        table
    }

    fn phases(&self) -> Table {
        let mut table = Table::new(2, &["scenario", "phase", "n", "mean", "p50 ≈", "p99 ≈"]);
        for scenario in &self.scenarios {
            for phase in
                scenario.hearthd.iter().flat_map(|hearthd| hearthd.phases.iter().chain(&hearthd.first_instruction))
            {
                table.row([
                    scenario.name.clone(),
                    phase.phase.clone(),
                    phase.n.to_string(),
                    micros(phase.mean),
                    micros(phase.p50),
                    micros(phase.p99),
                ]);
            }
        }
        table
    }

    fn floor(&self) -> Table {
        let mut table = Table::new(
            1,
            &[
                "scenario",
                "n",
                "total p50",
                "p90",
                "p99",
                "RPC pair p50",
                "p99",
                "overlay p50",
                "/dev p50",
                "mount points p50",
                "binds p50",
                "FIFOs p50",
                "unmount p50",
            ],
        );
        for scenario in &self.scenarios {
            let floor = &scenario.floor;
            let mount = |part: fn(&FloorMounts) -> &Summary| {
                floor.mounts.as_ref().map_or_else(String::new, |mounts| micros(part(mounts).p50))
            };
            table.row([
                scenario.name.clone(),
                floor.total.n.to_string(),
                micros(floor.total.p50),
                micros(floor.total.p90),
                micros(floor.total.p99),
                micros(floor.rpc_pair.p50),
                micros(floor.rpc_pair.p99),
                mount(|mounts| &mounts.overlay),
                mount(|mounts| &mounts.dev),
                mount(|mounts| &mounts.mount_points),
                mount(|mounts| &mounts.binds),
                floor.fifos.as_ref().map_or_else(String::new, |fifos| micros(fifos.p50)),
                mount(|mounts| &mounts.unmount),
            ]);
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn summary(micros: u64) -> Summary {
        Summary::of([Duration::from_micros(micros)]).unwrap()
    }

    fn report() -> Report {
        let scenario = Scenario::all()[0];
        let hearthd = DaemonReport {
            start_reply: summary(150),
            first_byte: None,
            create: summary(90),
            start: summary(60),
            first_after_launch: None,
            first_instruction: None,
            phases: vec![Phase { phase: "lookup".into(), n: 9, mean: 1.5, p50: 1.0, p99: 2.0 }],
            lookups: BTreeMap::from([("warm".into(), 9)]),
            doubt: Some("2 of 9 look-ups were not warm".into()),
        };
        let floor = FloorReport { total: summary(60), rpc_pair: summary(60), fifos: None, mounts: None };
        let ratios = Some(Ratios::of(&hearthd, &floor, None));
        Report {
            schema: SCHEMA,
            machine: MachineFacts::here(),
            hearthd: Some(Program { path: "hearthd".into(), version: "1".into() }),
            against: None,
            module_bytes: 1,
            quick: true,
            bundles_in_memory: true,
            scenarios: vec![ScenarioReport {
                name: scenario.to_string(),
                scenario,
                plan: scenario.plan(true),
                hearthd: Some(hearthd),
                against: None,
                floor,
                ratios,
            }],
        }
    }

    #[test]
    fn ratios_are_the_daemon_over_the_floor() {
        let report = report();
        let ratios = report.scenarios[0].ratios.as_ref().unwrap();
        assert_eq!((ratios.start_reply_p50, ratios.start_reply_p99), (2.5, 2.5));
        assert_eq!(ratios.first_byte_p50, None);
    }

    #[test]
    fn the_tables_show_every_part_and_the_doubt() {
        let text = report().markdown();
        for want in ["warm/1/bare", "2.50", "lookup", "QUICK", "**warm/1/bare**: 2 of 9", "## The floor"] {
            assert!(text.contains(want), "{want} is missing in\n{text}");
        }
    }

    #[test]
    fn without_a_daemon_only_the_floor_is_shown() {
        let mut report = report();
        report.hearthd = None;
        report.scenarios[0].hearthd = None;
        let text = report.markdown();
        assert!(text.contains("## The floor") && !text.contains("Start reply"), "{text}");
    }

    #[test]
    fn the_json_has_the_scenarios_parts_beside_its_name() {
        let json = serde_json::to_value(report()).unwrap();
        let scenario = &json["scenarios"][0];
        assert_eq!(scenario["stage"], "warm");
        assert_eq!(scenario["clients"], 1);
        assert_eq!(scenario["hearthd"]["start_reply"]["p50"], 150.0);
        assert_eq!(scenario["floor"]["mounts"], serde_json::Value::Null);
    }

    #[test]
    fn phases_come_in_microseconds_and_only_if_observed() {
        assert!(Phase::of("lookup", &Histogram::default()).is_none());
    }
}
