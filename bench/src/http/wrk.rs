//! `wrk`, the load generator: one run of it, and its output.
//!
//! It keeps its connections open and sends the next request on each as soon as the last is answered. Its percentiles
//! are counted by the microsecond and printed with two decimals (`123.00us`, `1.23ms`): the worst that rounding
//! does to one is half a per cent. Where an answer took longer than twice the mean, it adds the requests that would
//! have been sent meanwhile (*coordinated omission*), so that a pause of the server weighs in p99 what it would weigh
//! for clients that do not wait for each other.
//!
//! Failure paths: any line that is not one of a run without faults is an error that quotes it: socket errors and
//! statuses of 400 and more among them. A connection that the server closes is opened again and goes unseen, but for
//! the time it takes.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::AsyncReadExt;
use tokio::process::ChildStdout;
use tokio::time::timeout;

use crate::process::{Tied, tied_command};

/// The program, from the Debian package of the same name.
const PROGRAM: &str = "wrk";

/// Threads of the generator. One thread handles several times the requests that a server of Wasm instances answers, and
/// leaves the other processors to the server.
const THREADS: &str = "1";

/// The time that a run may take beyond its duration.
const SPARE: Duration = Duration::from_secs(20);

/// The result of one run.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Requests answered.
    pub requests: u64,
    /// Requests answered in a second.
    pub per_second: f64,
    /// The median from the request's first byte sent to the response's last byte read, in microseconds.
    pub p50: f64,
    /// The 99th percentile of the same.
    pub p99: f64,
}

/// The program's name and version.
///
/// # Errors
/// If it is not installed.
pub fn version() -> Result<String> {
    // It prints its version, then complains that it has no URL.
    let output = Command::new(PROGRAM).arg("--version").output();
    let output = output.context("cannot execute wrk, which makes the load: install the package wrk")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.split(" [").next().filter(|version| version.starts_with("wrk "));
    version.map(str::to_owned).with_context(|| format!("wrk does not say its version but {text:?}"))
}

/// Runs it for so many seconds. To be called on the main thread.
///
/// # Errors
/// If it fails, or anything but answers came.
pub async fn run(url: &str, connections: u32, seconds: u32) -> Result<Found> {
    let mut command = tied_command(PROGRAM.as_ref())?;
    let (connections, duration) = (connections.to_string(), format!("{seconds}s"));
    command.args(["--threads", THREADS, "--connections", &connections, "--duration", &duration, "--latency", url]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut wrk = Tied::spawn(PROGRAM, command)?;
    let stdout = wrk.child_mut().stdout.take().context("wrk has no stdout")?;
    let mut text = String::new();
    let printed = async { ChildStdout::from_std(stdout)?.read_to_string(&mut text).await };
    let most = Duration::from_secs(seconds.into()) + SPARE;
    timeout(most, printed).await.with_context(|| format!("wrk was not done within {} s", most.as_secs()))??;
    wrk.end();
    parse(&text).with_context(|| format!("wrk at {url}"))
}

/// Reads the output of a run with `--latency`.
fn parse(text: &str) -> Result<Found> {
    let mut lines = text.lines();
    let mut next = |want: &str| {
        let line = lines.next().with_context(|| format!("its output ends where {want:?} should come"))?;
        line.trim_start().strip_prefix(want).with_context(|| format!("{want:?} should come, not {line:?}"))
    };
    for want in ["Running ", "1 threads and ", "Thread Stats ", "Latency ", "Req/Sec ", "Latency Distribution"] {
        next(want)?;
    }
    let p50 = micros(next("50%")?)?;
    next("75%")?;
    next("90%")?;
    let p99 = micros(next("99%")?)?;
    let total = next("")?;
    let requests = total.split_once(" requests in ").and_then(|(requests, _)| requests.parse().ok());
    let requests: u64 = requests.with_context(|| format!("no number of requests: {total:?}"))?;
    let per_second = next("Requests/sec:")?;
    let per_second = per_second.trim().parse().with_context(|| format!("no rate: {per_second:?}"))?;
    next("Transfer/sec:")?;
    if let Some(line) = lines.next() {
        bail!("unexpected output after the end: {line:?}");
    }
    ensure!(requests > 0, "no request was answered");
    Ok(Found { requests, per_second, p50, p99 })
}

/// A duration of wrk's, in microseconds.
fn micros(text: &str) -> Result<f64> {
    let text = text.trim();
    let digits = text.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        "m" => 60e6,
        _ => bail!("no duration: {text:?}"),
    };
    let number: f64 = digits.parse().with_context(|| format!("no duration: {text:?}"))?;
    Ok(number * unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As wrk 4.1.0 of Debian prints it.
    const TEXT: &str = "\
Running 2s test @ http://127.0.0.1:8080/count
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.44ms  640.09us  12.70ms   91.85%
    Req/Sec    22.79k     1.42k   24.79k    75.00%
  Latency Distribution
     50%  812.00us
     75%    1.56ms
     90%    1.84ms
     99%    4.35ms
  45389 requests in 2.00s, 6.41MB read
Requests/sec:  22678.77
Transfer/sec:      3.20MB
";

    #[test]
    fn a_run_without_faults_is_read() {
        let found = Found { requests: 45_389, per_second: 22_678.77, p50: 812.0, p99: 4_350.0 };
        assert_eq!(parse(TEXT).unwrap(), found);
    }

    #[test]
    fn every_unit_of_a_duration_is_known_and_nothing_else_is_one() {
        let read = |text| micros(text).unwrap();
        assert_eq!([read("  7.00us"), read("1.50ms"), read("2.00s"), read("1.00m")], [7.0, 1_500.0, 2e6, 60e6]);
        for bad in ["", "us", "1.00", "1.00h", "-nan%"] {
            assert!(micros(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn faults_of_a_run_are_quoted() {
        for fault in ["Socket errors: connect 0, read 1, write 0, timeout 0", "Non-2xx or 3xx responses: 12"] {
            let text = TEXT.replace("Requests/sec", &format!("  {fault}\nRequests/sec"));
            let error = format!("{:#}", parse(&text).unwrap_err());
            assert!(error.contains(fault), "{error}");
        }
    }

    #[test]
    fn an_output_that_is_cut_or_goes_on_is_refused() {
        let lines: Vec<&str> = TEXT.lines().collect();
        for cut in 0..lines.len() {
            assert!(parse(&lines[..cut].join("\n")).is_err(), "without line {cut}");
        }
        assert!(parse(&format!("{TEXT}more\n")).is_err());
        let nothing = TEXT.replace("45389 requests", "0 requests");
        assert!(format!("{:#}", parse(&nothing).unwrap_err()).contains("no request was answered"));
    }
}
