//! The requests of one container that are under way, for who pauses, limits, drains or ends it.
//!
//! The listener counts as one of them, so that nothing of a container, its port included, is left when
//! its exit is told. One lock guards the map for a few instructions; nothing is called under it.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use hearth_os::identity;
use hearth_wasm::scheduler::Guest;

/// Those of one container.
pub struct Requests {
    inner: Mutex<Inner>,
    draining: watch::Sender<bool>,
    /// Nothing is under way any more, the listener neither.
    over: Notify,
}

#[derive(Default)]
struct Inner {
    guests: HashMap<u64, Arc<Guest>>,
    next: u64,
    /// The guests, connections among them, and the listener.
    under_way: usize,
    listener: Option<AbortHandle>,
    /// The container has ended.
    closed: bool,
    /// What to do once none is left.
    afterwards: Option<Box<dyn FnOnce() + Send>>,
}

impl Default for Requests {
    fn default() -> Self {
        Requests { inner: Mutex::default(), draining: watch::Sender::new(false), over: Notify::new() }
    }
}

impl Requests {
    /// Counts a request's guest in; none if the container has ended.
    pub fn begin(self: &Arc<Self>, guest: &Arc<Guest>) -> Option<Member> {
        let mut inner = self.inner.lock();
        if inner.closed {
            return None;
        }
        let key = inner.next;
        inner.next += 1;
        inner.guests.insert(key, guest.clone());
        inner.under_way += 1;
        Some(Member { requests: self.clone(), key: Some(key) })
    }

    /// Counts the listener in; none if the container has ended.
    pub fn begin_listening(self: &Arc<Self>) -> Option<Member> {
        let mut inner = self.inner.lock();
        if inner.closed {
            return None;
        }
        inner.under_way += 1;
        Some(Member { requests: self.clone(), key: None })
    }

    /// How the listener is ended.
    pub fn set_listener(&self, listener: AbortHandle) {
        self.inner.lock().listener = Some(listener);
    }

    /// Lets nothing new in; what is under way goes on.
    pub fn drain(&self) {
        self.draining.send_replace(true);
    }

    /// Tells when to let nothing new in.
    pub fn draining(&self) -> watch::Receiver<bool> {
        self.draining.subscribe()
    }

    /// Waits until nothing is under way any more, after [`Requests::drain`].
    pub async fn drained(&self) {
        self.over.notified().await;
    }

    /// Lets all look at what has changed: they were resumed, or have other limits.
    pub fn wake(&self) {
        let guests: Vec<_> = self.inner.lock().guests.values().cloned().collect();
        guests.iter().for_each(|guest| guest.wake());
    }

    /// The container has ended: the listener and all guests are ended, and `afterwards` is done once none
    /// is left; at once if none is.
    pub fn close(&self, afterwards: impl FnOnce() + Send + 'static) {
        let (listener, guests) = {
            let mut inner = self.inner.lock();
            inner.closed = true;
            if inner.under_way == 0 {
                drop(inner);
                return afterwards();
            }
            inner.afterwards = Some(Box::new(afterwards));
            (inner.listener.take(), inner.guests.values().cloned().collect::<Vec<_>>())
        };
        if let Some(listener) = listener {
            listener.abort();
        }
        guests.iter().for_each(|guest| guest.kill());
    }

    fn ended(&self, key: Option<u64>) {
        let (afterwards, over) = {
            let mut inner = self.inner.lock();
            if let Some(key) = key {
                inner.guests.remove(&key);
            }
            inner.under_way -= 1;
            let over = inner.under_way == 0;
            (if over { inner.afterwards.take() } else { None }, over)
        };
        match afterwards {
            Some(afterwards) => {
                // This may be a thread that is still who its guest was.
                identity::restore();
                afterwards();
            }
            None if over => self.over.notify_one(),
            None => {}
        }
    }
}

/// One that is under way, until it is dropped.
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

    use super::*;

    #[test]
    fn what_follows_the_end_waits_for_the_last_request_and_the_listener() {
        let requests = Arc::new(Requests::default());
        let listener = requests.begin_listening().unwrap();
        let request = requests.begin(&Arc::default()).unwrap();
        let done = Arc::new(AtomicUsize::new(0));
        let theirs = done.clone();
        requests.close(move || {
            theirs.fetch_add(1, Ordering::SeqCst);
        });
        assert!(requests.begin(&Arc::default()).is_none());
        drop(request);
        assert_eq!(done.load(Ordering::SeqCst), 0);
        drop(listener);
        assert_eq!(done.load(Ordering::SeqCst), 1);
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
