//! The client of `hearthd`'s control socket: one connection, one request, one reply.
//!
//! Every step has the same deadline, also the connection itself: a daemon that hangs, or has a full queue of
//! connections, must not block containerd. Each failure is a variant of its own in [`ControlError`], because each has
//! another remedy.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hearth_shim::{
    CONTROL_SOCKET_ENV, Reply, Request, TaskSocketReply, TaskSocketRequest, read_frame, reply, request, write_frame,
};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

/// How long `start` waits for the daemon in all. systemd holds a connection while it starts the
/// daemon, so this covers a start; containerd gives a shim longer than that on every version.
pub const CONTROL_TIMEOUT: Duration = Duration::from_secs(5);

/// An error between the shim and the daemon, with the socket's path.
#[derive(Debug)]
pub struct ControlError {
    socket: PathBuf,
    kind: ErrorKind,
}

#[derive(Debug)]
enum ErrorKind {
    /// There is no such socket.
    Missing,
    /// The socket exists and no process listens on it.
    Refused,
    /// We may not connect to it.
    Denied,
    /// No answer, or not even a connection, in this time.
    TimedOut(Duration),
    /// The daemon hung up without an answer.
    Closed,
    /// The bytes that came are not a reply of this protocol.
    NotAReply(String),
    /// The daemon's own error message.
    Rejected(String),
    /// Another error of the system.
    Io(io::Error),
}

/// Asks the daemon that listens on `socket` for a task socket.
///
/// # Errors
/// [`ControlError`]; its text is one line with the remedy.
pub fn task_socket(
    socket: &Path,
    question: TaskSocketRequest,
    timeout: Duration,
) -> Result<TaskSocketReply, ControlError> {
    let failed = |kind| ControlError { socket: socket.to_owned(), kind };
    let classify = |e: io::Error| failed(ErrorKind::from_io(e, timeout));
    let deadline = Instant::now() + timeout;
    let stream = connect(socket, timeout).map_err(|e| classify(e.into()))?;
    let stream = Deadlined { stream, deadline };
    match exchange(stream, question).map_err(classify)?.body {
        Some(reply::Body::TaskSocket(reply)) => Ok(reply),
        Some(reply::Body::Error(text)) => Err(failed(ErrorKind::Rejected(text))),
        Some(reply::Body::Operator(_)) | None => {
            Err(failed(ErrorKind::NotAReply("a reply without a body this shim knows".into())))
        }
    }
}

fn exchange(mut stream: Deadlined, question: TaskSocketRequest) -> io::Result<Reply> {
    let request = Request { body: Some(request::Body::TaskSocket(question)) };
    match write_frame(&mut stream, &request) {
        // The daemon may have answered and hung up before it read: the answer is still there.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
        written => written?,
    }
    read_frame(&mut stream)
}

/// Connects, waiting at most `timeout` where the listener's queue is full.
fn connect(socket: &Path, timeout: Duration) -> rustix::io::Result<UnixStream> {
    let address = SocketAddrUnix::new(socket)?;
    let fd = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // On Linux the send time-out also bounds connect(2), which std offers no time-out for.
    sockopt::set_socket_timeout(&fd, sockopt::Timeout::Send, Some(timeout))?;
    net::connect(&fd, &address)?;
    Ok(fd.into())
}

/// A stream with one deadline for all reads and writes, however slowly the peer sends.
struct Deadlined {
    stream: UnixStream,
    deadline: Instant,
}

impl Deadlined {
    fn left(&self) -> io::Result<Option<Duration>> {
        match self.deadline.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
            left => Ok(Some(left)),
        }
    }
}

impl Read for Deadlined {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(buffer)
    }
}

impl Write for Deadlined {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl ErrorKind {
    fn from_io(e: io::Error, timeout: Duration) -> Self {
        match e.kind() {
            io::ErrorKind::NotFound => Self::Missing,
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::PermissionDenied => Self::Denied,
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Self::TimedOut(timeout),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => Self::Closed,
            io::ErrorKind::InvalidData => Self::NotAReply(e.to_string()),
            _ => Self::Io(e),
        }
    }
}

impl fmt::Display for ControlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let socket = self.socket.display();
        match &self.kind {
            ErrorKind::Missing => write!(
                f,
                "hearthd is not running: {socket} does not exist; start it with 'systemctl start hearthd' \
                 (if it listens elsewhere, set {CONTROL_SOCKET_ENV} in containerd's environment)"
            ),
            ErrorKind::Refused => write!(
                f,
                "hearthd is not running: nothing listens on {socket}; start it with 'systemctl start hearthd'"
            ),
            ErrorKind::Denied => {
                write!(f, "no permission to connect to {socket}: containerd must run as the user that hearthd runs as")
            }
            ErrorKind::TimedOut(timeout) => write!(
                f,
                "hearthd does not answer on {socket} within {timeout:?}: see 'systemctl status hearthd' and 'journalctl -u hearthd'"
            ),
            ErrorKind::Closed => {
                write!(f, "hearthd closed the connection on {socket} without an answer: see 'journalctl -u hearthd'")
            }
            ErrorKind::NotAReply(why) => write!(
                f,
                "the process that listens on {socket} does not speak this shim's protocol ({why}): install hearthd and the shim from one release"
            ),
            ErrorKind::Rejected(text) => write!(f, "hearthd: {text}"),
            ErrorKind::Io(e) if e.raw_os_error() == Some(Errno::NAMETOOLONG.raw_os_error()) => {
                write!(
                    f,
                    "the control socket's path {socket} is too long for a Unix socket: set a shorter {CONTROL_SOCKET_ENV}"
                )
            }
            ErrorKind::Io(e) => write!(f, "cannot talk to hearthd on {socket}: {e}"),
        }
    }
}

#[cfg(test)]
mod tests;
