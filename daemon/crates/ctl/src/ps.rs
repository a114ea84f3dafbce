//! `hearthctl ps`: the tasks.

use clap::ValueEnum;

use crate::CtlError;
use crate::client::DaemonClient;
use crate::output::{Cell, Printer, Table, Tone};
use hearth_base::isolation::Level;
use hearth_base::operator::{PodName, Question, TaskInfo, TaskKind};
use hearth_base::units::{age_since, bytes, seconds};

/// The choice and order of tasks.
#[derive(clap::Args)]
pub struct Args {
    /// Only tasks of this containerd namespace
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    /// Pods' sandboxes, too
    #[arg(short, long)]
    all: bool,
    /// The order
    #[arg(long, value_enum, default_value_t = TaskOrder::Age)]
    sort: TaskOrder,
    /// Do not shorten ids
    #[arg(long)]
    no_trunc: bool,
}

/// The order of tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TaskOrder {
    /// The oldest first.
    Age,
    /// The one with most CPU time first.
    Cpu,
    /// The one with most memory first.
    Memory,
}

pub fn run(args: &Args, client: &DaemonClient, output: &mut Printer) -> Result<(), CtlError> {
    let mut tasks: Vec<TaskInfo> = client.list(&Question::Tasks)?;
    if let Some(namespace) = &args.namespace {
        tasks.retain(|task| task.namespace == *namespace);
    }
    if !args.all {
        tasks.retain(|task| task.kind != TaskKind::Sandbox);
    }
    sort(&mut tasks, args.sort);
    if output.json {
        return Ok(output.json(&tasks)?);
    }
    output.table(&table(&tasks, args.no_trunc))?;
    Ok(())
}

/// Sorts tasks as they are listed.
pub fn sort(tasks: &mut [TaskInfo], by: TaskOrder) {
    match by {
        TaskOrder::Age => tasks.sort_by(|a, b| a.created_at.total_cmp(&b.created_at)),
        TaskOrder::Cpu => tasks.sort_by(|a, b| b.cpu_seconds.total_cmp(&a.cpu_seconds)),
        TaskOrder::Memory => tasks.sort_by_key(|task| std::cmp::Reverse(task.memory_bytes)),
    }
}

fn table(tasks: &[TaskInfo], whole_ids: bool) -> Table {
    let mut table =
        Table::new(&["NAMESPACE", "TASK", "POD", "IMAGE", "LEVEL", "STATE", ">CPU", ">THROTTLED", ">MEMORY", ">AGE"]);
    for task in tasks {
        table.row(vec![
            task.namespace.as_str().into(),
            short_id(&task.id, whole_ids).into(),
            task.pod.as_ref().map_or_else(|| "-".into(), pod).into(),
            what(task).into(),
            level(task).into(),
            state(task),
            seconds(task.cpu_seconds).into(),
            seconds(task.throttled_seconds).into(),
            memory(task).into(),
            age_since(task.created_at).into(),
        ]);
    }
    table
}

/// An id, shortened as containerd's own tools do it. Names that users chose stay whole.
pub fn short_id(id: &str, whole: bool) -> String {
    let is_made = id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_made && !whole { id[..13].into() } else { id.into() }
}

/// `namespace/pod/container`.
pub fn pod(pod: &PodName) -> String {
    match pod.container.as_str() {
        "" => format!("{}/{}", pod.namespace, pod.name),
        container => format!("{}/{}/{container}", pod.namespace, pod.name),
    }
}

/// The image, or the program of a task without a known image.
pub fn what(task: &TaskInfo) -> String {
    match (&task.image, task.kind) {
        (Some(image), _) => image.clone(),
        (None, TaskKind::Sandbox) => "(sandbox)".into(),
        (None, _) => task.program.clone(),
    }
}

/// The isolation level; a daemon of an older release does not tell, and has one only.
pub fn level(task: &TaskInfo) -> &str {
    if task.isolation.is_empty() { Level::Node.word() } else { &task.isolation }
}

/// The state; of a stopped task with its exit status.
pub fn state(task: &TaskInfo) -> Cell {
    match (task.exit_status, task.out_of_memory) {
        (Some(status), true) => Cell::toned(Tone::Bad, format!("stopped ({status}, out of memory)")),
        (Some(0), _) => Cell::toned(Tone::Dim, "stopped (0)"),
        (Some(status), _) => Cell::toned(Tone::Bad, format!("stopped ({status})")),
        (None, _) if task.state == "running" => Cell::toned(Tone::Good, "running"),
        (None, _) => Cell::toned(Tone::Warn, task.state.as_str()),
    }
}

/// The memory in use and its limit.
pub fn memory(task: &TaskInfo) -> String {
    format!("{} / {}", bytes(task.memory_bytes), bytes(task.memory_limit_bytes))
}
