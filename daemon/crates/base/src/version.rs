//! Which build this is.

/// Hearth's own version.
pub const HEARTH: &str = env!("CARGO_PKG_VERSION");

/// The version of wasmtime in the lock file, as `48.0.1`.
pub const WASMTIME: &str = env!("WASMTIME_VERSION");
