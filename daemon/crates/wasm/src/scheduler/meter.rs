//! Charges a worker's CPU time to the container whose guest it polls.
//!
//! Reading a thread's CPU time is a system call: one at each of the three short polls of an HTTP request would be 4 % of
//! the request's cost. So the time is read when the worker goes on to another container, before it sleeps, after half a
//! millisecond of one container's polls, and at each poll of a guest with a quota and at the end of a process, where it
//! is needed at once.
//!
//! The time in which a worker finds the next guest, or sleeps and is woken for it, is charged to that next guest, as the
//! kernel charges a process.

use std::cell::RefCell;
use std::sync::Arc;

use rustix::time::{ClockId, clock_gettime};

use super::guest::Guest;
use hearth_observe::metrics::Metrics;

/// The longest time for which polls of one container are charged together, in nanoseconds. Its CPU time lags behind by
/// no more.
const UNREAD_NS_MAX: u64 = 500_000;

/// A worker's CPU time.
struct Meter {
    /// At the last reading, in nanoseconds.
    read_ns: u64,
    /// The guest that is charged for the time since then, and the time of its first poll by the scheduler's clock.
    since: Option<(Arc<Guest>, u64)>,
}

thread_local! {
    static METER: RefCell<Meter> = const { RefCell::new(Meter { read_ns: 0, since: None }) };
}

impl Meter {
    /// Reads the thread's CPU time, and charges the difference.
    fn settle(&mut self, metrics: &Metrics) {
        let now = thread_cpu_ns();
        let used = now.saturating_sub(std::mem::replace(&mut self.read_ns, now));
        if let Some((guest, _)) = self.since.take() {
            guest.charge(used);
            metrics.scheduler.cpu_seconds.inc_by(used as f64 / 1e9);
        }
    }
}

/// The calling thread's CPU time so far is charged to no guest.
pub(super) fn start() {
    METER.with_borrow_mut(|meter| *meter = Meter { read_ns: thread_cpu_ns(), since: None });
}

/// A poll of this guest begins at `now_ns` of the scheduler's clock.
pub(super) fn begin(guest: &Arc<Guest>, now_ns: u64, metrics: &Metrics) {
    METER.with_borrow_mut(|meter| {
        if meter.since.as_ref().is_some_and(|(before, _)| !before.is_beside(guest)) {
            meter.settle(metrics);
        }
        if meter.since.is_none() {
            meter.since = Some((guest.clone(), now_ns));
        }
    });
}

/// A poll of this guest is over at `now_ns` of the scheduler's clock; `ended`: it was the last.
pub(super) fn end(guest: &Guest, now_ns: u64, ended: bool, metrics: &Metrics) {
    METER.with_borrow_mut(|meter| {
        let unread = meter.since.as_ref().map_or(0, |(_, since)| now_ns.saturating_sub(*since));
        if (ended && !guest.is_part()) || guest.has_quota() || unread >= UNREAD_NS_MAX {
            meter.settle(metrics);
        }
    });
}

/// The calling thread goes to sleep, or ends.
pub(super) fn rest(metrics: &Metrics) {
    METER.with_borrow_mut(|meter| {
        if meter.since.is_some() {
            meter.settle(metrics);
        }
    });
}

/// CPU time of the calling thread, in nanoseconds.
pub(super) fn thread_cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
