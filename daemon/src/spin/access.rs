//! The access of an application's components beyond their files: hosts, variables, stores.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use hearth_base::destinations::{AllowedHosts, BlockedNetworks, Destinations, IpNetwork};
use hearth_base::error::{Error, Result};
use hearth_interfaces::container::Container;
use hearth_interfaces::spin::{self, SpinComponent};
use hearth_interfaces::stores::Backend;
use hearth_spin::grants::Grants;
use hearth_spin::runtime_config::KeyValueStore;
use hearth_wasm::access::{Access, InterfaceState};

use super::loaded::ConfiguredApplication;
use super::subscriptions::Subscriptions;

/// The access of each component of a container, by id.
pub struct ComponentsAccess(BTreeMap<Arc<str>, Access>);

impl InterfaceState for ComponentsAccess {
    fn close(&self) {
        self.0.values().for_each(Access::close);
    }
}

impl ComponentsAccess {
    /// That of one component.
    pub fn of(access: &Access, id: &str) -> Access {
        let all = access.get::<ComponentsAccess>();
        all.and_then(|all| all.0.get(id).cloned()).unwrap_or_default()
    }
}

/// The access of a container with this application: that of each of its components.
///
/// # Errors
/// `InvalidArgument` naming the component and the host, the network or the store.
pub fn granted(container: &Arc<Container>, configured: &ConfiguredApplication) -> Result<Access> {
    let mut all = BTreeMap::new();
    for (_, component) in configured.started() {
        let Some(grants) = configured.grants.get(&component.id) else { continue };
        let within = |error: Error| error.context(format!("the component {:?}", component.id));
        let access = of_component(grants).and_then(|granted| spin::access(container, granted));
        all.insert(component.id.as_str().into(), access.map_err(within)?);
    }
    let subscriptions = Subscriptions::new(container, &configured.subscriptions)?;
    Ok(Access::default().with(ComponentsAccess(all)).with(subscriptions))
}

fn of_component(grants: &Grants) -> Result<SpinComponent> {
    let allowed = AllowedHosts::parse(grants.allowed_outbound_hosts.iter().map(String::as_str))?;
    let networks = grants.blocked_networks.iter().map(|network| network.parse()).collect::<Result<Vec<IpNetwork>>>()?;
    let blocked = BlockedNetworks::new(networks, grants.block_private_networks);
    let stores = grants.key_value_stores.iter().map(|(label, store)| {
        let backend = match store {
            KeyValueStore::File { path } => Backend::File(path.as_deref().unwrap_or(spin::KEY_VALUE_FILE).into()),
            KeyValueStore::Redis { url } => Backend::Redis(url.clone()),
        };
        (label.clone(), backend)
    });
    let databases = grants.databases.iter().map(|(label, database)| {
        (label.clone(), PathBuf::from(database.path.as_deref().unwrap_or(spin::DATABASE_FILE)))
    });
    Ok(SpinComponent {
        variables: grants.variables.clone(),
        destinations: Destinations::only(allowed, blocked),
        key_value_stores: stores.collect(),
        databases: databases.collect(),
    })
}
