//! The cells of a node, as the daemon sees them: pods that each have a process of their own (isolation level `pod`).
//!
//! ```text
//!   shim ──start──▶ control ─▶ Cells: which level? ──node──▶ this daemon's task socket
//!                                        │ pod
//!                                        ▼
//!                     nursery (a spare, or a new one) ─▶ control group ─▶ orders ─▶ the cell's task socket
//! ```
//!
//! containerd then talks to the cell with no hop in between. A cell belongs to no daemon: its directory names what it is
//! for, and the daemon that leads finds it there, gives it programs, tells of its end if it dies, and removes what it leaves.
//!
//! * `mod.rs`: which pod gets a cell; the cells that live, and those that an earlier daemon has left.
//! * `nursery.rs`: processes that become cells, some of them made in advance.
//! * `programs.rs`: the socket on which cells get their programs.
//! * `remains.rs`: the remains of a cell that has ended: its tasks, its control group, its directory.

mod nursery;
mod programs;
mod remains;

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use hearth_shim::TaskSocketRequest;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};

use crate::generation::asking::Asking;
use crate::server::task_sockets::{self, TaskSockets};
use hearth_base::bundle::{Role, TaskSpec};
use hearth_base::cell::{self, ABOUT_FILE, About, DIRECTORY, Orders, PROGRAMS_SOCKET, Ready};
use hearth_base::config::Live;
use hearth_base::error::{Error, Result};
use hearth_base::generation::directory;
use hearth_base::generation::wire::{Nothing, question};
use hearth_base::isolation::{self, Level};
use hearth_containerd::peer::Key;
use hearth_observe::metrics::Metrics;
use hearth_os::cell_group::Cgroup;
use hearth_os::sockets;
use hearth_wasm::modules::ModuleStore;
use hearth_wasm::modules::turns::Owner;

use nursery::{Nursery, Unordered};
use programs::ProgramServer;

/// How long a cell may take from its orders until it serves. containerd gives a shim five seconds in all.
const READY_TIME: Duration = Duration::from_secs(4);

/// How long cells may take to end at a stop of the daemon.
const STOP_TIME: Duration = Duration::from_secs(8);

/// The cells of the node.
pub struct Cells {
    config: Arc<Live>,
    task_sockets: Arc<TaskSockets>,
    nursery: Arc<Nursery>,
    programs: Arc<ProgramServer>,
    asking: Asking,
    /// How many there are, with those that are being made.
    count: AtomicUsize,
    known: Mutex<HashMap<String, Known>>,
    /// Told when a cell has left `known`.
    left: Notify,
    /// Whether this daemon looks after them: the one that leads does.
    leads: AtomicBool,
    serving: Mutex<Option<JoinHandle<()>>>,
    metrics: Arc<Metrics>,
    /// Where it waits for system calls, and for the ends of cells.
    runtime: Handle,
}

/// A cell that lives.
#[derive(Clone)]
struct Known {
    about: About,
    /// Its task socket: `unix:///…`.
    address: String,
}

/// Room for one cell among `isolation.cells_max`. Dropped: it is given back.
struct Room(Arc<Cells>);

impl Drop for Room {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Cells {
    /// No cells yet.
    pub fn new(
        task_sockets: Arc<TaskSockets>,
        modules: Arc<ModuleStore>,
        fingerprint: &str,
        metrics: Arc<Metrics>,
        runtime: Handle,
    ) -> Arc<Cells> {
        let config = task_sockets.config().clone();
        let state_dir = config.now().state_dir.join(DIRECTORY);
        Arc::new(Cells {
            nursery: Arc::new(Nursery::new(config.clone())),
            programs: ProgramServer::new(modules, fingerprint),
            asking: Asking { state_dir },
            count: AtomicUsize::new(0),
            known: Mutex::default(),
            left: Notify::new(),
            leads: AtomicBool::new(false),
            serving: Mutex::default(),
            config,
            task_sockets,
            metrics,
            runtime,
        })
    }

    /// Looks after the cells from now on, also those of earlier daemons; makes spares, if there are to be some.
    ///
    /// # Errors
    /// The socket for programs cannot be bound, or the cells' directories cannot be read.
    pub fn lead(self: &Arc<Self>) -> io::Result<()> {
        self.leads.store(true, Ordering::Release);
        let left = match self.asking.state_dir.exists() {
            true => directory::all(&self.asking.state_dir)?,
            false => Vec::new(),
        };
        if left.is_empty() {
            // No cell is there to ask, and no process listens on the socket of an earlier daemon.
            let _ = std::fs::remove_file(self.programs_socket());
        } else {
            self.give_programs()?;
        }
        left.into_iter().for_each(|id| self.adopt(id));
        self.refill();
        Ok(())
    }

