//! The guest scheduler: the threads guests run on, and one poll wrapper around every guest.
//!
//! ```text
//!   spawn / wake ──▶ fresh ──┐
//!                            ├──▶ worker: Guarded::poll ──▶ guest runs ──▶ Pending: parked in its waker
//!   slice used up ──▶ spent ─┘        │  charges CPU time                  Ready: end(outcome)
//!                                     └─ killed? drop the guest instead
//!   ticker: every tick, the engines' epochs advance; a busy guest looks up (Guest::tick) and yields
//!           every tick, workers long in one poll are looked at; one asleep in a system call is
//!           replaced, so that a hung volume stalls nobody else
//! ```
//!
//! Guests never run on the RPC runtime's threads and RPCs never run here. A guest that was woken goes
//! before one that used up its slice, so that a start never queues behind busy guests for longer than
//! a tick.
//!
//! A kill is a flag and a wake-up: the wrapper sees the flag and drops the guest's future, which
//! unwinds it wherever it is: computing (it yields at the next tick), asleep or blocked on stdio (its
//! future is pending). A killed guest that is inside a system call (a FIFO of its image that nobody
//! writes to) gets its thread interrupted by a signal; only a call that takes no signal (a hung hard
//! NFS mount) has to come back by itself.

use std::cell::RefCell;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_task::{Runnable, ScheduleInfo, WithInfo};
use atomic_waker::AtomicWaker;
use crossbeam_deque::{Injector, Steal};
use parking_lot::{Condvar, Mutex};
use rustix::time::{ClockId, clock_gettime};
use wasmtime::{Engine, UpdateDeadline};

use crate::config;
use crate::metrics::Metrics;
use crate::os::process;

/// Every so many picks a guest that used up its slice goes first, so that a stream of woken guests
/// cannot starve it.
const SPENT_FIRST_EVERY: u32 = 16;

/// Ticks without a running guest after which the ticker sleeps until there is one.
const IDLE_TICKS: u32 = 100;

/// The stack of a worker thread, in bytes. Guests run on their own stacks; this is for the wrapper
/// and for drops.
const WORKER_STACK_BYTES: usize = 1 << 20;

/// How a guest came to its end.
#[derive(Debug)]
pub enum End<T> {
    /// Its future completed.
    Completed(T),
    /// It was killed and its future dropped.
    Killed,
    /// Host code panicked in it; the text of the panic.
    Panicked(String),
}

/// One guest, as the scheduler and those who control it see it.
#[derive(Debug, Default)]
pub struct Guest {
    killed: AtomicBool,
    waker: AtomicWaker,
    cpu_ns: AtomicU64,
    /// When the current slice began, in nanoseconds of the scheduler's clock.
    slice_began_ns: AtomicU64,
}

