//! Waiting for a condition, with a deadline: the only place of the harness that polls.

use std::time::{Duration, Instant};

/// For work of milliseconds: long enough for a busy machine.
pub const SHORT: Duration = Duration::from_secs(30);

/// For work that computes, or starts many tasks.
pub const LONG: Duration = Duration::from_secs(180);

/// The pause between two polls of a condition that has no event.
const PAUSE: Duration = Duration::from_millis(5);

/// Polls `condition` until it yields a value.
///
/// # Panics
/// With `description` when `deadline` has passed.
pub fn eventually<T>(description: &str, deadline: Duration, condition: impl FnMut() -> Option<T>) -> T {
    within(deadline, condition).unwrap_or_else(|| panic!("not within {} s: {description}", deadline.as_secs()))
}

/// As [`eventually`], for callers with their own message: `None` when `deadline` has passed.
pub fn within<T>(deadline: Duration, condition: impl FnMut() -> Option<T>) -> Option<T> {
    polling_every(PAUSE, deadline, condition)
}

/// As [`within`], for a condition that is expensive to evaluate: `pause` is the time between two polls.
pub fn polling_every<T>(pause: Duration, deadline: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = condition() {
            return Some(value);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(pause);
    }
}
