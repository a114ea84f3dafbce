//! One containerd that the daemon serves: where its events go, and where it is asked.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hearth_base::config::SandboxerSocket;

use crate::client::Containerd;
use crate::events::EventQueue;

/// Names a containerd: its gRPC and its ttrpc socket, without a scheme.
pub type Key = (String, String);

/// A containerd.
pub struct Peer {
    /// Where its events go.
    pub events: Arc<EventQueue>,
    /// Where it is asked.
    pub client: Containerd,
    /// Its sockets.
    pub key: Key,
}

/// Which containerd a socket is for.
pub fn key(socket: &SandboxerSocket) -> Key {
    let text = |path: &PathBuf| path.display().to_string();
    let grpc = text(&socket.containerd);
    let ttrpc = socket.ttrpc.as_ref().map_or_else(|| format!("{grpc}.ttrpc"), text);
    (grpc, ttrpc)
}

/// In a generation's directory: where it is asked for the pods that it has made for a containerd.
pub fn controller_socket(directory: &Path, key: &Key) -> PathBuf {
    let name = blake3::hash(format!("{}\0{}", key.0, key.1).as_bytes()).to_hex();
    directory.join(format!("{}.pods", &name[..16]))
}
