//! Instances of WASI 0.3: one for each request, or, where the pod asks for it, for several requests, one after
//! another and side by side.
//!
//! ```text
//!  request ─▶ Workers::give ─▶ an instance that is free, or a new one while there are fewer than cores,
//!                              or the one with the fewest requests ─▶ its queue
//!                                                                      │ taken as soon as the guest lets more in
//!                                                                      ▼
//!                              p3::serve: a call for each, all in one store
//!              Worker::clock: a request that takes too long ends the instance, and so does having none for long
//! ```
//!
//! A request's place in an instance is free again when both its call has returned and its client has all it
//! wants. An instance that traps takes all its requests with it; they are answered with 500.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::Request;
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::exchange::{Exchange, SendHead};
use crate::request::Refused;
use hearth_base::error::{Error, Result};

/// The environment variable with how many requests an instance may have in all.
pub const REQUESTS: &str = "HEARTH_HTTP_INSTANCE_REQUESTS";

/// The environment variable with how many requests an instance may have at once.
pub const CONCURRENCY: &str = "HEARTH_HTTP_INSTANCE_CONCURRENCY";

/// How long an instance without requests is kept.
const IDLE: Duration = Duration::from_secs(1);

/// What an instance may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reuse {
    /// Requests in all.
    pub requests: usize,
    /// Requests at once.
    pub concurrent: usize,
}

impl Reuse {
    /// What the environment asks for.
    ///
    /// # Errors
    /// `InvalidArgument` naming the variable.
    pub fn of(env: &[(String, String)]) -> Result<Reuse> {
        let number = |name: &str, default: usize| {
            let Some((_, value)) = env.iter().rev().find(|(key, _)| key == name) else { return Ok(default) };
            match value.trim().parse() {
                Ok(number) if number > 0 => Ok(number),
                _ => Err(Error::InvalidArgument(format!("{name}={value:?} is not a number over 0"))),
            }
        };
        let requests = number(REQUESTS, 1)?;
        Ok(Reuse { requests, concurrent: number(CONCURRENCY, 1)?.min(requests) })
    }
}

/// A request for an instance.
pub struct Job {
    /// The request.
    pub request: Request<Incoming>,
    /// Where the response's head goes.
    pub send_head: SendHead,
    /// What both sides know.
    pub exchange: Arc<Exchange>,
    /// Its place.
    pub occupied: Arc<Occupied>,
}

/// What an instance has to remember of a request.
struct Occupant {
    exchange: Arc<Exchange>,
    since: Instant,
    name: String,
    tell: oneshot::Sender<Refused>,
}

/// A request's place in an instance, free when the last one who has this drops it.
pub struct Occupied {
    worker: Arc<Worker>,
    exchange: Arc<Exchange>,
    /// What counts it and bounds how many there are.
    _places: Box<dyn std::any::Any + Send + Sync>,
}

impl Occupied {
    /// Something about its request has changed.
    pub fn look(&self) {
        self.worker.changed.notify_one();
    }
}

impl Drop for Occupied {
    fn drop(&mut self) {
        let mut inner = self.worker.inner.lock();
        inner.occupants.retain(|occupant| !Arc::ptr_eq(&occupant.exchange, &self.exchange));
        inner.occupied -= 1;
        if inner.occupied == 0 {
            inner.free_since = Instant::now();
        }
        drop(inner);
        self.look();
    }
}

/// The instances of one service that may have more requests.
pub struct Workers {
    reuse: Reuse,
    /// As many as can compute at once.
    cores: usize,
    open: Mutex<Vec<Arc<Worker>>>,
}

/// One instance, as those see it who have requests for it.
pub struct Worker {
    reuse: Reuse,
    inner: Mutex<Inner>,
    changed: Notify,
}

struct Inner {
    /// None once it gets no more.
    jobs: Option<mpsc::UnboundedSender<Job>>,
    occupants: Vec<Occupant>,
    occupied: usize,
    taken: usize,
    free_since: Instant,
}

/// A request given to an instance.
pub struct Given {
    /// Its place.
    pub occupied: Arc<Occupied>,
    /// What to answer if there is no head.
    pub told: oneshot::Receiver<Refused>,
    /// An instance to be made, if it is given to a new one: its queue.
    pub new: Option<(Arc<Worker>, mpsc::UnboundedReceiver<Job>)>,
}

