//! What those who look at the node see of a task.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::bundle::CriNames;
use crate::operator::{PodName, TaskInfo, TaskKind};
use crate::task::Task;
use crate::task::process::label;
use crate::wasm::modules::origin::Digest;

/// A container's names and origin.
#[derive(Debug, Clone)]
pub struct About {
    /// Its pod, if it is of one.
    pub pod: Option<PodName>,
    /// Its image, where CRI has said it.
    pub image: Option<String>,
    /// The first of its arguments.
    pub program: String,
    /// Its module; none for a sandbox.
    pub module: Option<Digest>,
    /// When Create was asked for.
    pub created_at: SystemTime,
}

impl About {
    /// What CRI has said of it, and what else is known. `began`: when Create's request arrived.
    pub fn new(names: CriNames, program: &str, module: Option<Digest>, began: Instant) -> About {
        let pod = names.pod.map(|name| PodName {
            namespace: names.namespace.unwrap_or_default(),
            name,
            container: names.container.unwrap_or_default(),
        });
        let created_at = SystemTime::now().checked_sub(began.elapsed()).unwrap_or(UNIX_EPOCH);
        About { pod, image: names.image, program: program.into(), module, created_at }
    }
}

impl Task {
    /// What it is and how it does now. Takes short locks, one after the other.
    pub fn info(&self, generation: &str) -> TaskInfo {
        let (container, about) = (&self.container, &self.container.about);
        let snapshot = self.init.snapshot();
        let kind = match (&container.requests, about.module) {
            (Some(_), _) => TaskKind::Service,
            (None, None) => TaskKind::Sandbox,
            (None, Some(_)) => TaskKind::Program,
        };
        TaskInfo {
            generation: generation.into(),
            namespace: container.namespace.to_string(),
            id: container.id.to_string(),
            kind,
            pod: about.pod.clone(),
            image: about.image.clone(),
            program: about.program.clone(),
            module: about.module.map(|digest| digest.to_string()).unwrap_or_default(),
            state: label(snapshot.state).into(),
            exit_status: snapshot.exit.map(|exit| exit.status),
            pid: container.pid(),
            created_at: about.created_at.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()),
            execs: container.execs.all().iter().filter(|exec| exec.is_running()).count() as u64,
            cpu_seconds: self.cpu_time().as_secs_f64(),
            throttled_seconds: self.init.throttling().throttled_ns as f64 / 1e9,
            memory_bytes: container.memory.current(),
            memory_peak_bytes: container.memory.peak(),
            memory_limit_bytes: container.memory.limit(),
            memory_refused: container.memory.refused(),
            out_of_memory: container.memory.was_fatal(),
        }
    }
}
