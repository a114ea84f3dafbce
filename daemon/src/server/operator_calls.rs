//! Calls of operators, which `hearthctl` makes on the control socket: decode, read the state, encode.
//!
//! The state is read under short locks, one after the other, off the threads that answer containerd; so an answer is of
//! about one moment, not of exactly one.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use serde::Serialize;
use tokio::runtime::Handle;

use crate::ahead::Ahead;
use crate::cells::Cells;
use crate::generation::merge;
use crate::generation::older::OlderGenerations;
use crate::server::endpoint::page::Page;
use crate::server::task_sockets::TaskSockets;
use crate::task::world::World;
use hearth_base::config::Live;
use hearth_base::digest::Digest;
use hearth_base::generation::directory;
use hearth_base::namespace::ContainerdNamespace;
use hearth_base::operator::{LogLevel, ModuleInfo, Modules, Question, Status, TaskCounts, TaskDetails, TaskInfo};
use hearth_base::tenant::{Kind, Limits};
use hearth_base::time::unix;
use hearth_observe::logging::Logging;
use hearth_observe::metrics::process;
use hearth_wasm::modules::ModuleStore;

/// How many names of tasks a module is given.
const NAMES_MAX: usize = 3;

/// The parts that answer operators' questions.
pub struct Operator {
    /// The daemon's configuration.
    pub config: Arc<Live>,
    /// The parts that its guests share.
    pub world: Arc<World>,
    /// The parts that only the node's daemon has; a cell has none.
    pub node: Option<NodeParts>,
    /// Its tasks.
    pub task_sockets: Arc<TaskSockets>,
    /// The older daemons.
    pub older: Arc<OlderGenerations>,
    /// Which life of the daemon this is.
    pub generation: String,
    /// When it was ready.
    pub started_at: SystemTime,
    /// The daemon's log.
    pub logging: Arc<Logging>,
    /// The runtime that answers containerd: it has to go round.
    pub answering: Handle,
    /// Where the state is read: off the threads that answer containerd.
    pub background: Handle,
}

/// The parts that only the node's daemon has.
pub struct NodeParts {
    /// Its modules.
    pub modules: Arc<ModuleStore>,
    /// Compiles before the first start.
    pub ahead: Arc<Ahead>,
    /// The cells of the node.
    pub cells: Arc<Cells>,
}

impl Operator {
    /// The answer to a question, both in JSON.
    ///
    /// # Errors
    /// One line for the operator.
    pub async fn answer(self: &Arc<Operator>, question: &[u8]) -> Result<Vec<u8>, String> {
        let question: Question = serde_json::from_slice(question).map_err(|error| {
            format!(
                "this hearthd ({}) does not know the question ({error}): is hearthctl of another release?",
                env!("CARGO_PKG_VERSION")
            )
        })?;
        if let Question::Warm(what) = &question {
            return encode(&self.node()?.ahead.warm(what).await.map_err(|error| error.to_string())?);
        }
        let operator = self.clone();
        let look = self.background.spawn_blocking(move || operator.look(&question));
        look.await.map_err(|error| format!("the question was not answered: {error}"))?
    }

    fn look(&self, question: &Question) -> Result<Vec<u8>, String> {
        match question {
            Question::Status => encode(&self.status()),
            Question::Tasks => encode(&self.tasks()),
            Question::Task { namespace, id } => encode(&self.details(&namespace.as_str().into(), id)),
            Question::Starts => encode(&self.world.runtime.recent.starts(&self.generation)),
            Question::Ends => encode(&self.world.runtime.recent.ends(&self.generation)),
            Question::Requests => encode(&self.world.runtime.recent.requests(&self.generation)),
            Question::Modules => encode(&self.inventory()),
            Question::Warm(_) => Err("compiling is no look".into()),
            Question::VerifyModules => encode(&self.node()?.modules.verify()),
            Question::PruneModules { unused } => encode(&self.node()?.modules.prune(*unused, &self.modules_in_use())),
            Question::Logs { task, after } => encode(&self.logging.lines(task.as_deref(), *after)),
            Question::LogLevel => encode(&self.log_level()),
            Question::SetLogLevel { filter } => {
                self.logging.set_level(filter.as_deref())?;
                encode(&self.log_level())
            }
            Question::Drain { on } => {
                self.task_sockets.drain(*on);
                encode(&self.status())
            }
        }
    }

    fn node(&self) -> Result<&NodeParts, String> {
        self.node.as_ref().ok_or_else(|| "a cell has no modules of its own: ask the node's hearthd".to_owned())
    }

