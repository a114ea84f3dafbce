//! Task sockets: one for each (daemon generation, containerd instance, namespace).
//!
//! The namespace is absent from the calls of some containerd versions, and two containerds may run on
//! a node, so the socket itself says whose tasks it serves. It belongs to this generation of the
//! daemon: a later one takes over the control socket, never these.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hearth_shim::TaskSocketRequest;
use parking_lot::Mutex;

use crate::generation::older::OlderGenerations;
use crate::native::{Native, Natives};
use crate::server::task::TaskService;
use crate::task::Task;
use crate::task::create::Creator;
use crate::task::map::{TaskCount, TaskMap};
use crate::task::pods::Sandboxes;
use crate::task::world::World;
use hearth_base::bundle::{Role, TaskSpec};
use hearth_base::config::Live;
use hearth_base::error::{Error, Result};
use hearth_base::generation::wire::{Owned, Owner};
use hearth_base::namespace::ContainerdNamespace;
use hearth_base::operator::TaskInfo;
use hearth_containerd::client::Containerd;
use hearth_containerd::events::EventQueue;
use hearth_containerd::peer::{self, Key, Peer};
use hearth_wasm::modules::programs::Programs;

/// The Task API version for containerd 1.x, and for a containerd that does not tell its version.
const VERSION_2: u32 = 2;
/// The Task API version from containerd 2.0 on; it saves the execs for a pod's containers.
pub const VERSION_3: u32 = 3;

/// The runtimes for work that is not a guest's.
#[derive(Clone)]
pub struct Runtimes {
    /// Calls, and what their callers wait for.
    pub answering: tokio::runtime::Handle,
    /// Work that no caller waits for: events to containerd, scrapes.
    pub background: tokio::runtime::Handle,
}

/// All task sockets of this daemon.
pub struct TaskSockets {
    config: Arc<Live>,
    world: Arc<World>,
    modules: Arc<dyn Programs>,
    runtimes: Runtimes,
    count: Arc<TaskCount>,
    /// The older generations.
    older: Arc<OlderGenerations>,
    /// No new tasks are taken.
    draining: Arc<AtomicBool>,
    /// Where this generation's sockets lie.
    dir: PathBuf,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    containerds: HashMap<Key, Arc<Peer>>,
    namespaces: HashMap<(Key, ContainerdNamespace), ServedNamespace>,
}

struct ServedNamespace {
    entered: Entered,
    tasks: Arc<TaskMap>,
    /// Serves until it is dropped or shut down.
    server: Option<ttrpc::r#async::Server>,
}

/// The parts of one namespace of a containerd.
#[derive(Clone)]
pub struct Entered {
    /// Its task socket: `unix:///…`.
    pub address: String,
    /// Its pods.
    pub sandboxes: Arc<Sandboxes>,
    /// Their native containers.
    pub natives: Arc<Natives>,
}

/// Below a generation's directory: the files of pods.
const PODS: &str = "pods";

impl TaskSockets {
    /// No sockets yet; they will be made in `dir`, which exists.
    pub fn new(
        config: Arc<Live>,
        world: Arc<World>,
        modules: Arc<dyn Programs>,
        dir: PathBuf,
        older: Arc<OlderGenerations>,
        runtimes: Runtimes,
    ) -> Arc<TaskSockets> {
        let count = TaskCount::new(config.now().rpc.tasks_max);
        let (draining, known) = (Arc::default(), Mutex::default());
        Arc::new(TaskSockets { config, world, modules, runtimes, count, older, draining, dir, known })
    }

    /// The configuration in force.
    pub fn config(&self) -> &Arc<Live> {
        &self.config
    }

    /// How many tasks there are.
    pub fn count(&self) -> &Arc<TaskCount> {
        &self.count
    }

    /// The address of the socket for this containerd and namespace, made at the first question, and
    /// the Task API version to speak on it.
    ///
    /// # Errors
    /// Empty names, too many namespaces, a socket that cannot be bound.
    pub async fn task_socket(&self, ask: &TaskSocketRequest) -> Result<(String, u32)> {
        if ask.namespace.is_empty() || ask.ttrpc_address.is_empty() {
            return Err(Error::InvalidArgument(
                "the shim named no namespace or no TTRPC_ADDRESS; it is started by containerd, not by hand".into(),
            ));
        }
        let key = Key::of(&ask.grpc_address, &ask.ttrpc_address);
        let version = version(ask, &self.peer(&key).client).await;
        if let Some(address) = self.address_of_older(&key, ask).await {
            return Ok((address, version));
        }
        self.count.expect(&ask.id);
        Ok((self.enter(&key, &ask.namespace.as_str().into()).await?.address, version))
    }

    /// A namespace of a containerd, with its task socket, made when it is entered first.
    ///
    /// # Errors
    /// Too many namespaces, a socket that cannot be bound.
    pub async fn enter(&self, key: &Key, namespace: &ContainerdNamespace) -> Result<Entered> {
        match self.known(key, namespace) {
            Some(entered) => Ok(entered),
            None => self.make(key.clone(), namespace, self.peer(key)).await,
        }
    }

