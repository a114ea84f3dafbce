//! `hearthctl`: what an operator types. One file for each command; each asks the daemon over its control
//! socket ([`client`]) and shows the answer ([`output`]).
//!
//! | exit status | means |
//! |---:|---|
//! | 0 | done; of `check`: nothing failed |
//! | 1 | hearthd refused, or what was looked for is not there, or a check failed |
//! | 2 | the command line is wrong |
//! | 3 | hearthd cannot be asked |

pub mod client;
pub mod output;

mod check;
mod containerd_config;
mod drain;
mod generate;
pub mod generations;
mod inspect;
mod logs;
mod modules;
mod ps;
mod status;
mod top;
mod trace;
mod traps;
mod warm;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use client::DaemonClient;
use containerd_config::Action;
use output::{ColorChoice, Printer};

/// Looks into the node's hearthd: what runs, what it costs, why a start was slow.
#[derive(Parser)]
#[command(name = "hearthctl", version, max_term_width = 110)]
#[command(
    after_help = "Exit status: 0 done, 1 refused or not found or a check failed, 2 wrong usage, 3 hearthd cannot be asked."
)]
struct Args {
    /// The control socket of hearthd; several times for several of them [default: HEARTH_CONTROL_SOCKET, else
    /// /run/hearth/control.sock]
    #[arg(long, value_name = "PATH", global = true)]
    socket: Vec<PathBuf>,
    /// Print JSON, for programs
    #[arg(long, global = true)]
    json: bool,
    /// When to use colours
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = ColorChoice::Auto, global = true)]
    color: ColorChoice,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// How the daemon is: tasks, pool, modules, workers
    Status,
    /// List the tasks
    Ps(ps::Args),
    /// Look again and again at the tasks that use the node
    Top(top::Args),
    /// All that is known of one task
    Inspect(inspect::TaskName),
    /// What a start did, phase by phase; without a task, the last starts
    Trace(trace::Args),
    /// The last guests that trapped, ran out of memory or could not be started
    Traps(traps::Args),
    /// The daemon's log, of all or about one task
    Logs(logs::Args),
    /// What the daemon's log lets through, and changing that
    LogLevel(logs::LevelArgs),
    /// What is compiled, and what is kept
    #[command(subcommand)]
    Modules(modules::Command),
    /// Is this node right? Kernel, limits, sockets, containerd, clock
    Check(check::Args),
    /// Take no new tasks; those that run go on
    Drain(drain::Args),
    /// List the hearthds that live: the one that takes new pods, and those that serve theirs until the last has ended
    Generations(generations::Args),
    /// Have hearthd read its configuration again
    Reload(generations::Args),
    /// End hearthd and its pods, on this node all of them
    Stop(generations::StopArgs),
    /// Put Hearth into another program's configuration
    #[command(subcommand)]
    Install(OtherProgram),
    /// Take Hearth out of another program's configuration
    #[command(subcommand)]
    Uninstall(OtherProgram),
    /// Print completions for a shell
    Completion(generate::Completion),
    /// Write the manual pages into a directory
    #[command(hide = true)]
    Manual(generate::Manual),
}

/// The other program.
#[derive(Subcommand)]
enum OtherProgram {
    /// containerd's configuration: the runtime handler
    Containerd(containerd_config::Args),
}

/// What a command cannot do, in one line with the remedy.
#[derive(Debug)]
pub enum CtlError {
    /// hearthd refused, or it is not there: exit status 1.
    Refused(String),
    /// hearthd cannot be asked: exit status 3.
    Unreachable(String),
    /// The answer cannot be shown.
    Print(io::Error),
}

impl From<io::Error> for CtlError {
    fn from(error: io::Error) -> Self {
        CtlError::Print(error)
    }
}

/// The exit status of a command line that was understood and carried out, or not.
type Outcome = Result<ExitCode, CtlError>;

/// Does what the command line says.
pub fn main() -> ExitCode {
    let args = Args::parse();
    match run(args) {
        Ok(code) => code,
        // Who reads has seen enough: `hearthctl ps | head -1`.
        Err(CtlError::Print(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(CtlError::Print(error)) => fail(&format!("cannot print: {error}"), 1),
        Err(CtlError::Refused(text)) => fail(&text, 1),
        Err(CtlError::Unreachable(text)) => fail(&text, 3),
    }
}

fn fail(text: &str, code: u8) -> ExitCode {
    eprintln!("hearthctl: {text}");
    ExitCode::from(code)
}

fn run(args: Args) -> Outcome {
    let mut output = Printer::stdout(args.json, args.color);
    let client = || DaemonClient::open(&args.socket);
    match args.command {
        Command::Status => status::run(&client()?, &mut output)?,
        Command::Ps(command) => ps::run(&command, &client()?, &mut output)?,
        Command::Modules(command) => modules::run(&command, &client()?, &mut output)?,
        Command::Top(command) => top::run(&command, &client()?, &mut output)?,
        Command::Inspect(name) => inspect::run(&name, &client()?, &mut output)?,
        Command::Trace(command) => trace::run(&command, &client()?, &mut output)?,
        Command::Traps(command) => traps::run(&command, &client()?, &mut output)?,
        Command::Logs(command) => logs::logs(&command, &client()?, &mut output)?,
        Command::LogLevel(command) => logs::level(&command, &client()?, &mut output)?,
        Command::Check(command) => {
            let code = check::run(&command, &args.socket, &mut output)?;
            output.finish()?;
            return Ok(code);
        }
        Command::Drain(command) => drain::run(&command, &client()?, &mut output)?,
        Command::Generations(args) => print(|out| generations::list(&args, out))?,
        Command::Reload(args) => print(|out| generations::reload(&args, out))?,
        Command::Stop(args) => generations::stop(&args).map_err(CtlError::Refused)?,
        Command::Install(OtherProgram::Containerd(args)) => {
            print(|out| containerd_config::run(Action::Install, &args, out))?
        }
        Command::Uninstall(OtherProgram::Containerd(args)) => {
            print(|out| containerd_config::run(Action::Uninstall, &args, out))?
        }
        Command::Completion(command) => generate::completion(&command, Args::command())?,
        Command::Manual(command) => generate::manual(&command, Args::command())?,
    }
    output.finish()?;
    Ok(ExitCode::SUCCESS)
}

/// Shows what a command has done so far, also if it fails.
fn print(command: impl FnOnce(&mut Vec<u8>) -> Result<(), String>) -> Result<(), CtlError> {
    let mut text = Vec::new();
    let result = command(&mut text);
    io::stdout().lock().write_all(&text)?;
    result.map_err(CtlError::Refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }
}
