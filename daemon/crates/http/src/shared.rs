//! A request of a WASI 0.3 component: its assignment to an [instance](crate::shared_instances) that may have others, and
//! the guest of such an instance.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc::Receiver;
use wasmtime::component::Accessor;
use wasmtime_wasi_http::p3::bindings::Service as ProxyP3;
use wasmtime_wasi_http::{WasiHttpView, p3};

use crate::admitted_request::AdmittedRequest;
use crate::component::Component;
use crate::endings::GuestOutcome;
use crate::instance::another_world;
use crate::refused::{BUSY, ENDING, Refused};
use crate::request_guard::{RequestGuard, StartedRequest};
use crate::request_state::{FailUnlessDone, RequestState, WrittenBody};
use crate::service::Service;
use crate::shared_instances::{Assignment, Job, SharedInstance, SharedInstances};
use crate::trace_context::CurrentTrace;
use hearth_wasm::instantiate::GuestInstance;
use hearth_wasm::scheduler::Guest;
use hearth_wasm::slots::Placed;
use hearth_wasm::state::ComponentState;

/// Assigns a request to an instance, and starts the instance's guest if it is new.
///
/// # Errors
/// The pool of instances is full, or the container has ended.
pub fn serve_shared(
    service: &Arc<Service>,
    instances: &SharedInstances,
    admitted: AdmittedRequest,
) -> Result<StartedRequest, Refused> {
    let state = Arc::new(RequestState::default());
    let component = admitted.component.clone();
    let Assignment { in_use, answer, new } = instances.assign(admitted, state.clone());
    let Some((shared, queue)) = new else {
        return Ok(StartedRequest { guard: RequestGuard::new(None, state, Some(in_use)), answer });
    };
    let guest = Arc::new(Guest::part(&service.container.guest));
    // An instance that takes more requests does not end with the client of one.
    let its_own = (!instances.share()).then(|| guest.clone());
    let guard = RequestGuard::new(its_own, state, Some(in_use));
    let program = component.parts.program.now();
    let slot = service.runtime.slots.take(&program, &service.container.tenant).map_err(|_| BUSY);
    let begun = slot.and_then(|slot| Ok((slot, service.container.requests.begin(&guest).ok_or(ENDING)?)));
    let (slot, member) = match begun {
        Ok(begun) => begun,
        Err(refused) => {
            instances.ended(&shared, refused);
            return Err(refused);
        }
    };
    let future = handle((service.clone(), component.clone()), guest.clone(), (program, slot), shared.clone(), queue);
    let ended = {
        let service = service.clone();
        move |end| {
            let refused = service.guest_ended(end, shared.owes_a_head(), || shared.names());
            if let Some(instances) = &component.shared {
                instances.ended(&shared, refused);
            }
            drop(member);
        }
    };
    service.runtime.scheduler.spawn_part(guest, future, ended);
    Ok(StartedRequest { guard, answer })
}

/// The future of an instance's guest, which takes requests until the instance is closed.
async fn handle(
    (service, component): (Arc<Service>, Arc<Component>),
    guest: Arc<Guest>,
    placed: Placed,
    shared: Arc<SharedInstance>,
    mut jobs: Receiver<Job>,
) -> GuestOutcome {
    let (_slot, instance) = match service.instance(&component, &guest, placed, shared.trace.clone()).await {
        Ok(made) => made,
        Err(outcome) => return outcome,
    };
    let GuestInstance::ServiceP3(mut store, proxy) = instance else { return another_world() };
    let failing = shared.clone();
    let mut failed = FailUnlessDone::new(move |reason| failing.fail(reason));
    let timeout = Duration::from_millis(service.http.config().request_timeout_ms);
    let Some(instances) = &component.shared else { return another_world() };
    let mut draining = service.container.requests.draining();
    let called = {
        // The clock is outside of the store: while a guest computes, nothing in the store moves.
        let clock = instances.clock(&shared, timeout, &mut draining);
        let calls = store.run_concurrent(async |store| calls(store, &proxy, &shared.trace, &mut jobs).await);
        tokio::select! {
            biased;
            called = calls => Some(called.flatten()),
            () = clock => None,
        }
    };
    let outcome = called.map_or(GuestOutcome::TooSlow, |called| service.outcome(called, &store));
    match outcome.cuts() {
        Some(reason) => failed.because(reason),
        None => failed.done(),
    }
    outcome
}

/// Takes jobs until there are no more and the guest has done all its work.
async fn calls(
    store: &Accessor<ComponentState>,
    proxy: &ProxyP3,
    trace: &CurrentTrace,
    jobs: &mut Receiver<Job>,
) -> wasmtime::Result<()> {
    let function = *proxy.wasi_http_handler().func_handle().func();
    let mut calls = FuturesUnordered::new();
    let mut open = true;
    poll_fn(|cx| {
        loop {
            match calls.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(()))) => continue,
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(None) | Poll::Pending => {}
            }
            // A guest may delay calls that it has no room for.
            if open && store.poll_ready_for_concurrent_call(function, cx).is_ready() {
                match jobs.poll_recv(cx) {
                    Poll::Ready(Some(mut job)) => {
                        trace.set(job.trace.take());
                        job.state.call();
                        calls.push(call(store, proxy, job));
                        continue;
                    }
                    Poll::Ready(None) => open = false,
                    Poll::Pending => {}
                }
            }
            if !calls.is_empty() || store.poll_no_interesting_tasks(cx).is_pending() || open {
                return Poll::Pending;
            }
            return Poll::Ready(Ok(()));
        }
    })
    .await
}

/// One request, until its response's head. The body that follows moves by itself.
async fn call(store: &Accessor<ComponentState>, proxy: &ProxyP3, job: Job) -> wasmtime::Result<()> {
    let Job { request, send_head, state, in_use: _in_use, .. } = job;
    let (request, moved) = store.with(|mut store| {
        let http = store.data_mut().http();
        let (request, moved) = p3::Request::from_http(http.hooks, request);
        // Its type borrows the store although it does not; in the box it is free of the store.
        let moved: Pin<Box<dyn Future<Output = _> + Send>> = Box::pin(moved);
        Ok::<_, wasmtime::Error>((http.table.push(request)?, moved))
    })?;
    let head = match proxy.wasi_http_handler().call_handle(store, request).await? {
        Ok(response) => Ok(store.with(|mut store| {
            let response = store.data_mut().http().table.delete(response)?;
            response.into_http(&mut store, moved)
        })?),
        Err(code) => Err(format!("{code:?}")),
    };
    state.begin_body();
    // Its client may be gone.
    let _ = send_head.send(head.map(|response| response.map(WrittenBody::P3)));
    Ok(())
}
