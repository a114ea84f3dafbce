//! The `services` command: many HTTP components at rest on one daemon, and requests to them.
//!
//! Each is a task of its own at a port of its own of the node's network, with a bundle of the least. Half of the
//! services are asked once, each for the first time in its life, in an order that is not that of their making; between
//! two of them one other service, the *busy* one, is asked again and again. Every request has a connection of its own,
//! which is in the time.
//!
//! Connections without a request are made to one of them, when it is the only one, and again when all are up: what a client
//! costs that is accepted must not depend on how many services there are.
//!
//! Memory is the daemon's proportional set size before any request, when all are up, less that with one up. The memory
//! of containerd and of the pod's sandbox is not in it.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use hyper::StatusCode;
use serde::Serialize;

use crate::bundle::{Bundle, Recipe};
use crate::crowd::{self, Footprint};
use crate::events::EventSink;
use crate::get::get;
use crate::guest::Module;
use crate::hearthd::{Hearthd, Home};
use crate::http::accept::{self, AcceptCost};
use crate::http::servers::free_address;
use crate::machine::MachineFacts;
use crate::progress::{progress, progress_done};
use crate::report::{Program, SCHEMA};
use crate::scratch::Scratch;
use crate::stats::Summary;
use crate::table::micros;

/// Starts, or ends, under way at the same time.
const AT_ONCE: usize = 16;

/// Requests to the busy service before each to one at rest.
const BUSY: usize = 5;

/// The parameters of a run.
pub struct Options {
    /// The daemon's binary.
    pub hearthd: PathBuf,
    /// The component's file.
    pub component: PathBuf,
    /// The path of the requests.
    pub path: String,
    /// The number of services.
    pub services: usize,
    /// The number of components that they are made of.
    pub components: usize,
}

/// The report. Times are in microseconds.
#[derive(Debug, Serialize)]
pub struct Report {
    schema: u32,
    machine: MachineFacts,
    hearthd: Program,
    services: usize,
    components: usize,
    component_bytes: usize,
    one: Footprint,
    all: Footprint,
    pss_bytes_per_service: f64,
    started_per_second: f64,
    busy: Summary,
    at_rest: Summary,
    /// Of the busy one, when it was alone and when all were up.
    accept_alone: AcceptCost,
    accept_beside: AcceptCost,
}

/// Runs it. To be called on the main thread, which the daemon is tied to.
///
/// # Errors
/// The first thing that fails: an answer other than 200, too.
pub async fn run(options: &Options, scratch: &Scratch) -> Result<Report> {
    ensure!(options.services >= 10, "--services must be at least 10");
    ensure!((1..=options.services).contains(&options.components), "--components must be 1 to --services");
    let component = Module::read(&options.component)?;
    crowd::raise_descriptor_limit();
    let events = EventSink::listen(scratch.path().join("events.sock"))?;
    let tasks = format!("[rpc]\ntasks_max = {}\n", options.services + 100);
    let home = Home::create(scratch.path().join("h"))?.configured(&tasks);
    let mut daemon = Hearthd::launch(&options.hearthd, &home, &events).await?;
    let clients = crowd::connect(&daemon.task_address, 4).await?;
    let services = prepare(options, &component, scratch)?;
    let start = |number: usize| crowd::start(&clients[number % clients.len()], &services[number].1.create);
    start(0).await.map_err(|error| daemon.explain(error))?;
    let accept_alone = accept::measure(services[0].0, daemon.pid()).await?;
    let one = Footprint::of(daemon.pid())?;
    progress("starting them");
    let began = Instant::now();
    let started = stream::iter((1..options.services).map(start)).buffer_unordered(AT_ONCE).try_collect::<()>().await;
    started.map_err(|error| daemon.explain(error))?;
    let took = began.elapsed();
    let all = Footprint::of(daemon.pid())?;
    let accept_beside = accept::measure(services[0].0, daemon.pid()).await?;

    let ask = async |number: usize| {
        let address = services[number].0.to_string();
        let began = Instant::now();
        let answer = get(&address, &options.path).await.with_context(|| format!("service {number}"))?;
        let took = began.elapsed();
        ensure!(answer.status() == StatusCode::OK, "service {number} at {address}: {}", answer.status());
        Ok::<Duration, anyhow::Error>(took)
    };
    let (mut busy, mut at_rest) = (Vec::new(), Vec::new());
    for turn in 0..options.services / 2 {
        for _ in 0..BUSY {
            busy.push(ask(0).await?);
        }
        // Every second service from the middle on, modulo their number: neighbours do not follow each other.
        at_rest.push(ask(1 + (turn * 2 + options.services / 2) % (options.services - 1)).await?);
    }
    progress("ending them");
    let end = |number: usize| {
        let client = &clients[number % clients.len()];
        async move { crowd::end(client, &number.to_string()).await }
    };
    stream::iter((0..options.services).map(end)).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    progress_done();
    daemon.end()?;
    let summary = |samples: Vec<Duration>| Summary::of(samples).context("no samples");
    Ok(Report {
        schema: SCHEMA,
        machine: MachineFacts::here(),
        hearthd: Program::at(&options.hearthd),
        services: options.services,
        components: options.components,
        component_bytes: component.bytes().len(),
        one,
        all,
        pss_bytes_per_service: all.pss_bytes.saturating_sub(one.pss_bytes) as f64 / (options.services - 1) as f64,
        started_per_second: (options.services - 1) as f64 / took.as_secs_f64(),
        busy: summary(busy)?,
        at_rest: summary(at_rest)?,
        accept_alone,
        accept_beside,
    })
}

