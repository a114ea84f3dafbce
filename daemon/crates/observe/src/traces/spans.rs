//! The spans of a start: containerd's Create and Start, with their phases as children.
//!
//! ```text
//!   ┌ task (only without a caller's span)────────────────────────────┐
//!   │ ┌ Task/Create ───────────────┐        ┌ Task/Start ──────────┐ │
//!   │ │ bundle │ lookup │ compile… │        │ instantiate│ first…  │ │
//! ```
//!
//! Start's span ends at the guest's first instruction, or when the service has its port. The answer to containerd may
//! be a little earlier or later.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SpanData, SpanEvents, SpanLinks};

use crate::metrics::{PHASES, SOURCES};
use crate::starts::trace::{Trace, TraceParent};
use crate::starts::{Finished, Moments};

/// The span around a start whose caller has none.
const TASK: &str = "task";
/// The span of containerd's Create.
pub const CREATE: &str = "Task/Create";
/// The span of containerd's Start.
const START: &str = "Task/Start";

/// The spans of a start; none if it is not recorded.
pub fn of(start: &Finished, scope: &InstrumentationScope) -> Vec<SpanData> {
    let Some(trace) = &start.about.trace else { return Vec::new() };
    let moments = start.about.moments();
    let end = start.about.created_at + start.took;
    let maker = Maker { scope, created_at: start.about.created_at, attributes: attributes(start) };
    let failure = start.error.as_ref().map(|error| Status::error(error.to_string()));
    // The failure belongs to the call that failed.
    let (of_create, of_start) = match moments.start_began {
        Some(_) => (Status::Unset, failure.clone().unwrap_or_default()),
        None => (failure.clone().unwrap_or_default(), Status::Unset),
    };

    let mut spans = Vec::with_capacity(PHASES.len() + 3);
    let mut caller = trace.create.map(TraceParent::context);
    if caller.is_none() {
        let task =
            maker.span(TASK, Ancestry { trace: trace.id, parent: None }, SpanKind::Internal, (Duration::ZERO, end));
        caller = Some(task.span_context.clone());
        spans.push(SpanData { status: failure.unwrap_or_default(), ..task });
    }
    let create_end = moments.create_took.map_or(end, |took| start.about.created_at + took);
    let ancestry = Ancestry { trace: trace.id, parent: caller.clone() };
    let create = maker.span(CREATE, ancestry, SpanKind::Server, (Duration::ZERO, create_end));
    let create = SpanData { status: of_create, ..create };
    let began = moments.start_began.map(|began| {
        let span = maker.span(START, start_ancestry(trace, caller), SpanKind::Server, (began, end));
        SpanData { status: of_start, links: links(trace, &span, &create), ..span }
    });
    spans.extend(phases(&maker, &moments, &create, began.as_ref()));
    spans.push(create);
    spans.extend(began);
    spans
}

/// The trace and the parent of a span.
struct Ancestry {
    trace: TraceId,
    parent: Option<SpanContext>,
}

/// Start's parent is the span of its own caller, which may differ from Create's, and may be in another trace.
fn start_ancestry(trace: &Trace, caller: Option<SpanContext>) -> Ancestry {
    match trace.start.get() {
        Some(parent) => Ancestry { trace: parent.trace.into(), parent: Some(parent.context()) },
        None => Ancestry { trace: trace.id, parent: caller },
    }
}

/// A link from Start to a Create in another trace.
fn links(trace: &Trace, start: &SpanData, create: &SpanData) -> SpanLinks {
    let mut links = SpanLinks::default();
    if start.span_context.trace_id() != trace.id {
        links.links.push(Link::with_context(create.span_context.clone()));
    }
    links
}

/// The measured phases, each a child of the call during which it ran.
fn phases(maker: &Maker<'_>, moments: &Moments, create: &SpanData, start: Option<&SpanData>) -> Vec<SpanData> {
    let span = |(name, began, took): &(&'static str, Duration, Duration)| {
        let started = moments.start_began.is_some_and(|start| *began >= start);
        let parent = start.filter(|_| started).unwrap_or(create).span_context.clone();
        let ancestry = Ancestry { trace: parent.trace_id(), parent: Some(parent) };
        let mut span = maker.span(*name, ancestry, SpanKind::Internal, (*began, maker.created_at + *began + *took));
        // The parent has the attributes.
        span.attributes.clear();
        span
    };
    moments.phases.iter().map(span).collect()
}

/// Values that all spans of a start share.
struct Maker<'a> {
    scope: &'a InstrumentationScope,
    created_at: SystemTime,
    attributes: Vec<KeyValue>,
}

impl Maker<'_> {
    fn span(
        &self,
        name: impl Into<Cow<'static, str>>,
        ancestry: Ancestry,
        span_kind: SpanKind,
        (began, end): (Duration, SystemTime),
    ) -> SpanData {
        let id = RandomIdGenerator::default().new_span_id();
        let parent_span_id = ancestry.parent.as_ref().map_or(SpanId::INVALID, SpanContext::span_id);
        let start_time = self.created_at + began;
        SpanData {
            span_context: SpanContext::new(ancestry.trace, id, TraceFlags::SAMPLED, false, TraceState::NONE),
            parent_span_id,
            parent_span_is_remote: ancestry.parent.is_some_and(|parent| parent.is_remote()),
            span_kind,
            name: name.into(),
            start_time,
            end_time: end.max(start_time),
            attributes: self.attributes.clone(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: self.scope.clone(),
        }
    }
}

/// The container that was started, by OpenTelemetry's semantic conventions where they have a name.
fn attributes(start: &Finished) -> Vec<KeyValue> {
    let about = &start.about;
    let mut all = vec![
        KeyValue::new("containerd.namespace", about.namespace.to_string()),
        KeyValue::new("container.id", about.id.to_string()),
        KeyValue::new("hearth.program", about.program.clone()),
    ];
    let mut add = |name: &'static str, value: Option<String>| {
        all.extend(value.filter(|value| !value.is_empty()).map(|value| KeyValue::new(name, value)));
    };
    if let Some(pod) = &about.pod {
        add("k8s.namespace.name", Some(pod.namespace.clone()));
        add("k8s.pod.name", Some(pod.name.clone()));
        add("k8s.container.name", Some(pod.container.clone()));
    }
    add("container.image.name", about.image.clone());
    add("hearth.module", about.module.get().map(ToString::to_string));
    add("hearth.source", about.source().map(|source| SOURCES[source as usize].1.to_owned()));
    all
}
