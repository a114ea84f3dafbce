//! Instances of WASI 0.3 components: one for each request, or, where the pod asks for it, for several requests, one after
//! another and side by side.
//!
//! ```text
//!  request ─▶ SharedInstances::assign ─▶ an instance without requests, or a new one while there are fewer than cores,
//!                                        or the one with the fewest requests ─▶ its queue
//!                                                                                │ taken when the guest admits another call
//!                                                                                ▼
//!                             shared::serve_shared: a call for each request, all in one store
//!              SharedInstances::clock: a request that takes too long ends the instance; so does a second without requests
//! ```
//!
//! A request's place in an instance is free again when its call has returned and its client has the whole response.
//! An instance that traps ends all its requests; those without a head are answered with 500.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::Request;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::admitted_request::AdmittedRequest;
use crate::refused::Refused;
use crate::request_body::RequestBody;
use crate::request_state::{RequestState, SendHead};
use crate::trace_context::{CurrentTrace, TraceContext};
use hearth_base::env::last;
use hearth_base::error::{Error, Result};
use hearth_observe::metrics::CutReason;

/// The environment variable with the number of requests that an instance may have in its life.
pub const REQUESTS: &str = "HEARTH_HTTP_INSTANCE_REQUESTS";

/// The environment variable with the number of requests that an instance may have at once.
pub const CONCURRENCY: &str = "HEARTH_HTTP_INSTANCE_CONCURRENCY";

/// How long an instance without requests is kept.
const IDLE: Duration = Duration::from_secs(1);

/// Requests of an instance of a Spin application, in its life: the figures of Spin's own server.
const SPIN: Reuse = Reuse { requests: 128, concurrent: 16 };

/// How many requests an instance may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reuse {
    /// In its life.
    pub requests: usize,
    /// At once.
    pub concurrent: usize,
}

impl Reuse {
    /// That of a Spin application.
    pub fn of_spin() -> Reuse {
        SPIN
    }

    /// The reuse that the environment asks for.
    ///
    /// # Errors
    /// `InvalidArgument` naming the variable.
    pub fn of(env: &[(String, String)]) -> Result<Reuse> {
        let number = |name: &str, default: usize| {
            let Some(value) = last(env, name) else { return Ok(default) };
            match value.trim().parse() {
                Ok(number) if number > 0 => Ok(number),
                _ => Err(Error::InvalidArgument(format!("{name}={value:?} is not a number over 0"))),
            }
        };
        let requests = number(REQUESTS, 1)?;
        Ok(Reuse { requests, concurrent: number(CONCURRENCY, 1)?.min(requests) })
    }
}

/// A request on its way to an instance.
pub struct Job {
    /// The request.
    pub request: Request<RequestBody>,
    /// The trace that it belongs to.
    pub trace: Option<TraceContext>,
    /// Where the response's head goes.
    pub send_head: SendHead,
    /// The state that both sides of the request know.
    pub state: Arc<RequestState>,
    /// Its place in the instance.
    pub in_use: Arc<InUse>,
}

/// An instance's record of a request.
struct AssignedRequest {
    state: Arc<RequestState>,
    since: Instant,
    name: Arc<str>,
    tell: oneshot::Sender<Refused>,
}

/// A request's place in an instance. It is free when the last clone of its `Arc` is dropped.
pub struct InUse {
    instance: Arc<SharedInstance>,
    state: Arc<RequestState>,
    /// Its turn, its place on the node and its count. They are given back with this.
    _admitted: Box<dyn Any + Send + Sync>,
}

impl InUse {
    /// Tells the clock of the instance that the request's state has changed.
    pub fn changed(&self) {
        self.instance.changed.notify_one();
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut load = self.instance.load.lock();
        load.requests.retain(|request| !Arc::ptr_eq(&request.state, &self.state));
        load.in_use -= 1;
        if load.in_use == 0 {
            load.free_since = Instant::now();
        }
        drop(load);
        self.changed();
    }
}

/// The instances of one service that take more requests.
pub struct SharedInstances {
    reuse: Reuse,
    /// The number of instances that can compute at once.
    cores: usize,
    open: Mutex<Vec<Arc<SharedInstance>>>,
}

/// One instance, for the code that has requests for it.
pub struct SharedInstance {
    reuse: Reuse,
    load: Mutex<InstanceLoad>,
    changed: Notify,
    /// The trace of its request, if it has one at a time.
    pub trace: CurrentTrace,
}

