//! The older generations that still serve tasks, as the leading generation sees them.
//!
//! It holds a connection to each. When the connection ends, that generation has ended, and if it died, its sockets are
//! removed.

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::generation::asking::Asking;
use hearth_base::generation::directory;
use hearth_base::generation::wire::{Owned, Owner, answer, question};

/// The older generations.
pub struct OlderGenerations {
    asking: Asking,
    living: Mutex<Arc<[String]>>,
}

impl OlderGenerations {
    /// The generations of these names. Each is watched on `runtime`; `on_end` is called with the name of each that has
    /// ended.
    pub fn new(
        state_dir: PathBuf,
        living: Vec<String>,
        runtime: &Handle,
        on_end: impl Fn(&str) + Send + Sync + 'static,
    ) -> Arc<OlderGenerations> {
        let older =
            Arc::new(OlderGenerations { asking: Asking { state_dir }, living: Mutex::new(living.clone().into()) });
        let on_end = Arc::new(on_end);
        for id in living {
            let (older, on_end) = (older.clone(), on_end.clone());
            runtime.spawn(async move {
                older.asking.wait_for_end(&id).await;
                older.forget(&id);
                on_end(&id);
            });
        }
        older
    }

    /// Whether there is none, as usual.
    pub fn is_empty(&self) -> bool {
        self.living.lock().is_empty()
    }

    /// The names of the generations that still serve.
    pub fn living(&self) -> Arc<[String]> {
        self.living.lock().clone()
    }

    /// The task socket of the generation that has this task.
    pub async fn owner(&self, task: &Owner) -> Option<String> {
        self.owned(task).await.map(|(_, owned)| owned.address)
    }

    /// The generation that has made this pod, and the socket of its sandbox controller.
    pub async fn controller(&self, pod: &Owner) -> Option<(String, String)> {
        let (id, owned) = self.owned(pod).await?;
        (!owned.controller.is_empty()).then_some((id, owned.controller))
    }

    async fn owned(&self, task: &Owner) -> Option<(String, Owned)> {
        for id in self.living().iter() {
            match self.asking.ask(id, question::Body::Owner(task.clone())).await {
                Ok((answer::Body::Owned(owned), _)) if !owned.address.is_empty() => return Some((id.clone(), owned)),
                Ok(_) => {}
                Err(error) => tracing::warn!(generation = id, %error, "cannot ask an older hearthd for a task"),
            }
        }
        None
    }

    /// The metrics of each, by name.
    pub async fn metrics(&self) -> Vec<(String, String)> {
        let mut all = Vec::new();
        for id in self.living().iter() {
            match self.asking.metrics_of(id).await {
                Ok(text) => all.push((id.clone(), text)),
                Err(error) => tracing::debug!(generation = id, %error, "no metrics of an older hearthd"),
            }
        }
        all
    }

    fn forget(&self, id: &str) {
        let mut living = self.living.lock();
        *living = living.iter().filter(|other| *other != id).cloned().collect();
        drop(living);
        if directory::remove_dead(&self.asking.state_dir, id) {
            tracing::warn!(generation = id, "an older hearthd did not stop cleanly; removed its sockets");
        } else {
            tracing::info!(generation = id, "an older hearthd has left");
        }
    }
}
