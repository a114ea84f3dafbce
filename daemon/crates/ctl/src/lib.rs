//! `hearthctl`, the tool for operators of a node. Each verb has a file. It asks the daemon over its control socket and
//! prints the answer, as text for people or as JSON for programs. It links no wasmtime.
//!
//! | exit status | means |
//! |---:|---|
//! | 0 | done; of `check`: no check failed |
//! | 1 | hearthd refused, or there is no such task, or a check failed |
//! | 2 | the command line is wrong |
//! | 3 | hearthd cannot be asked |
//!
//! The global flags `--socket`, `--json` and `--color` have their meaning for each verb. A verb for which one of them has
//! none refuses it (exit status 2): see `Command::refused_flags`.
//!
//! # Files
//!
//! * `lib.rs`: the command line, its global flags, exit statuses.
//! * `main.rs`: the entry point of the program.
//! * `client.rs`: questions to the daemons of a node over their control sockets; errors when one does not answer.
//! * `output.rs`: tables, JSON, colours, and texts without control characters.
//! * `status.rs`: `status`, the state of the daemon.
//! * `ps.rs`: `ps`, the list of tasks; how a task, its pod, its image and its state are printed.
//! * `top.rs`: `top`, CPU time and memory of tasks between two samples.
//! * `inspect.rs`: `inspect`, all about one task; how a task is found by the beginning of its id or by its pod.
//! * `trace.rs`: `trace`, the phases of a start as a timeline; the last or the slowest starts.
//! * `requests.rs`: `trace --requests`, the last slow HTTP requests, and those of one trace.
//! * `traps.rs`: `traps`, the last guests that trapped, ran out of memory or could not be started.
//! * `logs.rs`: `logs` and `log-level`, the daemon's log lines and their level.
//! * `modules.rs`: `modules list`, `verify` and `prune`, the compiled modules.
//! * `warm.rs`: `modules warm`, a compile before the first start.
//! * `drain.rs`: `drain`, no new tasks.
//! * `generations.rs`: `generations`, `reload` and `stop`, for all daemons of one state directory.
//! * `generate.rs`: `completion` and `manual`, shell completions and manual pages.
//! * `check/mod.rs`: `check`, whether this node is right for hearthd: ok, warn or fail, with the remedy.
//! * `check/host.rs`: `check`: kernel, memory mappings, overcommit, mount propagation of the node, clock.
//! * `check/daemon.rs`: `check`: control socket, release, descriptors, module store, metrics, mounts of hearthd.
//! * `check/containerd.rs`: `check`: containerd's release, the handler that it has read, the shim in its PATH.
//! * `containerd_config/mod.rs`: `install containerd` and `uninstall containerd`: which containerd and which files; the printed report.
//! * `containerd_config/edit.rs`: the handler, the import and the version line in one configuration; `disabled_plugins`.
//! * `containerd_config/lines.rs`: an edit that keeps line ends, quotes and comments byte for byte.
//! * `containerd_config/plan.rs`: which files are changed on containerd 1.x and 2.x, k3s, RKE2, microk8s; the backup.
//! * `containerd_config/ask.rs`: asks the installed containerd whether an edited file gives it the handler.
//! * `containerd_config/write.rs`: replaces files as a whole; puts them back if a later step fails.
//!
//! # Libraries
//!
//! Figures are of a small program, stripped, by the profile `release` (346 kB without the library).
//!
//! | field | by | why |
//! |---|---|---|
//! | colours | anstyle | clap links it |
//! | RFC 3339 in `logs` | humantime | 7 kB; the same with time is 11 kB, with jiff 210 kB |
//! | configuration files | toml_edit | keeps comments and order |
//! | diffs, and the lines that an edit leaves alone | similar | |
//! | tables | `output.rs`, 40 lines | comfy-table is 169 kB, and its cells end in blanks |
//! | bytes, durations and ages | `hearth_base::units`, 40 lines, for the status page too | bytesize prints `1024.0 KiB` for 1,048,575; humantime prints `5m 12s` for the documented `5m12s` |
//! | when colours are used | `output.rs`, 5 lines | anstream removes the control sequences with which `top` clears the terminal, and is 19 kB |
#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    reason = "hearthctl is a program of its own: it has no descriptor or right of the daemon's"
)]

mod client;
mod output;

mod check;
mod containerd_config;
mod drain;
mod generate;
mod generations;
mod inspect;
mod logs;
mod modules;
mod ps;
mod requests;
mod status;
mod top;
mod trace;
mod traps;
mod warm;

/// Parsers for the fuzz targets.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    pub use crate::containerd_config::edit;
}

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use client::DaemonClient;
use containerd_config::Action;
use output::{ColorChoice, Printer};

