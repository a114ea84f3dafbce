//! Task events to containerd: in order, tried again until taken, and bounded without dropping any.
//!
//! ```text
//!  RPC threads ─┐ Reservation::publish          publisher, one task
//!  workers     ─┴─► [ queue, first in first out ] ─► Events/Forward on TTRPC_ADDRESS
//!                     ▲ room is reserved before a task exists, given back when containerd took the event
//! ```
//!
//! The publisher is woken at once for what somebody waits for, an end above all, and a millisecond later for
//! the news of a start: its caller has the answer already, and two threads that wake up beside a start, here
//! and in containerd, would take the processor from it.
//!
//! There is one queue per containerd instance. Its order is the order of the calls of
//! [`Reservation::publish`]; one delivery is under way at a time, because containerd serves the
//! requests of one connection concurrently and would otherwise mix them.
//!
//! When it goes wrong:
//! * containerd is away, restarts, hangs or answers nonsense: the event stays first and is tried
//!   again, on a new connection, with a doubling pause. It may arrive twice (the answer was lost),
//!   never out of order, never not at all.
//! * containerd says that it will never take this event: it is logged, counted and left. What counts
//!   as that is decided in `verdict` alone.
//! * The queue is full, because containerd has been away for long: new tasks are refused in
//!   [`EventQueue::reserve`]; those that live have their room and lose nothing.

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

use hearth_base::config::{self, EVENTS_PER_TASK};
use hearth_base::error::{Error, Result};
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
/// Room moves from here into the queue with each event; what is left is given back on drop.
pub struct Reservation {
    queue: Arc<EventQueue>,
    left: AtomicUsize,
}

/// What the queue's handles and its publisher share.
struct Shared {
    /// containerd's ttrpc socket, without a scheme.
    address: String,
    config: config::Events,
    metrics: Arc<Metrics>,
    waiting: Injector<Queued>,
    /// Events in `waiting` and under delivery.
    queued: AtomicUsize,
    /// `queued` and what reservations still hold; at most `config.queue_max`.
    room_taken: AtomicUsize,
    /// Wakes the publisher.
    wake: Notify,
    /// Wakes it a little later.
    later: CoarseTimer,
    /// Wakes those who wait for `queued` to be 0.
    emptied: Notify,
    /// No event will come any more.
    closed: AtomicBool,
    /// Why the last delivery failed; none if it did not.
    trouble: Mutex<Option<String>>,
}

/// An event in the queue. It is encoded only when its turn comes, off its publisher's path.
struct Queued {
    at: SystemTime,
    namespace: Arc<str>,
    event: Event,
}

