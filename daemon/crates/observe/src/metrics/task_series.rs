//! Series of single tasks, and how many there may be.
//!
//! A task gets series of its own when it is made, if fewer than `metrics.task_series_max` tasks have some, and
//! keeps them until `LINGER` after it was deleted: CRI deletes a task as soon as it has ended, and somebody
//! has to see what became of it. The others are folded into the series `task="other"`, for all their lives and
//! after, so that its counters only ever grow. How many are folded is a metric, too.
//!
//! The text is written here and not by the registry: thousands of series are rendered in a few milliseconds.

use std::collections::{HashSet, VecDeque};
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use hearth_base::operator::{TaskInfo, TaskKind};

/// How long a task's series are shown after it was deleted: a few scrapes.
const LINGER: Duration = Duration::from_secs(300);

/// A task's name on the node: containerd's namespace and its id.
type Key = (Arc<str>, Arc<str>);

/// Who has series.
pub struct TaskSeries {
    max: usize,
    pods: bool,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    own: HashSet<Key>,
    folded: usize,
    /// Tasks with series of their own that are gone; as many as there may be of those that live.
    ended: VecDeque<Ended>,
    /// Of the folded tasks that are gone.
    gone: Totals,
    /// The most that was shown: a task that goes while it is looked at must not make a counter fall.
    shown: Totals,
}

/// A task that is gone.
struct Ended {
    at: Instant,
    key: Key,
    row: Row,
}

/// What is counted of a task.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Totals {
    /// CPU time of all its processes, in seconds.
    pub cpu_seconds: f64,
    /// Time it waited for its quota, in seconds.
    pub throttled_seconds: f64,
    /// Times it was refused memory.
    pub memory_refused: u64,
    /// Traps of all its guests.
    pub traps: u64,
}

impl Totals {
    fn add(&mut self, other: Totals) {
        self.cpu_seconds += other.cpu_seconds;
        self.throttled_seconds += other.throttled_seconds;
        self.memory_refused += other.memory_refused;
        self.traps += other.traps;
    }

    fn max(self, other: Totals) -> Totals {
        Totals {
            cpu_seconds: self.cpu_seconds.max(other.cpu_seconds),
            throttled_seconds: self.throttled_seconds.max(other.throttled_seconds),
            memory_refused: self.memory_refused.max(other.memory_refused),
            traps: self.traps.max(other.traps),
        }
    }
}

impl From<&TaskInfo> for Totals {
    fn from(task: &TaskInfo) -> Totals {
        Totals {
            cpu_seconds: task.cpu_seconds,
            throttled_seconds: task.throttled_seconds,
            memory_refused: task.memory_refused,
            traps: task.traps,
        }
    }
}

/// A task's claim to series; given back on drop.
pub struct Seat(Option<Claim>);

struct Claim {
    series: Arc<TaskSeries>,
    key: Key,
    own: bool,
}

impl TaskSeries {
    /// Series for `max` tasks (`metrics.task_series_max`), with the pods' names on them if asked for.
    pub fn new(max: usize, pods: bool) -> Arc<TaskSeries> {
        Arc::new(TaskSeries { max, pods, inner: Mutex::default() })
    }

    /// A new task.
    pub fn seat(self: &Arc<Self>, namespace: Arc<str>, id: Arc<str>) -> Seat {
        let key = (namespace, id);
        let mut inner = self.inner.lock();
        // (Two containerds may have one of the same name: a series is one task's.)
        let own = inner.own.len() < self.max && inner.own.insert(key.clone());
        if own {
            inner.ended.retain(|ended| ended.key != key);
        }
        if !own {
            inner.folded += 1;
        }
        drop(inner);
        Seat(Some(Claim { series: self.clone(), key, own }))
    }

    /// For what runs nothing, and is in none of the metrics.
    pub fn none(&self) -> Seat {
        Seat(None)
    }

    /// How many tasks have series of their own, and how many are folded.
    pub fn counts(&self) -> (usize, usize) {
        let inner = self.inner.lock();
        (inner.own.len(), inner.folded)
    }

