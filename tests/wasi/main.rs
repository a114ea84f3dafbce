//! `make wasi-testsuite DIR=…`: runs a checkout of the wasi-testsuite on Hearth, and on `wasmtime` beside it.
//!
//!   wasi-testsuite DIR [--wasmtime PROGRAM] [--only WORD]
//!
//! DIR is a checkout of <https://github.com/WebAssembly/wasi-testsuite> with compiled tests (branch
//! `prod/testsuite-base`). Each test runs through `ctr` on a private machine, with exactly the arguments, environment and
//! root that its specification names. The end of the output is a table. A test that `wasmtime` passes and Hearth does not
//! needs a line in `differences.txt` with the reason; a line whose test passes on Hearth is an error, too.
//! Without `--wasmtime`, every test counts as one that it passes.
//!
//! Exit code: 0 if all differences have their reason, 1 if not, 2 for a wrong call.
//!
//! Files, in reading order:
//!
//! * `main.rs`: this page: finds the tests, runs them, prints the table, checks the reasons.
//! * `case.rs`: a test with its specification.
//! * `runtime.rs`: how Hearth and `wasmtime` start a test.
//! * `run.rs`: the operations of a test, one after another.
//! * `http.rs`: the servers that tests ask, and the requests to tests.
//! * `differences.txt`: the reasons for the differences.

mod case;
mod http;
mod run;
mod runtime;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use hearth_tests::World;
use hearth_tests::daemons::HearthdOptions;

use case::Case;
use runtime::{Hearth, Runtime, Wasmtime};

/// Reasons, by the name of the test.
const DIFFERENCES: &str = include_str!("differences.txt");

/// The command line.
struct Arguments {
    directory: PathBuf,
    wasmtime: Option<PathBuf>,
    only: String,
}

/// A test's results. `Err`: what went wrong.
struct Outcome {
    name: String,
    hearth: Result<(), String>,
    wasmtime: Option<Result<(), String>>,
}

fn main() -> ExitCode {
    let Some(arguments) = arguments() else {
        eprintln!("usage: wasi-testsuite DIR [--wasmtime PROGRAM] [--only WORD]");
        return ExitCode::from(2);
    };
    let mut cases = case::find(&arguments.directory);
    cases.retain(|case| case.name.contains(&arguments.only));
    if cases.is_empty() {
        eprintln!(
            "wasi-testsuite: no compiled test in {}: is it a checkout of the branch prod/testsuite-base?",
            arguments.directory.display()
        );
        return ExitCode::from(2);
    }
    let outcomes = outcomes(&cases, arguments.wasmtime.as_deref());
    for outcome in &outcomes {
        if let Err(why) = &outcome.hearth {
            println!("{}: {}", outcome.name, why.trim_end());
        }
    }
    println!("\n{}", table(&outcomes));
    let faults = faults(&outcomes, &reasons(DIFFERENCES), arguments.only.is_empty());
    for fault in &faults {
        println!("{fault}");
    }
    ExitCode::from(u8::from(!faults.is_empty()))
}

fn arguments() -> Option<Arguments> {
    let mut words = std::env::args().skip(1);
    let mut arguments = Arguments { directory: words.next()?.into(), wasmtime: None, only: String::new() };
    while let Some(word) = words.next() {
        match word.as_str() {
            "--wasmtime" => arguments.wasmtime = Some(words.next()?.into()),
            "--only" => arguments.only = words.next()?,
            _ => return None,
        }
    }
    Some(arguments)
}

fn outcomes(cases: &[Case], wasmtime: Option<&Path>) -> Vec<Outcome> {
    let world = World::with(HearthdOptions::default());
    let hearth = Hearth::new(&world);
    let wasmtime = wasmtime.map(Wasmtime::new);
    let mut outcomes = Vec::new();
    for (index, case) in cases.iter().enumerate() {
        let root = |runtime: &str| world.path(&format!("root-{runtime}-{index}"));
        let on = |runtime: &dyn Runtime, name: &str| run::run(runtime, case, &root(name), index);
        let outcome = Outcome {
            name: case.name.clone(),
            hearth: on(&hearth, "hearth"),
            wasmtime: wasmtime.as_ref().map(|wasmtime| on(wasmtime, "wasmtime")),
        };
        let word = |result: &Result<(), String>| if result.is_ok() { "ok" } else { "FAILED" };
        eprintln!("{:<7} {:<7} {}", word(&outcome.hearth), outcome.wasmtime.as_ref().map_or("-", word), outcome.name);
        outcomes.push(outcome);
    }
    outcomes
}

