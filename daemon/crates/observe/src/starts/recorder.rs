//! What is found out about a start after its end, when nobody waits for it: how long it took from the
//! container's making.

use std::sync::Arc;
use std::time::SystemTime;

use prometheus::IntCounter;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::metrics::Metrics;
use crate::starts::{About, Finished, Listener};

/// Starts that wait to be looked at; more are dropped and counted.
const QUEUE_MAX: usize = 4_096;

/// Starts it; the listener is for [`Recent`](crate::starts::Recent). Ends when that is dropped.
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
            // It looks at a file of containerd's.
            let _ = blocking.spawn_blocking(measure).await;
        }
    });
    queue(sender, dropped)
}

/// Sends each start, and counts those for which there is no room.
pub(super) fn queue(sender: mpsc::Sender<Finished>, dropped: IntCounter) -> Listener {
    Box::new(move |start| {
        if sender.try_send(start.clone()).is_err() {
            dropped.inc();
        }
    })
}

/// When containerd made the container: a pod's when its snapshot was prepared, in CRI's CreateContainer;
/// another's, which may be started again, when its bundle was written.
fn made_at(about: &About) -> Option<SystemTime> {
    let snapshot =
        about.snapshot.as_ref().and_then(|path| std::fs::metadata(path).and_then(|found| found.created()).ok());
    snapshot.or(about.bundle_written_at)
}
