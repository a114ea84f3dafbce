//! `hearthd`: one daemon for each node, which runs containerd's WebAssembly tasks.
//!
//! containerd's calls on tasks end here, and so do those of operators, of Prometheus and of other generations of the
//! daemon. The crate decides what happens to a task and tells containerd of it in one order. The guests themselves are
//! made and run by the crates below (`docs/architecture.md` of the repository: all crates, the threads, and the rules
//! that hold everywhere).
//!
//! ```text
//!  containerd ──exec──▶ containerd-shim-hearth-v1 ──control socket──▶ server::control
//!      │                        │ prints the address                        │ makes
//!      │                        ▼                                           ▼
//!      └────────── Task API (ttrpc) ───── task socket of this ──────▶ server::task
//!                                         (generation, containerd,          │ Create, Start, Kill, …
//!      ▲                                   namespace)                       ▼
//!      └── events (ttrpc) ◀── hearth_containerd::events ◀────────── task::{create, process}
//!                                                                           │            │
//!                                   hearth_wasm::modules (which program) ◀──┘            │ hands over the guest
//!                                                  │ compiles in its own process         ▼
//!                                                  ▼                       hearth_wasm::scheduler
//!                                   hearth_wasm::engine (prepared) ──────▶ hearth_wasm::command, hearth_http
//! ```
//!
//! # Files
//!
//! Folders have a page of their own with a line for each file.
//!
//! * `command.rs`: arguments, configuration, exit code of the program; the subcommands of helper processes.
//! * `main.rs`: the program `hearthd`.
//! * `bin/hearthd-faults.rs`: the program with fault points, for stories that kill the daemon.
//! * `daemon/`: the daemon put together, started, drained and stopped.
//! * `serving.rs`: the parts of any process that serves tasks: the node's daemon, or a cell.
//! * `service.rs`: readiness, watchdog and stop messages to systemd.
//! * `reload.rs`: which configuration keys a reload can change, and the refusal of the others.
//! * `generation/`: hand-over from one daemon to the next without losing a pod; metrics of several generations.
//! * `server/`: the sockets: control, Task API, sandbox controller, operators' calls, metrics endpoint, page.
//! * `task/`: tasks from Create to Delete: roots, processes, execs, pods, exit status, order of events.
//! * `native/`: containers of a pod that are no WebAssembly, and run in runc's shim.
//! * `cells/`: pods that each have a process of their own, as the daemon sees them.
//! * `cell/`: the inside of such a process, and the process that it is a copy of.
//! * `spin/`: Spin applications: their components, files and handlers.
//! * `ahead/`: compiles of images before their first start.
#![forbid(unsafe_code)]

/// A request to an HTTP component makes and drops hundreds of small objects. With mimalloc it takes three quarters of the
/// processor time that it takes with glibc's allocator. (Its large pages, which the feature `no_thp` leaves out, would
/// take a service at rest from 16 to 105 KiB.)
#[global_allocator]
static ALLOCATOR: hearth_os::alloc::ExitOnFailure<mimalloc::MiMalloc> =
    hearth_os::alloc::ExitOnFailure(mimalloc::MiMalloc);

pub mod ahead;
pub mod cell;
pub mod cells;
pub mod command;
pub mod daemon;
pub mod generation;
pub mod native;
pub mod reload;
pub mod server;
pub mod service;
pub mod serving;
pub mod spin;
pub mod task;

#[cfg(test)]
mod tests {
    #[test]
    fn the_pages_name_every_file() {
        hearth_testing::page_names_every_file(env!("CARGO_MANIFEST_DIR"));
    }
}
