//! `[sandboxer]`: the sockets of the sandbox controller, one for each containerd 2.x on the node.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{ConfigError, SOCKET_PATH_BYTES_MAX, refuse};

/// The sandbox controller: a containerd 2.x that has it as a proxy plugin starts no process for a pod.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sandboxer {
    /// For each containerd on the node a socket that only root can open, below `state_dir` unless the path is
    /// absolute, and that containerd's own gRPC socket. Its ttrpc socket is the gRPC socket's path with `.ttrpc`,
    /// unless `ttrpc` names another. A containerd need not use its socket.
    pub sockets: Vec<SandboxerSocket>,
}

/// The sandbox controller's socket for one containerd.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxerSocket {
    /// The socket.
    pub listen: PathBuf,
    /// That containerd's gRPC socket.
    pub containerd: PathBuf,
    /// Its ttrpc socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttrpc: Option<PathBuf>,
}

impl Default for Sandboxer {
    fn default() -> Self {
        let (listen, containerd) = ("sandboxer.sock".into(), "/run/containerd/containerd.sock".into());
        Sandboxer { sockets: vec![SandboxerSocket { listen, containerd, ttrpc: None }] }
    }
}

impl Sandboxer {
    pub(super) fn check(&self, state_dir: &Path, control_socket: PathBuf) -> Result<(), ConfigError> {
        const KEY: &str = "sandboxer.sockets";
        let mut listening = BTreeSet::from([control_socket]);
        for socket in &self.sockets {
            let listen = state_dir.join(&socket.listen);
            if listen.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
                return refuse(
                    KEY,
                    format!("listen: a Unix socket's path holds at most {SOCKET_PATH_BYTES_MAX} bytes"),
                );
            }
            for path in [Some(&socket.containerd), socket.ttrpc.as_ref()].into_iter().flatten() {
                if !path.is_absolute() {
                    return refuse(KEY, format!("{} is not an absolute path", path.display()));
                }
            }
            if !listening.insert(listen) {
                return refuse(KEY, format!("{} is there twice", socket.listen.display()));
            }
        }
        Ok(())
    }
}
