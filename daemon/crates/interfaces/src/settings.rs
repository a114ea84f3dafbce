//! Environment variables that turn interfaces on for Hearth's own components.
//!
//! * `HEARTH_CONFIG`: `wasi:config`. Sources divided by commas, the first that has a key counts: `env` for the container's
//!   environment, or the absolute path of a directory, for example a ConfigMap's.
//! * `HEARTH_KEYVALUE`: `wasi:keyvalue`. Stores divided by blanks: `NAME=ADDRESS`, or an address alone for the store
//!   `default`. An address is `memory:`, `file:/path`, `redis://…` or `rediss://…`.
//! * `HEARTH_SQLITE`: Spin's SQLite databases, divided by blanks: `NAME=/path`, or a path alone for the database `default`.
//! * `HEARTH_ALLOWED_HOSTS`: the servers that the component may reach by HTTP, sockets and names, divided by blanks. It also
//!   turns on the interfaces with which a guest names a server: Spin's Redis and PostgreSQL.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use hearth_base::destinations::Destinations;
use hearth_base::env::last;
use hearth_base::error::{Error, Result};
use hearth_wasm::access::Access;

use crate::config::{Configuration, Source};
use crate::container::Container;
use crate::network::Network;
use crate::outgoing_redis::Redis;
use crate::postgres::Postgres;
use crate::sqlite::Databases;
use crate::stores::{Backend, DEFAULT, StoreError, Stores};

/// The variable that turns `wasi:config` on.
pub const CONFIG: &str = "HEARTH_CONFIG";

/// The variable that turns `wasi:keyvalue` on.
pub const KEY_VALUE: &str = "HEARTH_KEYVALUE";

/// The variable that turns SQLite databases on.
pub const SQLITE: &str = "HEARTH_SQLITE";

/// The variable with the servers that a component may reach.
pub const ALLOWED_HOSTS: &str = "HEARTH_ALLOWED_HOSTS";

/// Stores and databases that a container may name, of each kind: each can hold a connection or a file open.
const STORES_MAX: usize = 16;

type Env = [(String, String)];

/// The last value of a variable that is not empty.
fn value<'a>(env: &'a Env, name: &str) -> Option<&'a str> {
    last(env, name).map(str::trim).filter(|value| !value.is_empty())
}

/// Whether the environment asks for an interface, or limits the servers.
pub fn any(env: &Env) -> bool {
    [CONFIG, KEY_VALUE, SQLITE, ALLOWED_HOSTS].iter().any(|name| value(env, name).is_some())
}

/// The access that the environment of a container asks for.
///
/// # Errors
/// `InvalidArgument` naming the variable and what is wrong with it.
pub fn access(container: &Arc<Container>, env: &Env) -> Result<Access> {
    let mut access = Access::default();
    if let Some(text) = value(env, CONFIG) {
        access = access.with(Configuration::new(container, sources(text, env)?));
    }
    if let Some(text) = value(env, KEY_VALUE) {
        // The pod says where its own stores are: its network decides whether they are reached.
        let network = Network { container: container.clone(), destinations: Destinations::default() };
        let stores = Stores::new(&network, backends(text)?, StoreError::Missing);
        access = access.with(stores.map_err(|error| error.context(KEY_VALUE))?);
    }
    if let Some(text) = value(env, SQLITE) {
        access = access.with(Databases::new(container, databases(text)?));
    }
    if let Some(text) = value(env, ALLOWED_HOSTS) {
        access.destinations =
            Destinations::parse(text.split_whitespace()).map_err(|error| error.context(ALLOWED_HOSTS))?;
        let network = Network { container: container.clone(), destinations: access.destinations.clone() };
        access = access.with(Redis(network.clone())).with(Postgres(network));
    }
    Ok(access)
}

fn databases(text: &str) -> Result<BTreeMap<String, PathBuf>> {
    let mut databases = BTreeMap::new();
    for entry in text.split_whitespace() {
        let (name, path) = if entry.starts_with('/') { (DEFAULT, entry) } else { named(entry) };
        if !path.starts_with('/') {
            let text = format!("{SQLITE}: {entry:?} is neither NAME=/path nor an absolute path");
            return Err(Error::InvalidArgument(text));
        }
        if databases.insert(name.to_owned(), PathBuf::from(path)).is_some() {
            return Err(Error::InvalidArgument(format!("{SQLITE}: there are two databases {name:?}")));
        }
    }
    check_number(SQLITE, databases.len())?;
    Ok(databases)
}

fn check_number(variable: &str, number: usize) -> Result<()> {
    match number <= STORES_MAX {
        true => Ok(()),
        false => Err(Error::InvalidArgument(format!(
            "{variable}: it has {number} entries; at most {STORES_MAX} are possible"
        ))),
    }
}

