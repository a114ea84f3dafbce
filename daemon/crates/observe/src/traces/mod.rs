//! Starts as OpenTelemetry traces, if the environment asks for it. Without, a start pays one comparison.
//!
//! ```text
//!   Create, Start ─ traceparent ─▶ Trace, in the start's About ─ first instruction ─▶ queue ─▶ spans ─▶ collector
//!                                                                          └─ full: counted
//! ```
//!
//! A start records what it records anyway ([`crate::starts`]). Its spans are made of that later, on a thread of low
//! priority. A collector that is away, slow or hangs costs spans, which are counted, and a line in the log each minute;
//! no start waits for it.
//!
//! containerd 2.x sends a `traceparent` with Create and with Start if it traces itself; 1.6 and 1.7 send none. A start
//! without one is a trace of its own.
//!
//! opentelemetry_sdk's batch processor is not used, although it has a bounded queue and a delay, too. It takes finished
//! spans, so that a start would make nine of them on its own thread, where it now queues one pointer. It counts what it
//! drops in its own log and not in a metric, and the reason of a failed delivery stays inside. It exports from a thread
//! without a runtime, on which the HTTP client of the daemon cannot run. opentelemetry-otlp does read the variables of
//! the environment, and silently ignores a value that is wrong; [`settings`] refuses it at the daemon's start.
//!
//! * `export.rs`: batches of spans to the collector: time-outs, TLS, spans lost, the stop of the daemon.
//! * `settings.rs`: the `OTEL_*` variables: endpoint, protocol, sampler, queue; errors in them.
//! * `spans.rs`: the spans of a start: names, parents, attributes.

pub mod export;
pub mod settings;
pub mod spans;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry::trace::{SpanKind, TraceContextExt};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SamplingDecision, ShouldSample};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::metrics::Metrics;
use crate::starts::Finished;
use crate::starts::trace::{Trace, TraceParent};
use crate::traces::settings::Settings;

/// Makes traces of starts, and sends them.
pub struct Traces {
    sampler: Box<dyn ShouldSample>,
    starts: mpsc::Sender<Finished>,
    /// Wakes the exporter when the queue is half full.
    fills: Arc<Notify>,
    metrics: Arc<Metrics>,
    sending: Mutex<Option<Sending>>,
}

struct Sending {
    task: JoinHandle<()>,
    stop: oneshot::Sender<()>,
}

impl Traces {
    /// Starts the exporter. `generation`: the generation of this daemon.
    ///
    /// # Errors
    /// The settings cannot be used, in one line.
    pub fn start(
        settings: &Settings,
        generation: &str,
        metrics: &Arc<Metrics>,
        background: &Handle,
    ) -> Result<Arc<Traces>, String> {
        let (starts, queue) = mpsc::channel(settings.queue_max);
        let (stop, stopped) = oneshot::channel();
        let fills = Arc::new(Notify::new());
        // The exporter's connections belong to this runtime.
        let _entered = background.enter();
        let exporter = export::Exporter::new(settings, generation, metrics.clone())?;
        let task = background.spawn(exporter.run(queue, fills.clone(), stopped));
        tracing::info!(endpoint = settings.endpoint, protocol = settings.protocol.name(), "starts are traced");
        Ok(Arc::new(Traces {
            sampler: Box::new(settings.sampler.clone()),
            starts,
            fills,
            metrics: metrics.clone(),
            sending: Mutex::new(Some(Sending { task, stop })),
        }))
    }

    /// Create has arrived. Returns its trace, if it is to be recorded.
    pub fn begin(&self, metadata: &HashMap<String, Vec<String>>) -> Option<Trace> {
        let create = TraceParent::of(metadata);
        let id = create.map_or_else(|| RandomIdGenerator::default().new_trace_id(), |parent| parent.trace.into());
        let caller = create.map(|parent| Context::new().with_remote_span_context(parent.context()));
        let sampled = self.sampler.should_sample(caller.as_ref(), id, spans::CREATE, &SpanKind::Server, &[], &[]);
        (sampled.decision == SamplingDecision::RecordAndSample).then(|| Trace { id, create, start: OnceLock::new() })
    }

    /// A start has ended. Without effect if it is not recorded.
    pub fn finished(&self, start: &Finished) {
        if start.about.trace.is_none() {
            return;
        }
        if self.starts.try_send(start.clone()).is_err() {
            self.metrics.traces.starts_dropped.inc();
        }
        if self.starts.capacity() < self.starts.max_capacity() / 2 {
            self.fills.notify_one();
        }
    }

    /// Sends the spans that are left, within `time`. Nothing is sent after it.
    pub async fn stop(&self, time: Duration) {
        let Some(Sending { mut task, stop }) = self.sending.lock().take() else { return };
        // An exporter that has ended by itself receives nothing.
        let _ = stop.send(());
        if tokio::time::timeout(time, &mut task).await.is_err() {
            task.abort();
        }
    }
}
