//! The metrics of the process itself, under the names that every Prometheus client uses.
//!
//! The `prometheus` crate has a collector for them, behind its feature `process`. Its CPU time is in whole seconds,
//! which hides the use of a daemon at rest; so these seven values are read here.

use std::fmt::Write;
use std::fs;

use hearth_base::proc_stat::ProcStat;
use rustix::process::{Resource, getrlimit};

/// A metric of the process.
pub struct Family {
    /// Its name.
    pub name: &'static str,
    help: &'static str,
    kind: &'static str,
}

/// All of them, in the order of `values`.
pub const FAMILIES: [Family; 7] = [
    family("process_cpu_seconds_total", "User and system CPU time of the process, in seconds.", "counter"),
    family("process_threads", "Threads of the process.", "gauge"),
    family("process_start_time_seconds", "When the process started, in seconds since 1970.", "gauge"),
    family("process_virtual_memory_bytes", "Address space of the process.", "gauge"),
    family("process_resident_memory_bytes", "Resident memory of the process.", "gauge"),
    family("process_open_fds", "Open file descriptors.", "gauge"),
    family("process_max_fds", "As many file descriptors as may be open.", "gauge"),
];

const fn family(name: &'static str, help: &'static str, kind: &'static str) -> Family {
    Family { name, help, kind }
}

/// Adds all of them in Prometheus' text format. A value that the kernel does not give is left out.
pub fn render(text: &mut String) {
    for (family, value) in FAMILIES.iter().zip(values()) {
        if let Some(value) = value {
            let Family { name, help, kind } = family;
            // Writing to a string cannot fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        }
    }
}

fn values() -> [Option<f64>; FAMILIES.len()] {
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    let stat = ProcStat::of_this_process().ok();
    let field = |number: usize| stat.as_ref()?.field::<f64>(number);
    let booted = fs::read_to_string("/proc/stat").unwrap_or_default();
    let booted = booted.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<f64>().ok());
    let open = fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as f64);
    let limit = getrlimit(Resource::Nofile).current.map_or(f64::INFINITY, |limit| limit as f64);
    [
        field(ProcStat::USER_TICKS).zip(field(ProcStat::SYSTEM_TICKS)).map(|(user, system)| (user + system) / ticks),
        field(ProcStat::THREADS),
        booted.zip(field(ProcStat::STARTED_TICKS)).map(|(booted, started)| booted + started / ticks),
        field(ProcStat::VIRTUAL_BYTES),
        field(ProcStat::RESIDENT_PAGES).map(|pages| pages * rustix::param::page_size() as f64),
        open,
        Some(limit),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_gives_all_values_and_they_are_of_this_process() {
        let values = values().map(|value| value.expect("Linux tells"));
        let [cpu, threads, started, virtual_bytes, resident, open, limit] = values;
        let now = hearth_base::time::unix(std::time::SystemTime::now());
        assert!(cpu >= 0.0 && threads >= 1.0 && open >= 3.0 && limit >= open, "{values:?}");
        assert!(resident > 1e6 && virtual_bytes > resident, "{values:?}");
        assert!(started > now - 1e5 && started < now + 5.0, "{values:?}");
        let mut text = String::new();
        render(&mut text);
        assert_eq!(text.lines().count(), 3 * FAMILIES.len());
    }
}
