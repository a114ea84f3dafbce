//! Network namespaces for tasks that ask for a new one, each with the process that holds it. A few are made in advance,
//! so that such a task need not wait for the kernel. Pods need none: CRI makes their network namespaces.
//!
//! There are none before the first task that asks.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::runtime::Handle;

use hearth_base::error::{Error, Result};
use hearth_observe::metrics::Metrics;
use hearth_os::holder::Holder;

/// The supply.
pub struct Holders {
    /// How many to keep.
    warm: usize,
    /// Whether this process has a network namespace of its only task's: it is a cell.
    is_this_process: bool,
    ready: Mutex<Vec<Holder>>,
    /// Held during a refill: several at once would each make all that are missing.
    refilling: Mutex<()>,
    runtime: Handle,
    metrics: Arc<Metrics>,
}

impl Holders {
    /// Keeps `warm` of them once the first has been asked for; none if `is_this_process`, which then is the holder.
    pub fn new(warm: usize, is_this_process: bool, runtime: Handle, metrics: Arc<Metrics>) -> Arc<Holders> {
        Arc::new(Holders {
            warm,
            is_this_process,
            ready: Mutex::default(),
            refilling: Mutex::default(),
            runtime,
            metrics,
        })
    }

    /// Whether a task that asks for a new network namespace is in one already, with this process.
    pub fn is_this_process(&self) -> bool {
        self.is_this_process
    }

    /// A holder of the supply, or a new one.
    ///
    /// # Errors
    /// As [`Holder::start`].
    pub async fn take(self: &Arc<Self>) -> Result<Holder> {
        let ready = self.ready.lock().pop();
        self.refill();
        match ready {
            Some(holder) => Ok(holder),
            None => {
                self.metrics.tasks.holders_started.inc();
                let runtime = self.runtime.clone();
                let started = self.runtime.spawn_blocking(move || Holder::start(runtime)).await;
                started.map_err(|e| Error::Internal(format!("making a network namespace ended early: {e}")))?
            }
        }
    }

    fn refill(self: &Arc<Self>) {
        let holders = self.clone();
        self.runtime.spawn_blocking(move || {
            let Some(_refilling) = holders.refilling.try_lock() else { return };
            while holders.ready.lock().len() < holders.warm {
                match Holder::start(holders.runtime.clone()) {
                    Ok(holder) => {
                        holders.metrics.tasks.holders_started.inc();
                        holders.ready.lock().push(holder);
                    }
                    Err(error) => {
                        tracing::warn!(%error, "no network namespace in advance");
                        return;
                    }
                }
            }
        });
    }

    /// Brings the gauge up to date; called before a scrape.
    pub fn observe(&self) {
        self.metrics.tasks.holders_ready.set(self.ready.lock().len() as i64);
    }

    /// Ends the holders in the supply; for a stop of the daemon.
    pub fn close(&self) {
        self.ready.lock().clear();
    }
}
