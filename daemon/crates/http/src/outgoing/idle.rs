//! Connections of one container that wait for their next request.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use hyper::client::conn::http1::SendRequest;

use super::body::Sending;

/// The server of a connection, and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// By TLS.
    pub secure: bool,
    /// A name or an address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// One connection, to send a request on.
pub type Sender = SendRequest<Sending>;

/// Connections without a request, the longest idle first.
#[derive(Default)]
pub struct Idle(VecDeque<(Server, Instant, Sender)>);

impl Idle {
    /// The last used connection to `server` that is still open.
    pub fn take(&mut self, server: &Server) -> Option<Sender> {
        self.0.retain(|(_, _, sender)| sender.is_ready());
        let at = self.0.iter().rposition(|(of, ..)| of == server)?;
        self.0.remove(at).map(|(_, _, sender)| sender)
    }

    /// Keeps a connection, and at most `max` in all.
    pub fn put(&mut self, server: Server, sender: Sender, max: usize) {
        self.0.push_back((server, Instant::now(), sender));
        if self.0.len() > max {
            self.0.pop_front();
        }
    }

    /// Closes the connection that was idle for longest; `false` if there is none.
    pub fn close_one(&mut self) -> bool {
        self.0.pop_front().is_some()
    }

    /// Closes connections that were idle for `timeout`, and returns when the next one will have been.
    pub fn expire(&mut self, now: Instant, timeout: Duration) -> Option<Instant> {
        self.0.retain(|(_, since, sender)| now.duration_since(*since) < timeout && sender.is_ready());
        self.0.front().map(|(_, since, _)| *since + timeout)
    }
}
