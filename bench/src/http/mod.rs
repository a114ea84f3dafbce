//! The `http` command: requests to an HTTP component, served by hearthd, by `wasmtime serve` of the same wasmtime, and
//! without a guest.
//!
//! All servers run during the whole measurement, each in a process of its own, and are asked in turns: for each number
//! of connections some rounds, in each of which every server has the load for some seconds. The load generator runs on
//! the same processors, as all clients of this program do: its time is in every number.
//!
//! * `mod.rs`: this page: the rounds.
//! * `servers.rs`: the servers, and their settings.
//! * `floor.rs`: the server without a guest.
//! * `wrk.rs`: the load.
//! * `report.rs`: the figures.
//! * `neighbour.rs`: a quiet service beside a noisy one.
//! * `idle.rs`: the `services` command: many services at rest.
//! * `accept.rs`: connections without a request, for `services`.
//!
//! # What the numbers mean
//!
//! * **requests/s**: with every connection asking again as soon as it is answered: the most this server answers on this
//!   machine beside the load generator.
//! * **p50, p99**: of that same closed loop, so with 32 and 256 connections they are the time in the queue before the
//!   processors, not that of a request alone; with one connection there is no queue.
//! * **processor time a request**: of the server's process, all threads, read to a hundredth of a second. Other work on
//!   the machine moves it less than the rest. The time of requests that a round's end cuts is in it, too.
//! * **floor**: the same answer by hyper on tokio, which both other servers use: the price of HTTP and of the load.
//!
//! # Failure paths
//!
//! A server that answers another thing than the others, a wasmtime of another version than hearthd's, an answer that
//! is no 2xx or 3xx, or a connection that fails end the run.

mod accept;
pub mod floor;
pub mod idle;
mod neighbour;
mod report;
mod servers;
mod wrk;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::crowd;
use crate::events::EventSink;
use crate::guest::Module;
use crate::http::report::{Crowd, Measured, Report, Round};
use crate::http::servers::{Served, Server};
use crate::machine::MachineFacts;
use crate::progress::{progress, progress_done};
use crate::report::{Program, SCHEMA};
use crate::scratch::Scratch;

/// Connections at once.
const CONNECTIONS: [u32; 3] = [1, 32, 256];

/// Rounds (an odd number, for the sake of the median), and the seconds of each at each server: for a report and for a
/// look.
const PLANS: [(u32, u32); 2] = [(9, 4), (3, 1)];

/// Seconds of load before the first round of each number of connections, at each server.
const WARM_UP_SECONDS: u32 = 1;

/// The parameters of a run.
pub struct Options {
    /// The daemon's binary.
    pub hearthd: PathBuf,
    /// Another build of the daemon, measured in turn with the first.
    pub against: Option<PathBuf>,
    /// The program `wasmtime`.
    pub wasmtime: Option<PathBuf>,
    /// The component's file.
    pub component: PathBuf,
    /// The path of the requests.
    pub path: String,
    /// Other components, measured after that one, at `/`.
    pub also: Vec<PathBuf>,
    /// Fewer and shorter rounds.
    pub quick: bool,
}

/// Runs it. To be called on the main thread, which the servers are tied to.
///
/// # Errors
/// The first failure.
pub async fn run(options: &Options, scratch: &Scratch) -> Result<Report> {
    let (rounds, seconds) = PLANS[usize::from(options.quick)];
    let (machine, wrk) = (MachineFacts::here(), wrk::version()?);
    crowd::raise_descriptor_limit();
    let events = EventSink::listen(scratch.path().join("events.sock"))?;
    let first = measure(options, (&options.component, &options.path), (rounds, seconds), scratch, &events).await?;
    let mut also = Vec::new();
    for component in &options.also {
        also.push(measure(options, (component, "/"), (rounds, seconds), scratch, &events).await?);
    }
    progress("a quiet service beside a noisy one");
    let component = Module::read(&options.component)?;
    let dir = scratch.bundles().join("n");
    let neighbour = neighbour::measure(&options.hearthd, &component, &options.path, (dir, seconds), &events).await?;
    progress_done();
    Ok(Report {
        schema: SCHEMA,
        machine,
        hearthd: Program::at(&options.hearthd),
        against: options.against.as_deref().map(Program::at),
        wasmtime: options.wasmtime.as_deref().map(Program::at),
        wrk,
        quick: options.quick,
        seconds,
        first,
        also,
        neighbour: Some(neighbour),
    })
}

