//! From an assembled daemon to one that leads: the sockets of the generation, the process that stands for the daemon
//! at the service manager, the leadership, and the sockets that belong to the leading generation (control, metrics,
//! sandbox controller).

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::daemon::anchor;
use crate::generation::leadership::{self, Acquired, Held, Leadership};
use crate::generation::server::{self as generation_server, Order, Server};
use crate::native;
use crate::server::control;
use crate::server::endpoint::listen::Listener;
use crate::server::endpoint::{self, Endpoint};
use crate::server::operator_calls::Operator;
use crate::server::sandboxer::sockets::{self, Sockets};
use hearth_base::config::Config;
use hearth_base::generation::client::HandedOver;
use hearth_base::generation::directory::{self, Directory};
use hearth_base::generation::wire::Passed;

use super::Setup;
use super::assembly::Assembly;

/// Serves the sockets that belong to this generation for its whole life: the one on which generations talk, and its
/// own control socket, where operators reach it also when it no longer leads.
///
/// # Errors
/// One line: a socket cannot be bound in the directory of the generation.
pub fn serve_generation(
    assembly: &Assembly,
    own: &Directory,
    leadership: &Arc<Leadership>,
    orders: mpsc::Sender<Order>,
    began: Instant,
) -> Result<[JoinHandle<()>; 2], String> {
    let cannot = |e: std::io::Error| format!("state_dir: cannot listen in it: {e}");
    let listener = generation_server::bind(&own.path).map_err(cannot)?;
    let server = Arc::new(Server {
        id: own.id.clone(),
        began,
        task_sockets: assembly.task_sockets.clone(),
        leadership: leadership.clone(),
        operator: assembly.operator.clone(),
        orders,
    });
    let generation = tokio::spawn(server.serve(listener));
    let control = control::open(None, &own.path.join(directory::CONTROL)).map_err(cannot)?;
    Ok([generation, answer_control(assembly, control.listener)])
}

/// Answers questions on a control socket, until the task is aborted.
fn answer_control(assembly: &Assembly, listener: tokio::net::UnixListener) -> JoinHandle<()> {
    tokio::spawn(control::serve(listener, assembly.task_sockets.clone(), assembly.operator.clone()))
}

/// Starts the process that stands for this one at the service manager, if one is wanted.
///
/// # Errors
/// One line.
pub async fn start_anchor(setup: &Setup) -> Result<Option<u32>, String> {
    let Some(unit) = setup.anchor.clone() else { return Ok(None) };
    let state_dir = setup.config.state_dir.clone();
    let started = tokio::task::spawn_blocking(move || anchor::start(&unit, &state_dir)).await;
    let pid = started.map_err(std::io::Error::other).flatten();
    pid.map(Some).map_err(|e| format!("cannot start a process that stands for this one at systemd: {e}"))
}

/// The parts of a generation once it leads.
pub struct Leading {
    /// The metrics endpoint.
    pub scrape: Option<Scrape>,
    /// The sandbox controller's sockets, not served yet.
    pub controllers: Sockets,
    /// Answers on the control socket.
    pub questions: JoinHandle<()>,
    /// Whether the service manager made the control socket.
    pub passed: bool,
    /// Bundles of native containers that a dead daemon left.
    pub left: Option<Vec<PathBuf>>,
}

/// Acquires the leadership and opens the sockets that come with it. `passed` and `free`: the control socket of the
/// service manager, and the lock, if it has been taken already.
///
/// # Errors
/// One line: which generation does not hand over, or which socket cannot be opened. Then nothing has changed for the
/// generation that led before.
pub async fn lead(
    config: &Config,
    assembly: &Assembly,
    own: &Directory,
    leadership: &Leadership,
    (passed, free): (Option<UnixListener>, Option<File>),
    older_count: usize,
    background: &Handle,
) -> Result<Leading, String> {
    let (lock, mut handed_over) = acquire(config, &own.id, free).await?;
    // A fault of the address or the certificate is reported before anything is served.
    let scrape = open_endpoint(config, &assembly.operator, background, &mut handed_over).await?;
    // A drain is meant for the node and not for one process.
    if handed_over.as_ref().is_some_and(|over| over.draining) {
        assembly.task_sockets.drain(true);
    }
    // Looked for before a new bundle can be there. With older generations they may be theirs.
    let left = (older_count == 0).then(|| native::leftovers(config));
    let handed = handed_over.as_mut().map(|over| over.take_all(Passed::Controller)).unwrap_or_default();
    let controllers = sockets::open(config, &own.path, handed)?;
    let control = open_control(config, passed, &mut handed_over)?;
    let held = Held {
        lock,
        control: control.listener.as_fd().try_clone_to_owned().map_err(|e| cannot_listen(config, e))?,
        control_file: control.file,
        metrics: scrape
            .as_ref()
            .map(|scrape| scrape.listener.try_clone())
            .transpose()
            .map_err(|e| cannot_listen(config, e))?,
        controllers: controllers.descriptors().map_err(|e| cannot_listen(config, e))?,
    };
    let passed = held.control_file.is_none();
    let questions = answer_control(assembly, control.listener);
    leadership.hold(held);
    if let Some(handed_over) = handed_over {
        let taken = tokio::task::spawn_blocking(move || handed_over.taken()).await;
        taken.map_err(|e| e.to_string()).flatten()?;
    }
    Ok(Leading { scrape, controllers, questions, passed, left })
}

