//! `hearthctl top`: the tasks that use the node most, sampled again and again.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::CtlError;
use crate::client::DaemonClient;
use crate::output::{Cell, Printer, Table, Tone};
use crate::ps;
use hearth_base::operator::{Question, Status, TaskInfo, TaskKind};
use hearth_base::units::{bytes, seconds};

/// The samples and the options of their display.
#[derive(clap::Args)]
pub struct Args {
    /// Seconds between two samples
    #[arg(short, long, value_name = "SECONDS", default_value_t = 2.0, value_parser = interval)]
    interval: f64,
    /// How many samples; on a terminal without end, else one
    #[arg(short = 'n', long, value_name = "COUNT")]
    iterations: Option<u64>,
    /// How many tasks are shown
    #[arg(long, value_name = "COUNT", default_value_t = 20)]
    rows: usize,
    /// The order
    #[arg(long, value_enum, default_value_t = UseOrder::Cpu)]
    sort: UseOrder,
}

/// The order of tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum UseOrder {
    /// CPU time now.
    Cpu,
    /// Memory now.
    Memory,
    /// Time spent waiting for the quota now.
    Throttled,
}

fn interval(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("say a number of seconds from 0.1 to 3600".into()),
    }
}

/// A task with its use of CPU between two samples.
#[derive(Serialize)]
struct TaskUse {
    /// Share of one core: 1.0 is a whole one.
    cpu_cores: f64,
    /// Share of the time that it waited for its quota.
    throttled_share: f64,
    #[serde(flatten)]
    task: TaskInfo,
}

pub fn run(args: &Args, client: &DaemonClient, output: &mut Printer) -> Result<(), CtlError> {
    let looks = args.iterations.unwrap_or(if output.terminal && !output.json { u64::MAX } else { 1 });
    let pause = Duration::from_secs_f64(args.interval);
    let mut before = Sample::take(client)?;
    for look in 0..looks {
        std::thread::sleep(pause);
        let now = Sample::take(client)?;
        let mut rows = now.since(&before);
        match args.sort {
            UseOrder::Cpu => rows.sort_by(|a, b| b.cpu_cores.total_cmp(&a.cpu_cores)),
            UseOrder::Memory => rows.sort_by_key(|row| std::cmp::Reverse(row.task.memory_bytes)),
            UseOrder::Throttled => rows.sort_by(|a, b| b.throttled_share.total_cmp(&a.throttled_share)),
        }
        let all = rows.len();
        rows.truncate(args.rows);
        if output.json {
            output.json(&rows)?;
        } else {
            if output.terminal && looks > 1 {
                // The cursor goes home, and the screen is cleared.
                output.raw("\x1b[H\x1b[J")?;
            } else if look > 0 {
                output.line("")?;
            }
            show(&client.ask_all(&Question::Status)?, &rows, all, output)?;
        }
        output.finish()?;
        before = now;
    }
    Ok(())
}

/// The tasks at one moment.
struct Sample {
    at: Instant,
    tasks: Vec<TaskInfo>,
}

impl Sample {
    fn take(client: &DaemonClient) -> Result<Sample, CtlError> {
        let mut tasks: Vec<TaskInfo> = client.list(&Question::Tasks)?;
        tasks.retain(|task| task.kind != TaskKind::Sandbox);
        Ok(Sample { at: Instant::now(), tasks })
    }

    /// The use of each task since `before`; for a new task, since it was made.
    fn since(&self, before: &Sample) -> Vec<TaskUse> {
        let key = |task: &TaskInfo| (task.generation.clone(), task.namespace.clone(), task.id.clone());
        let earlier: HashMap<_, _> =
            before.tasks.iter().map(|task| (key(task), (task.cpu_seconds, task.throttled_seconds))).collect();
        let passed = self.at.duration_since(before.at).as_secs_f64().max(1e-3);
        let row = |task: &TaskInfo| {
            let (cpu, throttled) = earlier.get(&key(task)).copied().unwrap_or_default();
            TaskUse {
                cpu_cores: ((task.cpu_seconds - cpu) / passed).max(0.0),
                throttled_share: ((task.throttled_seconds - throttled) / passed).max(0.0),
                task: task.clone(),
            }
        };
        self.tasks.iter().map(row).collect()
    }
}

fn show(daemons: &[Status], rows: &[TaskUse], all: usize, output: &mut Printer) -> Result<(), CtlError> {
    if let Some(status) = daemons.first() {
        output.line(format!(
            "{} tasks running; pool {} of {}; {} workers in guests, {} blocked; {} guests wait",
            daemons.iter().map(|status| status.tasks.running).sum::<u64>(),
            status.pool.used,
            status.pool.slots,
            status.workers.running,
            status.workers.blocked,
            status.workers.run_queue
        ))?;
    }
    let mut table = Table::new(&["TASK", "POD", "IMAGE", "STATE", ">CPU", ">THROTTLED", ">MEMORY", ">CPU TIME"]);
    for row in rows {
        let percent = |share: f64| format!("{:.1}%", share * 100.0);
        let throttled = if row.throttled_share >= 0.01 { Tone::Warn } else { Tone::Plain };
        table.row(vec![
            ps::short_id(&row.task.id, false).into(),
            row.task.pod.as_ref().map_or_else(|| "-".into(), ps::pod).into(),
            ps::what(&row.task).into(),
            ps::state(&row.task),
            percent(row.cpu_cores).into(),
            Cell::toned(throttled, percent(row.throttled_share)),
            bytes(row.task.memory_bytes).into(),
            seconds(row.task.cpu_seconds).into(),
        ]);
    }
    output.table(&table)?;
    if all > rows.len() {
        output.line(format!("and {} more", all - rows.len()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_task_used_is_counted_from_look_to_look() {
        let task = |id: &str, cpu_seconds| TaskInfo { id: id.into(), cpu_seconds, ..TaskInfo::default() };
        let began = Instant::now();
        let before = Sample { at: began, tasks: vec![task("a", 10.0)] };
        let now = Sample { at: began + Duration::from_secs(2), tasks: vec![task("a", 11.0), task("b", 0.5)] };
        let cores: Vec<_> = now.since(&before).iter().map(|row| row.cpu_cores).collect();
        assert_eq!(cores, [0.5, 0.25]);
    }
}
