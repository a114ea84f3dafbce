//! What a hearthd has to have before it serves: a process that stands for it, the charge, its sockets.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::daemon::anchor;
use crate::generation::charge::{self, Got, Held};
use crate::server::control;
use crate::server::endpoint::listen::Listener;
use crate::server::endpoint::{self, Endpoint};
use crate::server::operator::Operator;
use crate::server::sandboxer::sockets::Sockets;
use crate::server::task_sockets::TaskSockets;
use hearth_base::config::Config;
use hearth_base::generation::client::HandedOver;
use hearth_base::generation::wire::Passed;

use super::Setup;

/// The process that stands for this one at the service manager, if that is wanted.
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

/// The charge, with the lock taken out.
pub struct Charged {
    /// Whoever has it is in charge.
    pub lock: File,
    /// Who serves until it is told that we do.
    pub handed_over: Option<HandedOver>,
}

/// Gets the charge, from whoever has it.
///
/// # Errors
/// One line: who has it, and why it is not handed over.
pub async fn take_charge(config: &Config, ours: &str, free: Option<File>) -> Result<Charged, String> {
    if let Some(lock) = free {
        return Ok(Charged { lock, handed_over: None });
    }
    let (state_dir, ours) = (config.state_dir.clone(), ours.to_string());
    let got = tokio::task::spawn_blocking(move || charge::get(&state_dir, &ours)).await;
    match got.map_err(|e| e.to_string()).flatten()? {
        Got::Free(lock) => Ok(Charged { lock, handed_over: None }),
        Got::HandedOver(mut over) => match over.take(Passed::Charge) {
            Some(lock) => Ok(Charged { lock: lock.into(), handed_over: Some(over) }),
            None => Err("the old hearthd did not hand over its lock".into()),
        },
    }
}

/// The metrics endpoint, serving.
pub struct Scrape {
    /// The task that does it.
    pub serving: JoinHandle<()>,
    /// A second descriptor of its socket.
    pub listener: OwnedFd,
    /// The socket's file, if it is a Unix socket.
    pub file: Option<PathBuf>,
}

/// The metrics endpoint, unless the configuration wants none: at the socket that is handed over, if there is one.
///
/// # Errors
/// One line: the key, and what is wrong with it.
pub async fn scrapes(
    config: &Config,
    operator: &Arc<Operator>,
    background: &Handle,
    got: &mut Charged,
) -> Result<Option<Scrape>, String> {
    let passed = got.handed_over.as_mut().and_then(|over| over.take(Passed::Metrics));
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

/// What questions on a control socket are answered from.
pub struct Answers {
    /// Of the shim.
    pub task_sockets: Arc<TaskSockets>,
    /// Of operators.
    pub operator: Arc<Operator>,
}

impl Answers {
    /// Answers what comes to a control socket, for ever.
    pub fn serve(&self, listener: tokio::net::UnixListener) -> JoinHandle<()> {
        tokio::spawn(control::serve(listener, self.task_sockets.clone(), self.operator.clone()))
    }
}

/// Opens the control socket and serves it.
///
/// # Errors
/// One line: where it cannot be had, and why.
pub fn control(
    config: &Config,
    passed: Option<UnixListener>,
    lock: File,
    handed_over: &mut Option<HandedOver>,
    scrape: &Option<Scrape>,
    controllers: &Sockets,
    answers: &Answers,
) -> Result<(Held, JoinHandle<()>), String> {
    let path = config.control_socket();
    let cannot = |e: std::io::Error| format!("control_socket: cannot listen on {}: {e}", path.display());
    // The service manager's own, or the one that is handed over.
    let handed = handed_over.as_mut().and_then(|over| Some((over.take(Passed::Control)?, over.removes_control)));
    let socket = match (passed, handed) {
        (Some(passed), _) => control::open(Some(passed), &path),
        (None, Some((handed, removes))) => control::inherit(handed.into(), removes, &path),
        (None, None) => control::open(None, &path),
    };
    let socket = socket.map_err(cannot)?;
    let copy = socket.listener.as_fd().try_clone_to_owned().map_err(cannot)?;
    let metrics = scrape.as_ref().map(|scrape| scrape.listener.try_clone()).transpose().map_err(cannot)?;
    let controllers = controllers.descriptors().map_err(cannot)?;
    let questions = answers.serve(socket.listener);
    Ok((Held { lock, control: copy, control_file: socket.ours, metrics, controllers }, questions))
}
