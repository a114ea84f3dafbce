//! `[metrics]`: the endpoint for Prometheus, probes and people: address, TLS, token, and the number of series.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{ConfigError, SOCKET_PATH_BYTES_MAX, at_least_one, refuse};

/// The prefix of a Unix socket's address in `metrics.address`.
pub const UNIX: &str = "unix:";

/// The endpoint for Prometheus, probes and people.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// `host:port`, where port 0 takes a free one; or `unix:/path` of a socket that only root can open. The
    /// address bound is written to `<state_dir>/metrics.address`. Empty: no endpoint.
    pub address: String,
    /// Connections at once.
    pub connections_max: usize,
    /// A file with a certificate chain in PEM form. If it is set, the endpoint speaks TLS. Read again when it changes.
    pub tls_certificate: PathBuf,
    /// The file with the certificate's key in PEM form.
    pub tls_key: PathBuf,
    /// A file with a token. If it is set, all but `/healthz` and `/readyz` require the token
    /// (`Authorization: Bearer`). Read at each request.
    pub token_file: PathBuf,
    /// Tasks with metrics of their own (`hearth_task_…`); all others share `task="other"`. Each costs about 1 kB
    /// of a scrape.
    pub task_series_max: usize,
    /// Starts, and likewise traps and other ends, that are kept for `hearthctl` and the page.
    pub recent_max: usize,
    /// Whether metrics name pods by the labels `namespace`, `pod` and `container`: the metrics of single tasks, and
    /// those of each pod that serves HTTP, which are about 80 series each.
    pub pods: bool,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics {
            address: "127.0.0.1:9469".into(),
            connections_max: 16,
            tls_certificate: PathBuf::new(),
            tls_key: PathBuf::new(),
            token_file: PathBuf::new(),
            task_series_max: 200,
            recent_max: 256,
            pods: false,
        }
    }
}

impl Metrics {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let address = self.address.as_str();
        let is_valid = match address.strip_prefix(UNIX) {
            Some(path) => Path::new(path).is_absolute() && path.len() <= SOCKET_PATH_BYTES_MAX,
            None => address.is_empty() || address.parse::<std::net::SocketAddr>().is_ok(),
        };
        if !is_valid {
            return refuse(
                "metrics.address",
                format!("{address:?} is not an address like 127.0.0.1:9469 or unix:/run/hearth/metrics.sock"),
            );
        }
        match (self.tls_certificate.as_os_str().is_empty(), self.tls_key.as_os_str().is_empty()) {
            (true, false) => return refuse("metrics.tls_certificate", "is needed beside metrics.tls_key"),
            (false, true) => return refuse("metrics.tls_key", "is needed beside metrics.tls_certificate"),
            _ => {}
        }
        at_least_one(&[
            ("metrics.connections_max", self.connections_max as u64),
            ("metrics.recent_max", self.recent_max as u64),
        ])
    }
}
