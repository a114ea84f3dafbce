//! Task events to containerd: in order, tried again until taken, and bounded without dropping any.
//!
//! ```text
//!  RPC threads ─┐ Reservation::publish          publisher, one task
//!  workers     ─┴─► [ queue, first in first out ] ─► Events/Forward on TTRPC_ADDRESS
//!                     ▲ room is reserved before a task exists, given back when containerd took the event
//! ```
//!
//! The publisher wakes at once for an event that clients wait for, an end above all. For the events of a start it wakes
//! a millisecond later: the caller has its answer already, and two threads that wake up during a start, here and in
//! containerd, would compete with it for the processor.
//!
//! Each containerd has one queue. Its order is the order of the calls of [`Reservation::publish`]. One delivery is
//! under way at a time, because containerd serves the requests of one connection concurrently.
//!
//! Failures:
//! * containerd is away, restarts, hangs or answers nonsense: the event stays first and is tried again, on a new
//!   connection, with a doubling pause. It may arrive twice, if the answer was lost; it is never lost and never out of
//!   order.
//! * containerd refuses the event for good: it is logged, counted and left out. `after` alone decides whether an error
//!   means that.
//! * The queue is full, because containerd has been away for long: [`EventQueue::reserve`] refuses new tasks. Live tasks
//!   have their room and lose no event.
//!
//! * `message.rs`: each event with its topic and its message.

mod message;

use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use crossbeam_deque::{Injector, Steal};
use parking_lot::Mutex;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::time::Instant;
use ttrpc::Code;
use ttrpc::proto::MESSAGE_LENGTH_MAX;

use crate::peer::socket_path;
use hearth_base::config::{self, EVENTS_PER_TASK};
use hearth_base::error::{Error, Result};
use hearth_base::namespace::ContainerdNamespace;
use hearth_observe::metrics::Metrics;
use hearth_os::coarse_timer::{self, CoarseTimer};

use crate::time::timestamp;
pub use message::{Create, Event};

/// The most events of an exec: added, started, exit.
pub const EVENTS_PER_EXEC: usize = 3;
/// The events of one pause and the resume that ends it.
pub const EVENTS_PER_PAUSE: usize = 2;

/// The largest [`ForwardRequest`], in bytes: a ttrpc message less what its own envelope adds
/// (service, method, time-out and field headers).
const REQUEST_BYTES_MAX: u64 = MESSAGE_LENGTH_MAX as u64 - 256;

/// The events of one containerd instance. Dropping it ends the publisher once the queue is empty.
pub struct EventQueue {
    shared: Arc<Shared>,
}

/// Room for some events, held by the task (or exec) that will publish them.
///
/// Each event moves room from here into the queue. The rest is given back on drop.
pub struct Reservation {
    queue: Arc<EventQueue>,
    left: AtomicUsize,
}

/// The state that the queue's handles and its publisher share.
struct Shared {
    /// containerd's ttrpc socket, without a scheme.
    address: String,
    config: config::Events,
    metrics: Arc<Metrics>,
    waiting: Injector<Queued>,
    /// Events in `waiting` and under delivery.
    queued: AtomicUsize,
    /// `queued` and the room that reservations still hold; at most `config.queue_max`.
    room_taken: AtomicUsize,
    /// Wakes the publisher.
    wake: Notify,
    /// Wakes the publisher a little later.
    later: CoarseTimer,
    /// Wakes the callers that wait for `queued` to be 0.
    emptied: Notify,
    /// No event will come any more.
    closed: AtomicBool,
    /// Why the last delivery failed; none if it succeeded.
    trouble: Mutex<Option<String>>,
}

/// An event in the queue. It is encoded only when its turn comes, off its publisher's path.
struct Queued {
    at: SystemTime,
    namespace: ContainerdNamespace,
    event: Event,
}

