//! Runs WebAssembly: from the program that a bundle names, through compiled code and an instance, to the guest's end.
//!
//! The crate promises that one guest, whatever its image holds, does not stop another: modules are compiled in a
//! confined process, every poll of a guest goes through one wrapper with the guest's identity, and a guest's resources
//! are bounded.
//!
//! ```text
//!  Create ─▶ modules: find, compile, map ─▶ engine: Program ─▶ slots: Slot
//!                                                 │
//!  Start ──▶ instantiate: store, limits, WASI ◀───┘
//!                 │
//!                 ▼
//!            scheduler: polls the guest ─▶ command: exit status, or trap
//! ```
//!
//! * `modules/`: the program's file, its digest, its compile, the artifact on disk; why a second start is warm.
//! * `engine/`: wasmtime's engines and prepared programs; limits of a module's structure.
//! * `slots.rs`: how many guests have an instance at once, in the pool and beyond it.
//! * `instantiate.rs`: the only way to an instance, of commands and of HTTP requests: store, WASI, limits, entry point.
//! * `command.rs`: a command from its instance to its exit code; the status of a trap.
//! * `scheduler/`: the threads that run guests; slices, weights, quotas, kills, pauses, blocked workers.
//! * `state.rs`: the state behind a guest's imports.
//! * `host_memory.rs`: the daemon's memory behind a component's handles, measured while the guest computes.
//! * `memory.rs`: a container's memory limit, and its count of memory.
//! * `budget.rs`: the open files and sockets of one guest, counted in its container's budget.
//! * `places.rs`: the node's places for HTTP requests and look-ups of names, shared fairly by the containers.
//! * `access.rs`: servers that a component may reach, and the state of its host interfaces.
//! * `host_interface.rs`: how an interface beyond WASI's own is added, and refused where it is off.
//! * `wasi/`: the imports of guests, and the calls that differ from wasmtime-wasi's; exit statuses of `proc_exit`.
//! * `files/`: how a guest's paths are followed, read-only file systems, open files.
//! * `resolver.rs`: how many names guests look up at once, by which files and through which network.
//! * `names.rs`: the look-up of names as components of both WASI versions call it.
//! * `spin_handlers/`: handlers that components of Spin export beside those of WASI.
//! * `dial.rs`: connections of the daemon on behalf of a guest.
//! * `runtime.rs`: the parts that all guests of the daemon share.

#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests start programs and make mounts"))]

pub mod access;
pub mod budget;
pub mod command;
pub mod dial;
pub mod engine;
pub mod files;
pub mod host_interface;
mod host_memory;
pub mod instantiate;
pub mod memory;
pub mod modules;
pub mod names;
pub mod places;
pub mod resolver;
pub mod runtime;
pub mod scheduler;
pub mod slots;
pub mod spin_handlers;
pub mod state;
pub mod wasi;

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_names_every_file() {
        hearth_testing::page_names_every_file(env!("CARGO_MANIFEST_DIR"));
    }
}