    /// The same, if it has been entered before.
    pub fn known(&self, key: &Key, namespace: &ContainerdNamespace) -> Option<Entered> {
        let known = self.known.lock();
        known.namespaces.get(&(key.clone(), namespace.clone())).map(|n| n.entered.clone())
    }

    /// The task socket of the older generation that has the sandbox of the pod this container is for.
    async fn address_of_older(&self, key: &Key, ask: &TaskSocketRequest) -> Option<String> {
        if self.older.is_empty() || ask.bundle.is_empty() {
            return None;
        }
        let (bundle, bytes_max) = (PathBuf::from(&ask.bundle), self.config.now().rpc.spec_bytes_max);
        // Where containerd starts a shim for a sandbox there may be no spec yet. Create reports what is wrong with it.
        let read = self.runtimes.answering.spawn_blocking(move || TaskSpec::read(&bundle, bytes_max));
        let Ok(Ok(TaskSpec { role: Role::InSandbox(id), .. })) = read.await else { return None };
        let Key { grpc: grpc_address, ttrpc: ttrpc_address } = key.clone();
        let sandbox = Owner { grpc_address, ttrpc_address, namespace: ask.namespace.clone(), id };
        if self.owned(&sandbox).is_some() {
            return None;
        }
        self.older.owner(&sandbox).await
    }

    /// The sockets of a task or a pod, if it belongs to this generation.
    pub fn owned(&self, task: &Owner) -> Option<Owned> {
        let key = Key { grpc: task.grpc_address.clone(), ttrpc: task.ttrpc_address.clone() };
        let known = self.known.lock();
        let namespace = known.namespaces.get(&(key.clone(), task.namespace.as_str().into()))?;
        let address = namespace.entered.address.clone();
        if namespace.tasks.get(&task.id).is_ok() {
            return Some(Owned { address, controller: String::new() });
        }
        namespace.entered.sandboxes.pod(&task.id).ok()?;
        Some(Owned { address, controller: peer::controller_socket(&self.dir, &key).display().to_string() })
    }

    /// The older generations.
    pub fn older(&self) -> &Arc<OlderGenerations> {
        &self.older
    }

    /// A containerd, with the queue of its events.
    pub fn peer(&self, key: &Key) -> Arc<Peer> {
        let mut known = self.known.lock();
        let make = || {
            Arc::new(Peer {
                events: EventQueue::new(
                    &key.ttrpc,
                    &self.config.now().events,
                    self.world.runtime.metrics.clone(),
                    &self.runtimes.background,
                ),
                client: Containerd::new(&key.grpc, &self.config.now().rpc),
                key: key.clone(),
            })
        };
        known.containerds.entry(key.clone()).or_insert_with(make).clone()
    }

    /// Makes a socket. Of two made at once, one is kept.
    async fn make(&self, key: Key, namespace: &ContainerdNamespace, peer: Arc<Peer>) -> Result<Entered> {
        let name = key.file_name(Some(namespace));
        let path = socket_in(&self.dir, &key, namespace);
        let cannot = |e: String| Error::Unavailable(format!("cannot serve a task socket at {}: {e}", path.display()));
        let (entered, mut server) = {
            let mut known = self.known.lock();
            let entry = (key, namespace.clone());
            if let Some(found) = known.namespaces.get(&entry) {
                return Ok(found.entered.clone());
            }
            if known.namespaces.len() >= self.config.now().rpc.namespaces_max {
                return Err(Error::ResourceExhausted(format!(
                    "{} namespaces have a task socket, as many as may (rpc.namespaces_max)",
                    known.namespaces.len()
                )));
            }
            let listener = std::os::unix::net::UnixListener::bind(&path).map_err(|e| cannot(e.to_string()))?;
            let listener =
                ttrpc::r#async::transport::Listener::try_from(listener).map_err(|e| cannot(e.to_string()))?;
            let tasks = TaskMap::new(self.count.clone());
            let answering = self.runtimes.answering.clone();
            let files = self.dir.join(PODS).join(&name);
            let sandboxes = Sandboxes::new(tasks.clone(), files, answering.clone());
            let natives =
                Natives::new(namespace.clone(), peer.clone(), &self.config.now(), tasks.clone(), sandboxes.clone());
            let creator = Creator::new(
                namespace.clone(),
                peer,
                self.config.clone(),
                self.modules.clone(),
                self.world.clone(),
                sandboxes.clone(),
                answering,
            );
            let draining = self.draining.clone();
            let service = TaskService::new(creator, tasks.clone(), natives.clone(), self.world.clone(), draining);
            let server = ttrpc::r#async::Server::new().add_listener(listener).register_service(service.services());
            let entered = Entered { address: address_of(&path), sandboxes, natives };
            known.namespaces.insert(entry, ServedNamespace { entered: entered.clone(), tasks, server: None });
            (entered, server)
        };
        // The socket is bound: connections already wait in its backlog.
        server.start().await.map_err(|e| cannot(e.to_string()))?;
        let mut known = self.known.lock();
        if let Some(entry) = known.namespaces.values_mut().find(|n| n.entered.address == entered.address) {
            entry.server = Some(server);
        }
        tracing::info!(namespace = &**namespace, address = %entered.address, "serving tasks");
        Ok(entered)
    }

