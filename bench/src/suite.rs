//! The `all` command: every measurement of this program, one after another, each in a process of its own; and the
//! outputs made of their JSON: a table, charts, and the README's numbers.
//!
//! Failure paths: a measurement that fails ends the run with its error above; a README without the two marks is an
//! error and stays as it is.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::plot::{self, Bar, Group};
use crate::report::{Report as Start, SCHEMA};
use crate::stats::Summary;
use crate::table::{Table, micros, millis};
use crate::{density, node, programs, storm};

/// The marks around the README's numbers.
const BEGIN: &str = "<!-- numbers: written by `make bench`, not by hand -->\n";
const END: &str = "<!-- /numbers -->\n";

/// The marks around the table of programs on the page of figures.
const PROGRAMS: [&str; 2] = ["<!-- programs: written by `make bench`, not by hand -->\n", "<!-- /programs -->\n"];

/// Pods of the density measurement, for a report and for a look.
const PODS: [usize; 2] = [10_000, 1_000];

/// The parameters of a run.
pub struct Options {
    /// Fewer of everything.
    pub quick: bool,
    /// The daemon's binary.
    pub hearthd: Option<PathBuf>,
    /// A component of several megabytes (`wasi:cli/command`).
    pub component: Option<PathBuf>,
    /// The module that is compiled beside starts.
    pub large: Option<PathBuf>,
    /// The floor's shim.
    pub floor_shim: Option<PathBuf>,
    /// Directory to work in.
    pub scratch: Option<PathBuf>,
}

/// Everything that was measured in one run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Suite {
    /// Version of this layout.
    pub schema: u32,
    /// Whether there was less of everything: the tails mean nothing.
    pub quick: bool,
    /// Straight at the task socket.
    pub start: Start,
    /// A thousand at once, and beside busy guests and compiles.
    pub storm: storm::Report,
    /// Thousands of idle pods.
    pub density: density::Report,
    /// Through containerd.
    pub node: node::Report,
    /// Programs that others publish; not of a quick run.
    #[serde(default)]
    pub programs: Option<programs::Report>,
}

/// Runs everything.
///
/// # Errors
/// If a measurement fails.
pub fn run(options: &Options) -> Result<Suite> {
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    let at = (options, directory.path());
    let quick: &[&str] = if options.quick { &["--quick"] } else { &[] };
    let scenarios: &[&str] = &["--scenario", "warm", "--scenario", "disk/1", "--scenario", "cold/1"];
    let text = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
    let (component, large, floor_shim) = (text(&options.component), text(&options.large), text(&options.floor_shim));
    let component = component.as_deref().map_or_else(Vec::new, |path| vec!["--component", path]);
    let large = large.as_deref().map_or_else(Vec::new, |path| vec!["--large", path]);
    let floor_shim = floor_shim.as_deref().map_or_else(Vec::new, |path| vec!["--floor-shim", path]);
    let pods = PODS[usize::from(options.quick)].to_string();
    let fewer = |few: &'static [&'static str]| if options.quick { few } else { &[] };
    Ok(Suite {
        schema: SCHEMA,
        quick: options.quick,
        start: measure(at, "start", &[quick, scenarios].concat())?,
        storm: measure(at, "storm", &[fewer(&["--bursts", "4", "--starts", "100"]), &large].concat())?,
        density: measure(at, "density", &[&["--pods", &pods], fewer(&["--starts", "100"])].concat())?,
        node: measure(at, "node", &[quick, &component, &floor_shim].concat())?,
        programs: if options.quick { None } else { Some(measure(at, "programs", &[])?) },
    })
}

/// One command of this program, in a process of its own.
fn measure<T: for<'a> Deserialize<'a>>(
    (options, directory): (&Options, &Path),
    command: &str,
    arguments: &[&str],
) -> Result<T> {
    let json = directory.join(format!("{command}.json"));
    eprintln!("hearth-bench: {command} {}", arguments.join(" "));
    let own = std::env::current_exe().context("cannot find this program's own path")?;
    let mut process = Command::new(own);
    process.arg(command).args(arguments).arg("--json").arg(&json);
    if let Some(hearthd) = &options.hearthd {
        process.arg("--hearthd").arg(hearthd);
    }
    if let Some(scratch) = &options.scratch {
        process.arg("--scratch").arg(scratch);
    }
    // The suite makes the tables from the JSON.
    let status = process.stdout(std::process::Stdio::null()).status().with_context(|| command.to_owned())?;
    ensure!(status.success(), "`hearth-bench {command}` failed ({status}); its error is above");
    let text = std::fs::read_to_string(&json).with_context(|| json.display().to_string())?;
    serde_json::from_str(&text).with_context(|| format!("the report of `hearth-bench {command}`"))
}

