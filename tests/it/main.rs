//! The stories: each on a real containerd with a real `hearthd`, on a machine of its own.
//!
//! `HEARTH_TEST_RUNTIME=runc` runs the stories on the stock runtime, with the same programs as native code: this shows
//! that a story itself is right. Stories about Wasm or the daemon are then skipped.

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

/// Ends a story that does not apply here, and says so.
macro_rules! skip_unless {
    ($applies:expr, $reason:expr) => {
        if !$applies {
            return crate::skipped($reason);
        }
    };
}
pub(crate) use skip_unless;

/// Skips a story about Wasm or the daemon on the stock runtime.
macro_rules! only_on_hearth {
    () => {
        crate::skip_unless!(
            hearth_tests::Runtime::chosen() == hearth_tests::Runtime::Hearth,
            "it does not apply to the stock runtime"
        )
    };
}
pub(crate) use only_on_hearth;

/// Reports on stderr that a story, or the rest of it, was skipped. The line is written past the capture of the test
/// harness, which would hide it: a skipped story passes.
fn skipped(reason: &str) {
    let thread = std::thread::current();
    let line = format!("SKIPPED {}: {reason}\n", thread.name().unwrap_or("a story"));
    // One write, so that lines of several stories do not mix. Without stderr there is no reader.
    let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
}
