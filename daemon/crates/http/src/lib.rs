//! HTTP components: a listener in the pod's network, and an instance for each request. Requests that guests send are
//! here, too.
//!
//! ```text
//!  Start ─▶ listener::bind ─▶ accept::serve ──▶ connection: hyper for each client, on the scheduler
//!             in the pod's      on the `http` threads       │ head of a request
//!             network                                       ▼
//!                              request::answer: refuse, or wait for a turn and a place (admission, places)
//!                                                           │ a guest of its own, next on the same thread
//!                                                           ▼
//!         isolated (0.2) or shared (0.3): instance ─▶ handle(request, response) ─▶ response: body, streamed ─▶ store dropped
//! ```
//!
//! Promises:
//!
//! * Each request gets an instance made of the best code there is at that moment: a service whose module was never compiled
//!   begins on code of the baseline compiler ([`LiveProgram`](hearth_wasm::engine::LiveProgram)).
//! * At rest, a service is its sockets, its open root and one task. Its requests share nothing but the container: its
//!   files, its memory limit, its CPU time (they are members of its guest's group, see
//!   [`Guest::part`](hearth_wasm::scheduler::Guest::part)), its stdio, its pauses and its end. So do its connections: the
//!   work of the daemon for their clients is the container's CPU time.
//! * SIGTERM and SIGINT close the port, let requests under way finish and then end the container with 0
//!   ([`requests::Requests::drain`]); any other fatal signal ends everything at once.
//! * No exchange fails in silence: [`endings`] has the table of all ways in which one ends otherwise than well. A response
//!   that is cut never looks whole. A client that goes away ends its guest.
//! * No client and no service keeps the others out: [`hearth_wasm::places`] are shared fairly, and clients have a least
//!   [`client_rate`].
//!
//! Files:
//!
//! * `tls/`: TLS at the port: the certificate of a container, handshakes; its page lists its files.
//! * `file_stamp.rs`: whether a file of a container has changed since it was read.
//! * `messages.rs`: messages for components of an application, each with an instance of its own.
//! * `context.rs`: the context that all services of the daemon share.
//! * `site.rs`: which component answers a request: the only one, or one of an application by its routes.
//! * `component.rs`: one component that answers requests.
//! * `calls.rs`: requests of one component to another of its application, and hosts that an application does not allow.
//! * `service.rs`: one container that serves, from its environment to its bound port.
//! * `listener.rs`: which port a service has (`HEARTH_HTTP_PORT`), its backlog, and binding it.
//! * `accept.rs`: accepting clients, and closing the port when the service drains.
//! * `connection.rs`: one client's connection, HTTP/1.1 or HTTP/2, and its end in a drain.
//! * `activity.rs`: idle connections and slow clients.
//! * `flushes.rs`: the cut of a response waits until its bytes so far have been written.
//! * `request.rs`: one request until its response's head: checks, 501, 417, 400, 503.
//! * `exchange.rs`: the times of a request, for metrics, for the list of slow requests and for the access log.
//! * `access_log.rs`: the access log: its forms, bounds and escapes.
//! * `trace_context.rs`: `traceparent` of a request, which the guest's own requests carry on.
//! * `request_body.rs`: a request's body, and a client that sends it too slowly.
//! * `request_guard.rs`: a client that goes away ends its guest.
//! * `request_state.rs`: the state that the client's side and the guest's side share; the time that a guest has.
//! * `admitted_request.rs`: a request on its way to its guest.
//! * `admission.rs`: requests at once of a container, and requests that wait (`tenant.http_requests_max`, `http.queued_max`).
//! * `client_rate.rs`: the least transfer rate of clients (`http.least_bytes_per_second`).
//! * `isolated.rs`: a request of a component of WASI 0.2 or of Spin's first SDKs, and the time-out of its guest.
//! * `whole.rs`: a request of a component of Spin's first SDKs, with whole bodies.
//! * `shared.rs`: a request of a WASI 0.3 component, and the guest that may have several.
//! * `shared_instances.rs`: which instance of a 0.3 component a request goes to; time-outs of its requests.
//! * `spare.rs`: the instance for the next request of a busy 0.2 service, made in advance.
//! * `instance.rs`: making a request's instance; no memory for one.
//! * `endings.rs`: time-outs, traps, cut responses: the client's answer, the counters, the line in the container's log.
//! * `refused.rs`: answers of the daemon's own.
//! * `response.rs`: a response's body, its length, and when it is cut.
//! * `requests.rs`: the requests under way, for the code that pauses, limits, drains or kills the container.
//! * `counts.rs`: metrics of requests.
//! * `lines.rs`: stdout and stderr of requests, in whole lines.
//! * `daemon_notes.rs`: notes of the daemon in the container's stderr, at a bounded rate.
//! * `outgoing/`: requests that guests send (`wasi:http/outgoing-handler` and `client`); its page lists its files.

#![forbid(unsafe_code)]

pub mod accept;
pub mod access_log;
pub mod activity;
pub mod admission;
pub mod admitted_request;
pub mod calls;
pub mod client_rate;
pub mod component;
pub mod connection;
pub mod context;
pub mod counts;
pub mod daemon_notes;
pub mod endings;
pub mod exchange;
pub mod file_stamp;
pub mod flushes;
pub mod instance;
pub mod isolated;
pub mod lines;
pub mod listener;
pub mod messages;
pub mod outgoing;
pub mod refused;
pub mod request;
pub mod request_body;
pub mod request_guard;
pub mod request_state;
pub mod requests;
pub mod response;
pub mod service;
pub mod shared;
pub mod shared_instances;
pub mod site;
pub mod spare;
pub mod tls;
pub mod trace_context;
mod whole;

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_names_every_file() {
        hearth_testing::page_names_every_file(env!("CARGO_MANIFEST_DIR"));
    }
}
