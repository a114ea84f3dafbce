//! The command line. `run.rs` sets up and undoes each command.
//!
//! Files:
//!
//! * `run.rs`: the commands: set-up, measurement, report, clean-up.

mod run;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Measures how fast hearthd starts a guest, beside the floor of the same machine.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Args {
    /// The command to run.
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
    /// First start, second start and memory of programs that others publish (as root)
    Programs(ProgramsArgs),
    /// Pods one after another through a private containerd: start times and the daemon's resources, by the thousand (as root)
    Soak(SoakArgs),
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
    /// The report that `all --json` wrote
    report: PathBuf,
    #[command(flatten)]
    shown: ShownArgs,
}

/// The forms of a report beside text.
#[derive(Debug, clap::Args)]
struct ShownArgs {
    /// Draw charts into this directory
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
    /// Put the numbers between this file's two marks
    #[arg(long, value_name = "PATH")]
    readme: Option<PathBuf>,
    /// Put the table of programs between this file's two marks
    #[arg(long, value_name = "PATH")]
    figures: Option<PathBuf>,
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

/// Arguments of `programs`.
#[derive(Debug, clap::Args)]
pub struct ProgramsArgs {
    /// The daemon's binary [default: hearthd beside this program]
    #[arg(long, value_name = "PATH")]
    hearthd: Option<PathBuf>,
    /// Put the table between this file's two marks
    #[arg(long, value_name = "PATH")]
    figures: Option<PathBuf>,
    #[command(flatten)]
    common: CommonArgs,
}

/// Arguments of `soak`.
#[derive(Debug, clap::Args)]
pub struct SoakArgs {
    /// The daemon's binary [default: hearthd beside this program]
    #[arg(long, value_name = "PATH")]
    hearthd: Option<PathBuf>,
    /// How many pods
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    pods: u32,
    /// After how many pods the resources are read
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    every: u32,
    /// Whole pods through CRI, and not containers through the Tasks API
    #[arg(long)]
    cri: bool,
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
    /// Another component, measured after the first, at /; as often as needed
    #[arg(long, value_name = "PATH")]
    also: Vec<PathBuf>,
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

/// The component that is served.
#[derive(Debug, clap::Args)]
struct ServedArgs {
    /// The HTTP component [default: the tests' own in C]
    #[arg(long, value_name = "PATH")]
    component: Option<PathBuf>,
    /// The path of the requests, which must be answered with 200 [default: /count of the tests' component, / of
    /// another]
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
}

/// Arguments of `services`.
#[derive(Debug, clap::Args)]
pub struct ServicesArgs {
    /// How many
    #[arg(long, visible_alias = "count", default_value_t = 1_000)]
    services: usize,
    /// Components that they are made of: copies of the one, each with a module of its own
    #[arg(long, default_value_t = 1)]
    components: usize,
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
