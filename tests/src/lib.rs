//! The test harness: a private machine with a real containerd and a real `hearthd` on it, and verbs.
//!
//! ```text
//!   test process ──lifeline──▶ keeper ─▶ init          machine.rs: private pid and mount namespaces,
//!        │                       │        ├ containerd             a private /run, one directory
//!        │ nsenter               │        ├ hearthd     world.rs: both daemons, started, stopped,
//!        └───────────────────────┼──────▶ ├ ctr                   killed, started again
//!                                │        └ …           ctr.rs, events.rs, metrics.rs: queries
//!                                └ removes the directory when init is gone
//!
//!   A story about pods adds: a network of the machine's own (machine.rs), containerd's CRI plugin with
//!   CNI (daemons.rs), its client (cri.rs), and kubelet's calls to it (pods.rs).
//! ```
//!
//! Invariants:
//! * A test process leaves nothing, also after SIGKILL: its end of the lifeline closes, init exits, the kernel kills the
//!   processes in the pid namespace and drops the mounts, and the keeper removes the directory.
//! * Nothing is shared with a containerd or a hearthd of the machine the tests run on.
//! * A wait has a deadline, and names its condition when the deadline passes.
//!
//! Files, in reading order:
//!
//! * `lib.rs`: this page.
//! * `machine.rs`: a private machine: namespaces, `/run`, and a directory.
//! * `process.rs`: a process on the machine: its signals and its exit status.
//! * `world.rs`: a machine with containerd and `hearthd`, and the verbs of a story.
//! * `world/`: the end of a world: its leftovers are errors.
//! * `daemons.rs`: the paths of the daemons on a machine, and their logs.
//! * `daemons/`: how containerd and `hearthd` are configured and started.
//! * `ctr.rs`: calls of `ctr`, `hearthctl` and other programs on the machine.
//! * `task.rs`: `ctr run`, as a verb of a story.
//! * `api.rs`: containerd's gRPC API, for calls that `ctr` cannot make.
//! * `terminal.rs`: a process with a terminal, and its user.
//! * `events.rs`: containerd's events.
//! * `metrics.rs`: the daemon's metrics, fetched and parsed.
//! * `collector.rs`: an OpenTelemetry collector that keeps the spans it receives.
//! * `tls.rs`: certificates for servers of stories.
//! * `cri.rs`: a client of CRI, and the log files of containers.
//! * `pods.rs`: a node: a world whose containerd serves pods.
//! * `pods/`: a pod, and a container of it.
//! * `attach.rs`: connections to a container's stdin and to a pod's port.
//! * `dns.rs`: a name server for one story.
//! * `servers.rs`: servers of Debian's packages, for one story each.
//! * `guests.rs`: the programs that stories run.
//! * `guests/`: how the programs are built.
//! * `components.rs`: components, made from core modules or from WIT.
//! * `images.rs`: images, written as tar files of OCI layouts.
//! * `spin.rs`: Spin applications, pushed and with a manifest in an image.
//! * `plot.rs`: lines over time as an SVG.
//! * `wait.rs`: waiting for a condition, with a deadline.
//! * `paths.rs`: the paths of programs that the build makes.
//! * `leftovers.rs`: the things that tests have left on the host.
//! * `pages.rs`: the check that a folder's page lists every file of the folder.
//! * `pages/`: the check of this package.
//! * `bin/`: tools: the demo, and helpers of scripts.
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
pub mod pages;
pub mod paths;
pub mod plot;
pub mod pods;
pub mod process;
pub mod servers;
pub mod spin;
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
pub use spin::SpinApplication;
pub use terminal::Terminal;
pub use wait::{LONG, SHORT, eventually};
pub use world::{Imported, Runtime, World};
