//! `hearthctl modules`: the compiled modules: list, verify, prune.

use std::time::Duration;

use clap::Subcommand;

use crate::CtlError;
use crate::client::DaemonClient;
use crate::output::{Cell, Printer, Table, Tone, printable};
use crate::warm;
use hearth_base::operator::{Modules, Pruned, Question, Verified};
use hearth_base::units::{age, age_since, bytes};

/// How long reading the whole store may take.
const LONG: Duration = Duration::from_secs(600);

/// The verbs for modules.
#[derive(Subcommand)]
pub enum Command {
    /// List modules: compiled, not compiled yet, and rejected by the compiler
    List(List),
    /// Compile the module of an image, or a file, before its first start
    Warm(warm::Args),
    /// Check every compiled module on disk; damaged ones are removed
    Verify,
    /// Remove the compiled modules of other engines from the disk
    Prune(Prune),
}

/// The choice of modules to remove.
#[derive(clap::Args)]
pub struct Prune {
    /// Also modules that no task runs: they are compiled again for their next start
    #[arg(long)]
    unused: bool,
}

/// How modules are listed.
#[derive(clap::Args)]
pub struct List {
    /// Do not shorten digests
    #[arg(long)]
    no_trunc: bool,
}

pub fn run(command: &Command, client: &DaemonClient, output: &mut Printer) -> Result<(), CtlError> {
    match command {
        Command::List(args) => list(args, client, output),
        Command::Warm(args) => warm::run(args, client, output),
        Command::Verify => verify(client, output),
        Command::Prune(args) => prune(args, client, output),
    }
}

fn list(args: &List, client: &DaemonClient, output: &mut Printer) -> Result<(), CtlError> {
    let all: Vec<Modules> = client.ask_all(&Question::Modules)?;
    // Daemons of one node share the disk, so one answer is enough: that of the daemon that takes new tasks.
    let mut modules = all.into_iter().next().unwrap_or_default();
    modules.compiled.sort_by(|a, b| b.used_at.total_cmp(&a.used_at));
    if output.json {
        return Ok(output.json(&modules)?);
    }
    let short = |digest: &str| if args.no_trunc { digest.to_string() } else { digest.chars().take(12).collect() };
    let mut table = Table::new(&["DIGEST", "KIND", "STATE", ">ON DISK", ">USED", ">TASKS", "NAMES"]);
    for module in &modules.compiled {
        let state = match (module.current, module.prepared) {
            (_, true) if module.baseline => Cell::toned(Tone::Warn, "not optimised yet"),
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
    for module in &modules.compiling {
        let text = format!("not compiled yet, for {}: {}", age(module.age_seconds), printable(&module.name));
        output.line(format!("{}  {}", short(&module.digest), output.paint(Tone::Warn, &text)))?;
    }
    for module in &modules.rejected {
        let text = format!("cannot be compiled ({} ago): {}", age(module.age_seconds), printable(&module.reason));
        output.line(format!("{}  {}", short(&module.digest), output.paint(Tone::Bad, &text)))?;
    }
    Ok(())
}

fn verify(client: &DaemonClient, output: &mut Printer) -> Result<(), CtlError> {
    let verified: Verified = client.ask_for(&Question::VerifyModules, LONG)?;
    if output.json {
        return Ok(output.json(&verified)?);
    }
    output.line(format!("{} are whole, {} were no good and are removed", verified.good, verified.removed.len()))?;
    for digest in &verified.removed {
        output.line(output.paint(Tone::Bad, digest))?;
    }
    if verified.foreign > 0 {
        output
            .line(format!("{} of other engines were not looked at; `modules prune` removes them", verified.foreign))?;
    }
    Ok(())
}

fn prune(args: &Prune, client: &DaemonClient, output: &mut Printer) -> Result<(), CtlError> {
    let pruned: Pruned = client.ask_for(&Question::PruneModules { unused: args.unused }, LONG)?;
    if output.json {
        return Ok(output.json(&pruned)?);
    }
    output.line(format!("removed {} compiled modules, {}", pruned.artifacts, bytes(pruned.bytes)))?;
    Ok(())
}
