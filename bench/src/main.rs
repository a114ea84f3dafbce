//! `hearth-bench`: how fast hearthd starts a guest, straight at its task socket, beside the least
//! that any daemon could take on the same machine in the same run.
//!
//! # What the numbers mean
//!
//! A *start* is a Create and a Start call, one after the other on one ttrpc connection. Bundles, FIFOs and images are
//! made before its clock starts, and the guest's end, Delete and the removal of the bundle come after the clock has
//! stopped. With 16 clients, each on a connection of its own, all prepare, then all start at the same moment, then all
//! finish: this is a burst, in which every start waits for the others.
//!
//! * **Start reply**: Create sent → Start answered: the time that containerd waits. It is *not* the guest's first
//!   instruction: hearthd answers Start as soon as nothing can stand in the guest's way any more and it is in a
//!   worker's queue, often before there is an instance.
//! * **first byte**: Create sent → the byte read that the guest writes to stdout (a FIFO) as its
//!   first act: the guest's first instructions, seen from outside. This includes the byte's way through
//!   the FIFO and the wake-up of its reader.
//! * **floor**: for a *bare* bundle (a rootfs directory with the module, nothing else) the same two
//!   calls at a server of the same ttrpc stack, in another process with as many threads, that
//!   answers at once with nothing. A *stdio* bundle is a bare one with two FIFOs, which the floor opens
//!   before the pair. For a *cri* bundle (overlay, tmpfs on `/dev`, six binds, two FIFOs) the floor
//!   makes the same mounts, too, in a private mount namespace with the fewest system calls; with 16
//!   clients each on a thread of its own. No floor has a guest, nor the way of a byte. Batches at the
//!   daemon and at the floor alternate, so that both see the same machine.
//! * **ratio**: a percentile of the daemon over the same percentile of the floor. Only ratios can
//!   be compared between runs, machines or days.
//! * **stages**: *warm*: the daemon has started this module before, and its file is some seconds old. *disk*: an
//!   earlier daemon has compiled it, and this one, launched anew for each batch, starts it for the first time; the very
//!   first start after each launch is reported apart. *cold*: each start brings a module never seen before (the same
//!   program with another custom section), so a compile is in the number. The built-in module is tiny; `--module`
//!   measures the cold start of a real one. The daemon's own counters are checked against the stage.
//! * **phases**: differences of the daemon's histogram `hearth_start_phase_seconds` over the measured batches, and last
//!   `hearth_start_seconds`: Create's arrival at the daemon → the guest's first instruction, less the client's time
//!   between its calls. It is the only measure of how soon the guest of a *bare* bundle runs. Means are exact;
//!   percentiles are interpolated within buckets.
//!
//! # What they do not mean
//!
//! containerd, CRI, kubelet, the shim's exec, image pull and snapshots are not in them. The clients' side of the calls
//! (this program, on the same processors) is in both, daemon and floor. A CRI-like bundle belongs to no sandbox; it has
//! a real network namespace, but one without interfaces; its `/dev/shm` is bound from a directory, not a tmpfs. Bundles
//! and images lie on a tmpfs (but for `--bundles-on-disk`): unmounting an overlay syncs its upper file system, and a
//! disk's journal would then be most of the measured time; the daemon's own directories, its module store among them,
//! lie in the scratch directory. The floor's mounts serve as a yardstick only: a daemon that finds a cheaper way to the
//! same file system may be below it.
//!
//! # Failure paths
//!
//! The first thing that fails ends the run with one error, which quotes the daemon's log where it
//! has a part in it. On SIGINT, SIGTERM and SIGHUP, too, everything is undone; were this program
//! killed, its children die with it and its mounts with them, and only its scratch directory stays.
//!
//! # Files
//!
//! * `main.rs`: this page, and the dispatch of the commands.
//! * `args.rs`: the command line.
//! * `args/`: sets up and undoes each command.
//! * `suite.rs`: the `all` command: every measurement, one after another, and the outputs of their JSON.
//! * `start.rs`: the `start` command: scenarios at the daemon and at the floor in turn.
//! * `scenario.rs`: the scenarios of `start`, and how often each is run.
//! * `lane.rs`: one client: a connection, and one start after another on it.
//! * `report.rs`: the report of `start`.
//! * `bundle.rs`: the bundles that are started.
//! * `rootfs.rs`: the floor's own mounts and FIFO opens.
//! * `guest.rs`: the Wasm guests that are started.
//! * `null_server.rs`: the floor: a server that answers every call at once.
//! * `shim.rs`: the `shim` command: an exec of the shim, from start to end.
//! * `upgrade.rs`: the `upgrade` command: starts while one hearthd takes over from another.
//! * `density.rs`: the `density` command: thousands of idle pods.
//! * `scraping.rs`: the cost of a scrape of a daemon with many tasks.
//! * `crowd.rs`: many tasks of one daemon at once, and the resources of a daemon's process.
//! * `storm.rs`: the `storm` command: a thousand starts at once; starts beside busy guests and compiles.
//! * `node/`: the `node` command: the same workload through containerd, for all runtimes.
//! * `soak.rs`: the `soak` command: many pods one after another, and what is left of them.
//! * `programs.rs`: the `programs` command: starts and memory of programs that others publish.
//! * `floor.rs`: the floor beneath containerd: a daemon that does nothing for its tasks.
//! * `http/`: the `http` and `services` commands: HTTP components.
//! * `get.rs`: one HTTP request.
//! * `hearthd.rs`: a `hearthd` of this program's own.
//! * `events.rs`: takes the daemon's events as containerd does.
//! * `metrics.rs`: reads the daemon's metrics.
//! * `namespaces.rs`: mount and network namespaces of this program.
//! * `scratch.rs`: the directory of all files of a run.
//! * `process.rs`: child processes that do not outlive this program.
//! * `signals.rs`: SIGINT, SIGTERM and SIGHUP as a value.
//! * `runtimes.rs`: the tokio runtimes of this program's clients.
//! * `machine.rs`: the context of a number: the machine, its load, and the sources.
//! * `stats.rs`: percentiles of samples.
//! * `table.rs`: Markdown tables.
//! * `plot.rs`: bar charts as SVG files.
//! * `output.rs`: the JSON file.
//! * `progress.rs`: a line on stderr that shows the progress of a run.
#![forbid(unsafe_code)]

