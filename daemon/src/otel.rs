//! Starts as OpenTelemetry traces, sent by OTLP over gRPC. Off, unless the standard variables ask for it:
//! `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, or `OTEL_TRACES_EXPORTER=otlp`.
//! `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER`, `OTEL_EXPORTER_OTLP_*` and
//! `OTEL_BSP_*` are honoured, as the specification has them.
//!
//! ```text
//!   start at its end ─▶ bounded queue ─▶ recorder: spans, by the SDK ─▶ bounded queue ─▶ sender ─▶ collector
//! ```
//!
//! Nothing waits for a collector: where a queue is full, what comes is dropped and counted. A trace is made
//! once its start has come to its end, of what was written down; so a start pays nothing for it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState,
    Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span, SpanData, SpanExporter as _, SpanProcessor};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::metrics::Metrics;
use crate::starts::{About, Finished};

/// Variables that turn it on.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];

/// Variables that name the protocol.
const PROTOCOLS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];

/// How often a collector that takes nothing is mentioned in the log at most.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Makes traces of starts.
pub struct Traces {
    tracer: SdkTracer,
    _provider: SdkTracerProvider,
}

impl Traces {
    /// Sets up what the environment asks for; `None` if it asks for nothing.
    ///
    /// # Errors
    /// In one line with the variable: what it says cannot be done.
    pub fn from_environment(metrics: &Arc<Metrics>, background: &Handle) -> Result<Option<Traces>, String> {
        if !is_wanted(variable)? {
            return Ok(None);
        }
        let queue_max = number("OTEL_BSP_MAX_QUEUE_SIZE", 2_048)?;
        let sending = Sending {
            batch_max: number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512)?.min(queue_max),
            delay: Duration::from_millis(number("OTEL_BSP_SCHEDULE_DELAY", 5_000)? as u64),
            metrics: metrics.clone(),
        };
        // The connection is made at the first span, on the runtime that is entered now.
        let _entered = background.enter();
        let exporter = SpanExporter::builder().with_tonic().with_protocol(opentelemetry_otlp::Protocol::Grpc);
        let mut exporter = exporter.build().map_err(|error| format!("OpenTelemetry: OTEL_EXPORTER_OTLP_*: {error}"))?;
        let mut resource = Resource::builder();
        if variable("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name("hearthd");
        }
        let resource = resource.with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))).build();
        exporter.set_resource(&resource);
        let (sender, spans) = mpsc::channel(queue_max);
        background.spawn(sending.run(exporter, spans));
        tracing::info!("starts are traced, by OTLP");
        Ok(Some(Traces::new(Queue { spans: sender, dropped: metrics.spans_dropped.clone() }, resource)))
    }

    fn new(queue: Queue, resource: Resource) -> Traces {
        let provider = SdkTracerProvider::builder().with_resource(resource).with_span_processor(queue).build();
        Traces { tracer: provider.tracer("hearthd"), _provider: provider }
    }

    /// Makes the trace of a start that has come to its end.
    pub fn record(&self, start: &Finished) {
        let about = &start.about;
        let end = about.started_at().unwrap_or_else(SystemTime::now);
        let parent = about.parent.map_or_else(Context::new, |parent| {
            let flags = TraceFlags::default().with_sampled(parent.sampled);
            let (trace, span) = (TraceId::from(parent.trace), SpanId::from(parent.span));
            Context::new().with_remote_span_context(SpanContext::new(trace, span, flags, true, TraceState::NONE))
        });
        let builder = SpanBuilder::from_name("hearth.start")
            .with_kind(SpanKind::Server)
            .with_start_time(about.created_at)
            .with_attributes(attributes(about));
        let mut root = self.tracer.build_with_context(builder, &parent);
        if let Some(error) = &start.error {
            root.set_status(Status::error(error.to_string()));
        }
        let context = root.span_context().clone();
        if context.is_sampled() {
            about.traced(u128::from_be_bytes(context.trace_id().to_bytes()));
        }
        let within = Context::new().with_remote_span_context(context);
        for (name, began, took) in about.lapses() {
            let builder = SpanBuilder::from_name(name).with_start_time(began);
            self.tracer.build_with_context(builder, &within).end_with_timestamp(began + took);
        }
        root.end_with_timestamp(end);
    }
}

/// What a start's span says of it, by OpenTelemetry's semantic conventions where they have a name.
fn attributes(about: &About) -> Vec<KeyValue> {
    let mut all = vec![
        KeyValue::new("container.id", about.id.to_string()),
        KeyValue::new("hearth.containerd.namespace", about.namespace.to_string()),
        KeyValue::new("hearth.program", about.program.clone()),
    ];
    if let Some(pod) = &about.pod {
        all.push(KeyValue::new("k8s.namespace.name", pod.namespace.clone()));
        all.push(KeyValue::new("k8s.pod.name", pod.name.clone()));
        all.push(KeyValue::new("k8s.container.name", pod.container.clone()));
    }
    if let Some(image) = &about.image {
        all.push(KeyValue::new("container.image.name", image.clone()));
    }
    if let Some(module) = about.module.get() {
        all.push(KeyValue::new("hearth.module.digest", format!("sha256:{module}")));
    }
    if let Some(source) = about.source() {
        all.push(KeyValue::new("hearth.module.source", crate::metrics::SOURCES[source as usize].1));
    }
    all
}

