//! `hearthctl inspect`: everything about one task. Also the names of tasks on a command line.

use crate::CtlError;
use crate::client::DaemonClient;
use crate::output::{Cell, Printer, Table, printable};
use crate::ps;
use hearth_base::operator::{
    ApplicationInfo, BudgetInfo, EndInfo, PodName, Question, RequestInfo, StartInfo, TaskDetails, TaskInfo, TriggerInfo,
};
use hearth_base::units::{age_since, bytes, seconds};

/// A task on the command line.
#[derive(clap::Args)]
pub struct TaskName {
    /// Its id or the beginning of it, or `pod:NAMESPACE/POD[/CONTAINER]`
    #[arg(value_name = "TASK")]
    task: String,
    /// containerd's namespace, if several have such a task
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
}

/// A record with the names of a task.
pub trait HasTaskNames {
    /// containerd's namespace, the id, the pod.
    fn names(&self) -> (&str, &str, Option<&PodName>);
}

impl HasTaskNames for TaskInfo {
    fn names(&self) -> (&str, &str, Option<&PodName>) {
        (&self.namespace, &self.id, self.pod.as_ref())
    }
}

impl HasTaskNames for StartInfo {
    fn names(&self) -> (&str, &str, Option<&PodName>) {
        (&self.of.namespace, &self.of.id, self.of.pod.as_ref())
    }
}

impl HasTaskNames for EndInfo {
    fn names(&self) -> (&str, &str, Option<&PodName>) {
        (&self.of.namespace, &self.of.id, self.of.pod.as_ref())
    }
}

impl HasTaskNames for RequestInfo {
    fn names(&self) -> (&str, &str, Option<&PodName>) {
        (&self.of.namespace, &self.of.id, self.of.pod.as_ref())
    }
}

impl TaskName {
    /// A task by its id or pod, and containerd's namespace.
    pub fn new(task: &str, namespace: Option<&str>) -> TaskName {
        TaskName { task: task.into(), namespace: namespace.map(str::to_string) }
    }

    /// The name as it was typed.
    pub fn text(&self) -> &str {
        &self.task
    }

    /// How well the name fits; the least is best. None: it does not fit.
    fn rank(&self, named: &impl HasTaskNames) -> Option<u8> {
        let (namespace, id, pod) = named.names();
        if self.namespace.as_ref().is_some_and(|wanted| wanted != namespace) {
            return None;
        }
        let Some(wanted) = self.task.strip_prefix("pod:") else {
            return if id == self.task { Some(0) } else { id.starts_with(&self.task).then_some(1) };
        };
        let whole = ps::pod(pod?);
        let rest = whole.strip_prefix(wanted)?;
        // The name of a pod means its containers, and its sandbox only if it has no container.
        match (rest, pod?.container.as_str()) {
            ("", "") => Some(1),
            (rest, _) => (rest.is_empty() || rest.starts_with('/')).then_some(0),
        }
    }

    /// All records that fit best, in their order.
    pub fn choose<T: HasTaskNames>(&self, all: Vec<T>) -> Vec<T> {
        let best = all.iter().filter_map(|named| self.rank(named)).min();
        all.into_iter().filter(|named| best.is_some() && self.rank(named) == best).collect()
    }

    /// The only record that fits best.
    ///
    /// # Errors
    /// No record fits, or several do; the error names them.
    pub fn find<T: HasTaskNames>(&self, all: Vec<T>) -> Result<T, CtlError> {
        let mut chosen = self.choose(all);
        let last = chosen.pop().ok_or_else(|| {
            CtlError::Refused(format!("there is no task {:?}; `hearthctl ps --all` lists all tasks", self.task))
        })?;
        if chosen.is_empty() {
            return Ok(last);
        }
        chosen.push(last);
        let name = |named: &T| match named.names() {
            (_, _, Some(pod)) if self.task.starts_with("pod:") => format!("pod:{}", ps::pod(pod)),
            (namespace, id, _) => format!("{namespace}/{id}"),
        };
        let names: Vec<_> = chosen.iter().map(name).collect();
        Err(CtlError::Refused(format!(
            "{:?} may be {}: say more of it, or the --namespace",
            self.task,
            names.join(" or ")
        )))
    }
}