impl EventQueue {
    /// A queue to the containerd whose ttrpc socket (the shim's `TTRPC_ADDRESS`) is `address`, with
    /// or without `unix://`. The first delivery dials the socket.
    pub fn new(
        address: &str,
        config: &config::Events,
        metrics: Arc<Metrics>,
        runtime: &tokio::runtime::Handle,
    ) -> Arc<EventQueue> {
        let shared = Arc::new(Shared {
            address: socket_path(address).to_owned(),
            config: config.clone(),
            metrics,
            waiting: Injector::new(),
            queued: AtomicUsize::new(0),
            room_taken: AtomicUsize::new(0),
            wake: Notify::new(),
            later: CoarseTimer::new(),
            emptied: Notify::new(),
            closed: AtomicBool::new(false),
            trouble: Mutex::new(None),
        });
        let publisher = shared.clone();
        runtime.spawn(async move {
            let timer = publisher.later.watched();
            Publisher { shared: publisher, client: None, timer }.run().await;
        });
        Arc::new(EventQueue { shared })
    }

    /// Takes room for all events of a task's init process; the task holds it for its life.
    ///
    /// # Errors
    /// [`Error::ResourceExhausted`] if they would not fit.
    pub fn reserve(self: &Arc<Self>) -> Result<Reservation> {
        self.reserve_events(EVENTS_PER_TASK)
    }

    /// Takes room for all events of an exec.
    ///
    /// # Errors
    /// As [`EventQueue::reserve`].
    pub fn reserve_exec(self: &Arc<Self>) -> Result<Reservation> {
        self.reserve_events(EVENTS_PER_EXEC)
    }

    /// Takes room for a pause and the resume that ends it.
    ///
    /// # Errors
    /// As [`EventQueue::reserve`].
    pub fn reserve_pause(self: &Arc<Self>) -> Result<Reservation> {
        self.reserve_events(EVENTS_PER_PAUSE)
    }

    fn reserve_events(self: &Arc<Self>, events: usize) -> Result<Reservation> {
        let max = self.shared.config.queue_max;
        self.shared
            .room_taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
                taken.checked_add(events).filter(|sum| *sum <= max)
            })
            .map_err(|_| self.shared.full())?;
        Ok(Reservation { queue: self.clone(), left: AtomicUsize::new(events) })
    }

    /// Events that containerd has not taken yet.
    pub fn queued(&self) -> usize {
        self.shared.queued.load(Ordering::Acquire)
    }

    /// Waits until containerd has taken every event, for a clean shutdown.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if some are left at `deadline`.
    pub async fn flushed(&self, deadline: Instant) -> Result<()> {
        loop {
            let mut emptied = pin!(self.shared.emptied.notified());
            // Enlisted before the count is read, so that an emptying in between is not missed.
            emptied.as_mut().enable();
            let left = self.queued();
            if left == 0 {
                return Ok(());
            }
            if tokio::time::timeout_at(deadline, emptied).await.is_err() {
                return Err(Error::Unavailable(format!("{left} task events are not delivered: {}", self.shared.why())));
            }
        }
    }
}

impl Drop for EventQueue {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        self.shared.wake.notify_one();
    }
}

impl Reservation {
    /// Takes room in the same queue for a pause and the resume that ends it.
    ///
    /// # Errors
    /// As [`EventQueue::reserve`].
    pub fn reserve_pause(&self) -> Result<Reservation> {
        self.queue.reserve_pause()
    }

    /// Queues an event. Never blocks on containerd, never fails; any thread may call it.
    ///
    /// An event beyond the reservation is queued, too, since a miscount must not lose an exit. It takes room from later
    /// tasks.
    pub fn publish(&self, namespace: &ContainerdNamespace, event: Event) {
        let shared = &self.queue.shared;
        let within = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if within.is_err() {
            shared.room_taken.fetch_add(1, Ordering::Relaxed);
        }
        // Counted before it is visible, so that the queue never looks empty with the event inside.
        shared.queued.fetch_add(1, Ordering::AcqRel);
        shared.metrics.events.queued.inc();
        let can_wait = event.can_wait();
        shared.waiting.push(Queued { at: SystemTime::now(), namespace: namespace.clone(), event });
        if can_wait && shared.later.is_set() {
            return;
        }
        // While the publisher is busy this is one atomic operation; it then reads the queue again by itself.
        shared.wake.notify_one();
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.queue.shared.room_taken.fetch_sub(*self.left.get_mut(), Ordering::Relaxed);
    }
}

