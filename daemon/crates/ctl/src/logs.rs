//! `hearthctl logs`: the daemon's last lines, of all or about one task; and `hearthctl log-level`.

use std::time::{Duration, UNIX_EPOCH};

use crate::CtlError;
use crate::client::DaemonClient;
use crate::inspect::TaskName;
use crate::output::{Printer, Tone, printable};
use hearth_base::operator::{LogLevel, LogLine, Question, TaskInfo};

/// The pause between two questions of `--follow`.
const FOLLOW: Duration = Duration::from_millis(500);

/// The choice of lines.
#[derive(clap::Args)]
pub struct Args {
    /// Only lines about this task: its id or the beginning of it, or `pod:NAMESPACE/POD[/CONTAINER]`
    #[arg(value_name = "TASK")]
    task: Option<String>,
    /// How many of the last lines
    #[arg(long, value_name = "COUNT", default_value_t = 200)]
    tail: usize,
    /// Continue with new lines
    #[arg(short, long)]
    follow: bool,
}

pub fn logs(args: &Args, client: &DaemonClient, output: &mut Printer) -> Result<(), CtlError> {
    let task = args.task.as_ref().map(|task| whole_id(task, client)).transpose()?;
    let ask = |after| client.ask::<Vec<LogLine>>(&Question::Logs { task: task.clone(), after });
    let mut lines = ask(0)?;
    let surplus = lines.len().saturating_sub(args.tail);
    lines.drain(..surplus);
    let mut last = 0;
    loop {
        if output.json && !args.follow {
            output.json(&lines)?;
        }
        for line in &lines {
            last = last.max(line.number);
            if !output.json {
                show(line, output)?;
            } else if args.follow {
                output.json_line(line)?;
            }
        }
        output.finish()?;
        if !args.follow {
            return Ok(());
        }
        std::thread::sleep(FOLLOW);
        lines = ask(last)?;
    }
}

/// The id of a task that is there; a whole one may be of a task that has gone.
fn whole_id(task: &str, client: &DaemonClient) -> Result<String, CtlError> {
    match TaskName::new(task, None).choose::<TaskInfo>(client.list(&Question::Tasks)?).as_slice() {
        [] if task.starts_with("pod:") => TaskName::new(task, None).find::<TaskInfo>(Vec::new()).map(|found| found.id),
        [] => Ok(task.into()),
        [one] => Ok(one.id.clone()),
        several => TaskName::new(task, None).find(several.to_vec()).map(|found| found.id),
    }
}

fn show(line: &LogLine, output: &mut Printer) -> Result<(), CtlError> {
    let tone = match line.level.as_str() {
        "error" => Tone::Bad,
        "warn" => Tone::Warn,
        _ => Tone::Dim,
    };
    let level = output.paint(tone, &format!("{:5}", line.level.to_uppercase()));
    output.line(format!("{} {level} {} {}", timestamp(line.at), line.target, printable(&line.text)))?;
    Ok(())
}

/// The last second that RFC 3339 can name, in seconds since 1970: the end of the year 9999.
const LAST_SECOND: f64 = 253_402_300_799.0;

/// The UTC time of `at`, in seconds since 1970, as RFC 3339 with milliseconds.
fn timestamp(at: f64) -> String {
    let time = UNIX_EPOCH + Duration::from_secs_f64(at.clamp(0.0, LAST_SECOND));
    humantime::format_rfc3339_millis(time).to_string()
}

/// The wanted level.
#[derive(clap::Args)]
pub struct LevelArgs {
    /// A filter like `debug` or `info,hearthd=debug`; none: print the present filter
    #[arg(value_name = "FILTER")]
    filter: Option<String>,
    /// Back to the filter of the configuration
    #[arg(long, conflicts_with = "filter")]
    reset: bool,
}

pub fn level(args: &LevelArgs, client: &DaemonClient, output: &mut Printer) -> Result<(), CtlError> {
    let question = match (&args.filter, args.reset) {
        (None, false) => Question::LogLevel,
        (filter, _) => Question::SetLogLevel { filter: filter.clone() },
    };
    let level: LogLevel = client.ask(&question)?;
    if output.json {
        return Ok(output.json(&level)?);
    }
    let note = if level.current == level.configured {
        "as configured".into()
    } else {
        format!("configured: {}", level.configured)
    };
    output.line(format!("{} ({note})", level.current))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates() {
        assert_eq!(timestamp(0.0), "1970-01-01T00:00:00.000Z");
        assert_eq!(timestamp(951_827_696.789), "2000-02-29T12:34:56.789Z");
        assert_eq!(timestamp(1_790_000_000.0), "2026-09-21T14:13:20.000Z");
        assert_eq!(timestamp(-1.0), "1970-01-01T00:00:00.000Z");
        assert_eq!(timestamp(1e300), "9999-12-31T23:59:59.000Z");
    }
}