    /// The families of all tasks in Prometheus' text format.
    pub fn render(&self, tasks: impl Iterator<Item = (TaskInfo, bool)>, text: &mut String) {
        let mut rows = Vec::new();
        let mut other = Row { labels: "task=\"other\"".into(), ..Row::default() };
        other.totals = self.inner.lock().gone;
        for (task, own) in tasks.filter(|(task, _)| task.kind != TaskKind::Sandbox) {
            match own {
                true => rows.push(self.row(&task)),
                false => {
                    other.totals.add(Totals::from(&task));
                    other.memory_bytes += task.memory_bytes;
                }
            }
        }
        other.totals = {
            let mut inner = self.inner.lock();
            inner.shown = inner.shown.max(other.totals);
            let now = Instant::now();
            inner.ended.retain(|ended| now.duration_since(ended.at) < LINGER);
            // One that went while this was looked at is among the living already.
            let living: HashSet<_> = rows.iter().map(|row| row.labels.clone()).collect();
            let ended = inner.ended.iter().map(|ended| &ended.row);
            rows.extend(ended.filter(|row| !living.contains(&row.labels)).cloned());
            inner.shown
        };
        rows.push(other);
        for family in FAMILIES {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "# HELP {} {}\n# TYPE {} {}", family.name, family.help, family.name, family.kind);
            for row in &rows {
                if let Some(value) = (family.value)(row) {
                    let _ = writeln!(text, "{}{{{}}} {value}", family.name, row.labels);
                }
            }
        }
    }

    fn row(&self, task: &TaskInfo) -> Row {
        Row {
            labels: self.labels(task),
            totals: Totals::from(task),
            memory_bytes: task.memory_bytes,
            memory_limit_bytes: Some(task.memory_limit_bytes),
        }
    }

    fn labels(&self, task: &TaskInfo) -> String {
        let mut labels =
            format!("containerd_namespace=\"{}\",task=\"{}\"", Escaped(&task.namespace), Escaped(&task.id));
        if self.pods
            && let Some(pod) = &task.pod
        {
            let _ = write!(
                labels,
                ",namespace=\"{}\",pod=\"{}\",container=\"{}\"",
                Escaped(&pod.namespace),
                Escaped(&pod.name),
                Escaped(&pod.container)
            );
        }
        labels
    }
}

impl Seat {
    /// Whether the task has series of its own.
    pub fn is_own(&self) -> bool {
        self.0.as_ref().is_some_and(|claim| claim.own)
    }

    /// The task is deleted: what was counted of it is shown for a while, of a folded one for ever, in the sum.
    pub fn retire(&self, task: &TaskInfo) {
        let Some(claim) = &self.0 else { return };
        let series = &claim.series;
        let row = Row { memory_bytes: 0, ..series.row(task) };
        let mut inner = series.inner.lock();
        if !claim.own {
            inner.gone.add(row.totals);
            return;
        }
        if inner.ended.len() >= series.max {
            inner.ended.pop_front();
        }
        inner.ended.push_back(Ended { at: Instant::now(), key: claim.key.clone(), row });
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut inner = self.series.inner.lock();
        match self.own {
            true => drop(inner.own.remove(&self.key)),
            false => inner.folded -= 1,
        }
    }
}

/// A task's values, or those of the folded ones together.
#[derive(Default, Clone)]
struct Row {
    labels: String,
    totals: Totals,
    memory_bytes: u64,
    memory_limit_bytes: Option<u64>,
}

/// A metric of tasks.
pub struct Family {
    /// Its name.
    pub name: &'static str,
    help: &'static str,
    kind: &'static str,
    value: fn(&Row) -> Option<f64>,
}

/// All metrics of tasks.
pub const FAMILIES: [Family; 6] = [
    Family {
        name: "hearth_task_cpu_seconds_total",
        help: "CPU time of a task's guests, in seconds.",
        kind: "counter",
        value: |row| Some(row.totals.cpu_seconds),
    },
    Family {
        name: "hearth_task_throttled_seconds_total",
        help: "Time that a task's guests waited for their CPU quota, in seconds.",
        kind: "counter",
        value: |row| Some(row.totals.throttled_seconds),
    },
    Family {
        name: "hearth_task_memory_bytes",
        help: "Linear memories and tables of a task's guests.",
        kind: "gauge",
        value: |row| Some(row.memory_bytes as f64),
    },
    Family {
        name: "hearth_task_memory_limit_bytes",
        help: "What a task's memories and tables may be; not of the folded tasks.",
        kind: "gauge",
        value: |row| row.memory_limit_bytes.map(|limit| limit as f64),
    },
    Family {
        name: "hearth_task_memory_refused_total",
        help: "Times that a task's guests were refused memory for its limit.",
        kind: "counter",
        value: |row| Some(row.totals.memory_refused as f64),
    },
    Family {
        name: "hearth_task_traps_total",
        help: "Traps of a task's guests.",
        kind: "counter",
        value: |row| Some(row.totals.traps as f64),
    },
];

