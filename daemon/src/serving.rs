//! The parts of every process that serves tasks: those that guests are made of and run on, and the task sockets. The node's
//! daemon has them, with its module store behind them, and so has each cell, which gets its programs from the daemon.

use std::path::PathBuf;
use std::sync::Arc;

use crate::cell::home::CellHome;
use crate::daemon::threads::Handles;
use crate::generation::older::OlderGenerations;
use crate::server::task_sockets::{Runtimes, TaskSockets};
use crate::task::holders::Holders;
use crate::task::world::World;
use hearth_base::config::Live;
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

/// The parts that serve tasks. None is reachable from outside until a task socket is made.
pub struct Serving {
    /// The parts that all tasks share.
    pub world: Arc<World>,
    /// The tasks, by their sockets.
    pub task_sockets: Arc<TaskSockets>,
}

/// The parts that [`Serving`] is made from.
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
    /// The things that this process keeps for the daemon, if it is a cell.
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
        let world = world(&ground, handles)?;
        let Ground { live, modules, older, directory, .. } = ground;
        let Handles { answering, background, .. } = handles;
        let runtimes = Runtimes { answering: answering.clone(), background: background.clone() };
        let task_sockets = TaskSockets::new(live, world.clone(), modules, directory, older, runtimes);
        Ok(Serving { world, task_sockets })
    }
}

/// The parts that all tasks share, and the guests' threads.
fn world(ground: &Ground, handles: &Handles) -> Result<Arc<World>, String> {
    let Ground { live, metrics, engines, traces, cell, .. } = ground;
    let Handles { answering, background, http } = handles;
    let config = live.now();
    let recorder = recorder::start(metrics.clone(), background);
    let scheduler = Scheduler::start(&config.scheduler, engines.each(), metrics.clone(), answering.clone())
        .map_err(|e| format!("cannot start the guests' threads: {e}"))?;
    let mut listeners: Vec<Listener> = vec![recorder];
    if let Some(traces) = traces.clone() {
        listeners.push(Box::new(move |start| traces.finished(start)));
    }
    let runtime = Arc::new(Runtime {
        engines: engines.clone(),
        scheduler: Arc::new(scheduler),
        slots: Slots::new(&config.engine, metrics.clone()),
        resolvers: Resolvers::new(&config.network, background.clone()),
        recent: Recent::new(config.metrics.recent_max, metrics.clone(), listeners),
        metrics: metrics.clone(),
    });
    let serving = Http::new(live.clone(), http.clone(), metrics.clone());
    Ok(Arc::new(World {
        runtime,
        refusals: Arc::default(),
        shortage: Arc::default(),
        holders: Holders::new(config.network.holders_warm, cell.is_some(), answering.clone(), metrics.clone()),
        interfaces: Shared::new(live.clone(), http.clone(), serving.outgoing.clone()),
        http: serving,
        task_series: TaskSeries::new(config.metrics.task_series_max, config.metrics.pods),
        traces: traces.clone(),
        by_pod: config.metrics.pods,
        cell: cell.clone(),
    }))
}
