//! Generations: daemons that follow each other on one state directory during upgrades.
//!
//! * [`directory`]: the state directory: a directory and a lock for each generation, and the leader's lock.
//! * [`wire`]: the messages between generations, and the descriptors that one hands over.
//! * [`client`]: asking a generation for its state or its metrics, and taking over from it.
//! * [`stop`]: ending all daemons of a state directory; whether systemd restarts or stops the unit.

pub mod client;
pub mod directory;
pub mod stop;
pub mod wire;