mod args;
mod bundle;
mod crowd;
mod density;
mod events;
mod floor;
mod get;
mod guest;
mod hearthd;
mod http;
mod lane;
mod machine;
mod metrics;
mod namespaces;
mod node;
mod null_server;
mod output;
mod plot;
mod process;
mod programs;
mod progress;
mod report;
mod rootfs;
mod runtimes;
mod scenario;
mod scraping;
mod scratch;
mod shim;
mod signals;
mod soak;
mod start;
mod stats;
mod storm;
mod suite;
mod table;
mod upgrade;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use crate::args::{Args, Command};
use crate::signals::Interrupted;

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::All(arguments) => arguments.run(),
        Command::Show(arguments) => arguments.run(),
        Command::Start(arguments) => arguments.run(),
        Command::Shim(arguments) => arguments.run(),
        Command::Upgrade(arguments) => arguments.run(),
        Command::Density(arguments) => arguments.run(),
        Command::Storm(arguments) => arguments.run(),
        Command::Node(arguments) => arguments.run(),
        Command::Programs(arguments) => arguments.run(),
        Command::Soak(arguments) => arguments.run(),
        Command::Http(arguments) => arguments.run(),
        Command::Services(arguments) => arguments.run(),
        Command::HttpFloor { answer } => http::floor::serve(&answer),
        Command::FloorDaemon { directory, short, long } => floor::serve(&directory, &short, &long),
        Command::NullServer { socket } => null_server::serve(&socket),
        Command::ExecTied { parent, program, arguments } => process::exec_tied(parent, &program, &arguments),
    };
    exit_code(result)
}

fn exit_code(result: Result<()>) -> ExitCode {
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    if let Some(Interrupted(signal)) = error.downcast_ref() {
        eprintln!("hearth-bench: interrupted; everything is removed");
        return ExitCode::from(128 + signal);
    }
    eprintln!("hearth-bench: {error:#}");
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use hearth_tests::{pages, paths};

    #[test]
    fn each_file_of_the_bench_is_listed_with_its_purpose() {
        let bench = paths::repository().join("bench");
        let pages = [
            (".", "README.md"),
            ("src", "main.rs"),
            ("src/args", "../args.rs"),
            ("src/node", "mod.rs"),
            ("src/http", "mod.rs"),
        ];
        let faults: Vec<_> = pages.iter().flat_map(|(folder, page)| pages::faults(&bench.join(folder), page)).collect();
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }
}
