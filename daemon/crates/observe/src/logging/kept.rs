//! The last lines, in memory, for `hearthctl logs`.
//!
//! Warnings and errors of the daemon itself have half of the room if they need it: no number of lines about tasks
//! pushes them out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use hearth_base::operator::LogLine;
use hearth_base::text::shown;
use hearth_base::time::unix;
use parking_lot::Mutex;
use tracing::Level;

use super::line::Line;
use super::{GUEST, LineSink};
use crate::metrics::level_name;

/// The longest line that is kept, in bytes.
pub(super) const KEPT_BYTES_MAX: usize = 2 << 10;

/// The last lines, `max` at most.
pub(super) struct Kept {
    max: usize,
    lines: Mutex<Lines>,
}

#[derive(Default)]
struct Lines {
    warnings: VecDeque<LogLine>,
    others: VecDeque<LogLine>,
    last: u64,
}

impl Kept {
    pub fn new(max: usize) -> Arc<Kept> {
        Arc::new(Kept { max, lines: Mutex::default() })
    }

    /// The lines after number `after`, the oldest first: of one task, if it is named.
    pub fn lines(&self, task: Option<&str>, after: u64) -> Vec<LogLine> {
        let lines = self.lines.lock();
        let wanted =
            |line: &&LogLine| line.number > after && task.is_none_or(|task| line.task.as_deref() == Some(task));
        let mut all: Vec<_> = lines.warnings.iter().chain(&lines.others).filter(wanted).cloned().collect();
        drop(lines);
        all.sort_unstable_by_key(|line| line.number);
        all
    }
}

impl Lines {
    fn push(&mut self, mut line: LogLine, is_warning: bool, max: usize) -> Option<LogLine> {
        self.last += 1;
        line.number = self.last;
        let list = if is_warning { &mut self.warnings } else { &mut self.others };
        list.push_back(line);
        if self.warnings.len() + self.others.len() <= max {
            return None;
        }
        let from_warnings = self.others.is_empty() || self.warnings.len() > max / 2;
        if from_warnings { self.warnings.pop_front() } else { self.others.pop_front() }
    }
}

impl LineSink for Arc<Kept> {
    fn write(&self, line: &Line) {
        let is_warning = line.level <= Level::WARN && line.target != GUEST;
        let kept = LogLine {
            number: 0,
            at: unix(SystemTime::now()),
            level: level_name(line.level).into(),
            target: line.target.into(),
            task: line.field("task").map(str::to_string),
            text: shown(&line.text(), KEPT_BYTES_MAX).into_owned(),
        };
        let oldest = self.lines.lock().push(kept, is_warning, self.max);
        // Freed after the lock is released.
        drop(oldest);
    }
}
