//! The vocabulary that all layers of Hearth share: the configuration, errors, container specs, and the messages on its
//! sockets. It starts no thread and holds no container; `hearthctl` uses it as the daemon does.
//!
//! * [`bundle`]: fields of `config.json` that a Wasm task uses; an exec's process; the limits of an Update call.
//!   * `bundle/spec.rs`: process, user, mounts, limits, namespaces and CRI names as values.
//!   * `bundle/parse.rs`: `config.json` to these values; errors name the field.
//!   * `bundle/update.rs`: new limits of memory and CPU time for a running task.
//! * [`cell`]: the messages between the daemon and the processes that run one pod each.
//! * [`command_line`]: `hearthd`'s flags, its manual page, and flags over the configuration file.
//! * [`config`]: the configuration file: reading, checking, the default file; a file for each section.
//! * [`destinations`]: which servers a component may reach: allowed hosts, and networks that are blocked.
//! * [`digest`]: the SHA-256 digest that names a module.
//! * `env.rs`: the variables of a container's environment.
//! * [`error`]: errors by the caller's possible reaction; their ttrpc and gRPC codes.
//! * [`faults`]: points at which tests kill the daemon.
//! * [`generation`]: daemons that follow each other during an upgrade.
//!   * `generation/directory.rs`: the state directory, its locks, the remains of dead daemons.
//!   * `generation/wire.rs`: the messages between generations, and descriptors handed over.
//!   * `generation/client.rs`: asking a generation, and taking its sockets over.
//!   * `generation/stop.rs`: ending all daemons of a state directory; a stop told from a restart.
//! * [`isolation`]: which process runs a pod's guests, and the settings that decide it.
//! * [`namespace`]: a namespace of containerd, which calls cannot swap with an id.
//! * `operator/mod.rs`: the questions of `hearthctl` and the daemon's answers.
//! * `operator/application.rs`: the answer about a Spin application: triggers, components, stores.
//! * `operator/modules.rs`: the answers about modules: known, compiling, refused, checked, removed.
//! * [`proc_stat`]: the fields of `/proc/PID/stat`: state, CPU time, threads, memory.
//! * [`rate`]: a limit of events per second, which counts the events beyond it.
//! * [`tenant`]: the budget of one container: limits of the things that it takes from the node, by kind.
//!   * `tenant/kind.rs`: the kinds, their names and their keys in the configuration.
//!   * `tenant/waiting.rs`: waiting until a container may have one more.
//! * [`text`]: text of guests and images, cut and escaped for logs, errors and terminals.
//! * [`time`]: a point in time as seconds since 1970.
//! * [`units`]: bytes, durations and ages as text for people.
//! * [`version`]: the versions of Hearth and wasmtime in this build.
//! * [`wanted`]: the program that a bundle asks for, before it is looked up.
#![forbid(unsafe_code)]

pub mod bundle;
pub mod cell;
pub mod command_line;
pub mod config;
pub mod destinations;
pub mod digest;
pub mod env;
pub mod error;
pub mod faults;
pub mod generation;
pub mod isolation;
pub mod namespace;
pub mod operator;
pub mod proc_stat;
pub mod rate;
pub mod tenant;
pub mod text;
pub mod time;
pub mod units;
pub mod version;
pub mod wanted;

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_names_every_file() {
        hearth_testing::page_names_every_file(env!("CARGO_MANIFEST_DIR"));
    }
}