    /// How the daemon is.
    pub fn status(&self) -> Status {
        let config = self.config.now();
        let address = std::fs::read_to_string(config.state_dir.join(METRICS_ADDRESS)).unwrap_or_default();
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            wasmtime: hearth_base::version::WASMTIME.into(),
            pid: std::process::id(),
            generation: self.generation.clone(),
            started_at: unix(self.started_at),
            state_dir: config.state_dir.display().to_string(),
            root_dir: config.root_dir.display().to_string(),
            draining: self.task_sockets.is_draining(),
            metrics_address: address.trim().into(),
            containerds: self.task_sockets.containerds(),
            namespaces: self.task_sockets.namespaces() as u64,
            tasks: self.counts(),
            pool: self.world.runtime.slots.usage(),
            modules: self.node.as_ref().map(|node| node.modules.counts()).unwrap_or_default(),
            workers: self.world.runtime.scheduler.usage(),
            earlier: self.older.living().iter().map(|id| earlier(&config.state_dir, id)).collect(),
            cells: self.cells(),
            events_queued: u64::try_from(self.world.runtime.metrics.events.queued.get()).unwrap_or(0),
        }
    }

    fn cells(&self) -> Vec<String> {
        let sockets = self.node.as_ref().map(|node| node.cells.control_sockets()).unwrap_or_default();
        sockets.iter().map(|socket| socket.display().to_string()).collect()
    }

    fn counts(&self) -> TaskCounts {
        let count = |state: &str| {
            let gauge = self.world.runtime.metrics.tasks.by_state.with_label_values(&[state]);
            u64::try_from(gauge.get()).unwrap_or(0)
        };
        TaskCounts {
            created: count("created"),
            running: count("running"),
            paused: count("paused"),
            stopped: count("stopped"),
            limit: self.config.now().rpc.tasks_max as u64,
        }
    }

    /// Every task, and every pod that is none, oldest first.
    pub fn tasks(&self) -> Vec<TaskInfo> {
        let tasks = self.task_sockets.tasks();
        let mut infos: Vec<_> = tasks.iter().map(|task| task.info(&self.generation)).collect();
        infos.extend(self.task_sockets.pods(&self.generation));
        infos.sort_by(|a, b| a.created_at.total_cmp(&b.created_at));
        infos
    }

    fn details(&self, namespace: &ContainerdNamespace, id: &str) -> Option<TaskDetails> {
        let tasks = self.task_sockets.tasks();
        let Some(task) = tasks.iter().find(|task| task.container.namespace == *namespace && **task.id() == *id) else {
            let pods = self.task_sockets.pods(&self.generation).into_iter();
            let mut found = pods.filter(|pod| *pod.namespace == **namespace && pod.id == id);
            return found.next().map(|task| TaskDetails { task, ..TaskDetails::default() });
        };
        let mut details = task.details(&self.generation, self.world.runtime.recent.ends(&self.generation));
        if details.image.is_none() {
            details.image = self.answering.block_on(self.task_sockets.image(namespace, id));
        }
        Some(details)
    }

    fn log_level(&self) -> LogLevel {
        let (current, configured) = self.logging.level();
        LogLevel { current, configured }
    }

    /// All metrics of this daemon in Prometheus' text format. Blocks.
    pub fn scrape(&self) -> String {
        let world = &self.world;
        world.runtime.scheduler.observe();
        world.runtime.slots.observe();
        world.holders.observe();
        if let Some(node) = &self.node {
            node.modules.observe();
            node.cells.observe();
        }
        world.runtime.metrics.tasks.native_containers.set(self.task_sockets.natives().len() as i64);
        let (own, folded) = world.task_series.counts();
        for (kind, count) in [("own", own), ("folded", folded)] {
            world.runtime.metrics.tasks.series.with_label_values(&[kind]).set(count as i64);
        }
        let tasks = self.task_sockets.tasks();
        let limits = Limits::of(&self.config.now());
        for kind in Kind::ALL.iter().copied() {
            let used = tasks.iter().map(|task| task.container.tenant.used(kind));
            world.runtime.metrics.tenants.set(kind, &limits, used, world.refusals.count(kind));
        }
        let mut text = world.runtime.metrics.render();
        let each = tasks.iter().map(|task| (task.info(""), task.container.seat.is_own()));
        world.task_series.render(each, &mut text);
        process::render(&mut text);
        text
    }

    /// All metrics, with those of the older daemons.
    ///
    /// # Errors
    /// If they cannot be rendered.
    pub async fn scrape_all(self: &Arc<Operator>) -> Result<String, String> {
        let operator = self.clone();
        let own = self.background.spawn_blocking(move || operator.scrape()).await.map_err(|e| e.to_string())?;
        Ok(match self.older.is_empty() {
            true => own,
            false => merge::merge(&own, &self.older.metrics().await),
        })
    }

    /// The data of the status page. Blocks.
    pub fn page(&self) -> Page {
        Page {
            node: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            status: self.status(),
            tasks: self.tasks(),
            starts: self.world.runtime.recent.starts(&self.generation),
            ends: self.world.runtime.recent.ends(&self.generation),
            modules: self.inventory(),
        }
    }

    fn modules_in_use(&self) -> HashSet<Digest> {
        let tasks = self.task_sockets.tasks();
        tasks.iter().filter_map(|task| task.container.about.module.get().copied()).collect()
    }

    /// Every module, and the tasks that run it.
    pub fn inventory(&self) -> Modules {
        let mut modules = self.node.as_ref().map(|node| node.modules.inventory()).unwrap_or_default();
        let mut users: HashMap<String, (u64, Vec<String>)> = HashMap::new();
        for task in self.task_sockets.tasks() {
            let about = &task.container.about;
            let Some(digest) = about.module.get() else { continue };
            let (count, names) = users.entry(digest.to_string()).or_default();
            *count += 1;
            let name = about.image.as_ref().unwrap_or(&about.program);
            if names.len() < NAMES_MAX && !names.contains(name) {
                names.push(name.clone());
            }
        }
        let name = |module: &mut ModuleInfo| {
            if let Some((tasks, names)) = users.get(&module.digest) {
                module.tasks = *tasks;
                module.names.clone_from(names);
            }
        };
        modules.compiled.iter_mut().filter(|module| module.current).for_each(name);
        modules
    }
}

/// In the state directory: where the metrics are served.
pub const METRICS_ADDRESS: &str = "metrics.address";

/// The control socket of an earlier daemon.
fn earlier(state_dir: &Path, id: &str) -> String {
    directory::control_socket(state_dir, id).display().to_string()
}

fn encode(answer: &impl Serialize) -> Result<Vec<u8>, String> {
    serde_json::to_vec(answer).map_err(|error| format!("the answer cannot be encoded: {error}"))
}
