//! `/runtime-config.toml`, which the pod mounts: where variables come from, where stores keep their data, limits.
//!
//! A key that Hearth does not know is refused, and so is a service that it does not speak to: an application whose
//! data went somewhere else than its configuration says would lose it.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use hearth_base::error::Result;

use crate::application::invalid;
use crate::variables::PREFIX;

/// Its path in the container's root.
pub const PATH: &str = "/runtime-config.toml";

/// The settings of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuntimeConfig {
    /// Where variables come from, the first that has one first.
    pub variables_providers: Vec<VariablesProvider>,
    /// Key-value stores, by label.
    pub key_value_stores: BTreeMap<String, KeyValueStore>,
    /// SQLite databases, by label.
    pub databases: BTreeMap<String, Database>,
    /// The most memory of one instance, in bytes.
    pub instance_memory: Option<u64>,
    /// Networks that no component may connect to, as `10.0.0.0/8`.
    pub blocked_networks: Vec<String>,
    /// Whether networks that are not public are blocked, too.
    pub block_private_networks: bool,
}

/// A source of variables' values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VariablesProvider {
    /// The file itself has the values.
    Static(BTreeMap<String, String>),
    /// Environment variables of the container, `PREFIX_NAME`.
    Env {
        /// The prefix of their names.
        prefix: String,
    },
}

/// Where a key-value store keeps its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyValueStore {
    /// A SQLite file.
    File {
        /// Its path; none: one in the container, which is gone with the container.
        path: Option<String>,
    },
    /// A Redis server.
    Redis {
        /// Its address.
        url: String,
    },
}

impl Default for KeyValueStore {
    fn default() -> KeyValueStore {
        KeyValueStore::File { path: None }
    }
}

/// A SQLite database: a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Database {
    /// Its path; none: one in the container, which is gone with the container.
    pub path: Option<String>,
}

impl RuntimeConfig {
    /// Reads the file.
    ///
    /// # Errors
    /// `InvalidArgument` naming the key.
    pub fn parse(text: &str) -> Result<RuntimeConfig> {
        let table: Table = toml::from_str(text).map_err(|error| wrong(error.message()))?;
        let mut config = RuntimeConfig::default();
        for (key, value) in table {
            config.take(&key, value)?;
        }
        Ok(config)
    }

