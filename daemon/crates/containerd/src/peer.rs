//! One containerd that the daemon serves: the queue of its events, and the client for questions to it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hearth_base::config::SandboxerSocket;
use hearth_base::namespace::ContainerdNamespace;

use crate::client::Containerd;
use crate::events::EventQueue;

/// Names a containerd by its sockets, without a scheme.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// Its gRPC socket.
    pub grpc: String,
    /// Its ttrpc socket, where events go.
    pub ttrpc: String,
}

/// The path of a socket's address, which may begin with `unix://`.
pub fn socket_path(address: &str) -> &str {
    address.strip_prefix("unix://").unwrap_or(address)
}

impl Key {
    /// The containerd with these sockets, with or without `unix://`.
    pub fn of(grpc: &str, ttrpc: &str) -> Key {
        Key { grpc: socket_path(grpc).into(), ttrpc: socket_path(ttrpc).into() }
    }

    /// A file name for the parts of this containerd, or of a namespace of it: 16 hexadecimal digits of a hash.
    pub fn file_name(&self, namespace: Option<&ContainerdNamespace>) -> String {
        let Key { grpc, ttrpc } = self;
        let text = match namespace {
            Some(namespace) => format!("{grpc}\0{ttrpc}\0{namespace}"),
            None => format!("{grpc}\0{ttrpc}"),
        };
        blake3::hash(text.as_bytes()).to_hex()[..16].to_owned()
    }
}

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
    Key { grpc, ttrpc }
}

/// The socket, in a generation's directory, for calls about the pods that this generation made for a containerd.
pub fn controller_socket(directory: &Path, key: &Key) -> PathBuf {
    directory.join(format!("{}.pods", key.file_name(None)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_two_containerds_or_namespaces_have_different_names() {
        let key = |grpc: &str, ttrpc: &str| Key { grpc: grpc.into(), ttrpc: ttrpc.into() };
        let one = key("/a", "/b");
        let names = [
            one.file_name(None),
            one.file_name(Some(&"x".into())),
            one.file_name(Some(&"y".into())),
            key("/b", "/a").file_name(None),
            key("/a/b", "").file_name(None),
        ];
        for (index, name) in names.iter().enumerate() {
            assert!(name.len() == 16 && name.bytes().all(|byte| byte.is_ascii_hexdigit()), "{name}");
            assert!(!names[..index].contains(name), "{names:?}");
        }
    }
}
