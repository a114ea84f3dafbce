//! Which requests get an instance, and which wait or are refused: the limits of one container (`http.requests_max`,
//! `http.queued_max`), then the node's [places](crate::places).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::counts::{Counts, Waits};
use crate::places::{Claim, Place};
use hearth_base::config;

/// Admits the requests of one container.
pub struct RequestAdmission {
    turns: Arc<Semaphore>,
    queued: AtomicUsize,
    queued_max: usize,
    places: Arc<Claim>,
}

/// The turn of the container and the place of the node that a request holds as long as it has an instance.
pub struct Admitted {
    _place: Place,
    _turn: OwnedSemaphorePermit,
}

impl RequestAdmission {
    /// With the limits of the configuration. `places` are the node's.
    pub fn new(config: &config::Http, places: Arc<Claim>) -> RequestAdmission {
        RequestAdmission {
            turns: Arc::new(Semaphore::new(config.requests_max)),
            queued: AtomicUsize::new(0),
            queued_max: config.queued_max,
            places,
        }
    }

    /// Waits until the request may have an instance; none if too many wait already.
    pub async fn admit(&self, counts: &Arc<Counts>) -> Option<Admitted> {
        let turn = match self.turns.clone().try_acquire_owned() {
            Ok(turn) => turn,
            Err(_) => {
                let _queued = self.queue(counts)?;
                self.turns.clone().acquire_owned().await.ok()?
            }
        };
        let place = match self.places.try_take() {
            Some(place) => place,
            None => {
                // Requests that wait here have their turns, which bounds them.
                let _waits = counts.queue();
                self.places.take().await
            }
        };
        Some(Admitted { _place: place, _turn: turn })
    }

    fn queue(&self, counts: &Arc<Counts>) -> Option<Queued<'_>> {
        let more = |queued| (queued < self.queued_max).then_some(queued + 1);
        self.queued.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Queued { admission: self, _counted: counts.queue() })
    }
}

/// A request that waits for its turn, until it is dropped: its client may go away.
struct Queued<'a> {
    admission: &'a RequestAdmission,
    _counted: Waits,
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.admission.queued.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::places::Places;
    use hearth_observe::metrics::Metrics;

    #[tokio::test]
    async fn beyond_the_turns_some_wait_and_the_rest_is_refused() {
        let config = config::Http { requests_max: 1, queued_max: 1, ..config::Http::default() };
        let counts = Arc::new(Counts::new(Arc::new(Metrics::new()), None));
        let admission = RequestAdmission::new(&config, Places::new(8).join());
        let first = admission.admit(&counts).await.unwrap();
        let mut second = Box::pin(admission.admit(&counts));
        assert!(futures_util::poll!(&mut second).is_pending());
        assert!(admission.admit(&counts).await.is_none(), "one waits already");
        drop(first);
        let second = second.await.unwrap();
        let mut third = Box::pin(admission.admit(&counts));
        assert!(futures_util::poll!(&mut third).is_pending(), "the place in the queue is free again");
        drop(third);
        drop(second);
        assert!(admission.admit(&counts).await.is_some());
    }

    #[tokio::test]
    async fn a_request_with_a_turn_waits_for_a_place_of_the_node() {
        let config = config::Http { requests_max: 2, queued_max: 0, ..config::Http::default() };
        let counts = Arc::new(Counts::new(Arc::new(Metrics::new()), None));
        let places = Places::new(1);
        let other = RequestAdmission::new(&config, places.join());
        let held = other.admit(&counts).await.unwrap();
        let admission = RequestAdmission::new(&config, places.join());
        let mut waits = Box::pin(admission.admit(&counts));
        assert!(futures_util::poll!(&mut waits).is_pending());
        drop(held);
        assert!(waits.await.is_some());
    }
}
