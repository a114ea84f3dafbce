//! Ending the daemons of a state directory, and telling a stop of the service from its restart.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::generation::wire::{Nothing, Status, question};
use crate::generation::{client, directory};

/// The time in which a generation ends its guests, tells containerd, and ends.
const STOP_TIME: Duration = Duration::from_secs(25);

/// The pause between two tests whether a generation has ended.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The status of each generation that lives, the youngest first.
///
/// # Errors
/// One line: the state directory cannot be read.
pub fn all(state_dir: &Path) -> Result<Vec<Status>, String> {
    let mut all = client::statuses(state_dir).map_err(|e| format!("cannot read {}: {e}", state_dir.display()))?;
    all.sort_by_key(|status| status.up_seconds);
    Ok(all)
}

/// Ends these generations and their guests, and waits for that.
///
/// # Errors
/// One line: the generation that does not end.
pub fn end(state_dir: &Path, generations: &[Status]) -> Result<(), String> {
    for status in generations {
        // A generation that does not answer may be ending already; its lock tells.
        let _ = client::ask_status(state_dir, &status.generation, question::Body::Stop(Nothing {}));
    }
    let drain = generations.iter().map(|status| status.stop_drain_seconds).max().unwrap_or_default();
    let until = Instant::now() + STOP_TIME + Duration::from_secs(drain);
    for status in generations {
        while directory::is_alive(state_dir, &status.generation) {
            if Instant::now() >= until {
                return Err(format!("generation {} (pid {}) does not end", status.generation, status.pid));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
    Ok(())
}

/// Ends all generations and their guests, and waits for that.
///
/// # Errors
/// One line: the generation that does not end.
pub fn stop_all(state_dir: &Path) -> Result<(), String> {
    end(state_dir, &all(state_dir)?)
}

/// Whether systemd has a job to restart the unit. It has the job while the unit stops.
///
/// # Errors
/// systemctl cannot be started.
#[allow(clippy::disallowed_methods, reason = "systemctl is a client of systemd, also called by hearthctl")]
pub fn is_restarting(unit: &str) -> Result<bool, String> {
    let output = Command::new("systemctl")
        .args(["list-jobs", "--plain", "--no-legend", "--no-pager"])
        .output()
        .map_err(|e| format!("cannot ask systemctl whether {unit} is restarted: {e}"))?;
    Ok(has_restart(&String::from_utf8_lossy(&output.stdout), unit))
}

/// `JOB UNIT TYPE STATE`, a line for each job.
fn has_restart(jobs: &str, unit: &str) -> bool {
    jobs.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        matches!(fields.as_slice(), [_, of, "restart" | "try-restart", ..] if *of == unit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_is_told_from_a_stop() {
        let jobs = "  91 hearthd.service    restart running\n 92 other.service start waiting\n";
        assert!(has_restart(jobs, "hearthd.service"));
        assert!(!has_restart(jobs, "other.service"));
        assert!(!has_restart("  91 hearthd.service stop running\n", "hearthd.service"));
        assert!(!has_restart("No jobs running.\n", "hearthd.service"));
    }
}
