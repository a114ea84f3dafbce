//! `make e2e`: stories on a real Kubernetes of one node, which runs Hearth pods; kubectl is the client.
//!
//!   e2e [WORD...]   runs the stories whose names contain one of the words; all stories without a word
//!
//! `HEARTH_E2E_KUBERNETES` names the directory of Kubernetes' programs, as `tests/e2e/kubernetes.sh` prints it.
//! The report, a table of stories with time and result, is the end of its output. A failed story does not
//! stop the run; the logs of all programs are then in `target/e2e`, and the exit code is 1.
//!
//! Files, in reading order:
//!
//! * `main.rs`: this page: runs the stories and prints the report.
//! * `cluster.rs`: a Kubernetes of one node, on a private machine.
//! * `certificates.rs`: certificates and kubeconfig files.
//! * `images.rs`: the images of the stories and of the pages in `deploy/`.
//! * `story.rs`: a story's tools: a namespace, kubectl, requests.
//! * `stories/`: the stories.
//! * `kubernetes.sh`: builds the programs of a Kubernetes, once.
//! * `install-deps.sh`: installs the packages that `make e2e` needs.

mod certificates;
mod cluster;
mod images;
mod stories;
mod story;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use hearth_tests::paths;

use crate::cluster::Cluster;
use crate::stories::{STORIES, StoryFn};
use crate::story::Story;

/// The result of a story.
struct Outcome {
    name: &'static str,
    time: Duration,
    failure: Option<String>,
    notes: Vec<String>,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let wanted = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word.as_str()));
    let stories_to_run: Vec<_> = STORIES.iter().filter(|(name, _)| wanted(name)).collect();
    if stories_to_run.is_empty() {
        let names: Vec<_> = STORIES.iter().map(|(name, _)| *name).collect();
        eprintln!("e2e: no story has {} in its name; there are:\n{}", words.join(" or "), names.join("\n"));
        return ExitCode::from(2);
    }
    let Some(programs) = std::env::var_os("HEARTH_E2E_KUBERNETES").map(PathBuf::from) else {
        eprintln!("e2e: HEARTH_E2E_KUBERNETES names no directory; `make e2e` sets it");
        return ExitCode::from(2);
    };
    if !programs.join("kubelet").exists() {
        eprintln!("e2e: there is no kubelet in {}, which HEARTH_E2E_KUBERNETES names", programs.display());
        return ExitCode::from(2);
    }
    let begun = Instant::now();
    let mut cluster = Cluster::new(&programs);
    images::import(cluster.node(), &programs);
    println!("e2e: Kubernetes is up after {:.1} s", begun.elapsed().as_secs_f64());
    let mut outcomes: Vec<_> =
        stories_to_run.iter().map(|(name, story_fn)| run(&mut cluster, name, *story_fn)).collect();
    let ended = Instant::now();
    let failure = end(cluster, outcomes.iter().any(|outcome| outcome.failure.is_some()));
    outcomes.push(Outcome { name: "everything is removed", time: ended.elapsed(), failure, notes: Vec::new() });
    report(&outcomes, begun.elapsed());
    if outcomes.iter().any(|outcome| outcome.failure.is_some()) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn run(cluster: &mut Cluster, name: &'static str, story_fn: StoryFn) -> Outcome {
    println!("e2e: {name}");
    let begun = Instant::now();
    let (mut notes, mut failure) = (Vec::new(), None);
    // A story's state is its namespace, which no other story uses.
    let went = catch_unwind(AssertUnwindSafe(|| {
        let mut story = Story::begin(cluster, name);
        story_fn(&mut story);
        story.notes
    }));
    match went {
        Ok(of_story) => notes = of_story,
        Err(panic) => {
            failure = Some(message(panic.as_ref()));
            let kept = paths::target().join("e2e").join(name.replace("::", "-"));
            cluster.keep_logs(&kept);
            println!("e2e: {name} FAILED; all logs are in {}", kept.display());
        }
    }
    let time = begun.elapsed();
    story::end(cluster, name);
    Outcome { name, time, failure, notes }
}

/// Stops everything. Returns the leftovers, if there are any.
fn end(cluster: Cluster, failed: bool) -> Option<String> {
    let removed = catch_unwind(AssertUnwindSafe(move || {
        cluster.empty();
        drop(cluster);
    }));
    let left = removed.err().map(|panic| message(panic.as_ref()))?;
    Some(if failed { format!("of a story that failed, perhaps: {left}") } else { left })
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_else(|| "it panicked".into())
}

fn report(outcomes: &[Outcome], time: Duration) {
    let width = outcomes.iter().map(|outcome| outcome.name.len()).max().unwrap_or_default();
    println!("\n{:width$}  {:>8}  result", "story", "seconds");
    for Outcome { name, time, failure, notes } in outcomes {
        let result = if failure.is_some() { "FAILED" } else { "passed" };
        println!("{name:width$}  {:8.1}  {result}", time.as_secs_f64());
        for line in failure.iter().flat_map(|failure| failure.lines().take(12)).chain(notes.iter().map(String::as_str))
        {
            println!("    {line}");
        }
    }
    let failed = outcomes.iter().filter(|outcome| outcome.failure.is_some()).count();
    println!("\n{} passed, {failed} failed", outcomes.len() - failed);
    println!("in {:.0} s", time.as_secs_f64());
}
