//! `hearthctl trace`: one start, phase by phase. Without a task, the last starts and the time of each. Requests:
//! [`crate::requests`].

use crate::CtlError;
use crate::client::DaemonClient;
use crate::inspect::TaskName;
use crate::output::{Cell, Printer, Table, Tone, printable};
use crate::{ps, requests};
use hearth_base::operator::{PhaseInfo, Question, StartInfo, TaskDetails, TaskInfo};
use hearth_base::units::{age_since, seconds};

/// The longest bar, in characters.
const BAR: f64 = 40.0;

/// The choice of starts.
#[derive(clap::Args)]
pub struct Args {
    /// The task's id or the beginning of it, or `pod:NAMESPACE/POD[/CONTAINER]`, or the id of a slow HTTP request's
    /// trace; none: the last starts
    #[arg(value_name = "TASK")]
    task: Option<String>,
    /// containerd's namespace, if several have such a task
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    /// Slow HTTP requests instead of starts (`http.slow_request_ms`)
    #[arg(long)]
    requests: bool,
    /// How many of the last
    #[arg(long, value_name = "COUNT", default_value_t = 20)]
    last: usize,
    /// The slowest of them first
    #[arg(long)]
    slowest: bool,
}

pub fn run(args: &Args, client: &DaemonClient, output: &mut Printer) -> Result<(), CtlError> {
    let name = args.task.as_ref().map(|task| TaskName::new(task, args.namespace.as_deref()));
    if args.requests {
        return requests::list(name.as_ref(), (args.last, args.slowest), client, output);
    }
    if let Some(id) = args.task.as_ref().filter(|task| requests::is_trace_id(task))
        && requests::show_trace(id, client, output)?
    {
        return Ok(());
    }
    let mut starts: Vec<StartInfo> = client.list(&Question::Starts)?;
    if let Some(name) = name {
        let start = find(&name, starts, client)?;
        return if output.json { Ok(output.json(&start)?) } else { show(&start, output) };
    }
    if args.slowest {
        starts.sort_by(|a, b| b.own_seconds.unwrap_or(0.0).total_cmp(&a.own_seconds.unwrap_or(0.0)));
    }
    starts.truncate(args.last);
    if output.json {
        return Ok(output.json(&starts)?);
    }
    let mut table = Table::new(&[">AGO", "TASK", "POD", "FROM", ">TIME", "SLOWEST PHASE"]);
    for start in &starts {
        let slowest = start.phases.iter().max_by(|a, b| a.seconds.total_cmp(&b.seconds));
        let phase = |phase: &PhaseInfo| format!("{} {}", phase.name.replace('_', " "), seconds(phase.seconds));
        let last = match &start.error {
            Some(error) => Cell::toned(Tone::Bad, error.as_str()),
            None => slowest.map(phase).unwrap_or_default().into(),
        };
        table.row(vec![
            age_since(start.created_at).into(),
            ps::short_id(&start.of.id, false).into(),
            start.of.pod.as_ref().map_or_else(|| "-".into(), ps::pod).into(),
            start.source.as_deref().unwrap_or("-").into(),
            start.own_seconds.map(seconds).unwrap_or_else(|| "-".into()).into(),
            last,
        ]);
    }
    output.table(&table)?;
    Ok(())
}

/// The start of a task that exists; else the last matching start that the daemon remembers.
fn find(name: &TaskName, starts: Vec<StartInfo>, client: &DaemonClient) -> Result<StartInfo, CtlError> {
    let mut remembered = name.choose(starts);
    match name.find::<TaskInfo>(client.list(&Question::Tasks)?) {
        Ok(task) => {
            // A remembered start has the error of a failed one.
            if let Some(at) =
                remembered.iter().position(|start| start.of.id == task.id && start.of.namespace == task.namespace)
            {
                return Ok(remembered.swap_remove(at));
            }
            let question = Question::Task { namespace: task.namespace, id: task.id };
            let details: Vec<Option<TaskDetails>> = client.ask_all(&question)?;
            let start = details.into_iter().flatten().next().map(|details| details.start);
            start.ok_or_else(|| CtlError::Refused(format!("task {:?} has just gone", name.text())))
        }
        Err(error) if remembered.is_empty() => Err(error),
        Err(_) => Ok(remembered.swap_remove(0)),
    }
}