impl Workers {
    /// None yet, with what each may have.
    pub fn new(reuse: Reuse) -> Workers {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Workers { reuse, cores, open: Mutex::default() }
    }

    /// Whether an instance may have more than one request.
    pub fn share(&self) -> bool {
        self.reuse.requests > 1
    }

    /// How many requests an instance may have at once.
    pub fn concurrent(&self) -> usize {
        self.reuse.concurrent
    }

    /// Gives a request to an instance. `places` are what it holds as long as it has its place there.
    pub fn give(
        &self,
        request: Request<Incoming>,
        send_head: SendHead,
        exchange: Arc<Exchange>,
        name: String,
        places: Box<dyn std::any::Any + Send + Sync>,
    ) -> Given {
        let mut open = self.open.lock();
        let least =
            open.iter().map(|worker| (worker.room(), worker)).filter_map(|(room, worker)| Some((room?, worker)));
        let least = least.min_by_key(|(occupied, _)| *occupied);
        let (worker, queue) = match least {
            Some((occupied, worker)) if occupied == 0 || open.len() >= self.cores => (worker.clone(), None),
            _ => {
                let (worker, queue) = Worker::new(self.reuse);
                open.push(worker.clone());
                (worker, Some(queue))
            }
        };
        let (tell, told) = oneshot::channel();
        let occupied = Arc::new(Occupied { worker: worker.clone(), exchange: exchange.clone(), _places: places });
        let mut inner = worker.inner.lock();
        inner.occupants.push(Occupant { exchange: exchange.clone(), since: Instant::now(), name, tell });
        inner.occupied += 1;
        inner.taken += 1;
        if let Some(jobs) = &inner.jobs {
            // Its receiver is there as long as this is.
            let _ = jobs.send(Job { request, send_head, exchange, occupied: occupied.clone() });
        }
        if inner.taken == self.reuse.requests {
            inner.jobs = None;
            open.retain(|other| !Arc::ptr_eq(other, &worker));
        }
        drop(inner);
        worker.changed.notify_one();
        Given { occupied, told, new: queue.map(|queue| (worker.clone(), queue)) }
    }

    /// No more requests for this one.
    fn close(&self, worker: &Arc<Worker>) {
        let mut open = self.open.lock();
        worker.inner.lock().jobs = None;
        open.retain(|other| !Arc::ptr_eq(other, worker));
    }

    /// As [`Workers::close`], unless it has got one meanwhile.
    fn close_if_free(&self, worker: &Arc<Worker>) {
        let mut open = self.open.lock();
        let mut inner = worker.inner.lock();
        if inner.occupied == 0 {
            inner.jobs = None;
            open.retain(|other| !Arc::ptr_eq(other, worker));
        }
    }

    /// An instance has ended: what its requests are answered that have no head yet, and how a message calls
    /// them.
    pub fn ended(&self, worker: &Arc<Worker>, answer: impl Fn() -> Refused) {
        self.close(worker);
        let occupants = std::mem::take(&mut worker.inner.lock().occupants);
        for occupant in occupants {
            let _ = occupant.tell.send(answer());
        }
    }

    /// Returns when a request of `worker` has taken too long, and how that is called. Closes it where it is of
    /// no more use.
    pub async fn clock(&self, worker: &Arc<Worker>, timeout: Duration, draining: &mut watch::Receiver<bool>) -> String {
        loop {
            let ending = *draining.borrow_and_update();
            let next = match worker.look(Instant::now(), timeout, ending) {
                Look::Late(name) => return name,
                Look::Wait(until) => until,
                Look::Close => {
                    self.close_if_free(worker);
                    continue;
                }
            };
            tokio::select! {
                () = tokio::time::sleep_until(next.into()) => {}
                () = worker.changed.notified() => {}
                // Its sender lives as long as the service.
                _ = draining.changed(), if !ending => {}
            }
        }
    }
}

/// What there is to do about an instance.
enum Look {
    /// Nothing, until then.
    Wait(Instant),
    /// It is of no more use.
    Close,
    /// This takes too long.
    Late(String),
}