    fn take(&mut self, key: &str, value: Value) -> Result<()> {
        match key {
            "variables_provider" | "config_provider" => {
                for provider in read::<Vec<Table>>(key, value)? {
                    self.variables_providers.push(variables_provider(key, provider)?);
                }
            }
            "key_value_store" => {
                for (label, table) in read::<BTreeMap<String, Table>>(key, value)? {
                    let store = key_value_store(&format!("{key}.{label}"), table)?;
                    self.key_value_stores.insert(label, store);
                }
            }
            "sqlite_database" => {
                for (label, table) in read::<BTreeMap<String, Table>>(key, value)? {
                    let database = database(&format!("{key}.{label}"), table)?;
                    self.databases.insert(label, database);
                }
            }
            "max_instance_memory" => self.instance_memory = Some(read(key, value)?),
            "outbound_networking" => {
                let networking: OutboundNetworking = read(key, value)?;
                self.blocked_networks = networking.block_networks;
                self.block_private_networks = networking.block_private_networks;
            }
            // Spin's directory of default files; here they are in the container whatever it says. Logs go to the
            // container's streams.
            "state_dir" | "log_dir" => drop(read::<String>(key, value)?),
            "outbound_http" => {
                read::<OutboundHttp>(key, value)?;
            }
            "llm_compute" => {
                return Err(wrong("llm_compute: Hearth has no language models; remove the key"));
            }
            "client_tls" => {
                return Err(wrong("client_tls: Hearth sends no client certificates; remove the key"));
            }
            key => return Err(wrong(&format!("the key {key:?} is unknown; remove it"))),
        }
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OutboundNetworking {
    #[serde(default)]
    block_networks: Vec<String>,
    #[serde(default)]
    block_private_networks: bool,
}

/// Hearth pools connections, and bounds them by its own configuration, whatever these say.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OutboundHttp {
    #[serde(rename = "connection_pooling")]
    _connection_pooling: Option<bool>,
    #[serde(rename = "max_concurrent_requests")]
    _max_concurrent_requests: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StaticValues {
    values: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EnvPrefix {
    prefix: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FilePath {
    path: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DatabasePath {
    path: Option<String>,
    #[serde(default)]
    allow_attach_file: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RedisUrl {
    url: String,
}

fn variables_provider(key: &str, mut table: Table) -> Result<VariablesProvider> {
    match type_of(key, &mut table)?.as_str() {
        "static" => Ok(VariablesProvider::Static(read::<StaticValues>(key, table.into())?.values)),
        "env" => {
            if table.contains_key("dotenv_path") {
                return Err(wrong(&format!(
                    "{key}: dotenv_path is not supported; set the container's environment instead"
                )));
            }
            let prefix = read::<EnvPrefix>(key, table.into())?.prefix;
            Ok(VariablesProvider::Env { prefix: prefix.unwrap_or_else(|| PREFIX.into()) })
        }
        other => Err(unsupported(key, other, "static and env")),
    }
}

fn key_value_store(key: &str, mut table: Table) -> Result<KeyValueStore> {
    match type_of(key, &mut table)?.as_str() {
        "spin" => Ok(KeyValueStore::File { path: read::<FilePath>(key, table.into())?.path }),
        "redis" => Ok(KeyValueStore::Redis { url: read::<RedisUrl>(key, table.into())?.url }),
        other => Err(unsupported(key, other, "spin and redis")),
    }
}

fn database(key: &str, mut table: Table) -> Result<Database> {
    match type_of(key, &mut table)?.as_str() {
        "spin" => {
            let file: DatabasePath = read(key, table.into())?;
            if file.allow_attach_file {
                return Err(wrong(&format!("{key}: allow_attach_file is not supported; remove it")));
            }
            Ok(Database { path: file.path })
        }
        other => Err(unsupported(key, other, "spin")),
    }
}

fn type_of(key: &str, table: &mut Table) -> Result<String> {
    match table.remove("type") {
        Some(Value::String(name)) => Ok(name),
        _ => Err(wrong(&format!("{key}: the key \"type\" is missing"))),
    }
}

fn unsupported(key: &str, found: &str, supported: &str) -> hearth_base::error::Error {
    wrong(&format!("{key}: the type {found:?} is not supported; Hearth supports {supported}"))
}

fn read<T: DeserializeOwned>(key: &str, value: Value) -> Result<T> {
    value.try_into().map_err(|error| wrong(&format!("{key}: {}", error.message())))
}

fn wrong(text: &str) -> hearth_base::error::Error {
    invalid(format!("{PATH}: {}", text.trim().replace('\n', "; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_the_file_has_its_meaning() {
        let config = RuntimeConfig::parse(
            r#"
            state_dir = "/tmp/state"
            log_dir = "/tmp/logs"
            max_instance_memory = 67108864
            [[variables_provider]]
            type = "static"
            values = { host = "db" }
            [[variables_provider]]
            type = "env"
            prefix = "APP"
            [[config_provider]]
            type = "env"
            [key_value_store.default]
            type = "spin"
            [key_value_store.foo]
            type = "spin"
            path = "/data/kv.db"
            [key_value_store.cache]
            type = "redis"
            url = "redis://cache:6379"
            [sqlite_database.default]
            type = "spin"
            path = "/data/db"
            allow_attach_file = false
            [outbound_networking]
            block_networks = ["10.0.0.0/8"]
            block_private_networks = true
            [outbound_http]
            connection_pooling = true
            max_concurrent_requests = 8
            "#,
        )
        .unwrap();
        let values = BTreeMap::from([("host".to_string(), "db".to_string())]);
        let env = |prefix: &str| VariablesProvider::Env { prefix: prefix.into() };
        // Tables come in the order of their names.
        assert_eq!(config.variables_providers, [env("SPIN_VARIABLE"), VariablesProvider::Static(values), env("APP")]);
        assert_eq!(config.key_value_stores["default"], KeyValueStore::default());
        assert_eq!(config.key_value_stores["foo"], KeyValueStore::File { path: Some("/data/kv.db".into()) });
        assert_eq!(config.key_value_stores["cache"], KeyValueStore::Redis { url: "redis://cache:6379".into() });
        assert_eq!(config.databases["default"], Database { path: Some("/data/db".into()) });
        assert_eq!(config.instance_memory, Some(64 << 20));
        assert_eq!((config.blocked_networks, config.block_private_networks), (vec!["10.0.0.0/8".into()], true));
        assert_eq!(RuntimeConfig::parse("").unwrap(), RuntimeConfig::default());
    }

    #[test]
    fn what_hearth_does_not_do_is_refused_by_name() {
        for (text, wrong) in [
            ("x = ", "/runtime-config.toml: "),
            ("wagi = true", "the key \"wagi\" is unknown"),
            ("[llm_compute]\ntype = \"remote_http\"", "llm_compute: Hearth has no language models"),
            ("[[client_tls]]\ncomponent_ids = []", "client_tls: Hearth sends no client certificates"),
            ("[[variables_provider]]\ntype = \"vault\"", "variables_provider: the type \"vault\" is not supported"),
            ("[[config_provider]]\ntype = \"azure_key_vault\"", "config_provider: the type \"azure_key_vault\""),
            ("[[variables_provider]]\nvalues = {}", "variables_provider: the key \"type\" is missing"),
            ("[[variables_provider]]\ntype = \"env\"\ndotenv_path = \".env\"", "dotenv_path is not supported"),
            ("[key_value_store.a]\ntype = \"azure_cosmos\"", "key_value_store.a: the type \"azure_cosmos\""),
            ("[key_value_store.a]\ntype = \"aws_dynamo\"", "Hearth supports spin and redis"),
            ("[key_value_store.a]\ntype = \"redis\"", "key_value_store.a: missing field `url`"),
            ("[key_value_store.a]\ntype = \"spin\"\nfoo = 1", "key_value_store.a: unknown field `foo`"),
            ("[sqlite_database.a]\ntype = \"turso\"", "Hearth supports spin"),
            (
                "[sqlite_database.a]\ntype = \"libsql\"\nurl = \"http://a:8080\"\ntoken = \"t\"",
                "sqlite_database.a: the type \"libsql\" is not supported",
            ),
            ("[sqlite_database.a]\ntype = \"spin\"\nallow_attach_file = true", "allow_attach_file is not supported"),
            ("max_instance_memory = \"1Gi\"", "max_instance_memory: invalid type"),
            ("[outbound_http]\nx = 1", "outbound_http: unknown field `x`"),
            ("[outbound_networking]\nallow = []", "outbound_networking: unknown field `allow`"),
            ("[outbound_pg]\nx = 1", "the key \"outbound_pg\" is unknown"),
        ] {
            let error = RuntimeConfig::parse(text).unwrap_err().to_string();
            assert!(error.contains(wrong) && error.starts_with(PATH) && !error.contains('\n'), "{text}: {error}");
        }
    }
}
