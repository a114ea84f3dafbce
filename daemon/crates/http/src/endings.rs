//! The ends of exchanges that fail: the client's answer, the counters, and the reports. Every such end
//! goes through this file.
//!
//! In the column "counted", `5xx` and so on are codes of `hearth_http_requests_total`, `refused` is
//! `hearth_http_requests_refused_total`, `trap` is `hearth_http_traps_total`, and `cut NAME` is
//! `hearth_http_responses_cut_total{reason="NAME"}`. A note is one line in the container's stderr, with method and path;
//! "listed" means that `hearthctl traps` and the status page show it, with its [`EndKind`].
//!
//! | End | The client gets | Counted | Told |
//! |---|---|---|---|
//! | the guest traps or exits with an error before the head | 500 | 5xx, trap | note, listed: `Request` |
//! | the guest returns without a response, or with an error code | 500 | 5xx | note, listed: `Response` |
//! | the guest of a message returns an error | | | note, listed: `Response` |
//! | the guest is too slow before the head | 504 | 5xx | note, listed: `TimeOut` |
//! | an instance cannot be made: its code or its root | 500 | 5xx | note, listed: `NotStarted` |
//! | an instance cannot be made: the container has no memory for it | 503 | 5xx, refused | note |
//! | the queue is full, or the pool of instances is | 503 | 5xx, refused | |
//! | the wait for a turn or a place took too long | 503 | 5xx, refused | |
//! | the request's head is too large, or is no HTTP | 431, 400 | 4xx (HTTP/1) | |
//! | the guest makes fields over 64 KiB | 500 (0.2), the guest's answer (0.3) | as a trap (0.2) | as a trap (0.2); the call fails with `size-exceeded` (0.3) |
//! | the guest traps after the head | head, part of the body | 2xx, trap, cut `trap` | note, listed: `Request` |
//! | the guest drops its body unfinished | head, part of the body | 2xx, cut `dropped` | note, listed: `Response` |
//! | the body is shorter than its Content-Length | head, part of the body | 2xx, cut `length` | note, listed: `Response` |
//! | the body is longer than its Content-Length | a whole response | 2xx | its write fails with `HTTP-response-body-size` |
//! | another request of the instance is too slow, after this one's head | head, part of the body | 2xx, cut `time_out` | note, listed: `TimeOut` |
//! | the guest goes on for too long after the response | a whole response | 2xx | note, listed: `TimeOut` |
//! | the container is killed, or the grace period of a drain ends | nothing, or part of the body | cut `killed` | |
//! | the client goes away, or is idle for too long | | cut `client` | |
//! | the client takes the body too slowly | part of the body | 2xx, cut `slow_client` | note |
//! | the client sends the body too slowly | the guest's answer | | note; the guest's read fails with `connection-read-timeout` |
//!
//! A response is cut by closing the connection (HTTP/1) or by resetting the stream (HTTP/2), after
//! its head and its body so far have been written to the client.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use wasmtime::Store;
use wasmtime_wasi::I32Exit;

use crate::refused::{BUSY, ENDING, FAILED, NO_MEMORY, NO_RESPONSE, Refused, TOO_SLOW};
use crate::service::Service;
use hearth_base::error::Error;
use hearth_base::operator::EndKind;
use hearth_observe::logging;
use hearth_observe::metrics::CutReason;
use hearth_os::identity;
use hearth_wasm::command::trap_text;
use hearth_wasm::scheduler::GuestEnd;
use hearth_wasm::state::ComponentState;

/// How the guest of one request, or of several, came to its end by itself.
#[derive(Debug)]
pub enum GuestOutcome {
    /// It returned.
    Returned,
    /// It trapped, or exited with an error; the text.
    Trapped(String),
    /// It returned an error of its own; the text.
    Refused(String),
    /// It took too long.
    TooSlow,
    /// The node has no room for its instance.
    Full,
    /// The container has no memory for its instance; the container's limit, in bytes.
    NoMemory(u64),
    /// There was no instance for another reason.
    NotStarted(Error),
}

impl GuestOutcome {
    /// Why the bodies that its end cuts are cut; none if it cuts none.
    pub fn cuts(&self) -> Option<CutReason> {
        match self {
            GuestOutcome::Returned => None,
            GuestOutcome::TooSlow => Some(CutReason::TimeOut),
            _ => Some(CutReason::Trap),
        }
    }
}

/// A guest's end as it is told.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    /// For the list of ends; none if it is not listed.
    kind: Option<EndKind>,
    /// For the container's stderr; none if there is nothing to say.
    note: Option<String>,
    /// The answer to requests without a head.
    refused: Refused,
}