impl Shared {
    /// Why there is no room, and what to do.
    fn full(&self) -> Error {
        let queued = self.queued.load(Ordering::Acquire);
        let reserved = self.room_taken.load(Ordering::Relaxed).saturating_sub(queued);
        let max = self.config.queue_max;
        Error::ResourceExhausted(format!(
            "no room for the events of another task: {queued} wait for containerd and {reserved} \
             are reserved by live tasks, of events.queue_max = {max}; {}",
            self.why()
        ))
    }

    /// Why events wait, and what to do.
    fn why(&self) -> String {
        match &*self.trouble.lock() {
            Some(error) => {
                format!("containerd at {} takes no events ({error}): is it running?", self.address)
            }
            None => format!("containerd at {} takes events: try again, or raise events.queue_max", self.address),
        }
    }
}

/// Delivers the queue's events, one at a time.
struct Publisher {
    shared: Arc<Shared>,
    /// The connection in use; none before the first event and after a failure.
    client: Option<EventsClient>,
    /// See [`CoarseTimer`].
    timer: Option<AsyncFd<OwnedFd>>,
}

/// The treatment of an event after a failed delivery.
#[derive(Debug, PartialEq, Eq)]
enum AfterFailure {
    /// Keep it and try again.
    Retry,
    /// containerd will never take it.
    Refused,
}

/// Decides whether an event that failed so is tried again.
///
/// containerd refuses an event for good only as an invalid argument, for its namespace, topic or timestamp
/// (core/events/exchange/exchange.go, `validateEnvelope`). Any other error is about containerd's state, or does not come
/// from containerd, and may pass. That includes UNIMPLEMENTED: another program on that socket answers it, and so does a
/// containerd whose events service is not up.
fn after(error: &ttrpc::Error) -> AfterFailure {
    match error {
        ttrpc::Error::RpcStatus(status) => match status.code() {
            Code::INVALID_ARGUMENT => AfterFailure::Refused,
            Code::OK
            | Code::CANCELLED
            | Code::UNKNOWN
            | Code::DEADLINE_EXCEEDED
            | Code::NOT_FOUND
            | Code::ALREADY_EXISTS
            | Code::PERMISSION_DENIED
            | Code::UNAUTHENTICATED
            | Code::RESOURCE_EXHAUSTED
            | Code::FAILED_PRECONDITION
            | Code::ABORTED
            | Code::OUT_OF_RANGE
            | Code::UNIMPLEMENTED
            | Code::INTERNAL
            | Code::UNAVAILABLE
            | Code::DATA_LOSS => AfterFailure::Retry,
        },
        ttrpc::Error::Socket(_)
        | ttrpc::Error::Nix(_)
        | ttrpc::Error::LocalClosed
        | ttrpc::Error::RemoteClosed
        | ttrpc::Error::Eof
        | ttrpc::Error::Others(_) => AfterFailure::Retry,
    }
}

/// A ttrpc error in one line.
fn text(error: &ttrpc::Error) -> String {
    match error {
        ttrpc::Error::RpcStatus(status) => format!("{:?}: {}", status.code(), status.message()),
        other => other.to_string(),
    }
}

impl Publisher {
    async fn run(mut self) {
        while let Some(queued) = self.next().await {
            self.deliver(queued).await;
            let shared = &self.shared;
            shared.metrics.events.queued.dec();
            shared.room_taken.fetch_sub(1, Ordering::Relaxed);
            if shared.queued.fetch_sub(1, Ordering::AcqRel) == 1 {
                shared.emptied.notify_waiters();
            }
        }
    }

