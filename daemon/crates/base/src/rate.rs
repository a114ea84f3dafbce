//! A rate limit that counts the events it leaves out: so many in a window of a second.
//!
//! It is written here because its users need what a general rate limiter does not tell: how many were left out since
//! the last one that was admitted, and which one was the first.

use std::time::{Duration, Instant};

/// The window over which is counted.
pub const WINDOW: Duration = Duration::from_secs(1);

/// The numbers of events admitted and left out lately.
#[derive(Debug, Default)]
pub struct Rate {
    began: Option<Instant>,
    admitted: u32,
    left_out: u64,
    left_out_in_window: bool,
}

/// The decision about one more event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It is; so many before it were left out and not reported yet.
    Admitted {
        /// Left out since the last one that was admitted.
        left_out: u64,
    },
    /// It is left out, as the first one of its window.
    FirstLeftOut,
    /// It is left out.
    LeftOut,
}

impl Rate {
    /// One more, of which `max` are admitted in each window.
    pub fn admit(&mut self, max: u32, now: Instant) -> Admission {
        if self.is_over(now) {
            self.began = Some(now);
            self.admitted = 0;
            self.left_out_in_window = false;
        }
        if self.admitted < max {
            self.admitted += 1;
            return Admission::Admitted { left_out: std::mem::take(&mut self.left_out) };
        }
        self.left_out += 1;
        match std::mem::replace(&mut self.left_out_in_window, true) {
            false => Admission::FirstLeftOut,
            true => Admission::LeftOut,
        }
    }

    /// Whether the last window is over: the next one opens another.
    pub fn is_over(&self, now: Instant) -> bool {
        self.began.is_none_or(|began| now.duration_since(began) >= WINDOW)
    }

    /// Whether `max` were admitted in this window.
    pub fn is_full(&self, max: u32, now: Instant) -> bool {
        !self.is_over(now) && self.admitted >= max
    }

    /// How many were left out and not reported yet.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_in_a_window_and_the_rest_is_counted() {
        let (mut rate, now) = (Rate::default(), Instant::now());
        for _ in 0..3 {
            assert_eq!(rate.admit(3, now), Admission::Admitted { left_out: 0 });
        }
        assert_eq!(rate.admit(3, now), Admission::FirstLeftOut);
        assert_eq!(rate.admit(3, now), Admission::LeftOut);
        assert!(!rate.is_over(now) && rate.is_over(now + WINDOW) && rate.left_out() == 2);
        assert!(rate.is_full(3, now) && !rate.is_full(4, now) && !rate.is_full(3, now + WINDOW));
        assert_eq!(rate.admit(3, now + WINDOW), Admission::Admitted { left_out: 2 });
        assert_eq!(rate.admit(3, now + WINDOW), Admission::Admitted { left_out: 0 });
        assert_eq!(rate.admit(2, now + WINDOW), Admission::FirstLeftOut, "each window has a first one");
    }
}
