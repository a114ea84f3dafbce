//! A quiet service beside a noisy one, on one daemon: requests that come at their own pace, while another service has all
//! the load that it can take.
//!
//! The quiet one has one connection and a request each [`PACE`], first alone and then beside the load. Its tail beside the
//! load, over its tail alone, is what a tenant notices of its neighbour. The load generator takes its part of the same
//! processors, so some of the ratio is its own.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1::SendRequest;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::time::{MissedTickBehavior, interval};

use crate::bundle::{Bundle, BundleImage, Recipe, make_dir};
use crate::crowd;
use crate::events::EventSink;
use crate::guest::Module;
use crate::hearthd::{Hearthd, Home};
use crate::http::servers::free_address;
use crate::http::wrk;
use crate::stats::Summary;
use crate::table::micros;

/// The time between two requests to the quiet service.
const PACE: Duration = Duration::from_millis(20);

/// Connections to the noisy one.
const NOISY_CONNECTIONS: u32 = 256;

/// Seconds of each part, for each second of a round: a tail needs its samples.
const ROUNDS: u32 = 10;

/// The report. Times are in microseconds.
#[derive(Debug, Serialize, Deserialize)]
pub struct Neighbour {
    /// Milliseconds between two requests to the quiet service.
    pace_ms: u64,
    /// Connections to the noisy one.
    noisy_connections: u32,
    /// Requests that the noisy one answers in a second.
    noisy_requests_per_second: f64,
    /// The quiet service's requests, alone.
    calm: Summary,
    /// The same, beside the load.
    beside: Summary,
}

/// Measures it, with a daemon that has its home in the new directory, and rounds of so many seconds. To be called on the
/// main thread.
///
/// # Errors
/// The first failure, or an answer other than 200.
pub async fn measure(
    hearthd: &Path,
    component: &Module,
    path: &str,
    (dir, seconds): (PathBuf, u32),
    events: &EventSink,
) -> Result<Neighbour> {
    make_dir(&dir)?;
    let home = Home::create(dir.join("h"))?;
    let mut daemon = Hearthd::launch(hearthd, &home, events).await?;
    let client = crowd::connect(&daemon.task_address, 1).await?.remove(0);
    let mut services = Vec::new();
    for name in ["noisy", "quiet"] {
        let address = free_address()?.0;
        let image = BundleImage::create(dir.join(format!("image-{name}")), component)?;
        let bundle = Bundle::create(dir.join(name), name, image, &Recipe::Service(address))?;
        let started = crowd::start(&client, &bundle.create).await;
        started.map_err(|error| daemon.explain(error))?;
        services.push((name, address, bundle));
    }
    let (noisy, quiet) = (services[0].1, services[1].1.to_string());
    let seconds = seconds * ROUNDS;
    let mut sender = open(&quiet).await?;
    // The first request of a service is not like the others.
    ask(&mut sender, &quiet, path).await?;
    let calm = paced(&mut sender, &quiet, path, seconds).await?;
    let url = format!("http://{noisy}{path}");
    let (load, beside) =
        tokio::join!(wrk::run(&url, NOISY_CONNECTIONS, seconds), paced(&mut sender, &quiet, path, seconds));
    let (load, beside) = (load?, beside?);
    drop(sender);
    for (name, _, bundle) in services {
        crowd::end(&client, name).await.map_err(|error| daemon.explain(error))?;
        bundle.remove()?;
    }
    daemon.end()?;
    let summary = |samples: Vec<Duration>| Summary::of(samples).context("no samples");
    Ok(Neighbour {
        pace_ms: PACE.as_millis() as u64,
        noisy_connections: NOISY_CONNECTIONS,
        noisy_requests_per_second: load.per_second,
        calm: summary(calm)?,
        beside: summary(beside)?,
    })
}

async fn open(address: &str) -> Result<SendRequest<Empty<Bytes>>> {
    let stream = tokio::net::TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// The time of one request.
async fn ask(sender: &mut SendRequest<Empty<Bytes>>, address: &str, path: &str) -> Result<Duration> {
    let request = Request::get(path).header("host", address).body(Empty::new())?;
    let began = Instant::now();
    sender.ready().await?;
    let (head, body) = sender.send_request(request).await?.into_parts();
    body.collect().await?;
    let took = began.elapsed();
    ensure!(head.status == StatusCode::OK, "http://{address}{path}: status {} instead of 200", head.status);
    Ok(took)
}

/// A request each [`PACE`], for so many seconds. One that is late delays the next, and does not leave it out.
async fn paced(
    sender: &mut SendRequest<Empty<Bytes>>,
    address: &str,
    path: &str,
    seconds: u32,
) -> Result<Vec<Duration>> {
    let end = Instant::now() + Duration::from_secs(seconds.into());
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut samples = Vec::new();
    while Instant::now() < end {
        pace.tick().await;
        samples.push(ask(sender, address, path).await?);
    }
    Ok(samples)
}

impl Neighbour {
    /// For people.
    pub fn markdown(&self) -> String {
        let mut text = format!(
            "\nA quiet service (a request each {} ms) beside a noisy one ({} connections, {:.0} requests/s), in µs:\n\n\
             | | n | p50 | p90 | p99 | max |\n|---|---:|---:|---:|---:|---:|\n",
            self.pace_ms, self.noisy_connections, self.noisy_requests_per_second,
        );
        for (name, of) in [("alone", &self.calm), ("beside the noisy one", &self.beside)] {
            let [p50, p90, p99, max] = [of.p50, of.p90, of.p99, of.max].map(micros);
            // A String takes all that is written to it.
            let _ = writeln!(text, "| {name} | {} | {p50} | {p90} | {p99} | {max} |", of.n);
        }
        let _ = writeln!(text, "\nbeside / alone: p99 {:.2}", self.beside.p99 / self.calm.p99);
        text
    }
}
