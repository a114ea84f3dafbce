//! TLS at a service's port, if its environment names the directory of a certificate (`HEARTH_HTTP_TLS`).
//!
//! ```text
//!  Start ─▶ certificate: tls.crt and tls.key in the container, read and checked
//!  client ─▶ connection ─▶ handshake: at most so many at once, each with a time ─▶ ALPN: HTTP/2 or HTTP/1.1
//!                             │ have the files changed? asked at most once a second, and only when a client comes
//!                             ▼
//!                          certificate: read again; an unusable one is told, and the one before stays
//! ```
//!
//! A service without clients does nothing for its certificate: it holds no descriptor, timer or watch. A handshake runs on
//! the container's part of the scheduler, so that its computing is the container's CPU time.
//!
//! * `certificate.rs`: reading the files, their possible faults, and their renewal.
//! * `handshake.rs`: the limits of handshakes.
//! * `stream.rs`: a client's connection, with TLS or without.

pub mod certificate;
pub mod handshake;
pub mod stream;

use std::path::PathBuf;

use tokio::sync::Semaphore;

use crate::context::Http;
use certificate::Certificate;
use hearth_base::env::last;
use hearth_base::error::{Error, Result};

/// The environment variable with the directory of `tls.crt` and `tls.key` in the container.
pub const DIRECTORY: &str = "HEARTH_HTTP_TLS";

/// TLS of one service.
pub struct ServerTls {
    certificate: Certificate,
    handshakes: Semaphore,
}

impl ServerTls {
    /// As the environment asks for it, with the files of the container whose root is at `root`; none without the variable.
    ///
    /// # Errors
    /// The variable is no absolute path, or a file of the directory cannot be used. The error names both.
    pub async fn of(http: &Http, env: &[(String, String)], root: PathBuf) -> Result<Option<ServerTls>> {
        let Some(directory) = last(env, DIRECTORY).map(str::trim).filter(|value| !value.is_empty()) else {
            return Ok(None);
        };
        if !directory.starts_with('/') {
            return Err(Error::InvalidArgument(format!(
                "{DIRECTORY}={directory:?} is not an absolute path of a directory with tls.crt and tls.key"
            )));
        }
        let certificate = Certificate::open(&http.runtime, root, directory.into()).await;
        let certificate = certificate.map_err(|text| Error::FailedPrecondition(format!("{DIRECTORY}: {text}")))?;
        let handshakes = Semaphore::new(http.config().tls_handshakes_max);
        Ok(Some(ServerTls { certificate, handshakes }))
    }
}
