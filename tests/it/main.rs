//! The stories: each on a real containerd with a real `hearthd`, on a machine of its own.
//!
//! `HEARTH_TEST_RUNTIME=runc` tells those that apply to any runtime on the stock one, running the same
//! programs as native code: it shows that a story itself is right. Those about Wasm or the daemon are
//! then left out.

mod ahead;
mod artifacts;
mod deploy;
mod exec;
mod faults;
mod files;
mod http;
mod hygiene;
mod kills;
mod lifecycle;
mod limits;
mod load;
mod modules;
mod native;
mod network;
mod operator;
mod pod_network;
mod pods;
mod programs;
mod restarts;
mod sandboxer;
mod service;
mod stdio;
mod traces;
mod tty;
mod upgrade;
mod users;
mod volumes;
mod watch;

/// Leaves a story out where it makes no sense on the stock runtime.
macro_rules! only_on_hearth {
    () => {
        if hearth_tests::Runtime::chosen() != hearth_tests::Runtime::Hearth {
            return;
        }
    };
}
pub(crate) use only_on_hearth;