/// A label's value as the text format has it.
struct Escaped<'a>(&'a str);

impl std::fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for c in self.0.chars() {
            match c {
                '\\' => f.write_str("\\\\")?,
                '"' => f.write_str("\\\"")?,
                '\n' => f.write_str("\\n")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hearth_base::operator::PodName;

    fn task(id: &str, cpu_seconds: f64) -> TaskInfo {
        let pod = Some(PodName { namespace: "shop".into(), name: "web\"0".into(), container: "app".into() });
        TaskInfo { namespace: "k8s.io".into(), id: id.into(), pod, cpu_seconds, memory_bytes: 5, ..TaskInfo::default() }
    }

    fn lines(series: &TaskSeries, tasks: Vec<(TaskInfo, bool)>, name: &str) -> Vec<String> {
        let mut text = String::new();
        series.render(tasks.into_iter(), &mut text);
        text.lines().filter(|line| line.starts_with(name)).map(str::to_string).collect()
    }

    #[test]
    fn what_is_over_the_limit_is_folded_and_its_sum_never_falls() {
        let series = TaskSeries::new(1, false);
        let seat = |id: &str| series.seat("k8s.io".into(), id.into());
        let (first, second, third) = (seat("a"), seat("b"), seat("c"));
        assert_eq!((first.is_own(), second.is_own(), third.is_own(), series.counts()), (true, false, false, (1, 2)));
        let tasks = vec![(task("a", 1.5), true), (task("b", 2.0), false), (task("c", 3.0), false)];
        let shown = lines(&series, tasks, "hearth_task_cpu_seconds_total{");
        assert_eq!(
            shown,
            [
                "hearth_task_cpu_seconds_total{containerd_namespace=\"k8s.io\",task=\"a\"} 1.5",
                "hearth_task_cpu_seconds_total{task=\"other\"} 5"
            ]
        );
        second.retire(&task("b", 2.0));
        drop(second);
        let shown = lines(&series, vec![(task("c", 3.0), false)], "hearth_task_cpu_seconds_total{");
        assert_eq!(shown, ["hearth_task_cpu_seconds_total{task=\"other\"} 5"]);
        // A place that is given back is the next one's, not a folded one's; who had it is shown for a while.
        first.retire(&task("a", 1.5));
        drop(first);
        let next = seat("d");
        assert_eq!((next.is_own(), third.is_own()), (true, false));
        let shown = lines(&series, vec![(task("d", 4.0), true)], "hearth_task_cpu_seconds_total{containerd");
        assert!(shown.len() == 2 && shown[0].ends_with(" 4") && shown[1].ends_with(" 1.5"), "{shown:?}");
        // Not beside one of the same name.
        drop(next);
        let _again = seat("a");
        assert_eq!(lines(&series, vec![(task("a", 9.0), true)], "hearth_task_cpu_seconds_total{containerd").len(), 1);
    }

    #[test]
    fn pods_are_named_only_where_that_is_asked_for_and_whatever_their_names_hold() {
        let row = vec![(task("a", 0.0), true)];
        let shown = lines(&TaskSeries::new(1, true), row, "hearth_task_memory_bytes{containerd");
        assert!(shown[0].contains(",namespace=\"shop\",pod=\"web\\\"0\",container=\"app\"} 5"), "{shown:?}");
    }

    #[test]
    fn ten_thousand_tasks_are_ten_thousand_lines_of_each_metric() {
        let series = TaskSeries::new(10_000, false);
        let tasks: Vec<_> = (0..10_000).map(|number| (task(&number.to_string(), 1.0), true)).collect();
        assert_eq!(lines(&series, tasks, "hearth_task_traps_total{").len(), 10_001);
    }
}
