//! How many requests of a container have an instance, and how many may wait for one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config;
use crate::metrics::Metrics;

/// Turns of one container's requests.
pub struct Turns {
    free: Arc<Semaphore>,
    queued: AtomicUsize,
    queued_max: usize,
    metrics: Arc<Metrics>,
}

impl Turns {
    /// As many as the configuration says.
    pub fn new(config: &config::Http, metrics: Arc<Metrics>) -> Turns {
        Turns {
            free: Arc::new(Semaphore::new(config.requests_max)),
            queued: AtomicUsize::new(0),
            queued_max: config.queued_max,
            metrics,
        }
    }

    /// Waits for a turn; none if too many wait already.
    pub async fn take(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(turn) = self.free.clone().try_acquire_owned() {
            return Some(turn);
        }
        let _queued = self.queue()?;
        self.free.clone().acquire_owned().await.ok()
    }

    fn queue(&self) -> Option<Queued<'_>> {
        let more = |queued| (queued < self.queued_max).then_some(queued + 1);
        self.queued.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        self.metrics.http_queued.inc();
        Some(Queued(self))
    }
}

/// One that waits, until it is dropped: its client may go away.
struct Queued<'a>(&'a Turns);

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.queued.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.http_queued.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn beyond_the_turns_some_wait_and_the_rest_is_refused() {
        let config = config::Http { requests_max: 1, queued_max: 1, ..config::Http::default() };
        let turns = Arc::new(Turns::new(&config, Arc::new(Metrics::new())));
        let first = turns.take().await.unwrap();
        let mut second = Box::pin(turns.take());
        assert!(futures_util::poll!(&mut second).is_pending());
        assert!(turns.take().await.is_none(), "one waits already");
        drop(first);
        let second = second.await.unwrap();
        let mut third = Box::pin(turns.take());
        assert!(futures_util::poll!(&mut third).is_pending(), "the place in the queue is free again");
        drop(third);
        drop(second);
        assert!(turns.take().await.is_some());
    }
}
