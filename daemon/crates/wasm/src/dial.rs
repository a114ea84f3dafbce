//! Connections of the daemon on behalf of a guest, made in the guest's network.

use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use tokio::net::{TcpSocket, TcpStream};

use crate::resolver::InNetwork;
use hearth_os::identity::Identity;

/// A connection to the first of these addresses that takes one; each has its share of the time that is left.
///
/// # Errors
/// That of the last address; `TimedOut` after the deadline; `NotFound` if there is no address.
pub async fn dial(identity: &Identity, addresses: &[SocketAddr], deadline: Instant) -> io::Result<TcpStream> {
    let mut last = io::ErrorKind::NotFound.into();
    for (index, address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
        match tokio::time::timeout(share, dial_one(identity, *address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

async fn dial_one(identity: &Identity, address: SocketAddr) -> io::Result<TcpStream> {
    let make = move || if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = InNetwork::make(identity.clone(), make).await?;
    // Requests are written whole; waiting for more to write only delays them.
    socket.set_nodelay(true)?;
    socket.connect(address).await
}