fn show(start: &StartInfo, output: &mut Printer) -> Result<(), CtlError> {
    output.line(format!("{}/{}", start.of.namespace, printable(&start.of.id)))?;
    if let Some(pod) = &start.of.pod {
        output.line(format!("pod {}", printable(&ps::pod(pod))))?;
    }
    let what = start.of.image.as_ref().unwrap_or(&start.of.program);
    output.line(format!("{}; module from: {}", printable(what), start.source.as_deref().unwrap_or("(not found)")))?;
    if let Some(trace) = &start.trace_id {
        output.line(format!("trace {trace}"))?;
    }
    output.line("")?;
    timeline(&rows(start), output)?;
    output.line("")?;
    match (&start.error, start.own_seconds) {
        (Some(error), _) => output.line(output.paint(Tone::Bad, &format!("failed: {}", printable(error))))?,
        (None, Some(own)) => {
            output.line(format!("hearthd itself needed {} to the guest's first instruction", seconds(own)))?
        }
        (None, None) => output.line("not started yet")?,
    }
    Ok(())
}

/// Prints rows with a bar for each.
pub fn timeline(rows: &[TimelineRow], output: &mut Printer) -> Result<(), CtlError> {
    let mut table = Table::new(&[">AT", ">TOOK", "WHAT", ""]);
    let end = rows.iter().map(|row| row.at + row.took).fold(1e-9, f64::max);
    for row in rows {
        let (from, to) = ((row.at.max(0.0) / end * BAR) as usize, ((row.at + row.took) / end * BAR).ceil() as usize);
        let bar = " ".repeat(from) + &"▇".repeat(to.saturating_sub(from).max(1));
        let took = if row.took > 0.0 { seconds(row.took) } else { String::new() };
        let at = if row.at < 0.0 { format!("-{}", seconds(-row.at)) } else { seconds(row.at) };
        table.row(vec![at.into(), took.into(), Cell::toned(row.tone, row.what.as_str()), Cell::toned(row.tone, bar)]);
    }
    Ok(output.table(&table)?)
}

/// A row of a timeline.
pub struct TimelineRow {
    at: f64,
    took: f64,
    what: String,
    tone: Tone,
}

impl TimelineRow {
    /// A part that begins at `at` and takes `took`, in seconds.
    pub fn new(at: f64, took: f64, what: &str) -> TimelineRow {
        TimelineRow { at, took, what: what.into(), tone: Tone::Plain }
    }
}

/// The rows in order of time; times are from Create's arrival.
fn rows(start: &StartInfo) -> Vec<TimelineRow> {
    let row = |at, took, what: &str, tone| TimelineRow { at, took, what: what.into(), tone };
    let mut rows = Vec::new();
    if let Some(written) = start.bundle_written_at {
        let before = (start.created_at - written).max(0.0);
        rows.push(row(-before, before, "containerd has written the bundle, and runs the shim", Tone::Dim));
    }
    for phase in &start.phases {
        rows.push(row(phase.began_seconds, phase.seconds, &phase.name.replace('_', " "), Tone::Plain));
    }
    if let Some(create) = start.create_seconds {
        rows.push(row(create, 0.0, "Create is answered", Tone::Dim));
        if let Some(began) = start.start_began_seconds {
            rows.push(row(create, (began - create).max(0.0), "the caller's own time", Tone::Dim));
            rows.push(row(began, 0.0, "Start arrives", Tone::Dim));
        }
    }
    if let Some(started) = start.started_seconds {
        rows.push(row(started, 0.0, "first instruction", Tone::Good));
    }
    rows.sort_by(|a, b| a.at.total_cmp(&b.at));
    rows
}