    fn programs_socket(&self) -> PathBuf {
        self.config.now().state_dir.join(PROGRAMS_SOCKET)
    }

    /// Opens the socket for programs, if it is not open. A node without cells has none.
    fn give_programs(&self) -> io::Result<()> {
        let mut serving = self.serving.lock();
        if serving.is_none() {
            let listener = sockets::bind(&self.programs_socket())?;
            *serving = Some(self.runtime.spawn(self.programs.clone().serve(listener)));
        }
        Ok(())
    }

    /// Takes over a cell that an earlier daemon has made, or clears up after one that has died meanwhile.
    fn adopt(self: &Arc<Self>, id: String) {
        let path = directory::path(&self.asking.state_dir, &id);
        let about = match remains::about(&path.join(ABOUT_FILE)) {
            Ok(about) => about,
            Err(error) => {
                tracing::warn!(cell = id, %error, "a cell's directory says nothing of it");
                directory::remove_dead(&self.asking.state_dir, &id);
                return;
            }
        };
        tracing::info!(cell = id, pid = about.pid, pod = about.id, "found a cell of an earlier hearthd");
        self.count.fetch_add(1, Ordering::AcqRel);
        let address = task_sockets::address_in(&path, &key(&about), &about.namespace.as_str().into());
        self.keep(id, Known { about, address }, Room(self.clone()));
    }

    /// Looks after no cell any more: another daemon does. The cells go on.
    pub fn release(&self) {
        self.leads.store(false, Ordering::Release);
        if let Some(serving) = self.serving.lock().take() {
            serving.abort();
        }
        // What is known stays: questions that came before the hand-over are still answered.
        let nursery = self.nursery.clone();
        self.runtime.spawn_blocking(move || nursery.close());
    }

    /// Ends all cells with their guests, whose exits containerd is told; for a stop of the daemon that leads.
    pub async fn stop(&self) {
        if !self.leads.load(Ordering::Acquire) {
            return;
        }
        let ids: Vec<String> = self.known.lock().keys().cloned().collect();
        // The questions end with this value, answered or not.
        let mut questions = JoinSet::new();
        for id in ids {
            let asking = self.asking.clone();
            let order = async move {
                if let Err(error) = asking.ask(&id, question::Body::Stop(Nothing {})).await {
                    tracing::debug!(cell = id, %error, "a cell was not told to stop");
                }
            };
            questions.spawn_on(order, &self.runtime);
        }
        let all_stopped = async {
            loop {
                let left = self.left.notified();
                if self.known.lock().is_empty() {
                    return;
                }
                left.await;
            }
        };
        if tokio::time::timeout(STOP_TIME, all_stopped).await.is_err() {
            tracing::warn!(cells = self.known.lock().len(), "some cells did not stop in time");
        }
        if let Some(serving) = self.serving.lock().take() {
            serving.abort();
        }
        let _ = std::fs::remove_file(self.programs_socket());
        let nursery = self.nursery.clone();
        let _ = self.runtime.spawn_blocking(move || nursery.close()).await;
    }

    /// The control sockets of the cells that live.
    pub fn control_sockets(&self) -> Vec<PathBuf> {
        let ids = self.known.lock();
        ids.keys().map(|id| directory::control_socket(&self.asking.state_dir, id)).collect()
    }

    /// Brings the gauges up to date; called before a scrape.
    pub fn observe(&self) {
        // Another daemon that leads counts them.
        let leads = self.leads.load(Ordering::Acquire);
        self.metrics.cells.living.set(if leads { self.known.lock().len() as i64 } else { 0 });
        self.metrics.cells.spares.set(self.nursery.spares() as i64);
    }

