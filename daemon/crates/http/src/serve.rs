//! The guest's side of requests: an instance, and its calls.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::Incoming;
use tokio::sync::mpsc::UnboundedReceiver;
use wasmtime::Store;
use wasmtime::component::Accessor;
use wasmtime_wasi::I32Exit;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::p3::bindings::Service as ProxyP3;
use wasmtime_wasi_http::{WasiHttpView, p3};

use crate::exchange::{Exchange, FailedUnlessDone, SendHead, Written};
use crate::lines::Lines;
use crate::service::Service;
use crate::workers::{Job, Worker};
use hearth_base::error::Error;
use hearth_wasm::instantiate::{self, Call, Files, Instance, Refusal, Streams, Surroundings};
use hearth_wasm::scheduler::Guest;
use hearth_wasm::slots::{Placed, Slot};
use hearth_wasm::wasi::ComponentState;

/// Handles the guest of one request may have at once: headers, bodies, streams, files.
const HANDLES_MAX: usize = 1_024;

/// How a guest came to its end by itself.
pub enum Verdict {
    /// It returned.
    Returned,
    /// It trapped, or exited with an error; the text.
    Trapped(String),
    /// It took too long.
    Late,
    /// The node is full.
    Full,
    /// There was no instance.
    NotStarted(Error),
}

/// The future of a guest that has one request, of WASI 0.2.
pub async fn alone(
    service: Arc<Service>,
    guest: Arc<Guest>,
    placed: Placed,
    request: Request<Incoming>,
    send_head: SendHead,
    exchange: Arc<Exchange>,
) -> Verdict {
    let (_slot, instance) = match service.instance(&guest, placed).await {
        Ok(made) => made,
        Err(verdict) => return verdict,
    };
    let Instance::Service(mut store, proxy) = instance else { return another_world() };
    let failing = exchange.clone();
    let mut failed = FailedUnlessDone::new(move || failing.fail());
    let (on_head, in_body) = (send_head, exchange.clone());
    let pushed = (|| {
        let mut http = store.data_mut().http();
        let request = http.new_incoming_request(Scheme::Http, request)?;
        let out = http.new_response_outparam_from_callback(move |head| {
            in_body.begin_body();
            // Its client may be gone.
            let _ = on_head.send(head.map(|response| response.map(Written::P2)).map_err(|code| format!("{code:?}")));
        })?;
        Ok::<_, wasmtime::Error>((request, out))
    })();
    let (request, out) = match pushed {
        Ok(pushed) => pushed,
        Err(error) => return Verdict::NotStarted(Error::Internal(format!("the request cannot be told: {error:#}"))),
    };
    let timeout = Duration::from_millis(service.http.config().request_timeout_ms);
    let called = {
        let mut call = pin!(proxy.wasi_http_incoming_handler().call_handle(&mut store, request, out));
        let mut time = pin!(tokio::time::sleep(timeout));
        loop {
            tokio::select! {
                biased;
                called = &mut call => break called,
                () = &mut time => match exchange.more_time(Instant::now(), timeout) {
                    Some(more) => time.as_mut().reset(tokio::time::Instant::now() + more),
                    None => return Verdict::Late,
                },
            }
        }
    };
    let verdict = service.verdict(called, &store);
    if matches!(verdict, Verdict::Returned) {
        failed.done();
    }
    verdict
}

/// The future of a guest of WASI 0.3, which takes requests until its worker is closed.
pub async fn together(
    service: Arc<Service>,
    guest: Arc<Guest>,
    placed: Placed,
    worker: Arc<Worker>,
    mut jobs: UnboundedReceiver<Job>,
) -> Verdict {
    let (_slot, instance) = match service.instance(&guest, placed).await {
        Ok(made) => made,
        Err(verdict) => return verdict,
    };
    let Instance::ServiceP3(mut store, proxy) = instance else { return another_world() };
    let failing = worker.clone();
    let mut failed = FailedUnlessDone::new(move || failing.fail());
    let timeout = Duration::from_millis(service.http.config().request_timeout_ms);
    let Some(workers) = &service.workers else { return another_world() };
    let mut draining = service.requests.draining();
    let called = {
        // The clock is outside: while a guest computes, nothing inside moves.
        let clock = workers.clock(&worker, timeout, &mut draining);
        let calls = store.run_concurrent(async |store| calls(store, &proxy, &mut jobs).await);
        tokio::select! {
            biased;
            called = calls => called.flatten(),
            _late = clock => return Verdict::Late,
        }
    };
    let verdict = service.verdict(called, &store);
    if matches!(verdict, Verdict::Returned) {
        failed.done();
    }
    verdict
}