/// Takes the SDK's spans into a bounded queue.
#[derive(Debug)]
struct Queue {
    spans: mpsc::Sender<SpanData>,
    dropped: prometheus::IntCounter,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.spans.try_send(span).is_err() {
            self.dropped.inc();
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// How spans are sent.
struct Sending {
    batch_max: usize,
    delay: Duration,
    metrics: Arc<Metrics>,
}

impl Sending {
    async fn run(self, exporter: SpanExporter, mut spans: mpsc::Receiver<SpanData>) {
        let mut warned: Option<std::time::Instant> = None;
        while let Some(first) = spans.recv().await {
            let mut batch = vec![first];
            let fill = async {
                while batch.len() < self.batch_max
                    && let Some(span) = spans.recv().await
                {
                    batch.push(span);
                }
            };
            // Until it is full, or its oldest span has waited long enough.
            let _ = tokio::time::timeout(self.delay, fill).await;
            let count = batch.len() as u64;
            // It gives up by itself after OTEL_EXPORTER_OTLP_TIMEOUT.
            match exporter.export(batch).await {
                Ok(()) => self.metrics.spans_exported.inc_by(count),
                Err(error) => {
                    self.metrics.spans_dropped.inc_by(count);
                    if warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
                        warned = Some(std::time::Instant::now());
                        tracing::warn!(%error, spans = count, "the OpenTelemetry collector takes no spans: they are dropped");
                    }
                }
            }
        }
    }
}

/// A variable that is set to something.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().map(|value| value.trim().to_string()).filter(|value| !value.is_empty())
}

/// Whether the environment asks for traces.
fn is_wanted(variable: impl Fn(&str) -> Option<String>) -> Result<bool, String> {
    if variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Ok(false);
    }
    let wanted = match variable("OTEL_TRACES_EXPORTER").as_deref() {
        Some("otlp") => true,
        Some("none") => false,
        None => ENDPOINTS.iter().any(|name| variable(name).is_some()),
        Some(other) => return Err(format!("OTEL_TRACES_EXPORTER: {other:?} is not known here: say otlp or none")),
    };
    let protocol = PROTOCOLS.iter().find_map(|name| Some((name, variable(name)?)));
    match protocol {
        Some((name, protocol)) if wanted && protocol != "grpc" => Err(format!(
            "{name}: {protocol:?} is not spoken here: say grpc, and the collector's port for it (4317, usually)"
        )),
        _ => Ok(wanted),
    }
}

fn number(name: &str, default: usize) -> Result<usize, String> {
    match variable(name) {
        None => Ok(default),
        Some(text) => match text.parse() {
            Ok(number) if number > 0 => Ok(number),
            _ => Err(format!("{name}: {text:?} is not a number over 0")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_sent_unless_it_is_asked_for() {
        let asked = |pairs: &[(&str, &str)]| {
            is_wanted(|name| pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string()))
        };
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4317");
        assert_eq!(asked(&[]), Ok(false));
        assert_eq!(asked(&[endpoint]), Ok(true));
        assert_eq!(asked(&[("OTEL_TRACES_EXPORTER", "otlp")]), Ok(true));
        assert_eq!(asked(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")]), Ok(false));
        assert_eq!(asked(&[endpoint, ("OTEL_SDK_DISABLED", "true")]), Ok(false));
        assert!(asked(&[("OTEL_TRACES_EXPORTER", "jaeger")]).unwrap_err().contains("otlp"));
        let http = ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
        assert!(asked(&[endpoint, http]).unwrap_err().contains("grpc"));
        assert_eq!(asked(&[http]), Ok(false), "it asks for nothing");
    }

    #[test]
    fn a_start_is_a_span_below_its_callers_with_its_phases_below_it() {
        use crate::bundle::CriNames;
        use crate::metrics::{Phase, Source};
        use crate::starts::{Asked, TraceParent};

        let metrics = Metrics::new();
        let (sender, mut spans) = mpsc::channel(4);
        let dropped = metrics.spans_dropped.clone();
        let traces = Traces::new(Queue { spans: sender, dropped }, Resource::builder_empty().build());
        let parent = TraceParent { trace: 7, span: 9, sampled: true };
        let began = std::time::Instant::now();
        let about = About::new(Asked {
            namespace: "k8s.io".into(),
            id: "a".into(),
            names: CriNames { pod: Some("web".into()), ..CriNames::default() },
            program: "/app.wasm".into(),
            began,
            bundle_written_at: None,
            snapshot: None,
            parent: Some(parent),
        });
        about.phase(&metrics, Phase::Lookup, began, Duration::from_millis(1));
        about.created(Source::Warm, Duration::from_millis(2));
        about.started(&metrics);
        traces.record(&Finished { about: about.clone(), error: Some("no".into()) });
        let all: Vec<_> = std::iter::from_fn(|| spans.try_recv().ok()).collect();
        let names: Vec<_> = all.iter().map(|span| span.name.as_ref()).collect();
        assert_eq!(names, ["create", "start", "lookup", "hearth.start"]);
        let root = &all[3];
        assert_eq!((root.span_context.trace_id(), root.parent_span_id), (TraceId::from(7u128), SpanId::from(9u64)));
        assert!(all[..3].iter().all(|span| span.parent_span_id == root.span_context.span_id()));
        assert!(matches!(&root.status, Status::Error { description } if description == "no"));
        assert!(root.attributes.contains(&KeyValue::new("k8s.pod.name", "web")));
        assert_eq!(about.start_info("g").trace_id.as_deref(), Some("00000000000000000000000000000007"));
        // The next finds no room for all of its spans.
        traces.record(&Finished { about: about.clone(), error: None });
        traces.record(&Finished { about, error: None });
        assert_eq!(metrics.spans_dropped.get(), 4);
    }
}