    /// The address of the task socket for the task that a shim was started for, and the Task API version to speak on it:
    /// this daemon's, or a cell's, which is made for the first task of a pod.
    ///
    /// # Errors
    /// As [`TaskSockets::task_socket`]; what is wrong with the level that is asked for; `ResourceExhausted` if there are
    /// too many cells; `Internal` if the kernel gives none.
    pub async fn task_socket(self: &Arc<Self>, ask: &TaskSocketRequest) -> Result<(String, u32)> {
        let option = Level::of_option(&ask.config_path)?;
        let Some(spec) = self.spec(ask, option).await? else { return self.task_sockets.task_socket(ask).await };
        let address = if let Role::InSandbox(sandbox) = &spec.role {
            // The level that its pod was given counts, whatever the configuration says by now.
            let asked = isolation::level(&Default::default(), option, &spec)?;
            match self.address_of(ask, sandbox) {
                None if asked == Level::Pod => return Err(not_in_a_cell()),
                address => address,
            }
        } else {
            match isolation::level(&self.config.now().isolation, option, &spec)? {
                Level::Node => None,
                Level::Pod => Some(self.start(ask, &spec).await?),
            }
        };
        let Some(address) = address else { return self.task_sockets.task_socket(ask).await };
        let key = Key::of(&ask.grpc_address, &ask.ttrpc_address);
        Ok((address, task_sockets::version(ask, &self.task_sockets.peer(&key).client).await))
    }

    /// The spec in the shim's bundle, if it can have a bearing on the level. A pod at level `node` costs a look at the file
    /// for the annotation.
    async fn spec(&self, ask: &TaskSocketRequest, option: Level) -> Result<Option<TaskSpec>> {
        if ask.bundle.is_empty() {
            return if option == Level::Node { Ok(None) } else { Err(unknown_spec("the shim was given no bundle")) };
        }
        let config = self.config.now();
        let (bundle, bytes_max) = (PathBuf::from(&ask.bundle), config.rpc.spec_bytes_max);
        let strict =
            option == Level::Pod || config.isolation.level == Level::Pod || !config.isolation.pod_namespaces.is_empty();
        let certain = strict || !self.known.lock().is_empty();
        let read = self.runtime.spawn_blocking(move || {
            let bytes = TaskSpec::read_bytes(&bundle, bytes_max)?;
            let annotated =
                || bytes.windows(isolation::ANNOTATION.len()).any(|w| w == isolation::ANNOTATION.as_bytes());
            if certain || annotated() { TaskSpec::parse(&bytes, &bundle).map(Some) } else { Ok(None) }
        });
        match read.await.map_err(|e| Error::Internal(format!("reading a spec ended early: {e}")))? {
            Ok(spec) => Ok(spec),
            // Where containerd starts a shim for a sandbox there may be no spec yet. Create reports what is wrong with it.
            Err(_) if !strict => Ok(None),
            Err(error) => Err(unknown_spec(&error.to_string())),
        }
    }

    /// The task socket of the cell that has this sandbox.
    fn address_of(&self, ask: &TaskSocketRequest, sandbox: &str) -> Option<String> {
        let asked = Key::of(&ask.grpc_address, &ask.ttrpc_address);
        let is_it = |known: &&Known| {
            known.about.id == *sandbox && known.about.namespace == ask.namespace && key(&known.about) == asked
        };
        self.known.lock().values().find(is_it).map(|known| known.address.clone())
    }

    /// Makes a cell for a pod, or for a task that belongs to none.
    async fn start(self: &Arc<Self>, ask: &TaskSocketRequest, spec: &TaskSpec) -> Result<String> {
        if ask.namespace.is_empty() || ask.ttrpc_address.is_empty() {
            return Err(Error::InvalidArgument("the shim named no namespace or no TTRPC_ADDRESS".into()));
        }
        if self.task_sockets.is_draining() {
            return Err(Error::Unavailable(
                "hearthd takes no new tasks on this node: it is being drained (`hearthctl drain --undo` takes that back)".into(),
            ));
        }
        let cgroup = Cgroup::named(&spec.cgroups_path).map_err(|e| {
            Error::InvalidArgument(format!("{e}; isolation level pod needs one, which holds the pod's process"))
        })?;
        let room = self.room()?;
        self.give_programs().map_err(|e| Error::Internal(format!("cannot open the socket for cells: {e}")))?;
        let config = self.config.now();
        let Key { grpc, ttrpc } = Key::of(&ask.grpc_address, &ask.ttrpc_address);
        let about = About {
            grpc,
            ttrpc,
            namespace: ask.namespace.clone(),
            id: ask.id.clone(),
            cgroup: cgroup.directories().to_vec(),
            pid: 0,
        };
        let orders = Orders { config: (*config).clone(), about, network: spec.network.clone() };
        let cells = self.clone();
        let owner = match (&spec.names.namespace, &spec.names.pod) {
            (Some(namespace), Some(pod)) => Owner::new(namespace, pod),
            _ => Owner::new(&ask.namespace, &ask.id),
        };
        let started = self.runtime.spawn_blocking(move || cells.order(orders, owner, &cgroup)).await;
        let (id, known) = started.map_err(|e| Error::Internal(format!("starting a cell ended early: {e}")))??;
        let address = known.address.clone();
        tracing::info!(
            cell = id,
            pid = known.about.pid,
            task = ask.id,
            namespace = ask.namespace,
            "a pod has a process of its own"
        );
        self.metrics.cells.started.inc();
        self.keep(id, known, room);
        self.refill();
        Ok(address)
    }

