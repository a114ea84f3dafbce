//! The guest scheduler: the threads guests run on, and one poll wrapper around every guest.
//!
//! ```text
//!   spawn / wake ──▶ fresh ──┐
//!                            ├──▶ worker: Guarded::poll ──▶ guest runs ──▶ Pending: parked in its waker
//!   slice used up ──▶ spent ─┘   ▲    │  identity, CPU time               Ready: end(outcome)
//!                                │    │
//!   woken by a part of the same ─┘    │
//!   container: kept, by that worker   │
//!                                     └─ killed? drop the guest instead
//!                                        paused, over its quota? leave it parked
//!   epochs: advance every tick, and when a guest is woken while every worker is busy; then a busy guest asks
//!           Scheduler::tick, and yields if another goes first
//!   ticker: advances the epochs; every tick it requeues the guests that a stuck worker holds, and replaces a worker that
//!           is asleep in a system call, so that a hung volume does not stall other guests
//! ```
//!
//! * `guest.rs`: the handle to kill, pause and limit a guest.
//! * `guarded.rs`: the wrapper around every poll: identity, pause, quota, kill, panics.
//! * `cpu.rs`: a guest's weight among others, and its quota (`cpu.shares`, `cpu.quota`).
//! * `meter.rs`: which container is charged for a worker's CPU time.
//! * `queue.rs`: which guest runs next.
//! * `sockets.rs`: the sockets of HTTP clients, which idle workers watch.
//! * `workers.rs`: the worker threads, and the end of a worker that was replaced.
//! * `ticker.rs`: the thread that advances the epochs and replaces workers blocked in a system call.
//!
//! Guests never run on the RPC runtime's threads and RPCs never run here. A guest that was woken goes
//! before one that used up its slice, so that a start never queues behind busy guests. The connections of an HTTP
//! component's clients and its requests' guests are parts of one container: a worker that wakes such a part runs it
//! next, without another thread, and asks the queue after two of them.
//!
//! A guest that computes is interrupted at each tick. One call of the host, or one instruction that fills or copies a
//! gigabyte, is not. A worker in such a call is replaced like one that sleeps, and its thread has the least share of the
//! CPU time until it comes back. Both count as blocked workers of the container, of which it may have a few.
//!
//! A kill is a flag and a wake-up: the wrapper sees the flag and drops the guest's future, which
//! unwinds it wherever it is: computing (it yields at the next tick), asleep or blocked on stdio (its
//! future is pending), paused. A killed guest that is inside a system call gets its thread interrupted by a
//! signal; only a call that takes no signal (a hung hard NFS mount) has to come back by itself.

mod cpu;
mod guarded;
mod guest;
mod meter;
mod queue;
mod sockets;
mod ticker;
mod workers;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_task::{ScheduleInfo, WithInfo};
use parking_lot::Mutex;
use wasmtime::{Engine, UpdateDeadline};

pub use cpu::{CpuLimits, Quota, Throttling};
use guarded::Guarded;
pub use guest::Guest;
use hearth_base::config;
use hearth_base::operator;
use hearth_observe::metrics::Metrics;
use hearth_os::{identity, process};
use queue::RunQueue;
pub use sockets::Socket;
use sockets::Sockets;
use ticker::Ticker;
pub use workers::kept_part_first;
use workers::{SchedulerState, WorkerSet, spawn_worker};

/// How often [`Scheduler::ticked`] looks at the ticker.
const LOOK_AT_TICKS: Duration = Duration::from_millis(2);

/// How a guest ended.
#[derive(Debug)]
pub enum GuestEnd<T> {
    /// Its future completed.
    Completed(T),
    /// It was killed and its future dropped.
    Killed,
    /// Host code panicked in it, or the kernel refused its identity; the text.
    Panicked(String),
}