    /// Takes no new tasks from now on, or takes them again. Those there are go on, and may be exec'ed into.
    pub fn drain(&self, on: bool) {
        self.draining.store(on, Ordering::Relaxed);
        self.world.runtime.metrics.tasks.draining.set(on.into());
        tracing::info!(on, "draining");
    }

    /// Whether no new tasks are taken.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// The containerds served, by their gRPC sockets.
    pub fn containerds(&self) -> Vec<String> {
        let mut sockets: Vec<_> = self.known.lock().containerds.keys().map(|key| key.grpc.clone()).collect();
        sockets.sort();
        sockets
    }

    /// How many namespaces have a task socket.
    pub fn namespaces(&self) -> usize {
        self.known.lock().namespaces.len()
    }

    /// The image of a container, as its containerd has it; none if that does not say.
    pub async fn image(&self, namespace: &ContainerdNamespace, id: &str) -> Option<String> {
        let peers: Vec<_> = self.known.lock().containerds.values().cloned().collect();
        for peer in peers {
            if let Ok(Some(image)) = peer.client.image(namespace, id).await {
                return Some(image);
            }
        }
        None
    }

    /// Every task of this daemon.
    pub fn tasks(&self) -> Vec<Arc<Task>> {
        let maps: Vec<_> = self.known.lock().namespaces.values().map(|n| n.tasks.clone()).collect();
        maps.iter().flat_map(|map| map.all()).collect()
    }

    /// Every pod of this daemon that is no task, as an operator sees it.
    pub fn pods(&self, generation: &str) -> Vec<TaskInfo> {
        let of = |((_, namespace), known): (&(Key, ContainerdNamespace), &ServedNamespace)| {
            (namespace.clone(), known.entered.sandboxes.clone())
        };
        let all: Vec<_> = self.known.lock().namespaces.iter().map(of).collect();
        all.iter().flat_map(|(namespace, sandboxes)| sandboxes.infos(namespace, generation)).collect()
    }

    /// Every native container of this daemon's pods.
    pub fn natives(&self) -> Vec<Arc<Native>> {
        let all: Vec<_> = self.known.lock().namespaces.values().map(|n| n.entered.natives.clone()).collect();
        all.iter().flat_map(|natives| natives.all()).collect()
    }

    /// Ends the pods that are no tasks, so that calls that wait for their end are answered.
    pub fn end_pods(&self) {
        let all: Vec<_> = self.known.lock().namespaces.values().map(|n| n.entered.sandboxes.clone()).collect();
        all.iter().for_each(|sandboxes| sandboxes.end_all());
    }

    /// Waits until every containerd has taken its events, or the deadline.
    pub async fn flush_events(&self, deadline: tokio::time::Instant) {
        let peers: Vec<_> = self.known.lock().containerds.values().cloned().collect();
        for peer in peers {
            if let Err(error) = peer.events.flushed(deadline).await {
                tracing::warn!(%error, "not every event reached containerd before the end");
            }
        }
    }

    /// Closes the sockets.
    pub async fn close(&self) {
        let servers: Vec<_> = self.known.lock().namespaces.values_mut().filter_map(|n| n.server.take()).collect();
        for mut server in servers {
            // Closing connections waits for calls under way, and a Wait may be for ever.
            server.stop_listen().await;
        }
    }
}

/// The task socket of a namespace in a generation's, or a cell's, directory.
fn socket_in(directory: &Path, key: &Key, namespace: &ContainerdNamespace) -> PathBuf {
    directory.join(format!("{}.sock", key.file_name(Some(namespace))))
}

/// Its address.
pub fn address_in(directory: &Path, key: &Key, namespace: &ContainerdNamespace) -> String {
    address_of(&socket_in(directory, key, namespace))
}

fn address_of(socket: &Path) -> String {
    format!("unix://{}", socket.display())
}

/// 3 where containerd is known to be 2.0 or later; 2 works everywhere.
pub async fn version(ask: &TaskSocketRequest, containerd: &Containerd) -> u32 {
    if !ask.accepts_version_3 {
        return VERSION_2;
    }
    let major = match ask.containerd_version.trim_start_matches('v').split('.').next() {
        Some(major) if !major.is_empty() => major.parse().ok(),
        _ => match containerd.version().await {
            Ok(version) => Some(version.major),
            Err(error) => {
                tracing::warn!(%error, "containerd does not say its version; speaking Task API version 2");
                None
            }
        },
    };
    if major.is_some_and(|major: u32| major >= 2) { VERSION_3 } else { VERSION_2 }
}