impl Suite {
    /// All of it as Markdown.
    pub fn markdown(&self) -> String {
        format!(
            "{}\n{}\n## Storms\n\n{}\n## Density\n\n{}\n## Through containerd\n\n{}\n\n{}{}",
            self.summary(),
            self.start.markdown(),
            self.storm.tables(),
            self.density.tables(),
            self.node.containerd,
            self.node.tables(),
            self.programs.as_ref().map_or_else(String::new, |report| format!("\n## Programs\n\n{}", report.markdown())),
        )
    }

    /// The first part for a reader: the machine, and one table.
    pub fn summary(&self) -> String {
        let mut text = String::new();
        let machine = &self.start.machine;
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{} cores of {}, {}; {}; revision {}, {}{}.\n",
            machine.cores,
            machine.cpu,
            machine.kernel,
            self.node.containerd,
            machine.git_revision,
            machine.date,
            if self.quick { " (a quick run: the tails mean nothing)" } else { "" },
        );
        let _ = writeln!(text, "{}", self.starts());
        let _ = writeln!(text, "{}", self.containerd());
        let _ = writeln!(text, "{}", self.crowds());
        text
    }

    /// Straight at the task socket.
    fn starts(&self) -> Table {
        let headings = ["Create + Start of a warm module, µs", "p50", "p99", "floor p50", "p99", "ratio p50", "p99"];
        let mut table = Table::new(1, &headings);
        for (scenario, name) in
            [("warm/1/bare", "bare"), ("warm/1/stdio", "with stdio FIFOs"), ("warm/1/cri", "as CRI makes it")]
        {
            let found = self.start.scenarios.iter().find(|found| found.name == scenario);
            let Some((found, hearthd)) = found.and_then(|found| Some((found, found.hearthd.as_ref()?))) else {
                continue;
            };
            let (reply, floor) = (&hearthd.start_reply, &found.floor.total);
            table.row([
                name.to_owned(),
                micros(reply.p50),
                micros(reply.p99),
                micros(floor.p50),
                micros(floor.p99),
                format!("{:.2}", reply.p50 / floor.p50),
                format!("{:.2}", reply.p99 / floor.p99),
            ]);
        }
        table
    }

    /// Through containerd: the time of each runtime, at p50.
    fn containerd(&self) -> String {
        let runtimes = &self.node.runtimes;
        let mut text = format!("| through containerd, p50 in ms | {} |\n", runtimes.join(" | "));
        let _ = writeln!(text, "|:---|{}", "---:|".repeat(runtimes.len()));
        let mut row = |level: &str, workload: &str, name: &str| {
            let took = |runtime: &String| self.node.took(level, workload, runtime).map(|took| millis(took.p50));
            let cells: Vec<_> = runtimes.iter().map(|runtime| took(runtime).unwrap_or_default()).collect();
            if cells.iter().any(|cell| !cell.is_empty()) {
                let _ = writeln!(text, "| {name} | {} |", cells.join(" | "));
            }
        };
        for (level, workload, name) in LEVELS {
            row(level, workload, name);
        }
        let memory = |runtime: &String| {
            let found = self.node.memory.iter().find(|memory| memory.runtime == *runtime);
            found.map_or_else(String::new, |memory| format!("{:.0} KiB", memory.pss_bytes_per_pod / 1024.0))
        };
        let cells: Vec<_> = runtimes.iter().map(memory).collect();
        let _ = writeln!(text, "| PSS of an idle pod | {} |", cells.join(" | "));
        text
    }

    /// Storms and density.
    fn crowds(&self) -> String {
        let (storm, density) = (&self.storm, &self.density);
        let beside = |busy: &Summary, calm: &Summary| {
            format!("{} µs at p99, {:.1} × that of a calm machine", micros(busy.p99), busy.p99 / calm.p99)
        };
        format!(
            "* {} starts at once: {:.0} starts/s (the floor: {:.0}).\n\
             * A start beside 8 guests that spin: {}; beside a compile of {:.1} MB: {}.\n\
             * {} idle pods on one daemon: {:.0} MiB PSS in all, {:.1} KiB each; a start beside them: {}; one with mounts, \
             as CRI makes it: {}.\n",
            storm.tasks,
            storm::median(&storm.starts_per_second),
            storm::median(&storm.floor_per_second),
            beside(&storm.spinning, &storm.idle),
            storm.large_bytes as f64 / 1e6,
            beside(&storm.compiling, &storm.quiet),
            density.pods,
            density.full.pss_bytes as f64 / f64::from(1 << 20),
            density.pss_bytes_per_pod / 1024.0,
            beside(&density.beside_all, &density.beside_few),
            beside(&density.cri_beside_all, &density.cri_beside_few),
        )
    }

    /// Draws the charts into a directory.
    ///
    /// # Errors
    /// Of the file system.
    pub fn plots(&self, directory: &Path) -> Result<()> {
        std::fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
        let bar = |name: &str, value: f64| Bar { name: name.to_owned(), value };
        let levels = LEVELS.iter().filter(|(_, workload, _)| *workload == WORKLOAD).map(|(level, workload, label)| {
            let bars = self
                .node
                .runtimes
                .iter()
                .filter_map(|runtime| Some(bar(runtime, self.node.took(level, workload, runtime)?.p50 / 1e3)));
            Group { label: (*label).to_owned(), bars: bars.collect() }
        });
        let levels: Vec<_> = levels.collect();
        plot::bars(&directory.join("containerd.svg"), "Through containerd, p50", "ms", &levels)?;
        let starts = self.start.scenarios.iter().filter_map(|scenario| {
            let hearthd = scenario.hearthd.as_ref()?;
            let (reply, floor) = (&hearthd.start_reply, &scenario.floor.total);
            let bars = vec![
                bar("Hearth p50", reply.p50),
                bar("floor p50", floor.p50),
                bar("Hearth p99", reply.p99),
                bar("floor p99", floor.p99),
            ];
            scenario.name.starts_with("warm/1/").then(|| Group { label: scenario.name.clone(), bars })
        });
        let starts: Vec<_> = starts.collect();
        plot::bars(&directory.join("start.svg"), "Create + Start, straight at the task socket", "µs", &starts)?;
        let memory = self.node.memory.iter().map(|memory| bar(&memory.runtime, memory.pss_bytes_per_pod / 1024.0));
        let memory = Group { label: "PSS of all its processes".into(), bars: memory.collect() };
        plot::bars(&directory.join("memory.svg"), "Memory of an idle pod", "KiB", &[memory])
    }

    /// Puts the numbers between the README's two marks.
    ///
    /// # Errors
    /// If the file cannot be read or written, or lacks a mark.
    pub fn write_readme(&self, readme: &Path) -> Result<()> {
        write_between(readme, [BEGIN, END], &self.summary())
    }
}

