//! HTTP components: a listener in the pod's network, and an instance for each request.
//!
//! ```text
//!  Start ─▶ listener::bind ─▶ connection::serve ──▶ hyper for each connection, on the scheduler
//!             in the pod's      on the `http` threads,    │ head of a request
//!             network           as are epoll's news       ▼
//!                                        request::answer: refuse, or a turn and a slot
//!                                                       │ a guest of its own, next on the same thread
//!                                                       ▼
//!                    serve: instance ─▶ handle(request, response) ─▶ body, streamed ─▶ store dropped
//! ```
//!
//! What a request's instance is made of is asked anew for each: a service that nobody had compiled begins on code of
//! the baseline compiler, and goes over to better code when there is some
//! ([`LiveProgram`]).
//!
//! A component of WASI 0.3 may have several requests in one instance, if its pod asks for it; see [`workers`].
//!
//! At rest a service is its sockets, its open root and one task. Requests share nothing but the container: its
//! files, its memory limit, its CPU time (they are members of its guest's group, see
//! [`Guest::part`](crate::wasm::scheduler::Guest::part)), its stdio, its pauses and its end. So do connections: what
//! their clients make the daemon do is the container's CPU time.
//!
//! How it ends: SIGTERM closes the sockets, lets requests under way finish and then ends with 0
//! ([`requests::Requests::drain`]); any other fatal signal ends all at once.
//!
//! Failure paths: what a client does wrong is answered with 4xx, by hyper for what is no HTTP; a limit
//! of ours with 503; a guest that traps or says nothing with 500, and one that is too slow with 504. Once
//! the head is out, the connection is closed instead, so that no cut response looks whole. A client
//! that goes away ends its guest.
//!
//! * [`listener`]: which port, and binding it.
//! * [`connection`]: accepting, and one client.
//! * [`request`]: one request, from its head to its response's.
//! * [`serve`]: its guest's side.
//! * [`workers`]: instances that may have several.
//! * [`exchange`]: what the two sides know of each other.
//! * [`response`]: a response on its way to the client.
//! * [`turns`]: how many at once.
//! * [`requests`]: those under way, for who controls the container.
//! * [`counts`]: what is counted.
//! * [`lines`]: stdout and stderr in whole lines.
//! * [`notes`]: the daemon's own words in the container's stderr, at a bounded rate.
//! * [`outgoing`]: requests of guests to others.

pub mod connection;
pub mod counts;
pub mod exchange;
pub mod lines;
pub mod listener;
pub mod notes;
pub mod outgoing;
pub mod request;
pub mod requests;
pub mod response;
pub mod serve;
pub mod turns;
pub mod workers;

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use wasmtime_wasi::filesystem::WasiFilesystemCtx;

use crate::config::{self, Live};
use crate::metrics::Metrics;
use crate::starts::About;
use crate::task::stdio::Stdio;
use crate::wasm::engine::LiveProgram;
use crate::wasm::instance::World;
use crate::wasm::names::Names;
use crate::wasm::scheduler::Guest;
use crate::wasm::wasi::MemoryUse;

/// What all services of the daemon share.
pub struct Http {
    /// The daemon's configuration.
    live: Arc<Live>,
    /// Where connections are served.
    pub runtime: Handle,
    /// Places for the requests of all containers.
    pub places: Arc<Semaphore>,
    /// How guests' own requests trust.
    pub tls: outgoing::tls::Configurations,
    /// Metrics.
    pub metrics: Arc<Metrics>,
}

impl Http {
    /// Connections are served on `runtime`.
    pub fn new(live: Arc<Live>, runtime: Handle, metrics: Arc<Metrics>) -> Arc<Http> {
        let places = Arc::new(Semaphore::new(live.now().http.instances_max));
        Arc::new(Http { live, runtime, places, tls: outgoing::tls::Configurations::default(), metrics })
    }

    /// Limits, as they are now.
    pub fn config(&self) -> config::Http {
        self.live.now().http.clone()
    }
}

/// A container that serves.
pub struct Service {
    /// The component: what its next instance is made of.
    pub program: Arc<LiveProgram>,
    /// `argv` of each instance.
    pub args: Vec<String>,
    /// Its environment.
    pub env: Vec<(String, String)>,
    /// Its working directory.
    pub cwd: String,
    /// Its files, open.
    pub files: WasiFilesystemCtx,
    /// Whether its `/`, or a volume in it, refuses writes.
    pub partly_read_only: bool,
    /// How it looks up names.
    pub names: Option<Names>,
    /// The container's stdio.
    pub stdio: Arc<Stdio>,
    /// The container's memory.
    pub memory: Arc<MemoryUse>,
    /// The leader of the requests' guests: the listener's.
    pub guest: Arc<Guest>,
    /// Those under way.
    pub requests: Arc<requests::Requests>,
    /// How many at once.
    pub turns: turns::Turns,
    /// Instances that may have several requests; of a component of WASI 0.3 only.
    pub workers: Option<workers::Workers>,
    /// What becomes of its requests to others.
    pub outgoing: outgoing::Outgoing,
    /// What its lines begin with.
    pub marks: lines::Marks,
    /// What is counted.
    pub counts: Arc<counts::Counts>,
    /// The daemon's words.
    pub notes: notes::Notes,
    /// The container, for those who look.
    pub about: Arc<About>,
    /// What all guests share.
    pub world: Arc<World>,
}

impl Service {
    /// How many requests an instance may have at once.
    fn requests_per_instance(&self) -> usize {
        self.workers.as_ref().map_or(1, workers::Workers::concurrent)
    }
}
