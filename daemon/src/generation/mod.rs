//! One daemon after another, without the loss of a pod.
//!
//! Each process is a *generation*. Its task sockets are its own, so its tasks stay with it. The sockets that a node has
//! only once (control, metrics, sandbox controller) belong to the generation that **leads**. An upgrade starts a new
//! generation, to which they are handed over; the old one *drains*: it serves the tasks it has, and every call about
//! them, and leaves with the last.
//!
//! * `leadership.rs`: which generation leads; the hand-over, with a picture; the refusal of a second daemon.
//! * `server.rs`: the socket of a generation: status, hand-over, stop, reload, owner of a task.
//! * `asking.rs`: questions to another generation or a cell, and the wait for its end.
//! * `older.rs`: the older generations that still serve; which of them has a task; clean-up after one that died.
//! * `merge.rs`: the metrics of all generations in one text, with a label for the older ones.
//!
//! A new container of an old pod belongs to the old generation, which has the pod's sandbox. containerd from 2.0 on
//! knows the pod's task socket; for 1.x the shim asks the control socket, and the answer is the address of the
//! generation that has the sandbox.

pub mod asking;
pub mod leadership;
pub mod merge;
pub mod older;
pub mod server;