    /// The first event; none if the queue is empty and closed.
    async fn next(&self) -> Option<Queued> {
        loop {
            // Before the queue is read: an event that is published from now on sets the timer again.
            self.shared.later.passed();
            // Read before the queue, so that an event published before the close is seen below.
            let closed = self.shared.closed.load(Ordering::Acquire);
            match self.shared.waiting.steal() {
                Steal::Success(queued) => return Some(queued),
                Steal::Retry => {}
                Steal::Empty if closed => return None,
                Steal::Empty => {
                    tokio::select! {
                        () = self.shared.wake.notified() => {}
                        () = coarse_timer::wait(self.timer.as_ref()) => {}
                    }
                }
            }
        }
    }

    /// Delivers one event. Returns when containerd has taken or refused it.
    async fn deliver(&mut self, queued: Queued) {
        let Queued { at, namespace, event } = queued;
        let request = ForwardRequest {
            envelope: MessageField::some(Envelope {
                timestamp: timestamp(at),
                namespace: namespace.to_string(),
                topic: event.topic().to_string(),
                event: MessageField::some(event.encode()),
                ..Default::default()
            }),
            ..Default::default()
        };
        let refused = |error: &str| {
            self.shared.metrics.events.refused.inc();
            tracing::error!(
                address = self.shared.address,
                namespace = &*namespace,
                task = event.container_id(),
                topic = event.topic(),
                error,
                "containerd will never take this event: left out"
            );
        };
        // ttrpc reports a message that is too large like a broken connection, so the size is checked first.
        if request.compute_size() > REQUEST_BYTES_MAX {
            return refused("larger than a ttrpc message may be");
        }
        let mut pause = Duration::from_millis(self.shared.config.retry_ms);
        let pause_max = Duration::from_millis(self.shared.config.retry_max_ms);
        loop {
            let Err(error) = Self::forward(&self.shared, &mut self.client, &request).await else {
                self.shared.metrics.events.sent.inc();
                return self.shared.recovered();
            };
            match after(&error) {
                AfterFailure::Refused => return refused(&text(&error)),
                AfterFailure::Retry => {}
            }
            // After any failure the next try has a new connection.
            self.client = None;
            self.shared.failed(text(&error));
            self.shared.metrics.events.retried.inc();
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(pause_max);
        }
    }

    /// One try, connecting first if need be.
    async fn forward(
        shared: &Shared,
        client: &mut Option<EventsClient>,
        request: &ForwardRequest,
    ) -> ttrpc::Result<()> {
        let timeout = Duration::from_millis(shared.config.timeout_ms);
        let attempt = async {
            let client = match client {
                Some(client) => client,
                None => client.insert(connect(&shared.address).await?),
            };
            client.forward(ttrpc::context::with_duration(timeout), request).await
        };
        match tokio::time::timeout(timeout, attempt).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error),
            Err(_) => {
                Err(ttrpc::Error::Others(format!("no answer within events.timeout_ms = {}", shared.config.timeout_ms)))
            }
        }
    }
}

impl Shared {
    /// Records a failed delivery; logs only the first in a row.
    fn failed(&self, error: String) {
        let mut trouble = self.trouble.lock();
        if trouble.is_none() {
            tracing::warn!(address = self.address, error, "containerd takes no events: kept, and tried again");
        }
        *trouble = Some(error);
    }

    /// Records a delivery; logs only the first after a failure.
    fn recovered(&self) {
        if self.trouble.lock().take().is_some() {
            tracing::info!(address = self.address, "containerd takes events again");
        }
    }
}

/// Dials containerd. ttrpc's own connect would block a thread of the runtime while the socket's
/// backlog is full.
async fn connect(address: &str) -> ttrpc::Result<EventsClient> {
    let stream =
        UnixStream::connect(address).await.map_err(|error| ttrpc::Error::Socket(format!("cannot connect: {error}")))?;
    Ok(EventsClient::new(Client::new(stream.into())))
}

#[cfg(test)]
mod tests;
