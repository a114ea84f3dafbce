//! Which requests get an instance, and which wait or are refused: the limits of one container
//! (`tenant.http_requests_max`, `http.queued_max`), then the node's [places](hearth_wasm::places).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::counts::{Counts, Waits};
use hearth_base::config;
use hearth_base::tenant::{Kind, Permit, Tenant};
use hearth_wasm::places::{Claim, Place};

/// Admits the requests of one container.
pub struct RequestAdmission {
    tenant: Arc<Tenant>,
    queued: AtomicUsize,
    queued_max: usize,
    places: Arc<Claim>,
}

/// The permit of the container and the place of the node that a request holds as long as it has an instance.
pub struct Admitted {
    _place: Place,
    _permit: Permit,
}

impl RequestAdmission {
    /// Requests of the container with this budget. `places` are the node's.
    pub fn new(config: &config::Http, tenant: Arc<Tenant>, places: Arc<Claim>) -> RequestAdmission {
        RequestAdmission { tenant, queued: AtomicUsize::new(0), queued_max: config.queued_max, places }
    }

    /// Waits until the request may have an instance; none if too many wait already.
    pub async fn admit(&self, counts: &Arc<Counts>) -> Option<Admitted> {
        let permit = match self.tenant.try_take(Kind::HttpRequests, 1) {
            Some(permit) => permit,
            None => {
                let _queued = self.queue(counts)?;
                self.tenant.wait(Kind::HttpRequests, 1).await
            }
        };
        let place = match self.places.try_take() {
            Some(place) => place,
            None => {
                // Requests that wait here have their permits, which bounds them.
                let _waits = counts.queue();
                self.places.take().await
            }
        };
        Some(Admitted { _place: place, _permit: permit })
    }

    fn queue(&self, counts: &Arc<Counts>) -> Option<Queued<'_>> {
        let more = |queued| (queued < self.queued_max).then_some(queued + 1);
        self.queued.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Queued { admission: self, _counted: counts.queue() })
    }
}

/// A request that waits for its permit, until it is dropped: its client may go away.
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
    use hearth_base::tenant::Limits;
    use hearth_observe::metrics::Metrics;
    use hearth_wasm::places::Places;

    fn container(requests_max: u64) -> Arc<Tenant> {
        Tenant::unnamed(&Limits::none().with(Kind::HttpRequests, requests_max))
    }

    #[tokio::test]
    async fn beyond_the_containers_limit_some_wait_and_the_rest_is_refused() {
        let config = config::Http { queued_max: 1, ..config::Http::default() };
        let counts = Arc::new(Counts::new(Arc::new(Metrics::new()), None));
        let admission = RequestAdmission::new(&config, container(1), Places::new(8).join());
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
    async fn a_request_with_a_permit_waits_for_a_place_of_the_node() {
        let config = config::Http { queued_max: 0, ..config::Http::default() };
        let counts = Arc::new(Counts::new(Arc::new(Metrics::new()), None));
        let places = Places::new(1);
        let other = RequestAdmission::new(&config, container(2), places.join());
        let held = other.admit(&counts).await.unwrap();
        let admission = RequestAdmission::new(&config, container(2), places.join());
        let mut waits = Box::pin(admission.admit(&counts));
        assert!(futures_util::poll!(&mut waits).is_pending());
        drop(held);
        assert!(waits.await.is_some());
    }
}
