//! The node's places for one kind of work, shared fairly by the containers: for HTTP requests (`http.instances_max`) and for
//! look-ups of names (`network.lookups_max`).
//!
//! A request has one place for as long as it has an instance, a look-up for as long as it is under way. Places cannot be taken
//! back, so fairness lies in admission. Below, a service is any holder of places, and a request any work that has one:
//!
//! * A service may hold at most twice as many places as are free beyond the reserve. This is a dynamic threshold,
//!   as switches have it for shared buffers: a service alone may use two thirds of the node, two greedy services leave a
//!   fifth free, and however many there are, each leaves room for the next one, which need not wait for any of them.
//! * The reserve, a sixteenth of the places, is for the first place of services that hold none.
//! * When requests wait, a place that becomes free goes to the service that holds the fewest (max-min fairness), and among
//!   equals to the one whose last grant is longest ago.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// How many times the free places a service may hold.
const SHARE: usize = 2;

/// One of so many places is reserved for services that hold none.
const RESERVE: usize = 16;

/// Whether a service that holds `held` places may take one of the `free` ones, of `total`.
fn admits(held: usize, free: usize, total: usize) -> bool {
    match held {
        0 => free > 0,
        _ => held < SHARE * free.saturating_sub(total / RESERVE),
    }
}

/// The places of the node.
pub struct Places {
    total: usize,
    pool: Mutex<Pool>,
}

#[derive(Default)]
struct Pool {
    free: usize,
    services: HashMap<u64, Service>,
    /// Services whose requests wait: by the places they hold, then by their last grant.
    waiting: BTreeSet<(usize, u64, u64)>,
    /// The last number that was given: to a service, a grant or a request that waits.
    last: u64,
}

/// A service's part in the pool.
#[derive(Default)]
struct Service {
    held: usize,
    /// The number of its last grant.
    granted: u64,
    /// Its requests that wait, in their order.
    requests: BTreeMap<u64, oneshot::Sender<()>>,
}

impl Places {
    /// So many places, all free.
    pub fn new(total: usize) -> Arc<Places> {
        Arc::new(Places { total, pool: Mutex::new(Pool { free: total, ..Pool::default() }) })
    }

    /// A service's access to the places. Its claims end when the last clone is dropped.
    pub fn join(self: &Arc<Places>) -> Arc<Claim> {
        let mut pool = self.pool.lock();
        let id = pool.next();
        pool.services.insert(id, Service::default());
        Arc::new(Claim { places: self.clone(), id })
    }
}

impl Pool {
    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Takes a place for a service, if it may have one now.
    fn take(&mut self, id: u64, total: usize) -> bool {
        let free = self.free;
        let Some(service) = self.services.get_mut(&id) else { return false };
        if !service.requests.is_empty() || !admits(service.held, free, total) {
            return false;
        }
        service.held += 1;
        self.free -= 1;
        true
    }

    /// Queues a request of a service.
    fn wait(&mut self, id: u64) -> (u64, oneshot::Receiver<()>) {
        let (ticket, (tell, granted)) = (self.next(), oneshot::channel());
        if let Some(service) = self.services.get_mut(&id) {
            if service.requests.is_empty() {
                self.waiting.insert((service.held, service.granted, id));
            }
            service.requests.insert(ticket, tell);
        }
        (ticket, granted)
    }

    /// Takes a request out of the queue; `false` if it is not there, since its place was granted.
    fn leave(&mut self, id: u64, ticket: u64) -> bool {
        let Some(service) = self.services.get_mut(&id) else { return true };
        let was_waiting = service.requests.remove(&ticket).is_some();
        if was_waiting && service.requests.is_empty() {
            self.waiting.remove(&(service.held, service.granted, id));
        }
        was_waiting
    }

    /// Gives a place back. The caller has to send to the returned senders, without the lock: their requests have places.
    fn give_back(&mut self, id: u64, total: usize) -> Vec<oneshot::Sender<()>> {
        self.free += 1;
        if let Some(service) = self.services.get_mut(&id) {
            let before = (service.held, service.granted, id);
            service.held -= 1;
            if self.waiting.remove(&before) {
                self.waiting.insert((service.held, service.granted, id));
            }
        }
        let mut granted = Vec::new();
        while let Some(&(held, last, id)) = self.waiting.first() {
            // The one with the fewest places: if it may not have one more, no other may.
            if !admits(held, self.free, total) {
                break;
            }
            self.waiting.remove(&(held, last, id));
            let number = self.next();
            let Some(service) = self.services.get_mut(&id) else { continue };
            let Some((_, tell)) = service.requests.pop_first() else { continue };
            service.held += 1;
            service.granted = number;
            self.free -= 1;
            if !service.requests.is_empty() {
                self.waiting.insert((service.held, service.granted, id));
            }
            granted.push(tell);
        }
        granted
    }
}

/// A service's access to the places.
pub struct Claim {
    places: Arc<Places>,
    id: u64,
}

