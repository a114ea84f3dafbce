//! Records of starts, phase by phase: made as they happen, and kept for operators.
//!
//! ```text
//!   Create ─▶ About (one for each container) ─ phases, as they end ─▶ first instruction ─▶ Recent ─▶ page,
//!                                                     │                                     │     hearthctl
//!                                                     ▼                                     ▼
//!                                                 histograms                recorder, traces
//! ```
//!
//! To record a phase takes a few atomic stores. A start that has ended is one entry of a bounded list, under a lock
//! that is held for a few instructions. Nothing here blocks a start.
//!
//! * `requests.rs`: the last slow HTTP requests, each with its phases and its trace.
//! * `recorder.rs`: the time from a container's creation by containerd, measured after the start.
//! * `trace.rs`: the `traceparent` that containerd passes on, and the trace that a start belongs to.

pub mod recorder;
pub mod requests;
pub mod trace;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use opentelemetry::trace::TraceId;
use parking_lot::Mutex;

use crate::metrics::{Metrics, PHASES, Phase, SOURCES, Source};
use crate::starts::requests::{SlowRequest, SlowRequests};
use crate::starts::trace::Trace;
use hearth_base::bundle::CriNames;
use hearth_base::digest::Digest;
use hearth_base::namespace::ContainerdNamespace;
use hearth_base::operator::{EndInfo, EndKind, PhaseInfo, PodName, RequestInfo, StartInfo, TaskName};
use hearth_base::text::{shown, shown_lines};
use hearth_base::time::unix;

/// The longest name that is kept, in bytes: of a pod, an image, a program. Kubernetes' own are shorter.
const NAME_BYTES_MAX: usize = 256;

/// The longest text of an end that is kept, in bytes: a trap with its backtrace.
const TEXT_BYTES_MAX: usize = 4 << 10;

/// A container's names, origin and start, for operators.
#[derive(Debug)]
pub struct About {
    /// containerd's namespace.
    pub namespace: ContainerdNamespace,
    /// Its id, the task's.
    pub id: Arc<str>,
    /// Its pod, if it is in one.
    pub pod: Option<PodName>,
    /// Its image, if CRI names it.
    pub image: Option<String>,
    /// The first of its arguments.
    pub program: String,
    /// Its module, once it is known.
    pub module: OnceLock<Digest>,
    /// When Create's request arrived.
    pub created_at: SystemTime,
    /// The same instant on the monotonic clock.
    began: Instant,
    /// When containerd wrote its bundle.
    pub bundle_written_at: Option<SystemTime>,
    /// The writable directory of its root, which CRI makes for one container.
    pub snapshot: Option<PathBuf>,
    /// Its trace, if it is recorded.
    pub trace: Option<Trace>,
    phases: [Lapse; PHASES.len()],
    source: AtomicU8,
    create_took_ns: AtomicU64,
    start_began_ns: AtomicU64,
    /// From Create's request to the guest's first instruction, or to the port of a service.
    started_ns: AtomicU64,
    /// Traps of all its guests.
    pub traps: AtomicU64,
}

/// When a phase began, from Create's request, and how long it took; in nanoseconds, 0 for never.
#[derive(Debug, Default)]
struct Lapse {
    began_ns: AtomicU64,
    took_ns: AtomicU64,
}

/// The facts about a container that Create's request has.
pub struct NewAbout {
    /// containerd's namespace.
    pub namespace: ContainerdNamespace,
    /// The task's id.
    pub id: Arc<str>,
    /// Its names in CRI.
    pub names: CriNames,
    /// The first of its arguments.
    pub program: String,
    /// When Create's request arrived.
    pub began: Instant,
    /// When containerd wrote the bundle.
    pub bundle_written_at: Option<SystemTime>,
    /// The writable directory of its root.
    pub snapshot: Option<PathBuf>,
    /// Its trace, if it is recorded.
    pub trace: Option<Trace>,
}

