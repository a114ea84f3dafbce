//! The inside of a cell: a process that runs one pod. It serves the pod's tasks on a task socket of its own, as a
//! generation of the daemon does, and gets its programs from the node's daemon.
//!
//! ```text
//!   hearthd ──spawn──▶ zygote: one thread, the engines made ──fork──▶ spare ──orders──▶ cell: walls, then threads
//! ```
//!
//! A cell is a copy of the zygote by fork(2): no program is executed and no engine made on the path of a pod's start. The
//! zygote has one thread, so that the copy is whole. A cell outlives its zygote and its daemon.
//!
//! * `zygote.rs`: the process that cells are copies of.
//! * `process.rs`: a cell from its orders to its end.
//! * `home.rs`: the records that a cell keeps on the node for the daemon, and its memory limit.

pub mod home;
mod process;
pub mod zygote;

use hearth_base::config::{Baseline, Config};

/// A cell's configuration, from the daemon's: fewer threads and slots, and nothing that only the daemon has.
fn configuration(mut config: Config) -> Config {
    config.engine.pool_slots = config.engine.pool_slots.min(config.isolation.pool_slots);
    config.modules.baseline = Baseline::Never;
    config.rpc.threads = 1;
    config.http.threads = 1;
    config.network.holders_warm = 0;
    config.metrics.address = String::new();
    config
}