/// The lock of the leadership, and the sockets that an older generation hands over with it.
async fn acquire(config: &Config, id: &str, free: Option<File>) -> Result<(File, Option<HandedOver>), String> {
    if let Some(lock) = free {
        return Ok((lock, None));
    }
    let (state_dir, id) = (config.state_dir.clone(), id.to_string());
    let acquired = tokio::task::spawn_blocking(move || leadership::acquire(&state_dir, &id)).await;
    match acquired.map_err(|e| e.to_string()).flatten()? {
        Acquired::Free(lock) => Ok((lock, None)),
        Acquired::HandedOver(mut over) => match over.take(Passed::Charge) {
            Some(lock) => Ok((lock.into(), Some(over))),
            None => Err("the old hearthd did not hand over its lock".into()),
        },
    }
}

/// The metrics endpoint, serving.
pub struct Scrape {
    /// The task that serves it.
    pub serving: JoinHandle<()>,
    /// A second descriptor of its socket.
    pub listener: OwnedFd,
    /// The socket's file, if it is a Unix socket.
    pub file: Option<PathBuf>,
}

/// Opens the metrics endpoint, unless the configuration has none: at the socket that is handed over, if there is one.
async fn open_endpoint(
    config: &Config,
    operator: &Arc<Operator>,
    background: &Handle,
    handed_over: &mut Option<HandedOver>,
) -> Result<Option<Scrape>, String> {
    let passed = handed_over.as_mut().and_then(|over| over.take(Passed::Metrics));
    let (metrics, state_dir) = (config.metrics.clone(), config.state_dir.clone());
    if metrics.address.is_empty() {
        return Ok(None);
    }
    let token_file = Some(metrics.token_file.clone()).filter(|path| !path.as_os_str().is_empty());
    if let Some(path) = &token_file {
        endpoint::read_token(path).map_err(|e| format!("metrics.token_file: {}: {e}", path.display()))?;
    }
    let connections_max = metrics.connections_max;
    // The listener belongs to the runtime that is entered when it is made.
    let bound = background.spawn(async move { Listener::bind(&metrics, passed, &state_dir).await }).await;
    let socket = bound.map_err(|e| e.to_string()).flatten()?;
    let listener = socket.descriptor().map_err(|e| format!("metrics.address: {e}"))?;
    let file = socket.file().map(Path::to_owned);
    let endpoint = Endpoint { operator: operator.clone(), token_file, connections_max };
    Ok(Some(Scrape { serving: background.spawn(endpoint::serve(socket, endpoint)), listener, file }))
}

/// Opens the control socket: the service manager's, the one that is handed over, or a new one.
fn open_control(
    config: &Config,
    passed: Option<UnixListener>,
    handed_over: &mut Option<HandedOver>,
) -> Result<control::ControlSocket, String> {
    let path = config.control_socket();
    let handed = handed_over.as_mut().and_then(|over| Some((over.take(Passed::Control)?, over.removes_control)));
    let socket = match (passed, handed) {
        (Some(passed), _) => control::open(Some(passed), &path),
        (None, Some((handed, removes))) => control::inherit(handed.into(), removes, &path),
        (None, None) => control::open(None, &path),
    };
    socket.map_err(|e| cannot_listen(config, e))
}

fn cannot_listen(config: &Config, error: std::io::Error) -> String {
    format!("control_socket: cannot listen on {}: {error}", config.control_socket().display())
}
