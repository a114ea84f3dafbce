//! Takes the daemon's events as containerd does: a ttrpc server of `containerd.services.events.ttrpc.v1.Events` on a
//! thread of its own, so that taking events does not delay the clients that are measured.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use async_trait::async_trait;
use containerd_shim_protos::api::Empty;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Events, create_events};
use tokio::sync::oneshot;
use ttrpc::asynchronous::{Server, TtrpcContext};

use crate::null_server::address;

/// A running events server, stopped when dropped.
pub struct EventSink {
    socket: PathBuf,
    taken: Arc<Counter>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Counter(AtomicU64);

#[async_trait]
impl Events for Counter {
    async fn forward(&self, _: &TtrpcContext, _: ForwardRequest) -> ttrpc::Result<Empty> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(Empty::default())
    }
}

impl EventSink {
    /// Listens on `socket`.
    ///
    /// # Errors
    /// If it cannot be bound.
    pub fn listen(socket: PathBuf) -> Result<EventSink> {
        let taken = Arc::new(Counter::default());
        let (stop, stopped) = oneshot::channel();
        let (listening, result) = mpsc::channel();
        let (path, service) = (socket.clone(), taken.clone());
        let thread = std::thread::Builder::new()
            .name("events".into())
            .spawn(move || serve(&path, service, &listening, stopped))
            .context("cannot start the events thread")?;
        result.recv().context("the events thread ended")??;
        Ok(EventSink { socket, taken, stop: Some(stop), thread: Some(thread) })
    }

    /// The socket's path, which a shim gets as `TTRPC_ADDRESS`.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Events taken so far.
    pub fn taken(&self) -> u64 {
        self.taken.0.load(Ordering::Relaxed)
    }
}

impl Drop for EventSink {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(socket: &Path, service: Arc<Counter>, listening: &mpsc::Sender<Result<()>>, stopped: oneshot::Receiver<()>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = listening.send(Err(error.into()));
            return;
        }
    };
    runtime.block_on(async {
        let bound = async {
            let server = Server::new()
                .bind(&address(socket))
                .with_context(|| format!("cannot listen on {}", socket.display()))?;
            let mut server = server.register_service(create_events(service));
            server.start().await?;
            Ok(server)
        };
        // The server lives until the sink is dropped.
        let _server = match bound.await {
            Ok(server) => server,
            Err(error) => {
                let _ = listening.send(Err(error));
                return;
            }
        };
        let _ = listening.send(Ok(()));
        // Resolves when the sender is dropped.
        let _ = stopped.await;
    });
}
