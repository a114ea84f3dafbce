//! Key-value stores, as the interfaces of WASI and of Spin use them.
//!
//! * `sqlite.rs`: a store in a SQLite file, or in memory.
//! * `redis.rs`: a store that is a database of a Redis server.

mod redis;
mod sqlite;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use wasmtime::component::Resource;

use hearth_base::error::{Error, Result};
use hearth_wasm::access::InterfaceState;
use hearth_wasm::state::ComponentState;

use crate::container::Container;
use crate::network::Network;
use crate::redis_client::Address;
use crate::storage::{Caller, Place};

/// The most keys of one part of a list of keys.
const KEYS_MAX: u32 = 1_000;

/// The store that is opened by the empty name, too.
pub const DEFAULT: &str = "default";

/// Where a store keeps its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// In memory, which counts as the container's; gone with the container.
    Memory,
    /// In this SQLite file of the container.
    File(PathBuf),
    /// In a database of a Redis server: `redis://` or `rediss://`.
    Redis(String),
}

/// Why a call on a store failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreError {
    /// There is no store of this name.
    Missing,
    /// The component may not open a store of this name.
    Denied,
    /// The store has no room left.
    Full,
    /// Any other reason.
    Other(String),
}

/// One store.
#[async_trait]
pub trait Store: Send + Sync {
    /// The value of a key.
    async fn get(&self, caller: &Caller, key: String) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.get_many(caller, vec![key]).await?.pop().flatten())
    }
    /// The values of keys, in their order.
    async fn get_many(&self, caller: &Caller, keys: Vec<String>) -> Result<Vec<Option<Vec<u8>>>, StoreError>;
    /// Sets values, all or none.
    async fn set_many(&self, caller: &Caller, values: Vec<(String, Vec<u8>)>) -> Result<(), StoreError>;
    /// Removes keys.
    async fn delete_many(&self, caller: &Caller, keys: Vec<String>) -> Result<(), StoreError>;
    /// Whether a key has a value.
    async fn exists(&self, caller: &Caller, key: String) -> Result<bool, StoreError>;
    /// Some keys, and where the next ones begin; 0 is the begin of all.
    async fn keys(&self, caller: &Caller, from: u64) -> Result<(Vec<String>, Option<u64>), StoreError>;
    /// Adds to a counter, and returns its value. A key without a value counts from 0.
    async fn increment(&self, caller: &Caller, key: String, delta: i64) -> Result<i64, StoreError>;
    /// Sets the value of a key if its value is `expected` until then; `false`: it is another one.
    async fn swap(
        &self,
        caller: &Caller,
        key: String,
        expected: Option<Vec<u8>>,
        value: Vec<u8>,
    ) -> Result<bool, StoreError>;
}

/// An open store. A handle of a guest.
#[derive(Clone)]
pub struct Bucket {
    /// The store.
    pub store: Arc<dyn Store>,
}

/// The stores of one component, by name.
pub struct Stores {
    container: Arc<Container>,
    stores: BTreeMap<String, Arc<dyn Store>>,
    /// The error for any other name.
    other: StoreError,
}

impl InterfaceState for Stores {
    fn close(&self) {
        self.container.storage.close();
    }
}

impl Stores {
    /// These stores. `other` is the error for any other name.
    ///
    /// # Errors
    /// `InvalidArgument` naming an address that is none.
    pub fn new(network: &Network, stores: BTreeMap<String, Backend>, other: StoreError) -> Result<Stores> {
        let container = network.container.clone();
        let made = stores.into_iter().map(|(name, backend)| {
            let store: Arc<dyn Store> = match backend {
                Backend::Memory => Arc::new(sqlite::SqliteStore::new(&container, Place::Memory, &name)),
                Backend::File(path) => Arc::new(sqlite::SqliteStore::new(&container, Place::File(path), &name)),
                Backend::Redis(url) => {
                    let address = Address::parse(&url).map_err(|error| {
                        // The address may have a password.
                        Error::InvalidArgument(format!("the address of the key-value store {name:?}: {error}"))
                    })?;
                    Arc::new(redis::RedisStore::new(network, address))
                }
            };
            Ok((name, store))
        });
        Ok(Stores { stores: made.collect::<Result<_>>()?, container, other })
    }

    /// The store of this name; the empty name is `default`.
    ///
    /// # Errors
    /// There is none.
    pub fn open(&self, name: &str) -> Result<Bucket, StoreError> {
        let name = if name.is_empty() { DEFAULT } else { name };
        self.stores.get(name).map(|store| Bucket { store: store.clone() }).ok_or_else(|| self.other.clone())
    }
}

/// Opens the store of this name for a guest.
///
/// # Errors
/// The guest has as many handles as it may. The inner error: there is no such store.
pub(crate) fn open(state: &mut ComponentState, name: &str) -> wasmtime::Result<Result<Resource<Bucket>, StoreError>> {
    match state.access.get::<Stores>().ok_or(StoreError::Denied).and_then(|stores| stores.open(name)) {
        Ok(bucket) => Ok(Ok(state.table.push(bucket)?)),
        Err(error) => Ok(Err(error)),
    }
}

/// The store of a guest's handle, and the guest as its caller.
///
/// # Errors
/// There is no such handle.
pub(crate) fn of_handle(
    state: &ComponentState,
    bucket: &Resource<Bucket>,
) -> wasmtime::Result<(Arc<dyn Store>, Caller)> {
    Ok((state.table.get(bucket)?.store.clone(), caller(state)?))
}

/// The guest of this store as a caller.
///
/// # Errors
/// It has no stores, and so no handle of one.
pub(crate) fn caller(state: &ComponentState) -> wasmtime::Result<Caller> {
    let stores = state.access.get::<Stores>();
    let stores = stores.ok_or_else(|| wasmtime::Error::msg("a store is open in a container without stores"))?;
    Ok(stores.container.caller(state))
}
