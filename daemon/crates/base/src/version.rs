//! The versions of Hearth and wasmtime in this build.

/// The version of Hearth.
pub const HEARTH: &str = env!("CARGO_PKG_VERSION");

/// The version of wasmtime in the lock file, as `48.0.1`.
pub const WASMTIME: &str = env!("WASMTIME_VERSION");
