//! Spin applications: several components in one container, with routes, files and grants of their own.
//!
//! ```text
//!  Create ─▶ recognised by its layers or by /spin.toml ─▶ LoadedApplication: components compiled, grants, files in the root
//!  Start ──▶ task::process::application: the port is bound, commands run; the first that ends ends the container
//! ```
//!
//! The crate `hearth-spin` describes an application; `hearth-http` serves its requests. Nothing of the
//! container's root is visible to a component except the directories that its manifest names.
//!
//! * `loaded.rs`: an application whose components are loaded, ready for Start.
//! * `handlers.rs`: which of its handlers a component has to export for its triggers.
//! * `files.rs`: the files of pushed components, written into the container's root.
//! * `access.rs`: the access of each component beyond its files.
//! * `subscriptions.rs`: the channels of Redis servers whose messages components take.
//! * `other_hosts.rs`: images of hosts that Hearth does not replace.

pub mod access;
pub mod files;
pub mod handlers;
pub mod loaded;
pub mod other_hosts;
pub mod subscriptions;
