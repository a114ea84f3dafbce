//! A timer that wakes a sleeping thread a little later. Setting it wakes no thread, unlike a runtime's own timer.
//!
//! Failure path: if the process has no descriptor left for the timer, callers wake the sleeper at once.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;

/// The delay, in nanoseconds: longer than the rest of a start takes.
const DELAY_NS: i64 = 1_000_000;

/// The timer of one sleeper.
#[derive(Debug)]
pub struct CoarseTimer {
    timer: Option<OwnedFd>,
    /// A sleeper waits on it.
    watched: AtomicBool,
    set: AtomicBool,
}

impl Default for CoarseTimer {
    fn default() -> Self {
        CoarseTimer::new()
    }
}

impl CoarseTimer {
    /// Makes a timer that is not set. It never fires if the process has no descriptor left.
    pub fn new() -> CoarseTimer {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags).ok();
        CoarseTimer { timer, watched: AtomicBool::new(false), set: AtomicBool::new(false) }
    }

    /// The timer, for the sleeper to wait on, within its runtime.
    #[allow(unsafe_code, reason = "tokio's safe form of this is deprecated; see the comment")]
    pub fn watched(&self) -> Option<AsyncFd<OwnedFd>> {
        let timer = self.timer()?.try_clone_to_owned().ok()?;
        // SAFETY: an `OwnedFd` is the same open descriptor for as long as it lives, and the `AsyncFd` owns it.
        let timer = unsafe { AsyncFd::register(timer) }.ok()?;
        self.watched.store(true, Ordering::Release);
        Some(timer)
    }

    fn timer(&self) -> Option<BorrowedFd<'_>> {
        self.timer.as_ref().map(AsFd::as_fd)
    }

    /// Makes sure that the sleeper will be woken; `false` if it cannot be.
    pub fn is_set(&self) -> bool {
        if !self.watched.load(Ordering::Acquire) {
            return false;
        }
        if self.set.swap(true, Ordering::AcqRel) {
            return true;
        }
        let once = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec { tv_sec: 0, tv_nsec: DELAY_NS },
        };
        let is_set =
            self.timer().is_some_and(|timer| timerfd_settime(timer, TimerfdTimerFlags::empty(), &once).is_ok());
        self.set.store(is_set, Ordering::Release);
        is_set
    }

    /// Tells that the sleeper is awake: the next [`CoarseTimer::is_set`] sets the timer again.
    pub fn passed(&self) {
        self.set.store(false, Ordering::Release);
    }
}

/// Waits until the timer has fired; without a timer it waits for ever.
pub async fn wait(timer: Option<&AsyncFd<OwnedFd>>) {
    let Some(timer) = timer else { return std::future::pending().await };
    if let Ok(mut ready) = timer.readable().await {
        // The number of expirations does not matter; the read makes the descriptor unreadable again.
        let _ = rustix::io::read(timer.get_ref(), &mut [0; 8]);
        ready.clear_ready();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_sleeper_is_woken_once_for_several_calls() {
        let later = CoarseTimer::new();
        let timer = later.watched().unwrap();
        assert!(later.is_set() && later.is_set());
        wait(Some(&timer)).await;
        later.passed();
        let quiet = tokio::time::timeout(std::time::Duration::from_millis(20), wait(Some(&timer))).await;
        assert!(quiet.is_err(), "it fired once");
        assert!(later.is_set());
        wait(Some(&timer)).await;
    }
}
