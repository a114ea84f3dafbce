//! The listening socket that a service manager passes: `LISTEN_PID`, `LISTEN_FDS`, sd_listen_fds(3).
#![allow(unsafe_code, reason = "an inherited descriptor is known by its number only")]

use std::io::{Error, Result};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use rustix::net::{AddressFamily, SocketType, sockopt};

/// The listening Unix socket that was passed to this process; `None` if none was. To be called once: a
/// second call would give the same descriptor to another owner.
///
/// # Errors
/// There is more than one, or it is not a listening Unix stream socket.
pub fn passed_listener() -> Result<Option<UnixListener>> {
    let mut numbers = sd_notify::listen_fds()?;
    let Some(number) = numbers.next() else { return Ok(None) };
    if numbers.len() > 0 {
        let given = numbers.len() + 1;
        return Err(Error::other(format!(
            "{given} sockets were passed (LISTEN_FDS); hearthd takes its control socket"
        )));
    }
    // SAFETY: LISTEN_PID names this process, so the service manager left this descriptor open for it; no other part of
    // the process owns it, since the caller calls once.
    let passed = unsafe { OwnedFd::from_raw_fd(number) };
    check(passed).map(Some)
}

fn check(passed: OwnedFd) -> Result<UnixListener> {
    let is_listener = || -> rustix::io::Result<bool> {
        Ok(sockopt::socket_domain(&passed)? == AddressFamily::UNIX
            && sockopt::socket_type(&passed)? == SocketType::STREAM
            && sockopt::socket_acceptconn(&passed)?)
    };
    if is_listener().unwrap_or(false) {
        Ok(passed.into())
    } else {
        Err(Error::other("descriptor 3 (LISTEN_FDS) is not a Unix stream socket that listens"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_listening_unix_socket_is_taken() {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("s")).unwrap();
        let address = listener.local_addr().unwrap();
        let taken = check(listener.into()).unwrap();
        assert_eq!(taken.local_addr().unwrap().as_pathname(), address.as_pathname());
        let connected = std::os::unix::net::UnixStream::connect(directory.path().join("s")).unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        for other in [OwnedFd::from(connected), tcp.into(), file.into()] {
            let error = check(other).unwrap_err().to_string();
            assert!(error.contains("LISTEN_FDS"), "{error}");
        }
    }
}
