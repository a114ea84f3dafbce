//! The last slow HTTP requests, for operators: each with its phases, and with its trace if its client sent one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use opentelemetry::trace::TraceId;
use parking_lot::Mutex;

use super::About;
use crate::metrics::REQUEST_PHASES;
use hearth_base::operator::{PhaseInfo, RequestInfo};
use hearth_base::text::shown;
use hearth_base::time::unix;

/// One of so many of the requests that are kept may be of one container, so that a slow service leaves room for others.
const SHARE: usize = 8;

/// The longest method and path that is kept, in bytes.
const REQUEST_BYTES_MAX: usize = 256;

/// A slow request.
#[derive(Clone)]
pub struct SlowRequest {
    /// The container.
    pub about: Arc<About>,
    /// Its method and path.
    pub request: Arc<str>,
    /// The status code of the response; 0 if there was none.
    pub status: u16,
    /// Whether the client did not get all of the response.
    pub cut: bool,
    /// The time from its head to the response's end.
    pub took: Duration,
    /// The parts of that time, in the order of [`REQUEST_PHASES`]; none for a part that it did not come to.
    pub phases: [Option<Duration>; REQUEST_PHASES.len()],
    /// The id of its trace.
    pub trace: Option<u128>,
}

/// The last slow requests.
pub(super) struct SlowRequests {
    max: usize,
    kept: Mutex<VecDeque<(SystemTime, SlowRequest)>>,
}

impl SlowRequests {
    pub fn new(max: usize) -> SlowRequests {
        SlowRequests { max, kept: Mutex::default() }
    }

    pub fn push(&self, request: SlowRequest) {
        let oldest = {
            let mut kept = self.kept.lock();
            let of_it = |(_, other): &(SystemTime, SlowRequest)| Arc::ptr_eq(&other.about, &request.about);
            let share = (self.max / SHARE).max(1);
            let oldest = match kept.iter().filter(|other| of_it(other)).count() >= share {
                true => kept.iter().position(of_it),
                false => (kept.len() >= self.max).then_some(0),
            };
            let oldest = oldest.and_then(|at| kept.remove(at));
            kept.push_back((SystemTime::now(), request));
            oldest
        };
        // Freed after the lock is released.
        drop(oldest);
    }

    /// The latest first.
    pub fn infos(&self, generation: &str) -> Vec<RequestInfo> {
        let kept: Vec<_> = self.kept.lock().iter().cloned().collect();
        kept.iter().rev().map(|(at, request)| request.info(*at, generation)).collect()
    }
}

impl SlowRequest {
    fn info(&self, at: SystemTime, generation: &str) -> RequestInfo {
        let mut began = Duration::ZERO;
        let phases = REQUEST_PHASES.iter().zip(self.phases).filter_map(|(name, took)| {
            let took = took?;
            let (began_seconds, seconds) = (began.as_secs_f64(), took.as_secs_f64());
            began += took;
            Some(PhaseInfo { name: (*name).into(), began_seconds, seconds })
        });
        RequestInfo {
            of: self.about.name(generation),
            at: unix(at),
            request: shown(&self.request, REQUEST_BYTES_MAX).into_owned(),
            status: self.status,
            cut: self.cut,
            seconds: self.took.as_secs_f64(),
            phases: phases.collect(),
            trace_id: self.trace.map(|id| TraceId::from(id).to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::about;
    use super::*;

    fn request(about: &Arc<About>, number: u64) -> SlowRequest {
        let second = Duration::from_secs(1);
        SlowRequest {
            about: about.clone(),
            request: format!("GET /{number}").into(),
            status: 200,
            cut: false,
            took: 3 * second,
            phases: [Some(second), None, Some(2 * second), None],
            trace: Some(0xabc),
        }
    }

    #[test]
    fn a_slow_service_leaves_room_for_others() {
        let requests = SlowRequests::new(16);
        let (greedy, other) = (about("a"), about("b"));
        requests.push(request(&other, 0));
        (1..100).for_each(|number| requests.push(request(&greedy, number)));
        let names: Vec<_> = requests.infos("g").into_iter().map(|info| info.request).collect();
        assert_eq!(names, ["GET /99", "GET /98", "GET /0"]);
        let many: Vec<_> = (0..40).map(|number| about(&number.to_string())).collect();
        many.iter().for_each(|about| requests.push(request(about, 7)));
        assert_eq!(requests.infos("g").len(), 16);
    }

    #[test]
    fn its_phases_lie_on_one_line_of_time() {
        let requests = SlowRequests::new(16);
        requests.push(request(&about("a"), 1));
        let info = requests.infos("g").remove(0);
        let phases: Vec<_> =
            info.phases.iter().map(|phase| (phase.name.as_str(), phase.began_seconds, phase.seconds)).collect();
        assert_eq!(phases, [("queue", 0.0, 1.0), ("head", 1.0, 2.0)]);
        assert_eq!(info.trace_id.as_deref(), Some("00000000000000000000000000000abc"));
        assert_eq!((info.of.id.as_str(), info.seconds), ("a", 3.0));
    }
}
