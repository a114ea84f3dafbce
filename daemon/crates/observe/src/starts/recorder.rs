//! Measures a start from the container's creation by containerd, after the start has ended.
//!
//! The measure needs a file of containerd's, which may be slow: the start does not wait for it.

use std::sync::Arc;
use std::time::SystemTime;

use prometheus::IntCounter;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::metrics::Metrics;
use crate::starts::{About, Finished, Listener};

/// Starts that wait to be measured; more are dropped and counted.
const QUEUE_MAX: usize = 4_096;

/// Starts the recorder. The listener is for [`Recent`](crate::starts::Recent); when it is dropped, the recorder ends.
pub fn start(metrics: Arc<Metrics>, background: &Handle) -> Listener {
    let (sender, mut starts) = mpsc::channel::<Finished>(QUEUE_MAX);
    let (blocking, dropped) = (background.clone(), metrics.starts.records_dropped.clone());
    background.spawn(async move {
        while let Some(start) = starts.recv().await {
            let (about, metrics) = (start.about, metrics.clone());
            let (Some(source), Some(started)) = (about.source(), about.started_at()) else { continue };
            let measure = move || {
                if let Some(took) = made_at(&about).and_then(|made| started.duration_since(made).ok()) {
                    metrics.starts.container_start(source, took);
                }
            };
            // It reads the metadata of a file of containerd's.
            let _ = blocking.spawn_blocking(measure).await;
        }
    });
    queue(sender, dropped)
}

/// Queues each start, and counts those that do not fit.
pub(super) fn queue(sender: mpsc::Sender<Finished>, dropped: IntCounter) -> Listener {
    Box::new(move |start| {
        if sender.try_send(start.clone()).is_err() {
            dropped.inc();
        }
    })
}

/// When containerd made the container. For a pod's container, when its snapshot was prepared in CRI's
/// CreateContainer; for any other, which may be started again, when its bundle was written.
fn made_at(about: &About) -> Option<SystemTime> {
    let snapshot =
        about.snapshot.as_ref().and_then(|path| std::fs::metadata(path).and_then(|found| found.created()).ok());
    snapshot.or(about.bundle_written_at)
}
