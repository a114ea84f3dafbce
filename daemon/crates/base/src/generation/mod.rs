//! Daemons that follow each other on one state directory: their files, their words, and how one is asked.

pub mod client;
pub mod directory;
pub mod stop;
pub mod wire;
