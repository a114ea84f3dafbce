//! What serves the daemon's tasks, put together: engines, module store, scheduler, metrics of tasks, HTTP, task
//! sockets, and the answers to operators. Nothing here is reachable from outside yet.

use std::sync::Arc;
use std::time::SystemTime;

use crate::ahead::Ahead;
use crate::generation::older::OlderGenerations;
use crate::server::operator_calls::Operator;
use crate::server::task_sockets::{Runtimes, TaskSockets};
use crate::task::holders::Holders;
use crate::task::world::World;
use hearth_base::config::Live;
use hearth_base::generation::directory::Directory;
use hearth_http::context::Http;
use hearth_observe::metrics::task_series::TaskSeries;
use hearth_observe::starts::{Listener, Recent, recorder};
use hearth_observe::traces::Traces;
use hearth_wasm::engine::Engines;
use hearth_wasm::modules::ModuleStore;
use hearth_wasm::resolver::Resolvers;
use hearth_wasm::runtime::Runtime;
use hearth_wasm::scheduler::Scheduler;
use hearth_wasm::slots::Slots;

use super::Setup;
use super::threads::Handles;

/// What serves the daemon's tasks.
pub struct Assembly {
    /// The configuration in force.
    pub live: Arc<Live>,
    /// What all tasks share.
    pub world: Arc<World>,
    /// The compiled modules.
    pub modules: Arc<ModuleStore>,
    /// Compiles images before their first start.
    pub ahead: Arc<Ahead>,
    /// The tasks, by their sockets.
    pub task_sockets: Arc<TaskSockets>,
    /// Answers operators.
    pub operator: Arc<Operator>,
}

impl Assembly {
    /// Puts it together for the generation with the directory `own`. `older`: the generations that still serve.
    ///
    /// # Errors
    /// One line: what the node or the configuration lacks.
    pub fn new(setup: &Setup, own: &Directory, older: Vec<String>, handles: &Handles) -> Result<Assembly, String> {
        let (config, metrics) = (&setup.config, &setup.metrics);
        let Handles { answering, background, .. } = handles;
        let live = Live::new(config.clone());
        let (world, modules) = world(setup, &live, own, handles)?;
        let ahead = Ahead::new(live.clone(), modules.clone(), metrics.clone(), answering.clone(), &own.path);
        let older = OlderGenerations::new(config.state_dir.clone(), older, background, {
            let modules = modules.clone();
            move |_| modules.remove_unused()
        });
        let runtimes = Runtimes { answering: answering.clone(), background: background.clone() };
        let task_sockets =
            TaskSockets::new(live.clone(), world.clone(), modules.clone(), own.path.clone(), older.clone(), runtimes);
        let operator = Arc::new(Operator {
            config: live.clone(),
            world: world.clone(),
            modules: modules.clone(),
            ahead: ahead.clone(),
            task_sockets: task_sockets.clone(),
            older,
            logging: setup.logging.clone(),
            generation: own.id.clone(),
            started_at: SystemTime::now(),
            answering: answering.clone(),
            background: background.clone(),
        });
        Ok(Assembly { live, world, modules, ahead, task_sockets, operator })
    }
}

/// What guests are made of and run on, and what all tasks share.
fn world(
    setup: &Setup,
    live: &Arc<Live>,
    own: &Directory,
    handles: &Handles,
) -> Result<(Arc<World>, Arc<ModuleStore>), String> {
    let (config, metrics) = (&setup.config, &setup.metrics);
    let Handles { answering, background, http } = handles;
    let recorder = recorder::start(metrics.clone(), background);
    let traced = |settings| Traces::start(settings, &own.id, metrics, background);
    let traces = setup.traces.as_ref().map(traced).transpose()?;
    let engines = Arc::new(Engines::new(&config.engine, config.modules.baseline).map_err(|e| e.to_string())?);
    metrics.engine.fingerprint(engines.fingerprint());
    let modules = ModuleStore::open(config, engines.clone(), metrics.clone(), answering.clone())
        .map_err(|e| format!("the module store: {e}"))?;
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
    let world = Arc::new(World {
        runtime,
        holders: Holders::new(config.network.holders_warm, answering.clone(), metrics.clone()),
        http: Http::new(live.clone(), http.clone(), metrics.clone()),
        task_series: TaskSeries::new(config.metrics.task_series_max, config.metrics.pods),
        traces,
        by_pod: config.metrics.pods,
    });
    Ok((world, modules))
}
