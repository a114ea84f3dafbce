//! What operators see of a Spin application.

use serde::{Deserialize, Serialize};

/// A Spin application, as the container has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct ApplicationInfo {
    /// Its name.
    pub name: String,
    /// Its version, if it has one.
    pub version: Option<String>,
    /// What starts its components.
    pub triggers: Vec<TriggerInfo>,
    /// The components that a trigger starts.
    pub components: Vec<ComponentInfo>,
}

/// What starts a component.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct TriggerInfo {
    /// `http`, `redis` or `command`.
    pub kind: String,
    /// The route or the channel; empty for a command, and for a component that only others call.
    pub of: String,
    /// The id of the component; the status of a response that needs none.
    pub answer: String,
}

/// A component.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct ComponentInfo {
    /// Its id.
    pub id: String,
    /// The key-value stores that it may open: label, and where the values are. Without addresses, which may have a
    /// password.
    pub key_value_stores: Vec<String>,
    /// The SQLite databases that it may open, likewise.
    pub databases: Vec<String>,
    /// The entries of `allowed_outbound_hosts`.
    pub allowed_outbound_hosts: Vec<String>,
}
