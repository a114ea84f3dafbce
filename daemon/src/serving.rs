//! What any process needs that serves tasks: what guests are made of and run on, and the task sockets. The node's daemon
//! has one, with its module store behind it, and so has each cell, which gets its programs from the daemon.

use std::path::PathBuf;
use std::sync::Arc;

use crate::cell::home::CellHome;
use crate::daemon::threads::Handles;
use crate::generation::older::OlderGenerations;
use crate::server::task_sockets::{Runtimes, TaskSockets};
use crate::task::holders::Holders;
use crate::task::world::World;
use hearth_base::config::{Config, Live};
use hearth_http::context::Http;
use hearth_interfaces::container::Shared;
use hearth_observe::metrics::Metrics;
use hearth_observe::metrics::task_series::TaskSeries;
use hearth_observe::starts::{Listener, Recent, recorder};
use hearth_observe::traces::Traces;
use hearth_wasm::engine::Engines;
use hearth_wasm::modules::programs::Programs;
use hearth_wasm::resolver::Resolvers;
use hearth_wasm::runtime::Runtime;
use hearth_wasm::scheduler::Scheduler;
use hearth_wasm::slots::Slots;

/// What serves tasks. Nothing of it is reachable from outside until a task socket is made.
pub struct Serving {
    /// The configuration in force.
    pub live: Arc<Live>,
    /// What all tasks share.
    pub world: Arc<World>,
    /// The tasks, by their sockets.
    pub task_sockets: Arc<TaskSockets>,
}

/// What it is made from.
pub struct Ground {
    /// The configuration in force.
    pub live: Arc<Live>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// The engines, which are made before anything else.
    pub engines: Arc<Engines>,
    /// Traces of starts, if there are any.
    pub traces: Option<Arc<Traces>>,
    /// Where programs come from.
    pub modules: Arc<dyn Programs>,
    /// The older generations.
    pub older: Arc<OlderGenerations>,
    /// What this process keeps for the daemon, if it is a cell.
    pub cell: Option<Arc<CellHome>>,
    /// Where the task sockets are made.
    pub directory: PathBuf,
}

impl Serving {
    /// Starts the guests' threads.
    ///
    /// # Errors
    /// One line: the kernel gives no threads.
    pub fn start(ground: Ground, handles: &Handles) -> Result<Serving, String> {
        let Ground { live, metrics, engines, traces, modules, older, cell, directory } = ground;
        let Handles { answering, background, .. } = handles;
        let config = live.now();
        let made_of = MadeOf { live: &live, metrics: &metrics, engines, traces, cell };
        let world = world(made_of, handles, &config)?;
        let runtimes = Runtimes { answering: answering.clone(), background: background.clone() };
        let task_sockets = TaskSockets::new(live.clone(), world.clone(), modules, directory, older, runtimes);
        Ok(Serving { live, world, task_sockets })
    }
}

/// The parts of [`Ground`] that guests need.
struct MadeOf<'a> {
    live: &'a Arc<Live>,
    metrics: &'a Arc<Metrics>,
    engines: Arc<Engines>,
    traces: Option<Arc<Traces>>,
    cell: Option<Arc<CellHome>>,
}

/// What guests are made of and run on, and what all tasks share.
fn world(made_of: MadeOf<'_>, handles: &Handles, config: &Config) -> Result<Arc<World>, String> {
    let MadeOf { live, metrics, engines, traces, cell } = made_of;
    let Handles { answering, background, http } = handles;
    let recorder = recorder::start(metrics.clone(), background);
    let scheduler = Scheduler::start(&config.scheduler, engines.each(), metrics.clone(), answering.clone())
        .map_err(|e| format!("cannot start the guests' threads: {e}"))?;
    let mut listeners: Vec<Listener> = vec![recorder];
    if let Some(traces) = traces.clone() {
        listeners.push(Box::new(move |start| traces.finished(start)));
    }
    let runtime = Arc::new(Runtime {
        engines,
        scheduler: Arc::new(scheduler),
        slots: Slots::new(&config.engine, metrics.clone()),
        resolvers: Resolvers::new(&config.network, background.clone()),
        recent: Recent::new(config.metrics.recent_max, metrics.clone(), listeners),
        metrics: metrics.clone(),
    });
    let serving = Http::new(live.clone(), http.clone(), metrics.clone());
    Ok(Arc::new(World {
        runtime,
        holders: Holders::new(config.network.holders_warm, cell.is_some(), answering.clone(), metrics.clone()),
        interfaces: Shared::new(live.clone(), http.clone(), serving.outgoing.clone()),
        http: serving,
        task_series: TaskSeries::new(config.metrics.task_series_max, config.metrics.pods),
        traces,
        by_pod: config.metrics.pods,
        cell,
    }))
}
