//! `hearthctl status`: the state of the daemon.

use std::path::Path;

use crate::CtlError;
use crate::client::DaemonClient;
use crate::output::{Cell, Printer, Table, Tone};
use hearth_base::cell;
use hearth_base::generation::directory;
use hearth_base::operator::{Question, Status};
use hearth_base::units::{age_since, bytes};

/// The share of a limit from which a figure is coloured as a warning.
const NEARLY_FULL: f64 = 0.9;

pub fn run(client: &DaemonClient, output: &mut Printer) -> Result<(), CtlError> {
    let mut all: Vec<Status> = client.ask_all(&Question::Status)?;
    // A cell's own state says nothing that the list of tasks does not say.
    if let Some(leader) = all.first() {
        let (cells, state_dir) = (leader.cells.clone(), Path::new(&leader.state_dir).join(cell::DIRECTORY));
        let socket = |status: &Status| directory::control_socket(&state_dir, &status.generation);
        all.retain(|status| !cells.iter().any(|cell| *cell == *socket(status).to_string_lossy()));
    }
    if output.json {
        return Ok(output.json(&all)?);
    }
    for (number, status) in all.iter().enumerate() {
        if number > 0 {
            output.line("")?;
            output.line("An earlier hearthd, which serves its tasks until the last has ended:")?;
        }
        output.table(&table(status))?;
    }
    Ok(())
}

fn table(status: &Status) -> Table {
    let mut table = Table::new(&["", ""]);
    let mut row = |name: &str, cell: Cell| table.row(vec![name.into(), cell]);
    row(
        "hearthd",
        format!(
            "{} (wasmtime {}), pid {}, generation {}, up {}",
            status.version,
            status.wasmtime,
            status.pid,
            status.generation,
            age_since(status.started_at)
        )
        .into(),
    );
    if status.draining {
        row("draining", Cell::toned(Tone::Warn, "no new tasks; `hearthctl drain --undo` takes it back"));
    }
    let tasks = &status.tasks;
    let all = tasks.created + tasks.running + tasks.paused + tasks.stopped;
    let text = format!(
        "{} running, {} created, {} paused, {} stopped; at most {}",
        tasks.running, tasks.created, tasks.paused, tasks.stopped, tasks.limit
    );
    row("tasks", Cell::toned(tone(all, tasks.limit), text));
    let pool = &status.pool;
    let text =
        format!("{} of {} slots; beyond it {} of {}", pool.used, pool.slots, pool.on_demand, pool.on_demand_limit);
    row("pool", Cell::toned(tone(pool.used, pool.slots), text));
    let modules = &status.modules;
    let text = format!(
        "{} prepared in memory; {} on disk, {} of {}; {} compiling",
        modules.prepared,
        modules.artifacts,
        bytes(modules.bytes),
        bytes(modules.bytes_limit),
        modules.compiles_pending
    );
    row("modules", text.into());
    let workers = &status.workers;
    let text = format!(
        "{} running, {} idle, {} blocked in a system call; {} guests wait",
        workers.running, workers.idle, workers.blocked, workers.run_queue
    );
    row("workers", Cell::toned(if workers.blocked > 0 { Tone::Warn } else { Tone::Plain }, text));
    let text = format!("{} wait for containerd", status.events_queued);
    row("events", Cell::toned(if status.events_queued > 0 { Tone::Warn } else { Tone::Plain }, text));
    let containerds = if status.containerds.is_empty() { "none yet".into() } else { status.containerds.join(", ") };
    if !status.cells.is_empty() {
        row("cells", format!("{} pods have a process of their own (isolation level pod)", status.cells.len()).into());
    }
    row("containerd", format!("{containerds}; {} namespaces", status.namespaces).into());
    let address = if status.metrics_address.is_empty() { "not served" } else { &status.metrics_address };
    row("metrics", address.into());
    row("directories", format!("{}, {}", status.state_dir, status.root_dir).into());
    table
}

fn tone(used: u64, limit: u64) -> Tone {
    if used as f64 >= NEARLY_FULL * limit as f64 { Tone::Warn } else { Tone::Plain }
}