/// The words for a guest's end. `owes_a_head`: whether a request of it waits for its response's head.
fn told(end: GuestEnd<GuestOutcome>, owes_a_head: bool, timeout_ms: u64) -> Told {
    let listed = |kind, note: String, refused| Told { kind: Some(kind), note: Some(note), refused };
    let silent = |refused| Told { kind: None, note: None, refused };
    match end {
        GuestEnd::Completed(GuestOutcome::Returned) if owes_a_head => {
            listed(EndKind::Response, "the guest returned without a response".into(), NO_RESPONSE)
        }
        GuestEnd::Completed(GuestOutcome::Returned) => silent(NO_RESPONSE),
        GuestEnd::Completed(GuestOutcome::Full) => silent(BUSY),
        GuestEnd::Completed(GuestOutcome::NoMemory(limit)) => {
            let note = format!("out of memory: no room for another instance, the container's limit is {limit} bytes");
            Told { kind: None, note: Some(note), refused: NO_MEMORY }
        }
        GuestEnd::Completed(GuestOutcome::TooSlow) => {
            listed(EndKind::TimeOut, format!("took over {timeout_ms} ms (http.request_timeout_ms)"), TOO_SLOW)
        }
        GuestEnd::Completed(GuestOutcome::Refused(text)) => listed(EndKind::Response, text, FAILED),
        GuestEnd::Completed(GuestOutcome::NotStarted(error)) => listed(EndKind::NotStarted, error.to_string(), FAILED),
        GuestEnd::Completed(GuestOutcome::Trapped(text)) => listed(EndKind::Request, text, FAILED),
        GuestEnd::Killed => silent(ENDING),
        GuestEnd::Panicked(text) => {
            listed(EndKind::Panic, format!("hearthd failed in a host function: {text}"), FAILED)
        }
    }
}

impl Service {
    /// How a guest's calls ended.
    pub(crate) fn outcome(&self, called: wasmtime::Result<()>, store: &Store<ComponentState>) -> GuestOutcome {
        let Err(error) = called else { return GuestOutcome::Returned };
        match error.downcast_ref::<I32Exit>() {
            Some(I32Exit(0)) => GuestOutcome::Returned,
            Some(I32Exit(code)) => GuestOutcome::Trapped(format!("the guest exited with {code}")),
            None if store.data().limits.is_starved() => {
                let limit = self.container.memory.limit();
                let text = trap_text(&error);
                GuestOutcome::Trapped(format!("out of memory: the container's limit is {limit} bytes\n{text}"))
            }
            None => GuestOutcome::Trapped(trap_text(&error)),
        }
    }

    /// Tells of a guest's end, and gives the answer to its requests without a head. `name`: methods and paths of its
    /// requests, for messages. Not for threads that poll a guest: this thread becomes the daemon's again.
    pub(crate) fn guest_ended(
        &self,
        end: GuestEnd<GuestOutcome>,
        owes_a_head: bool,
        name: impl FnOnce() -> String,
    ) -> Refused {
        if !matches!(end, GuestEnd::Completed(GuestOutcome::Returned)) {
            // The daemon itself writes the note and the log.
            identity::restore();
        }
        if let GuestEnd::Panicked(text) = &end {
            let about = &self.container.about;
            tracing::error!(target: logging::GUEST, namespace = %about.namespace, task = %about.id, panic = %text, "a host function panicked; only this request ends");
        }
        let Told { kind, note, refused } = told(end, owes_a_head, self.http.config().request_timeout_ms);
        if let Some(kind) = kind {
            self.list(kind, refused.status.as_u16(), note.as_deref().unwrap_or_default());
        }
        if let Some(note) = note {
            self.notes.write(&self.container.stdio, &format!("{}: {note}", name()));
        }
        refused
    }

    /// Tells of an error code that the guest gave instead of a response, and gives the answer.
    pub(crate) fn answered_with_error(self: &Arc<Self>, name: &Arc<str>, code: &str) -> Refused {
        self.tell_later(name, FAILED.status.as_u16(), format!("the guest answered with the error {code}"));
        FAILED
    }

    /// Counts a response that is cut, and tells of it where its guest's end does not. `text` says how it was cut.
    pub(crate) fn response_cut(self: &Arc<Self>, reason: CutReason, name: &Arc<str>, status: u16, text: &str) {
        self.counts.cut(reason);
        match reason {
            CutReason::Dropped | CutReason::Length => {
                self.tell_later(name, status, format!("the response was cut: {text}"));
            }
            CutReason::SlowClient => self.note_later(name, format!("the response was cut: {text}")),
            CutReason::Trap | CutReason::TimeOut | CutReason::Killed | CutReason::Client => {}
        }
    }