    fn room(self: &Arc<Self>) -> Result<Room> {
        let max = self.config.now().isolation.cells_max;
        let taken =
            self.count.fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| (used < max).then_some(used + 1));
        match taken {
            Ok(_) => Ok(Room(self.clone())),
            Err(used) => Err(Error::ResourceExhausted(format!(
                "the node has {used} pods with a process of their own, as many as it may (isolation.cells_max)"
            ))),
        }
    }

    /// Puts a process into the pod's control group and gives it its orders. Blocks until it serves.
    fn order(&self, mut orders: Orders, owner: Owner, cgroup: &Cgroup) -> Result<(String, Known)> {
        let Unordered { pid, mut socket } = self.nursery.take()?;
        orders.about.pid = pid;
        self.programs.begun(pid, owner);
        let ready = cgroup
            .admit(pid)
            .map_err(|e| format!("cannot put it into the pod's control group: {e}"))
            .and_then(|()| give(&mut socket, &orders).map_err(|e| format!("it did not take its orders: {e}")));
        let failed = match ready {
            Ok(Ready::Serves { id, address }) => return Ok((id, Known { about: orders.about, address })),
            Ok(Ready::Failed { why }) => why,
            Err(why) => why,
        };
        // It ends with its socket.
        drop(socket);
        self.programs.ended(pid);
        remains::remove_cgroup(&orders.about);
        Err(Error::Internal(format!("the pod's process (isolation level pod) did not start: {failed}")))
    }

    /// Remembers a cell until it has ended.
    fn keep(self: &Arc<Self>, id: String, known: Known, room: Room) {
        self.known.lock().insert(id.clone(), known);
        let cells = self.clone();
        self.runtime.spawn(async move {
            cells.asking.wait_for_end(&id).await;
            cells.ended(&id).await;
            drop(room);
        });
    }

    async fn ended(self: &Arc<Self>, id: &str) {
        if !self.leads.load(Ordering::Acquire) {
            return;
        }
        let Some(Known { about, .. }) = self.known.lock().get(id).cloned() else { return };
        self.programs.ended(about.pid);
        let events = self.task_sockets.peer(&key(&about)).events.clone();
        let (nursery, path) = (self.nursery.clone(), directory::path(&self.asking.state_dir, id));
        let pid = about.pid;
        let cleared = self.runtime.spawn_blocking(move || {
            let signal = nursery.end_of(pid);
            let why = remains::tell(&path, &about, signal, &events);
            remains::remove_cgroup(&about);
            why
        });
        match cleared.await {
            Ok(why) => self.metrics.cells.ended.with_label_values(&[why.label()]).inc(),
            Err(error) => tracing::warn!(cell = id, %error, "clearing up after a cell ended early"),
        }
        directory::remove_dead(&self.asking.state_dir, id);
        self.known.lock().remove(id);
        self.left.notify_waiters();
        tracing::debug!(cell = id, pid, "a cell has ended");
    }

    fn refill(&self) {
        if self.config.now().isolation.spares > 0 {
            let nursery = self.nursery.clone();
            self.runtime.spawn_blocking(move || nursery.refill());
        }
    }
}

fn give(socket: &mut std::os::unix::net::UnixStream, orders: &Orders) -> io::Result<Ready> {
    socket.set_read_timeout(Some(READY_TIME))?;
    cell::write_json(socket, orders)?;
    cell::read_json(socket)
}

fn key(about: &About) -> Key {
    Key { grpc: about.grpc.clone(), ttrpc: about.ttrpc.clone() }
}

fn unknown_spec(why: &str) -> Error {
    Error::FailedPrecondition(format!(
        "isolation level pod was asked for, and the container's spec cannot be read: {why}"
    ))
}

/// Why a container is refused that asks for a process of its own, in a pod without one.
pub fn not_in_a_cell() -> Error {
    Error::FailedPrecondition(
        "isolation level pod was asked for, and the pod has no process of its own: this needs a containerd that tells the shim its runtime's options (1.6 to 2.2), and its own sandbox controller (sandboxer = \"podsandbox\"); or set isolation.level or isolation.pod_namespaces in hearthd's configuration".into(),
    )
}
