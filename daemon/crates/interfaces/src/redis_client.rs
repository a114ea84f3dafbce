//! Connections to Redis servers.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Cmd, ConnectionAddr, FromRedisValue, IntoConnectionInfo, RedisConnectionInfo, RedisError,
};
use tokio::io::{AsyncRead, AsyncWrite};

use hearth_base::destinations::without_brackets;

use crate::container::Task;
use crate::metered::{Meter, MeteredStream};
use crate::network::{ConnectError, Network};
use crate::storage::Caller;

/// The scheme of allowed destinations.
pub(crate) const SCHEME: &str = "redis";

/// The scheme of an address with TLS.
const SECURE: &str = "rediss://";

/// The address of a server.
#[derive(Clone)]
pub struct Address {
    pub(crate) secure: bool,
    /// A name, or an address without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    login: RedisConnectionInfo,
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the password.
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl Address {
    /// Parses `redis://[user:password@]host[:port][/database]`, or `rediss://` for TLS.
    ///
    /// # Errors
    /// The fault, without the address, which may have a password.
    pub fn parse(url: &str) -> Result<Address, String> {
        let secure = url.starts_with(SECURE);
        // TLS is ours, with the container's certificates; the library would refuse its scheme.
        let plain = if secure { url.replacen(SECURE, "redis://", 1) } else { url.to_owned() };
        if !plain.starts_with("redis://") {
            return Err("it does not begin with redis:// or rediss://".into());
        }
        let info = plain.into_connection_info().map_err(|error| error.to_string())?;
        match &info.addr {
            ConnectionAddr::Tcp(host, port) => {
                let host = without_brackets(host).to_owned();
                Ok(Address { secure, host, port: *port, login: info.redis.clone() })
            }
            _ => Err("only redis://host:port and rediss://host:port are supported".into()),
        }
    }

    /// The commands that log in and choose the database, on a connection that the library does not make.
    pub(crate) fn login_commands(&self) -> Vec<Cmd> {
        let RedisConnectionInfo { db, username, password, .. } = &self.login;
        let mut commands = Vec::new();
        if let Some(password) = password {
            let mut auth = redis::cmd("AUTH");
            auth.arg(username.as_slice()).arg(password);
            commands.push(auth);
        }
        if *db != 0 {
            commands.push(redis::cmd("SELECT").arg(*db).to_owned());
        }
        commands
    }

    /// Checks that the component may reach the server.
    ///
    /// # Errors
    /// `Refused`.
    pub fn check(&self, network: &Network) -> Result<(), ConnectError> {
        network.check(SCHEME, &self.host, self.port)
    }
}

/// Why a connection is not there.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The server is not reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The server is no Redis, or refuses the login.
    #[error("{0}")]
    Login(#[from] RedisError),
}

/// A connection, which all copies share.
#[derive(Clone)]
pub struct Connection {
    requests: MultiplexedConnection,
    meter: Arc<Meter>,
    open: Arc<AtomicBool>,
    /// Reads and writes until all copies are dropped.
    _driver: Arc<Task<()>>,
}

impl Connection {
    /// Connects and logs in.
    ///
    /// # Errors
    /// Why there is no connection.
    pub async fn open(network: &Network, address: &Address, deadline: Instant) -> Result<Connection, OpenError> {
        let (network, address) = (network.clone(), address.clone());
        let shared = network.container.shared.clone();
        let connecting = async move {
            let stream = network.connect(SCHEME, &address.host, address.port, deadline).await?;
            let login = async {
                if address.secure {
                    let stream = network.secure(&address.host, stream).await?;
                    Connection::log_in(&network, &address, stream).await
                } else {
                    Connection::log_in(&network, &address, stream).await
                }
            };
            let late = |_| ConnectError::Late(format!("{address:?}"));
            tokio::time::timeout_at(deadline.into(), login).await.map_err(late)?
        };
        let ended = || OpenError::Connect(ConnectError::Late("the server".into()));
        shared.spawn(connecting).result().await.ok_or_else(ended)?
    }

    async fn log_in<S>(network: &Network, address: &Address, stream: S) -> Result<Connection, OpenError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let meter: Arc<Meter> = Arc::default();
        let stream = MeteredStream::new(stream, meter.clone());
        let shared = &network.container.shared;
        let config = AsyncConnectionConfig::new().set_response_timeout(shared.call_timeout());
        let made = MultiplexedConnection::new_with_config(&address.login, stream, config).await?;
        let (requests, driver) = made;
        let open = Arc::new(AtomicBool::new(true));
        let ended = open.clone();
        let driver = shared.spawn(async move {
            driver.await;
            ended.store(false, Ordering::Relaxed);
        });
        Ok(Connection { requests, meter, open, _driver: Arc::new(driver) })
    }

    /// Whether it can be used, as far as is known.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }

    /// Sends a command and waits for its answer.
    ///
    /// # Errors
    /// The server's, or that of the connection.
    pub async fn call<T: FromRedisValue>(&self, command: &Cmd, caller: &Caller) -> Result<T, RedisError> {
        let _call = self.meter.begin(caller.answer_bytes_max, &caller.memory);
        let answer = command.query_async(&mut self.requests.clone()).await;
        if let Err(error) = &answer
            && error.is_unrecoverable_error()
        {
            self.open.store(false, Ordering::Relaxed);
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_host_and_a_port() {
        let parts = |url: &str| {
            let address = Address::parse(url).unwrap();
            (address.secure, address.host.clone(), address.port)
        };
        assert_eq!(parts("redis://cache"), (false, "cache".into(), 6379));
        assert_eq!(parts("rediss://u:p@cache:7000/3"), (true, "cache".into(), 7000));
        assert_eq!(parts("redis://[::1]:7000"), (false, "::1".into(), 7000));
        for wrong in ["", "cache:6379", "http://cache", "unix:///run/redis", "redis://", "redis://cache:x"] {
            assert!(Address::parse(wrong).is_err(), "{wrong}");
        }
        let secret = Address::parse("redis://user:secret@cache/").unwrap();
        assert!(!format!("{secret:?}").contains("secret"));
        assert!(!Address::parse("redis://user:secret@cache:port").unwrap_err().contains("secret"));
    }
}
