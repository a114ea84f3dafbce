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
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, TraceContextExt, TraceFlags, TraceId, TraceState};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SamplingDecision, ShouldSample};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::metrics::Metrics;
use crate::starts::Finished;
use crate::traces::settings::Settings;

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

    /// What a call's metadata has of it.
    fn of(metadata: &HashMap<String, Vec<String>>) -> Option<TraceParent> {
        metadata.get("traceparent").and_then(|values| TraceParent::parse(values.first()?))
    }

    fn context(self) -> SpanContext {
        let flags = TraceFlags::default().with_sampled(self.sampled);
        SpanContext::new(TraceId::from(self.trace), SpanId::from(self.span), flags, true, TraceState::NONE)
    }
}

/// The trace of a start that is recorded.
#[derive(Debug, Clone)]
pub struct Trace {
    /// Its id.
    pub id: TraceId,
    /// Who asked for Create.
    pub create: Option<TraceParent>,
    /// Who asked for Start.
    pub start: OnceLock<TraceParent>,
}

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

    /// A start that is recorded has come to its end.
    pub fn finished(&self, start: Finished) {
        if self.starts.try_send(start).is_err() {
            self.metrics.trace_starts_dropped.inc();
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

impl Trace {
    /// Start has arrived.
    pub fn start_began(&self, metadata: &HashMap<String, Vec<String>>) {
        if let Some(parent) = TraceParent::of(metadata) {
            // The first counts; only that one can begin it.
            let _ = self.start.set(parent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