/// Measures one component, at one path, with all servers.
async fn measure(
    options: &Options,
    (file, path): (&Path, &str),
    (rounds, seconds): (u32, u32),
    scratch: &Scratch,
    events: &EventSink,
) -> Result<Measured> {
    let component = Module::read(file)?;
    let (mut servers, answer_bytes) = start(options, (file, &component), path, scratch, events).await?;
    let mut crowds = Vec::new();
    for connections in CONNECTIONS {
        eprintln!("hearth-bench: {}: connections at once: {connections}", name_of(file));
        for server in &servers {
            wrk::run(&server.url(path), connections, WARM_UP_SECONDS).await?;
        }
        let mut found: BTreeMap<Served, Vec<Round>> = BTreeMap::new();
        for number in 0..rounds {
            for server in &servers {
                progress(&format!("round {} of {rounds}: {}", number + 1, server.by.name()));
                found.entry(server.by).or_default().push(round(server, path, connections, seconds).await?);
            }
            // No server always follows the same other one.
            servers.reverse();
        }
        progress_done();
        crowds.push(Crowd::of(connections, found));
    }
    for server in servers {
        server.end().await?;
    }
    let component_bytes = component.bytes().len();
    Ok(Measured { component: name_of(file), component_bytes, path: path.to_owned(), answer_bytes, crowds })
}

/// How the report calls a component.
fn name_of(file: &Path) -> String {
    file.file_stem().map_or_else(|| file.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// Starts all servers, and gives the bytes of the body that each answers.
async fn start(
    options: &Options,
    (file, component): (&Path, &Module),
    path: &str,
    scratch: &Scratch,
    events: &EventSink,
) -> Result<(Vec<Server>, usize)> {
    let dir = |name: &str| scratch.bundles().join(format!("{name}-{}", name_of(file)));
    progress("starting the servers");
    let daemon = Server::hearthd(Served::Hearthd, &options.hearthd, component, dir("a"), events).await?;
    let answer = daemon.ask(path).await?;
    let floor = Server::floor(&answer, &scratch.path().join(format!("answer-{}", name_of(file))))?;
    let mut servers = Vec::new();
    if let Some(program) = &options.wasmtime {
        let (theirs, ours) = (servers::wasmtime_version(program)?, daemon.wasmtime_version().await?);
        ensure!(theirs == ours, "{} is wasmtime {theirs}, and hearthd has {ours} in it", program.display());
        servers.push(Server::wasmtime(program, file).await?);
    }
    if let Some(program) = &options.against {
        servers.push(Server::hearthd(Served::Against, program, component, dir("c"), events).await?);
    }
    servers.extend([daemon, floor]);
    for server in &servers {
        let found = server.ask(path).await?;
        ensure!(found == answer, "{} answers {found:?}, hearthd {answer:?}", server.by.name());
    }
    progress_done();
    Ok((servers, answer.body.len()))
}

/// Puts the load on one server.
async fn round(server: &Server, path: &str, connections: u32, seconds: u32) -> Result<Round> {
    let before = server.processor_time()?;
    let found = wrk::run(&server.url(path), connections, seconds).await.context(server.by.name())?;
    let took = server.processor_time()?.saturating_sub(before);
    Ok(Round {
        requests: found.requests,
        requests_per_second: found.per_second,
        p50: found.p50,
        p99: found.p99,
        processor_time: took.as_secs_f64() * 1e6 / found.requests as f64,
    })
}
