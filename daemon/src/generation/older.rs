//! The older generations that still serve tasks, as the leading generation sees them.
//!
//! It holds a connection to each. When the connection ends, that generation has ended, and if it died, its sockets are
//! removed.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hearth_shim::{decode, encode_frame, frame_length};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::runtime::Handle;

use hearth_base::generation::directory;
use hearth_base::generation::wire::{Answer, Nothing, Owned, Owner, Question, answer, question};

/// How long a generation may take to answer.
const ANSWER_TIME: Duration = Duration::from_secs(2);

/// How often to check whether a generation lives whose connection has ended.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The longest text of metrics that is taken, in bytes.
const METRICS_BYTES_MAX: u64 = 16 << 20;

/// The older generations.
pub struct OlderGenerations {
    state_dir: PathBuf,
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
        let older = Arc::new(OlderGenerations { state_dir, living: Mutex::new(living.clone().into()) });
        let on_end = Arc::new(on_end);
        for id in living {
            let (older, on_end) = (older.clone(), on_end.clone());
            runtime.spawn(async move {
                older.wait_for_end(&id).await;
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
            match self.ask(id, question::Body::Owner(task.clone())).await {
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
            match self.metrics_of(id).await {
                Ok(text) => all.push((id.clone(), text)),
                Err(error) => tracing::debug!(generation = id, %error, "no metrics of an older hearthd"),
            }
        }
        all
    }

    async fn metrics_of(&self, id: &str) -> std::io::Result<String> {
        let (answer::Body::Metrics(size), stream) = self.ask(id, question::Body::Metrics(Nothing {})).await? else {
            return Err(std::io::Error::other("it answered another question"));
        };
        let mut text = String::new();
        let mut stream = stream.take(size.bytes.min(METRICS_BYTES_MAX));
        tokio::time::timeout(ANSWER_TIME, stream.read_to_string(&mut text)).await??;
        Ok(text)
    }

    async fn ask(&self, id: &str, body: question::Body) -> std::io::Result<(answer::Body, UnixStream)> {
        let asked = async {
            let mut stream = UnixStream::connect(directory::socket(&self.state_dir, id)).await?;
            stream.write_all(&encode_frame(&Question { body: Some(body) })?).await?;
            let mut prefix = [0; 4];
            stream.read_exact(&mut prefix).await?;
            let mut bytes = vec![0; frame_length(prefix)?];
            stream.read_exact(&mut bytes).await?;
            let answer: Answer = decode(&bytes)?;
            match answer.body {
                Some(answer::Body::Error(text)) => Err(std::io::Error::other(text)),
                Some(body) => Ok((body, stream)),
                None => Err(std::io::Error::other("it answered in words this release does not know")),
            }
        };
        tokio::time::timeout(ANSWER_TIME, asked).await?
    }

    /// Holds a connection until the other end goes.
    async fn wait_for_end(&self, id: &str) {
        let watch = async {
            let mut stream = UnixStream::connect(directory::socket(&self.state_dir, id)).await?;
            stream.write_all(&encode_frame(&Question { body: Some(question::Body::Watch(Nothing {})) })?).await?;
            tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
        };
        if let Err(error) = watch.await {
            tracing::debug!(generation = id, %error, "cannot watch an older hearthd");
        }
        // Its socket goes before it does.
        while directory::is_alive(&self.state_dir, id) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn forget(&self, id: &str) {
        let mut living = self.living.lock();
        *living = living.iter().filter(|other| *other != id).cloned().collect();
        drop(living);
        if directory::remove_dead(&self.state_dir, id) {
            tracing::warn!(generation = id, "an older hearthd did not stop cleanly; removed its sockets");
        } else {
            tracing::info!(generation = id, "an older hearthd has left");
        }
    }
}
