//! A task as operators see it: `hearthctl ps`, `inspect` and `top`, the page and the metrics.

use crate::task::Task;
use hearth_base::operator::{BudgetInfo, EndInfo, TaskDetails, TaskInfo, TaskKind};
use hearth_base::tenant::Kind;
use hearth_base::time::unix;
use hearth_observe::metrics::task_series::Totals;

impl Task {
    /// Its description and its present state. Takes short locks, one after the other.
    pub fn info(&self, generation: &str) -> TaskInfo {
        let (container, about) = (&self.container, &self.container.about);
        let snapshot = self.init.snapshot();
        let totals = self.totals();
        TaskInfo {
            generation: generation.into(),
            namespace: container.namespace.to_string(),
            id: container.id.to_string(),
            kind: self.kind(),
            pod: about.pod.clone(),
            image: about.image.clone(),
            program: about.program.clone(),
            module: about.module.get().map(|digest| digest.to_string()).unwrap_or_default(),
            state: snapshot.state.label().into(),
            exit_status: snapshot.exit.map(|exit| exit.status),
            pid: container.pid(),
            created_at: unix(about.created_at),
            execs: self.execs.all().iter().filter(|exec| exec.is_running()).count() as u64,
            cpu_seconds: totals.cpu_seconds,
            throttled_seconds: totals.throttled_seconds,
            memory_bytes: container.memory.current(),
            memory_peak_bytes: container.memory.peak(),
            memory_limit_bytes: container.memory.limit(),
            memory_refused: totals.memory_refused,
            out_of_memory: container.memory.was_fatal(),
            traps: totals.traps,
            isolation: container.level().word().into(),
        }
    }

    fn kind(&self) -> TaskKind {
        match (&self.container.requests, self.container.about.module.get()) {
            (Some(_), _) => TaskKind::Service,
            (None, None) => TaskKind::Sandbox,
            (None, Some(_)) => TaskKind::Program,
        }
    }

    /// Its counters.
    pub fn totals(&self) -> Totals {
        Totals {
            cpu_seconds: self.cpu_time().as_secs_f64(),
            throttled_seconds: self.init.throttling().throttled_ns as f64 / 1e9,
            memory_refused: self.container.memory.refused(),
            traps: self.container.about.traps.load(std::sync::atomic::Ordering::Relaxed),
        }
    }

    /// The things beside memory that it has taken from the node, by kind.
    fn budgets(&self) -> Vec<BudgetInfo> {
        let tenant = &self.container.tenant;
        let of = |kind: &Kind| BudgetInfo {
            kind: kind.name().into(),
            used: tenant.used(*kind),
            limit: tenant.limit(*kind),
            refused: tenant.refused(*kind),
        };
        Kind::ALL.iter().map(of).collect()
    }

    /// All that is known of it. `ends`: of all tasks.
    pub fn details(&self, generation: &str, ends: Vec<EndInfo>) -> TaskDetails {
        let (container, stdio) = (&self.container, &self.init.stdio_paths);
        let mut ends = ends;
        ends.retain(|end| end.of.namespace == *container.namespace && end.of.id == *container.id);
        TaskDetails {
            task: self.info(generation),
            image: container.about.image.clone(),
            bundle: container.bundle.display().to_string(),
            stdio: [&stdio.stdin, &stdio.stdout, &stdio.stderr]
                .map(|path| if path.is_empty() { "none".into() } else { path.clone() })
                .to_vec(),
            budgets: self.budgets(),
            application: container.application.as_deref().cloned(),
            start: container.about.start_info(generation),
            ends,
        }
    }
}
