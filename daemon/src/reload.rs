//! Reading the configuration again while the daemon serves: SIGHUP, `systemctl reload hearthd`, `hearthctl reload`.
//!
//! Keys that are read for each task, or when they are needed, can be changed: [`RELOADABLE`]. The others are in pools,
//! threads and sockets that have been made. If one of them has changed, the reload is refused as a whole, so that the
//! daemon always does what one file says.

use std::collections::BTreeMap;

use serde_json::Value;

use hearth_base::config::Config;

/// Keys that can be changed, and sections of which each key can.
pub const RELOADABLE: &[&str] = &[
    "log.level",
    "rpc.tasks_max",
    "rpc.namespaces_max",
    "rpc.spec_bytes_max",
    "stdio",
    "files",
    "upgrade",
    // For containers that are created from then on.
    "tenant",
    "memory",
    "ahead.namespaces",
    "ahead.snapshotter",
    "ahead.images_max",
    "ahead.unpack_timeout_ms",
    // Keys that count connections or requests: for containers that start from now on. The others: for later requests.
    "http.queued_max",
    "http.header_bytes_max",
    "http.header_timeout_ms",
    "http.request_timeout_ms",
    "http.idle_timeout_ms",
    "http.least_bytes_per_second",
    "http.outgoing_idle_max",
    "http.outgoing_idle_timeout_ms",
    "http.outgoing_connect_timeout_ms",
    "http.outgoing_first_byte_timeout_ms",
    "http.outgoing_between_bytes_timeout_ms",
    "http.tls_roots",
    "interfaces",
];

/// The keys in which two configurations differ, if all of them can be changed.
///
/// # Errors
/// One line that names the keys that need a restart.
pub fn changes(old: &Config, new: &Config) -> Result<Vec<String>, String> {
    let (old, new) = (keys(old), keys(new));
    let differs = |key: &&String| old.get(*key) != new.get(*key);
    let all: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let changed: Vec<String> = all.into_iter().filter(differs).cloned().collect();
    let fixed: Vec<&str> = changed.iter().map(String::as_str).filter(|key| !is_reloadable(key)).collect();
    if fixed.is_empty() {
        return Ok(changed);
    }
    Err(format!(
        "nothing was changed, since this needs a restart (hearthd --replace, or systemctl restart hearthd): {}",
        fixed.join(", ")
    ))
}

fn is_reloadable(key: &str) -> bool {
    RELOADABLE.iter().any(|name| key.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
}

/// Every key with its value; of a section's, `section.key`.
fn keys(config: &Config) -> BTreeMap<String, Value> {
    let mut flat = BTreeMap::new();
    // A configuration consists of numbers, texts and tables only.
    let Ok(Value::Object(sections)) = serde_json::to_value(config) else { return flat };
    for (name, value) in sections {
        match value {
            Value::Object(keys) => flat.extend(keys.into_iter().map(|(key, value)| (format!("{name}.{key}"), value))),
            value => {
                flat.insert(name, value);
            }
        }
    }
    flat
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_changed_is_named() {
        let old = Config::default();
        let mut new = old.clone();
        assert_eq!(changes(&old, &new).unwrap(), Vec::<String>::new());
        new.log.level = "debug".into();
        new.rpc.tasks_max = 7;
        new.files.volumes_max = 3;
        assert_eq!(changes(&old, &new).unwrap(), ["files.volumes_max", "log.level", "rpc.tasks_max"]);
    }

    #[test]
    fn what_cannot_is_named_and_nothing_else() {
        let old = Config::default();
        let mut new = old.clone();
        new.log.level = "debug".into();
        new.engine.pool_slots = 7;
        new.state_dir = "/elsewhere".into();
        let error = changes(&old, &new).unwrap_err();
        assert!(error.contains("restart") && error.ends_with(": engine.pool_slots, state_dir"), "{error}");
    }

    #[test]
    fn every_name_is_one() {
        let all = keys(&Config::default());
        for name in RELOADABLE {
            let is_there = all.keys().any(|key| key == name || key.starts_with(&format!("{name}.")));
            assert!(is_there, "{name}");
        }
    }
}
