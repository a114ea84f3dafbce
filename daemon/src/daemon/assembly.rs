//! The node's daemon put together: the parts that serve its tasks, and those that only it has: the module store with
//! the compiler, compiles ahead, the answers to operators. Nothing here is reachable from outside yet.

use std::sync::Arc;
use std::time::SystemTime;

use crate::ahead::Ahead;
use crate::cells::Cells;
use crate::generation::older::OlderGenerations;
use crate::server::operator_calls::{NodeParts, Operator};
use crate::server::task_sockets::TaskSockets;
use crate::serving::{Ground, Serving};
use crate::task::memory_watch;
use crate::task::world::World;
use hearth_base::config::Live;
use hearth_base::generation::directory::Directory;
use hearth_observe::traces::Traces;
use hearth_wasm::engine::Engines;
use hearth_wasm::modules::ModuleStore;

use super::Setup;
use super::threads::Handles;

/// The parts of the node's daemon.
pub struct Assembly {
    /// The configuration in force.
    pub live: Arc<Live>,
    /// The parts that all tasks share.
    pub world: Arc<World>,
    /// The compiled modules.
    pub modules: Arc<ModuleStore>,
    /// Compiles images before their first start.
    pub ahead: Arc<Ahead>,
    /// The pods that have a process of their own.
    pub cells: Arc<Cells>,
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
        let traced = |settings| Traces::start(settings, &own.id, metrics, background);
        let traces = setup.traces.as_ref().map(traced).transpose()?;
        let engines = Engines::new(&config.engine, config.modules.baseline, hearth_interfaces::ALL);
        let engines = Arc::new(engines.map_err(|e| e.to_string())?);
        metrics.engine.fingerprint(engines.fingerprint());
        let modules = ModuleStore::open(config, engines.clone(), metrics.clone(), answering.clone())
            .map_err(|e| format!("the module store: {e}"))?;
        let ahead = Ahead::new(live.clone(), modules.clone(), metrics.clone(), answering.clone(), &own.path);
        let older = OlderGenerations::new(config.state_dir.clone(), older, background, {
            let modules = modules.clone();
            move |_| modules.remove_unused()
        });
        let ground = Ground {
            live: live.clone(),
            metrics: metrics.clone(),
            engines: engines.clone(),
            traces,
            modules: modules.clone(),
            older: older.clone(),
            cell: None,
            directory: own.path.clone(),
        };
        let Serving { world, task_sockets } = Serving::start(ground, handles)?;
        let cells = Cells::new(
            task_sockets.clone(),
            modules.clone(),
            engines.fingerprint(),
            metrics.clone(),
            answering.clone(),
        );
        let all = task_sockets.clone();
        memory_watch::watch(live.clone(), move || all.tasks(), world.shortage.clone(), metrics.clone(), background);
        let operator = Arc::new(Operator {
            config: live.clone(),
            world: world.clone(),
            node: Some(NodeParts { modules: modules.clone(), ahead: ahead.clone(), cells: cells.clone() }),
            task_sockets: task_sockets.clone(),
            older,
            logging: setup.logging.clone(),
            generation: own.id.clone(),
            started_at: SystemTime::now(),
            answering: answering.clone(),
            background: background.clone(),
        });
        Ok(Assembly { live, world, modules, ahead, cells, task_sockets, operator })
    }
}