/// The requests of one instance.
struct InstanceLoad {
    /// None once the instance takes no more.
    jobs: Option<mpsc::Sender<Job>>,
    requests: Vec<AssignedRequest>,
    in_use: usize,
    /// In its life.
    taken: usize,
    free_since: Instant,
}

/// A request's assignment to an instance.
pub struct Assignment {
    /// Its place.
    pub in_use: Arc<InUse>,
    /// The answer if the instance ends without a head for it.
    pub answer: oneshot::Receiver<Refused>,
    /// The instance and its queue, if the instance is new and has to be made.
    pub new: Option<(Arc<SharedInstance>, mpsc::Receiver<Job>)>,
}

impl SharedInstances {
    /// Without instances.
    pub fn new(reuse: Reuse) -> SharedInstances {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        SharedInstances { reuse, cores, open: Mutex::default() }
    }

    /// Whether an instance may have more than one request.
    pub fn share(&self) -> bool {
        self.reuse.requests > 1
    }

    /// How many requests an instance may have at once.
    pub fn concurrent(&self) -> usize {
        self.reuse.concurrent
    }

    /// Assigns a request to an instance.
    pub fn assign(&self, admitted: AdmittedRequest, state: Arc<RequestState>) -> Assignment {
        let AdmittedRequest { request, trace, send_head, name, admitted, .. } = admitted;
        let mut open = self.open.lock();
        let least = open.iter().filter_map(|instance| Some((instance.room()?, instance)));
        let least = least.min_by_key(|(in_use, _)| *in_use);
        let (instance, queue) = match least {
            Some((in_use, instance)) if in_use == 0 || open.len() >= self.cores => (instance.clone(), None),
            _ => {
                let (instance, queue) = SharedInstance::new(self.reuse);
                open.push(instance.clone());
                (instance, Some(queue))
            }
        };
        let (tell, answer) = oneshot::channel();
        let in_use = Arc::new(InUse { instance: instance.clone(), state: state.clone(), _admitted: admitted });
        let mut load = instance.load.lock();
        load.requests.push(AssignedRequest { state: state.clone(), since: Instant::now(), name, tell });
        load.in_use += 1;
        load.taken += 1;
        let job = Job { request, trace, send_head, state, in_use: in_use.clone() };
        // The queue has room for each place in the instance, and this request has one: only a queue whose instance has
        // ended refuses it. Such a job is dropped after the locks, since its place locks them.
        let refused = match &load.jobs {
            Some(jobs) => jobs.try_send(job).err().map(mpsc::error::TrySendError::into_inner),
            None => Some(job),
        };
        if load.taken == self.reuse.requests {
            load.jobs = None;
            open.retain(|other| !Arc::ptr_eq(other, &instance));
        }
        drop(load);
        drop(open);
        drop(refused);
        instance.changed.notify_one();
        Assignment { in_use, answer, new: queue.map(|queue| (instance, queue)) }
    }

    /// The instance takes no more requests.
    fn close(&self, instance: &Arc<SharedInstance>) {
        let mut open = self.open.lock();
        instance.load.lock().jobs = None;
        open.retain(|other| !Arc::ptr_eq(other, instance));
    }

    /// As [`SharedInstances::close`], unless the instance has got a request meanwhile.
    fn close_if_free(&self, instance: &Arc<SharedInstance>) {
        let mut open = self.open.lock();
        let mut load = instance.load.lock();
        if load.in_use == 0 {
            load.jobs = None;
            open.retain(|other| !Arc::ptr_eq(other, instance));
        }
    }

    /// The instance has ended: its requests without a head are answered with `refused`.
    pub fn ended(&self, instance: &Arc<SharedInstance>, refused: Refused) {
        self.close(instance);
        let requests = std::mem::take(&mut instance.load.lock().requests);
        for request in requests {
            let _ = request.tell.send(refused);
        }
    }

