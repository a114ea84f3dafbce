//! `hearthctl generations`, `stop` and `reload`: commands to the hearthds that live on one state directory, each
//! asked on its own socket.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::CtlError;
use crate::client::{ask_one, default_socket};
use crate::output::{Printer, Table};
use hearth_base::generation::client;
use hearth_base::generation::stop as generations;
use hearth_base::generation::wire::{Nothing, Status, question};
use hearth_base::operator::{self, Question};
use hearth_base::units::age;

/// How long a daemon may take to name its state directory.
const ANSWER_TIME: Duration = Duration::from_secs(30);

/// The state directories of the generations.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The state_dir of hearthd, instead of --socket [default: where HEARTH_CONTROL_SOCKET is, else /run/hearth]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

impl Args {
    /// The directory that the command line names, else those of the daemons that answer on `sockets`, else the default.
    ///
    /// # Errors
    /// A daemon cannot be asked, or the command line names both.
    fn state_dirs(&self, sockets: &[PathBuf]) -> Result<Vec<PathBuf>, CtlError> {
        match &self.state_dir {
            Some(_) if !sockets.is_empty() => {
                Err(CtlError::Usage("--socket and --state-dir both say which hearthd is meant: use one of them".into()))
            }
            Some(directory) => Ok(vec![directory.clone()]),
            None if sockets.is_empty() => Ok(vec![default_state_dir()]),
            None => {
                let mut directories = Vec::new();
                for socket in sockets {
                    let status: operator::Status = ask_one(socket, &Question::Status, ANSWER_TIME)?;
                    let directory = PathBuf::from(status.state_dir);
                    if !directories.contains(&directory) {
                        directories.push(directory);
                    }
                }
                Ok(directories)
            }
        }
    }
}

fn default_state_dir() -> PathBuf {
    let mut directory = default_socket();
    directory.pop();
    directory
}

/// `stop`.
#[derive(Debug, clap::Args)]
pub struct StopArgs {
    /// The state directory.
    #[command(flatten)]
    pub at: Args,
    /// Only this one, as `generations` names it
    #[arg(long, value_name = "NAME")]
    pub generation: Option<String>,
}

/// A generation, for programs.
#[derive(Debug, Serialize)]
struct GenerationInfo<'a> {
    generation: &'a str,
    pid: u32,
    version: &'a str,
    takes_new_pods: bool,
    tasks: u64,
    up_seconds: u64,
}

impl<'a> From<&'a Status> for GenerationInfo<'a> {
    fn from(status: &'a Status) -> GenerationInfo<'a> {
        let Status { generation, pid, version, in_charge, tasks, up_seconds, .. } = status;
        GenerationInfo {
            generation,
            pid: *pid,
            version,
            takes_new_pods: *in_charge,
            tasks: *tasks,
            up_seconds: *up_seconds,
        }
    }
}

/// Lists the generations, the youngest first.
///
/// # Errors
/// A state directory cannot be read, or the daemon that has to name it cannot be asked.
pub fn list(args: &Args, sockets: &[PathBuf], output: &mut Printer) -> Result<(), CtlError> {
    let mut all = Vec::new();
    for directory in args.state_dirs(sockets)? {
        all.extend(generations::all(&directory).map_err(CtlError::Refused)?);
    }
    if output.json {
        return Ok(output.json(&infos(&all))?);
    }
    let mut table = Table::new(&["GENERATION", ">PID", "VERSION", "NEW PODS", ">TASKS", ">UP"]);
    for status in &all {
        table.row(vec![
            status.generation.as_str().into(),
            status.pid.to_string().into(),
            status.version.as_str().into(),
            if status.in_charge { "yes" } else { "no" }.into(),
            status.tasks.to_string().into(),
            age(status.up_seconds as f64).into(),
        ]);
    }
    Ok(output.table(&table)?)
}

fn infos(all: &[Status]) -> Vec<GenerationInfo<'_>> {
    all.iter().map(GenerationInfo::from).collect()
}

/// Has the generation that takes new pods read its configuration again.
///
/// # Errors
/// There is none, or it refuses the configuration.
pub fn reload(args: &Args, sockets: &[PathBuf], output: &mut Printer) -> Result<(), CtlError> {
    let mut reloaded = Vec::new();
    for directory in args.state_dirs(sockets)? {
        let all = generations::all(&directory).map_err(CtlError::Refused)?;
        let status = all
            .into_iter()
            .find(|status| status.in_charge)
            .ok_or_else(|| CtlError::Refused(format!("no hearthd is in charge of {}", directory.display())))?;
        client::ask_status(&directory, &status.generation, question::Body::Reload(Nothing {}))
            .map_err(CtlError::Refused)?;
        if !output.json {
            output.line(format!("hearthd {} (pid {}) has read its configuration", status.version, status.pid))?;
        }
        reloaded.push(status);
    }
    if output.json {
        output.json(&infos(&reloaded))?;
    }
    Ok(())
}

/// Ends generations and their guests, and waits for that. As JSON it prints the generations that it ended.
///
/// # Errors
/// One of them does not end, or there is none of the wanted name.
pub fn stop(args: &StopArgs, sockets: &[PathBuf], output: &mut Printer) -> Result<(), CtlError> {
    let wanted = |status: &Status| args.generation.as_ref().is_none_or(|name| *name == status.generation);
    let mut ended = Vec::new();
    for directory in args.at.state_dirs(sockets)? {
        let all = generations::all(&directory).map_err(CtlError::Refused)?;
        let ending: Vec<Status> = all.into_iter().filter(wanted).collect();
        generations::end(&directory, &ending).map_err(CtlError::Refused)?;
        ended.extend(ending);
    }
    if let (Some(name), true) = (&args.generation, ended.is_empty()) {
        return Err(CtlError::Refused(format!("there is no generation {name}; see `hearthctl generations`")));
    }
    if output.json {
        output.json(&infos(&ended))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_no_daemon_runs_there_is_nothing_to_end() {
        let state = tempfile::tempdir().unwrap();
        let at = Args { state_dir: Some(state.path().join("absent")) };
        let (mut output, printed) = Printer::to_memory();
        list(&at, &[], &mut output).unwrap();
        output.finish().unwrap();
        assert_eq!(printed.text().lines().count(), 1, "{}", printed.text());
        let Err(CtlError::Refused(text)) = reload(&at, &[], &mut output) else { panic!() };
        assert!(text.contains("no hearthd"), "{text}");
        stop(&StopArgs { at, generation: None }, &[], &mut output).unwrap();
    }

    #[test]
    fn a_socket_and_a_directory_are_not_both_taken() {
        let at = Args { state_dir: Some("/x".into()) };
        assert!(matches!(at.state_dirs(&["/y".into()]), Err(CtlError::Usage(_))));
        assert_eq!(at.state_dirs(&[]).unwrap(), [PathBuf::from("/x")]);
    }
}
