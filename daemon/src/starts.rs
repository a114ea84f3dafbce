//! What each start did, phase by phase: written down as it happens, kept for those who look.
//!
//! ```text
//!   Create ─▶ About (one for each container) ─ phases, as they end ─▶ first instruction ─▶ Recent ─▶ page,
//!                                                     │                                     │     hearthctl
//!                                                     ▼                                     ▼
//!                                                 histograms                     recorder
//! ```
//!
//! Writing a phase down is a few atomic stores; a start that has come to its end is one entry of a bounded
//! list, under a lock held for a few instructions. Nothing here waits for anybody.

pub mod recorder;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use crate::bundle::CriNames;
use crate::metrics::{Metrics, PHASES, Phase, SOURCES, Source};
use crate::operator::{EndInfo, EndKind, PhaseInfo, PodName, StartInfo};
use crate::wasm::modules::origin::Digest;

/// The longest name that is kept, in bytes: of a pod, an image, a program. Kubernetes' own are shorter.
const NAME_BYTES_MAX: usize = 256;

/// The longest text of an end that is kept, in bytes: a trap with its backtrace.
const TEXT_BYTES_MAX: usize = 4 << 10;

/// Where a request comes from, by W3C Trace Context: what containerd passes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    /// Of the whole trace.
    pub trace: u128,
    /// Of the caller's span.
    pub span: u64,
    /// Whether the caller records it.
    pub sampled: bool,
}

impl TraceParent {
    /// Parses a `traceparent`: `00-<32 hex digits>-<16>-<2>`; later versions may have more after it.
    pub fn parse(text: &str) -> Option<TraceParent> {
        let mut parts = text.trim().split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let is_hex = |part: &str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let lengths = [version.len(), trace.len(), span.len(), flags.len()];
        if lengths != [2, 32, 16, 2] || ![version, trace, span, flags].into_iter().all(is_hex) || version == "ff" {
            return None;
        }
        let trace = u128::from_str_radix(trace, 16).ok().filter(|&trace| trace != 0)?;
        let span = u64::from_str_radix(span, 16).ok().filter(|&span| span != 0)?;
        Some(TraceParent { trace, span, sampled: u8::from_str_radix(flags, 16).ok()? & 1 == 1 })
    }
}

/// A container's names, origin and start, for those who look.
#[derive(Debug)]
pub struct About {
    /// containerd's namespace.
    pub namespace: Arc<str>,
    /// Its id, the task's.
    pub id: Arc<str>,
    /// Its pod, if it is of one.
    pub pod: Option<PodName>,
    /// Its image, where CRI has said it.
    pub image: Option<String>,
    /// The first of its arguments.
    pub program: String,
    /// Its module, once it is known.
    pub module: OnceLock<Digest>,
    /// When Create was asked for.
    pub created_at: SystemTime,
    /// The same, to measure from.
    began: Instant,
    /// When containerd wrote its bundle.
    pub bundle_written_at: Option<SystemTime>,
    /// The writable directory of its root, which CRI has made for it alone.
    pub snapshot: Option<PathBuf>,
    /// Who asked.
    pub parent: Option<TraceParent>,
    phases: [Lapse; PHASES.len()],
    source: AtomicU8,
    create_took_ns: AtomicU64,
    start_began_ns: AtomicU64,
    /// From Create's request to the guest's first instruction, or to the port of a service.
    started_ns: AtomicU64,
    /// Traps of all its guests.
    pub traps: AtomicU64,
}

/// When something began, from Create's request, and how long it took; in nanoseconds, 0 for never.
#[derive(Debug, Default)]
struct Lapse {
    began_ns: AtomicU64,
    took_ns: AtomicU64,
}

