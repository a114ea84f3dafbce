//! The requests of one container that are under way, for the code that pauses, limits, drains or ends the container.
//!
//! The listener and the connections count as requests, so that nothing of a container, its port included, is left when
//! its exit is told. One lock guards the map for a few instructions; nothing is called under it.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use crate::spare::Spare;
use hearth_os::identity;
use hearth_wasm::scheduler::Guest;

/// The requests of one container.
pub struct Requests {
    under_way: Mutex<UnderWay>,
    draining: watch::Sender<bool>,
    /// Told when nothing is under way any more, the listener included.
    over: Notify,
    /// The instance for the next one.
    pub(crate) spare: Arc<Spare>,
}

#[derive(Default)]
struct UnderWay {
    guests: HashMap<u64, Arc<Guest>>,
    next: u64,
    /// The number of guests, connections among them, and of the listener.
    count: usize,
    listener: Option<AbortHandle>,
    /// The container has ended or is being killed.
    closed: bool,
    /// Called once none is left.
    afterwards: Option<Box<dyn FnOnce() + Send>>,
}

impl Default for Requests {
    fn default() -> Self {
        Requests {
            under_way: Mutex::default(),
            draining: watch::Sender::new(false),
            over: Notify::new(),
            spare: Arc::default(),
        }
    }
}

impl Requests {
    /// Registers a request's guest; none if the container has ended.
    pub fn begin(self: &Arc<Self>, guest: &Arc<Guest>) -> Option<Member> {
        let mut under_way = self.under_way.lock();
        if under_way.closed {
            return None;
        }
        let key = under_way.next;
        under_way.next += 1;
        under_way.guests.insert(key, guest.clone());
        under_way.count += 1;
        Some(Member { requests: self.clone(), key: Some(key) })
    }

    /// Registers the listener; none if the container has ended.
    pub fn begin_listening(self: &Arc<Self>) -> Option<Member> {
        let mut under_way = self.under_way.lock();
        if under_way.closed {
            return None;
        }
        under_way.count += 1;
        Some(Member { requests: self.clone(), key: None })
    }

    /// Sets the handle that ends the listener.
    pub fn set_listener(&self, listener: AbortHandle) {
        self.under_way.lock().listener = Some(listener);
    }

    /// Admits nothing new; requests under way go on.
    pub fn drain(&self) {
        self.spare.close();
        self.draining.send_replace(true);
    }

    /// Tells when the container drains.
    pub fn draining(&self) -> watch::Receiver<bool> {
        self.draining.subscribe()
    }

    /// Waits until nothing is under way any more, after [`Requests::drain`].
    pub async fn drained(&self) {
        self.over.notified().await;
    }

    /// Wakes all guests, which were resumed or have other limits.
    pub fn wake(&self) {
        let guests: Vec<_> = self.under_way.lock().guests.values().cloned().collect();
        guests.iter().for_each(|guest| guest.wake());
    }

    /// The container is being killed: no request begins any more, and the guests of all requests are marked as
    /// killed. It needs no free worker, so it also ends requests that block every worker in system calls.
    pub fn kill_all(&self) {
        self.spare.close();
        let guests: Vec<_> = {
            let mut under_way = self.under_way.lock();
            under_way.closed = true;
            under_way.guests.values().cloned().collect()
        };
        guests.iter().for_each(|guest| guest.kill());
    }

    /// The container has ended: the listener and all guests are ended, and `afterwards` is done once none
    /// is left; at once if none is.
    pub fn close(&self, afterwards: impl FnOnce() + Send + 'static) {
        self.spare.close();
        let (listener, guests) = {
            let mut under_way = self.under_way.lock();
            under_way.closed = true;
            if under_way.count == 0 {
                drop(under_way);
                return afterwards();
            }
            under_way.afterwards = Some(Box::new(afterwards));
            (under_way.listener.take(), under_way.guests.values().cloned().collect::<Vec<_>>())
        };
        if let Some(listener) = listener {
            listener.abort();
        }
        guests.iter().for_each(|guest| guest.kill());
    }