impl Claim {
    /// A place, if the service may have one now.
    pub fn try_take(self: &Arc<Claim>) -> Option<Place> {
        let taken = self.places.pool.lock().take(self.id, self.places.total);
        taken.then(|| Place(self.clone()))
    }

    /// Waits for a place.
    pub async fn take(self: &Arc<Claim>) -> Place {
        let queued = {
            let mut pool = self.places.pool.lock();
            if pool.take(self.id, self.places.total) { None } else { Some(pool.wait(self.id)) }
        };
        if let Some((ticket, granted)) = queued {
            let mut waiting = Waiting { claim: self, ticket: Some(ticket) };
            // The pool drops the sender only after it has used it.
            let _ = granted.await;
            waiting.ticket = None;
        }
        Place(self.clone())
    }

    fn give_back(&self) {
        let granted = self.places.pool.lock().give_back(self.id, self.places.total);
        for tell in granted {
            // A request that has gone meanwhile gives the place back itself.
            let _ = tell.send(());
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Places and requests that wait hold the claim: there are none any more.
        self.places.pool.lock().services.remove(&self.id);
    }
}

/// A request that waits for a place, until it is dropped: its client may go away.
struct Waiting<'a> {
    claim: &'a Arc<Claim>,
    ticket: Option<u64>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let was_waiting = self.claim.places.pool.lock().leave(self.claim.id, ticket);
        if !was_waiting {
            self.claim.give_back();
        }
    }
}

/// A request's place.
pub struct Place(Arc<Claim>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.give_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes as many places as the service may have at once.
    fn fill(claim: &Arc<Claim>) -> Vec<Place> {
        std::iter::from_fn(|| claim.try_take()).collect()
    }

    #[test]
    fn greedy_services_leave_room_for_the_next_one() {
        let places = Places::new(512);
        let claims: Vec<_> = (0..40).map(|_| places.join()).collect();
        let held: Vec<_> = claims.iter().map(fill).collect();
        let counts: Vec<_> = held.iter().map(Vec::len).collect();
        assert!(counts[0] >= 256, "one service has what the default of tenant.http_requests_max allows: {counts:?}");
        assert!(counts[1] >= 64 && counts[2] >= 32, "{counts:?}");
        assert!(counts[..35].iter().all(|count| *count > 0), "each has a place at once: {counts:?}");
        assert_eq!(counts.iter().sum::<usize>(), 512, "and in the end none is free");
    }

    #[test]
    fn two_services_at_their_limit_of_requests_do_not_keep_a_third_out() {
        let places = Places::new(512);
        let claims = [places.join(), places.join()];
        // In turns, and at most 256 each, the default of `tenant.http_requests_max`.
        let mut held = Vec::new();
        for _ in 0..256 {
            held.extend(claims.iter().filter_map(Claim::try_take));
        }
        let third = fill(&places.join());
        assert!(held.len() >= 380 && third.len() >= 60, "{} and {}", held.len(), third.len());
    }

    #[test]
    fn small_nodes_have_a_place_for_each_service_too() {
        let places = Places::new(2);
        let (one, other) = (places.join(), places.join());
        let mut held = fill(&one);
        assert_eq!(held.len(), 2, "what no other service wants may be used");
        assert!(other.try_take().is_none());
        held.pop();
        assert_eq!(fill(&other).len(), 1);
    }

    #[tokio::test]
    async fn a_free_place_goes_to_the_service_with_the_fewest() {
        let places = Places::new(12);
        let (rich, poor) = (places.join(), places.join());
        let (mut rich_places, poor_places) = (fill(&rich), fill(&poor));
        assert_eq!((rich_places.len(), poor_places.len()), (8, 3));
        let mut rich_waits = Box::pin(rich.take());
        let mut poor_waits = Box::pin(poor.take());
        assert!(futures_util::poll!(&mut rich_waits).is_pending());
        assert!(futures_util::poll!(&mut poor_waits).is_pending());
        rich_places.pop();
        assert!(futures_util::poll!(&mut rich_waits).is_pending());
        let std::task::Poll::Ready(got) = futures_util::poll!(&mut poor_waits) else { panic!("it has fewer") };
        drop((rich_waits, got, rich_places, poor_places));
        assert_eq!(places.pool.lock().free, 12);
    }

    #[tokio::test]
    async fn a_request_that_goes_away_takes_no_place_with_it() {
        let places = Places::new(1);
        let claim = places.join();
        let place = claim.try_take().unwrap();
        let mut gone = Box::pin(claim.take());
        let mut granted = Box::pin(claim.take());
        assert!(futures_util::poll!(&mut gone).is_pending());
        assert!(futures_util::poll!(&mut granted).is_pending());
        drop(gone);
        drop(place);
        // Granted, and not looked at before it goes.
        drop(granted);
        let pool = places.pool.lock();
        assert_eq!((pool.free, pool.waiting.len()), (1, 0));
        assert_eq!(pool.services.values().map(|service| service.held + service.requests.len()).sum::<usize>(), 0);
    }
}