fn sources(text: &str, env: &Env) -> Result<Vec<Source>> {
    let source = |source: &str| match source {
        "env" => Ok(Source::Values(env.iter().cloned().collect())),
        path if path.starts_with('/') => Ok(Source::Directory(PathBuf::from(path))),
        other => Err(Error::InvalidArgument(format!(
            "{CONFIG}: {other:?} is neither \"env\" nor the absolute path of a directory"
        ))),
    };
    text.split(',').map(|part| source(part.trim())).collect()
}

fn backends(text: &str) -> Result<BTreeMap<String, Backend>> {
    let mut stores = BTreeMap::new();
    for entry in text.split_whitespace() {
        let (name, address) = named(entry);
        let backend = backend(address).ok_or_else(|| {
            // The address may have a password.
            Error::InvalidArgument(format!(
                "{KEY_VALUE}: the address of the store {name:?} is none of \"memory:\", \"file:/path\", \"redis://host:port\" and \"rediss://host:port\""
            ))
        })?;
        if stores.insert(name.to_owned(), backend).is_some() {
            return Err(Error::InvalidArgument(format!("{KEY_VALUE}: there are two stores {name:?}")));
        }
    }
    check_number(KEY_VALUE, stores.len())?;
    Ok(stores)
}

/// Name and address of an entry. A `=` belongs to the address if a `:` comes before it.
fn named(entry: &str) -> (&str, &str) {
    match entry.split_once('=') {
        Some((name, address)) if !name.contains(':') => (name, address),
        _ => (DEFAULT, entry),
    }
}

fn backend(address: &str) -> Option<Backend> {
    if address == "memory:" {
        return Some(Backend::Memory);
    }
    if address.starts_with("redis://") || address.starts_with("rediss://") {
        return Some(Backend::Redis(address.to_owned()));
    }
    let path = address.strip_prefix("file:")?;
    let path = path.strip_prefix("//").filter(|rest| rest.starts_with('/')).unwrap_or(path);
    path.starts_with('/').then(|| Backend::File(PathBuf::from(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    #[test]
    fn an_interface_is_off_unless_the_environment_asks_for_it() {
        assert!(!any(&env(&[])) && !any(&env(&[("HEARTH_CONFIG", " ")])));
        assert!(any(&env(&[("HEARTH_CONFIG", "env")])) && any(&env(&[("HEARTH_KEYVALUE", "memory:")])));
    }

    #[test]
    fn a_configuration_has_sources_in_order() {
        let all = env(&[("A", "1")]);
        let values = Source::Values(all.iter().cloned().collect());
        assert_eq!(sources("/etc/app, env", &all).unwrap(), [Source::Directory("/etc/app".into()), values]);
        let error = sources("etc", &all).unwrap_err().to_string();
        assert_eq!(error, "HEARTH_CONFIG: \"etc\" is neither \"env\" nor the absolute path of a directory");
    }

    #[test]
    fn a_store_has_a_name_and_an_address() {
        let stores = backends("memory: sessions=file:/data/s.db cache=redis://u:a=b@r:1/2 more=file:///x").unwrap();
        let redis = Backend::Redis("redis://u:a=b@r:1/2".into());
        assert_eq!(
            stores.into_iter().collect::<Vec<_>>(),
            [
                ("cache".into(), redis),
                ("default".into(), Backend::Memory),
                ("more".into(), Backend::File("/x".into())),
                ("sessions".into(), Backend::File("/data/s.db".into())),
            ]
        );
        assert_eq!(named("redis://u:a=b@r"), ("default", "redis://u:a=b@r"));
        for wrong in ["nats", "file:data.db", "x=http://secret@host", "memory"] {
            let error = backends(wrong).unwrap_err().to_string();
            assert!(
                error.starts_with("HEARTH_KEYVALUE: the address of the store ") && !error.contains("secret"),
                "{error}"
            );
        }
        let files = databases("/data/x=y.db more=/data/m.db").unwrap();
        let file = |name: &str| files.get(name).and_then(|path| path.to_str());
        assert_eq!((file("default"), file("more")), (Some("/data/x=y.db"), Some("/data/m.db")));
        assert!(databases("more=data.db").is_err() && databases("/a /b").is_err());
        let many: String = (0..17).map(|number| format!("s{number}=memory: ")).collect();
        let many = backends(&many).unwrap_err().to_string();
        assert_eq!(many, "HEARTH_KEYVALUE: it has 17 entries; at most 16 are possible");
        let twice = backends("a=memory: a=memory:").unwrap_err().to_string();
        assert_eq!(twice, "HEARTH_KEYVALUE: there are two stores \"a\"");
    }
}
