//! A store in a SQLite file of the container, or in memory. The table is that of Spin's stores, so that a file on a volume
//! can be moved from Spin to Hearth.
//!
//! A counter is 8 bytes, an integer in little-endian order.

use std::sync::Arc;

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension, params};

use crate::container::Container;
use crate::storage::{Answer, Caller, ConnectionKey, Place, StorageError};

use super::{KEYS_MAX, Store, StoreError};

const TABLE: &str = "CREATE TABLE IF NOT EXISTS spin_key_value (
    store TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (store, key))";
const GET: &str = "SELECT value FROM spin_key_value WHERE store = ?1 AND key = ?2";
const SET: &str = "INSERT INTO spin_key_value (store, key, value) VALUES (?1, ?2, ?3)
    ON CONFLICT (store, key) DO UPDATE SET value = ?3";
const DELETE: &str = "DELETE FROM spin_key_value WHERE store = ?1 AND key = ?2";
// The row's number stays when its value changes, so that a list in parts has each key that is there all the time.
const KEYS: &str = "SELECT rowid, key FROM spin_key_value WHERE store = ?1 AND rowid > ?2 ORDER BY rowid LIMIT ?3";

/// A store in a SQLite database.
pub struct SqliteStore {
    container: Arc<Container>,
    connection: ConnectionKey,
    /// The column `store`: a file can have several.
    name: Arc<str>,
}

impl SqliteStore {
    /// The store of this name in this database.
    pub fn new(container: &Arc<Container>, place: Place, name: &str) -> SqliteStore {
        SqliteStore { container: container.clone(), connection: ConnectionKey { place, number: 0 }, name: name.into() }
    }

    /// Runs `work`, all of it or nothing.
    async fn run<T: Send + 'static>(
        &self,
        caller: &Caller,
        work: impl Fn(&Connection, &str, &mut Answer) -> Result<T, StorageError> + Clone + Send + 'static,
    ) -> Result<T, StoreError> {
        let name = self.name.clone();
        let work = move |connection: &Connection, answer: &mut Answer| {
            connection.execute(TABLE, [])?;
            let transaction = connection.unchecked_transaction()?;
            let done = work(&transaction, &name, answer)?;
            transaction.commit()?;
            Ok(done)
        };
        let done = self.container.storage.run(&self.connection, caller, work).await;
        done.map_err(|error| match error.is_full() {
            true => StoreError::Full,
            false => StoreError::Other(error.to_string()),
        })
    }
}

fn get(connection: &Connection, store: &str, key: &str) -> rusqlite::Result<Option<Vec<u8>>> {
    connection.prepare_cached(GET)?.query_row(params![store, key], |row| row.get(0)).optional()
}

fn set(connection: &Connection, store: &str, key: &str, value: &[u8]) -> rusqlite::Result<()> {
    connection.prepare_cached(SET)?.execute(params![store, key, value]).map(drop)
}

#[async_trait]
impl Store for SqliteStore {
    async fn get_many(&self, caller: &Caller, keys: Vec<String>) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        self.run(caller, move |connection, store, answer| {
            let mut values = Vec::new();
            for key in &keys {
                let value = get(connection, store, key)?;
                answer.count(value.as_ref().map_or(0, Vec::len))?;
                values.push(value);
            }
            Ok(values)
        })
        .await
    }

    async fn set_many(&self, caller: &Caller, values: Vec<(String, Vec<u8>)>) -> Result<(), StoreError> {
        let values = Arc::new(values);
        self.run(caller, move |connection, store, _| {
            for (key, value) in values.iter() {
                set(connection, store, key, value)?;
            }
            Ok(())
        })
        .await
    }

    async fn delete_many(&self, caller: &Caller, keys: Vec<String>) -> Result<(), StoreError> {
        self.run(caller, move |connection, store, _| {
            for key in &keys {
                connection.prepare_cached(DELETE)?.execute(params![store, key])?;
            }
            Ok(())
        })
        .await
    }

    async fn exists(&self, caller: &Caller, key: String) -> Result<bool, StoreError> {
        self.run(caller, move |connection, store, _| Ok(connection.prepare_cached(GET)?.exists(params![store, key])?))
            .await
    }

    async fn keys(&self, caller: &Caller, from: u64) -> Result<(Vec<String>, Option<u64>), StoreError> {
        self.run(caller, move |connection, store, answer| {
            let mut statement = connection.prepare_cached(KEYS)?;
            // A guest can ask for the part after any number.
            let after = i64::try_from(from).unwrap_or(i64::MAX);
            let mut rows = statement.query(params![store, after, KEYS_MAX])?;
            let (mut keys, mut last) = (Vec::new(), 0_i64);
            while let Some(row) = rows.next()? {
                let key: String = row.get(1)?;
                answer.count(key.len())?;
                keys.push(key);
                last = row.get(0)?;
            }
            let more = (keys.len() as u32 == KEYS_MAX).then_some(last as u64);
            Ok((keys, more))
        })
        .await
    }

    async fn increment(&self, caller: &Caller, key: String, delta: i64) -> Result<i64, StoreError> {
        let counted = self.run(caller, move |connection, store, _| {
            let before = match get(connection, store, &key)? {
                None => 0,
                Some(bytes) => match <[u8; 8]>::try_from(bytes.as_slice()) {
                    Ok(bytes) => i64::from_le_bytes(bytes),
                    Err(_) => {
                        return Ok(Err(format!("the value of this key is no counter: it has {} bytes", bytes.len())));
                    }
                },
            };
            let Some(after) = before.checked_add(delta) else { return Ok(Err("the counter would overflow".into())) };
            set(connection, store, &key, &after.to_le_bytes())?;
            Ok(Ok(after))
        });
        counted.await?.map_err(StoreError::Other)
    }

    async fn swap(
        &self,
        caller: &Caller,
        key: String,
        expected: Option<Vec<u8>>,
        value: Vec<u8>,
    ) -> Result<bool, StoreError> {
        let (expected, value) = (Arc::new(expected), Arc::new(value));
        self.run(caller, move |connection, store, _| {
            if get(connection, store, &key)? != *expected {
                return Ok(false);
            }
            set(connection, store, &key, &value)?;
            Ok(true)
        })
        .await
    }
}
