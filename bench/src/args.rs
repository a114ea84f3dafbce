//! The command line, and what its commands set up and undo.

use std::ffi::OsString;
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use serde::Serialize;

use crate::guest::Module;
use crate::output::JsonFile;
use crate::runtimes::Runtimes;
use crate::scenario::{BundleKind, Scenario};
use crate::scratch::{BundleStore, Scratch};
use crate::signals::Signals;
use crate::{density, floor, http, namespaces, node, shim, signals, start, storm, suite, upgrade};

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
    /// Everything below but `shim`, `upgrade`, `http` and `services`: a report, and the README's numbers (as root)
    All(AllArgs),
    /// Show the report of an earlier `all` again
    Show(ShowArgs),
    /// Create + Start → first guest instruction, at hearthd and at the floor in turn (as root)
    Start(StartArgs),
    /// Exec → exit of the shim's -v, start and delete, beside /bin/true
    Shim(ShimArgs),
    /// The same starts in calm and while one hearthd takes over from another (as root)
    Upgrade(UpgradeArgs),
    /// Thousands of idle pods on one daemon, and starts beside them (as root)
    Density(DensityArgs),
    /// A thousand starts at once; starts while guests spin and modules compile (as root)
    Storm(StormArgs),
    /// The same workload through a private containerd, by Hearth, by nothing, and by other runtimes (as root)
    Node(NodeArgs),
    /// Requests to an HTTP component, at hearthd, at `wasmtime serve` and at a bare HTTP server in turn (as root)
    Http(HttpArgs),
    /// Many HTTP components at rest on one daemon, and requests to them (as root)
    Services(ServicesArgs),
    /// Serve empty Create, Start, Wait and Delete replies on a socket until SIGTERM
    NullServer {
        /// Path of the Unix socket to make
        socket: PathBuf,
    },
    /// Serve tasks that do nothing, for containerd-shim-floor-v1
    #[command(hide = true)]
    FloorDaemon { directory: PathBuf, short: String, long: String },
    /// Serve the answer in a file over HTTP
    #[command(hide = true)]
    HttpFloor { answer: PathBuf },
    /// Become a program that dies with its parent
    #[command(hide = true)]
    ExecTied {
        parent: u32,
        program: OsString,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

/// Arguments of `all`.
#[derive(Debug, clap::Args)]
pub struct AllArgs {
    /// Fewer of everything, under five minutes: the tails mean nothing
    #[arg(long)]
    quick: bool,
    /// A component (wasi:cli/command) of several megabytes, to start through containerd
    #[arg(long, value_name = "PATH")]
    component: Option<PathBuf>,
    /// The module that is compiled beside starts [default: one of 1.7 MB that the tests make]
    #[arg(long, value_name = "PATH")]
    large: Option<PathBuf>,
    /// The daemon's binary [default: hearthd beside this program]
    #[arg(long, value_name = "PATH")]
    hearthd: Option<PathBuf>,
    /// The floor's shim [default: containerd-shim-floor-v1 beside this program]
    #[arg(long, value_name = "PATH")]
    floor_shim: Option<PathBuf>,
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    shown: ShownArgs,
}

/// Arguments of `show`.
#[derive(Debug, clap::Args)]
pub struct ShowArgs {
    /// What `all --json` wrote
    report: PathBuf,
    #[command(flatten)]
    shown: ShownArgs,
}

/// What a report is made into beside text.
#[derive(Debug, clap::Args)]
struct ShownArgs {
    /// Draw charts into this directory
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
    /// Put the numbers between this file's two marks
    #[arg(long, value_name = "PATH")]
    readme: Option<PathBuf>,
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
    /// Another build of the daemon, to be measured in turn with the first
    #[arg(long, value_name = "PATH", conflicts_with = "floor_only")]
    against: Option<PathBuf>,
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
    /// Pods that live on the first daemon all the time
    #[arg(long, default_value_t = 200)]
    pods: usize,
    /// Starts a second; 0: one after another
    #[arg(long, default_value_t = 50)]
    rate: u32,
    #[command(flatten)]
    common: CommonArgs,
}

/// Arguments of `density`.
#[derive(Debug, clap::Args)]
pub struct DensityArgs {
    /// Pods of the daemon that has many
    #[arg(long, default_value_t = 10_000)]
    pods: usize,
    /// Give each pod FIFOs for stdout and stderr
    #[arg(long)]
    stdio: bool,
    /// Starts measured at each of the two daemons
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    starts: u32,
    /// The daemon's binary [default: hearthd beside this program]
    #[arg(long, value_name = "PATH")]
    hearthd: Option<PathBuf>,
    #[command(flatten)]
    common: CommonArgs,
}

/// Arguments of `storm`.
#[derive(Debug, clap::Args)]
pub struct StormArgs {
    /// Tasks started at once
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    tasks: u32,
    /// How often
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    bursts: u32,
    /// Starts measured in each state of the machine
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..))]
    starts: u32,
    /// The module that is compiled meanwhile [default: one of 1.7 MB that the tests make]
    #[arg(long, value_name = "PATH")]
    large: Option<PathBuf>,
    /// The daemon's binary [default: hearthd beside this program]
    #[arg(long, value_name = "PATH")]
    hearthd: Option<PathBuf>,
    #[command(flatten)]
    common: CommonArgs,
}

