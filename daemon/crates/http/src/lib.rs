//! HTTP components: a listener in the pod's network, and an instance for each request.
//!
//! ```text
//!  Start ─▶ listener::bind ─▶ connection::serve ──▶ hyper for each connection, on the scheduler
//!             in the pod's      on the `http` threads,    │ head of a request
//!             network           as are epoll's news       ▼
//!                                        request::answer: refuse, or a turn and a slot
//!                                                       │ a guest of its own, next on the same thread
//!                                                       ▼
//!                    serve: instance ─▶ handle(request, response) ─▶ body, streamed ─▶ store dropped
//! ```
//!
//! What a request's instance is made of is asked anew for each: a service that nobody had compiled begins on code of
//! the baseline compiler, and goes over to better code when there is some
//! ([`LiveProgram`](hearth_wasm::engine::LiveProgram)).
//!
//! A component of WASI 0.3 may have several requests in one instance, if its pod asks for it; see [`workers`].
//!
//! At rest a service is its sockets, its open root and one task. Requests share nothing but the container: its
//! files, its memory limit, its CPU time (they are members of its guest's group, see
//! [`Guest::part`](hearth_wasm::scheduler::Guest::part)), its stdio, its pauses and its end. So do connections: what
//! their clients make the daemon do is the container's CPU time.
//!
//! How it ends: SIGTERM closes the sockets, lets requests under way finish and then ends with 0
//! ([`requests::Requests::drain`]); any other fatal signal ends all at once.
//!
//! Failure paths: what a client does wrong is answered with 4xx, by hyper for what is no HTTP; a limit
//! of ours with 503; a guest that traps or says nothing with 500, and one that is too slow with 504. Once
//! the head is out, the connection is closed instead, so that no cut response looks whole. A client
//! that goes away ends its guest.
//!
//! * [`context`]: what all services of the daemon share.
//! * [`service`]: one container that serves, from its pod's wishes to its open port.
//! * [`listener`]: which port, and binding it.
//! * [`connection`]: accepting, and one client.
//! * [`request`]: one request, from its head to its response's.
//! * [`serve`]: its guest's side.
//! * [`workers`]: instances that may have several.
//! * [`exchange`]: what the two sides know of each other.
//! * [`response`]: a response on its way to the client.
//! * [`turns`]: how many at once.
//! * [`requests`]: those under way, for who controls the container.
//! * [`counts`]: what is counted.
//! * [`lines`]: stdout and stderr in whole lines.
//! * [`notes`]: the daemon's own words in the container's stderr, at a bounded rate.
//! * [`outgoing`]: requests of guests to others.

#![forbid(unsafe_code)]

pub mod connection;
pub mod context;
pub mod counts;
pub mod exchange;
pub mod lines;
pub mod listener;
pub mod notes;
pub mod outgoing;
pub mod request;
pub mod requests;
pub mod response;
pub mod serve;
pub mod service;
pub mod turns;
pub mod workers;
