//! Accepting the clients of a service, until it drains or ends. A port that drains refuses new clients, and serves the
//! clients whose connection was being made.

use std::io;
use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use crate::connection::{self, until};
use crate::requests::Member;
use crate::service::{Bound, Service};
use hearth_os::accept::Acceptor;
use hearth_os::packet_filter;

/// How long a service that drains waits for connections that are being made. A handshake takes as long as a packet
/// there and back; a service without clients waits for none.
const HANDSHAKE: Duration = Duration::from_millis(100);

/// The listening sockets of a service. They are closed before the container's end is told.
struct Listening {
    listeners: Vec<StdListener>,
    _member: Member,
}

/// Serves until the container drains or ends; does nothing for a service without a port.
pub fn serve(bound: Bound) {
    let Bound { service, listeners } = bound;
    if listeners.is_empty() {
        return;
    }
    // The container has ended meanwhile.
    let Some(member) = service.container.requests.begin_listening() else { return };
    let listening = Listening { listeners, _member: member };
    let requests = service.container.requests.clone();
    let task = service.http.runtime.clone().spawn(accept(service, listening));
    requests.set_listener(task.abort_handle());
}

async fn accept(service: Arc<Service>, mut listening: Listening) {
    let listeners = listening.listeners.drain(..).map(TcpListener::from_std).collect::<io::Result<Vec<_>>>();
    let listeners = match listeners {
        Ok(listeners) => listeners,
        Err(error) => {
            tracing::error!(%error, "a bound port cannot be served");
            return;
        }
    };
    let acceptor = Acceptor::of_container(listeners, service.container.tenant.clone(), "HTTP port of a container");
    let mut draining = service.container.requests.draining();
    let mut any = false;
    loop {
        tokio::select! {
            () = until(&mut draining) => break,
            (stream, permit) = acceptor.accept() => {
                any = true;
                connection::begin(&service, stream, permit);
            }
        }
    }
    for listener in acceptor.listener() {
        if let Err(error) = packet_filter::refuse_new_connections(listener) {
            tracing::debug!(%error, "a port cannot be closed without a gap");
        }
    }
    // A client takes its connection for made while the kernel here still waits for the last packet of the handshake.
    let closes = tokio::time::Instant::now() + if any { HANDSHAKE } else { Duration::ZERO };
    loop {
        tokio::select! {
            biased;
            (stream, permit) = acceptor.accept() => connection::begin(&service, stream, permit),
            () = tokio::time::sleep_until(closes) => break,
        }
    }
    let limit = acceptor.limit().clone();
    for listener in acceptor.into_listener() {
        for stream in last_of(listener) {
            let Some(permit) = limit.try_acquire() else { break };
            connection::begin(&service, stream, permit);
        }
    }
}

/// Closes a listener, and returns the clients that had connected and were not accepted: the kernel resets the connections
/// in the queue of a listener that is closed.
fn last_of(listener: TcpListener) -> Vec<TcpStream> {
    // The kernel is asked: the runtime may not have been told of the last ones.
    let Ok(listener) = listener.into_std() else { return Vec::new() };
    let accepted = std::iter::from_fn(|| listener.accept().ok());
    let streams = accepted.filter_map(|(stream, _)| {
        stream.set_nonblocking(true).ok()?;
        TcpStream::from_std(stream).ok()
    });
    streams.collect()
}
