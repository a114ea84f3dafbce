//! `hearthctl generations`, `stop` and `reload`: commands to the hearthds that live on one state directory, each
//! asked on its own socket.

use std::io::Write;
use std::path::PathBuf;

use crate::client::default_socket;
use hearth_base::generation::client;
use hearth_base::generation::stop as generations;
use hearth_base::generation::wire::{Nothing, Status, question};

/// Where the generations are.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The state_dir of hearthd [default: where HEARTH_CONTROL_SOCKET is, else /run/hearth]
    #[arg(long, value_name = "DIR", default_value_os_t = state_dir(), hide_default_value = true)]
    pub state_dir: PathBuf,
}

fn state_dir() -> PathBuf {
    let mut directory = default_socket();
    directory.pop();
    directory
}

/// `stop`.
#[derive(Debug, clap::Args)]
pub struct StopArgs {
    /// Where they are.
    #[command(flatten)]
    pub at: Args,
    /// Only this one, as `generations` names it
    #[arg(long, value_name = "NAME")]
    pub generation: Option<String>,
}

/// A line for each, the youngest first.
///
/// # Errors
/// One line.
pub fn list(args: &Args, out: &mut impl Write) -> Result<(), String> {
    let printed = |e: std::io::Error| format!("cannot print: {e}");
    writeln!(out, "{:<11} {:>8} {:<9} {:<9} {:>6} {:>9}", "GENERATION", "PID", "VERSION", "NEW PODS", "TASKS", "UP")
        .map_err(printed)?;
    for status in generations::all(&args.state_dir)? {
        let Status { generation, pid, version, in_charge, tasks, up_seconds, .. } = status;
        let takes = if in_charge { "yes" } else { "no" };
        writeln!(out, "{generation:<11} {pid:>8} {version:<9} {takes:<9} {tasks:>6} {:>9}", age(up_seconds))
            .map_err(printed)?;
    }
    Ok(())
}

fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Has the one in charge read its configuration again.
///
/// # Errors
/// One line: nobody is in charge, or what it refuses.
pub fn reload(args: &Args, out: &mut impl Write) -> Result<(), String> {
    let in_charge = generations::all(&args.state_dir)?.into_iter().find(|status| status.in_charge);
    let status = in_charge.ok_or_else(|| format!("no hearthd is in charge of {}", args.state_dir.display()))?;
    client::ask_status(&args.state_dir, &status.generation, question::Body::Reload(Nothing {}))?;
    writeln!(out, "hearthd {} (pid {}) has read its configuration", status.version, status.pid)
        .map_err(|e| format!("cannot print: {e}"))
}

/// Ends generations and their guests, and waits for that.
///
/// # Errors
/// One line: which does not go.
pub fn stop(args: &StopArgs) -> Result<(), String> {
    let wanted = |status: &Status| args.generation.as_ref().is_none_or(|name| *name == status.generation);
    let ending: Vec<Status> = generations::all(&args.at.state_dir)?.into_iter().filter(wanted).collect();
    if let (Some(name), true) = (&args.generation, ending.is_empty()) {
        return Err(format!("there is no generation {name}; see `hearthctl generations`"));
    }
    generations::end(&args.at.state_dir, &ending)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_short() {
        assert_eq!([5, 600, 7_300, 500_000].map(age), ["5s", "10m", "2h", "5d"]);
    }

    #[test]
    fn where_nobody_runs_there_is_nothing_to_end() {
        let state = tempfile::tempdir().unwrap();
        let at = Args { state_dir: state.path().join("absent") };
        let mut out = Vec::new();
        list(&at, &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap().lines().count(), 1);
        assert!(reload(&at, &mut Vec::new()).unwrap_err().contains("no hearthd"));
        stop(&StopArgs { at, generation: None }).unwrap();
    }
}
