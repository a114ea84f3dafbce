//! The cost of a scrape of a daemon with many tasks, and the effect of one scrape each second on starts.
//!
//! Starts run for a while without a scraper and for as long with one, in turns, so that other load of the machine
//! affects both. Failure paths: a scrape that fails is the measurement's failure.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::crowd::Probe;
use crate::hearthd::Hearthd;
use crate::stats::Summary;
use crate::table::{Table, micros};

/// Scrapes whose CPU time is measured, one after the other.
const SCRAPES: u32 = 50;

/// The interval of the scrapes beside the starts, shorter than Prometheus' own.
const EVERY: Duration = Duration::from_secs(1);

/// The length of a turn with or without a scraper, and the number of turns of each.
const TURN: Duration = Duration::from_secs(5);
const TURNS: u32 = 3;

/// The measurements. Durations of starts are in microseconds.
#[derive(Debug, Serialize, Deserialize)]
pub struct Scraping {
    /// The daemon's CPU time for one scrape, in milliseconds.
    pub cpu_ms: f64,
    /// From the request to the last byte, in milliseconds.
    pub took_ms: f64,
    /// The size of a scrape, in bytes.
    pub bytes: usize,
    /// Starts without scrapes.
    pub without: Summary,
    /// Starts with a scrape a second.
    pub with: Summary,
}

impl Scraping {
    /// Measures it.
    ///
    /// # Errors
    /// The first failure.
    pub async fn measure(daemon: &Hearthd, probe: &mut Probe) -> Result<Scraping> {
        let (cpu, began) = (cpu_time(daemon.pid())?, Instant::now());
        let mut bytes = 0;
        for _ in 0..SCRAPES {
            bytes = daemon.scrape_text().await?.len();
        }
        let took = began.elapsed() / SCRAPES;
        let cpu = (cpu_time(daemon.pid())? - cpu) / SCRAPES;
        let (mut without, mut with) = (Vec::new(), Vec::new());
        for _ in 0..TURNS {
            without.extend(starts_for(probe, TURN).await?);
            let scraper = async {
                let mut tick = tokio::time::interval(EVERY);
                loop {
                    tick.tick().await;
                    if let Err(error) = daemon.scrape_text().await {
                        break error;
                    }
                }
            };
            with.extend(tokio::select! {
                samples = starts_for(probe, TURN) => samples?,
                error = scraper => return Err(error),
            });
        }
        let summary = |samples| Summary::of(samples).context("no starts were measured");
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        Ok(Scraping { cpu_ms: ms(cpu), took_ms: ms(took), bytes, without: summary(without)?, with: summary(with)? })
    }

    /// The results as text and a table.
    pub fn table(&self) -> String {
        let mut table = Table::new(1, &["Create + Start, bare", "n", "p50", "p90", "p99", "p99 ÷"]);
        for (label, summary) in [("without scrapes", &self.without), ("a scrape each second", &self.with)] {
            table.row([
                label.to_owned(),
                summary.n.to_string(),
                micros(summary.p50),
                micros(summary.p90),
                micros(summary.p99),
                format!("{:.2}", summary.p99 / self.without.p99),
            ]);
        }
        format!(
            "A scrape takes {:.1} ms of CPU and {:.1} ms in all for {:.0} KiB.\n\n{table}",
            self.cpu_ms,
            self.took_ms,
            self.bytes as f64 / 1024.0
        )
    }
}

/// Starts one after the other for this time: the time of each start's answer.
async fn starts_for(probe: &mut Probe, time: Duration) -> Result<Vec<Duration>> {
    let end = Instant::now() + time;
    let mut samples = Vec::new();
    while Instant::now() < end {
        samples.push(probe.start().await?.reply);
    }
    Ok(samples)
}

/// User and system time of a process so far.
fn cpu_time(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    // The name, in parentheses, may have anything in it.
    let fields = text.rsplit_once(')').map(|(_, fields)| fields).unwrap_or_default();
    let ticks = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok());
    let ticks: u64 = ticks.sum();
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}
