//! The least transfer rate of clients (`http.least_bytes_per_second`), for responses and for request bodies.
//!
//! Only time in which the transfer waits for the client counts: a guest may be as slow as it likes. Whenever a client has
//! kept its transfer waiting for `http.idle_timeout_ms` in sum, it must have moved the least number of bytes since the
//! last time. A client that moves nothing at all meets the idle time-out of its connection first.

use std::time::{Duration, Instant};

use hearth_base::config;

/// The bytes of one body that a client moves.
#[derive(Debug)]
pub struct ClientRate {
    window: Duration,
    /// In one window.
    least_bytes: u64,
    bytes: u64,
    /// How long the client has kept the transfer waiting in this window, without the wait that goes on.
    waited: Duration,
    waits_since: Option<Instant>,
}

impl ClientRate {
    /// With the limits of the configuration. A least rate of 0 is none.
    pub fn new(config: &config::Http) -> ClientRate {
        let least_bytes = config.least_bytes_per_second.saturating_mul(config.idle_timeout_ms) / 1_000;
        ClientRate {
            window: Duration::from_millis(config.idle_timeout_ms),
            least_bytes,
            bytes: 0,
            waited: Duration::ZERO,
            waits_since: None,
        }
    }

    /// The transfer waits for the client.
    pub fn wait(&mut self, now: Instant) {
        self.waits_since.get_or_insert(now);
    }

    /// The transfer does not wait for the client any more.
    pub fn go_on(&mut self, now: Instant) {
        if let Some(since) = self.waits_since.take() {
            self.waited += now.saturating_duration_since(since);
        }
    }

    /// Bytes have moved.
    pub fn moved(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes as u64);
    }

    /// How much longer the client may keep the transfer waiting in this window.
    pub fn left(&self, now: Instant) -> Duration {
        let waits = self.waits_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        self.window.saturating_sub(self.waited + waits)
    }

    /// Whether the client is too slow. At the end of a window in which it was not, the next one begins.
    pub fn is_too_slow(&mut self, now: Instant) -> bool {
        if !self.left(now).is_zero() {
            return false;
        }
        let is_too_slow = self.bytes < self.least_bytes;
        self.bytes = 0;
        self.waited = Duration::ZERO;
        self.waits_since = self.waits_since.map(|_| now);
        is_too_slow
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn rate(least_bytes_per_second: u64) -> ClientRate {
        ClientRate::new(&config::Http { least_bytes_per_second, idle_timeout_ms: 10_000, ..config::Http::default() })
    }

    #[test]
    fn only_a_client_that_keeps_its_transfer_waiting_can_be_too_slow() {
        let (mut rate, start) = (rate(100), Instant::now());
        rate.moved(999);
        assert!(!rate.is_too_slow(start + 60 * SECOND), "the guest was slow");
        rate.wait(start + 60 * SECOND);
        rate.wait(start + 65 * SECOND);
        assert_eq!(rate.left(start + 66 * SECOND), 4 * SECOND);
        rate.go_on(start + 66 * SECOND);
        assert!(!rate.is_too_slow(start + 600 * SECOND));
        rate.wait(start + 600 * SECOND);
        assert!(!rate.is_too_slow(start + 603 * SECOND));
        assert!(rate.is_too_slow(start + 604 * SECOND), "999 bytes in 10 s of waiting");
    }

    #[test]
    fn a_window_ends_and_the_next_one_begins() {
        let (mut rate, start) = (rate(100), Instant::now());
        rate.wait(start);
        rate.moved(1_000);
        assert!(!rate.is_too_slow(start + 10 * SECOND));
        assert_eq!(rate.left(start + 10 * SECOND), 10 * SECOND);
        assert!(rate.is_too_slow(start + 20 * SECOND), "what was moved before does not count");
    }

    #[test]
    fn a_rate_of_0_is_no_limit() {
        let (mut rate, start) = (rate(0), Instant::now());
        rate.wait(start);
        assert!(!rate.is_too_slow(start + 60 * SECOND));
    }
}
