//! hearthd.
pub mod config;
pub mod containerd;
pub mod error;
pub mod events;
pub mod metrics;
pub mod os;
pub mod task;
pub mod wasm;
