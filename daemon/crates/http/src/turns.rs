//! How many requests of a container have an instance, and how many may wait for one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::counts::{Counts, Waits};
use hearth_base::config;

/// Turns of one container's requests.
pub struct Turns {
    free: Arc<Semaphore>,
    queued: AtomicUsize,
    queued_max: usize,
}

impl Turns {
    /// As many as the configuration says.
    pub fn new(config: &config::Http) -> Turns {
        Turns {
            free: Arc::new(Semaphore::new(config.requests_max)),
            queued: AtomicUsize::new(0),
            queued_max: config.queued_max,
        }
    }

    /// Waits for a turn; none if too many wait already.
    pub async fn take(&self, counts: &Arc<Counts>) -> Option<OwnedSemaphorePermit> {
        if let Ok(turn) = self.free.clone().try_acquire_owned() {
            return Some(turn);
        }
        let _queued = self.queue(counts)?;
        self.free.clone().acquire_owned().await.ok()
    }

    fn queue(&self, counts: &Arc<Counts>) -> Option<Queued<'_>> {
        let more = |queued| (queued < self.queued_max).then_some(queued + 1);
        self.queued.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Queued { turns: self, _counted: counts.queue() })
    }
}

/// One that waits, until it is dropped: its client may go away.
struct Queued<'a> {
    turns: &'a Turns,
    _counted: Waits,
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.turns.queued.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hearth_observe::metrics::Metrics;

    #[tokio::test]
    async fn beyond_the_turns_some_wait_and_the_rest_is_refused() {
        let config = config::Http { requests_max: 1, queued_max: 1, ..config::Http::default() };
        let counts = Arc::new(Counts::new(Arc::new(Metrics::new()), None));
        let turns = Arc::new(Turns::new(&config));
        let first = turns.take(&counts).await.unwrap();
        let mut second = Box::pin(turns.take(&counts));
        assert!(futures_util::poll!(&mut second).is_pending());
        assert!(turns.take(&counts).await.is_none(), "one waits already");
        drop(first);
        let second = second.await.unwrap();
        let mut third = Box::pin(turns.take(&counts));
        assert!(futures_util::poll!(&mut third).is_pending(), "the place in the queue is free again");
        drop(third);
        drop(second);
        assert!(turns.take(&counts).await.is_some());
    }
}
