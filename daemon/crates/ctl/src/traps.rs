//! `hearthctl traps`: the last guests that trapped, ran out of memory or could not be started, with the text.

use crate::CtlError;
use crate::client::DaemonClient;
use crate::output::{Printer, Tone, printable};
use crate::ps;
use hearth_base::operator::{EndInfo, Question};
use hearth_base::units::age_since;

/// The choice of ends.
#[derive(clap::Args)]
pub struct Args {
    /// How many of the last
    #[arg(long, value_name = "COUNT", default_value_t = 20)]
    last: usize,
    /// The first line of each text only
    #[arg(long)]
    short: bool,
}

pub fn run(args: &Args, client: &DaemonClient, output: &mut Printer) -> Result<(), CtlError> {
    let mut ends: Vec<EndInfo> = client.list(&Question::Ends)?;
    ends.truncate(args.last);
    if output.json {
        return Ok(output.json(&ends)?);
    }
    for end in &ends {
        let what = end.of.image.as_ref().unwrap_or(&end.of.program);
        let task = end.of.pod.as_ref().map_or_else(|| format!("{}/{}", end.of.namespace, end.of.id), ps::pod);
        let kind = output.paint(Tone::Bad, &format!("{} ({})", end.kind.name(), end.status));
        output.line(format!("{} ago  {}  {}  {kind}", age_since(end.at), printable(&task), printable(what)))?;
        let lines = if args.short { 1 } else { usize::MAX };
        for line in end.text.lines().take(lines) {
            output.line(format!("    {}", printable(line)))?;
        }
    }
    Ok(())
}
