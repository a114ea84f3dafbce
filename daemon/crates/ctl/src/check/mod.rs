//! `hearthctl check`: is this node right for hearthd? Each line is ok, warn or fail, with the remedy.
//!
//! It looks at the node itself and asks the running programs, hearthd and containerd, rather than read their
//! files: what counts is what they have read.

mod containerd;
mod daemon;
mod host;

use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use crate::client::{self, DaemonClient};
use crate::output::{Cell, Printer, Table, Tone};
use crate::{CtlError, Outcome};
use hearth_base::operator::{Question, Status};

/// What to check against.
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

/// How something is.
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
    state: Severity,
    detail: String,
    /// What to do; empty if it is ok.
    remedy: String,
}

impl Finding {
    fn ok(name: &'static str, detail: impl Into<String>) -> Finding {
        Finding { name, state: Severity::Ok, detail: detail.into(), remedy: String::new() }
    }

    fn warn(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { name, state: Severity::Warn, detail: detail.into(), remedy: remedy.into() }
    }

    fn fail(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { name, state: Severity::Fail, detail: detail.into(), remedy: remedy.into() }
    }
}

/// The containerd of a node, if nobody says otherwise.
const CONTAINERD: &str = "/run/containerd/containerd.sock";

pub fn run(args: &Args, sockets: &[PathBuf], output: &mut Printer) -> Outcome {
    let socket = sockets.first().cloned().unwrap_or_else(client::default_socket);
    // A daemon that is down is one finding among others.
    let asked =
        DaemonClient::open(std::slice::from_ref(&socket)).and_then(|client| client.ask::<Status>(&Question::Status));
    let mut findings = host::check(asked.as_ref().ok());
    findings.extend(daemon::check(&socket, &asked));
    if !args.no_containerd {
        let served = asked.ok().and_then(|status| status.containerds.first().map(PathBuf::from));
        let containerd = args.containerd.clone().or(served).unwrap_or_else(|| CONTAINERD.into());
        findings.extend(containerd::check(&containerd, &args.handler, &socket));
    }
    show(&findings, output)?;
    let worst = findings.iter().map(|finding| finding.state).max().unwrap_or(Severity::Ok);
    let limit = if args.strict { Severity::Warn } else { Severity::Fail };
    Ok(if worst >= limit { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

fn show(findings: &[Finding], output: &mut Printer) -> Result<(), CtlError> {
    if output.json {
        return Ok(output.json(&findings)?);
    }
    let mut table = Table::new(&["", "", ""]);
    for finding in findings {
        let state = match finding.state {
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