    /// Whether the container has ended: its guests were killed.
    pub fn are_closed(&self) -> bool {
        self.under_way.lock().closed
    }

    fn ended(&self, key: Option<u64>) {
        let afterwards = {
            let mut under_way = self.under_way.lock();
            if let Some(key) = key {
                under_way.guests.remove(&key);
            }
            under_way.count -= 1;
            if under_way.count > 0 {
                return;
            }
            under_way.afterwards.take()
        };
        let Some(afterwards) = afterwards else { return self.over.notify_one() };
        // This thread may still have the identity of the guest that it polled.
        identity::restore();
        afterwards();
    }
}

/// A guest or a listener that is under way, until it is dropped.
pub struct Member {
    requests: Arc<Requests>,
    key: Option<u64>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.requests.ended(self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use hearth_base::config;
    use hearth_observe::metrics::Metrics;
    use hearth_wasm::scheduler::{GuestEnd, Scheduler};

    #[test]
    fn what_follows_the_end_waits_for_the_last_request_and_the_listener() {
        let requests = Arc::new(Requests::default());
        let listener = requests.begin_listening().unwrap();
        let request = requests.begin(&Arc::default()).unwrap();
        let done = Arc::new(AtomicUsize::new(0));
        let counted = done.clone();
        requests.close(move || {
            counted.fetch_add(1, Ordering::SeqCst);
        });
        assert!(requests.begin(&Arc::default()).is_none());
        drop(request);
        assert_eq!(done.load(Ordering::SeqCst), 0);
        drop(listener);
        assert_eq!(done.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_kill_of_all_ends_requests_that_block_every_worker() {
        const SOON: Duration = Duration::from_secs(20);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .on_thread_start(identity::become_daemon)
            .enable_all()
            .build()
            .unwrap();
        // One worker, and none in its place while it is blocked.
        let config = config::Scheduler { workers: 1, workers_max: 1, ..Default::default() };
        let scheduler = Scheduler::start(&config, [], Arc::new(Metrics::new()), runtime.handle().clone()).unwrap();
        let requests = Arc::new(Requests::default());
        let (send, ends) = mpsc::channel();
        let service = Arc::new(Guest::default());
        let of_service = send.clone();
        scheduler.spawn(service.clone(), std::future::pending::<()>(), move |end| {
            of_service.send(("service", matches!(end, GuestEnd::Killed))).unwrap();
        });
        let guest = Arc::new(Guest::member(&service, service.identity().clone()));
        let member = requests.begin(&guest).unwrap();
        let (reader, _writer) = std::io::pipe().unwrap();
        let (began, has_begun) = mpsc::channel();
        let blocked = async move {
            let _member = member;
            began.send(()).unwrap();
            rustix::io::read(&reader, &mut [0u8; 1]).unwrap_err()
        };
        scheduler.spawn(guest, blocked, move |end| send.send(("request", matches!(end, GuestEnd::Killed))).unwrap());
        has_begun.recv_timeout(SOON).unwrap();
        // As the kill of a process does it: no worker is free to drop the service's guest, which would close the
        // requests.
        service.kill();
        requests.kill_all();
        assert!(requests.begin(&Arc::default()).is_none(), "no request begins after the kill");
        let mut ended = [ends.recv_timeout(SOON).unwrap(), ends.recv_timeout(SOON).unwrap()];
        ended.sort_unstable();
        assert_eq!(ended, [("request", true), ("service", true)]);
        scheduler.stop();
    }

    #[tokio::test]
    async fn a_drain_is_over_when_nothing_is_under_way() {
        let requests = Arc::new(Requests::default());
        let listener = requests.begin_listening().unwrap();
        let request = requests.begin(&Arc::default()).unwrap();
        requests.drain();
        assert!(*requests.draining().borrow());
        drop(listener);
        drop(request);
        requests.drained().await;
    }
}