fn another_world() -> Verdict {
    Verdict::NotStarted(Error::Internal("a service is of another WASI than its program".into()))
}

/// Takes jobs until there are no more and the guest has done all it has to.
async fn calls(
    store: &Accessor<ComponentState>,
    proxy: &ProxyP3,
    jobs: &mut UnboundedReceiver<Job>,
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
            // A guest may hold back what it has no room for.
            if open && store.poll_ready_for_concurrent_call(function, cx).is_ready() {
                match jobs.poll_recv(cx) {
                    Poll::Ready(Some(job)) => {
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

/// One request: until its response's head. What follows is the guest's own, and its body's.
async fn call(store: &Accessor<ComponentState>, proxy: &ProxyP3, job: Job) -> wasmtime::Result<()> {
    let Job { request, send_head, exchange, occupied: _occupied } = job;
    let (request, moved) = store.with(|mut store| {
        let http = store.data_mut().http();
        let request = request.map(|body| body.map_err(wasmtime_wasi_http::Error::from));
        let (request, moved) = p3::Request::from_http(http.hooks, request);
        // Boxed it is free of the store, as its type does not say.
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
    exchange.begin_body();
    // Its client may be gone.
    let _ = send_head.send(head.map(|response| response.map(Written::P3)));
    Ok(())
}

impl Service {
    /// An instance for this guest.
    async fn instance(&self, guest: &Arc<Guest>, placed: Placed) -> Result<(Slot, Instance), Verdict> {
        let began = Instant::now();
        let starved: Arc<AtomicBool> = Arc::default();
        let outgoing = || -> instantiate::Outgoing { Box::new(self.outgoing.clone()) };
        let surroundings = Surroundings {
            args: &self.args,
            env: &self.env,
            cwd: &self.cwd,
            files: Files::Open(&self.files),
            partly_read_only: self.partly_read_only,
            open_files_max: 0,
            handles_max: HANDLES_MAX * self.requests_per_instance(),
            names: self.names.clone(),
            memory: &self.memory,
            starved: &starved,
            outgoing: &outgoing,
        };
        let mark = self.marks.next();
        let streams = || Streams {
            stdin: None::<tokio::io::Empty>,
            stdout: Lines::new(self.stdio.stdout(), mark),
            stderr: Lines::new(self.stdio.stderr(), mark),
        };
        let unseen = || None::<fn()>;
        let made =
            instantiate::instantiate(&self.runtime, guest, placed, Call::Handler, &surroundings, streams, unseen).await;
        let made = made.map_err(|refusal| match refusal {
            Refusal::Full(_) => Verdict::Full,
            Refusal::NotReady(error) => Verdict::NotStarted(error),
            Refusal::Failed(error) => Verdict::Trapped(self.describe(&error, starved.load(Ordering::Relaxed))),
        })?;
        self.counts.instantiated(began.elapsed());
        Ok(made)
    }

    /// How calls ended.
    fn verdict(&self, called: wasmtime::Result<()>, store: &Store<ComponentState>) -> Verdict {
        let Err(error) = called else { return Verdict::Returned };
        match error.downcast_ref::<I32Exit>() {
            Some(I32Exit(0)) => Verdict::Returned,
            Some(I32Exit(code)) => Verdict::Trapped(format!("the guest exited with {code}")),
            None => Verdict::Trapped(self.describe(&error, store.data().limits.is_starved())),
        }
    }

    /// A trap's text.
    fn describe(&self, error: &wasmtime::Error, starved: bool) -> String {
        if starved {
            return format!("out of memory: the container's limit is {} bytes\n{error:?}", self.memory.limit());
        }
        format!("{error:?}")
    }
}
