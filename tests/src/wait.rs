//! Waiting for a condition, with a deadline: the only place of the harness that looks again and again.

use std::time::{Duration, Instant};

/// For what takes milliseconds: long enough for a machine with other work to do.
pub const SHORT: Duration = Duration::from_secs(30);

/// For what computes or starts many things.
pub const LONG: Duration = Duration::from_secs(180);

/// How long to rest between two looks at a condition that nothing announces.
const PAUSE: Duration = Duration::from_millis(5);

/// Looks at `condition` until it yields a value.
///
/// # Panics
/// With `what` when `deadline` has passed.
pub fn eventually<T>(what: &str, deadline: Duration, condition: impl FnMut() -> Option<T>) -> T {
    within(deadline, condition).unwrap_or_else(|| panic!("not within {} s: {what}", deadline.as_secs()))
}

/// As [`eventually`], for callers with something to say of their own: `None` when `deadline` has passed.
pub fn within<T>(deadline: Duration, condition: impl FnMut() -> Option<T>) -> Option<T> {
    looking_every(PAUSE, deadline, condition)
}

/// As [`within`], for a condition that costs something to look at: `pause` is the rest between two looks.
pub fn looking_every<T>(pause: Duration, deadline: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
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