/// What [`About`] is made of.
pub struct Asked {
    /// containerd's namespace.
    pub namespace: Arc<str>,
    /// The task's id.
    pub id: Arc<str>,
    /// What CRI calls it.
    pub names: CriNames,
    /// The first of its arguments.
    pub program: String,
    /// When Create's request arrived.
    pub began: Instant,
    /// When containerd wrote the bundle.
    pub bundle_written_at: Option<SystemTime>,
    /// The writable directory of its root.
    pub snapshot: Option<PathBuf>,
    /// Who asked.
    pub parent: Option<TraceParent>,
}

impl About {
    /// Nothing has happened yet.
    pub fn new(asked: Asked) -> Arc<About> {
        let CriNames { namespace, pod, container, image } = asked.names;
        let pod = pod.map(|name| PodName {
            namespace: cut(namespace.unwrap_or_default(), NAME_BYTES_MAX),
            name: cut(name, NAME_BYTES_MAX),
            container: cut(container.unwrap_or_default(), NAME_BYTES_MAX),
        });
        Arc::new(About {
            namespace: asked.namespace,
            id: asked.id,
            // Of another's containers nobody knows what their snapshots are.
            snapshot: asked.snapshot.filter(|_| pod.is_some()),
            pod,
            image: image.map(|image| cut(image, NAME_BYTES_MAX)),
            program: cut(asked.program, NAME_BYTES_MAX),
            module: OnceLock::new(),
            created_at: SystemTime::now().checked_sub(asked.began.elapsed()).unwrap_or(UNIX_EPOCH),
            began: asked.began,
            bundle_written_at: asked.bundle_written_at,
            parent: asked.parent,
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
        metrics.phase(phase, took);
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

    /// The guest is at its first instruction, or the service has its port: what hearthd itself needed.
    pub fn started(&self, metrics: &Metrics) -> Duration {
        let now = self.since_began_ns(Instant::now());
        self.started_ns.store(now, Ordering::Relaxed);
        let took = Duration::from_nanos(self.own_ns(now));
        if let Some(source) = self.source() {
            metrics.start(source, took);
        }
        took
    }

    /// What hearthd needed until `at_ns`: without the caller's own time between Create and Start.
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

    /// What is written down so far.
    pub fn start_info(&self, generation: &str) -> StartInfo {
        let seconds = |ns: &AtomicU64| ns.load(Ordering::Relaxed) as f64 / 1e9;
        let set = |value: f64| (value > 0.0).then_some(value);
        let started_ns = self.started_ns.load(Ordering::Relaxed);
        let phases = PHASES.iter().zip(&self.phases).filter_map(|((_, name), lapse)| {
            let took = set(seconds(&lapse.took_ns))?;
            Some(PhaseInfo { name: (*name).into(), began_seconds: seconds(&lapse.began_ns), seconds: took })
        });
        StartInfo {
            generation: generation.into(),
            namespace: self.namespace.to_string(),
            id: self.id.to_string(),
            pod: self.pod.clone(),
            image: self.image.clone(),
            program: self.program.clone(),
            module: self.module.get().map(Digest::to_string).unwrap_or_default(),
            source: self.source().map(|source| SOURCES[source as usize].1.to_string()),
            created_at: unix(self.created_at),
            bundle_written_at: self.bundle_written_at.map(unix),
            create_seconds: set(seconds(&self.create_took_ns)),
            start_began_seconds: set(seconds(&self.start_began_ns)),
            started_seconds: set(started_ns as f64 / 1e9),
            own_seconds: (started_ns > 0).then(|| self.own_ns(started_ns) as f64 / 1e9),
            phases: phases.collect(),
            trace_id: None,
            error: None,
        }
    }
}

/// A start that has come to its end, one way or the other.
#[derive(Clone)]
pub struct Finished {
    /// Whose.
    pub about: Arc<About>,
    /// Why it failed, if it did.
    pub error: Option<Arc<str>>,
}

/// A guest's end that somebody may want to know of.
#[derive(Clone)]
struct End {
    about: Arc<About>,
    at: SystemTime,
    kind: EndKind,
    status: u32,
    text: Arc<str>,
}

/// The last starts, and the last ends of the kind one looks into.
pub struct Recent {
    max: usize,
    starts: Mutex<VecDeque<Finished>>,
    ends: Mutex<VecDeque<End>>,
    recorder: Option<tokio::sync::mpsc::Sender<Finished>>,
    metrics: Arc<Metrics>,
}

impl Recent {
    /// Keeps `max` of either (`metrics.recent_max`), and passes starts on to `recorder`.
    pub fn new(
        max: usize,
        metrics: Arc<Metrics>,
        recorder: Option<tokio::sync::mpsc::Sender<Finished>>,
    ) -> Arc<Recent> {
        Arc::new(Recent { max, starts: Mutex::default(), ends: Mutex::default(), recorder, metrics })
    }

    /// The guest is at its first instruction, or the service has its port.
    pub fn started(&self, about: &Arc<About>) {
        about.started(&self.metrics);
        self.finished(Finished { about: about.clone(), error: None });
    }

    /// A Create or a Start was refused.
    pub fn failed(&self, about: &Arc<About>, error: &str) {
        self.finished(Finished { about: about.clone(), error: Some(cut(error.into(), TEXT_BYTES_MAX).into()) });
    }

    fn finished(&self, start: Finished) {
        if let Some(recorder) = &self.recorder
            && recorder.try_send(start.clone()).is_err()
        {
            self.metrics.start_records_dropped.inc();
        }
        push(&self.starts, start, self.max);
    }

    /// A guest has come to an end one may want to know of.
    pub fn ended(&self, about: &Arc<About>, kind: EndKind, status: u32, text: &str) {
        let text = cut(text.into(), TEXT_BYTES_MAX).into();
        let end = End { about: about.clone(), at: SystemTime::now(), kind, status, text };
        push(&self.ends, end, self.max);
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
        let info = |end: &End| EndInfo {
            generation: generation.into(),
            namespace: end.about.namespace.to_string(),
            id: end.about.id.to_string(),
            pod: end.about.pod.clone(),
            image: end.about.image.clone(),
            program: end.about.program.clone(),
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
    // Not under the lock.
    drop(oldest);
}

/// At most so many bytes of a text.
fn cut(mut text: String, bytes_max: usize) -> String {
    text.truncate(text.floor_char_boundary(bytes_max));
    text
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Seconds since 1970.
pub fn unix(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(id: &str) -> Arc<About> {
        About::new(Asked {
            namespace: "default".into(),
            id: id.into(),
            names: CriNames { pod: Some("web".into()), ..CriNames::default() },
            program: "x".repeat(1000),
            began: Instant::now(),
            bundle_written_at: None,
            snapshot: None,
            parent: None,
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
        let recent = Recent::new(2, metrics.clone(), Some(sender));
        for id in ["a", "b", "c"] {
            recent.failed(&about(id), "no");
            recent.ended(&about(id), EndKind::Trap, 134, &"é".repeat(10_000));
        }
        let ids: Vec<_> = recent.starts("g").into_iter().map(|start| (start.id, start.error)).collect();
        assert_eq!(ids, [("c".into(), Some("no".into())), ("b".into(), Some("no".into()))]);
        let ends = recent.ends("g");
        assert_eq!((ends.len(), ends[0].text.len()), (2, TEXT_BYTES_MAX));
        assert_eq!(metrics.start_records_dropped.get(), 2);
        assert_eq!(&*receiver.try_recv().unwrap().about.id, "a");
    }

    #[test]
    fn a_traceparent_is_taken_as_it_is_defined() {
        let parent = TraceParent::parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").unwrap();
        assert_eq!(
            (parent.trace, parent.span, parent.sampled),
            (0x0af7651916cd43dd8448eb211c80319c, 0xb7ad6b7169203331, true)
        );
        assert!(TraceParent::parse("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00-more").is_some());
        for wrong in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(TraceParent::parse(wrong), None, "{wrong}");
        }
    }
}