/// Inspects and controls the node's hearthd: tasks, their costs, slow starts.
#[derive(Parser)]
#[command(name = "hearthctl", version, max_term_width = 110)]
#[command(
    after_help = "Exit status: 0 done, 1 refused or not found or a check failed, 2 wrong usage, 3 hearthd cannot be asked."
)]
struct Args {
    /// The control socket of hearthd; repeated for several daemons [default: HEARTH_CONTROL_SOCKET, else
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
    /// The state of the daemon: tasks, pool, modules, workers
    Status,
    /// List the tasks
    Ps(ps::Args),
    /// Show the tasks that use the node most, again and again
    Top(top::Args),
    /// Everything about one task
    Inspect(inspect::TaskName),
    /// One start, phase by phase; without a task, the last starts; or slow HTTP requests
    Trace(trace::Args),
    /// The last guests that trapped, ran out of memory or could not be started
    Traps(traps::Args),
    /// The daemon's log, of all tasks or of one
    Logs(logs::Args),
    /// Show or change the level of the daemon's log
    LogLevel(logs::LevelArgs),
    /// Compiled modules: list, check, remove, compile
    #[command(subcommand)]
    Modules(modules::Command),
    /// Is this node right? Kernel, limits, sockets, mounts, containerd, clock
    Check(check::Args),
    /// Accept no new tasks; running tasks continue
    Drain(drain::Args),
    /// List the running hearthds: the one that takes new pods, and older ones that still serve theirs
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

/// Why a verb failed, in one line with the remedy.
#[derive(Debug)]
pub enum CtlError {
    /// hearthd refused, or there is no such thing: exit status 1.
    Refused(String),
    /// hearthd cannot be asked: exit status 3.
    Unreachable(String),
    /// The command line contradicts itself: exit status 2.
    Usage(String),
    /// The answer cannot be shown.
    Print(io::Error),
}

impl From<io::Error> for CtlError {
    fn from(error: io::Error) -> Self {
        CtlError::Print(error)
    }
}

/// Runs the verb of the command line.
pub fn main() -> ExitCode {
    let matches = command().get_matches();
    let args = Args::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    for (flag, why) in args.command.refused_flags() {
        if matches.value_source(flag) == Some(ValueSource::CommandLine) {
            let text = format!("--{flag} has no meaning here: {why}");
            command().error(ErrorKind::ArgumentConflict, text).exit();
        }
    }
    match run(args) {
        Ok(code) => code,
        // The reader has closed the pipe: `hearthctl ps | head -1`.
        Err(CtlError::Print(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(CtlError::Print(error)) => fail(&format!("cannot print: {error}"), 1),
        Err(CtlError::Refused(text)) => fail(&text, 1),
        Err(CtlError::Usage(text)) => fail(&text, 2),
        Err(CtlError::Unreachable(text)) => fail(&text, 3),
    }
}

/// The command line as clap has it, with all verbs.
pub fn command() -> clap::Command {
    Args::command()
}

impl Command {
    /// The global flags that this verb refuses, each with the reason. All others it has to honour.
    fn refused_flags(&self) -> &'static [(&'static str, &'static str)] {
        match self {
            Command::Completion(_) => &[
                ("socket", "completions do not depend on a hearthd"),
                ("json", "completions are printed as the shell reads them"),
                ("color", "completions are printed as the shell reads them"),
            ],
            Command::Manual(_) => &[
                ("socket", "manual pages do not depend on a hearthd"),
                ("json", "manual pages are written in troff"),
                ("color", "manual pages are written in troff"),
            ],
            Command::Install(_) | Command::Uninstall(_) => &[(
                "socket",
                "no hearthd is asked; containerd's shims find hearthd by HEARTH_CONTROL_SOCKET in containerd's environment",
            )],
            _ => &[],
        }
    }
}

fn fail(text: &str, code: u8) -> ExitCode {
    eprintln!("hearthctl: {text}");
    ExitCode::from(code)
}

fn run(args: Args) -> Result<ExitCode, CtlError> {
    let mut output = Printer::stdout(args.json, args.color);
    let output = &mut output;
    let sockets = args.socket.as_slice();
    let client = || DaemonClient::open(sockets);
    let mut code = ExitCode::SUCCESS;
    match args.command {
        Command::Status => status::run(&client()?, output)?,
        Command::Ps(command) => ps::run(&command, &client()?, output)?,
        Command::Modules(command) => modules::run(&command, &client()?, output)?,
        Command::Top(command) => top::run(&command, &client()?, output)?,
        Command::Inspect(name) => inspect::run(&name, &client()?, output)?,
        Command::Trace(command) => trace::run(&command, &client()?, output)?,
        Command::Traps(command) => traps::run(&command, &client()?, output)?,
        Command::Logs(command) => logs::logs(&command, &client()?, output)?,
        Command::LogLevel(command) => logs::level(&command, &client()?, output)?,
        Command::Check(command) => code = check::run(&command, sockets, output)?,
        Command::Drain(command) => drain::run(&command, &client()?, output)?,
        Command::Generations(command) => generations::list(&command, sockets, output)?,
        Command::Reload(command) => generations::reload(&command, sockets, output)?,
        Command::Stop(command) => generations::stop(&command, sockets, output)?,
        Command::Install(OtherProgram::Containerd(command)) => {
            containerd_config::run(Action::Install, &command, output)?
        }
        Command::Uninstall(OtherProgram::Containerd(command)) => {
            containerd_config::run(Action::Uninstall, &command, output)?
        }
        Command::Completion(command) => generate::completion(&command, Args::command())?,
        Command::Manual(command) => generate::manual(&command, Args::command())?,
    }
    output.finish()?;
    Ok(code)
}

#[cfg(test)]
mod tests;