/// Passed tests of all, by suite.
fn table(outcomes: &[Outcome]) -> String {
    let mut suites: BTreeMap<&str, [usize; 4]> = BTreeMap::new();
    for outcome in outcomes {
        let suite = outcome.name.rsplit_once('/').map_or("", |(suite, _)| suite);
        let [all, hearth, wasmtime, differ] = suites.entry(suite).or_default();
        *all += 1;
        *hearth += usize::from(outcome.hearth.is_ok());
        *wasmtime += usize::from(matches!(outcome.wasmtime, Some(Ok(()))));
        *differ += usize::from(outcome.differs());
    }
    let mut text = String::from("| suite | tests | Hearth | wasmtime | only wasmtime |\n|:---|---:|---:|---:|---:|\n");
    for (suite, [all, hearth, wasmtime, differ]) in suites {
        let wasmtime = match outcomes.iter().any(|outcome| outcome.wasmtime.is_some()) {
            true => wasmtime.to_string(),
            false => "not run".into(),
        };
        text += &format!("| {suite} | {all} | {hearth} | {wasmtime} | {differ} |\n");
    }
    text
}

impl Outcome {
    /// Whether wasmtime passes what Hearth does not.
    fn differs(&self) -> bool {
        self.hearth.is_err() && !matches!(self.wasmtime, Some(Err(_)))
    }
}

/// `NAME: REASON` lines; lines that begin with `#` are comments.
fn reasons(text: &str) -> BTreeMap<&str, &str> {
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines
        .map(|line| line.split_once(": ").unwrap_or_else(|| panic!("differences.txt: not `NAME: REASON`: {line}")))
        .collect()
}

/// Differences without a reason, and reasons without a difference. `all`: every test was run.
fn faults(outcomes: &[Outcome], reasons: &BTreeMap<&str, &str>, all: bool) -> Vec<String> {
    let mut faults = Vec::new();
    for outcome in outcomes {
        match (outcome.differs(), reasons.get(outcome.name.as_str())) {
            (true, None) => faults.push(format!("{}: differs from wasmtime without a reason", outcome.name)),
            (false, Some(_)) if outcome.hearth.is_ok() => {
                faults.push(format!("{}: passes; remove its line from differences.txt", outcome.name));
            }
            (true, Some(_)) | (false, _) => {}
        }
    }
    if all {
        let unknown = reasons.keys().filter(|name| !outcomes.iter().any(|outcome| outcome.name == **name));
        faults.extend(unknown.map(|name| format!("{name}: differences.txt names it, and the suite has no such test")));
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(name: &str, hearth: bool, wasmtime: Option<bool>) -> Outcome {
        let result = |ok: bool| if ok { Ok(()) } else { Err("no".to_owned()) };
        Outcome { name: name.to_owned(), hearth: result(hearth), wasmtime: wasmtime.map(result) }
    }

    #[test]
    fn a_difference_needs_a_reason_and_a_reason_a_difference() {
        let outcomes = [
            outcome("s/both", true, Some(true)),
            outcome("s/neither", false, Some(false)),
            outcome("s/known", false, Some(true)),
            outcome("s/new", false, Some(true)),
            outcome("s/mended", true, Some(true)),
            outcome("s/alone", false, None),
        ];
        let reasons = reasons("# comment\n\ns/known: because\ns/mended: it was so\ns/gone: it is not there\n");
        let faults = faults(&outcomes, &reasons, true);
        let names: Vec<_> = faults.iter().map(|fault| fault.split(':').next().unwrap()).collect();
        assert_eq!(names, ["s/new", "s/mended", "s/alone", "s/gone"]);
        assert!(table(&outcomes).contains("| s | 6 | 2 | 4 | 3 |"), "{}", table(&outcomes));
    }

    #[test]
    fn the_reasons_have_their_form() {
        assert!(reasons(DIFFERENCES).values().all(|reason| reason.ends_with('.')));
    }
}