impl Guest {
    /// Ends the guest: at its next tick if it computes, at once if it waits.
    pub fn kill(&self) {
        self.killed.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// CPU time of its polls so far.
    pub fn cpu_time(&self) -> Duration {
        Duration::from_nanos(self.cpu_ns.load(Ordering::Relaxed))
    }

    fn is_killed(&self) -> bool {
        self.killed.load(Ordering::Acquire)
    }
}

/// Threads that run guests.
pub struct Scheduler {
    shared: Arc<Shared>,
    threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
}

struct Shared {
    fresh: Injector<Runnable>,
    spent: Injector<Runnable>,
    fresh_waiting: AtomicUsize,
    spent_waiting: AtomicUsize,
    picks: AtomicU32,
    /// Workers asleep; guarded by `sleep` for changes, read without it.
    idle: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    /// Workers inside a poll.
    polling: AtomicUsize,
    workers: Mutex<Workers>,
    ticker: Mutex<Option<std::thread::Thread>>,
    ticker_asleep: AtomicBool,
    stop: AtomicBool,
    born: Instant,
    slice_ns: u64,
    target: usize,
    workers_max: usize,
    metrics: Arc<Metrics>,
    runtime: tokio::runtime::Handle,
}

#[derive(Default)]
struct Workers {
    slots: Vec<Arc<Slot>>,
    /// Workers that are not blocked; kept at `target` while `workers_max` allows.
    active: usize,
}

/// A worker thread, as the ticker sees it.
struct Slot {
    thread_id: rustix::process::Pid,
    /// When the current poll began, in nanoseconds of the scheduler's clock; 0: not in a poll.
    poll_began_ns: AtomicU64,
    /// The ticker found it asleep in a system call and replaced it.
    blocked: AtomicBool,
    /// Whose poll it is in.
    guest: Mutex<Option<Arc<Guest>>>,
}

thread_local! {
    /// The slot of the worker that this thread is.
    static SLOT: RefCell<Option<Arc<Slot>>> = const { RefCell::new(None) };
}

/// Says to the ticker whose poll this thread is in, until it is dropped.
struct Polling;

impl Polling {
    fn begin(guest: &Arc<Guest>) -> Polling {
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

impl Scheduler {
    /// Starts the workers and the ticker. `runtime` drives the timers and sockets guests wait for.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn start(
        config: &config::Scheduler,
        engines: impl IntoIterator<Item = Engine>,
        metrics: Arc<Metrics>,
        runtime: tokio::runtime::Handle,
    ) -> std::io::Result<Scheduler> {
        process::install_interrupt()?;
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let target = if config.workers == 0 { cores } else { config.workers };
        let shared = Arc::new(Shared {
            fresh: Injector::new(),
            spent: Injector::new(),
            fresh_waiting: AtomicUsize::new(0),
            spent_waiting: AtomicUsize::new(0),
            picks: AtomicU32::new(0),
            idle: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            polling: AtomicUsize::new(0),
            workers: Mutex::new(Workers::default()),
            ticker: Mutex::new(None),
            ticker_asleep: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            born: Instant::now(),
            slice_ns: config.slice_ms * 1_000_000,
            target,
            workers_max: config.workers_max.max(target),
            metrics,
            runtime,
        });
        let mut threads = Vec::new();
        for _ in 0..target {
            shared.workers.lock().active += 1;
            threads.push(spawn_worker(&shared)?);
        }
        let ticker = Ticker {
            shared: shared.clone(),
            engines: engines.into_iter().collect(),
            tick: Duration::from_millis(config.tick_ms),
            blocked_after_ns: config.blocked_after_ms * 1_000_000,
        };
        let thread = std::thread::Builder::new().name("guest-ticker".into()).spawn(move || ticker.run())?;
        *shared.ticker.lock() = Some(thread.thread().clone());
        threads.push(thread);
        Ok(Scheduler { shared, threads: Mutex::new(threads) })
    }

    /// Runs a guest. `end` is called once, on a worker, whatever happens.
    pub fn spawn<F>(&self, guest: Arc<Guest>, future: F, end: impl FnOnce(End<F::Output>) + Send + 'static)
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let shared = self.shared.clone();
        let guarded = Guarded { guest, shared: shared.clone(), future: Some(Box::pin(future)), end: Some(end) };
        let schedule = WithInfo(move |runnable, info: ScheduleInfo| shared.push(runnable, info.woken_while_running));
        let (runnable, task) = async_task::spawn(guarded, schedule);
        task.detach();
        runnable.schedule();
    }

    /// What a store of this guest's asks at every tick of the epoch.
    pub fn tick(&self, guest: &Arc<Guest>) -> impl FnMut() -> wasmtime::Result<UpdateDeadline> + Send + Sync + use<> {
        let (shared, guest) = (self.shared.clone(), guest.clone());
        move || {
            if guest.is_killed() {
                wasmtime::bail!("killed");
            }
            let used = shared.now_ns().saturating_sub(guest.slice_began_ns.load(Ordering::Relaxed));
            // Someone who was woken goes first; others who compute get their turn slice by slice.
            if shared.fresh_waiting.load(Ordering::Relaxed) > 0 || used >= shared.slice_ns {
                Ok(UpdateDeadline::Yield(1))
            } else {
                Ok(UpdateDeadline::Continue(1))
            }
        }
    }

    /// Brings the gauges up to date; called before a scrape.
    pub fn observe(&self) {
        let shared = &self.shared;
        let waiting = shared.fresh_waiting.load(Ordering::Relaxed) + shared.spent_waiting.load(Ordering::Relaxed);
        shared.metrics.run_queue.set(waiting as i64);
        let workers = shared.workers.lock();
        let blocked = workers.slots.iter().filter(|s| s.blocked.load(Ordering::Relaxed)).count();
        let polling = workers.slots.iter().filter(|s| s.poll_began_ns.load(Ordering::Relaxed) != 0).count();
        let total = workers.slots.len();
        drop(workers);
        let gauge = |state: &str, value: usize| shared.metrics.workers.with_label_values(&[state]).set(value as i64);
        gauge("blocked", blocked);
        gauge("running", polling.saturating_sub(blocked));
        gauge("idle", total.saturating_sub(polling));
    }

    /// Ends the threads that are not stuck in a system call. Guests still queued are dropped with the
    /// queues.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        drop(self.shared.sleep.lock());
        self.shared.wake.notify_all();
        self.shared.unpark_ticker();
        for thread in self.threads.lock().drain(..) {
            // A worker stuck in a system call ends with the process.
            if thread.thread().name() == Some("guest-ticker") {
                let _ = thread.join();
            }
        }
    }
}

impl Shared {
    fn now_ns(&self) -> u64 {
        self.born.elapsed().as_nanos() as u64
    }