    /// Counts an exchange that ended before its response's end because of its client, or with the container.
    pub(crate) fn client_gone(&self) {
        let killed = self.container.requests.are_closed();
        self.counts.cut(if killed { CutReason::Killed } else { CutReason::Client });
    }

    /// How a message calls the least rate.
    pub(crate) fn least_rate(&self) -> String {
        format!("less than {} bytes a second (http.least_bytes_per_second)", self.http.config().least_bytes_per_second)
    }

    /// Writes a note, on a thread of the daemon's own: the caller's polls a guest.
    pub fn note_later(self: &Arc<Self>, name: &Arc<str>, text: String) {
        let (service, name) = (self.clone(), name.clone());
        self.http
            .runtime
            .spawn(async move { service.notes.write(&service.container.stdio, &format!("{name}: {text}")) });
    }

    /// Writes a note of a request that a component may not send, on a thread of the daemon's own.
    pub(crate) fn note_refusal(self: &Arc<Self>, text: String) {
        let service = self.clone();
        self.http.runtime.spawn(async move { service.notes.write(&service.container.stdio, &text) });
    }

    /// Lists a response that failed and writes a note, on a thread of the daemon's own: the caller's polls a guest.
    fn tell_later(self: &Arc<Self>, name: &Arc<str>, status: u16, text: String) {
        let (service, name) = (self.clone(), name.clone());
        self.http.runtime.spawn(async move {
            let text = format!("{name}: {text}");
            service.list(EndKind::Response, status, &text);
            service.notes.write(&service.container.stdio, &text);
        });
    }

    /// Lists an end for `hearthctl traps` and the status page, logs it, and counts it if it is a trap.
    fn list(&self, kind: EndKind, status: u16, text: &str) {
        let about = &self.container.about;
        self.runtime.recent.ended(about, kind, status.into(), text);
        if matches!(kind, EndKind::Request | EndKind::Panic) {
            self.counts.trapped();
            about.traps.fetch_add(1, Ordering::Relaxed);
            tracing::info!(target: logging::GUEST, namespace = %about.namespace, task = %about.id, text, "the guest of a request trapped");
        } else {
            tracing::info!(target: logging::GUEST, namespace = %about.namespace, task = %about.id, kind = kind.name(), text, "a request ended badly");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_has_its_answer_and_its_words() {
        use GuestOutcome::{Full, NoMemory, NotStarted, Returned, TooSlow, Trapped};
        for (end, owes_a_head, kind, note, refused) in [
            (GuestEnd::Completed(Returned), false, None, None, NO_RESPONSE),
            (GuestEnd::Completed(Returned), true, Some(EndKind::Response), Some("without a response"), NO_RESPONSE),
            (GuestEnd::Completed(Trapped("why".into())), true, Some(EndKind::Request), Some("why"), FAILED),
            (
                GuestEnd::Completed(TooSlow),
                true,
                Some(EndKind::TimeOut),
                Some("over 7 ms (http.request_timeout_ms)"),
                TOO_SLOW,
            ),
            (GuestEnd::Completed(Full), true, None, None, BUSY),
            (GuestEnd::Completed(NoMemory(5)), true, None, Some("out of memory: no room"), NO_MEMORY),
            (
                GuestEnd::Completed(NotStarted(Error::Internal("no root".into()))),
                true,
                Some(EndKind::NotStarted),
                Some("no root"),
                FAILED,
            ),
            (GuestEnd::Killed, true, None, None, ENDING),
            (GuestEnd::Panicked("oops".into()), true, Some(EndKind::Panic), Some("host function: oops"), FAILED),
        ] {
            let what = format!("{end:?}");
            let told = told(end, owes_a_head, 7);
            assert_eq!((told.kind, told.refused), (kind, refused), "{what}");
            match (note, told.note) {
                (None, None) => {}
                (Some(part), Some(note)) => assert!(note.contains(part), "{what}: {note}"),
                (_, note) => panic!("{what}: {note:?}"),
            }
        }
    }

    #[test]
    fn a_guest_that_returns_cuts_no_body() {
        assert_eq!(GuestOutcome::Returned.cuts(), None);
        assert_eq!(GuestOutcome::TooSlow.cuts(), Some(CutReason::TimeOut));
        assert_eq!(GuestOutcome::Trapped(String::new()).cuts(), Some(CutReason::Trap));
    }
}
