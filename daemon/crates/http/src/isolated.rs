//! A request of a component of WASI 0.2 or of Spin's first SDKs: its guest, and an instance for this request alone.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::Request;
use tokio::sync::oneshot;
use wasmtime::Store;
use wasmtime::component::Resource;
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::p2::types::{HostIncomingRequest, HostResponseOutparam};

use crate::admitted_request::AdmittedRequest;
use crate::component::Component;
use crate::endings::GuestOutcome;
use crate::instance::another_world;
use crate::refused::{BUSY, ENDING, Refused};
use crate::request_body::RequestBody;
use crate::request_guard::{RequestGuard, StartedRequest};
use crate::request_state::{FailUnlessDone, RequestState, SendHead, WrittenBody};
use crate::service::Service;
use crate::spare::{Ready, Spare};
use crate::trace_context::{CurrentTrace, TraceContext};
use crate::whole;
use hearth_base::error::Error;
use hearth_wasm::instantiate::GuestInstance;
use hearth_wasm::scheduler::{Guest, kept_part_first};
use hearth_wasm::slots::{Placed, Slot};
use hearth_wasm::state::ComponentState;

/// Starts a guest for a request.
///
/// # Errors
/// The pool of instances is full, or the container has ended.
pub fn serve_isolated(service: &Arc<Service>, admitted: AdmittedRequest) -> Result<StartedRequest, Refused> {
    let AdmittedRequest { component, request, secure, trace, send_head, name, admitted } = admitted;
    let scheme = if secure { Scheme::Https } else { Scheme::Http };
    let program = component.parts.program.now();
    let (guest, source) = match service.container.requests.spare.take(&program) {
        Some(ready) => (ready.guest.clone(), Source::Spare(ready)),
        None => {
            let slot = service.runtime.slots.take(&program, &service.container.tenant).map_err(|_| BUSY)?;
            (Arc::new(Guest::part(&service.container.guest)), Source::New((program, slot)))
        }
    };
    let member = service.container.requests.begin(&guest).ok_or(ENDING)?;
    let state = Arc::new(RequestState::default());
    // From here on, the guest ends when its client leaves.
    let guard = RequestGuard::new(Some(guest.clone()), state.clone(), None);
    let (tell, answer) = oneshot::channel();
    let owners = (service.clone(), component);
    let future = handle(owners, guest.clone(), (source, trace), (scheme, request), send_head, state.clone());
    let ended = {
        let service = service.clone();
        move |end| {
            let _ = tell.send(service.guest_ended(end, !state.has_head(), || name.to_string()));
            drop(admitted);
            // Last: the container may end with it.
            drop(member);
        }
    };
    service.runtime.scheduler.spawn_part(guest, future, ended);
    Ok(StartedRequest { guard, answer })
}

/// Where the instance of a request comes from.
enum Source {
    /// It was made in advance.
    Spare(Box<Ready>),
    /// It has to be made.
    New(Placed),
}

impl Source {
    /// The instance, whose own requests belong to `trace` from now on.
    ///
    /// # Errors
    /// The outcome of a guest that has no instance.
    async fn instance(
        self,
        service: &Arc<Service>,
        component: &Arc<Component>,
        guest: &Arc<Guest>,
        trace: Option<TraceContext>,
    ) -> Result<(Slot, GuestInstance), GuestOutcome> {
        match self {
            Source::Spare(ready) => {
                ready.trace.set(trace);
                Ok((ready.slot, ready.instance))
            }
            Source::New(placed) => service.instance(component, guest, placed, CurrentTrace::of(trace.as_ref())).await,
        }
    }
}

/// The future of the guest.
async fn handle(
    (service, component): (Arc<Service>, Arc<Component>),
    guest: Arc<Guest>,
    (source, trace): (Source, Option<TraceContext>),
    (scheme, request): (Scheme, Request<RequestBody>),
    send_head: SendHead,
    state: Arc<RequestState>,
) -> GuestOutcome {
    let (slot, instance) = match source.instance(&service, &component, &guest, trace).await {
        Ok(made) => made,
        Err(outcome) => return outcome,
    };
    let failing = state.clone();
    let mut failed = FailUnlessDone::new(move |reason| failing.fail(reason));
    let timeout = Duration::from_millis(service.http.config().request_timeout_ms);
    let (called, store) = match instance {
        GuestInstance::Service(mut store, proxy) => {
            let (request, out) = match pushed(&mut store, scheme, request, send_head, &state) {
                Ok(pushed) => pushed,
                Err(outcome) => return outcome,
            };
            state.call();
            let call = proxy.wasi_http_incoming_handler().call_handle(&mut store, request, out);
            (within(&state, timeout, call).await, store)
        }
        GuestInstance::SpinService(mut store, component) => {
            let answer = async {
                let response = whole::answer(&mut store, &component, request, &state).await?;
                state.begin_body();
                // Its client may be gone.
                let _ = send_head.send(Ok(response));
                Ok(())
            };
            (within(&state, timeout, answer).await, store)
        }
        _ => return another_world(),
    };
    let outcome = called.map_or(GuestOutcome::TooSlow, |called| service.outcome(called, &store));
    match outcome.cuts() {
        Some(reason) => failed.because(reason),
        None => {
            failed.done();
            // The client waits for its response, and not for the end of the instance.
            kept_part_first().await;
        }
    }
    drop(failed);
    drop(store);
    drop(slot);
    if outcome.cuts().is_none() {
        Spare::make(&service, &component).await;
    }
    outcome
}

/// The request and the place of its response as handles of the guest.
///
/// # Errors
/// The outcome of a guest that has none.
fn pushed(
    store: &mut Store<ComponentState>,
    scheme: Scheme,
    request: Request<RequestBody>,
    send_head: SendHead,
    state: &Arc<RequestState>,
) -> Result<(Resource<HostIncomingRequest>, Resource<HostResponseOutparam>), GuestOutcome> {
    let in_body = state.clone();
    let push = || {
        let mut http = store.data_mut().http();
        let request = http.new_incoming_request(scheme, request)?;
        let out = http.new_response_outparam_from_callback(move |head| {
            in_body.begin_body();
            // Its client may be gone.
            let head = head.map(|response| response.map(WrittenBody::P2)).map_err(|code| format!("{code:?}"));
            let _ = send_head.send(head);
        })?;
        Ok::<_, wasmtime::Error>((request, out))
    };
    push().map_err(|error| {
        let text = format!("the request cannot be passed to the guest: {error:#}");
        GuestOutcome::NotStarted(Error::Internal(text))
    })
}

/// The result of a call; none if it takes too long.
async fn within<T>(state: &RequestState, timeout: Duration, call: impl Future<Output = T>) -> Option<T> {
    let mut call = pin!(call);
    let mut time = pin!(tokio::time::sleep(timeout));
    loop {
        tokio::select! {
            biased;
            called = &mut call => return Some(called),
            () = &mut time => match state.more_time(Instant::now(), timeout) {
                Some(more) => time.as_mut().reset(tokio::time::Instant::now() + more),
                None => return None,
            },
        }
    }
}