/// The events of a start so far, each with its time since Create's arrival.
pub struct Moments {
    /// The phases that have ended, in the order of [`PHASES`]: name, begin, duration.
    pub phases: Vec<(&'static str, Duration, Duration)>,
    /// When Create was answered.
    pub create_took: Option<Duration>,
    /// When Start arrived.
    pub start_began: Option<Duration>,
    /// When the guest was at its first instruction, or the service had its port.
    pub started: Option<Duration>,
}

impl About {
    /// A container none of whose phases has ended.
    pub fn new(new: NewAbout) -> Arc<About> {
        let name = |text: String| shown(&text, NAME_BYTES_MAX).into_owned();
        let CriNames { namespace, pod, container, image } = new.names;
        let pod = pod.map(|pod| PodName {
            namespace: name(namespace.unwrap_or_default()),
            name: name(pod),
            container: name(container.unwrap_or_default()),
        });
        Arc::new(About {
            namespace: new.namespace,
            id: new.id,
            // Only CRI makes a snapshot for one container; another client's may be older.
            snapshot: new.snapshot.filter(|_| pod.is_some()),
            pod,
            image: image.map(name),
            program: name(new.program),
            module: OnceLock::new(),
            created_at: SystemTime::now().checked_sub(new.began.elapsed()).unwrap_or(UNIX_EPOCH),
            began: new.began,
            bundle_written_at: new.bundle_written_at,
            trace: new.trace,
            phases: Default::default(),
            source: AtomicU8::new(u8::MAX),
            create_took_ns: AtomicU64::new(0),
            start_began_ns: AtomicU64::new(0),
            started_ns: AtomicU64::new(0),
            traps: AtomicU64::new(0),
        })
    }

    fn since_began_ns(&self, at: Instant) -> u64 {
        nanos(at.saturating_duration_since(self.began))
    }

    /// A phase has ended.
    pub fn phase(&self, metrics: &Metrics, phase: Phase, began: Instant, took: Duration) {
        metrics.starts.phase(phase, took);
        let lapse = &self.phases[phase as usize];
        lapse.began_ns.store(self.since_began_ns(began), Ordering::Relaxed);
        lapse.took_ns.store(nanos(took), Ordering::Relaxed);
    }

    /// The program is found and Create is about to be answered.
    pub fn created(&self, source: Source, took: Duration) {
        self.source.store(source as u8, Ordering::Relaxed);
        self.create_took_ns.store(nanos(took), Ordering::Relaxed);
    }

    /// Start has arrived.
    pub fn start_began(&self, at: Instant) {
        self.start_began_ns.store(self.since_began_ns(at), Ordering::Relaxed);
    }

    /// The guest is at its first instruction, or the service has its port. Returns the time that hearthd needed.
    pub fn started(&self, metrics: &Metrics) -> Duration {
        let now = self.since_began_ns(Instant::now());
        self.started_ns.store(now, Ordering::Relaxed);
        let took = Duration::from_nanos(self.own_ns(now));
        if let Some(source) = self.source() {
            metrics.starts.start(source, took);
        }
        took
    }

    /// The time that hearthd needed until `at_ns`, without the caller's own time between Create and Start.
    fn own_ns(&self, at_ns: u64) -> u64 {
        let in_start = at_ns.saturating_sub(self.start_began_ns.load(Ordering::Relaxed));
        self.create_took_ns.load(Ordering::Relaxed) + in_start
    }

    /// Where its program came from, once that is known.
    pub fn source(&self) -> Option<Source> {
        let source = self.source.load(Ordering::Relaxed);
        SOURCES.iter().map(|(known, _)| *known).find(|known| *known as u8 == source)
    }

    /// When its guest was at its first instruction, if it was.
    pub fn started_at(&self) -> Option<SystemTime> {
        let started_ns = self.started_ns.load(Ordering::Relaxed);
        (started_ns > 0).then(|| self.created_at + Duration::from_nanos(started_ns))
    }

    /// The events so far.
    pub fn moments(&self) -> Moments {
        let at = |ns: &AtomicU64| Duration::from_nanos(ns.load(Ordering::Relaxed));
        let set = |ns: &AtomicU64| Some(at(ns)).filter(|time| !time.is_zero());
        let phases = PHASES.iter().zip(&self.phases);
        Moments {
            phases: phases
                .filter_map(|((_, name), lapse)| Some((*name, at(&lapse.began_ns), set(&lapse.took_ns)?)))
                .collect(),
            create_took: set(&self.create_took_ns),
            start_began: set(&self.start_began_ns),
            started: set(&self.started_ns),
        }
    }

