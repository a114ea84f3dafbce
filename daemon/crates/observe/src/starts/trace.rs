//! The trace that a start belongs to, from the `traceparent` that containerd passes on (W3C Trace Context).
//!
//! The header is parsed here and not by opentelemetry_sdk's propagator: that one takes ids of any length and with a
//! sign, which the standard has a receiver ignore, and needs a context and an extractor for each call.

use std::collections::HashMap;
use std::sync::OnceLock;

use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

/// The caller's span, as a request's metadata names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    /// The id of the trace.
    pub trace: u128,
    /// The id of the caller's span.
    pub span: u64,
    /// Whether the caller records its span.
    pub sampled: bool,
}

impl TraceParent {
    /// Parses a `traceparent`: `00-<32 hex digits>-<16>-<2>`; later versions may append more parts.
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

    /// The `traceparent` in a call's metadata.
    pub(crate) fn of(metadata: &HashMap<String, Vec<String>>) -> Option<TraceParent> {
        metadata.get("traceparent").and_then(|values| TraceParent::parse(values.first()?))
    }

    pub(crate) fn context(self) -> SpanContext {
        let flags = TraceFlags::default().with_sampled(self.sampled);
        SpanContext::new(TraceId::from(self.trace), SpanId::from(self.span), flags, true, TraceState::NONE)
    }
}

/// The trace of a start that is recorded.
#[derive(Debug, Clone)]
pub struct Trace {
    /// Its id.
    pub id: TraceId,
    /// The caller of Create.
    pub create: Option<TraceParent>,
    /// The caller of Start.
    pub start: OnceLock<TraceParent>,
}

impl Trace {
    /// Start has arrived.
    pub fn start_began(&self, metadata: &HashMap<String, Vec<String>>) {
        if let Some(parent) = TraceParent::of(metadata) {
            // A task is started once: the first Start counts.
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
