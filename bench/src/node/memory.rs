//! Memory: the increase of the proportional set sizes of all processes on the machine by idle pods, without
//! containerd's own. A native program's own memory is in its number, a guest's in Hearth's.

use std::time::Duration;

use anyhow::{Context, Result};
use hearth_tests::{Guest, Image, Node};
use serde::{Deserialize, Serialize};

use super::levels::CriPods;
use super::peers::{FLOOR, Peer, ProgramKind};
use crate::crowd::pss_bytes;
use crate::progress::{progress, progress_done};

/// The memory of an idle pod with one runtime.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Memory {
    /// The runtime.
    pub runtime: String,
    /// Pods at once.
    pub pods: usize,
    /// Proportional set size of one, in bytes.
    pub pss_bytes_per_pod: f64,
    /// Processes of one.
    pub processes_per_pod: f64,
}

/// How long the guests sleep, in seconds: longer than any run.
const ASLEEP: &str = "100000";

/// The time that pods get to become idle.
const REST: Duration = Duration::from_millis(500);

/// Measures all runtimes, one after another.
///
/// # Errors
/// containerd's error.
pub fn measure(node: &Node, peers: &[Peer], pods: usize) -> Result<Vec<Memory>> {
    let sleep = Guest::SLEEP;
    let wasm = node.import(&Image::of_file("sleep", "/sleep.wasm", sleep.wasm_bytes())).name;
    let native = node.import(&Image::of_file("sleep-native", "/sleep", sleep.native_bytes())).name;
    let mut all = Vec::new();
    // The floor has no guests.
    for peer in peers.iter().filter(|peer| peer.name != FLOOR) {
        let image = if peer.kind == ProgramKind::Wasm { &wasm } else { &native };
        let mut plan = CriPods::new(peer, image, true);
        // The first pod compiles, and the pool touches some memory only once; neither belongs to a pod.
        drop(plan.run(node, &[ASLEEP])?);
        let before = Total::of(node)?;
        let mut running = Vec::new();
        for number in 0..pods {
            progress(&format!("memory, {}: {number} of {pods} pods", peer.name));
            running.push(plan.run(node, &[ASLEEP])?);
        }
        std::thread::sleep(REST);
        let after = Total::of(node)?;
        drop(running);
        progress_done();
        let each = |after: u64, before: u64| (after as f64 - before as f64) / pods as f64;
        all.push(Memory {
            runtime: peer.name.to_owned(),
            pods,
            pss_bytes_per_pod: each(after.pss_bytes, before.pss_bytes),
            processes_per_pod: each(after.processes, before.processes),
        });
    }
    Ok(all)
}

struct Total {
    pss_bytes: u64,
    processes: u64,
}

impl Total {
    fn of(node: &Node) -> Result<Total> {
        let mut total = Total { pss_bytes: 0, processes: 0 };
        for (pid, command) in node.machine().processes() {
            let program = command.split_whitespace().next().unwrap_or_default();
            if program.rsplit('/').next() == Some("containerd") {
                continue;
            }
            let pid = u32::try_from(pid).context("a pid is positive")?;
            // A process that has ended takes no memory.
            if let Ok(bytes) = pss_bytes(pid) {
                total.pss_bytes += bytes;
                total.processes += 1;
            }
        }
        Ok(total)
    }
}
