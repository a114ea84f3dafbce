//! The command line, and what its commands set up and undo.

use std::ffi::OsString;
use std::future::Future;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use serde::Serialize;

use crate::guest::Module;
use crate::output::JsonFile;
use crate::runtimes::Runtimes;
use crate::scenario::{BundleKind, Scenario};
use crate::scratch::{BundleStore, Scratch};
use crate::signals::Signals;
use crate::{namespaces, shim, start, upgrade};

/// Measures how fast hearthd starts a guest, beside the floor of the same machine.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create + Start → first guest instruction, at hearthd and at the floor in turn (as root)
    Start(StartArgs),
    /// Exec → exit of the shim's -v, start and delete, beside /bin/true
    Shim(ShimArgs),
    /// The same starts in calm and while one hearthd takes over from another (as root)
    Upgrade(UpgradeArgs),
    /// Serve empty Create, Start, Wait and Delete replies on a socket until SIGTERM
    NullServer {
        /// Path of the Unix socket to make
        socket: PathBuf,
    },
    /// Become a program that dies with its parent
    #[command(hide = true)]
    ExecTied {
        parent: u32,
        program: OsString,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

/// Arguments of `start`.
#[derive(Debug, clap::Args)]
pub struct StartArgs {
    /// Run only these scenarios: parts of STAGE/CLIENTS/BUNDLE such as warm, 16/cri or cold/1/bare
    #[arg(long = "scenario", value_name = "NAME")]
    scenarios: Vec<String>,
    /// The daemon's binary [default: hearthd beside this program]
    #[arg(long, value_name = "PATH")]
    hearthd: Option<PathBuf>,
    /// Measure the floor without a daemon
    #[arg(long, conflicts_with = "hearthd")]
    floor_only: bool,
    /// Start this Wasm program, which must write to stdout first thing and end with status 0
    #[arg(long, value_name = "PATH")]
    module: Option<PathBuf>,
    /// Fewer iterations, for a look: the tails mean nothing
    #[arg(long)]
    quick: bool,
    /// Keep bundles on the scratch directory's own file system instead of a tmpfs: overlays are then
    /// synced to a disk at unmount, which disturbs the starts beside it
    #[arg(long)]
    bundles_on_disk: bool,
    #[command(flatten)]
    common: CommonArgs,
}

/// Arguments of `shim`.
#[derive(Debug, clap::Args)]
pub struct ShimArgs {
    /// The shim's binary [default: containerd-shim-hearth-v1 beside this program]
    #[arg(long, value_name = "PATH")]
    shim: Option<PathBuf>,
    /// Measure `start` against this daemon, too
    #[arg(long, value_name = "PATH")]
    hearthd: Option<PathBuf>,
    /// Executions of each command
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    #[command(flatten)]
    common: CommonArgs,
}

/// Arguments of `upgrade`.
#[derive(Debug, clap::Args)]
pub struct UpgradeArgs {
    /// The daemon's binary [default: hearthd beside this program]
    #[arg(long, value_name = "PATH")]
    hearthd: Option<PathBuf>,
    /// Upgrades, one after another
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    upgrades: u32,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, clap::Args)]
struct CommonArgs {
    /// Write the report to this JSON file, too
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
    /// Directory to work in [default: the system's temporary directory]
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
}

impl StartArgs {
    /// The `start` command.
    ///
    /// # Errors
    /// Whatever ends the run.
    pub fn run(self) -> Result<()> {
        let scenarios = Scenario::matching(&self.scenarios).map_err(anyhow::Error::msg)?;
        let hearthd = match (self.floor_only, self.hearthd) {
            (true, _) => None,
            (false, Some(path)) => Some(existing(path)?),
            (false, None) => Some(beside_this_program("hearthd", "--hearthd or --floor-only")?),
        };
        let module = match &self.module {
            Some(path) => Module::read(path)?,
            None => Module::hello()?,
        };
        let mounts = scenarios.iter().any(|scenario| scenario.bundle == BundleKind::Cri);
        let private = mounts || hearthd.is_some();
        if private {
            namespaces::enter_private_mount_namespace()?;
        }
        let store = match private && !self.bundles_on_disk {
            true => BundleStore::Memory,
            false => BundleStore::Disk,
        };
        let options = start::Options { scenarios, hearthd, module, quick: self.quick, store };
        self.common.run(store, async |scratch: &Scratch, runtimes: &Runtimes| {
            let report = start::run(&options, scratch, runtimes).await?;
            let text = report.markdown();
            Ok((report, text))
        })
    }
}