/// Threads that run guests.
pub struct Scheduler {
    shared: Arc<SchedulerState>,
    threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
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
        identity::record_daemon()?;
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let target = if config.workers == 0 { cores } else { config.workers };
        let shared = Arc::new(SchedulerState {
            queue: RunQueue::new(config.slice_ms * 1_000_000),
            idle: AtomicUsize::new(0),
            sockets: Arc::new(Sockets::new()?),
            polling: AtomicUsize::new(0),
            workers: Mutex::new(WorkerSet::default()),
            ticker: Mutex::new(None),
            ticker_asleep: AtomicBool::new(false),
            ticks: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            born: Instant::now(),
            slice_ns: config.slice_ms * 1_000_000,
            target,
            workers_max: config.workers_max.max(target),
            metrics,
            runtime,
            engines: engines.into_iter().collect(),
        });
        let mut threads = Vec::new();
        for _ in 0..target {
            shared.workers.lock().active += 1;
            threads.push(spawn_worker(&shared)?);
        }
        let ticker = Ticker {
            shared: shared.clone(),
            tick: Duration::from_millis(config.tick_ms),
            blocked_after_ns: config.blocked_after_ms * 1_000_000,
        };
        let thread = std::thread::Builder::new().name("guest-ticker".into()).spawn(move || ticker.run())?;
        *shared.ticker.lock() = Some(thread.thread().clone());
        threads.push(thread);
        Ok(Scheduler { shared, threads: Mutex::new(threads) })
    }

    /// Runs a guest. `end` is called once, on a worker, whatever happens, by the daemon: it may open files and start
    /// threads.
    pub fn spawn<F>(&self, guest: Arc<Guest>, future: F, end: impl FnOnce(GuestEnd<F::Output>) + Send + 'static)
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.spawn_part(guest, future, move |outcome| {
            identity::restore();
            end(outcome);
        });
    }

    /// As [`Scheduler::spawn`], but the thread that calls `end` still has the guest's identity, so that it can go on to
    /// another part of the same container.
    pub fn spawn_part<F>(&self, guest: Arc<Guest>, future: F, end: impl FnOnce(GuestEnd<F::Output>) + Send + 'static)
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let (shared, of) = (self.shared.clone(), guest.clone());
        let guarded = Guarded::new(guest, shared.clone(), future, end);
        let schedule =
            WithInfo(move |runnable, info: ScheduleInfo| shared.push(runnable, &of, info.woken_while_running));
        let (runnable, task) = async_task::spawn(guarded, schedule);
        task.detach();
        runnable.schedule();
    }

    /// A connected stream, not blocking, that idle workers watch, for futures that the scheduler runs.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    pub fn socket(&self, stream: std::net::TcpStream) -> std::io::Result<Socket> {
        self.shared.sockets.add(stream)
    }

    /// The epoch callback of this guest's store: whether it goes on, yields or ends.
    pub fn tick(&self, guest: &Arc<Guest>) -> impl FnMut() -> wasmtime::Result<UpdateDeadline> + Send + Sync + use<> {
        let (shared, guest) = (self.shared.clone(), guest.clone());
        move || {
            if guest.is_killed() {
                wasmtime::bail!("killed");
            }
            let now = shared.now_ns();
            let gives_way = || {
                guest.slice_tick.load(Ordering::Relaxed) != shared.ticks.load(Ordering::Relaxed)
                    || now >= guest.gives_way_ns.load(Ordering::Relaxed)
            };
            // A woken guest goes first; computing guests take turns slice by slice.
            if guest.is_paused()
                || (shared.queue.has_fresh() && gives_way())
                || now >= guest.slice_ends_ns.load(Ordering::Relaxed)
            {
                Ok(UpdateDeadline::Yield(1))
            } else {
                Ok(UpdateDeadline::Continue(1))
            }
        }
    }

    /// Waits for the ticker's next round, and wakes it if it sleeps: proves that it runs.
    pub async fn ticked(&self) {
        let before = self.shared.ticks.load(Ordering::Relaxed);
        while self.shared.ticks.load(Ordering::Relaxed) == before {
            self.shared.unpark_ticker();
            tokio::time::sleep(LOOK_AT_TICKS).await;
        }
    }

    /// How many workers run, are blocked and are idle, and how many guests wait.
    pub fn usage(&self) -> operator::Workers {
        let shared = &self.shared;
        let workers = shared.workers.lock();
        let blocked = workers.slots.iter().filter(|s| s.blocked.load(Ordering::Relaxed)).count();
        let polling = workers.slots.iter().filter(|s| s.poll_began_ns.load(Ordering::Relaxed) != 0).count();
        let total = workers.slots.len();
        drop(workers);
        operator::Workers {
            idle: total.saturating_sub(polling) as u64,
            running: polling.saturating_sub(blocked) as u64,
            blocked: blocked as u64,
            run_queue: shared.queue.waiting() as u64,
        }
    }

    /// Brings the gauges up to date; called before a scrape.
    pub fn observe(&self) {
        let (metrics, now) = (&self.shared.metrics, self.usage());
        metrics.scheduler.run_queue.set(now.run_queue as i64);
        for (state, count) in [("blocked", now.blocked), ("running", now.running), ("idle", now.idle)] {
            metrics.scheduler.workers.with_label_values(&[state]).set(count as i64);
        }
    }

    /// Ends the threads that are not stuck in a system call. Guests still queued are dropped with the
    /// queues.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.sockets.wake();
        self.shared.unpark_ticker();
        for thread in self.threads.lock().drain(..) {
            // A worker stuck in a system call ends with the process.
            if thread.thread().name() == Some("guest-ticker") {
                let _ = thread.join();
            }
        }
    }
}

#[cfg(test)]
mod tests;
