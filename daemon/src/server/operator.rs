//! Operators' questions, which `hearthctl` asks on the control socket: decode, look, encode.
//!
//! A look takes short locks, one after the other, off the threads that answer containerd; so an answer is
//! of about one moment, not of exactly one.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tokio::runtime::Handle;

use crate::config::Live;
use crate::generation::directory;
use crate::generation::peers::Peers;
use crate::operator::{ModuleInfo, Modules, Question, Status, TaskCounts, TaskInfo};
use crate::server::instances::Instances;
use crate::wasm::instance::World;
use crate::wasm::modules::ModuleStore;

/// How many names of tasks a module is given.
const NAMES_MAX: usize = 3;

/// What operators' questions are answered from.
pub struct Operator {
    /// The daemon's configuration.
    pub config: Arc<Live>,
    /// What its guests share.
    pub world: Arc<World>,
    /// Its modules.
    pub modules: Arc<ModuleStore>,
    /// Its tasks.
    pub instances: Arc<Instances>,
    /// The older daemons.
    pub peers: Arc<Peers>,
    /// Which life of the daemon this is.
    pub generation: String,
    /// When it was ready.
    pub started_at: SystemTime,
    /// Where a look is taken: it costs nobody's thread.
    pub background: Handle,
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
        let operator = self.clone();
        let look = self.background.spawn_blocking(move || operator.look(&question));
        look.await.map_err(|error| format!("the question was not answered: {error}"))?
    }

    fn look(&self, question: &Question) -> Result<Vec<u8>, String> {
        match question {
            Question::Status => encode(&self.status()),
            Question::Tasks => encode(&self.tasks()),
            Question::Modules => encode(&self.inventory()),
        }
    }

    /// How the daemon is.
    pub fn status(&self) -> Status {
        let config = self.config.now();
        let address = std::fs::read_to_string(config.state_dir.join(METRICS_ADDRESS)).unwrap_or_default();
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            wasmtime: env!("WASMTIME_VERSION").into(),
            pid: std::process::id(),
            generation: self.generation.clone(),
            started_at: self.started_at.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()),
            state_dir: config.state_dir.display().to_string(),
            root_dir: config.root_dir.display().to_string(),
            metrics_address: address.trim().into(),
            containerds: self.instances.containerds(),
            namespaces: self.instances.namespaces() as u64,
            tasks: self.counts(),
            pool: self.world.slots.usage(),
            modules: self.modules.counts(),
            workers: self.world.scheduler.usage(),
            earlier: self.peers.living().iter().map(|id| earlier(&config.state_dir, id)).collect(),
            events_queued: u64::try_from(self.world.metrics.events_queued.get()).unwrap_or(0),
        }
    }

    fn counts(&self) -> TaskCounts {
        let count = |state: &str| {
            let gauge = self.world.metrics.tasks.with_label_values(&[state]);
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

    /// Every task, oldest first.
    pub fn tasks(&self) -> Vec<TaskInfo> {
        let tasks = self.instances.tasks();
        let mut infos: Vec<_> = tasks.iter().map(|task| task.info(&self.generation)).collect();
        infos.sort_by(|a, b| a.created_at.total_cmp(&b.created_at));
        infos
    }

    /// Every module, and who runs it.
    pub fn inventory(&self) -> Modules {
        let mut modules = self.modules.inventory();
        let mut users: HashMap<String, (u64, Vec<String>)> = HashMap::new();
        for task in self.instances.tasks() {
            let about = &task.container.about;
            let Some(digest) = about.module else { continue };
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

/// Where an earlier daemon is asked.
fn earlier(state_dir: &Path, id: &str) -> String {
    directory::control_socket(state_dir, id).display().to_string()
}

fn encode(answer: &impl Serialize) -> Result<Vec<u8>, String> {
    serde_json::to_vec(answer).map_err(|error| format!("the answer cannot be encoded: {error}"))
}