pub fn run(name: &TaskName, client: &DaemonClient, output: &mut Printer) -> Result<(), CtlError> {
    let task: TaskInfo = name.find(client.list(&Question::Tasks)?)?;
    let question = Question::Task { namespace: task.namespace, id: task.id };
    let found: Vec<Option<TaskDetails>> = client.ask_all(&question)?;
    let details = found.into_iter().flatten().next();
    let details = details.ok_or_else(|| CtlError::Refused(format!("task {:?} has just gone", name.task)))?;
    if output.json {
        return Ok(output.json(&details)?);
    }
    output.table(&table(&details))?;
    if let Some(application) = &details.application {
        print_application(application, output)?;
    }
    for end in &details.ends {
        output.line("")?;
        output.line(format!("ended {} ago ({}, status {}):", age_since(end.at), end.kind.name(), end.status))?;
        for line in end.text.lines() {
            output.line(format!("  {}", printable(line)))?;
        }
    }
    Ok(())
}

/// The triggers and the components of an application.
fn print_application(application: &ApplicationInfo, output: &mut Printer) -> Result<(), CtlError> {
    let ApplicationInfo { name, version, triggers, components } = application;
    output.line("")?;
    let version = version.as_ref().map(|version| format!(" {version}")).unwrap_or_default();
    output.line(format!("Spin application {}{}", printable(name), printable(&version)))?;
    let mut table = Table::new(&["TRIGGER", "OF", "ANSWER"]);
    for TriggerInfo { kind, of, answer } in triggers {
        let of = match (kind.as_str(), of.as_str()) {
            ("http", "") => "calls of other components",
            (_, of) => of,
        };
        table.row(vec![kind.as_str().into(), of.into(), answer.as_str().into()]);
    }
    output.table(&table)?;
    output.line("")?;
    let mut table = Table::new(&["COMPONENT", "KEY-VALUE STORES", "DATABASES", "ALLOWED HOSTS"]);
    for component in components {
        let listed = |list: &[String]| if list.is_empty() { "none".to_string() } else { list.join(", ") };
        table.row(vec![
            component.id.as_str().into(),
            listed(&component.key_value_stores).into(),
            listed(&component.databases).into(),
            listed(&component.allowed_outbound_hosts).into(),
        ]);
    }
    Ok(output.table(&table)?)
}

fn table(details: &TaskDetails) -> Table {
    let task = &details.task;
    let mut table = Table::new(&["", ""]);
    let mut row = |name: &str, cell: Cell| table.row(vec![name.into(), cell]);
    row("task", format!("{}/{}", task.namespace, task.id).into());
    if let Some(pod) = &task.pod {
        row("pod", ps::pod(pod).into());
    }
    row("image", task.image.clone().or_else(|| details.image.clone()).unwrap_or_else(|| "unknown".into()).into());
    row("program", task.program.as_str().into());
    row("module", if task.module.is_empty() { "none: a sandbox".into() } else { task.module.as_str().into() });
    row("isolation", ps::level(task).into());
    row("state", ps::state(task));
    row("pid", task.pid.to_string().into());
    row("created", format!("{} ago", age_since(task.created_at)).into());
    row("cpu time", format!("{}, throttled for {}", seconds(task.cpu_seconds), seconds(task.throttled_seconds)).into());
    row(
        "memory",
        format!(
            "{}, at most {}; limit {}; refused {} times",
            bytes(task.memory_bytes),
            bytes(task.memory_peak_bytes),
            bytes(task.memory_limit_bytes),
            task.memory_refused
        )
        .into(),
    );
    row("limits", limits(&details.budgets).into());
    row("traps", task.traps.to_string().into());
    row("processes", format!("the first and {} execs", task.execs).into());
    row("bundle", details.bundle.as_str().into());
    row("stdio", details.stdio.iter().map(String::as_str).collect::<Vec<_>>().join(" ").into());
    if let Some(own) = details.start.own_seconds {
        let source = details.start.source.as_deref().unwrap_or("?");
        row("start", format!("{} ({source}); hearthctl trace has its phases", seconds(own)).into());
    }
    row("generation", task.generation.as_str().into());
    table
}

