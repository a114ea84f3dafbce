//! `hearthctl modules`: what is compiled.

use clap::Subcommand;

use crate::ctl::Failure;
use crate::ctl::client::Client;
use crate::ctl::output::{Cell, Output, Table, Tone, age, age_since, bytes, printable};
use crate::operator::{Modules, Question};

/// What to do with modules.
#[derive(Subcommand)]
pub enum Command {
    /// List compiled modules, and those that cannot be compiled
    List(List),
}

/// Which modules.
#[derive(clap::Args)]
pub struct List {
    /// Do not shorten digests
    #[arg(long)]
    no_trunc: bool,
}

pub fn run(command: &Command, client: &Client, output: &mut Output) -> Result<(), Failure> {
    match command {
        Command::List(args) => list(args, client, output),
    }
}

fn list(args: &List, client: &Client, output: &mut Output) -> Result<(), Failure> {
    let all: Vec<Modules> = client.ask_all(&Question::Modules)?;
    // Daemons of one node share the disk; the one that takes new tasks tells of it.
    let mut modules = all.into_iter().next().unwrap_or_default();
    modules.compiled.sort_by(|a, b| b.used_at.total_cmp(&a.used_at));
    if output.json {
        return Ok(output.json(&modules)?);
    }
    let short = |digest: &str| if args.no_trunc { digest.to_string() } else { digest.chars().take(12).collect() };
    let mut table = Table::new(&["DIGEST", "KIND", "STATE", ">ON DISK", ">USED", ">TASKS", "NAMES"]);
    for module in &modules.compiled {
        let state = match (module.current, module.prepared) {
            (_, true) => Cell::toned(Tone::Good, "in memory"),
            (true, false) => "on disk".into(),
            (false, false) => Cell::toned(Tone::Dim, "of another engine"),
        };
        table.row(vec![
            short(&module.digest).into(),
            module.kind.as_str().into(),
            state,
            bytes(module.bytes).into(),
            age_since(module.used_at).into(),
            module.tasks.to_string().into(),
            module.names.join(", ").into(),
        ]);
    }
    output.table(&table)?;
    for module in &modules.rejected {
        let text = format!("cannot be compiled ({} ago): {}", age(module.age_seconds), printable(&module.reason));
        output.line(format!("{}  {}", short(&module.digest), output.paint(Tone::Bad, &text)))?;
    }
    Ok(())
}
