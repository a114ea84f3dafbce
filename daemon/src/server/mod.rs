//! The daemon's sockets: decode, call, encode; no decision about state is made here.
//!
//! * [`control`]: what the shim dials.
//! * [`instances`]: one task socket for each containerd instance and namespace.
//! * [`task`]: the Task API.
//! * [`sandboxer`]: the sandbox controller of containerd 2.x.
//! * [`passing`]: which of its calls are for native containers.
//! * [`convert`]: between our types and the wire's.
//! * [`operator`]: what `hearthctl` asks.
//! * [`endpoint`]: what Prometheus scrapes, and the page for people.

pub mod control;
pub mod convert;
pub mod endpoint;
pub mod operator;
pub mod passing;
pub mod sandboxer;
pub mod task;
pub mod task_sockets;
