//! The engine, the module store and the guests.
//!
//! * [`engine`]: wasmtime's engines and prepared programs.
//! * [`modules`]: from what a bundle names to a prepared program.
//! * [`wasi`]: the world a guest sees.
//! * [`files`]: how a guest's paths are followed.
//! * [`names`]: how a guest looks up names.
//! * [`instance`]: one guest's life, from the slot to the exit code.
//! * [`scheduler`]: the threads guests run on, and the poll wrapper around each of them.

pub mod engine;
pub mod files;
pub mod instance;
pub mod modules;
pub mod names;
pub mod scheduler;
pub mod wasi;