    /// Its trace's id, if it is recorded.
    pub fn trace_id(&self) -> Option<TraceId> {
        self.trace.as_ref().map(|trace| trace.id)
    }

    /// Its names. `generation`: the generation of this daemon.
    fn name(&self, generation: &str) -> TaskName {
        TaskName {
            generation: generation.into(),
            namespace: self.namespace.to_string(),
            id: self.id.to_string(),
            pod: self.pod.clone(),
            image: self.image.clone(),
            program: self.program.clone(),
        }
    }

    /// The record so far.
    pub fn start_info(&self, generation: &str) -> StartInfo {
        let moments = self.moments();
        let seconds = |time: Duration| time.as_secs_f64();
        let phase = |&(name, began, took): &(&str, Duration, Duration)| PhaseInfo {
            name: name.into(),
            began_seconds: seconds(began),
            seconds: seconds(took),
        };
        StartInfo {
            of: self.name(generation),
            module: self.module.get().map(Digest::to_string).unwrap_or_default(),
            source: self.source().map(|source| SOURCES[source as usize].1.to_string()),
            created_at: unix(self.created_at),
            bundle_written_at: self.bundle_written_at.map(unix),
            create_seconds: moments.create_took.map(seconds),
            start_began_seconds: moments.start_began.map(seconds),
            started_seconds: moments.started.map(seconds),
            own_seconds: moments.started.map(|started| self.own_ns(nanos(started)) as f64 / 1e9),
            phases: moments.phases.iter().map(phase).collect(),
            trace_id: self.trace_id().map(|id| id.to_string()),
            error: None,
        }
    }
}

/// A start that has succeeded or failed.
#[derive(Clone)]
pub struct Finished {
    /// The container.
    pub about: Arc<About>,
    /// Why it failed; none if it succeeded.
    pub error: Option<Arc<str>>,
    /// The time from Create's arrival to its end.
    pub took: Duration,
}

/// A guest's end that an operator looks for: a trap, out of memory, a panic.
#[derive(Clone)]
struct RecordedEnd {
    about: Arc<About>,
    at: SystemTime,
    kind: EndKind,
    status: u32,
    text: Arc<str>,
}

/// The last starts, the last ends that operators look for, and the last slow requests.
pub struct Recent {
    max: usize,
    starts: Mutex<VecDeque<Finished>>,
    ends: Mutex<VecDeque<RecordedEnd>>,
    requests: SlowRequests,
    listeners: Vec<Listener>,
    metrics: Arc<Metrics>,
}

/// Receives each start when it ends. It must not block.
pub type Listener = Box<dyn Fn(&Finished) + Send + Sync>;

impl Recent {
    /// Keeps `max` starts, and as many ends and slow requests (`metrics.recent_max`). The listeners receive each start.
    pub fn new(max: usize, metrics: Arc<Metrics>, listeners: Vec<Listener>) -> Arc<Recent> {
        let requests = SlowRequests::new(max);
        Arc::new(Recent { max, starts: Mutex::default(), ends: Mutex::default(), requests, listeners, metrics })
    }

    /// The guest is at its first instruction, or the service has its port.
    pub fn started(&self, about: &Arc<About>) {
        about.started(&self.metrics);
        let took = Duration::from_nanos(about.started_ns.load(Ordering::Relaxed));
        self.finished(Finished { about: about.clone(), error: None, took });
    }

    /// A Create or a Start was refused.
    pub fn failed(&self, about: &Arc<About>, error: &str) {
        let error = Some(shown_lines(error, TEXT_BYTES_MAX).into());
        self.finished(Finished { about: about.clone(), error, took: about.began.elapsed() });
    }

    fn finished(&self, start: Finished) {
        for listener in &self.listeners {
            listener(&start);
        }
        push(&self.starts, start, self.max);
    }

    /// A guest has ended in a way that operators look for.
    pub fn ended(&self, about: &Arc<About>, kind: EndKind, status: u32, text: &str) {
        let text = shown_lines(text, TEXT_BYTES_MAX).into();
        let end = RecordedEnd { about: about.clone(), at: SystemTime::now(), kind, status, text };
        push(&self.ends, end, self.max);
    }

