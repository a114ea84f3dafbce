//! The part of the OCI runtime spec that a Wasm task uses, checked: `config.json` becomes a [`TaskSpec`], the process of
//! an exec a [`ProcessSpec`], the resources of an Update call a [`ResourceUpdate`].
//!
//! * [`spec`]: the values: process, user, mounts, limits, namespaces, names in CRI.
//! * [`parse`]: `config.json` and an exec's process, from JSON to the values.
//! * [`update`]: new limits of a running task.
//!
//! The parser is our own, and not that of the crate oci-spec, because it lies on the path of every start and skips most
//! of the file: CRI writes hundreds of seccomp rules, devices and masked paths, which mean nothing to a guest.
//! `benches/spec.rs` compares the two: a CRI file of 9.5 kB takes 52 µs here and 123 µs with oci-spec, before any check
//! (both on the same busy machine with two cores).

pub mod parse;
pub mod spec;
pub mod update;

pub use spec::{
    Capabilities, Cpu, CriNames, NetworkNamespace, ProcessSpec, Role, Scope, Scopes, SpecMount, TaskSpec, User,
};
pub use update::ResourceUpdate;

#[cfg(test)]
mod tests;
