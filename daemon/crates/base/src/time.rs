//! A point in time as a number.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970; 0 for a time before that.
pub fn unix(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
