//! The grants of one component: the values it reads, the hosts it connects to, the stores it opens.
//!
//! A host interface checks a call against the grants of the component that calls. Whatever is not in them is refused
//! at the call, and not when the component is linked: components import interfaces that they do not use.

use std::collections::BTreeMap;

use hearth_base::error::Result;

use crate::application::{Application, Component, invalid};
use crate::runtime_config::{Database, KeyValueStore, RuntimeConfig};

/// The label that every application may use without configuring it.
const DEFAULT: &str = "default";

/// The values, hosts and stores that one component may use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grants {
    /// The values of its configuration, by key.
    pub variables: BTreeMap<String, String>,
    /// The entries of `allowed_outbound_hosts`, with the values of variables in them. An empty entry allows nothing.
    pub allowed_outbound_hosts: Vec<String>,
    /// Networks that it may not connect to whatever the entries say, as `10.0.0.0/8`.
    pub blocked_networks: Vec<String>,
    /// Whether networks that are not public are blocked, too.
    pub block_private_networks: bool,
    /// The key-value stores that it may open, by label.
    pub key_value_stores: BTreeMap<String, KeyValueStore>,
    /// The SQLite databases that it may open, by label.
    pub databases: BTreeMap<String, Database>,
}

impl Grants {
    /// The grants of a component of an application. `values` are those of the application's variables.
    ///
    /// # Errors
    /// `InvalidArgument` for a text with an undeclared variable, or a label that is configured nowhere.
    pub fn of(component: &Component, config: &RuntimeConfig, values: &BTreeMap<String, String>) -> Result<Grants> {
        let id = &component.id;
        let within = |error: hearth_base::error::Error| error.context(format!("the component {id:?}"));
        let mut variables = BTreeMap::new();
        for (key, template) in &component.variables {
            variables.insert(key.clone(), template.render(values).map_err(within)?);
        }
        let hosts = component.allowed_outbound_hosts.iter().map(|host| host.render(values).map_err(within));
        Ok(Grants {
            variables,
            allowed_outbound_hosts: hosts.collect::<Result<_>>()?,
            blocked_networks: config.blocked_networks.clone(),
            block_private_networks: config.block_private_networks,
            key_value_stores: labelled(
                id,
                &component.key_value_stores,
                &config.key_value_stores,
                "key-value store",
                "key_value_store",
            )?,
            databases: labelled(id, &component.databases, &config.databases, "SQLite database", "sqlite_database")?,
        })
    }
}

/// The configuration of each label.
fn labelled<T: Clone + Default>(
    component: &str,
    labels: &[String],
    configured: &BTreeMap<String, T>,
    what: &str,
    table: &str,
) -> Result<BTreeMap<String, T>> {
    let mut found = BTreeMap::new();
    for label in labels {
        let store = match configured.get(label) {
            Some(store) => store.clone(),
            None if label == DEFAULT => T::default(),
            None => {
                return Err(invalid(format!(
                    "the component {component:?} uses the {what} {label:?}, which is configured nowhere: add [{table}.{label}] to /runtime-config.toml"
                )));
            }
        };
        found.insert(label.clone(), store);
    }
    Ok(found)
}

/// The grants of every component, by id.
///
/// # Errors
/// As [`Grants::of`].
pub fn all(
    application: &Application,
    config: &RuntimeConfig,
    values: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, Grants>> {
    let grants = application.components.iter().map(|component| {
        let grants = Grants::of(component, config, values)?;
        Ok((component.id.clone(), grants))
    });
    grants.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::application::{Files, Source};
    use crate::template::Template;

    fn component() -> Component {
        Component {
            id: "api".into(),
            source: Source::File("a.wasm".into()),
            environment: Vec::new(),
            files: Files::Contents(Vec::new()),
            variables: BTreeMap::from([("url".into(), Template::parse("http://{{ host }}/").unwrap())]),
            allowed_outbound_hosts: vec![Template::parse("http://{{ host }}").unwrap()],
            key_value_stores: vec!["default".into(), "cache".into()],
            databases: vec!["default".into()],
        }
    }

    #[test]
    fn a_component_gets_its_values_hosts_and_stores() {
        let redis = KeyValueStore::Redis { url: "redis://r:6379".into() };
        let config = RuntimeConfig {
            key_value_stores: BTreeMap::from([("cache".into(), redis.clone()), ("other".into(), redis.clone())]),
            blocked_networks: vec!["10.0.0.0/8".into()],
            ..RuntimeConfig::default()
        };
        let values = BTreeMap::from([("host".to_string(), "example.org".to_string())]);
        let grants = Grants::of(&component(), &config, &values).unwrap();
        assert_eq!(grants.variables["url"], "http://example.org/");
        assert_eq!(grants.allowed_outbound_hosts, ["http://example.org"]);
        assert_eq!(grants.blocked_networks, ["10.0.0.0/8"]);
        let stores = BTreeMap::from([("cache".into(), redis), ("default".into(), KeyValueStore::File { path: None })]);
        assert_eq!(grants.key_value_stores, stores);
        assert_eq!(grants.databases["default"], Database::default());
    }

    #[test]
    fn a_label_that_is_configured_nowhere_is_named() {
        let values = BTreeMap::from([("host".to_string(), "h".to_string())]);
        let error = Grants::of(&component(), &RuntimeConfig::default(), &values).unwrap_err().to_string();
        assert_eq!(
            error,
            "the component \"api\" uses the key-value store \"cache\", which is configured nowhere: add [key_value_store.cache] to /runtime-config.toml"
        );
    }

    #[test]
    fn an_undeclared_variable_is_told_with_its_component() {
        let error = Grants::of(&component(), &RuntimeConfig::default(), &BTreeMap::new()).unwrap_err().to_string();
        assert!(error.starts_with("the component \"api\": the text \"http://{{ host }}/\""), "{error}");
    }
}
