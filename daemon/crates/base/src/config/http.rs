//! `[http]`: HTTP components: the number of requests of the node, time-outs of clients and guests, requests of the
//! guests' own, trusted certificates.

use serde::{Deserialize, Serialize};

use super::{ConfigError, at_least_one, refuse};

/// The smallest buffer for a request's head that hyper accepts, in bytes.
const HEADER_BYTES_MIN: usize = 8_192;

/// HTTP components that the daemon serves. Limits are per container unless they say otherwise.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// Threads that accept clients and serve guests' own requests, for all containers;
    /// 0: one for each four cores.
    pub threads: usize,
    /// Requests at once over all containers, so that they leave room in the pool for other guests. A container may
    /// have at most twice as many as are free, and the last sixteenth is for containers that have none.
    pub instances_max: usize,
    /// Requests that wait for their turn; more are answered with 503.
    pub queued_max: usize,
    /// Handles that the guest of one request may have at once: sets of headers, bodies, streams, files. A request of
    /// its own takes about ten. The daemon keeps them outside the guest's memory.
    pub handles_max: usize,
    /// TLS handshakes at once, of a service that speaks TLS; more wait for their turn.
    pub tls_handshakes_max: usize,
    /// How long a client may take for its TLS handshake, in milliseconds, the wait for its turn included.
    pub tls_handshake_timeout_ms: u64,
    /// The largest head of a request, in bytes; a larger one is answered with 431.
    pub header_bytes_max: usize,
    /// How long a client may take for a request's head, in milliseconds; over HTTP/1 also how long a
    /// connection is kept between two requests.
    pub header_timeout_ms: u64,
    /// How long a guest may take until its response's head, and again after its response's end, in
    /// milliseconds.
    pub request_timeout_ms: u64,
    /// The time without a byte in either direction after which a connection is closed, in milliseconds. Time
    /// in which it waits for its guest's response does not count.
    pub idle_timeout_ms: u64,
    /// The least that a client has to take of a response, and to send of a request's body, in bytes a second; 0: no
    /// limit. Only time counts in which the client keeps the transfer waiting, and it counts in sums of `idle_timeout_ms`.
    pub least_bytes_per_second: u64,
    /// The time from which on a request counts as slow, in milliseconds: `hearthctl trace --requests` has the last slow
    /// ones. 0: none does.
    pub slow_request_ms: u64,
    /// Lines of the access log of a container in one second; more are left out, and counted in the container's log. A
    /// container asks for the log with `HEARTH_HTTP_ACCESS_LOG`.
    pub access_log_lines_max: u32,
    /// Idle connections for guests' own requests that are kept for the next request.
    pub outgoing_idle_max: usize,
    /// How long an idle one is kept, in milliseconds.
    pub outgoing_idle_timeout_ms: u64,
    /// How long a guest may wait for a connection, in milliseconds, including the look-up of its name and TLS. A
    /// guest may ask for a shorter time here and in the next two keys.
    pub outgoing_connect_timeout_ms: u64,
    /// How long a guest may wait for a response's head once its request is sent, in milliseconds.
    pub outgoing_first_byte_timeout_ms: u64,
    /// How long a guest may wait for each piece of a response's body, in milliseconds.
    pub outgoing_between_bytes_timeout_ms: u64,
    /// The certificates that guests' requests trust: those of the container's `image`, of the `node`, or the
    /// image's and the node's where it has none (`image-or-node`).
    pub tls_roots: TlsRoots,
}

/// The source of trusted certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TlsRoots {
    /// The image's.
    Image,
    /// The node's.
    Node,
    /// The image's, or the node's if it has none.
    ImageOrNode,
}

impl Default for Http {
    fn default() -> Self {
        Http {
            threads: 0,
            instances_max: 512,
            queued_max: 1_024,
            handles_max: 4_096,
            tls_handshakes_max: 256,
            tls_handshake_timeout_ms: 10_000,
            header_bytes_max: 64 << 10,
            header_timeout_ms: 30_000,
            request_timeout_ms: 60_000,
            idle_timeout_ms: 60_000,
            least_bytes_per_second: 1_024,
            slow_request_ms: 1_000,
            access_log_lines_max: 1_000,
            outgoing_idle_max: 32,
            outgoing_idle_timeout_ms: 30_000,
            outgoing_connect_timeout_ms: 30_000,
            outgoing_first_byte_timeout_ms: 60_000,
            outgoing_between_bytes_timeout_ms: 60_000,
            tls_roots: TlsRoots::ImageOrNode,
        }
    }
}

impl Http {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        at_least_one(&[
            ("http.instances_max", self.instances_max as u64),
            ("http.handles_max", self.handles_max as u64),
            ("http.tls_handshakes_max", self.tls_handshakes_max as u64),
            ("http.tls_handshake_timeout_ms", self.tls_handshake_timeout_ms),
            ("http.header_timeout_ms", self.header_timeout_ms),
            ("http.request_timeout_ms", self.request_timeout_ms),
            ("http.idle_timeout_ms", self.idle_timeout_ms),
            ("http.access_log_lines_max", self.access_log_lines_max.into()),
            ("http.outgoing_idle_timeout_ms", self.outgoing_idle_timeout_ms),
            ("http.outgoing_connect_timeout_ms", self.outgoing_connect_timeout_ms),
            ("http.outgoing_first_byte_timeout_ms", self.outgoing_first_byte_timeout_ms),
            ("http.outgoing_between_bytes_timeout_ms", self.outgoing_between_bytes_timeout_ms),
        ])?;
        if self.header_bytes_max < HEADER_BYTES_MIN {
            return refuse("http.header_bytes_max", format!("must be at least {HEADER_BYTES_MIN}"));
        }
        Ok(())
    }
}