    fn push(&self, runnable: Runnable, yielded: bool) {
        if yielded {
            self.spent_waiting.fetch_add(1, Ordering::Relaxed);
            self.spent.push(runnable);
        } else {
            self.fresh_waiting.fetch_add(1, Ordering::Relaxed);
            self.fresh.push(runnable);
        }
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.idle.load(Ordering::SeqCst) > 0 {
            // Taking the lock waits for a worker that has announced its sleep but not begun it.
            drop(self.sleep.lock());
            self.wake.notify_one();
        }
    }

    fn pop(&self) -> Option<Runnable> {
        let spent_first = self.picks.fetch_add(1, Ordering::Relaxed).is_multiple_of(SPENT_FIRST_EVERY);
        let fresh = || take(&self.fresh, &self.fresh_waiting);
        let spent = || take(&self.spent, &self.spent_waiting);
        if spent_first { spent().or_else(fresh) } else { fresh().or_else(spent) }
    }

    /// The next guest, or `None` when the worker shall end.
    fn next(&self) -> Option<Runnable> {
        loop {
            if self.stop.load(Ordering::SeqCst) {
                return None;
            }
            if let Some(runnable) = self.pop() {
                return Some(runnable);
            }
            let mut guard = self.sleep.lock();
            self.idle.fetch_add(1, Ordering::SeqCst);
            std::sync::atomic::fence(Ordering::SeqCst);
            let waiting = !self.fresh.is_empty() || !self.spent.is_empty();
            if !waiting && !self.stop.load(Ordering::SeqCst) {
                self.wake.wait(&mut guard);
            }
            self.idle.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn unpark_ticker(&self) {
        if self.ticker_asleep.swap(false, Ordering::SeqCst)
            && let Some(thread) = &*self.ticker.lock()
        {
            thread.unpark();
        }
    }
}

fn take(queue: &Injector<Runnable>, waiting: &AtomicUsize) -> Option<Runnable> {
    loop {
        match queue.steal() {
            Steal::Success(runnable) => {
                waiting.fetch_sub(1, Ordering::Relaxed);
                return Some(runnable);
            }
            Steal::Empty => return None,
            Steal::Retry => {}
        }
    }
}

fn spawn_worker(shared: &Arc<Shared>) -> std::io::Result<std::thread::JoinHandle<()>> {
    let shared = shared.clone();
    std::thread::Builder::new().name("guest-worker".into()).stack_size(WORKER_STACK_BYTES).spawn(move || work(&shared))
}

/// A worker thread's life. The caller has counted it as active.
fn work(shared: &Arc<Shared>) {
    // Timers and sockets that a guest's poll creates belong to the daemon's runtime.
    let _runtime = shared.runtime.enter();
    let slot = Arc::new(Slot {
        thread_id: rustix::thread::gettid(),
        poll_began_ns: AtomicU64::new(0),
        blocked: AtomicBool::new(false),
        guest: Mutex::new(None),
    });
    SLOT.set(Some(slot.clone()));
    shared.workers.lock().slots.push(slot.clone());
    while let Some(runnable) = shared.next() {
        slot.poll_began_ns.store(shared.now_ns().max(1), Ordering::Release);
        shared.polling.fetch_add(1, Ordering::SeqCst);
        if shared.ticker_asleep.load(Ordering::SeqCst) {
            shared.unpark_ticker();
        }
        runnable.run();
        shared.polling.fetch_sub(1, Ordering::SeqCst);
        slot.poll_began_ns.store(0, Ordering::Release);
        if slot.blocked.load(Ordering::Acquire) && retire(shared, &slot) {
            return;
        }
    }
    let mut workers = shared.workers.lock();
    workers.active -= 1;
    workers.slots.retain(|s| !Arc::ptr_eq(s, &slot));
}

/// A worker that came back from a system call: it goes if it has been replaced meanwhile.
fn retire(shared: &Shared, slot: &Arc<Slot>) -> bool {
    let mut workers = shared.workers.lock();
    slot.blocked.store(false, Ordering::Release);
    if workers.active >= shared.target {
        workers.slots.retain(|s| !Arc::ptr_eq(s, slot));
        return true;
    }
    workers.active += 1;
    false
}

/// The thread that advances the epochs and looks after blocked workers.
struct Ticker {
    shared: Arc<Shared>,
    engines: Vec<Engine>,
    tick: Duration,
    blocked_after_ns: u64,
}

impl Ticker {
    fn run(self) {
        let shared = &self.shared;
        let mut idle_ticks = 0;
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
            std::thread::sleep(self.tick);
            for engine in &self.engines {
                engine.increment_epoch();
            }
            self.look_after_workers();
        }
    }

    /// Finds workers asleep in a system call of their guest and puts others in their place.
    fn look_after_workers(&self) {
        let shared = &self.shared;
        let now = shared.now_ns();
        let long = |slot: &&Arc<Slot>| {
            let began = slot.poll_began_ns.load(Ordering::Acquire);
            began != 0 && now.saturating_sub(began) > self.blocked_after_ns
        };
        let suspects: Vec<_> = shared.workers.lock().slots.iter().filter(long).cloned().collect();
        for slot in suspects {
            // A guest that computes looks up every tick, so a poll this long is in host code; if the
            // thread also sleeps there, it is in a system call. One that computes on is left alone.
            if !slot.blocked.load(Ordering::Acquire) && process::thread_sleeps(slot.thread_id) {
                self.replace(&slot);
            }
            if slot.blocked.load(Ordering::Acquire) && slot.guest.lock().as_ref().is_some_and(|g| g.is_killed()) {
                // Again at every tick, since the signal may land just before the call it shall end.
                process::interrupt_thread(slot.thread_id);
            }
        }
    }

    fn replace(&self, slot: &Slot) {
        let shared = &self.shared;
        let mut workers = shared.workers.lock();
        if slot.poll_began_ns.load(Ordering::Acquire) == 0 || slot.blocked.swap(true, Ordering::AcqRel) {
            return;
        }
        workers.active -= 1;
        if workers.slots.len() >= shared.workers_max {
            drop(workers);
            tracing::warn!(
                limit = shared.workers_max,
                "every worker is blocked in a system call; scheduler.workers_max is reached"
            );
            return;
        }
        workers.active += 1;
        drop(workers);
        if let Err(error) = spawn_worker(shared) {
            shared.workers.lock().active -= 1;
            tracing::warn!(%error, "cannot start a worker in place of a blocked one");
        }
    }
}

/// The poll wrapper: everything that holds for every guest, whatever it does.
struct Guarded<F: Future, E> {
    guest: Arc<Guest>,
    shared: Arc<Shared>,
    /// `None` once it has ended. Boxed so that it can be dropped in place, before `end` is called.
    future: Option<Pin<Box<F>>>,
    end: Option<E>,
}

impl<F: Future, E> Unpin for Guarded<F, E> {}

impl<F, E> Future for Guarded<F, E>
where
    F: Future,
    E: FnOnce(End<F::Output>),
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        this.guest.waker.register(context.waker());
        let _polling = Polling::begin(&this.guest);
        let began = thread_cpu_ns();
        this.guest.slice_began_ns.store(this.shared.now_ns(), Ordering::Relaxed);
        let polled = if this.guest.is_killed() {
            Some(End::Killed)
        } else if let Some(future) = &mut this.future {
            match std::panic::catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
                Ok(Poll::Pending) => None,
                // An interrupted system call or epoch check lets it end early: that was the kill.
                Ok(Poll::Ready(_)) if this.guest.is_killed() => Some(End::Killed),
                Ok(Poll::Ready(output)) => Some(End::Completed(output)),
                Err(panic) => Some(End::Panicked(panic_text(panic.as_ref()))),
            }
        } else {
            return Poll::Ready(());
        };
        let end = polled.map(|end| this.finish(end));
        let used = thread_cpu_ns().saturating_sub(began);
        this.guest.cpu_ns.fetch_add(used, Ordering::Relaxed);
        this.shared.metrics.guest_cpu_seconds.inc_by(used as f64 / 1e9);
        match end {
            None => Poll::Pending,
            Some(outcome) => {
                // After the charge, so that whoever learns of the end reads the whole CPU time.
                if let Some(end) = this.end.take()
                    && std::panic::catch_unwind(AssertUnwindSafe(|| end(outcome))).is_err()
                {
                    tracing::error!("the end of a guest panicked; this is a bug");
                }
                Poll::Ready(())
            }
        }
    }
}

