//! Connections of one container: those of HTTP/1.1 that wait for their next request, and all of HTTP/2.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::client::conn::http1::SendRequest;
use tokio::sync::OwnedSemaphorePermit;

use super::body::Sending;
use super::route::Server;
use super::sender::{Http2Connection, Http2Stream};

/// A container's connections.
#[derive(Default)]
pub struct Idle {
    /// Without a request, the longest idle first.
    http1: VecDeque<(Server, Instant, SendRequest<Sending>)>,
    /// With requests or without.
    http2: Vec<Arc<Http2Connection>>,
}

impl Idle {
    /// The last used connection of HTTP/1.1 to `server` that is still open.
    pub fn take(&mut self, server: &Server) -> Option<SendRequest<Sending>> {
        self.http1.retain(|(_, _, sender)| sender.is_ready());
        let at = self.http1.iter().rposition(|(of, ..)| of == server)?;
        self.http1.remove(at).map(|(_, _, sender)| sender)
    }

    /// A stream of a connection of HTTP/2 to `server`; the place back if there is none that has room.
    ///
    /// # Errors
    /// The place.
    pub fn stream(
        &mut self,
        server: &Server,
        mut place: OwnedSemaphorePermit,
    ) -> Result<Http2Stream, OwnedSemaphorePermit> {
        self.http2.retain(|connection| connection.is_open());
        for connection in self.http2.iter().rev().filter(|connection| connection.server == *server) {
            match connection.stream(place) {
                Ok(stream) => return Ok(stream),
                Err(back) => place = back,
            }
        }
        Err(place)
    }

    /// Whether there is a connection of HTTP/2 to `server`.
    pub fn has_http2(&self, server: &Server) -> bool {
        self.http2.iter().any(|connection| connection.server == *server && connection.is_open())
    }

    /// Keeps a connection of HTTP/1.1, and at most `max` idle ones in all.
    pub fn put(&mut self, server: Server, sender: SendRequest<Sending>, max: usize) {
        self.http1.push_back((server, Instant::now(), sender));
        self.trim(max);
    }

    /// Keeps a connection of HTTP/2, and at most `max` idle ones in all.
    pub fn put_http2(&mut self, connection: Arc<Http2Connection>, max: usize) {
        self.http2.push(connection);
        self.trim(max);
    }

    fn trim(&mut self, max: usize) {
        let free = self.http2.iter().filter(|connection| connection.free_since().is_some()).count();
        for _ in max..self.http1.len() + free {
            self.close_one();
        }
    }

    /// Closes the connection that has been idle for longest, if there is one.
    pub fn close_one(&mut self) {
        let http1 = self.http1.front().map(|(_, since, _)| *since);
        let free = self.http2.iter().enumerate().filter_map(|(at, connection)| Some((connection.free_since()?, at)));
        match (http1, free.min()) {
            (None, None) => {}
            (Some(since), Some((other, at))) if other < since => drop(self.http2.swap_remove(at)),
            (None, Some((_, at))) => drop(self.http2.swap_remove(at)),
            (Some(_), _) => drop(self.http1.pop_front()),
        }
    }

    /// Closes connections that were idle for `timeout`, and returns when to look again; none if there are no connections.
    pub fn expire(&mut self, now: Instant, timeout: Duration) -> Option<Instant> {
        let is_late = |since: Instant| now.saturating_duration_since(since) >= timeout;
        self.http1.retain(|(_, since, sender)| !is_late(*since) && sender.is_ready());
        self.http2.retain(|connection| connection.is_open() && !connection.free_since().is_some_and(is_late));
        let http1 = self.http1.front().map(|(_, since, _)| *since + timeout);
        let http2 = self.http2.iter().map(|connection| connection.free_since().unwrap_or(now) + timeout).min();
        http1.into_iter().chain(http2).min()
    }
}