/// Makes the bundles of this many services, each with a free address.
fn prepare(options: &Options, component: &Module, scratch: &Scratch) -> Result<Vec<(SocketAddr, Bundle)>> {
    let services = options.services;
    let copies = (1..options.components).map(|_| component.never_seen());
    let components: Vec<_> = std::iter::once(component.clone()).chain(copies).collect();
    let (mut prepared, mut held) = (Vec::new(), Vec::new());
    for number in 0..services {
        // The listeners are kept until all have an address, so that no address is given twice.
        let (address, listener) = free_address()?;
        held.push(listener);
        let dir = scratch.bundles().join(number.to_string());
        let image = crowd::image(scratch.bundles(), &format!("i{number}"), &components[number % components.len()])?;
        prepared.push((address, Bundle::create(dir, &number.to_string(), image, &Recipe::Service(address))?));
        if number % 100 == 0 {
            progress(&format!("{number} of {services} bundles"));
        }
    }
    Ok(prepared)
}

impl Report {
    /// For people.
    pub fn markdown(&self) -> String {
        let mut text = format!(
            "# {} HTTP services at rest, of {} components\n\n{}\n\n{:.1} KiB PSS of hearthd a service ({:.1} MiB in all), {} descriptors, \
             {:.0} started a second. A request and its connection, in µs:\n\n| | n | p50 | p90 | p99 | max |\n\
             |---|---:|---:|---:|---:|---:|\n",
            self.services,
            self.components,
            self.machine.line(),
            self.pss_bytes_per_service / 1024.0,
            self.all.pss_bytes as f64 / f64::from(1 << 20),
            self.all.descriptors,
            self.started_per_second,
        );
        for (name, of) in [("the busy one", &self.busy), ("one at rest, its first", &self.at_rest)] {
            let [p50, p90, p99, max] = [of.p50, of.p90, of.p99, of.max].map(micros);
            // A String takes all that is written to it.
            let _ = writeln!(text, "| {name} | {} | {p50} | {p90} | {p99} | {max} |", of.n);
        }
        let _ = writeln!(
            text,
            "\n| A connection without a request, in µs | p50 | p99 | processor time |\n|---|---:|---:|---:|"
        );
        for (name, of) in [("the service alone", &self.accept_alone), ("beside all others", &self.accept_beside)] {
            let [p50, p99, processor] = [of.time.p50, of.time.p99, of.processor_time].map(micros);
            let _ = writeln!(text, "| {name} | {p50} | {p99} | {processor} |");
        }
        let ratio = |of: fn(&Summary) -> f64| of(&self.at_rest) / of(&self.busy);
        let _ = writeln!(text, "\nat rest / busy: p50 {:.2}, p99 {:.2}", ratio(|of| of.p50), ratio(|of| of.p99));
        text
    }
}
