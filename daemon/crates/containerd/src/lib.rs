//! containerd, as the daemon sees it: questions to its API, what its images hold, and the events it is sent.
#![forbid(unsafe_code)]

pub mod client;
pub mod events;
pub mod peer;
pub mod time;