/// Puts the table of programs between the two marks of the page of figures.
///
/// # Errors
/// As [`Suite::write_readme`].
pub fn write_programs(page: &Path, report: &programs::Report) -> Result<()> {
    write_between(page, PROGRAMS, &report.markdown())
}

fn write_between(page: &Path, [begin, end]: [&str; 2], text: &str) -> Result<()> {
    let path = || page.display().to_string();
    let before = std::fs::read_to_string(page).with_context(path)?;
    let after = replaced(&before, [begin, end], text)
        .with_context(|| format!("{} has no lines {} and {}", path(), begin.trim_end(), end.trim_end()))?;
    std::fs::write(page, after).with_context(path)
}

/// The workload of all levels, and of the charts.
const WORKLOAD: &str = "hello";

/// The rows of the table: a level's and a workload's names in the report, and for readers.
const LEVELS: [(&str, &str, &str); 6] = [
    ("tasks", WORKLOAD, "Create + Start, Tasks API"),
    ("tasks", "Lua", "the same, the Lua interpreter"),
    ("tasks", "JavaScript", "the same, a JavaScript component of 12 MB"),
    ("ctr run --rm", WORKLOAD, "`ctr run --rm`"),
    ("pod, node's network", WORKLOAD, "a pod through CRI, node's network"),
    ("pod, own network", WORKLOAD, "a pod through CRI, network of its own"),
];

/// The text with other numbers between the marks.
fn replaced(text: &str, [begin, end]: [&str; 2], numbers: &str) -> Option<String> {
    let begin = text.find(begin)? + begin.len();
    let end = begin + text[begin..].find(end)?;
    Some(format!("{}\n{}\n{}", &text[..begin], numbers.trim_end(), &text[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_text_between_the_marks_is_replaced() {
        let text = format!("before\n{BEGIN}old\n{END}after\n");
        let want = format!("before\n{BEGIN}\nnew\n{END}after\n");
        assert_eq!(replaced(&text, [BEGIN, END], "new\n"), Some(want.clone()));
        assert_eq!(replaced(&want, [BEGIN, END], "new"), Some(want));
        assert_eq!(replaced("no marks", [BEGIN, END], "new"), None);
    }
}
