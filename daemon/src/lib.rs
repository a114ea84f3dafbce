//! hearthd.
pub mod bundle;
pub mod config;
pub mod error;
pub mod metrics;
pub mod os;
pub mod task;
pub mod wasm;
