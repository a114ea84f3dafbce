//! The worker threads that run guests, and the ticker.

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

/// Ticks without a running guest after which the ticker sleeps until there is one.
const IDLE_TICKS: u32 = 100;

/// The stack of a worker thread, in bytes. Guests run on their own stacks; this is for the wrapper
/// and for drops.
const WORKER_STACK_BYTES: usize = 1 << 20;

/// How many parts of a container a worker may run one after another before it asks the queue: from a connection to its
/// request's guest, and back.
const KEPT_MAX: u32 = 2;

/// What workers, the ticker and the scheduler's handles share.
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
    /// How many workers one container may block.
    pub(super) blocked_max: usize,
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
    late: Mutex<Option<(u64, u64)>>,
    /// The guest in whose call it is blocked.
    blocked_by: Mutex<Option<Arc<Guest>>>,
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
    fn holds_parts(&self) -> bool {
        self.kept.lock().is_some() || self.after_kept.lock().is_some()
    }

    /// The worker's poll is over: its guest's container blocks one worker less.
    fn unblock(&self) {
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
    fn find_worker(&self, goes_first: bool) {
        // The queue has changed before `idle` is read; a worker that goes to sleep does it the other way round.
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.idle.load(Ordering::SeqCst) > 0 {
            self.sockets.wake();
        } else if goes_first {
            self.advance_epochs();
        }
    }

    /// Puts the parts that a worker has kept into the queue.
    fn release(&self, slot: &WorkerSlot) {
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
                self.take_in(events, Some(Duration::ZERO));
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
    fn take_in(&self, events: &mut Events, timeout: Option<Duration>) {
        self.sockets.wait(events, timeout);
        self.queue_woken(events);
    }

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
    while let Some(runnable) = next(shared, &slot, &mut events) {
        slot.poll_began_ns.store(shared.now_ns().max(1), Ordering::Release);
        shared.polling.fetch_add(1, Ordering::SeqCst);
        if shared.ticker_asleep.load(Ordering::SeqCst) {
            shared.unpark_ticker();
        }
        runnable.run();
        shared.polling.fetch_sub(1, Ordering::SeqCst);
        slot.poll_began_ns.store(0, Ordering::Release);
        if slot.blocked.load(Ordering::Acquire) && retire(shared, &slot) {
            shared.release(&slot);
            meter::rest(&shared.metrics);
            return;
        }
    }
    shared.release(&slot);
    meter::rest(&shared.metrics);
    let mut workers = shared.workers.lock();
    workers.active -= 1;
    workers.slots.retain(|s| !Arc::ptr_eq(s, &slot));
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
                    // Nothing can interrupt it. It goes on with what others leave.
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
