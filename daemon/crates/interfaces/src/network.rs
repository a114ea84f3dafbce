//! Connections to servers: by the names and in the network of the container, to allowed destinations only.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use hearth_base::destinations::Destinations;
use hearth_wasm::dial::dial;
use hearth_wasm::resolver::Unresolved;

use crate::container::Container;

/// The network of one component.
#[derive(Clone)]
pub struct Network {
    /// The container it belongs to.
    pub container: Arc<Container>,
    /// The servers that it may reach.
    pub destinations: Destinations,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The list of allowed hosts does not have it.
    #[error("{0} is not among the allowed hosts of the component")]
    Refused(String),
    /// All addresses of the name are in blocked networks.
    #[error("the addresses of {0:?} are in blocked networks")]
    Blocked(String),
    /// The name has no addresses.
    #[error("{0:?}: {1}")]
    Unresolved(String, Unresolved),
    /// The server does not take the connection.
    #[error("{0}: {1}")]
    Io(String, io::Error),
    /// TLS: no certificates to trust, or the server's is not trusted.
    #[error("TLS with {0}: {1}")]
    Tls(String, String),
    /// The deadline.
    #[error("no connection to {0} within interfaces.connect_timeout_ms")]
    Late(String),
}

impl Network {
    /// When a connection that begins now has to be there.
    pub fn deadline(&self) -> Instant {
        Instant::now() + Duration::from_millis(self.container.shared.config().connect_timeout_ms)
    }

    /// Checks that the component may reach this server, as far as its name tells.
    ///
    /// # Errors
    /// `Refused`.
    pub fn check(&self, scheme: &str, host: &str, port: u16) -> Result<(), ConnectError> {
        if self.destinations.host(scheme, host, port) {
            return Ok(());
        }
        tracing::debug!(scheme, host, port, "a server is not among the component's allowed hosts");
        Err(ConnectError::Refused(format!("{scheme}://{host}:{port}")))
    }

    /// A connection to the server, in the container's network. An IPv6 address has no brackets.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn connect(
        &self,
        scheme: &str,
        host: &str,
        port: u16,
        deadline: Instant,
    ) -> Result<TcpStream, ConnectError> {
        self.check(scheme, host, port)?;
        let connecting = async {
            let found = self.container.names.addresses(host).await;
            let found = found.map_err(|why| ConnectError::Unresolved(host.to_owned(), why))?;
            let allowed = found.into_iter().filter(|address| self.destinations.address(*address));
            let addresses: Vec<_> = allowed.map(|address| SocketAddr::new(address, port)).collect();
            if addresses.is_empty() {
                return Err(ConnectError::Blocked(host.to_owned()));
            }
            let stream = dial(&self.container.names.identity, &addresses, deadline).await;
            stream.map_err(|error| ConnectError::Io(format!("{host}:{port}"), error))
        };
        let connected = tokio::time::timeout_at(deadline.into(), connecting).await;
        connected.unwrap_or_else(|_| Err(ConnectError::Late(format!("{host}:{port}"))))
    }

    /// TLS with the certificates that the container trusts.
    ///
    /// # Errors
    /// `Tls`.
    pub async fn tls(&self, host: &str) -> Result<Arc<ClientConfig>, ConnectError> {
        let configuration = self.container.trust.without_http().await;
        configuration.map_err(|error| ConnectError::Tls(host.to_owned(), error.to_string()))
    }

    /// Makes a connection one of TLS with `host`.
    ///
    /// # Errors
    /// `Tls`.
    pub async fn secure(&self, host: &str, stream: TcpStream) -> Result<TlsStream<TcpStream>, ConnectError> {
        let failed = |error: String| ConnectError::Tls(host.to_owned(), error);
        let name = ServerName::try_from(host.to_owned()).map_err(|error| failed(error.to_string()))?;
        let connector = TlsConnector::from(self.tls(host).await?);
        connector.connect(name, stream).await.map_err(|error| failed(error.to_string()))
    }
}
