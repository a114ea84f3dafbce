//! `hearthctl drain`: the daemon accepts no new tasks; running tasks continue.

use crate::CtlError;
use crate::client::DaemonClient;
use crate::output::Printer;
use hearth_base::operator::{Question, Status};

/// The direction.
#[derive(clap::Args)]
pub struct Args {
    /// Take new tasks again
    #[arg(long)]
    undo: bool,
}

pub fn run(args: &Args, client: &DaemonClient, output: &mut Printer) -> Result<(), CtlError> {
    let status: Status = client.ask(&Question::Drain { on: !args.undo })?;
    if output.json {
        return Ok(output.json(&status)?);
    }
    let tasks = &status.tasks;
    output.line(match status.draining {
        true => format!(
            "hearthd takes no new tasks; {} run on. /readyz fails. `hearthctl drain --undo` takes it back; an upgrade does not",
            tasks.running + tasks.paused
        ),
        false => "hearthd takes new tasks".into(),
    })?;
    Ok(())
}
