//! The futures that wait for one side of one descriptor.
//!
//! tokio keeps a single waker per direction of an [`AsyncFd`](tokio::io::unix::AsyncFd), but a guest
//! may wait for the same stream in several futures of its own, each with another waker. So tokio gets
//! this list as its waker.

use std::sync::Arc;
use std::task::{Wake, Waker};

use parking_lot::Mutex;

/// A future that is dropped before it is woken leaves its waker here. Beyond this number all wakers are woken, and the
/// futures that are alive register again.
const WAITING_MAX: usize = 64;

/// A list of wakers that is a waker.
#[derive(Default)]
pub(super) struct Wakers(Mutex<Vec<Waker>>);

impl Wakers {
    /// Adds one, to be woken once.
    pub(super) fn add(&self, waker: &Waker) {
        let surplus = {
            let mut waiting = self.0.lock();
            if waiting.iter().any(|known| known.will_wake(waker)) {
                return;
            }
            let surplus = if waiting.len() < WAITING_MAX { Vec::new() } else { std::mem::take(&mut *waiting) };
            waiting.push(waker.clone());
            surplus
        };
        surplus.into_iter().for_each(Waker::wake);
    }
}

impl Wake for Wakers {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Outside the lock: a waker may be the last owner of a guest, whose streams lead back here.
        let waiting = std::mem::take(&mut *self.0.lock());
        waiting.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    struct Counter(AtomicUsize);

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn counter() -> (Arc<Counter>, Waker) {
        let counter = Arc::new(Counter(AtomicUsize::new(0)));
        (counter.clone(), counter.into())
    }

    #[test]
    fn each_is_woken_once() {
        let wakers = Arc::new(Wakers::default());
        let ((one, first), (two, second)) = (counter(), counter());
        wakers.add(&first);
        wakers.add(&second);
        wakers.add(&first);
        wakers.wake_by_ref();
        wakers.wake_by_ref();
        assert_eq!((one.0.load(Ordering::Relaxed), two.0.load(Ordering::Relaxed)), (1, 1));
    }

    #[test]
    fn the_list_stays_short_and_loses_no_waker() {
        let wakers = Arc::new(Wakers::default());
        let all: Vec<_> = (0..WAITING_MAX + 1).map(|_| counter()).collect();
        for (_, waker) in &all {
            wakers.add(waker);
        }
        assert_eq!(wakers.0.lock().len(), 1);
        let woken = all.iter().filter(|(counter, _)| counter.0.load(Ordering::Relaxed) == 1).count();
        assert_eq!(woken, WAITING_MAX);
        wakers.wake_by_ref();
        assert!(all.iter().all(|(counter, _)| counter.0.load(Ordering::Relaxed) == 1));
    }
}
