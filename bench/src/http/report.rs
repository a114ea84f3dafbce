//! The report of `http`: the contents of the JSON file, and the tables made of it. Pure.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::http::neighbour::Neighbour;
use crate::http::servers::{Served, WASMTIME};
use crate::machine::MachineFacts;
use crate::report::Program;
use crate::storm::median;
use crate::table::{Table, micros};

/// All that is written to the JSON file. Every duration is in microseconds.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// Version of this layout.
    pub schema: u32,
    /// Where and when.
    pub machine: MachineFacts,
    /// The daemon.
    pub hearthd: Program,
    /// The other build it was measured against.
    pub against: Option<Program>,
    /// The wasmtime program that it was measured beside.
    pub wasmtime: Option<Program>,
    /// The load generator's name and version.
    pub wrk: String,
    /// Fewer and shorter rounds: the tails mean nothing.
    pub quick: bool,
    /// Seconds of each round.
    pub seconds: u32,
    /// The first component.
    #[serde(flatten)]
    pub first: Measured,
    /// The others.
    #[serde(default)]
    pub also: Vec<Measured>,
    /// A quiet service beside a noisy one.
    #[serde(default)]
    pub neighbour: Option<Neighbour>,
}

/// The measurements of one component.
#[derive(Debug, Serialize, Deserialize)]
pub struct Measured {
    /// The name of its file.
    #[serde(default)]
    pub component: String,
    /// Its size.
    pub component_bytes: usize,
    /// The path of the requests.
    pub path: String,
    /// Bytes of the answer's body.
    pub answer_bytes: usize,
    /// One entry for each number of connections.
    pub crowds: Vec<Crowd>,
}

/// The measurements with one number of connections.
#[derive(Debug, Serialize, Deserialize)]
pub struct Crowd {
    /// Connections at once, each with one request under way.
    pub connections: u32,
    /// The results by server.
    pub servers: BTreeMap<Served, Rounds>,
    /// The daemon over each of the others.
    pub ratios: BTreeMap<Served, Ratios>,
}

/// The results of one round.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Round {
    /// Requests answered.
    pub requests: u64,
    /// Requests answered in a second.
    pub requests_per_second: f64,
    /// The median latency.
    pub p50: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// Processor time of the server, of all its threads, for a request.
    pub processor_time: f64,
}

/// All rounds of a server, and the median of each figure over them.
#[derive(Debug, Serialize, Deserialize)]
pub struct Rounds {
    requests_per_second: f64,
    p50: f64,
    p99: f64,
    processor_time: f64,
    /// In their order. Rounds at the same place in two servers' lists were neighbours in time.
    rounds: Vec<Round>,
}

/// Of each figure, the daemon's over another server's, round by round.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ratios {
    requests_per_second: Spread,
    p50: Spread,
    p99: Spread,
    processor_time: Spread,
}

/// A ratio over all rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Crowd {
    /// Of the rounds of each server, equally many.
    pub fn of(connections: u32, rounds: BTreeMap<Served, Vec<Round>>) -> Crowd {
        let mut ratios = BTreeMap::new();
        if let Some(daemon) = rounds.get(&Served::Hearthd) {
            for (&by, other) in rounds.iter().filter(|&(&by, _)| by != Served::Hearthd) {
                ratios.insert(by, Ratios::of(daemon, other));
            }
        }
        let servers = rounds.into_iter().map(|(by, rounds)| (by, Rounds::of(rounds))).collect();
        Crowd { connections, servers, ratios }
    }
}

impl Rounds {
    fn of(rounds: Vec<Round>) -> Rounds {
        let middle = |figure: fn(&Round) -> f64| median(&rounds.iter().map(figure).collect::<Vec<_>>());
        Rounds {
            requests_per_second: middle(|round| round.requests_per_second),
            p50: middle(|round| round.p50),
            p99: middle(|round| round.p99),
            processor_time: middle(|round| round.processor_time),
            rounds,
        }
    }
}

impl Ratios {
    fn of(daemon: &[Round], other: &[Round]) -> Ratios {
        let spread = |figure: fn(&Round) -> f64| {
            let pairs = daemon.iter().zip(other);
            Spread::of(&pairs.map(|(daemon, other)| figure(daemon) / figure(other)).collect::<Vec<_>>())
        };
        Ratios {
            requests_per_second: spread(|round| round.requests_per_second),
            p50: spread(|round| round.p50),
            p99: spread(|round| round.p99),
            processor_time: spread(|round| round.processor_time),
        }
    }
}

impl Spread {
    fn of(values: &[f64]) -> Spread {
        Spread {
            median: median(values),
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        }
    }

    fn shown(&self) -> String {
        format!("{:.2} ({:.2} to {:.2})", self.median, self.min, self.max)
    }
}