/// The kinds of which a task has taken some from the node, or was refused some.
fn limits(budgets: &[BudgetInfo]) -> String {
    let shown = budgets.iter().filter(|budget| budget.used > 0 || budget.refused > 0).map(|budget| {
        let amount = |value: u64| if budget.kind.ends_with("_bytes") { bytes(value) } else { value.to_string() };
        let name = budget.kind.trim_end_matches("_bytes").replace('_', " ");
        let refused = if budget.refused > 0 { format!(", refused {} times", budget.refused) } else { String::new() };
        format!("{name} {} of {}{refused}", amount(budget.used), amount(budget.limit))
    });
    let shown: Vec<_> = shown.collect();
    if shown.is_empty() { "nothing beside memory".into() } else { shown.join("; ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_task_has_taken_is_one_line() {
        let budget = |kind: &str, used, refused| BudgetInfo { kind: kind.into(), used, limit: 4_096, refused };
        let all = [budget("descriptors", 3, 0), budget("lookups", 0, 0), budget("address_space_bytes", 2_048, 7)];
        assert_eq!(limits(&all), "descriptors 3 of 4096; address space 2.0 KiB of 4.0 KiB, refused 7 times");
        assert_eq!(limits(&all[1..2]), "nothing beside memory");
    }

    fn task(namespace: &str, id: &str, pod: Option<&str>) -> TaskInfo {
        let pod = pod.and_then(|pod| pod.split_once('/')).map(|(name, container)| PodName {
            namespace: "default".into(),
            name: name.into(),
            container: container.into(),
        });
        TaskInfo { namespace: namespace.into(), id: id.into(), pod, ..TaskInfo::default() }
    }

    fn find(name: &str, namespace: Option<&str>) -> Result<String, CtlError> {
        let all = vec![
            task("a", "web", None),
            task("b", "web", None),
            task("a", "website", None),
            task("k8s.io", "0122", Some("web-0/")),
            task("k8s.io", "0123", Some("web-0/app")),
            task("k8s.io", "4", Some("two/")),
            task("k8s.io", "5", Some("two/a")),
            task("k8s.io", "6", Some("two/b")),
            task("k8s.io", "7", Some("empty/")),
        ];
        let name = TaskName { task: name.into(), namespace: namespace.map(str::to_string) };
        name.find(all).map(|task| format!("{}/{}", task.namespace, task.id))
    }

    #[test]
    fn a_task_is_named_by_its_id_a_beginning_or_its_pod() {
        assert_eq!(find("webs", None).unwrap(), "a/website");
        assert_eq!(find("web", Some("b")).unwrap(), "b/web");
        assert_eq!(find("0122", None).unwrap(), "k8s.io/0122");
        assert_eq!(find("pod:default/empty", None).unwrap(), "k8s.io/7");
        let Err(CtlError::Refused(text)) = find("pod:default/two", None) else { panic!() };
        assert!(text.contains("pod:default/two/a or pod:default/two/b"), "{text}");
        for pod in ["pod:default/web-0", "pod:default/web-0/app"] {
            assert_eq!(find(pod, None).unwrap(), "k8s.io/0123");
        }
        let Err(CtlError::Refused(text)) = find("web", None) else { panic!() };
        assert!(text.contains("a/web or b/web") && !text.contains("website"), "{text}");
        for none in ["x", "pod:default/web", "pod:default/web-0/other"] {
            assert!(find(none, None).is_err(), "{none}");
        }
    }
}
