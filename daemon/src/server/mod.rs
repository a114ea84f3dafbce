//! The daemon's sockets: calls are decoded, made and their answers encoded; no decision about state is made here.
//!
//! * `control.rs`: the control socket: the shim's question for a task socket, and operators' calls.
//! * `framed.rs`: reading the messages of the control socket and of the generations' sockets.
//! * `task_sockets.rs`: one task socket for each containerd and namespace; too many namespaces; the version of the Task
//!   API; no new tasks during a drain.
//! * `task.rs`: the Task API: each call of containerd on a task, its answer and its metrics.
//! * `native_calls.rs`: calls of the Task API for native containers, which go to runc's shim.
//! * `sandboxer/`: the sandbox controller of containerd 2.x.
//! * `convert.rs`: between the daemon's types and those of the Task API: limits, statistics, terminal sizes.
//! * `operator_calls.rs`: the questions of `hearthctl`: status, tasks, modules, traps, warm, drain, reload.
//! * `endpoint/`: the endpoint for Prometheus, probes and browsers.

pub mod control;
pub mod convert;
pub mod endpoint;
pub mod framed;
pub mod native_calls;
pub mod operator_calls;
pub mod sandboxer;
pub mod task;
pub mod task_sockets;
