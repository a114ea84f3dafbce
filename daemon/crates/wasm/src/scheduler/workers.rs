//! The worker threads that run guests, and the state that they share with the ticker.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use async_task::Runnable;
use parking_lot::Mutex;
use wasmtime::Engine;

use super::guest::Guest;
use super::meter;
use super::queue::{QueuePosition, RunQueue};
use super::sockets::Sockets;
use hearth_observe::metrics::Metrics;
use hearth_os::readiness::Events;
use hearth_os::{identity, process};

/// The stack of a worker thread, in bytes. Guests run on their own stacks; this is for the wrapper
/// and for drops.
const WORKER_STACK_BYTES: usize = 1 << 20;

/// How many parts of a container a worker may run one after another before it asks the queue: from a connection to its
/// request's guest, and back.
const KEPT_MAX: u32 = 2;

/// The state that workers, the ticker and the scheduler's handles share.
pub(super) struct SchedulerState {
    pub(super) queue: RunQueue,
    /// Workers that wait for work.
    pub(super) idle: AtomicUsize,
    /// The sockets that idle workers watch. Its wake-up is theirs.
    pub(super) sockets: Arc<Sockets>,
    /// Workers inside a poll.
    pub(super) polling: AtomicUsize,
    pub(super) workers: Mutex<WorkerSet>,
    pub(super) ticker: Mutex<Option<std::thread::Thread>>,
    pub(super) ticker_asleep: AtomicBool,
    /// Rounds of the ticker.
    pub(super) ticks: AtomicU64,
    pub(super) stop: AtomicBool,
    pub(super) born: Instant,
    pub(super) slice_ns: u64,
    pub(super) target: usize,
    pub(super) workers_max: usize,
    pub(super) metrics: Arc<Metrics>,
    pub(super) runtime: tokio::runtime::Handle,
    /// The engines whose epochs the ticker advances.
    pub(super) engines: Vec<Engine>,
}

#[derive(Default)]
pub(super) struct WorkerSet {
    pub(super) slots: Vec<Arc<WorkerSlot>>,
    /// Workers that are not blocked; kept at `target` while `workers_max` allows.
    pub(super) active: usize,
}

/// A worker thread, as the ticker sees it.
pub(super) struct WorkerSlot {
    pub(super) thread_id: rustix::process::Pid,
    /// When the current poll began, in nanoseconds of the scheduler's clock; 0: not in a poll.
    pub(super) poll_began_ns: AtomicU64,
    /// The ticker found it asleep in a system call, or in one call that computes for long, and replaced it.
    pub(super) blocked: AtomicBool,
    /// The poll in which the ticker first found it late, by its begin, and the thread's CPU time then. Only the ticker
    /// uses it.
    pub(super) late: Mutex<Option<(u64, u64)>>,
    /// The guest in whose call it is blocked.
    pub(super) blocked_by: Mutex<Option<Arc<Guest>>>,
    /// The guest that it polls.
    pub(super) guest: Mutex<Option<Arc<Guest>>>,
    /// The part of the same container that it runs after this poll.
    kept: Mutex<Option<Runnable>>,
    /// A part that goes on once the kept one has run.
    after_kept: Mutex<Option<Runnable>>,
    /// How many such parts it has run since it last asked the queue.
    kept_before: AtomicU32,
}

impl WorkerSlot {
    /// Whether the ticker has replaced it.
    #[cfg(test)]
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Acquire)
    }

    /// Whether it holds parts for itself.
    pub(super) fn holds_parts(&self) -> bool {
        self.kept.lock().is_some() || self.after_kept.lock().is_some()
    }

    /// The worker's poll is over: its guest's container blocks one worker less.
    pub(super) fn unblock(&self) {
        let guest = self.blocked_by.lock().take();
        if let Some(guest) = guest {
            guest.unblocks();
        }
    }

    /// Keeps a part of the same container for this worker: no other thread is woken for it, and its data are still in
    /// this processor's cache. Returns it if the worker has run as many as it may.
    fn keep(&self, runnable: Runnable, guest: &Guest) -> Option<Runnable> {
        let beside = self.kept_before.load(Ordering::Relaxed) < KEPT_MAX
            && self.guest.lock().as_ref().is_some_and(|current| current.is_beside(guest));
        if !beside {
            return Some(runnable);
        }
        let mut kept = self.kept.lock();
        if kept.is_some() {
            return Some(runnable);
        }
        *kept = Some(runnable);
        None
    }
}

