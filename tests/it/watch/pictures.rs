//! The pictures and the answers in dashboards/README.md, taken of a real run: `make pictures`.
//!
//! Grafana is in no Debian. The pictures are of the panels' own expressions, as the real Prometheus answers them over
//! the run's time.

use std::fs;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use hearth_tests::Node;
use hearth_tests::plot::{self, Line};
use serde_json::Value;

use super::panels::{Prometheus, Target, compile_many, dashboards, panels};
use super::photograph;

/// The panels of the five questions: its picture's name, the dashboard's part of the title, the panel, its unit.
const PICTURES: [(&str, &str, &str, &str); 5] = [
    ("slow-start", "cold start", "Phases, p99", "s"),
    ("cpu", "one node", "CPU by task, in cores", "short"),
    ("pool", "fleet", "Pool in use", "percentunit"),
    ("compiles", "one node", "Compiles", "short"),
    ("traps", "one node", "Traps and refused memory by task", "short"),
];

/// The most lines of a command's output that are shown.
const LINES_MAX: usize = 18;

/// Takes them, if `HEARTH_TEST_PICTURES` is set: into the dashboards' directory.
pub fn take(node: &Node, prometheus: &Prometheus<'_>) {
    if std::env::var_os("HEARTH_TEST_PICTURES").is_none() {
        return;
    }
    let directory = dashboards().join("pictures");
    fs::create_dir_all(&directory).unwrap();
    let waiting = compile_many(node, 1);
    answer(node, &["modules", "list"]);
    for command in [
        &["trace", "--slowest", "--last", "4"][..],
        &["trace", "pod:stories/throttled/render"],
        &["top", "--interval", "1", "--rows", "5"],
        &["status"],
        &["traps", "--last", "1"],
    ] {
        answer(node, command);
    }
    drop(waiting);
    // As long as the panels look back.
    prometheus.wait_for("count_over_time(up{job=\"hearth\"}[2m]) >= 60");
    for (name, dashboard, panel, unit) in PICTURES {
        let of_panel = |target: &Target| target.dashboard.contains(dashboard) && target.panel == panel;
        let lines: Vec<Line> =
            panels().iter().filter(|target| of_panel(target)).flat_map(|t| lines(prometheus, t)).collect();
        assert!(!lines.is_empty(), "{panel} has nothing to show");
        fs::write(directory.join(format!("{name}.svg")), plot::svg(panel, unit, &lines)).unwrap();
    }
    assert!(photograph(node, &dashboards().join("page.png")), "chromium is not installed");
}

/// A target's series of the last two minutes.
fn lines(prometheus: &Prometheus<'_>, target: &Target) -> Vec<Line> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let parameters = [
        ("query", target.expression.clone()),
        ("start", (now - 120).to_string()),
        ("end", now.to_string()),
        ("step", "1".into()),
    ];
    let series = prometheus.ask("query_range", &parameters).unwrap();
    series.iter().map(|one| (name(&one["metric"], &target.legend), points(&one["values"]))).collect()
}

/// A series' name, as its legend has it.
fn name(metric: &Value, legend: &str) -> String {
    let mut name = String::new();
    let mut rest = legend;
    while let Some((before, after)) = rest.split_once("{{") {
        let (label, after) = after.split_once("}}").unwrap();
        name += before;
        name += metric[label.trim()].as_str().unwrap_or_default();
        rest = after;
    }
    name + rest
}

fn points(values: &Value) -> Vec<(f64, f64)> {
    let point = |value: &Value| (value[0].as_f64().unwrap(), value[1].as_str().unwrap().parse().unwrap());
    values.as_array().unwrap().iter().map(point).collect()
}

/// Puts the output of a command into the README, below the line that shows the command.
fn answer(node: &Node, command: &[&str]) {
    let said = node.hearthctl(command.iter().copied()).ok().stdout();
    let mut lines: Vec<&str> = said.lines().map(str::trim_end).take(LINES_MAX).collect();
    let more = said.lines().count().saturating_sub(lines.len());
    let more = format!("and {more} lines more");
    if said.lines().count() > lines.len() {
        lines.push(&more);
    }
    let path: PathBuf = dashboards().join("README.md");
    let text = fs::read_to_string(&path).unwrap();
    let head = format!("```text\n$ hearthctl {}\n", command.join(" "));
    let begin = text.find(&head).unwrap_or_else(|| panic!("README.md does not show {head:?}")) + head.len();
    let end = begin + text[begin..].find("```").unwrap();
    fs::write(&path, format!("{}{}\n{}", &text[..begin], lines.join("\n"), &text[end..])).unwrap();
}
