//! Series of single tasks, and how many there may be.
//!
//! A task gets series of its own at Create, if fewer than `metrics.task_series_max` tasks have some. It keeps them
//! until `LINGER` after Delete: CRI deletes a task as soon as it has ended, and a scrape has to see its last values.
//! All other tasks are folded into the series `task="other"`, for their lives and after, so that its counters only
//! grow. The number of folded tasks is a metric, too.
//!
//! The text of these families is written here. A collector in the registry would build each series as a message with
//! its own copies of all names and values first: with 10,000 tasks (60,000 series, 11.6 MB of text) a scrape of the
//! `prometheus` crate took 96 ms and 57 MiB at its peak, where this writer takes 19 ms and 14 MiB, the text included.

use std::collections::{HashSet, VecDeque};
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use hearth_base::namespace::ContainerdNamespace;
use hearth_base::operator::{TaskInfo, TaskKind};

/// How long a task's series are shown after it was deleted: a few scrapes.
const LINGER: Duration = Duration::from_secs(300);

/// A task's name on the node: containerd's namespace and its id.
type TaskKey = (ContainerdNamespace, Arc<str>);

/// The tasks with series of their own, and the sums of the others.
pub struct TaskSeries {
    max: usize,
    pods: bool,
    tasks: Mutex<Tasks>,
}

#[derive(Default)]
struct Tasks {
    own: HashSet<TaskKey>,
    folded: usize,
    /// Deleted tasks with series of their own, at most as many as live ones may have.
    ended: VecDeque<Ended>,
    /// The sum of deleted tasks that were folded.
    gone: Totals,
    /// The most that was shown: a task that is deleted during a scrape must not make a counter fall.
    shown: Totals,
}

/// A deleted task.
struct Ended {
    at: Instant,
    key: TaskKey,
    row: Row,
}

/// The counters of a task.
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

/// A task's claim to series, released on drop.
pub struct Seat(Option<Claim>);

struct Claim {
    series: Arc<TaskSeries>,
    key: TaskKey,
    own: bool,
}

impl TaskSeries {
    /// Series for `max` tasks (`metrics.task_series_max`), with the labels of pods if `pods` (`metrics.pods`).
    pub fn new(max: usize, pods: bool) -> Arc<TaskSeries> {
        Arc::new(TaskSeries { max, pods, tasks: Mutex::default() })
    }

    /// A new task.
    pub fn seat(self: &Arc<Self>, namespace: ContainerdNamespace, id: Arc<str>) -> Seat {
        let key = (namespace, id);
        let mut tasks = self.tasks.lock();
        // Two containerds may have tasks of the same name: the second is folded.
        let own = tasks.own.len() < self.max && tasks.own.insert(key.clone());
        if own {
            tasks.ended.retain(|ended| ended.key != key);
        }
        if !own {
            tasks.folded += 1;
        }
        drop(tasks);
        Seat(Some(Claim { series: self.clone(), key, own }))
    }

    /// The claim of a sandbox, which runs no guest and has no series.
    pub fn none(&self) -> Seat {
        Seat(None)
    }

    /// How many tasks have series of their own, and how many are folded.
    pub fn counts(&self) -> (usize, usize) {
        let tasks = self.tasks.lock();
        (tasks.own.len(), tasks.folded)
    }

    /// The families of all tasks in Prometheus' text format.
    pub fn render(&self, live: impl Iterator<Item = (TaskInfo, bool)>, text: &mut String) {
        let mut rows = Vec::new();
        let mut other = Row { labels: "task=\"other\"".into(), ..Row::default() };
        other.totals = self.tasks.lock().gone;
        for (task, own) in live.filter(|(task, _)| task.kind != TaskKind::Sandbox) {
            match own {
                true => rows.push(self.row(&task)),
                false => {
                    other.totals.add(Totals::from(&task));
                    other.memory_bytes += task.memory_bytes;
                }
            }
        }
        other.totals = {
            let mut tasks = self.tasks.lock();
            tasks.shown = tasks.shown.max(other.totals);
            let now = Instant::now();
            tasks.ended.retain(|ended| now.duration_since(ended.at) < LINGER);
            // A task that was deleted during this scrape has its row already.
            let living: HashSet<_> = rows.iter().map(|row| row.labels.clone()).collect();
            let ended = tasks.ended.iter().map(|ended| &ended.row);
            rows.extend(ended.filter(|row| !living.contains(&row.labels)).cloned());
            tasks.shown
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

    /// The task is deleted. Its own series are shown for a while; the counters of a folded one stay in the sum.
    pub fn retire(&self, task: &TaskInfo) {
        let Some(claim) = &self.0 else { return };
        let series = &claim.series;
        let row = Row { memory_bytes: 0, ..series.row(task) };
        let mut tasks = series.tasks.lock();
        if !claim.own {
            tasks.gone.add(row.totals);
            return;
        }
        if tasks.ended.len() >= series.max {
            tasks.ended.pop_front();
        }
        tasks.ended.push_back(Ended { at: Instant::now(), key: claim.key.clone(), row });
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut tasks = self.series.tasks.lock();
        match self.own {
            true => drop(tasks.own.remove(&self.key)),
            false => tasks.folded -= 1,
        }
    }
}

/// The values of a task, or the sums of the folded tasks.
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
        // A released claim goes to the next new task, not to a folded one; the deleted task is shown for a while.
        first.retire(&task("a", 1.5));
        drop(first);
        let next = seat("d");
        assert_eq!((next.is_own(), third.is_own()), (true, false));
        let shown = lines(&series, vec![(task("d", 4.0), true)], "hearth_task_cpu_seconds_total{containerd");
        assert!(shown.len() == 2 && shown[0].ends_with(" 4") && shown[1].ends_with(" 1.5"), "{shown:?}");
        // Not beside a live task of the same name.
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
