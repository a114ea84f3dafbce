//! One daemon after another, without losing a pod.
//!
//! Each process is a *generation*. Its task sockets are its own, so its tasks stay with it; what there is only
//! one of on a node, the control socket and the metrics endpoint, belongs to the generation **in charge**. An
//! upgrade starts a new generation, which is handed these; the old one *drains*: it serves the tasks it has,
//! and all that comes to them, and leaves with the last.
//!
//! * [`directory`]: who lives, and what the dead have left.
//! * [`charge`]: the hand-over, with a picture.
//! * [`server`], [`client`], [`peers`]: the socket on which generations talk, and `hearthctl` to them; [`wire`]:
//!   their words.
//! * [`merge`]: the metrics of all in one text.
//!
//! A new container of an old pod belongs to the old generation, which has the pod's sandbox. containerd from 2.0
//! on has the pod's task socket and asks nobody; for 1.x our shim asks the control socket, and is given the
//! address of the generation that has the sandbox.

pub mod charge;
pub mod merge;
pub mod older;
pub mod server;
