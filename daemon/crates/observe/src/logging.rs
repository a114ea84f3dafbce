//! The daemon's log: where lines go, which are let through, and the last ones, kept for operators.
//!
//! ```text
//!   event ─┬─▶ log.level (changed at run time) ─▶ rate of what guests trigger ─▶ stderr: text, or JSON
//!          └─▶ log.kept_level ─▶ the last log.kept_lines, in memory ─▶ hearthctl logs
//! ```
//!
//! Messages are constant; what differs is in fields. A line that a guest, or a pod that is started over and
//! over, can trigger at will has the target [`GUEST`]: so many of one kind get through in a second, the
//! others are counted.

use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::filter::FilterExt;
use tracing_subscriber::layer::{Context, Filter, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use crate::metrics::{Metrics, level_name};
use hearth_base::config::{self, LogFormat};
use hearth_base::operator::LogLine;
use hearth_base::time::unix;

/// The target of lines that guests can trigger at will.
pub const GUEST: &str = "hearthd::guest";

/// Lines of one kind in one [`WINDOW`].
const GUEST_LINES_MAX: u32 = 20;

/// What the rate is counted over.
const WINDOW: Duration = Duration::from_secs(1);

/// The longest line that is kept, in bytes.
const KEPT_BYTES_MAX: usize = 2 << 10;

/// The daemon's log, to be looked at and changed.
pub struct Logging {
    filter: reload::Handle<EnvFilter, Registry>,
    configured: Mutex<String>,
    current: Mutex<String>,
    kept: Arc<Kept>,
}

impl Logging {
    /// Sets the log up, for the whole process.
    ///
    /// # Errors
    /// `log.level` or `log.kept_level` is no filter, in one line.
    pub fn start(config: &config::Log, metrics: &Arc<Metrics>) -> Result<Arc<Logging>, String> {
        let (filter, handle) = reload::Layer::new(parse("log.level", &config.level)?);
        let kept_level = parse("log.kept_level", &config.kept_level)?;
        let kept = Arc::new(Kept { max: config.kept_lines, lines: Mutex::default() });
        let terminal = std::io::stderr().is_terminal();
        let text = match config.format {
            LogFormat::Auto => terminal,
            LogFormat::Text => true,
            LogFormat::Json => false,
        };
        let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(terminal);
        let lines = if text { lines.boxed() } else { lines.json().flatten_event(true).boxed() };
        let rate = GuestRate { windows: Mutex::default(), metrics: metrics.clone() };
        let counted = Counted(metrics.clone());
        tracing_subscriber::registry()
            .with(lines.and_then(counted).with_filter(filter.and(rate)))
            .with(KeptLayer(kept.clone()).with_filter(kept_level))
            .init();
        Ok(Arc::new(Logging {
            filter: handle,
            configured: Mutex::new(config.level.clone()),
            current: Mutex::new(config.level.clone()),
            kept,
        }))
    }

    /// What is let through now, and what the configuration says.
    pub fn level(&self) -> (String, String) {
        (self.current.lock().clone(), self.configured.lock().clone())
    }

    /// Lets through what `level` says from now on; the configuration's for `None`.
    ///
    /// # Errors
    /// It is no filter.
    pub fn set_level(&self, level: Option<&str>) -> Result<(), String> {
        let level = level.map_or_else(|| self.configured.lock().clone(), str::to_owned);
        let filter = parse("the level", &level)?;
        let mut current = self.current.lock();
        self.filter.reload(filter).map_err(|error| format!("the log's level cannot be changed: {error}"))?;
        tracing::info!(from = %current, to = %level, "the log's level was changed");
        *current = level;
        Ok(())
    }

    /// Takes `level` for the configuration's from now on, and lets through what it says.
    ///
    /// # Errors
    /// It is no filter.
    pub fn configure(&self, level: &str) -> Result<(), String> {
        parse("log.level", level)?;
        *self.configured.lock() = level.into();
        self.set_level(None)
    }

    /// The last lines, the oldest first: of one task, if it is named.
    pub fn lines(&self, task: Option<&str>, after: u64) -> Vec<LogLine> {
        let lines = self.kept.lines.lock();
        let wanted =
            |line: &&LogLine| line.number > after && task.is_none_or(|task| line.task.as_deref() == Some(task));
        lines.entries.iter().filter(wanted).cloned().collect()
    }
}

/// Checks the filters that a configuration has.
///
/// # Errors
/// `log.level` or `log.kept_level` is no filter, in one line.
pub fn check(config: &config::Log) -> Result<(), String> {
    parse("log.level", &config.level)?;
    parse("log.kept_level", &config.kept_level).map(drop)
}

fn parse(what: &str, level: &str) -> Result<EnvFilter, String> {
    EnvFilter::try_new(level).map_err(|e| format!("{what}: {level:?} is not a filter like info or hearthd=debug: {e}"))
}

/// Counts the lines that were let through.
struct Counted(Arc<Metrics>);

impl<S: Subscriber> Layer<S> for Counted {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        self.0.log.line(*event.metadata().level());
    }
}

