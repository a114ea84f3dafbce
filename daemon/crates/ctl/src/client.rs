//! Asking the daemons of a node over their control sockets.
//!
//! There may be several: pods at isolation level `pod` each have a process that answers for them, and while the node goes
//! from one release to the next, the old daemon serves its tasks until the last has ended. The first socket is that of the
//! daemon that takes new tasks, and it has to answer. It names the sockets of the others. If one of the others does not
//! answer, that is a warning: it may just have ended.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hearth_shim::{CONTROL_SOCKET, CONTROL_SOCKET_ENV, Reply, Request, read_frame, reply, request, write_frame};
use serde::de::DeserializeOwned;

use crate::CtlError;
use hearth_base::operator::{Question, Status};

/// How long a daemon may take for each piece of its answer, if the question does not say otherwise.
const ANSWER_TIME: Duration = Duration::from_secs(30);

/// The longest answer, in bytes: 20,000 tasks are a tenth of it.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// The daemons of this node.
pub struct DaemonClient {
    /// The first takes new tasks.
    sockets: Vec<PathBuf>,
}

impl DaemonClient {
    /// The daemons at the sockets `named`. Without any: the daemon at the socket of the environment or the default,
    /// the earlier daemons that it names, and the processes of pods (isolation level pod).
    ///
    /// # Errors
    /// If the first cannot be asked.
    pub fn open(named: &[PathBuf]) -> Result<DaemonClient, CtlError> {
        if !named.is_empty() {
            return Ok(DaemonClient { sockets: named.to_vec() });
        }
        let first = default_socket();
        let status: Status = ask_one(&first, &Question::Status, ANSWER_TIME)?;
        let others = status.earlier.into_iter().chain(status.cells).map(PathBuf::from);
        Ok(DaemonClient { sockets: [first].into_iter().chain(others).collect() })
    }

    /// Asks the daemon that takes new tasks.
    ///
    /// # Errors
    /// If it cannot be asked, or refuses.
    pub fn ask<T: DeserializeOwned>(&self, question: &Question) -> Result<T, CtlError> {
        self.ask_for(question, ANSWER_TIME)
    }

    /// As [`DaemonClient::ask`], for a question that may take long.
    ///
    /// # Errors
    /// As [`DaemonClient::ask`].
    pub fn ask_for<T: DeserializeOwned>(&self, question: &Question, time: Duration) -> Result<T, CtlError> {
        ask_one(&self.sockets[0], question, time)
    }

    /// Asks every daemon, the one that takes new tasks first.
    ///
    /// # Errors
    /// If that one cannot be asked, or refuses.
    pub fn ask_all<T: DeserializeOwned>(&self, question: &Question) -> Result<Vec<T>, CtlError> {
        let mut answers = vec![self.ask(question)?];
        for socket in &self.sockets[1..] {
            match ask_one(socket, question, ANSWER_TIME) {
                Ok(answer) => answers.push(answer),
                Err(CtlError::Refused(text) | CtlError::Unreachable(text) | CtlError::Usage(text)) => {
                    eprintln!("hearthctl: left out: {text}");
                }
                Err(error @ CtlError::Print(_)) => return Err(error),
            }
        }
        Ok(answers)
    }

    /// Asks every daemon for a list, and joins them.
    ///
    /// # Errors
    /// As [`DaemonClient::ask_all`].
    pub fn list<T: DeserializeOwned>(&self, question: &Question) -> Result<Vec<T>, CtlError> {
        Ok(self.ask_all::<Vec<T>>(question)?.into_iter().flatten().collect())
    }
}

/// The control socket that is used if the command line names none.
pub fn default_socket() -> PathBuf {
    let named = std::env::var_os(CONTROL_SOCKET_ENV).filter(|path| !path.is_empty());
    named.map_or_else(|| CONTROL_SOCKET.into(), PathBuf::from)
}

/// Asks the daemon at `socket`, which may take `time` for each piece of its answer.
///
/// # Errors
/// If it cannot be asked, or refuses.
pub fn ask_one<T: DeserializeOwned>(socket: &Path, question: &Question, time: Duration) -> Result<T, CtlError> {
    let answer = exchange(socket, question, time).map_err(|error| unreachable(socket, &error, time))??;
    serde_json::from_slice(&answer).map_err(|error| {
        CtlError::Unreachable(format!(
            "{}: the answer does not fit the question ({error}): is hearthd of another release than hearthctl {}?",
            socket.display(),
            env!("CARGO_PKG_VERSION")
        ))
    })
}

fn exchange(socket: &Path, question: &Question, time: Duration) -> io::Result<Result<Vec<u8>, CtlError>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(time))?;
    stream.set_write_timeout(Some(time))?;
    let question = serde_json::to_vec(question).map_err(io::Error::other)?;
    match write_frame(&mut stream, &Request { body: Some(request::Body::Operator(question)) }) {
        // It may have refused and hung up before it read: the answer is still there.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
        written => written?,
    }
    stream.flush()?;
    read_answer(&mut stream)
}

/// All pieces of an answer.
fn read_answer(stream: &mut impl Read) -> io::Result<Result<Vec<u8>, CtlError>> {
    let mut answer = Vec::new();
    loop {
        match read_frame::<Reply>(stream)?.body {
            Some(reply::Body::Operator(piece)) if piece.is_empty() => return Ok(Ok(answer)),
            Some(reply::Body::Operator(piece)) => answer.extend_from_slice(&piece),
            Some(reply::Body::Error(text)) => return Ok(Err(CtlError::Refused(text))),
            Some(reply::Body::TaskSocket(_)) | None => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "not an answer to an operator's question"));
            }
        }
        if answer.len() > ANSWER_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer does not end"));
        }
    }
}

/// The error for a daemon that cannot be asked, with the remedy.
fn unreachable(socket: &Path, error: &io::Error, time: Duration) -> CtlError {
    let at = socket.display();
    CtlError::Unreachable(match error.kind() {
        io::ErrorKind::NotFound => format!(
            "hearthd is not running: there is no {at}; start it (systemctl start hearthd), or name its control_socket with --socket or {CONTROL_SOCKET_ENV}"
        ),
        io::ErrorKind::ConnectionRefused => {
            format!("hearthd is not running: nobody listens at {at}; start it: systemctl start hearthd")
        }
        io::ErrorKind::PermissionDenied => format!("{at}: only root may ask hearthd: use sudo"),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            format!("hearthd does not answer at {at} within {} s; see: systemctl status hearthd", time.as_secs())
        }
        io::ErrorKind::UnexpectedEof => {
            format!("hearthd hung up at {at} without an answer; see its log: journalctl -u hearthd")
        }
        _ => format!("cannot ask hearthd at {at}: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(bodies: Vec<reply::Body>) -> Vec<u8> {
        let mut bytes = Vec::new();
        for body in bodies {
            write_frame(&mut bytes, &Reply { body: Some(body) }).unwrap();
        }
        bytes
    }

    #[test]
    fn an_answer_is_the_pieces_up_to_the_empty_one() {
        let piece = |text: &str| reply::Body::Operator(text.into());
        let bytes = frames(vec![piece("[1,"), piece("2]"), piece("")]);
        assert_eq!(read_answer(&mut bytes.as_slice()).unwrap().unwrap(), b"[1,2]");
        let cut_off = frames(vec![piece("[1,")]);
        assert_eq!(read_answer(&mut cut_off.as_slice()).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let refused = frames(vec![reply::Body::Error("no".into())]);
        assert!(matches!(read_answer(&mut refused.as_slice()).unwrap(), Err(CtlError::Refused(text)) if text == "no"));
    }
}
