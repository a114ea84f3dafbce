//! Starts as OpenTelemetry traces, if the environment asks for it. Without, a start has a comparison more.
//!
//! ```text
//!   Create, Start ─ traceparent ─▶ Trace, in the start's About ─ first instruction ─▶ queue ─▶ spans ─▶ collector
//!                                                                          └─ full: counted
//! ```
//!
//! A start keeps what it would keep anyway ([`crate::starts`]); spans are made of that later, on a thread that
//! steps back for all others. A collector that is away, slow or hangs costs spans, which are counted,
//! and a line in the log now and then; nobody waits for it.
//!
//! containerd 2.x sends a `traceparent` with Create and with Start where it traces itself; 1.6 and 1.7 send none.
//! A start without one is a trace of its own.

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

/// What makes traces of starts, and sends them.
pub struct Traces {
    sampler: Box<dyn ShouldSample>,
    starts: mpsc::Sender<Finished>,
    /// That the queue is half full.
    fills: Arc<Notify>,
    metrics: Arc<Metrics>,
    sending: Mutex<Option<Sending>>,
}

struct Sending {
    task: JoinHandle<()>,
    stop: oneshot::Sender<()>,
}

impl Traces {
    /// Starts it. `generation`: which life of the daemon this is.
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
        // What the exporter runs of its own is of this runtime.
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

    /// Create has arrived: its trace, if it is to be recorded.
    pub fn begin(&self, metadata: &HashMap<String, Vec<String>>) -> Option<Trace> {
        let create = TraceParent::of(metadata);
        let id = create.map_or_else(|| RandomIdGenerator::default().new_trace_id(), |parent| parent.trace.into());
        let caller = create.map(|parent| Context::new().with_remote_span_context(parent.context()));
        let sampled = self.sampler.should_sample(caller.as_ref(), id, spans::CREATE, &SpanKind::Server, &[], &[]);
        (sampled.decision == SamplingDecision::RecordAndSample).then(|| Trace { id, create, start: OnceLock::new() })
    }

    /// A start has come to its end; nothing if it is not recorded.
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

    /// Sends what is left, for so long at most, and nothing after it.
    pub async fn stop(&self, time: Duration) {
        let Some(Sending { mut task, stop }) = self.sending.lock().take() else { return };
        // It may have ended by itself: then there is nothing to wait for.
        let _ = stop.send(());
        if tokio::time::timeout(time, &mut task).await.is_err() {
            task.abort();
        }
    }
}
