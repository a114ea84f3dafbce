//! The control socket: one framed question, one framed answer, then the connection closes. The answer to an
//! operator's question may be long, and comes in several frames.
//!
//! Only root may ask (mode 0600, and the peer's credentials are checked). A peer that sends nothing,
//! too much or rubbish costs one bounded connection for `QUESTION_TIME`.

use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hearth_shim::{MAX_FRAME_BYTES, Reply, Request, TaskSocketReply, TaskSocketRequest, reply, request};
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};

use crate::server::framed;
use crate::server::operator_calls::Operator;
use crate::server::task_sockets::TaskSockets;
use crate::task::map::PendingQuestion;
use hearth_os::accept::Acceptor;
use hearth_os::sockets;

/// How long a peer may take to ask.
const QUESTION_TIME: Duration = Duration::from_secs(5);

/// How long an operator may take to read one frame of an answer.
const PIECE_TIME: Duration = Duration::from_secs(10);

/// How much of an answer is in one frame, in bytes.
const PIECE_BYTES: usize = 32 << 10;

/// Questions answered at once; more wait in the socket's backlog.
const CONNECTIONS_MAX: usize = 256;

/// The control socket, with the file to remove at the end.
pub struct ControlSocket {
    /// It listens.
    pub listener: UnixListener,
    /// Its file, if the daemon removes it at the end. A file of a service manager stays, so that a connection made
    /// while no daemon runs waits for the next one.
    pub file: Option<PathBuf>,
}

/// The control socket, for root only: the one that was passed by the service manager, else a new one.
///
/// # Errors
/// The error of the file system or the kernel.
pub fn open(passed: Option<StdUnixListener>, path: &Path) -> std::io::Result<ControlSocket> {
    let Some(passed) = passed else {
        return Ok(ControlSocket { listener: sockets::bind(path)?, file: Some(path.to_owned()) });
    };
    let address = passed.local_addr()?;
    if address.as_pathname() != Some(path) {
        tracing::warn!(?address, control_socket = %path.display(), "the socket that was passed has another path; it counts");
    }
    passed.set_nonblocking(true)?;
    Ok(ControlSocket { listener: UnixListener::from_std(passed)?, file: None })
}

/// The control socket of an older daemon. `removes`: whether this daemon has to remove its file. If it has another path
/// than the configured one, a new socket is bound.
///
/// # Errors
/// The error of the file system or the kernel.
pub fn inherit(handed: StdUnixListener, removes: bool, path: &Path) -> std::io::Result<ControlSocket> {
    let address = handed.local_addr()?;
    if address.as_pathname() != Some(path) {
        if removes && let Some(old) = address.as_pathname() {
            let _ = std::fs::remove_file(old);
        }
        return open(None, path);
    }
    handed.set_nonblocking(true)?;
    Ok(ControlSocket { listener: UnixListener::from_std(handed)?, file: removes.then(|| path.to_owned()) })
}

/// Serves for ever; cancel by dropping.
pub async fn serve(listener: UnixListener, task_sockets: Arc<TaskSockets>, operator: Arc<Operator>) {
    let acceptor = Acceptor::new(listener, CONNECTIONS_MAX, "control socket");
    let begin = |stream| {
        let (task_sockets, operator) = (task_sockets.clone(), operator.clone());
        // From here on: a daemon that drains must not leave between the question and its answer.
        let asked = task_sockets.count().asked();
        async move { answer(stream, &task_sockets, &operator, asked).await }
    };
    acceptor.serve(begin).await;
}

async fn answer(
    mut stream: UnixStream,
    task_sockets: &TaskSockets,
    operator: &Arc<Operator>,
    asked: PendingQuestion,
) -> std::io::Result<()> {
    let peer = stream.peer_cred()?.uid();
    let reply = if peer == 0 {
        let question =
            tokio::time::timeout(QUESTION_TIME, framed::read::<Request>(&mut stream, MAX_FRAME_BYTES)).await??;
        match question.body {
            Some(request::Body::Operator(question)) => {
                // It brings no task, and may wait for the daemon's end.
                drop(asked);
                match operator.answer(&question).await {
                    Ok(answer) => return write_pieces(&mut stream, &answer).await,
                    Err(text) => error(text),
                }
            }
            Some(request::Body::TaskSocket(ask)) => task_socket(&ask, task_sockets, operator).await,
            None => error(format!(
                "this hearthd ({}) does not know the question; it is older than who asks: upgrade it",
                env!("CARGO_PKG_VERSION")
            )),
        }
    } else {
        error(format!("only root may use hearthd's control socket, not user {peer}"))
    };
    stream.write_all(&hearth_shim::encode_frame(&reply)?).await
}

/// Writes an operator's answer, and the empty piece that ends it.
async fn write_pieces(stream: &mut UnixStream, answer: &[u8]) -> std::io::Result<()> {
    for piece in answer.chunks(PIECE_BYTES).chain([&[][..]]) {
        let reply = Reply { body: Some(reply::Body::Operator(piece.to_vec())) };
        let frame = hearth_shim::encode_frame(&reply)?;
        tokio::time::timeout(PIECE_TIME, stream.write_all(&frame)).await??;
    }
    Ok(())
}

async fn task_socket(ask: &TaskSocketRequest, task_sockets: &TaskSockets, operator: &Operator) -> Reply {
    let found = match &operator.node {
        Some(node) => node.cells.task_socket(ask).await,
        // A cell's own socket, for operators.
        None => task_sockets.task_socket(ask).await,
    };
    match found {
        Ok((address, version)) => Reply { body: Some(reply::Body::TaskSocket(TaskSocketReply { address, version })) },
        Err(e) => error(e.to_string()),
    }
}

fn error(text: String) -> Reply {
    Reply { body: Some(reply::Body::Error(text)) }
}
