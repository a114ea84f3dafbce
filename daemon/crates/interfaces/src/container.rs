//! The container that interfaces act for: its root, user, network and certificates, and the context that all containers
//! share.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use hearth_base::config::{self, Live};
use hearth_http::outgoing::context::OutgoingContext;
use hearth_http::outgoing::tls::Trust;
use hearth_wasm::resolver::Names;
use hearth_wasm::state::ComponentState;

use crate::storage::{Caller, Storage};

/// The context that the interfaces of all containers share.
pub struct Shared {
    live: Arc<Live>,
    /// Where calls wait for servers.
    pub runtime: Handle,
    outgoing: Arc<OutgoingContext>,
}

impl Shared {
    /// Calls wait for servers on `runtime`.
    pub fn new(live: Arc<Live>, runtime: Handle, outgoing: Arc<OutgoingContext>) -> Arc<Shared> {
        Arc::new(Shared { live, runtime, outgoing })
    }

    /// The limits, as they are now.
    pub fn config(&self) -> config::Interfaces {
        self.live.now().interfaces.clone()
    }

    /// Starts work on the runtime. It ends when the value is dropped.
    pub fn spawn<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Task<T> {
        Task(self.runtime.spawn(work))
    }

    /// How long one call may take.
    pub fn call_timeout(&self) -> Duration {
        Duration::from_millis(self.config().call_timeout_ms)
    }
}

/// Work on the runtime, which ends when this is dropped.
pub struct Task<T>(JoinHandle<T>);

impl<T> Task<T> {
    /// Its result; `None` if it panicked, or the daemon ends.
    pub async fn result(mut self) -> Option<T> {
        (&mut self.0).await.ok()
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A container. Its components share it.
pub struct Container {
    /// The context that all containers share.
    pub shared: Arc<Shared>,
    /// Its names, root, user and network.
    pub names: Names,
    /// The certificates that it trusts.
    pub trust: Trust,
    /// The thread for its database files.
    pub storage: Storage,
}

impl Container {
    /// The container with this environment, which may name the certificates it trusts.
    pub fn new(shared: &Arc<Shared>, names: Names, env: &[(String, String)]) -> Arc<Container> {
        Arc::new(Container {
            shared: shared.clone(),
            trust: Trust::new(shared.outgoing.clone(), names.root.clone(), env),
            storage: Storage::new(names.root.clone(), names.identity.clone()),
            names,
        })
    }

    /// The guest of this store as the caller of an interface.
    pub fn caller(&self, state: &ComponentState) -> Caller {
        let config = self.shared.config();
        Caller {
            guest: state.guest.clone(),
            memory: state.limits.usage().clone(),
            timeout: Duration::from_millis(config.call_timeout_ms),
            answer_bytes_max: config.answer_bytes_max,
        }
    }
}