    /// Returns when a request of the instance has taken too long. Closes the instance when it is of no more use.
    pub async fn clock(&self, instance: &Arc<SharedInstance>, timeout: Duration, draining: &mut watch::Receiver<bool>) {
        loop {
            let ending = *draining.borrow_and_update();
            let next = match instance.due(Instant::now(), timeout, ending) {
                Due::TooSlow => return,
                Due::At(next) => next,
                Due::Close => {
                    self.close_if_free(instance);
                    continue;
                }
            };
            tokio::select! {
                () = tokio::time::sleep_until(next.into()) => {}
                () = instance.changed.notified() => {}
                // Its sender lives as long as the service.
                _ = draining.changed(), if !ending => {}
            }
        }
    }
}

/// The next act of an instance's clock.
#[derive(Debug, PartialEq, Eq)]
enum Due {
    /// Nothing, until then.
    At(Instant),
    /// Close the instance: it is of no more use.
    Close,
    /// End the instance: a request of it, or its work after the last response, takes too long.
    TooSlow,
}

impl SharedInstance {
    fn new(reuse: Reuse) -> (Arc<SharedInstance>, mpsc::Receiver<Job>) {
        let (jobs, queue) = mpsc::channel(reuse.concurrent);
        let load =
            InstanceLoad { jobs: Some(jobs), requests: Vec::new(), in_use: 0, taken: 0, free_since: Instant::now() };
        let trace = if reuse.concurrent == 1 { CurrentTrace::changing() } else { CurrentTrace::default() };
        (Arc::new(SharedInstance { reuse, load: Mutex::new(load), changed: Notify::new(), trace }), queue)
    }

    /// How many requests it has, if it may have one more.
    fn room(&self) -> Option<usize> {
        let load = self.load.lock();
        (load.jobs.is_some() && load.in_use < self.reuse.concurrent).then_some(load.in_use)
    }

    fn due(&self, now: Instant, timeout: Duration, ending: bool) -> Due {
        let load = self.load.lock();
        let mut next = now + timeout;
        for request in &load.requests {
            let waited = now.duration_since(request.since);
            if waited < timeout {
                next = next.min(request.since + timeout);
            } else {
                match request.state.more_time(now, timeout) {
                    Some(more) => next = next.min(now + more),
                    None => return Due::TooSlow,
                }
            }
        }
        if load.in_use > 0 {
            return Due::At(next);
        }
        let free = now.duration_since(load.free_since);
        match &load.jobs {
            Some(_) if ending || free >= IDLE => Due::Close,
            Some(_) => Due::At(load.free_since + IDLE),
            None if free >= timeout => Due::TooSlow,
            None => Due::At(load.free_since + timeout),
        }
    }

    /// Methods and paths of the requests it has, for messages.
    pub fn names(&self) -> String {
        let load = self.load.lock();
        if load.requests.is_empty() {
            return "after the last response".into();
        }
        load.requests.iter().map(|request| &*request.name).collect::<Vec<_>>().join(", ")
    }

    /// Whether a request it has waits for its response's head.
    pub fn owes_a_head(&self) -> bool {
        self.load.lock().requests.iter().any(|request| !request.state.has_head())
    }

    /// Marks the requests it has as failed.
    pub fn fail(&self, reason: CutReason) {
        self.load.lock().requests.iter().for_each(|request| request.state.fail(reason));
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
        let (instance, _queue) = SharedInstance::new(Reuse { requests: 2, concurrent: 2 });
        let born = instance.load.lock().free_since;
        assert_eq!(instance.room(), Some(0));
        assert_eq!(instance.due(born, second, false), Due::At(born + IDLE));
        assert_eq!(instance.due(born, second, true), Due::Close, "the service drains");
        assert_eq!(instance.due(born + IDLE, second, false), Due::Close);
        let state = Arc::new(RequestState::default());
        let (tell, _answer) = oneshot::channel();
        let request = AssignedRequest { state: state.clone(), since: born, name: "GET /".into(), tell };
        {
            let mut load = instance.load.lock();
            load.requests.push(request);
            load.in_use = 1;
        }
        assert_eq!(instance.room(), Some(1));
        assert_eq!(instance.due(born + IDLE, 2 * second, true), Due::At(born + 2 * second));
        assert_eq!(instance.due(born + second, second, false), Due::TooSlow);
        assert_eq!((instance.names().as_str(), instance.owes_a_head()), ("GET /", true));
        state.begin_body();
        assert_eq!(instance.due(born + second, second, false), Due::At(born + 2 * second));
        assert!(!instance.owes_a_head());
        instance.fail(CutReason::Trap);
        assert_eq!(state.failure(), Some(CutReason::Trap));
    }
}
