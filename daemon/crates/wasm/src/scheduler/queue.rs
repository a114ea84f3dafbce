//! Which guest runs next.
//!
//! ```text
//!   woken, and not ahead of its share ──▶ fresh: first come, first served ──┐ before spent, but for
//!   woken, but ahead of its share ──┐                                       ├─▶ one pick in sixteen
//!   used up its slice ──────────────┴──▶ spent: least virtual time first ───┘
//! ```
//!
//! This is start-time fair queueing. Each guest has a virtual time that advances with the CPU time it uses, slower the
//! higher its weight; the queue's virtual time is that of the last guest taken from `spent`. A guest that was asleep
//! comes back at the queue's time: sleeping saves nothing up. A guest that comes back ahead of the queue's time has had
//! more than its share; when it is more than a slice ahead, it does not go first for being woken. So a new guest never
//! waits behind computing guests, and a guest that sleeps for a moment whenever its slice ends gains nothing by it.
//!
//! With several workers one guest cannot use more than one of them, whatever its weight, so its
//! virtual time could fall behind without end. It falls behind by [`LAG_SLICES`] at most, which
//! bounds for how long it could keep others waiting afterwards.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use async_task::Runnable;
use crossbeam_deque::{Injector, Steal};
use parking_lot::Mutex;

use super::cpu::virtual_time;
use super::guest::Guest;

/// Every so many picks a guest that used up its slice goes first, so that a stream of woken guests
/// cannot starve it.
const SPENT_FIRST_EVERY: u32 = 16;

/// How many slices of default weight a computing guest may be behind the queue's virtual time.
const LAG_SLICES: u64 = 10;

/// The guests that can run.
pub(super) struct RunQueue {
    fresh: Injector<Runnable>,
    spent: Mutex<BinaryHeap<Reverse<Spent>>>,
    fresh_waiting: AtomicUsize,
    spent_waiting: AtomicUsize,
    picks: AtomicU32,
    arrivals: AtomicU64,
    virtual_ns: AtomicU64,
    slice_ns: u64,
}

struct Spent {
    /// Virtual time, then the order of arrival.
    rank: (u64, u64),
    runnable: Runnable,
}

impl PartialEq for Spent {
    fn eq(&self, other: &Spent) -> bool {
        self.rank == other.rank
    }
}

impl Eq for Spent {}

impl PartialOrd for Spent {
    fn partial_cmp(&self, other: &Spent) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Spent {
    fn cmp(&self, other: &Spent) -> std::cmp::Ordering {
        self.rank.cmp(&other.rank)
    }
}

/// A guest's position in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QueuePosition {
    /// Before computing guests.
    Fresh,
    /// Among computing guests, at this virtual time.
    Spent(u64),
}

/// A guest's position, and its virtual time from then on. `own`: its virtual time so far.
fn position(own: u64, queue: u64, weight: u64, slice_ns: u64, used_up_slice: bool) -> (QueuePosition, u64) {
    if used_up_slice {
        let at = own.max(queue.saturating_sub(LAG_SLICES * slice_ns));
        return (QueuePosition::Spent(at), at);
    }
    let (ahead, at) = (own.saturating_sub(queue), own.max(queue));
    let position =
        if ahead <= virtual_time(slice_ns, weight) { QueuePosition::Fresh } else { QueuePosition::Spent(at) };
    (position, at)
}

impl RunQueue {
    pub(super) fn new(slice_ns: u64) -> RunQueue {
        RunQueue {
            fresh: Injector::new(),
            spent: Mutex::default(),
            fresh_waiting: AtomicUsize::new(0),
            spent_waiting: AtomicUsize::new(0),
            picks: AtomicU32::new(0),
            arrivals: AtomicU64::new(0),
            virtual_ns: AtomicU64::new(0),
            slice_ns,
        }
    }

    /// The position of a guest that can run now; `used_up_slice`: it gave way, rather than being woken.
    pub(super) fn position(&self, guest: &Guest, used_up_slice: bool) -> QueuePosition {
        let queue = self.virtual_ns.load(Ordering::Relaxed);
        let (position, at) = position(guest.virtual_ns(), queue, guest.weight(), self.slice_ns, used_up_slice);
        // It only ever grows: guests of one group share it.
        guest.set_virtual_ns(at);
        position
    }

    /// Adds a guest at its position.
    pub(super) fn push(&self, runnable: Runnable, position: QueuePosition) {
        match position {
            QueuePosition::Fresh => {
                self.fresh_waiting.fetch_add(1, Ordering::Relaxed);
                self.fresh.push(runnable);
            }
            QueuePosition::Spent(at) => {
                self.spent_waiting.fetch_add(1, Ordering::Relaxed);
                let rank = (at, self.arrivals.fetch_add(1, Ordering::Relaxed));
                self.spent.lock().push(Reverse(Spent { rank, runnable }));
            }
        }
    }

    /// Takes the next guest.
    pub(super) fn pop(&self) -> Option<Runnable> {
        let spent_first = self.picks.fetch_add(1, Ordering::Relaxed).is_multiple_of(SPENT_FIRST_EVERY);
        if spent_first {
            self.pop_spent().or_else(|| self.pop_fresh())
        } else {
            self.pop_fresh().or_else(|| self.pop_spent())
        }
    }

    fn pop_fresh(&self) -> Option<Runnable> {
        loop {
            match self.fresh.steal() {
                Steal::Success(runnable) => {
                    self.fresh_waiting.fetch_sub(1, Ordering::Relaxed);
                    return Some(runnable);
                }
                Steal::Empty => return None,
                Steal::Retry => {}
            }
        }
    }

    fn pop_spent(&self) -> Option<Runnable> {
        if self.spent_waiting.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let Reverse(first) = self.spent.lock().pop()?;
        self.spent_waiting.fetch_sub(1, Ordering::Relaxed);
        self.virtual_ns.fetch_max(first.rank.0, Ordering::Relaxed);
        Some(first.runnable)
    }

    /// Whether no guest waits.
    pub(super) fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.spent.lock().is_empty()
    }

    /// Whether a guest waits to which computing guests give way.
    pub(super) fn has_fresh(&self) -> bool {
        self.fresh_waiting.load(Ordering::Relaxed) > 0
    }

    /// How many guests wait.
    pub(super) fn waiting(&self) -> usize {
        self.fresh_waiting.load(Ordering::Relaxed) + self.spent_waiting.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLICE: u64 = 10;

    #[test]
    fn a_guest_that_was_away_comes_back_at_the_queues_time_and_first() {
        assert_eq!(position(0, 1_000, 1_024, SLICE, false), (QueuePosition::Fresh, 1_000));
        assert_eq!(position(1_010, 1_000, 1_024, SLICE, false), (QueuePosition::Fresh, 1_010));
    }

    #[test]
    fn a_guest_ahead_of_its_share_waits_its_turn_even_when_woken() {
        assert_eq!(position(1_011, 1_000, 1_024, SLICE, false), (QueuePosition::Spent(1_011), 1_011));
        // A slice of a light guest's is long in virtual time.
        assert_eq!(position(1_011, 1_000, 512, SLICE, false), (QueuePosition::Fresh, 1_011));
    }

    #[test]
    fn a_computing_guest_keeps_its_time_but_falls_behind_by_so_much_only() {
        assert_eq!(position(990, 1_000, 1_024, SLICE, true), (QueuePosition::Spent(990), 990));
        let least = 1_000 - LAG_SLICES * SLICE;
        assert_eq!(position(0, 1_000, 1_024, SLICE, true), (QueuePosition::Spent(least), least));
    }
}
