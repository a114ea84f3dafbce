//! The interfaces of a component of a Spin application. All are there whether the component may use them or not: what it
//! may not is refused at the call.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use hearth_base::destinations::Destinations;
use hearth_base::error::Result;
use hearth_wasm::access::Access;

use crate::config::{Configuration, Source};
use crate::container::Container;
use crate::network::Network;
use crate::outgoing_redis::Redis;
use crate::postgres::Postgres;
use crate::sqlite::Databases;
use crate::stores::{Backend, StoreError, Stores};

/// The file of a key-value store that is configured nowhere, as Spin has it. It is gone with the container.
pub const KEY_VALUE_FILE: &str = "/.spin/sqlite_key_value.db";

/// The file of the SQLite database that is configured nowhere. It is gone with the container.
pub const DATABASE_FILE: &str = "/.spin/sqlite_db.db";

/// The hosts, values and stores that one component may use.
pub struct SpinComponent {
    /// Its variables with their values.
    pub variables: BTreeMap<String, String>,
    /// The servers that it may reach.
    pub destinations: Destinations,
    /// Its key-value stores.
    pub key_value_stores: BTreeMap<String, Backend>,
    /// The files of its SQLite databases.
    pub databases: BTreeMap<String, PathBuf>,
}

/// The states of all interfaces for the component.
///
/// # Errors
/// `InvalidArgument` naming an address that is none.
pub fn access(container: &Arc<Container>, component: SpinComponent) -> Result<Access> {
    let SpinComponent { variables, destinations, key_value_stores, databases } = component;
    let network = Network { container: container.clone(), destinations: destinations.clone() };
    // A store's server is the operator's choice, and not the component's.
    let stores = Network { destinations: Destinations::default(), ..network.clone() };
    Ok(Access::to(destinations)
        .with(Configuration::new(container, vec![Source::Values(variables)]))
        .with(Stores::new(&stores, key_value_stores, StoreError::Denied)?)
        .with(Databases::new(container, databases))
        .with(Redis(network.clone()))
        .with(Postgres(network)))
}
