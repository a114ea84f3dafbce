//! Metrics of the daemon's log: lines by level, lines left out.

use prometheus::{IntCounter, Registry};

use super::declare::Declare;

/// Levels of log lines, as labels.
const LOG_LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

/// Counted by [`crate::logging`].
pub struct LogMetrics {
    lines: [IntCounter; LOG_LEVELS.len()],
    /// Lines left out because guests triggered too many of them.
    pub suppressed: IntCounter,
}

impl LogMetrics {
    pub(super) fn new(registry: &Registry) -> LogMetrics {
        let declare = Declare(registry);
        let lines = declare.counters("hearth_log_lines_total", "Lines of the daemon's log by level.", &["level"]);
        LogMetrics {
            lines: LOG_LEVELS.map(|level| lines.with_label_values(&[level])),
            suppressed: declare.counter(
                "hearth_log_lines_suppressed_total",
                "Lines left out of the daemon's log because guests triggered too many of them.",
            ),
        }
    }

    /// Counts a line of the log.
    pub fn line(&self, level: tracing::Level) {
        let level = level_name(level);
        if let Some(index) = LOG_LEVELS.iter().position(|known| *known == level) {
            self.lines[index].inc();
        }
    }
}

/// A level as the log and its metrics show it.
pub fn level_name(level: tracing::Level) -> &'static str {
    match level {
        tracing::Level::ERROR => "error",
        tracing::Level::WARN => "warn",
        tracing::Level::INFO => "info",
        tracing::Level::DEBUG => "debug",
        tracing::Level::TRACE => "trace",
    }
}
