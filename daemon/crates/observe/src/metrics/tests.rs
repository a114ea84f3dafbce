use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;

#[test]
fn every_series_exists_before_its_first_event() {
    let text = Metrics::new().render();
    for want in [
        "hearth_start_phase_seconds_bucket{phase=\"first_call\",le=\"0.000001\"} 0",
        "hearth_module_lookups_total{source=\"warm\"} 0",
        "hearth_rpc_seconds_count{method=\"create\"} 0",
        "hearth_tasks{state=\"running\"} 0",
        "hearth_events_retried_total 0",
    ] {
        assert!(text.contains(want), "{want} is missing in\n{text}");
    }
}

#[test]
fn a_phase_lands_in_its_own_histogram() {
    let metrics = Metrics::new();
    for (phase, name) in PHASES {
        metrics.starts.phase(phase, Duration::from_micros(3));
        assert!(metrics.render().contains(&format!("hearth_start_phase_seconds_count{{phase=\"{name}\"}} 1")));
    }
}

#[test]
fn a_pods_metrics_go_with_their_last_holder() {
    let metrics = Metrics::new();
    let [one, other] = [(); 2].map(|()| metrics.http.pod(["default", "web", "server"]));
    one.response(204);
    drop(one);
    let series =
        "hearth_http_pod_requests_total{code=\"2xx\",container=\"server\",namespace=\"default\",pod=\"web\"} 1";
    assert!(metrics.render().contains(series), "{}", metrics.render());
    drop(other);
    assert!(!metrics.render().contains("pod=\"web\""), "{}", metrics.render());
}

/// A path from the repository's root.
fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..").join(path)
}

/// All files below a directory with one of these endings: path and text.
fn texts(directory: &Path, endings: &[&str]) -> Vec<(PathBuf, String)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(texts(&path, endings));
        } else if endings.iter().any(|ending| path.to_string_lossy().ends_with(ending)) {
            let text = std::fs::read_to_string(&path).unwrap();
            all.push((path, text));
        }
    }
    all
}

fn declared() -> BTreeSet<String> {
    let metrics = Metrics::new();
    metrics.engine.fingerprint("x");
    // A pod's metrics exist with their pod.
    let _pod = metrics.http.pod(["default", "pod", "container"]);
    let families = metrics.registry.gather();
    let tasks = task_series::FAMILIES.iter().map(|family| family.name.to_string());
    let process = process::FAMILIES.iter().map(|family| family.name.to_string());
    families.iter().map(|family| family.name().to_string()).chain(tasks).chain(process).collect()
}

#[test]
fn every_metric_is_on_a_dashboard_or_in_a_rule_and_nothing_else_is() {
    let mut shown = BTreeSet::new();
    for (_, text) in texts(&repository("dashboards"), &[".json", ".yaml"]) {
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':');
        for name in
            text.split(|c| !is_name(c)).filter(|word| word.starts_with("hearth_") || word.starts_with("process_"))
        {
            let name = ["_bucket", "_count", "_sum"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            shown.insert(name.to_string());
        }
    }
    let declared = declared();
    let missing: Vec<_> = declared.difference(&shown).collect();
    assert!(missing.is_empty(), "on no dashboard: {missing:?}");
    let unknown: Vec<_> = shown.difference(&declared).filter(|name| !name.ends_with("_info")).collect();
    assert!(unknown.is_empty(), "declared nowhere: {unknown:?}");
}

/// The public fields of a struct and the methods of its block, read from the source; structs of metrics in it are
/// followed. `room` is the path to it from `metrics`.
fn members(sources: &[(PathBuf, String)], name: &str, room: &str) -> Vec<String> {
    let block = |start: &str| {
        let (_, text) = sources.iter().find(|(_, text)| text.contains(start)).expect(start);
        let body = &text[text.find(start).unwrap()..];
        body[..body.find("\n}\n").unwrap()].to_string()
    };
    let mut all = Vec::new();
    for line in block(&format!("pub struct {name} {{")).lines() {
        let Some((field, kind)) = line.strip_prefix("    pub ").and_then(|line| line.split_once(": ")) else {
            continue;
        };
        match kind.strip_suffix("Metrics,") {
            Some(kind) => all.extend(members(sources, &format!("{kind}Metrics"), &format!("{room}{field}."))),
            None => all.push(format!("{room}{field}")),
        }
    }
    let methods = block(&format!("impl {name} {{"));
    let methods = methods.lines().filter_map(|line| line.strip_prefix("    pub fn ")?.split_once('('));
    all.extend(methods.filter(|(method, _)| *method != "new").map(|(method, _)| format!("{room}{method}")));
    all
}

#[test]
fn every_metric_is_touched_somewhere() {
    let own = repository("daemon/crates/observe/src/metrics").canonicalize().unwrap();
    let (own, others): (Vec<_>, Vec<_>) = texts(&repository("daemon"), &[".rs"])
        .into_iter()
        .partition(|(path, _)| path.canonicalize().unwrap().starts_with(&own));
    // Chains may be broken over lines.
    let others: Vec<String> = others.iter().map(|(_, text)| text.split_whitespace().collect::<String>()).collect();
    let members = members(&own, "Metrics", "metrics.");
    assert!(members.len() > 60, "{members:?}");
    for member in members {
        // The end of the word: `metrics.tasks.limit` is not `metrics.tasks.limit_bytes`.
        let is_touched = |text: &String| {
            text.match_indices(&*member)
                .any(|(at, _)| !text[at + member.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_'))
        };
        assert!(others.iter().any(is_touched), "{member} is declared and never touched");
    }
}
