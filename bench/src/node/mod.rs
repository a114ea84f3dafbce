//! The `node` command: the same workload through a real containerd, for Hearth, the floor and the other
//! runtimes of this machine.
//!
//! ```text
//!   tasks   containerd's Tasks API: Create and Start of a container that is there       ─┐ in turn, one
//!   ctr     `ctr run --rm`, from exec to exit                                            │ batch of each
//!   cri     RunPodSandbox, CreateContainer, StartContainer                               ─┘ runtime
//!   memory  PSS of every process of idle pods, containerd's own left out
//! ```
//!
//! containerd, hearthd and everything they start run on a private machine of the test harness. A runtime
//! that is not installed, or does not work here, is left out, and the report says why.
//!
//! Failure paths: a failure of the harness is a panic that names the missing program or right; the private machine ends
//! with this process, also if it is killed.
//!
//! Files:
//!
//! * `mod.rs`: this page: the order of the measurements.
//! * `levels.rs`: one start of one runtime, at each level.
//! * `memory.rs`: the memory of idle pods.
//! * `peers.rs`: the runtimes that are measured.
//! * `report.rs`: the report of `node`.

mod levels;
mod memory;
mod peers;
mod report;

use std::path::PathBuf;

use anyhow::Result;
use hearth_tests::daemons::{ContainerdOptions, HearthdOptions};
use hearth_tests::{Guest, Image, Node};

use crate::floor::FloorShim;
use crate::machine::MachineFacts;
use crate::progress::{progress, progress_done};
use levels::Ctr;
pub use levels::{CriPods, Tasks};
use peers::{Peer, ProgramKind};
pub use report::{Report, Row};

/// containerd's namespace of the tasks, which end by themselves.
const TASKS_NAMESPACE: &str = hearth_tests::world::NAMESPACE;

/// containerd's namespace of pods.
const PODS_NAMESPACE: &str = hearth_tests::pods::CRI_NAMESPACE;

/// The parameters of a run.
pub struct Options {
    /// The daemon's binary.
    pub hearthd: PathBuf,
    /// The floor's shim.
    pub floor_shim: PathBuf,
    /// Where that may be copied to: an empty directory.
    pub floor_directory: PathBuf,
    /// A component for the Tasks API, beside the hello and the Lua interpreter.
    pub component: Option<PathBuf>,
    /// How often.
    pub plan: NodePlan,
}

/// How often each thing is measured, for each runtime.
#[derive(Debug, Clone, Copy)]
pub struct NodePlan {
    /// Batches at the Tasks API, of [`TASKS_BATCH`] each.
    pub tasks: usize,
    /// Runs of `ctr run`.
    pub ctr: usize,
    /// Pods in the node's network, and as many in a network of their own.
    pub pods: usize,
    /// Idle pods at once, for memory.
    pub idle_pods: usize,
}

impl NodePlan {
    /// For a report.
    pub const FULL: NodePlan = NodePlan { tasks: 20, ctr: 60, pods: 40, idle_pods: 50 };
    /// For a look.
    pub const QUICK: NodePlan = NodePlan { tasks: 6, ctr: 12, pods: 8, idle_pods: 10 };
}

/// Starts at the Tasks API of one runtime before the next has its turn.
const TASKS_BATCH: usize = 5;

/// A program that is started.
pub(crate) struct Workload {
    name: &'static str,
    /// Its image as WebAssembly.
    wasm: String,
    /// Its image as a native program, for runtimes of such; without it they are left out.
    native: Option<String>,
}

/// Runs it. To be called on the main thread, and not from within a runtime.
///
/// # Errors
/// containerd's error.
pub fn run(options: &Options) -> Result<Report> {
    let machine = MachineFacts::here();
    let floor =
        FloorShim::start(&options.floor_shim, options.floor_directory.clone(), TASKS_NAMESPACE, PODS_NAMESPACE)?;
    let mut peers = peers::installed();
    let node = Node::with(HearthdOptions {
        program: Some(options.hearthd.clone()),
        containerd: ContainerdOptions {
            path: vec![floor.directory.clone()],
            handlers: peers.iter().filter_map(Peer::more_handler).collect(),
            ..ContainerdOptions::default()
        },
        ..HearthdOptions::default()
    });
    let workloads = workloads(&node, options)?;
    let mut left_out = Vec::new();
    peers.retain(|peer| match peer.probe(&node, &workloads[0]) {
        Ok(()) => true,
        Err(why) => {
            eprintln!("hearth-bench: {} is left out: {why}", peer.name);
            left_out.push((peer.name.to_owned(), why));
            false
        }
    });
    let mut rows = Vec::new();
    rows.extend(measure_tasks(&node, &peers, &workloads, options.plan)?);
    rows.extend(measure_ctr(&node, &peers, &workloads[0], options.plan)?);
    for host_network in [true, false] {
        rows.extend(measure_pods(&node, &peers, &workloads[0], options.plan, host_network)?);
    }
    let memory = memory::measure(&node, &peers, options.plan.idle_pods)?;
    Ok(Report::new(machine, &peers, left_out, rows, memory))
}

