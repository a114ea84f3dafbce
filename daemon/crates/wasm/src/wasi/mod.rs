//! The WASI that a guest sees: wasmtime-wasi's own, with the calls replaced that Hearth does otherwise.
//!
//! File calls run on the guest's own worker thread, inside the poll: that is the fastest form, and
//! the only one in which the thread's credentials and namespace apply.
//!
//! * `linkers.rs`: which functions core modules and components can import.
//! * `preview1.rs`: preview 1's `poll_oneoff`, which must not sleep on a worker, and `proc_exit` with any status.
//! * `http_types.rs`: `wasi:http`'s bound on methods, and the error code of a response body that breaks off.
//! * `sockets.rs`: counts a component's sockets against the container's descriptors; the addresses it may use.
//! * `tests.rs`: guests that reach these bounds.

mod http_types;
pub mod linkers;
pub(crate) mod preview1;
pub(crate) mod sockets;

#[cfg(test)]
mod tests;
