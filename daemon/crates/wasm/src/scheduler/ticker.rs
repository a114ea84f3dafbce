//! The ticker: it advances the epochs, looks at the sockets where no worker does, and replaces blocked workers.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::workers::{SchedulerState, WorkerSlot, spawn_worker};
use hearth_os::process;
use hearth_os::readiness::Events;

/// Ticks without a running guest after which the ticker sleeps until there is one.
const IDLE_TICKS: u32 = 100;

/// The thread that advances the epochs and replaces blocked workers.
pub(super) struct Ticker {
    pub(super) shared: Arc<SchedulerState>,
    pub(super) tick: Duration,
    pub(super) blocked_after_ns: u64,
}

impl Ticker {
    pub(super) fn run(self) {
        let shared = &self.shared;
        process::take_share(process::Share::Prompt);
        let mut idle_ticks = 0;
        let mut events = Events::default();
        while !shared.stop.load(Ordering::SeqCst) {
            if shared.polling.load(Ordering::SeqCst) == 0 {
                idle_ticks += 1;
            } else {
                idle_ticks = 0;
            }
            if idle_ticks > IDLE_TICKS {
                shared.ticker_asleep.store(true, Ordering::SeqCst);
                if shared.polling.load(Ordering::SeqCst) == 0 && !shared.stop.load(Ordering::SeqCst) {
                    std::thread::park();
                }
                shared.ticker_asleep.store(false, Ordering::SeqCst);
                idle_ticks = 0;
            }
            self.sleep(&mut events);
            // Before the epochs, by which guests look at it.
            shared.ticks.fetch_add(1, Ordering::Relaxed);
            shared.advance_epochs();
            self.release_kept();
            self.look_after_workers();
            self.unblock_returned();
        }
    }

    /// Waits for a tick, or for a socket where every worker computes for so long that none looks at the sockets.
    fn sleep(&self, events: &mut Events) {
        let shared = &self.shared;
        let unseen = shared.sockets.any()
            && shared.idle.load(Ordering::SeqCst) == 0
            && shared.sockets.unseen_ns(shared.now_ns()) >= self.tick.as_nanos() as u64;
        if !unseen {
            return std::thread::sleep(self.tick);
        }
        shared.sockets.wait(events, Some(self.tick));
        shared.sockets.tell(events, shared.now_ns());
        // It may have been a wake-up for a worker.
        if !shared.queue.is_empty() {
            shared.find_worker(false);
        }
    }

    /// Requeues the parts that workers hold which have been in one poll for a tick.
    fn release_kept(&self) {
        let (shared, tick_ns) = (&self.shared, self.tick.as_nanos() as u64);
        let now = shared.now_ns();
        let late = |slot: &&Arc<WorkerSlot>| {
            let began = slot.poll_began_ns.load(Ordering::Acquire);
            began != 0 && now.saturating_sub(began) >= tick_ns && slot.holds_parts()
        };
        let slots: Vec<_> = shared.workers.lock().slots.iter().filter(late).cloned().collect();
        slots.iter().for_each(|slot| shared.release(slot));
    }

    /// Finds workers asleep in a system call of their guest, or in one call that computes for long, and replaces them.
    fn look_after_workers(&self) {
        let shared = &self.shared;
        let now = shared.now_ns();
        let long = |slot: &&Arc<WorkerSlot>| {
            let began = slot.poll_began_ns.load(Ordering::Acquire);
            began != 0 && now.saturating_sub(began) > self.blocked_after_ns
        };
        let suspects: Vec<_> = shared.workers.lock().slots.iter().filter(long).cloned().collect();
        for slot in suspects {
            // A computing guest is interrupted every tick, so a poll this long is in host code, or in one instruction
            // that fills or copies memory.
            if !slot.blocked.load(Ordering::Acquire) {
                if process::thread_sleeps(slot.thread_id) {
                    self.replace(&slot);
                } else if self.computes_for_long(&slot) {
                    // Nothing can interrupt it. It goes on with the CPU time that others leave.
                    self.replace(&slot);
                    if slot.blocked.load(Ordering::Acquire) {
                        process::give_share(slot.thread_id, process::Share::Least);
                    }
                }
            }
            if slot.blocked.load(Ordering::Acquire) && slot.guest.lock().as_ref().is_some_and(|g| g.is_killed()) {
                // Again at every tick, since the signal may land just before the call it shall end.
                process::interrupt_thread(slot.thread_id);
            }
        }
    }

    /// Whether a worker's present poll has used as much CPU time as a call may take, since it was first found late. The
    /// clock alone does not tell: on a busy node a thread may wait for a core.
    fn computes_for_long(&self, slot: &WorkerSlot) -> bool {
        let began = slot.poll_began_ns.load(Ordering::Acquire);
        let Some(cpu_ns) = process::thread_cpu_ns(slot.thread_id) else { return false };
        let mut late = slot.late.lock();
        match *late {
            Some((poll, first)) if poll == began => cpu_ns.saturating_sub(first) > self.blocked_after_ns,
            _ => {
                *late = Some((began, cpu_ns));
                false
            }
        }
    }

    /// A worker can be marked as blocked in the moment in which its poll ends. If it then sleeps, its guest's container
    /// must not be charged for it.
    fn unblock_returned(&self) {
        let returned = |slot: &&Arc<WorkerSlot>| {
            slot.blocked.load(Ordering::Acquire) && slot.poll_began_ns.load(Ordering::Acquire) == 0
        };
        let slots: Vec<_> = self.shared.workers.lock().slots.iter().filter(returned).cloned().collect();
        slots.iter().for_each(|slot| slot.unblock());
    }

    fn replace(&self, slot: &WorkerSlot) {
        let shared = &self.shared;
        let mut workers = shared.workers.lock();
        if slot.poll_began_ns.load(Ordering::Acquire) == 0 || slot.blocked.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(guest) = slot.guest.lock().clone() {
            guest.blocks();
            *slot.blocked_by.lock() = Some(guest);
        }
        workers.active -= 1;
        if workers.slots.len() >= shared.workers_max {
            drop(workers);
            tracing::warn!(
                limit = shared.workers_max,
                "every worker is in a long call of a guest; scheduler.workers_max is reached"
            );
            return;
        }
        workers.active += 1;
        drop(workers);
        shared.metrics.scheduler.workers_replaced.inc();
        if let Err(error) = spawn_worker(shared) {
            shared.workers.lock().active -= 1;
            tracing::warn!(%error, "cannot start a worker in place of a blocked one");
        }
    }
}