/// This project's place among the runtimes.
pub fn hearth() -> Peer {
    peers::installed().into_iter().find(|peer| peer.name == peers::HEARTH).expect("it is always among them")
}

fn workloads(node: &Node, options: &Options) -> Result<Vec<Workload>> {
    let import = |image: &Image| {
        node.import_in(TASKS_NAMESPACE, image);
        node.import(image).name
    };
    let wasm = |name: &str, bytes: Vec<u8>| import(&Image::of_file(name, &format!("/{name}.wasm"), bytes));
    let native = |name: &str, bytes: Vec<u8>| import(&Image::of_file(name, &format!("/{name}"), bytes));
    let mut all = vec![Workload {
        name: "hello",
        wasm: wasm("hello", Guest::HELLO.wasm_bytes()),
        native: Some(native("hello-native", Guest::HELLO.native_bytes())),
    }];
    all.push(Workload { name: "Lua", wasm: wasm("lua", Guest::LUA.wasm_bytes()), native: None });
    if let Some(path) = &options.component {
        let bytes = std::fs::read(path)?;
        all.push(Workload { name: "JavaScript", wasm: wasm("component", bytes), native: None });
    }
    Ok(all)
}

fn measure_tasks(node: &Node, peers: &[Peer], workloads: &[Workload], plan: NodePlan) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for workload in workloads {
        let mut lanes = Vec::new();
        // The floor has no guest: its time is every workload's.
        for peer in peers {
            if let Some(image) = peer.image(workload) {
                lanes.push((peer, Tasks::prepare(node, peer, image)?, Vec::new()));
            }
        }
        for batch in 0..plan.tasks {
            progress(&format!("Tasks API, {}: batch {} of {}", workload.name, batch + 1, plan.tasks));
            for (_, tasks, samples) in &mut lanes {
                for _ in 0..TASKS_BATCH {
                    samples.push(tasks.sample()?);
                }
            }
        }
        progress_done();
        rows.extend(lanes.into_iter().flat_map(|(peer, _, samples)| {
            let started = Row::of("tasks", workload.name, peer.name, samples.iter().map(|sample| sample.started));
            let ended = Row::of("tasks to exit", workload.name, peer.name, samples.iter().map(|sample| sample.ended));
            [started, ended].into_iter().flatten()
        }));
    }
    Ok(rows)
}

fn measure_ctr(node: &Node, peers: &[Peer], workload: &Workload, plan: NodePlan) -> Result<Vec<Row>> {
    let mut lanes: Vec<_> =
        peers.iter().filter_map(|peer| Some((peer, Ctr::new(peer, peer.image(workload)?), Vec::new()))).collect();
    for run in 0..plan.ctr {
        progress(&format!("ctr run --rm: {} of {}", run + 1, plan.ctr));
        for (_, ctr, samples) in &mut lanes {
            samples.push(ctr.sample(node)?);
        }
    }
    progress_done();
    Ok(lanes
        .into_iter()
        .filter_map(|(peer, _, samples)| Row::of("ctr run --rm", workload.name, peer.name, samples))
        .collect())
}

fn measure_pods(
    node: &Node,
    peers: &[Peer],
    workload: &Workload,
    plan: NodePlan,
    host_network: bool,
) -> Result<Vec<Row>> {
    let level = if host_network { "pod, node's network" } else { "pod, own network" };
    let mut lanes: Vec<_> = peers
        .iter()
        .filter_map(|peer| Some((peer, CriPods::new(peer, peer.image(workload)?, host_network), Vec::new())))
        .collect();
    for run in 0..plan.pods {
        progress(&format!("{level}: {} of {}", run + 1, plan.pods));
        for (_, pods, samples) in &mut lanes {
            samples.push(pods.sample(node)?);
        }
    }
    progress_done();
    Ok(lanes.into_iter().filter_map(|(peer, _, samples)| Row::of(level, workload.name, peer.name, samples)).collect())
}

impl Peer {
    /// The workload in the form it runs, if there is one.
    fn image<'a>(&self, workload: &'a Workload) -> Option<&'a str> {
        match self.kind {
            ProgramKind::Wasm => Some(&workload.wasm),
            ProgramKind::Native => workload.native.as_deref(),
        }
    }
}
