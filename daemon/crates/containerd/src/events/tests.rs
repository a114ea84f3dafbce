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

/// The server's answer to an event.
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
    namespace: ContainerdNamespace,
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

/// The end of the exec and of the task in [`each_kind`].
const EXITED_AT: Duration = Duration::new(1_700_000_000, 5);

/// One event of each kind, with its topic and the name of its message.
fn each_kind() -> [(Event, &'static str, &'static str); 9] {
    let container_id = || Arc::from("task");
    let exec = || Arc::from("exec");
    let exited_at = UNIX_EPOCH + EXITED_AT;
    let create = Create {
        container_id: container_id(),
        bundle: "/bundle".into(),
        rootfs: vec![Mount { type_: "overlay".into(), ..Default::default() }],
        stdin: "in".into(),
        stdout: "out".into(),
        stderr: "err".into(),
        terminal: true,
        checkpoint: "check".into(),
        pid: 7,
    };
    let exit = Event::Exit { container_id: container_id(), id: exec(), pid: 7, exit_status: 137, exited_at };
    let delete = Event::Delete { container_id: container_id(), pid: 7, exit_status: 137, exited_at };
    let exec_added = Event::ExecAdded { container_id: container_id(), exec_id: exec() };
    let exec_started = Event::ExecStarted { container_id: container_id(), exec_id: exec(), pid: 8 };
    [
        (Event::Create(Box::new(create)), "/tasks/create", "TaskCreate"),
        (Event::Start { container_id: container_id(), pid: 7 }, "/tasks/start", "TaskStart"),
        (Event::Oom { container_id: container_id() }, "/tasks/oom", "TaskOOM"),
        (exit, "/tasks/exit", "TaskExit"),
        (delete, "/tasks/delete", "TaskDelete"),
        (exec_added, "/tasks/exec-added", "TaskExecAdded"),
        (exec_started, "/tasks/exec-started", "TaskExecStarted"),
        (Event::Paused { container_id: container_id() }, "/tasks/paused", "TaskPaused"),
        (Event::Resumed { container_id: container_id() }, "/tasks/resumed", "TaskResumed"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn each_event_arrives_as_containerd_names_it() {
    let fixture = Fixture::new(quick());
    let containerd = FakeContainerd::start(&fixture.path(), |_| Answer::Take);
    let events = each_kind();
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
    assert_eq!(
        (exit.exited_at.seconds as u64, exit.exited_at.nanos as u32),
        (EXITED_AT.as_secs(), EXITED_AT.subsec_nanos())
    );
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
    // The kernel accepts connections for it; no process reads them.
    let hung = UnixListener::bind(fixture.path()).unwrap();
    fixture.publish(0..3);
    fixture.retried(2).await;
    let error = fixture.queue.flushed(Instant::now()).await.unwrap_err().to_string();
    assert!(error.starts_with("3 task events are not delivered"), "{error}");
    // Either time-out may come first: ttrpc's or the queue's.
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

    // The room that the first task did not use comes back at once; the room of published events, when they are
    // delivered.
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
    let namespace = ContainerdNamespace::from(NAMESPACE);
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
