//! How many lines of guests get through: a share for each container, so that none hides the lines of another.
//!
//! A line that a guest, or a pod that is restarted over and over, can trigger at will has the target [`GUEST`]. Of
//! such lines each container has [`CONTAINER_LINES_MAX`] in a second. All containers together have
//! [`NODE_LINES_MAX`]; beyond, each still has [`CONTAINER_LINES_LEAST`]. Lines of any other target always get through.
//! The first line that is left out is replaced by a notice; how many there were follows with a later line.
//!
//! The crate `governor` limits by key, too. It neither bounds the number of keys nor counts what it refuses by key,
//! which is half of what is needed here; with both added, nothing of it would be left but the count.

use std::collections::HashMap;
use std::time::Instant;

use hearth_base::rate::{Admission, Rate, WINDOW};
use hearth_base::text::{NAME_BYTES_MAX, shown};
use tracing::Level;

use super::GUEST;
use super::line::Line;

/// Lines of one container in one [`WINDOW`].
pub(super) const CONTAINER_LINES_MAX: u32 = 20;

/// Lines of one container in one [`WINDOW`] when the node has had its share.
pub(super) const CONTAINER_LINES_LEAST: u32 = 2;

/// Lines of all containers in one [`WINDOW`].
pub(super) const NODE_LINES_MAX: u32 = 200;

/// Containers that are counted apart in one [`WINDOW`]; further ones share one count.
const CONTAINERS_MAX: usize = 4_096;

/// The message in place of the first line that is left out.
const FULL: &str = "a guest triggers too many lines: the rest of this second's are left out";

/// The message that says how many were left out.
const LEFT_OUT: &str = "lines that a guest triggered were left out";

/// A container: the fields `namespace` and `task` of a line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct GuestKey {
    namespace: String,
    task: String,
}

impl GuestKey {
    fn of(line: &Line) -> GuestKey {
        let field = |name| shown(line.field(name).unwrap_or_default(), NAME_BYTES_MAX).into_owned();
        GuestKey { namespace: field("namespace"), task: field("task") }
    }

    fn notice(&self, level: Level, message: &str) -> Line {
        let mut line = Line::new(level, GUEST, message);
        for (name, value) in [("namespace", &self.namespace), ("task", &self.task)] {
            if !value.is_empty() {
                line = line.with(name, value);
            }
        }
        line
    }
}

/// The numbers of lines let through lately, by container.
#[derive(Debug, Default)]
pub(super) struct Rates {
    containers: HashMap<GuestKey, (Rate, Option<Level>)>,
    node: Rate,
    swept: Option<Instant>,
}

/// The decision about a line.
#[derive(Debug, Default)]
pub(super) struct Decision {
    /// Lines to write before it.
    pub notices: Vec<Line>,
    /// Whether it is left out.
    pub is_left_out: bool,
}

impl Rates {
    pub fn judge(&mut self, line: &Line, now: Instant) -> Decision {
        let mut decision = Decision { notices: self.sweep(now), is_left_out: false };
        if line.target != GUEST {
            return decision;
        }
        let mut key = GuestKey::of(line);
        if self.containers.len() >= CONTAINERS_MAX && !self.containers.contains_key(&key) {
            key = GuestKey::default();
        }
        let max = if self.node.is_full(NODE_LINES_MAX, now) { CONTAINER_LINES_LEAST } else { CONTAINER_LINES_MAX };
        let (rate, left_out_level) = self.containers.entry(key.clone()).or_default();
        let admission = rate.admit(max, now);
        if matches!(admission, Admission::Admitted { .. }) {
            self.node.admit(u32::MAX, now);
        }
        match admission {
            Admission::Admitted { left_out: 0 } => {}
            Admission::Admitted { left_out } => {
                let level = left_out_level.take().unwrap_or(line.level);
                decision.notices.push(key.notice(level, LEFT_OUT).with_count("lines", left_out));
            }
            Admission::FirstLeftOut | Admission::LeftOut => {
                *left_out_level = Some(line.level);
                decision.is_left_out = true;
                if admission == Admission::FirstLeftOut {
                    decision.notices.push(key.notice(line.level, FULL));
                }
            }
        }
        decision
    }

    /// Containers that are counted.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.containers.len()
    }

    /// Forgets windows that are over, and logs the number of lines left out in them.
    fn sweep(&mut self, now: Instant) -> Vec<Line> {
        if self.swept.is_some_and(|swept| now.duration_since(swept) < WINDOW) {
            return Vec::new();
        }
        self.swept = Some(now);
        let mut notices = Vec::new();
        self.containers.retain(|key, (rate, level)| {
            let is_over = rate.is_over(now);
            if is_over && rate.left_out() > 0 {
                let notice = key.notice(level.unwrap_or(Level::INFO), LEFT_OUT);
                notices.push(notice.with_count("lines", rate.left_out()));
            }
            !is_over
        });
        notices
    }
}
