//! One containerd that the daemon serves: the queue of its events, and the client for questions to it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hearth_base::config::SandboxerSocket;

use crate::client::Containerd;
use crate::events::EventQueue;

/// Names a containerd: its gRPC and its ttrpc socket, without a scheme.
pub type Key = (String, String);

/// A containerd.
pub struct Peer {
    /// The queue of its events.
    pub events: Arc<EventQueue>,
    /// The client for questions to it.
    pub client: Containerd,
    /// Its sockets.
    pub key: Key,
}

/// The containerd that a socket of the configuration is for.
pub fn key(socket: &SandboxerSocket) -> Key {
    let text = |path: &PathBuf| path.display().to_string();
    let grpc = text(&socket.containerd);
    let ttrpc = socket.ttrpc.as_ref().map_or_else(|| format!("{grpc}.ttrpc"), text);
    (grpc, ttrpc)
}

/// The socket, in a generation's directory, for calls about the pods that this generation made for a containerd.
pub fn controller_socket(directory: &Path, key: &Key) -> PathBuf {
    let name = blake3::hash(format!("{}\0{}", key.0, key.1).as_bytes()).to_hex();
    directory.join(format!("{}.pods", &name[..16]))
}
