//! `hearthctl check`: is this node right for hearthd? Each line is ok, warn or fail, with the remedy.
//!
//! It looks at the node itself and asks the running programs, hearthd and containerd, rather than read their
//! files: the files may have changed since the programs read them.

mod containerd;
mod daemon;
mod host;

use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use crate::CtlError;
use crate::client::{self, DaemonClient};
use crate::output::{Cell, Printer, Table, Tone};
use hearth_base::operator::{Question, Status};

/// The containerd and handler to check, and the exit status.
#[derive(clap::Args)]
pub struct Args {
    /// containerd's socket [default: the one hearthd serves, else /run/containerd/containerd.sock]
    #[arg(long, value_name = "PATH")]
    containerd: Option<PathBuf>,
    /// The handler that the RuntimeClass names
    #[arg(long, value_name = "NAME", default_value = "hearth")]
    handler: String,
    /// Leave containerd out
    #[arg(long)]
    no_containerd: bool,
    /// Exit with 1 for warnings, too
    #[arg(long)]
    strict: bool,
}

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// It works, but not well, or not in every case.
    Warn,
    /// It does not work.
    Fail,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    name: &'static str,
    #[serde(rename = "state")]
    severity: Severity,
    detail: String,
    /// The remedy; empty if the check is ok.
    remedy: String,
}

impl Finding {
    fn ok(name: &'static str, detail: impl Into<String>) -> Finding {
        Finding { name, severity: Severity::Ok, detail: detail.into(), remedy: String::new() }
    }

    fn warn(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { name, severity: Severity::Warn, detail: detail.into(), remedy: remedy.into() }
    }

    fn fail(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { name, severity: Severity::Fail, detail: detail.into(), remedy: remedy.into() }
    }
}

/// The containerd of a node, unless the command line or hearthd names another.
const CONTAINERD: &str = "/run/containerd/containerd.sock";

pub fn run(args: &Args, sockets: &[PathBuf], output: &mut Printer) -> Result<ExitCode, CtlError> {
    let sockets = if sockets.is_empty() { vec![client::default_socket()] } else { sockets.to_vec() };
    let ask = |socket: &PathBuf| {
        DaemonClient::open(std::slice::from_ref(socket)).and_then(|client| client.ask::<Status>(&Question::Status))
    };
    // A daemon that is down is one finding among others.
    let mut answers: Vec<(PathBuf, Result<Status, CtlError>)> = Vec::new();
    for socket in sockets {
        let answer = ask(&socket);
        answers.push((socket, answer));
    }
    // The first takes new pods: the node has to be right for that one, and containerd has to dial it.
    let (first, answer) = &answers[0];
    let mut findings = host::check(answer.as_ref().ok());
    for (socket, answer) in &answers {
        findings.extend(daemon::check(socket, answer));
    }
    if !args.no_containerd {
        let served = answer.as_ref().ok().and_then(|status| status.containerds.first().map(PathBuf::from));
        let containerd = args.containerd.clone().or(served).unwrap_or_else(|| CONTAINERD.into());
        findings.extend(containerd::check(&containerd, &args.handler, first));
    }
    show(&findings, output)?;
    let worst = findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Ok);
    let limit = if args.strict { Severity::Warn } else { Severity::Fail };
    Ok(if worst >= limit { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

fn show(findings: &[Finding], output: &mut Printer) -> Result<(), CtlError> {
    if output.json {
        return Ok(output.json(&findings)?);
    }
    let mut table = Table::new(&["", "", ""]);
    for finding in findings {
        let state = match finding.severity {
            Severity::Ok => Cell::toned(Tone::Good, "ok"),
            Severity::Warn => Cell::toned(Tone::Warn, "warn"),
            Severity::Fail => Cell::toned(Tone::Bad, "FAIL"),
        };
        let text = match finding.remedy.as_str() {
            "" => finding.detail.clone(),
            remedy => format!("{} -> {remedy}", finding.detail),
        };
        table.row(vec![state, finding.name.into(), text.into()]);
    }
    output.table(&table)?;
    Ok(())
}
