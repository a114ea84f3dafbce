//! Connections to PostgreSQL servers.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::tls::{ChannelBinding, NoTls, TlsConnect, TlsStream};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, Statement};
use tokio_rustls::TlsConnector;
use tokio_rustls::client;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use hearth_base::destinations::without_brackets;

use crate::container::Task;
use crate::metered::{Meter, MeteredStream};
use crate::network::{ConnectError, Network};
use crate::storage::Caller;

use super::values::{self, Kind, Value};

/// The scheme of allowed destinations.
const SCHEME: &str = "postgres";

/// PostgreSQL's port, where an address has none.
const PORT: u16 = 5432;

/// Bytes that a value of a row takes beside its text.
const VALUE_BYTES: usize = 32;

/// Why a call failed.
pub(super) enum Failure {
    Connection(String),
    BadParameter(String),
    Query(String),
    Conversion(String),
    Other(String),
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Failure {
        Failure::Connection(error.to_string())
    }
}

/// An error with its cause, which has the server's text.
fn text(error: &tokio_postgres::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// The address of a server: a URL, or `key=value` pairs.
pub(super) struct Address {
    config: Config,
    host: String,
    port: u16,
}

impl Address {
    /// Parses it.
    ///
    /// # Errors
    /// `ConnectionFailed` without the address, which may have a password.
    pub(super) fn parse(text: &str) -> Result<Address, Failure> {
        let wrong = |why: &str| Failure::Connection(format!("the address is not of a PostgreSQL server: {why}"));
        let config: Config = text.parse().map_err(|_| wrong("it is no postgres:// URL and no list of key=value"))?;
        let [Host::Tcp(host)] = config.get_hosts() else { return Err(wrong("it has to have one host")) };
        let host = without_brackets(host).to_owned();
        let port = config.get_ports().first().copied().unwrap_or(PORT);
        Ok(Address { host, port, config })
    }

    /// Checks that the component may reach the server.
    ///
    /// # Errors
    /// `ConnectionFailed`.
    pub(super) fn check(&self, network: &Network) -> Result<(), Failure> {
        Ok(network.check(SCHEME, &self.host, self.port)?)
    }
}

/// Columns and rows.
pub(super) struct Table {
    pub(super) columns: Vec<(String, Kind)>,
    pub(super) rows: Vec<Vec<Value>>,
}

/// A connection, which all copies share.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) network: Network,
    client: Arc<Client>,
    meter: Arc<Meter>,
    /// Reads and writes until all copies are dropped.
    _driver: Arc<Task<()>>,
}

impl Connection {
    /// Connects and logs in.
    ///
    /// # Errors
    /// `ConnectionFailed`.
    pub(super) async fn open(network: Network, address: Address) -> Result<Connection, Failure> {
        let shared = network.container.shared.clone();
        let deadline = network.deadline();
        let late = ConnectError::Late(format!("{}:{}", address.host, address.port));
        let connecting = Connection::connect(network, address, deadline);
        let connecting = async move { tokio::time::timeout_at(deadline.into(), connecting).await };
        match shared.spawn(connecting).result().await {
            Some(Ok(connected)) => connected,
            Some(Err(_)) => Err(late.into()),
            None => Err(Failure::Other("the connection was given up".into())),
        }
    }

    async fn connect(network: Network, address: Address, deadline: Instant) -> Result<Connection, Failure> {
        let stream = network.connect(SCHEME, &address.host, address.port, deadline).await?;
        let meter: Arc<Meter> = Arc::default();
        let stream = MeteredStream::new(stream, meter.clone());
        let shared = &network.container.shared;
        let failed = |error: tokio_postgres::Error| Failure::Connection(text(&error));
        // The library's connection ends when its client is gone, or the server.
        let (client, driver) = if address.config.get_ssl_mode() == SslMode::Disable {
            let (client, connection) = address.config.connect_raw(stream, NoTls).await.map_err(failed)?;
            (client, shared.spawn(async move { drop(connection.await) }))
        } else {
            let tls = Tls { configuration: network.tls(&address.host).await?, host: address.host.clone() };
            let (client, connection) = address.config.connect_raw(stream, tls).await.map_err(failed)?;
            (client, shared.spawn(async move { drop(connection.await) }))
        };
        Ok(Connection { network, client: Arc::new(client), meter, _driver: Arc::new(driver) })
    }

    /// The rows that a statement returns.
    ///
    /// # Errors
    /// The server's.
    pub(super) async fn query(self, caller: Caller, statement: String, values: Vec<Value>) -> Result<Table, Failure> {
        let _call = self.meter.begin(caller.answer_bytes_max, &caller.memory);
        let asked = async {
            let (statement, parameters) = self.prepare(&statement, &values).await?;
            let rows = self.client.query(&statement, &parameters).await.map_err(failed)?;
            let columns = statement.columns().iter();
            let columns: Vec<_> = columns.map(|column| (column.name().to_owned(), Kind::of(column.type_()))).collect();
            let mut held = caller.memory.hold();
            if !held.grow((rows.len() * columns.len() * VALUE_BYTES) as u64) {
                return Err(Failure::Other("the container has no memory left for the rows".into()));
            }
            let convert = |row: &tokio_postgres::Row| -> Result<Vec<Value>, tokio_postgres::Error> {
                (0..columns.len()).map(|index| values::of_row(row, index)).collect()
            };
            let rows: Result<_, _> = rows.iter().map(convert).collect();
            Ok(Table { rows: rows.map_err(|error| Failure::Conversion(text(&error)))?, columns })
        };
        in_time(&caller, asked).await
    }

    /// How many rows a statement changed.
    ///
    /// # Errors
    /// The server's.
    pub(super) async fn execute(self, caller: Caller, statement: String, values: Vec<Value>) -> Result<u64, Failure> {
        let _call = self.meter.begin(caller.answer_bytes_max, &caller.memory);
        let asked = async {
            let (statement, parameters) = self.prepare(&statement, &values).await?;
            self.client.execute(&statement, &parameters).await.map_err(failed)
        };
        in_time(&caller, asked).await
    }

    async fn prepare<'a>(
        &self,
        statement: &str,
        values: &'a [Value],
    ) -> Result<(Statement, Vec<&'a (dyn ToSql + Sync)>), Failure> {
        let statement = self.client.prepare(statement).await.map_err(failed)?;
        let wanted = statement.params().len();
        if wanted != values.len() {
            return Err(Failure::BadParameter(format!("the statement has {wanted} parameters, not {}", values.len())));
        }
        Ok((statement, values.iter().map(|value| value as &(dyn ToSql + Sync)).collect()))
    }
}

fn failed(error: tokio_postgres::Error) -> Failure {
    Failure::Query(text(&error))
}

async fn in_time<T>(caller: &Caller, asked: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let late = |_| Failure::Query("the call took longer than interfaces.call_timeout_ms allows".into());
    tokio::time::timeout(caller.timeout, asked).await.map_err(late)?
}

/// TLS as the library asks for it.
struct Tls {
    configuration: Arc<ClientConfig>,
    host: String,
}

type Plain = MeteredStream<TcpStream>;

impl TlsConnect<Plain> for Tls {
    type Stream = SecureStream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<SecureStream>> + Send>>;

    fn connect(self, stream: Plain) -> Self::Future {
        Box::pin(async move {
            let name = ServerName::try_from(self.host).map_err(io::Error::other)?;
            TlsConnector::from(self.configuration).connect(name, stream).await.map(SecureStream)
        })
    }
}

/// A connection with TLS.
struct SecureStream(client::TlsStream<Plain>);

impl TlsStream for SecureStream {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for SecureStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for SecureStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
