//! The daemon's log: where lines go, which are let through, and the last ones, kept for operators.
//!
//! ```text
//!   event ─┬─▶ log.level (changed at run time) ─▶ rates by container ─▶ stderr: text, or JSON
//!          └─▶ log.kept_level ─▶ rates by container ─▶ the last log.kept_lines, in memory ─▶ hearthctl logs
//! ```
//!
//! Messages are constant; the parts that differ are in fields. Every field is cut and escaped in every format, since it
//! may hold the text of a guest.
//!
//! * `line.rs`: one line: fields cut and escaped; text and JSON formats.
//! * `rates.rs`: how many lines a container may trigger in a second; lines left out are counted and reported.
//! * `kept.rs`: the last lines in memory; the daemon's own warnings are not pushed out.

mod kept;
mod line;
mod rates;
#[cfg(test)]
mod tests;

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use crate::metrics::Metrics;
use hearth_base::config::{self, LogFormat};
use hearth_base::operator::LogLine;

use kept::Kept;
use line::Line;
use rates::Rates;

pub use hearth_base::tenant::GUEST;

/// The daemon's log: its lines can be read, and its level changed.
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
        let kept = Kept::new(config.kept_lines);
        let is_terminal = std::io::stderr().is_terminal();
        let is_json = match config.format {
            LogFormat::Auto => !is_terminal,
            LogFormat::Text => false,
            LogFormat::Json => true,
        };
        let stderr = Stderr { is_json, is_terminal, metrics: metrics.clone() };
        tracing_subscriber::registry()
            .with(Rated::new(stderr).with_filter(filter))
            .with(Rated::new(kept.clone()).with_filter(kept_level))
            .init();
        Ok(Arc::new(Logging {
            filter: handle,
            configured: Mutex::new(config.level.clone()),
            current: Mutex::new(config.level.clone()),
            kept,
        }))
    }

    /// The filter that is in force, and the configuration's.
    pub fn level(&self) -> (String, String) {
        (self.current.lock().clone(), self.configured.lock().clone())
    }

    /// Changes the filter to `level`; to the configuration's for `None`.
    ///
    /// # Errors
    /// `level` is no filter.
    pub fn set_level(&self, level: Option<&str>) -> Result<(), String> {
        let level = level.map_or_else(|| self.configured.lock().clone(), str::to_owned);
        let filter = parse("the level", &level)?;
        let mut current = self.current.lock();
        self.filter.reload(filter).map_err(|error| format!("the log's level cannot be changed: {error}"))?;
        tracing::info!(from = %current, to = %level, "the log's level was changed");
        *current = level;
        Ok(())
    }

    /// Changes the configuration's filter to `level`, and the filter that is in force with it.
    ///
    /// # Errors
    /// `level` is no filter.
    pub fn configure(&self, level: &str) -> Result<(), String> {
        parse("log.level", level)?;
        *self.configured.lock() = level.into();
        self.set_level(None)
    }

    /// The last lines, the oldest first: of one task, if it is named.
    pub fn lines(&self, task: Option<&str>, after: u64) -> Vec<LogLine> {
        self.kept.lines(task, after)
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

/// The target `hearthd` stands for all crates of the daemon: targets are module paths, and a filter matches by prefix.
fn parse(what: &str, level: &str) -> Result<EnvFilter, String> {
    let directive = |text: &str| match text.trim().strip_prefix("hearthd") {
        Some(rest) if rest.is_empty() || rest.starts_with('=') => format!("hearth{rest}"),
        _ => text.to_owned(),
    };
    let all: Vec<String> = level.split(',').map(directive).collect();
    EnvFilter::try_new(all.join(","))
        .map_err(|e| format!("{what}: {level:?} is not a filter like info or hearthd=debug: {e}"))
}

/// Where lines go.
trait LineSink {
    fn write(&self, line: &Line);

    /// A line was left out.
    fn left_out(&self) {}
}

/// Lets through the lines that [`Rates`] admit.
struct Rated<T> {
    rates: Mutex<Rates>,
    sink: T,
}

impl<T: LineSink> Rated<T> {
    fn new(sink: T) -> Rated<T> {
        Rated { rates: Mutex::default(), sink }
    }
}

impl<S: Subscriber, T: LineSink + 'static> Layer<S> for Rated<T> {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let line = Line::of(event);
        let decision = self.rates.lock().judge(&line, Instant::now());
        for notice in &decision.notices {
            self.sink.write(notice);
        }
        match decision.is_left_out {
            true => self.sink.left_out(),
            false => self.sink.write(&line),
        }
    }
}

/// Standard error.
struct Stderr {
    is_json: bool,
    is_terminal: bool,
    metrics: Arc<Metrics>,
}

impl LineSink for Stderr {
    fn write(&self, line: &Line) {
        let text = if self.is_json { line.json() } else { line.human(self.is_terminal) };
        // Without its standard error the daemon goes on.
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
        self.metrics.log.line(line.level);
    }

    fn left_out(&self) {
        self.metrics.log.suppressed.inc();
    }
}
