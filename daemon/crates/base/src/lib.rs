//! What every layer of Hearth speaks: the configuration, errors, the specs of containers, and the words of its
//! sockets. Nothing here knows a container at work.
#![forbid(unsafe_code)]

pub mod bundle;
pub mod command_line;
pub mod config;
pub mod digest;
pub mod error;
pub mod faults;
pub mod generation;
pub mod operator;
pub mod rate;
pub mod text;
pub mod time;
pub mod units;
pub mod version;
pub mod wanted;
