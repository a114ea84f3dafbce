//! The trace that a request belongs to (W3C Trace Context): its client's `traceparent` and `tracestate`, which the guest's
//! own requests carry on.
//!
//! The daemon adds no span of its own, so that both headers go on as they came. A header that a guest sets itself counts
//! instead. A request without a `traceparent` begins no trace.

use std::sync::Arc;

use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};
use parking_lot::Mutex;

use hearth_observe::starts::trace::TraceParent;

/// The header with the ids of the trace and of the client's span.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The header with what tracing systems add.
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// A request's place in a trace.
#[derive(Debug, Clone)]
pub struct TraceContext {
    id: u128,
    parent: HeaderValue,
    state: Option<HeaderValue>,
}

impl TraceContext {
    /// The context in these headers; none without one valid `traceparent`.
    pub fn of(headers: &HeaderMap) -> Option<TraceContext> {
        let mut parents = headers.get_all(TRACEPARENT).iter();
        let (parent, None) = (parents.next()?, parents.next()) else { return None };
        let id = TraceParent::parse(parent.to_str().ok()?)?.trace;
        let mut states = headers.get_all(TRACESTATE).iter();
        // Several are one list; only the first is kept, as a receiver may (section 3.3.1.1 of the standard).
        Some(TraceContext { id, parent: parent.clone(), state: states.next().cloned() })
    }

    /// The id of the trace.
    pub fn id(&self) -> u128 {
        self.id
    }

    /// Gives a guest's request these headers, unless the guest has set a `traceparent`.
    pub fn carry_on(&self, headers: &mut HeaderMap) {
        if headers.contains_key(TRACEPARENT) {
            return;
        }
        headers.insert(TRACEPARENT, self.parent.clone());
        match &self.state {
            Some(state) => headers.insert(TRACESTATE, state.clone()),
            None => headers.remove(TRACESTATE),
        };
    }
}

/// The trace of the request that an instance has now. Of an instance that may have several at once, the daemon cannot tell
/// which of them a request of the guest belongs to: it has none.
#[derive(Debug, Clone, Default)]
pub struct CurrentTrace(Option<Arc<Mutex<Option<TraceContext>>>>);

impl CurrentTrace {
    /// Of an instance with one request.
    pub fn of(trace: Option<&TraceContext>) -> CurrentTrace {
        CurrentTrace(trace.map(|trace| Arc::new(Mutex::new(Some(trace.clone())))))
    }

    /// Of an instance with one request after the other.
    pub fn changing() -> CurrentTrace {
        CurrentTrace(Some(Arc::default()))
    }

    /// The next request of the instance begins.
    pub fn set(&self, trace: Option<TraceContext>) {
        if let Some(current) = &self.0 {
            *current.lock() = trace;
        }
    }

    /// Gives a guest's request the headers of the trace.
    pub fn carry_on(&self, headers: &mut HeaderMap) {
        if let Some(current) = &self.0
            && let Some(trace) = &*current.lock()
        {
            trace.carry_on(headers);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn a_trace_goes_on_as_it_came() {
        let trace = TraceContext::of(&headers(&[(TRACEPARENT, PARENT), (TRACESTATE, "a=b")])).unwrap();
        assert_eq!(trace.id(), 0x0af7651916cd43dd8448eb211c80319c);
        let mut own = HeaderMap::new();
        CurrentTrace::of(Some(&trace)).carry_on(&mut own);
        assert_eq!(own, headers(&[(TRACEPARENT, PARENT), (TRACESTATE, "a=b")]));
        let of_guest = "00-0af7651916cd43dd8448eb211c80319c-0000000000000001-00";
        let mut own = headers(&[(TRACEPARENT, of_guest)]);
        CurrentTrace::of(Some(&trace)).carry_on(&mut own);
        assert_eq!(own, headers(&[(TRACEPARENT, of_guest)]), "the guest has a span of its own");
    }

    #[test]
    fn no_trace_begins_without_a_valid_one() {
        for wrong in [&[][..], &[(TRACEPARENT, "00-0-0-0")], &[(TRACEPARENT, PARENT), (TRACEPARENT, PARENT)]] {
            assert!(TraceContext::of(&headers(wrong)).is_none(), "{wrong:?}");
        }
        let mut own = HeaderMap::new();
        CurrentTrace::of(None).carry_on(&mut own);
        let changing = CurrentTrace::changing();
        changing.carry_on(&mut own);
        assert!(own.is_empty());
        changing.set(TraceContext::of(&headers(&[(TRACEPARENT, PARENT)])));
        changing.carry_on(&mut own);
        changing.set(None);
        assert_eq!(own, headers(&[(TRACEPARENT, PARENT)]));
    }
}