/// Lets through so many lines of one kind.
struct GuestRate {
    /// By the place in the source.
    windows: Mutex<HashMap<tracing::callsite::Identifier, Window>>,
    metrics: Arc<Metrics>,
}

struct Window {
    began: Instant,
    lines: u32,
}

impl Window {
    fn admits(&mut self, now: Instant) -> bool {
        if now.duration_since(self.began) >= WINDOW {
            *self = Window { began: now, lines: 0 };
        }
        self.lines += 1;
        self.lines <= GUEST_LINES_MAX
    }
}

impl<S> Filter<S> for GuestRate {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if metadata.target() != GUEST {
            return true;
        }
        let now = Instant::now();
        let mut windows = self.windows.lock();
        let window = windows.entry(metadata.callsite()).or_insert(Window { began: now, lines: 0 });
        let admitted = window.admits(now);
        drop(windows);
        if !admitted {
            self.metrics.log.suppressed.inc();
        }
        admitted
    }
}

/// The last lines.
struct Kept {
    max: usize,
    lines: Mutex<Lines>,
}

#[derive(Default)]
struct Lines {
    entries: VecDeque<LogLine>,
    last: u64,
}

struct KeptLayer(Arc<Kept>);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for KeptLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        let mut text = fields.message;
        text.push_str(&fields.others);
        text.truncate(text.floor_char_boundary(KEPT_BYTES_MAX));
        let line = LogLine {
            number: 0,
            at: unix(SystemTime::now()),
            level: level_name(*metadata.level()).into(),
            target: metadata.target().into(),
            task: fields.task,
            text,
        };
        let mut lines = self.0.lines.lock();
        lines.last += 1;
        let line = LogLine { number: lines.last, ..line };
        let oldest = if lines.entries.len() >= self.0.max { lines.entries.pop_front() } else { None };
        if self.0.max > 0 {
            lines.entries.push_back(line);
        }
        drop(lines);
        drop(oldest);
    }
}

/// The fields of a line.
#[derive(Default)]
struct Fields {
    message: String,
    others: String,
    task: Option<String>,
}

impl Fields {
    fn add(&mut self, field: &Field, value: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value}"),
            name => write!(self.others, " {name}={value}"),
        };
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "task" {
            self.task = Some(format!("{value:?}"));
        }
        self.add(field, format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "task" {
            self.task = Some(value.into());
        }
        self.add(field, format_args!("{value}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_lines_of_a_kind_in_a_window() {
        let now = Instant::now();
        let mut window = Window { began: now, lines: 0 };
        assert_eq!((0..100).filter(|_| window.admits(now)).count(), GUEST_LINES_MAX as usize);
        assert!(window.admits(now + WINDOW));
    }

    #[test]
    fn the_last_lines_are_kept_with_their_tasks() {
        let kept = Arc::new(Kept { max: 3, lines: Mutex::default() });
        let subscriber = Registry::default().with(KeptLayer(kept.clone()));
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(task = "a", "first");
            tracing::info!(task = %"b", code = 7, "second");
            tracing::debug!("third");
            tracing::warn!(task = "a", reason = "é".repeat(KEPT_BYTES_MAX), "fourth");
        });
        let lines = kept.lines.lock();
        let seen: Vec<_> =
            lines.entries.iter().map(|line| (line.number, line.task.as_deref(), line.level.as_str())).collect();
        assert_eq!(seen, [(2, Some("b"), "info"), (3, None, "debug"), (4, Some("a"), "warn")]);
        assert_eq!(lines.entries[0].text, "second task=b code=7");
        assert!(lines.entries[2].text.len() <= KEPT_BYTES_MAX);
    }
}