thread_local! {
    /// The slot of the worker that this thread is.
    static SLOT: RefCell<Option<Arc<WorkerSlot>>> = const { RefCell::new(None) };
    /// Whether this thread is a worker that queues what sockets have brought, and runs the first of it next.
    static TAKES_IN: Cell<bool> = const { Cell::new(false) };
    /// Whether the part that this thread polls goes on after the kept one.
    static AFTER_KEPT: Cell<bool> = const { Cell::new(false) };
}

/// Tells the ticker which guest this thread polls, until it is dropped.
pub(super) struct Polling;

impl Polling {
    pub(super) fn begin(guest: &Arc<Guest>) -> Polling {
        Polling::set(Some(guest.clone()));
        Polling
    }

    fn set(guest: Option<Arc<Guest>>) {
        SLOT.with_borrow(|slot| {
            if let Some(slot) = slot {
                *slot.guest.lock() = guest;
            }
        });
    }
}

impl Drop for Polling {
    fn drop(&mut self) {
        Polling::set(None);
    }
}

/// For the future of a part: another part of the container that this thread has woken, and would run next, runs first. Goes
/// on at once if there is none.
pub async fn kept_part_first() {
    let mut asked = false;
    poll_fn(|cx| {
        let kept = !asked && SLOT.with_borrow(|slot| slot.as_ref().is_some_and(|slot| slot.kept.lock().is_some()));
        if !kept {
            return Poll::Ready(());
        }
        asked = true;
        AFTER_KEPT.set(true);
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl SchedulerState {
    pub(super) fn now_ns(&self) -> u64 {
        self.born.elapsed().as_nanos() as u64
    }

    pub(super) fn push(&self, runnable: Runnable, guest: &Guest, used_up_slice: bool) {
        let runnable = match used_up_slice && AFTER_KEPT.take() {
            true => SLOT.with_borrow(|slot| match slot {
                Some(slot) => slot.after_kept.lock().replace(runnable),
                None => Some(runnable),
            }),
            false => Some(runnable),
        };
        let Some(runnable) = runnable else { return };
        let place = self.queue.position(guest, used_up_slice);
        let runnable = SLOT.with_borrow(|slot| match slot {
            Some(slot) if place == QueuePosition::Fresh => slot.keep(runnable, guest),
            _ => Some(runnable),
        });
        if let Some(runnable) = runnable {
            self.add(runnable, place);
        }
    }

    /// Puts a guest into the queue, and wakes a worker or interrupts computing guests for it.
    fn add(&self, runnable: Runnable, place: QueuePosition) {
        self.queue.push(runnable, place);
        if !TAKES_IN.get() {
            self.find_worker(place == QueuePosition::Fresh);
        }
    }

    /// Wakes an idle worker for a guest in the queue. If there is none, and the guest goes first, computing guests are
    /// interrupted now, and not at the next tick.
    pub(super) fn find_worker(&self, goes_first: bool) {
        // The queue has changed before `idle` is read; a worker that goes to sleep does it the other way round.
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.idle.load(Ordering::SeqCst) > 0 {
            self.sockets.wake();
        } else if goes_first {
            self.advance_epochs();
        }
    }

    /// Puts the parts that a worker has kept into the queue.
    pub(super) fn release(&self, slot: &WorkerSlot) {
        let held = [slot.kept.lock().take(), slot.after_kept.lock().take()];
        for runnable in held.into_iter().flatten() {
            self.add(runnable, QueuePosition::Fresh);
        }
    }

    pub(super) fn advance_epochs(&self) {
        for engine in &self.engines {
            engine.increment_epoch();
        }
    }

    /// The next guest, or `None` when the worker shall end.
    fn next(&self, events: &mut Events) -> Option<Runnable> {
        loop {
            if self.stop.load(Ordering::SeqCst) {
                // A wake-up ends one wait: it goes on from worker to worker.
                self.sockets.wake();
                return None;
            }
            if self.sockets.any() && self.sockets.are_due(self.now_ns()) {
                self.sockets.wait(events, Some(Duration::ZERO));
                self.queue_woken(events);
            }
            if let Some(runnable) = self.queue.pop() {
                return Some(runnable);
            }
            // A thread that sleeps has the daemon's identity: it keeps no network namespace alive.
            identity::restore();
            meter::rest(&self.metrics);
            self.idle.fetch_add(1, Ordering::SeqCst);
            std::sync::atomic::fence(Ordering::SeqCst);
            let nothing = self.queue.is_empty() && !self.stop.load(Ordering::SeqCst);
            if nothing {
                self.sockets.wait(events, None);
            }
            self.idle.fetch_sub(1, Ordering::SeqCst);
            if nothing {
                self.queue_woken(events);
            }
        }
    }

    /// Queues the guests for which sockets have something. The calling worker runs one of them next.
    fn queue_woken(&self, events: &Events) {
        TAKES_IN.set(true);
        self.sockets.tell(events, self.now_ns());
        TAKES_IN.set(false);
        // Others are for other workers; the event may also have been a wake-up that another worker was to have.
        if self.queue.waiting() > 1 {
            self.find_worker(self.queue.has_fresh());
        }
    }

    pub(super) fn unpark_ticker(&self) {
        if self.ticker_asleep.swap(false, Ordering::SeqCst)
            && let Some(thread) = &*self.ticker.lock()
        {
            thread.unpark();
        }
    }
}

pub(super) fn spawn_worker(shared: &Arc<SchedulerState>) -> std::io::Result<std::thread::JoinHandle<()>> {
    let shared = shared.clone();
    std::thread::Builder::new().name("guest-worker".into()).stack_size(WORKER_STACK_BYTES).spawn(move || work(&shared))
}

/// A worker thread's life. The caller has counted it as active.
fn work(shared: &Arc<SchedulerState>) {
    identity::become_worker();
    let _restore = identity::RestoreGuard;
    // Timers and sockets that a guest's poll creates belong to the daemon's runtime.
    let _runtime = shared.runtime.enter();
    let slot = Arc::new(WorkerSlot {
        thread_id: rustix::thread::gettid(),
        poll_began_ns: AtomicU64::new(0),
        blocked: AtomicBool::new(false),
        late: Mutex::new(None),
        blocked_by: Mutex::new(None),
        guest: Mutex::new(None),
        kept: Mutex::new(None),
        after_kept: Mutex::new(None),
        kept_before: AtomicU32::new(0),
    });
    SLOT.set(Some(slot.clone()));
    let mut events = Events::default();
    shared.workers.lock().slots.push(slot.clone());
    meter::start();
    let mut is_replaced = false;
    while !is_replaced && let Some(runnable) = next(shared, &slot, &mut events) {
        slot.poll_began_ns.store(shared.now_ns().max(1), Ordering::Release);
        shared.polling.fetch_add(1, Ordering::SeqCst);
        if shared.ticker_asleep.load(Ordering::SeqCst) {
            shared.unpark_ticker();
        }
        runnable.run();
        shared.polling.fetch_sub(1, Ordering::SeqCst);
        slot.poll_began_ns.store(0, Ordering::Release);
        is_replaced = slot.blocked.load(Ordering::Acquire) && retire(shared, &slot);
    }
    shared.release(&slot);
    meter::rest(&shared.metrics);
    if !is_replaced {
        let mut workers = shared.workers.lock();
        workers.active -= 1;
        workers.slots.retain(|s| !Arc::ptr_eq(s, &slot));
    }
}

/// The guest that the worker runs next.
fn next(shared: &SchedulerState, slot: &WorkerSlot, events: &mut Events) -> Option<Runnable> {
    if let Some(kept) = slot.kept.lock().take() {
        slot.kept_before.fetch_add(1, Ordering::Relaxed);
        return Some(kept);
    }
    if let Some(goes_on) = slot.after_kept.lock().take() {
        return Some(goes_on);
    }
    slot.kept_before.store(0, Ordering::Relaxed);
    shared.next(events)
}

/// A worker that came back from a long call: it ends if it was replaced meanwhile.
fn retire(shared: &SchedulerState, slot: &Arc<WorkerSlot>) -> bool {
    let mut workers = shared.workers.lock();
    slot.blocked.store(false, Ordering::Release);
    slot.unblock();
    if workers.active >= shared.target {
        workers.slots.retain(|s| !Arc::ptr_eq(s, slot));
        return true;
    }
    workers.active += 1;
    drop(workers);
    process::take_share(process::Share::Usual);
    false
}
