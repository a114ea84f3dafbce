//! The test harness: a private machine with a real containerd and a real `hearthd` on it, and verbs.
//!
//! ```text
//!   test process ──lifeline──▶ keeper ─▶ init          machine.rs: private pid and mount namespaces,
//!        │                       │        ├ containerd             a private /run, one directory
//!        │ nsenter               │        ├ hearthd     world.rs: both daemons, started, stopped,
//!        └───────────────────────┼──────▶ ├ ctr                   killed, started again
//!                                │        └ …           ctr.rs, events.rs, metrics.rs: what is asked
//!                                └ removes the directory when init is gone
//!
//!   A story about pods adds: a network of the machine's own (machine.rs), containerd's CRI plugin with
//!   CNI (daemons.rs), its client (cri.rs), and what kubelet would do with it (pods.rs).
//! ```
//!
//! Invariants:
//! * A test process that ends in whatever way, SIGKILL included, leaves nothing: its end of the
//!   lifeline closes, init exits, the kernel kills what is in the pid namespace and drops the mounts,
//!   and the keeper removes the directory.
//! * Nothing is shared with a containerd or a hearthd of the machine the tests run on.
//! * A wait has a deadline, and what it waited for is named when that passes.
//!
//! Reading order: [`machine`], [`process`], [`world`], [`ctr`], [`task`], [`api`], [`terminal`], [`events`],
//! [`metrics`], [`collector`], [`tls`], [`cri`], [`pods`], [`attach`], [`dns`], then what is run: [`guests`], [`components`], [`images`].
#![deny(unsafe_code)]

pub mod api;
pub mod attach;
pub mod collector;
pub mod components;
pub mod cri;
pub mod ctr;
pub mod daemons;
pub mod dns;
pub mod events;
pub mod guests;
pub mod images;
pub mod leftovers;
pub mod machine;
pub mod metrics;
pub mod paths;
pub mod plot;
pub mod pods;
pub mod process;
pub mod task;
pub mod terminal;
pub mod tls;
pub mod wait;
pub mod world;

pub use api::NewContainer;
pub use ctr::{Ctr, Output, Running};
pub use guests::Guest;
pub use images::{Image, Layer};
pub use pods::{Container, ContainerOptions, Node, Pod, PodOptions};
pub use terminal::Terminal;
pub use wait::{LONG, SHORT, eventually};
pub use world::{Imported, Runtime, World};