impl Report {
    /// The report as Markdown.
    pub fn markdown(&self) -> String {
        let mut text = format!("# An HTTP component\n\n{}\n\n", self.machine.line());
        let programs =
            [("hearthd", Some(&self.hearthd)), ("other", self.against.as_ref()), ("wasmtime", self.wasmtime.as_ref())];
        for (name, program) in programs.into_iter().filter_map(|(name, program)| Some((name, program?))) {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "* {name}: {} ({})", program.path, program.version);
        }
        let rounds =
            self.first.crowds.iter().flat_map(|crowd| crowd.servers.values()).map(|rounds| rounds.rounds.len()).max();
        for measured in self.measured() {
            let Measured { component, component_bytes, path, answer_bytes, .. } = measured;
            let _ = write!(
                text,
                "\n{component}: a component of {component_bytes} bytes; GET {path} answers {answer_bytes} bytes."
            );
        }
        let _ = writeln!(
            text,
            "\n\n{}, keep-alive, {} rounds of {} s each, in turns. Medians of the rounds; ratios are of neighbouring \
             rounds, with the lowest and the highest.{}\n",
            self.wrk,
            rounds.unwrap_or_default(),
            self.seconds,
            if self.quick { " QUICK: the tails mean nothing." } else { "" },
        );
        let _ = match &self.wasmtime {
            Some(_) => writeln!(text, "`wasmtime serve {}`\n", WASMTIME.join(" ")),
            None => writeln!(text, "**Without `wasmtime serve`**: name its program with --wasmtime.\n"),
        };
        let _ = writeln!(text, "{}\n{}", self.figures(), self.ratios());
        if let Some(neighbour) = &self.neighbour {
            text += &neighbour.markdown();
        }
        text
    }

    /// All components.
    fn measured(&self) -> impl Iterator<Item = &Measured> {
        std::iter::once(&self.first).chain(&self.also)
    }

    /// The crowds of all components, each with its component's name.
    fn crowds(&self) -> impl Iterator<Item = (&str, &Crowd)> {
        self.measured()
            .flat_map(|measured| measured.crowds.iter().map(move |crowd| (measured.component.as_str(), crowd)))
    }

    fn figures(&self) -> Table {
        let headings =
            ["component", "served by", "connections", "requests/s", "p50 µs", "p99 µs", "processor µs a request"];
        let mut table = Table::new(2, &headings);
        for (component, crowd) in self.crowds() {
            for (by, rounds) in &crowd.servers {
                table.row([
                    component.to_owned(),
                    by.name().to_owned(),
                    crowd.connections.to_string(),
                    format!("{:.0}", rounds.requests_per_second),
                    micros(rounds.p50),
                    micros(rounds.p99),
                    micros(rounds.processor_time),
                ]);
            }
        }
        table
    }

    fn ratios(&self) -> Table {
        let headings =
            ["component", "hearthd ÷", "connections", "requests/s", "p50", "p99", "processor time a request"];
        let mut table = Table::new(2, &headings);
        for (component, crowd) in self.crowds() {
            for (by, ratios) in &crowd.ratios {
                table.row([
                    component.to_owned(),
                    by.name().to_owned(),
                    crowd.connections.to_string(),
                    ratios.requests_per_second.shown(),
                    ratios.p50.shown(),
                    ratios.p99.shown(),
                    ratios.processor_time.shown(),
                ]);
            }
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(requests_per_second: f64, p50: f64) -> Round {
        Round { requests: 1, requests_per_second, p50, p99: 3.0 * p50, processor_time: 50.0 }
    }

    fn report(wasmtime: Option<Program>) -> Report {
        let mut rounds = BTreeMap::from([
            (Served::Hearthd, vec![round(100.0, 10.0), round(300.0, 10.0), round(200.0, 10.0)]),
            (Served::Floor, vec![round(200.0, 5.0), round(300.0, 5.0), round(800.0, 5.0)]),
        ]);
        if wasmtime.is_some() {
            rounds.insert(Served::Wasmtime, vec![round(100.0, 8.0); 3]);
        }
        Report {
            schema: crate::report::SCHEMA,
            machine: MachineFacts::here(),
            hearthd: Program { path: "hearthd".into(), version: "1".into() },
            against: None,
            wasmtime,
            wrk: "wrk 4.1.0".into(),
            quick: true,
            seconds: 1,
            first: Measured {
                component: "http".into(),
                component_bytes: 7,
                path: "/count".into(),
                answer_bytes: 2,
                crowds: vec![Crowd::of(32, rounds)],
            },
            also: Vec::new(),
            neighbour: None,
        }
    }

    #[test]
    fn figures_are_medians_and_ratios_are_of_neighbours() {
        let report = report(None);
        let crowd = &report.first.crowds[0];
        assert_eq!(crowd.servers[&Served::Hearthd].requests_per_second, 200.0);
        let ratios = &crowd.ratios[&Served::Floor];
        assert_eq!(ratios.requests_per_second, Spread { median: 0.5, min: 0.25, max: 1.0 });
        assert_eq!(ratios.p99.median, 2.0);
        assert!(!crowd.ratios.contains_key(&Served::Hearthd));
    }

    #[test]
    fn the_tables_show_every_server_and_say_which_is_missing() {
        let wasmtime = Program { path: "w".into(), version: "wasmtime 48.0.8".into() };
        let text = report(Some(wasmtime)).markdown();
        for want in [
            "QUICK",
            "| http      | wasmtime serve",
            "| http      | the floor",
            "0.50 (0.25 to 1.00)",
            "-Opooling-allocator=y",
        ] {
            assert!(text.contains(want), "{want} is missing in\n{text}");
        }
        let text = report(None).markdown();
        assert!(
            text.contains("**Without `wasmtime serve`**") && !text.contains("| http      | wasmtime serve"),
            "{text}"
        );
    }

    #[test]
    fn the_json_is_read_again() {
        let text = serde_json::to_string(&report(None)).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["crowds"][0]["servers"]["hearthd"]["p50"], 10.0);
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap().first.crowds[0].connections, 32);
    }
}