impl ShimArgs {
    /// The `shim` command.
    ///
    /// # Errors
    /// Whatever ends the run.
    pub fn run(self) -> Result<()> {
        let shim = match self.shim {
            Some(path) => existing(path)?,
            None => beside_this_program("containerd-shim-hearth-v1", "--shim")?,
        };
        let hearthd = self.hearthd.map(existing).transpose()?;
        if hearthd.is_some() {
            namespaces::enter_private_mount_namespace()?;
        }
        let options = shim::Options { shim, hearthd, runs: self.runs as usize };
        self.common.run(BundleStore::Disk, async |scratch: &Scratch, _: &Runtimes| {
            let report = shim::run(&options, scratch).await?;
            let text = report.markdown();
            Ok((report, text))
        })
    }
}

impl UpgradeArgs {
    /// The `upgrade` command.
    ///
    /// # Errors
    /// Whatever ends the run.
    pub fn run(self) -> Result<()> {
        let hearthd = match self.hearthd {
            Some(path) => existing(path)?,
            None => beside_this_program("hearthd", "--hearthd")?,
        };
        namespaces::enter_private_mount_namespace()?;
        let options = upgrade::Options { hearthd, upgrades: self.upgrades as usize };
        self.common.run(BundleStore::Memory, async |scratch: &Scratch, runtimes: &Runtimes| {
            let report = upgrade::run(&options, scratch, runtimes).await?;
            let text = report.markdown();
            Ok((report, text))
        })
    }
}

impl CommonArgs {
    /// Runs a measurement in a scratch directory until it is done or a signal comes, undoes
    /// everything, and only then prints and writes its report.
    fn run<R, M>(self, store: BundleStore, measure: M) -> Result<()>
    where
        R: Serialize,
        M: AsyncFnOnce(&Scratch, &Runtimes) -> Result<(R, String)>,
    {
        let json = self.json.as_deref().map(JsonFile::at).transpose()?;
        let scratch = Scratch::create(self.scratch.as_deref(), store)?;
        let runtimes = Runtimes::build()?;
        let measured = measure(&scratch, &runtimes);
        let result = runtimes.alone.block_on(until_interrupted(measured));
        // Clients' tasks hold mounts and files in the scratch directory.
        drop(runtimes);
        let removed = scratch.remove();
        let (report, text) = result?;
        print!("{text}");
        json.map_or(Ok(()), |json| json.write(&report))?;
        removed
    }
}

async fn until_interrupted<R>(work: impl Future<Output = Result<R>>) -> Result<R> {
    let mut signals = Signals::watch()?;
    tokio::select! {
        interrupted = signals.first() => Err(interrupted.into()),
        result = work => result,
    }
}

fn existing(path: PathBuf) -> Result<PathBuf> {
    ensure!(path.is_file(), "there is no file {}", path.display());
    path.canonicalize().with_context(|| format!("cannot find {}", path.display()))
}

fn beside_this_program(name: &str, flags: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this program's own path")?;
    let path = own.with_file_name(name);
    ensure!(path.is_file(), "there is no {}: build it, or say {flags}", path.display());
    Ok(path)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_tied_programs_own_flags_are_its_own() {
        let args = ["hearth-bench", "exec-tied", "7", "--", "prog", "--config", "x"];
        let Command::ExecTied { parent, program, arguments } = Args::parse_from(args).command else {
            panic!("another command");
        };
        assert_eq!((parent, program), (7, OsString::from("prog")));
        assert_eq!(arguments, ["--config", "x"].map(OsString::from));
    }

    #[test]
    fn floor_only_and_a_daemon_exclude_each_other() {
        let args = ["hearth-bench", "start", "--floor-only", "--hearthd", "x"];
        assert!(Args::try_parse_from(args).is_err());
    }
}