/// Arguments of `node`.
#[derive(Debug, clap::Args)]
pub struct NodeArgs {
    /// Fewer of everything, for a look: the tails mean nothing
    #[arg(long)]
    quick: bool,
    /// Idle pods at once, for their memory [default: 50, or 10 with --quick]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    idle_pods: Option<u32>,
    /// A component (wasi:cli/command) to start beside the other programs
    #[arg(long, value_name = "PATH")]
    component: Option<PathBuf>,
    /// The daemon's binary [default: hearthd beside this program]
    #[arg(long, value_name = "PATH")]
    hearthd: Option<PathBuf>,
    /// The floor's shim [default: containerd-shim-floor-v1 beside this program]
    #[arg(long, value_name = "PATH")]
    floor_shim: Option<PathBuf>,
    #[command(flatten)]
    common: CommonArgs,
}

/// Arguments of `http`.
#[derive(Debug, clap::Args)]
pub struct HttpArgs {
    /// The program wasmtime, of hearthd's version; bench/wasmtime.sh prints such a path [default: not measured]
    #[arg(long, value_name = "PATH")]
    wasmtime: Option<PathBuf>,
    #[command(flatten)]
    served: ServedArgs,
    /// The daemon's binary [default: hearthd beside this program]
    #[arg(long, value_name = "PATH")]
    hearthd: Option<PathBuf>,
    /// Another build of the daemon, to be measured in turn with the first
    #[arg(long, value_name = "PATH")]
    against: Option<PathBuf>,
    /// Fewer and shorter rounds, for a look: the tails mean nothing
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    common: CommonArgs,
}

/// What is served.
#[derive(Debug, clap::Args)]
struct ServedArgs {
    /// The HTTP component [default: the tests' own in C]
    #[arg(long, value_name = "PATH")]
    component: Option<PathBuf>,
    /// What to ask for, which must be answered with 200 [default: /count of the tests' component, / of another]
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
}

/// Arguments of `services`.
#[derive(Debug, clap::Args)]
pub struct ServicesArgs {
    /// How many
    #[arg(long, default_value_t = 1_000)]
    services: usize,
    #[command(flatten)]
    served: ServedArgs,
    /// The daemon's binary [default: hearthd beside this program]
    #[arg(long, value_name = "PATH")]
    hearthd: Option<PathBuf>,
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

impl AllArgs {
    /// The `all` command.
    ///
    /// # Errors
    /// Whatever ends the run.
    pub fn run(self) -> Result<()> {
        let json = self.common.json.as_deref().map(JsonFile::at).transpose()?;
        let options = suite::Options {
            quick: self.quick,
            hearthd: self.hearthd.map(existing).transpose()?,
            component: self.component.map(existing).transpose()?,
            large: self.large.map(existing).transpose()?,
            floor_shim: self.floor_shim.map(existing).transpose()?,
            scratch: self.common.scratch,
        };
        let suite = suite::run(&options)?;
        json.map_or(Ok(()), |json| json.write(&suite))?;
        self.shown.show(&suite)
    }
}

impl ShowArgs {
    /// The `show` command.
    ///
    /// # Errors
    /// If the report cannot be read.
    pub fn run(self) -> Result<()> {
        let path = self.report.display().to_string();
        let text = std::fs::read_to_string(&self.report).with_context(|| path.clone())?;
        let suite =
            serde_json::from_str(&text).with_context(|| format!("{path} is no report of `hearth-bench all`"))?;
        self.shown.show(&suite)
    }
}

impl ShownArgs {
    fn show(&self, suite: &suite::Suite) -> Result<()> {
        print!("{}", suite.markdown());
        self.plots.as_deref().map_or(Ok(()), |directory| suite.plots(directory))?;
        self.readme.as_deref().map_or(Ok(()), |readme| suite.write_readme(readme))
    }
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
            (false, path) => Some(hearthd(path)?),
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
        let against = self.against.map(existing).transpose()?;
        let options = start::Options { scenarios, hearthd, against, module, quick: self.quick, store };
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
        let options = upgrade::Options {
            hearthd,
            upgrades: self.upgrades as usize,
            pods: self.pods,
            pace: Duration::from_secs(1).checked_div(self.rate).unwrap_or_default(),
        };
        self.common.run(BundleStore::Memory, async |scratch: &Scratch, runtimes: &Runtimes| {
            let report = upgrade::run(&options, scratch, runtimes).await?;
            let text = report.markdown();
            Ok((report, text))
        })
    }
}

