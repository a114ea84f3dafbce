//! The stories: each on a real containerd with a real `hearthd`, on a machine of its own.
//!
//! The name of a test function is the sentence that the story proves; `deploy/pods.md` refers to it. Stories run in
//! parallel, leave nothing behind, and wait for events, never for a fixed time. A story that does not apply says so.
//!
//! `HEARTH_TEST_RUNTIME=runc` runs the stories on the stock runtime, with the same programs as native code: this shows
//! that a story itself is right. Stories about Wasm or the daemon are then skipped.
//!
//! Files:
//!
//! * `main.rs`: this page, and the macros that skip stories.
//! * `ahead.rs`: compiling ahead: an image's program is compiled when the image is imported.
//! * `artifacts.rs`: CNCF Wasm OCI artifacts.
//! * `cells.rs`: pods with a process of their own.
//! * `databases.rs`: variables and databases by the interfaces of Spin, and the servers that a component may reach.
//! * `deploy.rs`: the contents of `deploy/`, and the references of its pages to tests.
//! * `docker.rs`: Docker with Hearth as its runtime.
//! * `exec.rs`: more programs in a running task.
//! * `faults.rs`: faults of images, specs and guests are reported with the remedy.
//! * `files.rs`: the guest's file system.
//! * `http.rs`: HTTP components, served by the daemon.
//! * `http/`: parts of the same.
//! * `hygiene.rs`: tests leave nothing behind, also when they are killed.
//! * `interfaces.rs`: host interfaces beyond WASI's own: configuration and key-value stores.
//! * `kills.rs`: `hearthd` is killed at each phase of a task's life.
//! * `lifecycle.rs`: a task from create to delete.
//! * `limits.rs`: pause, CPU limits, updates, and guests that run out of memory.
//! * `load.rs`: many tasks at once.
//! * `modules.rs`: the module store.
//! * `native.rs`: native containers beside Wasm ones, in one pod.
//! * `network.rs`: a guest's sockets and names.
//! * `operator.rs`: `hearthctl`, as an operator uses it.
//! * `pod_network.rs`: pods and the network: ports, names, kernel settings and statistics.
//! * `pods.rs`: pods, as kubelet makes them.
//! * `programs.rs`: programs in C, Rust, Go and Lua: arguments, environment, exit codes.
//! * `programs/`: programs that others publish.
//! * `restarts.rs`: containerd or the daemon stops, dies, comes back.
//! * `sandboxer.rs`: pods that hearthd's own sandbox controller makes.
//! * `service.rs`: hearthd as a service of systemd.
//! * `spin.rs`: Spin applications, pushed or with a manifest in an image.
//! * `spin/`: parts of the same.
//! * `stdio.rs`: stdin, stdout, stderr: FIFOs, files and log programs.
//! * `tenants.rs`: containers at their limits, and others beside them.
//! * `traces.rs`: starts as OpenTelemetry traces.
//! * `tty.rs`: terminals.
//! * `upgrade.rs`: upgrades of hearthd without the loss of a task.
//! * `users.rs`: a guest's user and network: its rights to files and ports.
//! * `volumes.rs`: volumes of pods, as kubelet prepares them.
//! * `watch.rs`: monitoring of a node: metrics, probes, the status page, the log.
//! * `watch/`: Prometheus with the dashboards and rules, and their pictures.

mod ahead;
mod artifacts;
mod cells;
mod databases;
mod deploy;
mod docker;
mod exec;
mod faults;
mod files;
mod http;
mod hygiene;
mod interfaces;
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
mod spin;
mod stdio;
mod tenants;
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