impl<F: Future, E> Guarded<F, E> {
    /// Drops the guest: its fibre is unwound and its slot goes back to the pool.
    fn finish(&mut self, end: End<F::Output>) -> End<F::Output> {
        let future = self.future.take();
        match std::panic::catch_unwind(AssertUnwindSafe(|| drop(future))) {
            Ok(()) => end,
            Err(panic) => End::Panicked(panic_text(panic.as_ref())),
        }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic without text").to_string()
}

fn thread_cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn scheduler(runtime: &tokio::runtime::Runtime, workers: usize) -> Scheduler {
        let config = config::Scheduler { workers, ..Default::default() };
        Scheduler::start(&config, [], Arc::new(Metrics::new()), runtime.handle().clone()).unwrap()
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    }

    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn a_thousand_guests_that_sleep_all_come_to_their_end() {
        let runtime = runtime();
        let scheduler = scheduler(&runtime, 2);
        let (send, ends) = mpsc::channel();
        for i in 0..1000u64 {
            let send = send.clone();
            let future = async move {
                tokio::time::sleep(Duration::from_millis(i % 7)).await;
                i
            };
            scheduler.spawn(Arc::default(), future, move |end| send.send(end).unwrap());
        }
        let mut sum = 0;
        for _ in 0..1000 {
            match ends.recv_timeout(SOON).unwrap() {
                End::Completed(i) => sum += i,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(sum, 499_500);
        scheduler.stop();
    }

    #[test]
    fn a_kill_ends_a_guest_that_waits_and_drops_what_it_holds() {
        let runtime = runtime();
        let scheduler = scheduler(&runtime, 1);
        let (send, ends) = mpsc::channel();
        let guest = Arc::new(Guest::default());
        let held = Arc::new(());
        let theirs = held.clone();
        let future = async move {
            std::future::pending::<()>().await;
            drop(theirs);
        };
        scheduler.spawn(guest.clone(), future, move |end| send.send(matches!(end, End::Killed)).unwrap());
        guest.kill();
        assert!(ends.recv_timeout(SOON).unwrap());
        assert_eq!(Arc::strong_count(&held), 1);
        scheduler.stop();
    }

    #[test]
    fn a_panic_ends_its_own_guest_only() {
        let runtime = runtime();
        let scheduler = scheduler(&runtime, 1);
        let (send, ends) = mpsc::channel();
        let also = send.clone();
        scheduler.spawn(Arc::default(), async { panic!("boom") }, move |end: End<()>| {
            send.send(format!("{end:?}")).unwrap()
        });
        assert_eq!(ends.recv_timeout(SOON).unwrap(), "Panicked(\"boom\")");
        scheduler.spawn(Arc::default(), async {}, move |end| also.send(format!("{end:?}")).unwrap());
        assert_eq!(ends.recv_timeout(SOON).unwrap(), "Completed(())");
        scheduler.stop();
    }

    #[test]
    fn a_worker_blocked_in_a_system_call_is_replaced_and_goes_when_it_comes_back() {
        let runtime = runtime();
        let scheduler = scheduler(&runtime, 1);
        let (release, blocked_on) = mpsc::channel::<()>();
        let (send, ends) = mpsc::channel();
        let also = send.clone();
        let future = async move { blocked_on.recv().unwrap() };
        scheduler.spawn(Arc::default(), future, move |_| also.send("blocked").unwrap());
        scheduler.spawn(Arc::default(), async {}, move |_| send.send("other").unwrap());
        assert_eq!(ends.recv_timeout(SOON).unwrap(), "other", "the only worker is blocked, another takes over");
        release.send(()).unwrap();
        assert_eq!(ends.recv_timeout(SOON).unwrap(), "blocked");
        let deadline = Instant::now() + SOON;
        while scheduler.shared.workers.lock().slots.len() > 1 {
            assert!(Instant::now() < deadline, "the surplus worker never left");
            std::thread::yield_now();
        }
        scheduler.stop();
    }

    #[test]
    fn a_kill_interrupts_a_guest_inside_a_system_call() {
        let runtime = runtime();
        let scheduler = scheduler(&runtime, 1);
        let (send, ends) = mpsc::channel();
        let (reader, _writer) = std::io::pipe().unwrap();
        let guest = Arc::new(Guest::default());
        let (began, has_begun) = mpsc::channel();
        let future = async move {
            began.send(()).unwrap();
            rustix::io::read(&reader, &mut [0u8; 1]).unwrap_err()
        };
        scheduler.spawn(guest.clone(), future, move |end| send.send(format!("{end:?}")).unwrap());
        has_begun.recv_timeout(SOON).unwrap();
        guest.kill();
        assert_eq!(ends.recv_timeout(SOON).unwrap(), "Killed");
        scheduler.stop();
    }

    #[test]
    fn cpu_time_is_charged_to_the_guest_that_used_it() {
        let runtime = runtime();
        let scheduler = scheduler(&runtime, 1);
        let (send, ends) = mpsc::channel();
        let guest = Arc::new(Guest::default());
        let future = async {
            let began = thread_cpu_ns();
            while thread_cpu_ns() - began < 5_000_000 {}
        };
        scheduler.spawn(guest.clone(), future, move |_| send.send(()).unwrap());
        ends.recv_timeout(SOON).unwrap();
        assert!(guest.cpu_time() >= Duration::from_millis(5), "{:?}", guest.cpu_time());
        scheduler.stop();
    }
}