impl Worker {
    fn new(reuse: Reuse) -> (Arc<Worker>, mpsc::UnboundedReceiver<Job>) {
        let (jobs, queue) = mpsc::unbounded_channel();
        let inner =
            Inner { jobs: Some(jobs), occupants: Vec::new(), occupied: 0, taken: 0, free_since: Instant::now() };
        (Arc::new(Worker { reuse, inner: Mutex::new(inner), changed: Notify::new() }), queue)
    }

    /// How many requests it has, if it may have one more.
    fn room(&self) -> Option<usize> {
        let inner = self.inner.lock();
        (inner.jobs.is_some() && inner.occupied < self.reuse.concurrent).then_some(inner.occupied)
    }

    fn look(&self, now: Instant, timeout: Duration, ending: bool) -> Look {
        let inner = self.inner.lock();
        let mut next = now + timeout;
        for occupant in &inner.occupants {
            let waited = now.duration_since(occupant.since);
            if waited < timeout {
                next = next.min(occupant.since + timeout);
            } else {
                match occupant.exchange.more_time(now, timeout) {
                    Some(more) => next = next.min(now + more),
                    None => return Look::Late(occupant.name.clone()),
                }
            }
        }
        if inner.occupied > 0 {
            return Look::Wait(next);
        }
        let free = now.duration_since(inner.free_since);
        match &inner.jobs {
            Some(_) if ending || free >= IDLE => Look::Close,
            Some(_) => Look::Wait(inner.free_since + IDLE),
            // What it does after its last response.
            None if free >= timeout => Look::Late("after the last response".into()),
            None => Look::Wait(inner.free_since + timeout),
        }
    }

    /// How a message calls the requests it has.
    pub fn names(&self) -> String {
        let inner = self.inner.lock();
        inner.occupants.iter().map(|occupant| occupant.name.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// Marks the requests it has as failed.
    pub fn fail(&self) {
        self.inner.lock().occupants.iter().for_each(|occupant| occupant.exchange.fail());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reuse(requests: &str, concurrent: &str) -> Result<Reuse> {
        Reuse::of(&[(REQUESTS.into(), requests.into()), (CONCURRENCY.into(), concurrent.into())])
    }

    #[test]
    fn an_instance_has_one_request_unless_the_environment_says_more() {
        assert_eq!(Reuse::of(&[]).unwrap(), Reuse { requests: 1, concurrent: 1 });
        assert_eq!(reuse("128", "16").unwrap(), Reuse { requests: 128, concurrent: 16 });
        assert_eq!(reuse("2", "16").unwrap(), Reuse { requests: 2, concurrent: 2 });
        for (requests, concurrent, wrong) in [("0", "1", REQUESTS), ("1", "many", CONCURRENCY)] {
            let error = reuse(requests, concurrent).unwrap_err().to_string();
            assert!(error.contains(wrong), "{error}");
        }
    }

    #[test]
    fn an_instance_ends_when_it_is_late_or_of_no_use() {
        let second = Duration::from_secs(1);
        let (worker, _queue) = Worker::new(Reuse { requests: 2, concurrent: 2 });
        let born = worker.inner.lock().free_since;
        assert_eq!(worker.room(), Some(0));
        assert!(matches!(worker.look(born, second, false), Look::Wait(until) if until == born + IDLE));
        assert!(matches!(worker.look(born, second, true), Look::Close), "it drains");
        assert!(matches!(worker.look(born + IDLE, second, false), Look::Close));
        let exchange = Arc::new(Exchange::default());
        let (tell, _told) = oneshot::channel();
        let occupant = Occupant { exchange: exchange.clone(), since: born, name: "GET /".into(), tell };
        {
            let mut inner = worker.inner.lock();
            inner.occupants.push(occupant);
            inner.occupied = 1;
        }
        assert_eq!(worker.room(), Some(1));
        assert!(matches!(worker.look(born, second, true), Look::Wait(until) if until == born + second));
        assert!(matches!(worker.look(born + second, second, false), Look::Late(name) if name == "GET /"));
        exchange.begin_body();
        assert!(matches!(worker.look(born + second, second, false), Look::Wait(_)));
    }
}