impl DensityArgs {
    /// The `density` command.
    ///
    /// # Errors
    /// Whatever ends the run.
    pub fn run(self) -> Result<()> {
        let hearthd = hearthd(self.hearthd)?;
        namespaces::enter_private_mount_namespace()?;
        let options = density::Options { hearthd, pods: self.pods, stdio: self.stdio, starts: self.starts as usize };
        self.common.run(BundleStore::Memory, async |scratch: &Scratch, _: &Runtimes| {
            let report = density::run(&options, scratch).await?;
            let text = report.markdown();
            Ok((report, text))
        })
    }
}

impl StormArgs {
    /// The `storm` command.
    ///
    /// # Errors
    /// Whatever ends the run.
    pub fn run(self) -> Result<()> {
        let hearthd = hearthd(self.hearthd)?;
        let large = self.large.unwrap_or_else(|| hearth_tests::Guest::BIG.wasm());
        namespaces::enter_private_mount_namespace()?;
        let options = storm::Options {
            hearthd,
            tasks: self.tasks as usize,
            bursts: self.bursts as usize,
            starts: self.starts as usize,
            large: Module::read(&large)?,
        };
        self.common.run(BundleStore::Memory, async |scratch: &Scratch, runtimes: &Runtimes| {
            let report = storm::run(&options, scratch, runtimes.for_clients(usize::MAX)).await?;
            let text = report.markdown();
            Ok((report, text))
        })
    }
}

impl NodeArgs {
    /// The `node` command.
    ///
    /// # Errors
    /// Whatever ends the run.
    pub fn run(self) -> Result<()> {
        let json = self.common.json.as_deref().map(JsonFile::at).transpose()?;
        let floor_shim = match self.floor_shim {
            Some(path) => existing(path)?,
            None => beside_this_program(floor::SHIM, "--floor-shim")?,
        };
        let scratch = Scratch::create(self.common.scratch.as_deref(), BundleStore::Disk)?;
        signals::remove_and_exit_on_signal(scratch.path().to_owned())?;
        let mut plan = if self.quick { node::Plan::QUICK } else { node::Plan::FULL };
        if let Some(pods) = self.idle_pods {
            plan.idle_pods = pods as usize;
        }
        let options = node::Options {
            hearthd: hearthd(self.hearthd)?,
            floor_shim,
            floor_directory: scratch.bundles().to_owned(),
            component: self.component.map(existing).transpose()?,
            plan,
        };
        let report = node::run(&options);
        let removed = scratch.remove();
        let report = report?;
        print!("{}", report.markdown());
        json.map_or(Ok(()), |json| json.write(&report))?;
        removed
    }
}

impl HttpArgs {
    /// The `http` command.
    ///
    /// # Errors
    /// Whatever ends the run.
    pub fn run(self) -> Result<()> {
        let (component, path) = self.served.found()?;
        let options = http::Options {
            hearthd: hearthd(self.hearthd)?,
            against: self.against.map(existing).transpose()?,
            wasmtime: self.wasmtime.map(existing).transpose()?,
            component,
            path,
            quick: self.quick,
        };
        namespaces::enter_private_mount_namespace()?;
        self.common.run(BundleStore::Memory, async |scratch: &Scratch, _: &Runtimes| {
            let report = http::run(&options, scratch).await?;
            let text = report.markdown();
            Ok((report, text))
        })
    }
}

impl ServedArgs {
    /// The component's file, and what it is asked for.
    fn found(self) -> Result<(PathBuf, String)> {
        let path = self.path.unwrap_or_else(|| if self.component.is_some() { "/" } else { "/count" }.into());
        ensure!(path.starts_with('/'), "--path {path} does not begin with a slash");
        Ok((self.component.map_or_else(|| Ok(hearth_tests::Guest::HTTP.wasm()), existing)?, path))
    }
}

impl ServicesArgs {
    /// The `services` command.
    ///
    /// # Errors
    /// Whatever ends the run.
    pub fn run(self) -> Result<()> {
        let (component, path) = self.served.found()?;
        let options = http::idle::Options { hearthd: hearthd(self.hearthd)?, component, path, services: self.services };
        namespaces::enter_private_mount_namespace()?;
        self.common.run(BundleStore::Memory, async |scratch: &Scratch, _: &Runtimes| {
            let report = http::idle::run(&options, scratch).await?;
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

fn hearthd(path: Option<PathBuf>) -> Result<PathBuf> {
    path.map_or_else(|| beside_this_program("hearthd", "--hearthd"), existing)
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
