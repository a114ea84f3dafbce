//! What the two sides of a request, its client's and its guest's, know of each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;
use wasmtime_wasi_http::WasiBody;
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;

use hearth_wasm::scheduler::Guest;

/// A body that a guest writes.
pub enum Written {
    /// By WASI 0.2.
    P2(HyperOutgoingBody),
    /// By WASI 0.3.
    P3(WasiBody),
}

/// A response's head with the body that follows, or the error the guest gave instead, as text.
pub type Head = Result<hyper::Response<Written>, String>;

/// Where a guest's side sends it.
pub type SendHead = oneshot::Sender<Head>;

/// What both sides know.
#[derive(Debug, Default)]
pub struct Exchange {
    /// The guest ended otherwise than by returning: a body that ends now has been cut.
    failed: AtomicBool,
    phase: Mutex<Phase>,
}

/// Where the response is.
#[derive(Debug, Clone, Copy, Default)]
enum Phase {
    /// The head is not out.
    #[default]
    Head,
    /// The client gets the body.
    Body,
    /// It has all of it, or is gone, since then.
    Over(Instant),
}

impl Exchange {
    /// The head is out.
    pub fn begin_body(&self) {
        *self.phase.lock() = Phase::Body;
    }

    /// The client has all it wants.
    fn end(&self) {
        *self.phase.lock() = Phase::Over(Instant::now());
    }

    /// Whether the client has all it wants.
    pub fn is_over(&self) -> bool {
        matches!(*self.phase.lock(), Phase::Over(_))
    }

    /// A body that ends from now on has been cut.
    pub fn fail(&self) {
        self.failed.store(true, Ordering::Release);
    }

    /// Whether a body that ends has been cut.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// How much more time the guest has at the end of `timeout` since the request or an earlier answer of
    /// this; none if it has none.
    pub fn more_time(&self, now: Instant, timeout: Duration) -> Option<Duration> {
        match *self.phase.lock() {
            Phase::Head => None,
            // The connection's own time-out sees to it that it moves.
            Phase::Body => Some(timeout),
            Phase::Over(since) => Some((since + timeout).saturating_duration_since(now)).filter(|left| !left.is_zero()),
        }
    }
}

/// The client's hold on a request: dropped before the response's end, it ends the guest if that has no other
/// request.
pub struct Hold {
    /// Whom to end.
    pub guest: Option<Arc<Guest>>,
    /// The request.
    pub exchange: Arc<Exchange>,
    /// Its place in an instance of several requests.
    pub occupied: Option<Arc<super::workers::Occupied>>,
    /// Whether it has not been let go.
    pub armed: bool,
}

impl Hold {
    /// The guest may end by itself.
    pub fn let_go(mut self) {
        self.armed = false;
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.exchange.end();
        if self.armed
            && let Some(guest) = &self.guest
        {
            guest.kill();
        }
        if let Some(occupied) = &self.occupied {
            occupied.look();
        }
    }
}

/// Marks requests as failed unless told that they have not; dropped before the store, so that their bodies'
/// ends are seen later.
pub struct FailedUnlessDone<F: FnMut()>(Option<F>);

impl<F: FnMut()> FailedUnlessDone<F> {
    /// `fail` marks them.
    pub fn new(fail: F) -> FailedUnlessDone<F> {
        FailedUnlessDone(Some(fail))
    }

    /// They have not failed.
    pub fn done(&mut self) {
        self.0 = None;
    }
}

impl<F: FnMut()> Drop for FailedUnlessDone<F> {
    fn drop(&mut self) {
        if let Some(fail) = &mut self.0 {
            fail();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_time_ends_before_the_head_and_after_the_body_only() {
        let (exchange, second) = (Exchange::default(), Duration::from_secs(1));
        let now = Instant::now();
        assert_eq!(exchange.more_time(now, second), None);
        exchange.begin_body();
        assert_eq!(exchange.more_time(now, second), Some(second));
        *exchange.phase.lock() = Phase::Over(now);
        assert_eq!(exchange.more_time(now, second), Some(second));
        assert_eq!(exchange.more_time(now + second, second), None);
    }
}
