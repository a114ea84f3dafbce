//! The state that the client's side and the guest's side of one request share.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;
use wasmtime_wasi_http::WasiBody;
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;

use hearth_observe::metrics::CutReason;

/// A response body that a guest writes.
pub enum WrittenBody {
    /// By WASI 0.2.
    P2(HyperOutgoingBody),
    /// By WASI 0.3.
    P3(WasiBody),
}

/// A response's head with the body that follows, or the error code that the guest gave instead, as text.
pub type ResponseHead = Result<hyper::Response<WrittenBody>, String>;

/// Where the guest's side sends the head.
pub type SendHead = oneshot::Sender<ResponseHead>;

/// The state that both sides of a request know.
#[derive(Debug, Default)]
pub struct RequestState(Mutex<Progress>);

#[derive(Debug, Default)]
struct Progress {
    phase: ResponsePhase,
    /// When the guest was called.
    called: Option<Instant>,
    has_head: bool,
    /// Set once the guest has ended otherwise than by returning: a body that ends after that is cut.
    failure: Option<CutReason>,
}

/// Where the response is.
#[derive(Debug, Clone, Copy, Default)]
enum ResponsePhase {
    /// The guest has not given the head.
    #[default]
    Head,
    /// The client receives the body.
    Body,
    /// The client has the whole response, or is gone, since this moment.
    Over(Instant),
}

impl RequestState {
    /// The guest is called.
    pub fn call(&self) {
        self.0.lock().called = Some(Instant::now());
    }

    /// When the guest was called, if it was.
    pub fn called(&self) -> Option<Instant> {
        self.0.lock().called
    }

    /// The guest has given the response's head.
    pub fn begin_body(&self) {
        let mut progress = self.0.lock();
        progress.has_head = true;
        progress.phase = ResponsePhase::Body;
    }

    /// The client has the whole response, or is gone.
    pub fn end(&self) {
        self.0.lock().phase = ResponsePhase::Over(Instant::now());
    }

    /// Whether the guest has given the response's head.
    pub fn has_head(&self) -> bool {
        self.0.lock().has_head
    }

    /// The guest ends otherwise than by returning. The first reason stays.
    pub fn fail(&self, reason: CutReason) {
        self.0.lock().failure.get_or_insert(reason);
    }

    /// Why a body that ends now is cut; none if its guest has not failed.
    pub fn failure(&self) -> Option<CutReason> {
        self.0.lock().failure
    }

    /// How much more time the guest has when `timeout` has passed since the request arrived, or since an earlier
    /// answer of this function; none if the guest has to be ended.
    pub fn more_time(&self, now: Instant, timeout: Duration) -> Option<Duration> {
        match self.0.lock().phase {
            ResponsePhase::Head => None,
            // The idle time-out of the connection and the least rate of the client bound this phase.
            ResponsePhase::Body => Some(timeout),
            ResponsePhase::Over(since) => {
                Some((since + timeout).saturating_duration_since(now)).filter(|left| !left.is_zero())
            }
        }
    }
}

/// Marks requests as failed when it is dropped, unless [`FailUnlessDone::done`] was called. It has to be dropped before
/// the store: the store's end ends the bodies, and each body then finds out whether it was cut.
pub struct FailUnlessDone<F: FnMut(CutReason)> {
    fail: Option<F>,
    reason: CutReason,
}

impl<F: FnMut(CutReason)> FailUnlessDone<F> {
    /// `fail` marks the requests. The reason is that the guest was killed until another one is set.
    pub fn new(fail: F) -> FailUnlessDone<F> {
        FailUnlessDone { fail: Some(fail), reason: CutReason::Killed }
    }

    /// Sets the reason.
    pub fn because(&mut self, reason: CutReason) {
        self.reason = reason;
    }

    /// The requests have not failed.
    pub fn done(&mut self) {
        self.fail = None;
    }
}

impl<F: FnMut(CutReason)> Drop for FailUnlessDone<F> {
    fn drop(&mut self) {
        if let Some(fail) = &mut self.fail {
            fail(self.reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_time_ends_before_the_head_and_after_the_body_only() {
        let (state, second) = (RequestState::default(), Duration::from_secs(1));
        let now = Instant::now();
        assert_eq!(state.more_time(now, second), None);
        state.begin_body();
        assert_eq!(state.more_time(now, second), Some(second));
        state.0.lock().phase = ResponsePhase::Over(now);
        assert_eq!(state.more_time(now, second), Some(second));
        assert_eq!(state.more_time(now + second, second), None);
        assert!(state.has_head(), "also when the client is gone");
    }

    #[test]
    fn the_first_reason_of_a_failure_stays() {
        let state = RequestState::default();
        let mut failing = FailUnlessDone::new(|reason| state.fail(reason));
        failing.because(CutReason::Trap);
        drop(failing);
        FailUnlessDone::new(|reason| state.fail(reason));
        assert_eq!(state.failure(), Some(CutReason::Trap));
        let state = RequestState::default();
        FailUnlessDone::new(|reason| state.fail(reason)).done();
        assert_eq!(state.failure(), None);
    }
}
