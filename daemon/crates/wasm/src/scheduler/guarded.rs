//! The wrapper around every poll of a guest.
//!
//! At every poll it asks, in this order: is the guest killed, paused, does its container block too many workers, is it over
//! its budget? Then it takes the guest's identity, polls the guest, charges the CPU time, and drops the guest at its end,
//! all with that identity. It reports the end with the daemon's identity.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use super::GuestEnd;
use super::cpu::Allowance;
use super::guest::Guest;
use super::meter;
use super::workers::{Polling, SchedulerState};
use hearth_os::identity;

/// How long after the end of its slice a poll may return, in nanoseconds: a computing guest is interrupted every tick.
const OVERRUN_NS: u64 = 10_000_000;

/// How long a guest runs before it gives way to one that is woken between two ticks, in nanoseconds. Most requests are
/// answered by then; if each were put off by the next, many would be begun and few finished.
const LET_RUN_NS: u64 = 250_000;

/// A guest's future in the wrapper.
pub(super) struct Guarded<F: Future, E> {
    guest: Arc<Guest>,
    shared: Arc<SchedulerState>,
    /// `None` once it has ended. Boxed so that it can be dropped in place, before `end` is called.
    future: Option<Pin<Box<F>>>,
    end: Option<E>,
    budget: Option<BudgetWait>,
}

/// A wait for the next period of a quota.
struct BudgetWait {
    since_ns: u64,
    until_ns: u64,
    timer: Pin<Box<tokio::time::Sleep>>,
}

impl<F: Future, E> Unpin for Guarded<F, E> {}

impl<F, E> Guarded<F, E>
where
    F: Future,
    E: FnOnce(GuestEnd<F::Output>),
{
    pub(super) fn new(guest: Arc<Guest>, shared: Arc<SchedulerState>, future: F, end: E) -> Guarded<F, E> {
        Guarded { guest, shared, future: Some(Box::pin(future)), end: Some(end), budget: None }
    }
}

impl<F, E> Future for Guarded<F, E>
where
    F: Future,
    E: FnOnce(GuestEnd<F::Output>),
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        // Before the flags are read: a caller that sets one wakes this waker afterwards.
        this.guest.waker.register(context.waker());
        let killed = this.guest.is_killed();
        // The runtime's timers panic once it is shut down; then the process ends and no caller waits.
        let mut must_wait = || std::panic::catch_unwind(AssertUnwindSafe(|| this.must_wait(context))).unwrap_or(true);
        if !killed && must_wait() {
            return Poll::Pending;
        }
        let _polling = Polling::begin(&this.guest);
        meter::begin(&this.guest, this.shared.now_ns(), &this.shared.metrics);
        let end = this.step(killed, context);
        let now = this.shared.now_ns();
        meter::end(&this.guest, now, end.is_some(), &this.shared.metrics);
        if now > this.guest.slice_ends_ns.load(Ordering::Relaxed).saturating_add(OVERRUN_NS) {
            this.shared.metrics.scheduler.slice_overruns.inc();
        }
        let Some(outcome) = end else {
            return Poll::Pending;
        };
        this.end_budget_wait(this.shared.now_ns());
        // After the charge, so that a caller that is told of a process's end reads its whole CPU time.
        if let Some(end) = this.end.take()
            && std::panic::catch_unwind(AssertUnwindSafe(|| end(outcome))).is_err()
        {
            tracing::error!("the end of a guest panicked; this is a bug");
        }
        Poll::Ready(())
    }
}

impl<F: Future, E> Guarded<F, E> {
    /// Whether the guest may not be polled now; something will wake it when it may.
    fn must_wait(&mut self, context: &mut Context<'_>) -> bool {
        let now = self.shared.now_ns();
        if self.guest.is_paused() {
            self.end_budget_wait(now);
            return true;
        }
        if self.guest.is_held(context.waker()) {
            self.shared.metrics.scheduler.held.inc();
            return true;
        }
        let slice = match self.guest.allowance(now) {
            Some(Allowance::Wait(until)) => {
                if self.wait_for_budget(now, until, context) {
                    return true;
                }
                // A timer that has fired means a period that has begun, but for the clocks' last digits.
                0
            }
            Some(Allowance::Run(left)) => left.min(self.shared.slice_ns),
            None => self.shared.slice_ns,
        };
        self.end_budget_wait(now);
        self.guest.slice_ends_ns.store(now + slice, Ordering::Relaxed);
        self.guest.gives_way_ns.store(now + LET_RUN_NS, Ordering::Relaxed);
        self.guest.slice_tick.store(self.shared.ticks.load(Ordering::Relaxed), Ordering::Relaxed);
        false
    }

    fn wait_for_budget(&mut self, now: u64, until: u64, context: &mut Context<'_>) -> bool {
        let wait = match &mut self.budget {
            Some(wait) if wait.until_ns == until => wait,
            _ => {
                if self.budget.is_none() {
                    self.shared.metrics.scheduler.throttled.inc();
                }
                let since_ns = self.budget.as_ref().map_or(now, |wait| wait.since_ns);
                let timer = Box::pin(tokio::time::sleep(Duration::from_nanos(until.saturating_sub(now))));
                self.budget.insert(BudgetWait { since_ns, until_ns: until, timer })
            }
        };
        wait.timer.as_mut().poll(context).is_pending()
    }

    fn end_budget_wait(&mut self, now: u64) {
        if let Some(wait) = self.budget.take() {
            let waited = now.saturating_sub(wait.since_ns);
            self.shared.metrics.scheduler.throttled_seconds.inc_by(waited as f64 / 1e9);
            self.guest.waits_no_more(now);
        }
    }

    /// Polls the guest once, or drops it if it is killed. Gives its end if that was it.
    fn step(&mut self, killed: bool, context: &mut Context<'_>) -> Option<GuestEnd<F::Output>> {
        if killed {
            return Some(self.finish(GuestEnd::Killed));
        }
        if let Err(text) = self.guest.assume_identity() {
            return Some(self.finish(GuestEnd::Panicked(text)));
        }
        let future = self.future.as_mut()?;
        let end = match std::panic::catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
            Ok(Poll::Pending) => return None,
            // An interrupted system call or epoch check lets it end early: that was the kill.
            Ok(Poll::Ready(_)) if self.guest.is_killed() => GuestEnd::Killed,
            Ok(Poll::Ready(output)) => GuestEnd::Completed(output),
            Err(panic) => GuestEnd::Panicked(panic_text(panic.as_ref())),
        };
        Some(self.finish(end))
    }

    /// Drops the guest: its fibre is unwound and its slot goes back to the pool.
    fn finish(&mut self, end: GuestEnd<F::Output>) -> GuestEnd<F::Output> {
        let future = self.future.take();
        // Without the guest's identity the thread has the daemon's, which may close any file that the guest has open.
        let _ = self.guest.assume_identity();
        match std::panic::catch_unwind(AssertUnwindSafe(|| drop(future))) {
            Ok(()) => end,
            Err(panic) => GuestEnd::Panicked(panic_text(panic.as_ref())),
        }
    }
}

impl<F: Future, E> Drop for Guarded<F, E> {
    /// At a stop of the scheduler guests are dropped with its queues, on whatever thread.
    fn drop(&mut self) {
        // The guest's waker holds the task, which holds the guest.
        self.guest.waker.take();
        if let Some(future) = self.future.take() {
            let _restore = identity::RestoreGuard;
            let _ = self.guest.assume_identity();
            drop(future);
        }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic without text").to_string()
}
