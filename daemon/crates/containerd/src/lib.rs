//! containerd, as the daemon sees it: questions to its API, the content of its images, and the events it receives.
//!
//! ```text
//!   task, sandbox ─ Reservation::publish ─▶ EventQueue ─ ttrpc, Events/Forward ──▶ containerd
//!   Create, images ahead ─────────────────▶ Containerd ─ gRPC, bounded in time ──▶ containerd
//! ```
//!
//! Promises: an event is delivered in order and at least once, however long containerd is away; a question is bounded
//! in time and in the size of its answer; content is used only if it has its digest. Errors are told apart by kind.
//!
//! * [`client`]: containerd's version, a container's image, blobs by digest, the Wasm layer of an artifact image.
//! * `client/images.rs`: images before their first start: which are new, the program of each, where its files are.
//! * [`events`]: the queue of task events: order, retry while containerd is away, room for the events of a task.
//! * `events/message.rs`: each task event with its topic and its protobuf message.
//! * [`peer`]: one containerd that the daemon serves: its sockets, its queue of events, its client.
//! * [`time`]: points in time as protobuf timestamps, both ways.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests start programs and make mounts"))]

pub mod client;
pub mod events;
pub mod peer;
pub mod time;

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_names_every_file() {
        hearth_testing::page_names_every_file(env!("CARGO_MANIFEST_DIR"));
    }
}