impl EventQueue {
    /// A queue to the containerd whose ttrpc socket (the shim's `TTRPC_ADDRESS`) is `address`, with
    /// or without `unix://`. The socket is dialled when there is something to deliver.
    pub fn new(
        address: &str,
        config: &config::Events,
        metrics: Arc<Metrics>,
        runtime: &tokio::runtime::Handle,
    ) -> Arc<EventQueue> {
        let shared = Arc::new(Shared {
            address: address.strip_prefix("unix://").unwrap_or(address).to_string(),
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
    /// An event more than was reserved is queued all the same, since an exit must not be lost to a
    /// miscount; it then takes room from the tasks to come.
    pub fn publish(&self, namespace: &Arc<str>, event: Event) {
        let shared = &self.queue.shared;
        let within = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if within.is_err() {
            shared.room_taken.fetch_add(1, Ordering::Relaxed);
        }
        // Counted before it can be seen, so that nobody finds the queue empty with it inside.
        shared.queued.fetch_add(1, Ordering::AcqRel);
        shared.metrics.events.queued.inc();
        let can_wait = event.can_wait();
        shared.waiting.push(Queued { at: SystemTime::now(), namespace: namespace.clone(), event });
        if can_wait && shared.later.is_set() {
            return;
        }
        // While the publisher is busy this is one atomic operation, and it looks again by itself.
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

/// What to do with an event after a failed delivery.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Keep it and try again.
    Retry,
    /// containerd will never take it.
    Refused,
}

/// Decides whether an event that failed so is tried again.
///
/// containerd refuses an event for good only as an invalid argument: its namespace, topic or
/// timestamp (core/events/exchange/exchange.go, `validateEnvelope`). Everything else is about
/// containerd's state, or not from containerd, and may pass: UNIMPLEMENTED too, which is what
/// another program on that socket says, or a containerd whose events service is not up.
fn verdict(error: &ttrpc::Error) -> Verdict {
    match error {
        ttrpc::Error::RpcStatus(status) => match status.code() {
            Code::INVALID_ARGUMENT => Verdict::Refused,
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
            | Code::DATA_LOSS => Verdict::Retry,
        },
        ttrpc::Error::Socket(_)
        | ttrpc::Error::Nix(_)
        | ttrpc::Error::LocalClosed
        | ttrpc::Error::RemoteClosed
        | ttrpc::Error::Eof
        | ttrpc::Error::Others(_) => Verdict::Retry,
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

    /// The first event; none if the queue is empty and nobody can publish any more.
    async fn next(&self) -> Option<Queued> {
        loop {
            // Before the queue is read: what is published from now on sets it again.
            self.shared.later.passed();
            // Read before the queue: what was published before the close is then seen below.
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

    /// Delivers one event, however long that takes.
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
        // ttrpc tells this one like a broken connection, so it is asked first.
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
            match verdict(&error) {
                Verdict::Refused => return refused(&text(&error)),
                Verdict::Retry => {}
            }
            // Whatever it was, a new connection is the better bet.
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
    /// Notes a failed delivery; logs only the first of a row.
    fn failed(&self, error: String) {
        let mut trouble = self.trouble.lock();
        if trouble.is_none() {
            tracing::warn!(address = self.address, error, "containerd takes no events: kept, and tried again");
        }
        *trouble = Some(error);
    }

    /// Notes a delivery; logs only the first after a failure.
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
mod tests {
    use std::collections::HashMap;
    use std::os::unix::net::UnixListener;
    use std::path::{Path, PathBuf};

    use std::time::UNIX_EPOCH;

    use async_trait::async_trait;
    use containerd_shim_protos::api::Mount;
    use containerd_shim_protos::events::task as messages;
    use containerd_shim_protos::protobuf::well_known_types::empty::Empty;
    use containerd_shim_protos::shim_async::{Events, create_events};
    use serde_json::json;
    use tempfile::TempDir;
    use ttrpc::r#async::{Server, TtrpcContext};

    use super::*;
    use crate::client::tests::{NAMESPACE, PrivateContainerd};

    /// Long enough for a busy machine; nothing waits for it that goes well.
    const PATIENCE: Duration = Duration::from_secs(30);

    /// What the server does with an event.
    enum Answer {
        Take,
        /// Takes it, but the answer never comes.
        TakeSilently,
        Status(Code),
    }

    type Script = dyn Fn(&Envelope) -> Answer + Send + Sync;

    struct Recorder {
        script: Box<Script>,
        received: Mutex<Vec<Envelope>>,
        silent: Notify,
    }

    #[async_trait]
    impl Events for Recorder {
        async fn forward(&self, _: &TtrpcContext, mut request: ForwardRequest) -> ttrpc::Result<Empty> {
            let envelope = request.envelope.take().unwrap();
            let answer = (self.script)(&envelope);
            if let Answer::Status(code) = answer {
                return Err(ttrpc::Error::RpcStatus(ttrpc::get_status(code, "scripted")));
            }
            self.received.lock().push(envelope);
            if let Answer::TakeSilently = answer {
                self.silent.notify_one();
                std::future::pending::<()>().await;
            }
            Ok(Empty::new())
        }
    }

    /// A containerd's events service, in a runtime of its own: dropping it is its sudden death.
    struct FakeContainerd {
        recorder: Arc<Recorder>,
        runtime: Option<tokio::runtime::Runtime>,
        path: PathBuf,
        _server: Server,
    }

    impl FakeContainerd {
        fn start(path: &Path, script: impl Fn(&Envelope) -> Answer + Send + Sync + 'static) -> FakeContainerd {
            let recorder =
                Arc::new(Recorder { script: Box::new(script), received: Mutex::default(), silent: Notify::new() });
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            let service = create_events(recorder.clone());
            let address = format!("unix://{}", path.display());
            // On a thread of its own, because the caller is inside another runtime.
            let server = std::thread::scope(|scope| {
                let start = async {
                    let mut server = Server::new().bind(&address).unwrap().register_service(service);
                    server.start().await.unwrap();
                    server
                };
                scope.spawn(|| runtime.block_on(start)).join().unwrap()
            });
            FakeContainerd { recorder, runtime: Some(runtime), path: path.to_path_buf(), _server: server }
        }

        /// The pids of the start events received, in order: the tests count with them.
        fn pids(&self) -> Vec<u32> {
            let received = self.recorder.received.lock();
            received.iter().map(|e| start_of(e).pid).collect()
        }
    }

    impl Drop for FakeContainerd {
        fn drop(&mut self) {
            self.runtime.take().unwrap().shutdown_background();
            std::fs::remove_file(&self.path).unwrap();
        }
    }

    fn start_of(envelope: &Envelope) -> messages::TaskStart {
        messages::TaskStart::parse_from_bytes(&envelope.event.value).unwrap()
    }

    fn start(id: &str, pid: u32) -> Event {
        Event::Start { container_id: id.into(), pid }
    }

    struct Fixture {
        directory: TempDir,
        metrics: Arc<Metrics>,
        queue: Arc<EventQueue>,
        namespace: Arc<str>,
    }

    impl Fixture {
        fn new(config: config::Events) -> Fixture {
            let directory = tempfile::tempdir().unwrap();
            let metrics = Arc::new(Metrics::new());
            let address = format!("unix://{}", directory.path().join("ttrpc").display());
            let runtime = tokio::runtime::Handle::current();
            let queue = EventQueue::new(&address, &config, metrics.clone(), &runtime);
            Fixture { directory, metrics, queue, namespace: "k8s.io".into() }
        }

        fn path(&self) -> PathBuf {
            self.directory.path().join("ttrpc")
        }

        /// Publishes start events with these pids.
        fn publish(&self, pids: impl IntoIterator<Item = u32>) {
            for pid in pids {
                let reservation = self.queue.reserve().unwrap();
                reservation.publish(&self.namespace, start("a", pid));
            }
        }

        async fn flushed(&self) {
            self.queue.flushed(Instant::now() + PATIENCE).await.unwrap();
        }

        async fn retried(&self, times: u64) {
            retried(&self.metrics, times).await;
        }
    }

    async fn retried(metrics: &Metrics, times: u64) {
        let deadline = Instant::now() + PATIENCE;
        while metrics.events.retried.get() < times {
            assert!(Instant::now() < deadline, "not tried again");
            tokio::task::yield_now().await;
        }
    }

    fn quick() -> config::Events {
        config::Events { queue_max: 100_000, retry_ms: 1, retry_max_ms: 20, timeout_ms: 5_000 }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn each_event_arrives_as_containerd_names_it() {
        let fixture = Fixture::new(quick());
        let containerd = FakeContainerd::start(&fixture.path(), |_| Answer::Take);
        let id: Arc<str> = "task".into();
        let exec: Arc<str> = "exec".into();
        let exited_at = UNIX_EPOCH + Duration::new(1_700_000_000, 5);
        let create = Create {
            container_id: id.clone(),
            bundle: "/bundle".into(),
            rootfs: vec![Mount { type_: "overlay".into(), ..Default::default() }],
            stdin: "in".into(),
            stdout: "out".into(),
            stderr: "err".into(),
            terminal: true,
            checkpoint: "check".into(),
            pid: 7,
        };
        let container_id = || id.clone();
        let events = [
            (Event::Create(Box::new(create)), "/tasks/create", "TaskCreate"),
            (Event::Start { container_id: id.clone(), pid: 7 }, "/tasks/start", "TaskStart"),
            (Event::Oom { container_id: container_id() }, "/tasks/oom", "TaskOOM"),
            (
                Event::Exit { container_id: container_id(), id: exec.clone(), pid: 7, exit_status: 137, exited_at },
                "/tasks/exit",
                "TaskExit",
            ),
            (
                Event::Delete { container_id: container_id(), pid: 7, exit_status: 137, exited_at },
                "/tasks/delete",
                "TaskDelete",
            ),
            (
                Event::ExecAdded { container_id: container_id(), exec_id: exec.clone() },
                "/tasks/exec-added",
                "TaskExecAdded",
            ),
            (
                Event::ExecStarted { container_id: container_id(), exec_id: exec.clone(), pid: 8 },
                "/tasks/exec-started",
                "TaskExecStarted",
            ),
            (Event::Paused { container_id: container_id() }, "/tasks/paused", "TaskPaused"),
            (Event::Resumed { container_id: container_id() }, "/tasks/resumed", "TaskResumed"),
        ];
        let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        for (event, _, _) in &events {
            fixture.queue.reserve().unwrap().publish(&fixture.namespace, event.clone());
        }
        fixture.flushed().await;

        let received = containerd.recorder.received.lock();
        assert_eq!(received.len(), events.len());
        for (envelope, (event, topic, name)) in received.iter().zip(&events) {
            assert_eq!(envelope.topic, *topic);
            assert_eq!(envelope.namespace, "k8s.io");
            assert_eq!(envelope.event.type_url, format!("containerd.events.{name}"));
            assert!((before..before + 60).contains(&envelope.timestamp.seconds));
            assert_eq!(event.container_id(), "task");
        }
        let create = messages::TaskCreate::parse_from_bytes(&received[0].event.value).unwrap();
        assert_eq!((create.container_id.as_str(), create.bundle.as_str()), ("task", "/bundle"));
        assert_eq!((create.pid, create.checkpoint.as_str()), (7, "check"));
        assert_eq!(create.rootfs[0].type_, "overlay");
        assert_eq!((create.io.stdin.as_str(), create.io.stdout.as_str()), ("in", "out"));
        assert_eq!((create.io.stderr.as_str(), create.io.terminal), ("err", true));
        let exit = messages::TaskExit::parse_from_bytes(&received[3].event.value).unwrap();
        assert_eq!((exit.container_id.as_str(), exit.id.as_str()), ("task", "exec"));
        assert_eq!((exit.pid, exit.exit_status), (7, 137));
        assert_eq!((exit.exited_at.seconds, exit.exited_at.nanos), (1_700_000_000, 5));
        let delete = messages::TaskDelete::parse_from_bytes(&received[4].event.value).unwrap();
        assert_eq!((delete.id.as_str(), delete.pid, delete.exit_status), ("", 7, 137));
        assert_eq!(delete.exited_at, exit.exited_at);
        let exec = messages::TaskExecStarted::parse_from_bytes(&received[6].event.value).unwrap();
        assert_eq!((exec.exec_id.as_str(), exec.pid), ("exec", 8));
        assert_eq!(fixture.metrics.events.sent.get(), events.len() as u64);
        assert_eq!(fixture.metrics.events.queued.get(), 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_order_of_each_thread_is_kept() {
        let fixture = Fixture::new(quick());
        let containerd = FakeContainerd::start(&fixture.path(), |_| Answer::Take);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (queue, namespace) = (&fixture.queue, &fixture.namespace);
                scope.spawn(move || {
                    let id = thread.to_string();
                    for pid in 0..500 {
                        queue.reserve().unwrap().publish(namespace, start(&id, pid));
                    }
                });
            }
        });
        fixture.flushed().await;
        let mut next: HashMap<String, u32> = HashMap::new();
        for envelope in containerd.recorder.received.lock().iter() {
            let event = start_of(envelope);
            let expected = next.entry(event.container_id).or_default();
            assert_eq!(event.pid, *expected);
            *expected += 1;
        }
        assert_eq!(next.into_values().collect::<Vec<_>>(), [500; 4]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn events_wait_for_a_containerd_that_comes_later() {
        let fixture = Fixture::new(quick());
        fixture.publish(0..100);
        fixture.retried(2).await;
        assert_eq!(fixture.queue.queued(), 100);
        assert_eq!(fixture.metrics.events.queued.get(), 100);
        let containerd = FakeContainerd::start(&fixture.path(), |_| Answer::Take);
        fixture.flushed().await;
        assert_eq!(containerd.pids(), (0..100).collect::<Vec<_>>());
        assert_eq!(fixture.metrics.events.sent.get(), 100);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_containerd_killed_in_the_middle_misses_nothing() {
        let fixture = Fixture::new(quick());
        // It dies with the twentieth taken and not yet answered.
        let first = FakeContainerd::start(&fixture.path(), |envelope| {
            if start_of(envelope).pid == 20 { Answer::TakeSilently } else { Answer::Take }
        });
        fixture.publish(0..50);
        first.recorder.silent.notified().await;
        let seen = first.pids();
        drop(first);
        fixture.publish(50..100);
        fixture.retried(1).await;
        let second = FakeContainerd::start(&fixture.path(), |_| Answer::Take);
        fixture.flushed().await;
        assert_eq!(seen, (0..=20).collect::<Vec<_>>());
        assert_eq!(second.pids(), (20..100).collect::<Vec<_>>());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_containerd_that_never_answers_is_timed_out_and_tried_again() {
        let fixture = Fixture::new(config::Events { timeout_ms: 50, ..quick() });
        // The kernel accepts for it; nobody reads.
        let hung = UnixListener::bind(fixture.path()).unwrap();
        fixture.publish(0..3);
        fixture.retried(2).await;
        let error = fixture.queue.flushed(Instant::now()).await.unwrap_err().to_string();
        assert!(error.starts_with("3 task events are not delivered"), "{error}");
        // Whose clock strikes first, ttrpc's or ours, is open.
        assert!(error.contains("deadline elapsed") || error.contains("timeout_ms = 50"), "{error}");
        drop(hung);
        std::fs::remove_file(fixture.path()).unwrap();
        let containerd = FakeContainerd::start(&fixture.path(), |_| Answer::Take);
        fixture.flushed().await;
        assert_eq!(containerd.pids(), [0, 1, 2]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_task_is_refused_while_its_events_would_not_fit() {
        let queue_max = 2 * EVENTS_PER_TASK + 1;
        let fixture = Fixture::new(config::Events { queue_max, ..quick() });
        let first = fixture.queue.reserve().unwrap();
        let second = fixture.queue.reserve().unwrap();
        first.publish(&fixture.namespace, start("a", 0));
        fixture.retried(1).await;
        let Err(error) = fixture.queue.reserve() else { panic!("took more than it has") };
        assert_eq!(error.code(), Code::RESOURCE_EXHAUSTED);
        let text = error.to_string();
        let want = format!("1 wait for containerd and 9 are reserved by live tasks, of events.queue_max = {queue_max}");
        assert!(text.contains(&want), "{text}");
        assert!(text.contains("takes no events (") && text.contains("No such file"), "{text}");

        // What the first task did not use comes back at once, what it published when delivered.
        drop(first);
        let exec = fixture.queue.reserve_exec().unwrap();
        drop(fixture.queue.reserve_pause().unwrap());
        assert!(fixture.queue.reserve_exec().is_err());
        let _containerd = FakeContainerd::start(&fixture.path(), |_| Answer::Take);
        fixture.flushed().await;
        drop(exec);
        let third = fixture.queue.reserve().unwrap();
        assert!(fixture.queue.reserve().is_err());

        // One more than reserved is not lost, and takes room until it is delivered.
        for pid in 0..=EVENTS_PER_TASK as u32 {
            third.publish(&fixture.namespace, start("c", pid));
        }
        fixture.flushed().await;
        drop((second, third));
        let all: Vec<_> = (0..2).map(|_| fixture.queue.reserve().unwrap()).collect();
        assert!(fixture.queue.reserve().is_err());
        drop(all);
        assert_eq!(fixture.queue.shared.room_taken.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_event_that_containerd_refuses_does_not_stop_the_others() {
        let fixture = Fixture::new(quick());
        let containerd = FakeContainerd::start(&fixture.path(), |envelope| match start_of(envelope).pid {
            1 => Answer::Status(Code::INVALID_ARGUMENT),
            _ => Answer::Take,
        });
        fixture.publish([0, 1]);
        let huge = "x".repeat(MESSAGE_LENGTH_MAX);
        fixture.queue.reserve().unwrap().publish(&fixture.namespace, start(&huge, 2));
        fixture.publish([3]);
        fixture.flushed().await;
        assert_eq!(containerd.pids(), [0, 3]);
        assert_eq!(fixture.metrics.events.refused.get(), 2);
        assert_eq!(fixture.metrics.events.sent.get(), 2);
        assert_eq!(fixture.metrics.events.queued.get(), 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn any_other_error_is_tried_again() {
        let codes = [Code::UNKNOWN, Code::UNIMPLEMENTED, Code::NOT_FOUND, Code::UNAVAILABLE];
        let left = Mutex::new(codes.to_vec());
        let fixture = Fixture::new(quick());
        let containerd =
            FakeContainerd::start(&fixture.path(), move |_| left.lock().pop().map_or(Answer::Take, Answer::Status));
        fixture.publish([0, 1]);
        fixture.flushed().await;
        assert_eq!(containerd.pids(), [0, 1]);
        assert_eq!(fixture.metrics.events.retried.get(), codes.len() as u64);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_dropped_queue_still_delivers_and_then_ends() {
        let fixture = Fixture::new(quick());
        fixture.publish(0..10);
        let Fixture { directory, metrics, queue, .. } = fixture;
        let shared = Arc::downgrade(&queue.shared);
        drop(queue);
        let path = directory.path().join("ttrpc");
        let containerd = FakeContainerd::start(&path, |_| Answer::Take);
        let deadline = Instant::now() + PATIENCE;
        while shared.strong_count() > 0 {
            assert!(Instant::now() < deadline, "the publisher lives on");
            tokio::task::yield_now().await;
        }
        assert_eq!(containerd.pids(), (0..10).collect::<Vec<_>>());
        assert_eq!(metrics.events.sent.get(), 10);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_real_containerd_tells_its_subscribers() {
        let mut containerd = PrivateContainerd::start();
        let metrics = Arc::new(Metrics::new());
        let runtime = tokio::runtime::Handle::current();
        let queue = EventQueue::new(&containerd.ttrpc_address(), &quick(), metrics.clone(), &runtime);
        let namespace: Arc<str> = NAMESPACE.into();
        let publish = |event| queue.reserve().unwrap().publish(&namespace, event);
        let (_ctr, lines) = containerd.events();
        // `ctr events` does not say when it listens: tell it something until it repeats that.
        let deadline = Instant::now() + PATIENCE;
        while lines.recv_timeout(Duration::from_millis(50)).is_err() {
            assert!(Instant::now() < deadline, "ctr events prints nothing");
            publish(Event::Oom { container_id: "probe".into() });
        }
        let id = || Arc::from("task");
        let exited_at = SystemTime::now();
        publish(start("task", 7));
        publish(Event::Exit { container_id: id(), id: id(), pid: 7, exit_status: 137, exited_at });
        publish(Event::Delete { container_id: id(), pid: 7, exit_status: 137, exited_at });
        let next = || loop {
            let line = lines.recv_timeout(PATIENCE).unwrap();
            // The message is printed only if containerd knows its type.
            if let Some((_, event)) = line.split_once(" hearth-test /tasks/")
                && !event.contains("probe")
            {
                let (topic, message) = event.split_once(' ').unwrap();
                let message: serde_json::Value = serde_json::from_str(message).unwrap();
                return (topic.to_string(), message);
            }
        };
        let (topic, message) = next();
        assert_eq!((&*topic, &message["container_id"], &message["pid"]), ("start", &json!("task"), &json!(7)));
        let (topic, message) = next();
        assert_eq!((&*topic, &message["id"], &message["exit_status"]), ("exit", &json!("task"), &json!(137)));
        assert!(message["exited_at"].is_string() || message["exited_at"].is_object(), "{message}");
        let (topic, message) = next();
        assert_eq!((&*topic, &message["exit_status"]), ("delete", &json!(137)));

        queue.flushed(Instant::now() + PATIENCE).await.unwrap();
        let sent = metrics.events.sent.get();
        containerd.stop();
        publish(start("task", 8));
        retried(&metrics, 2).await;
        let error = queue.flushed(Instant::now()).await.unwrap_err();
        assert!(error.to_string().contains("is it running?"), "{error}");
        containerd.restart();
        queue.flushed(Instant::now() + PATIENCE).await.unwrap();
        assert_eq!(metrics.events.sent.get(), sent + 1);
        assert_eq!(metrics.events.refused.get(), 0);
    }
}