    /// An HTTP request was slow.
    pub fn was_slow(&self, request: SlowRequest) {
        self.requests.push(request);
    }

    /// The last slow HTTP requests, the latest first.
    pub fn requests(&self, generation: &str) -> Vec<RequestInfo> {
        self.requests.infos(generation)
    }

    /// The last starts, the latest first.
    pub fn starts(&self, generation: &str) -> Vec<StartInfo> {
        let starts: Vec<_> = self.starts.lock().iter().cloned().collect();
        let info = |start: &Finished| StartInfo {
            error: start.error.as_ref().map(|error| error.to_string()),
            ..start.about.start_info(generation)
        };
        starts.iter().rev().map(info).collect()
    }

    /// The last ends, the latest first.
    pub fn ends(&self, generation: &str) -> Vec<EndInfo> {
        let ends: Vec<_> = self.ends.lock().iter().cloned().collect();
        let info = |end: &RecordedEnd| EndInfo {
            of: end.about.name(generation),
            at: unix(end.at),
            kind: end.kind,
            status: end.status,
            text: end.text.to_string(),
        };
        ends.iter().rev().map(info).collect()
    }
}

fn push<T>(list: &Mutex<VecDeque<T>>, entry: T, max: usize) {
    let oldest = {
        let mut list = list.lock();
        let oldest = if list.len() >= max { list.pop_front() } else { None };
        list.push_back(entry);
        oldest
    };
    // Freed after the lock is released.
    drop(oldest);
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn about(id: &str) -> Arc<About> {
        About::new(NewAbout {
            namespace: "default".into(),
            id: id.into(),
            names: CriNames { pod: Some("web".into()), ..CriNames::default() },
            program: "x".repeat(1000),
            began: Instant::now(),
            bundle_written_at: None,
            snapshot: None,
            trace: None,
        })
    }

    #[test]
    fn a_start_is_what_hearthd_needed_and_its_phases_lie_on_one_line_of_time() {
        let metrics = Metrics::new();
        let about = about("a");
        assert_eq!(about.program.len(), NAME_BYTES_MAX);
        about.phase(&metrics, Phase::Lookup, Instant::now(), Duration::from_micros(7));
        about.created(Source::Disk, Duration::from_millis(2));
        about.start_began(about.began + Duration::from_secs(3600));
        let took = about.started(&metrics);
        assert!(
            took >= Duration::from_millis(2) && took < Duration::from_secs(60),
            "the hour was the caller's: {took:?}"
        );
        let info = about.start_info("g");
        assert_eq!((info.source.as_deref(), info.create_seconds), (Some("disk"), Some(0.002)));
        assert_eq!(
            info.phases.iter().map(|phase| (phase.name.as_str(), phase.seconds)).collect::<Vec<_>>(),
            [("lookup", 7e-6)]
        );
        assert!(metrics.render().contains("hearth_start_seconds_count{source=\"disk\"} 1"));
    }

    #[test]
    fn the_last_ones_are_kept_and_a_queue_that_is_full_is_counted() {
        let metrics = Arc::new(Metrics::new());
        let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
        let listener = recorder::queue(sender, metrics.starts.records_dropped.clone());
        let recent = Recent::new(2, metrics.clone(), vec![listener]);
        for id in ["a", "b", "c"] {
            recent.failed(&about(id), "no");
            recent.ended(&about(id), EndKind::Trap, 134, &"é".repeat(10_000));
        }
        let ids: Vec<_> = recent.starts("g").into_iter().map(|start| (start.of.id, start.error)).collect();
        assert_eq!(ids, [("c".into(), Some("no".into())), ("b".into(), Some("no".into()))]);
        let ends = recent.ends("g");
        assert_eq!(ends.len(), 2);
        let text = &ends[0].text;
        assert!(text.len() <= TEXT_BYTES_MAX && text.starts_with('é') && text.ends_with("é… (20000 bytes)"), "{text}");
        assert_eq!(metrics.starts.records_dropped.get(), 2);
        assert_eq!(&*receiver.try_recv().unwrap().about.id, "a");
    }
}
