//! A store that is a database of a Redis server. Its keys are the server's, so that other programs can read them.
//!
//! A counter is a decimal number, as `INCRBY` has it.

use async_trait::async_trait;
use redis::{Cmd, FromRedisValue, cmd};
use tokio::sync::Mutex;

use crate::network::Network;
use crate::redis_client::{Address, Connection};
use crate::storage::Caller;

use super::{KEYS_MAX, Store, StoreError};

/// Sets a key if it has the expected value: `ARGV` is whether there is one, the expected value, the new one.
const SWAP: &str = "local now = redis.call('GET', KEYS[1])
if ARGV[1] == '0' then if now then return 0 end elseif now ~= ARGV[2] then return 0 end
redis.call('SET', KEYS[1], ARGV[3])
return 1";

/// A store on a Redis server.
pub struct RedisStore {
    network: Network,
    address: Address,
    /// All guests of the container share the connection.
    connection: Mutex<Option<Connection>>,
}

impl RedisStore {
    /// The store at this address. No connection is made yet.
    pub fn new(network: &Network, address: Address) -> RedisStore {
        RedisStore { network: network.clone(), address, connection: Mutex::new(None) }
    }

    async fn call<T: FromRedisValue + Send>(&self, caller: &Caller, command: &Cmd) -> Result<T, StoreError> {
        let connection = self.connected().await?;
        connection.call(command, caller).await.map_err(|error| StoreError::Other(error.to_string()))
    }

    /// The connection, which is made if there is none or the last one broke.
    async fn connected(&self) -> Result<Connection, StoreError> {
        let deadline = self.network.deadline();
        let late = |_| StoreError::Other("no connection within interfaces.connect_timeout_ms".into());
        // It may be another call of the container that connects.
        let mut held = tokio::time::timeout_at(deadline.into(), self.connection.lock()).await.map_err(late)?;
        if let Some(connection) = held.as_ref().filter(|connection| connection.is_open()) {
            return Ok(connection.clone());
        }
        let made = Connection::open(&self.network, &self.address, deadline).await;
        let made = made.map_err(|error| StoreError::Other(error.to_string()))?;
        *held = Some(made.clone());
        Ok(made)
    }
}

#[async_trait]
impl Store for RedisStore {
    async fn get_many(&self, caller: &Caller, keys: Vec<String>) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        match keys.is_empty() {
            true => Ok(Vec::new()),
            false => self.call(caller, cmd("MGET").arg(keys)).await,
        }
    }

    async fn set_many(&self, caller: &Caller, values: Vec<(String, Vec<u8>)>) -> Result<(), StoreError> {
        if values.is_empty() {
            return Ok(());
        }
        let mut command = cmd("MSET");
        for (key, value) in values {
            command.arg(key).arg(value);
        }
        self.call(caller, &command).await
    }

    async fn delete_many(&self, caller: &Caller, keys: Vec<String>) -> Result<(), StoreError> {
        match keys.is_empty() {
            true => Ok(()),
            false => self.call(caller, cmd("DEL").arg(keys)).await,
        }
    }

    async fn exists(&self, caller: &Caller, key: String) -> Result<bool, StoreError> {
        self.call(caller, cmd("EXISTS").arg(key)).await
    }

    async fn keys(&self, caller: &Caller, from: u64) -> Result<(Vec<String>, Option<u64>), StoreError> {
        let command = cmd("SCAN").arg(from).arg("COUNT").arg(KEYS_MAX).to_owned();
        let (next, keys): (u64, Vec<Vec<u8>>) = self.call(caller, &command).await?;
        // Another program may have keys that are no text; a guest cannot name them.
        let keys = keys.into_iter().filter_map(|key| String::from_utf8(key).ok()).collect();
        Ok((keys, (next != 0).then_some(next)))
    }

    async fn increment(&self, caller: &Caller, key: String, delta: i64) -> Result<i64, StoreError> {
        self.call(caller, cmd("INCRBY").arg(key).arg(delta)).await
    }

    async fn swap(
        &self,
        caller: &Caller,
        key: String,
        expected: Option<Vec<u8>>,
        value: Vec<u8>,
    ) -> Result<bool, StoreError> {
        let mut command = cmd("EVAL");
        command
            .arg(SWAP)
            .arg(1)
            .arg(key)
            .arg(i32::from(expected.is_some()))
            .arg(expected.unwrap_or_default())
            .arg(value);
        self.call(caller, &command).await
    }
}
