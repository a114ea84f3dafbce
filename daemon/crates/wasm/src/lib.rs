//! The engine, the module store and the guests.
//!
//! * [`engine`]: wasmtime's engines and prepared programs.
//! * [`modules`]: from what a bundle names to a prepared program.
//! * [`wasi`]: the world a guest sees.
//! * [`files`]: how a guest's paths are followed.
//! * [`resolver`]: how guests' names are looked up; [`names`]: the interface of WASI for it.
//! * [`slots`]: how many guests may have an instance at once.
//! * [`instantiate`]: the one way to an instance.
//! * [`command`]: a command's life, from the instance to the exit code.
//! * [`runtime`]: what all guests share.
//! * [`scheduler`]: the threads guests run on, and the poll wrapper around each of them.

#![deny(unsafe_code)]

pub mod command;
pub mod engine;
pub mod files;
pub mod instantiate;
pub mod modules;
pub mod names;
pub mod resolver;
pub mod runtime;
pub mod scheduler;
pub mod slots;
pub mod wasi;
