//! A wake-up a little later, for a thread that sleeps: setting it wakes nobody, which a runtime's own timer
//! does.
//!
//! Failure path: without a timer, because the process has no descriptor left, everybody is woken at once.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;

/// How much later, in nanoseconds: longer than the rest of a start takes.
const DELAY_NS: i64 = 1_000_000;

/// The timer of one sleeper.
pub struct CoarseTimer {
    timer: Option<OwnedFd>,
    /// Somebody waits on it.
    watched: AtomicBool,
    set: AtomicBool,
}

impl CoarseTimer {
    /// A timer that is not set; one that never fires if the process has no descriptor left.
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

    /// The sleeper is awake: it has to be woken anew for what comes from now on.
    pub fn passed(&self) {
        self.set.store(false, Ordering::Release);
    }
}

/// Waits until the timer has fired; for ever without one.
pub async fn wait(timer: Option<&AsyncFd<OwnedFd>>) {
    let Some(timer) = timer else { return std::future::pending().await };
    if let Ok(mut ready) = timer.readable().await {
        // How often it fired is no matter; reading it makes it quiet.
        let _ = rustix::io::read(timer.get_ref(), &mut [0; 8]);
        ready.clear_ready();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_sleeps_is_woken_once_for_all_that_came_meanwhile() {
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
