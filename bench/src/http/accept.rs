//! Connections without a request: what it costs a daemon to accept a client, and to notice that the client has gone.
//!
//! The processor time is that of all threads of the daemon, as the scheduler of the kernel counts it, in nanoseconds
//! (`schedstat` of proc(5)). The threads that end meanwhile are not in it.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::stats::Summary;

/// Connections that are made, one after the other.
const CONNECTIONS: u32 = 2_000;

/// Before them, so that none of them is the first.
const WARM_UP: u32 = 100;

/// The cost of one connection. Times are in microseconds.
#[derive(Debug, Serialize)]
pub struct AcceptCost {
    /// From connect(2) until the daemon has closed the connection, which its client closes at once.
    pub time: Summary,
    /// Processor time of the daemon.
    pub processor_time: f64,
}

/// Measures it at the service that listens at `address`, in the daemon with this process id.
///
/// # Errors
/// A connection fails, or the daemon is gone.
pub async fn measure(address: SocketAddr, pid: u32) -> Result<AcceptCost> {
    for _ in 0..WARM_UP {
        connect(address).await?;
    }
    let before = processor_time(pid)?;
    let mut times = Vec::new();
    for _ in 0..CONNECTIONS {
        times.push(connect(address).await?);
    }
    let took = processor_time(pid)?.saturating_sub(before);
    let time = Summary::of(times).context("no samples")?;
    Ok(AcceptCost { time, processor_time: took.as_secs_f64() * 1e6 / f64::from(CONNECTIONS) })
}

async fn connect(address: SocketAddr) -> Result<Duration> {
    let began = Instant::now();
    let mut stream = TcpStream::connect(address).await.with_context(|| address.to_string())?;
    stream.shutdown().await?;
    let read = stream.read(&mut [0; 1]).await?;
    ensure!(read == 0, "{address} answers without a request");
    Ok(began.elapsed())
}

/// Of all threads of a process so far.
fn processor_time(pid: u32) -> Result<Duration> {
    let directory = format!("/proc/{pid}/task");
    let mut sum = Duration::ZERO;
    for thread in fs::read_dir(&directory).with_context(|| directory.clone())? {
        // A thread that has just ended.
        let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        let nanoseconds = text.split(' ').next().and_then(|first| first.parse().ok());
        sum += Duration::from_nanos(nanoseconds.with_context(|| format!("no time in {text:?}"))?);
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_computes_takes_processor_time() {
        let before = processor_time(std::process::id()).unwrap();
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(20) {}
        // Others may run on this processor meanwhile.
        assert!(processor_time(std::process::id()).unwrap() > before);
    }
}
