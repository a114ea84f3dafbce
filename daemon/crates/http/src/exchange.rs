//! One request from its head to the end of its response: the times of its parts, for the metrics of its pod, for the list
//! of slow requests and for the access log.
//!
//! All of it is recorded when the [`Exchange`] is dropped. Before that, a request only notes a few moments.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::Request;
use hyper::body::Incoming;

use crate::access_log::Entry;
use crate::request::Client;
use crate::request_state::RequestState;
use crate::service::Service;
use crate::trace_context::TraceContext;
use hearth_observe::metrics::REQUEST_PHASES;
use hearth_observe::starts::requests::SlowRequest;

/// The status code in the access log of a request that got no answer: its client went away, or the container ended.
const UNANSWERED: u16 = 499;

/// A request that has not come to its response's end.
pub struct Exchange {
    service: Arc<Service>,
    began: Instant,
    /// Method and path, for messages.
    pub name: Arc<str>,
    /// The trace that its client sent.
    pub trace: Option<TraceContext>,
    admitted: Option<Instant>,
    /// Its state as the guest's side knows it.
    pub state: Option<Arc<RequestState>>,
    answered: Option<(u16, Instant)>,
    /// Bytes of the response's body so far.
    pub sent: u64,
    /// Whether the response has come to its end.
    pub is_whole: bool,
    /// Its line of the access log, if there is one.
    entry: Option<Box<Entry>>,
}

impl Exchange {
    /// Of a request whose head has just come.
    pub fn new(service: &Arc<Service>, client: Client, name: Arc<str>, request: &Request<Incoming>) -> Exchange {
        Exchange {
            service: service.clone(),
            began: Instant::now(),
            name,
            trace: TraceContext::of(request.headers()),
            admitted: None,
            state: None,
            answered: None,
            sent: 0,
            is_whole: false,
            entry: service.access_log.as_ref().map(|_| Box::new(Entry::new(client, request))),
        }
    }

    /// The request may have an instance.
    pub fn admitted(&mut self) {
        self.admitted = Some(Instant::now());
    }

    /// The response's head goes out. Returns the time since the request's head.
    pub fn answered(&mut self, status: u16) -> Duration {
        let now = Instant::now();
        self.answered = Some((status, now));
        now - self.began
    }

    /// The times of its parts, if it ends now; none for a part that it did not come to.
    fn phases(&self, now: Instant) -> [Option<Duration>; REQUEST_PHASES.len()] {
        let called = self.state.as_ref().and_then(|state| state.called());
        let answered = self.answered.map(|(_, at)| at);
        parts(self.began, [self.admitted, called, answered], now)
    }
}

/// The times between `began`, the moments that follow it as far as they came, and `now`. The last part is the one that goes
/// on until `now`.
fn parts<const MOMENTS: usize>(
    began: Instant,
    moments: [Option<Instant>; MOMENTS],
    now: Instant,
) -> [Option<Duration>; REQUEST_PHASES.len()] {
    let mut parts = [None; REQUEST_PHASES.len()];
    let mut since = began;
    let mut part = 0;
    for (at, moment) in moments.iter().enumerate() {
        let Some(moment) = moment else { continue };
        // The parts between that it did not come to took no time of their own: a request is refused from the queue.
        parts[part] = Some(moment.saturating_duration_since(since));
        since = *moment;
        part = at + 1;
    }
    parts[part] = Some(now.saturating_duration_since(since));
    parts
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let now = Instant::now();
        let took = now - self.began;
        let service = &self.service;
        service.counts.ended(took);
        let is_slow = service.http.slow_request().is_some_and(|slow| took >= slow);
        let pod = service.counts.pod();
        if !is_slow && pod.is_none() && self.entry.is_none() {
            return;
        }
        let phases = self.phases(now);
        if let Some(pod) = pod {
            pod.phases(phases);
        }
        let status = self.answered.map(|(status, _)| status);
        let trace = self.trace.as_ref().map(TraceContext::id);
        if is_slow {
            service.runtime.recent.was_slow(SlowRequest {
                about: service.container.about.clone(),
                request: self.name.clone(),
                status: status.unwrap_or(0),
                cut: !self.is_whole,
                took,
                phases,
                trace,
            });
        }
        if let (Some(log), Some(entry)) = (&service.access_log, &self.entry) {
            let status = status.unwrap_or(UNANSWERED);
            let summary = Summary { status, sent: self.sent, is_whole: self.is_whole, took, phases, trace };
            log.write(service, entry, &summary);
        }
    }
}

/// The fields of an access log line that do not come from the request's head.
#[derive(Debug)]
pub struct Summary {
    /// The status code.
    pub status: u16,
    /// Bytes of the response's body.
    pub sent: u64,
    /// Whether the response came to its end.
    pub is_whole: bool,
    /// The time from the request's head to the response's end.
    pub took: Duration,
    /// Its parts, in the order of [`REQUEST_PHASES`].
    pub phases: [Option<Duration>; REQUEST_PHASES.len()],
    /// The id of its trace.
    pub trace: Option<u128>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_request_are_those_that_it_came_to() {
        let (began, ms) = (Instant::now(), Duration::from_millis(1));
        let at = |after: u32| Some(began + after * ms);
        let of = |moments| parts(began, moments, began + 10 * ms);
        assert_eq!(of([at(1), at(3), at(6)]), [Some(ms), Some(2 * ms), Some(3 * ms), Some(4 * ms)]);
        assert_eq!(of([at(1), at(3), None]), [Some(ms), Some(2 * ms), Some(7 * ms), None], "the guest is too slow");
        assert_eq!(of([None, None, None]), [Some(10 * ms), None, None, None], "its client left the queue");
        assert_eq!(of([at(1), None, at(6)]), [Some(ms), Some(5 * ms), None, Some(4 * ms)], "there was no instance");
        assert_eq!(of([None, None, at(6)]), [Some(6 * ms), None, None, Some(4 * ms)], "it was refused");
    }
}
