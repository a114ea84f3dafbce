//! The context of a number: the machine, its load, and the sources.
//!
//! Nothing here fails: a value that cannot be found out is reported as "unknown".

use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// The machine and the moment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MachineFacts {
    /// RFC 3339, in UTC.
    pub date: String,
    /// The CPU's model name.
    pub cpu: String,
    /// Logical processors this process may use.
    pub cores: usize,
    /// Kernel name, release and architecture.
    pub kernel: String,
    /// 1, 5 and 15 minutes' load average before the run: other work disturbs.
    pub load_average: String,
    /// Revision of the source tree this program was built from, as it is now; `-dirty` if changed.
    pub git_revision: String,
}

impl MachineFacts {
    /// Asks the machine.
    pub fn here() -> MachineFacts {
        let uname = rustix::system::uname();
        let part = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
        MachineFacts {
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            cpu: std::fs::read_to_string("/proc/cpuinfo")
                .ok()
                .and_then(|text| cpu_model(&text))
                .unwrap_or_else(unknown),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: [part(uname.sysname()), part(uname.release()), part(uname.machine())].join(" "),
            load_average: std::fs::read_to_string("/proc/loadavg")
                .map_or_else(|_| unknown(), |text| text.split(' ').take(3).collect::<Vec<_>>().join(" ")),
            git_revision: git_revision().unwrap_or_else(unknown),
        }
    }
}

impl MachineFacts {
    /// All of it on one line.
    pub fn line(&self) -> String {
        let MachineFacts { date, cpu, cores, kernel, load_average, git_revision } = self;
        format!("{date} · {cpu} · {cores} cores · {kernel} · load {load_average} · {git_revision}")
    }
}

/// The first line of `program --version`.
pub fn version_of(program: &Path) -> String {
    first_line(Command::new(program).arg("--version")).unwrap_or_else(unknown)
}

fn unknown() -> String {
    "unknown".into()
}

fn cpu_model(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn git_revision() -> Option<String> {
    let git =
        |arguments: &[&str]| first_line(Command::new("git").args(["-C", env!("CARGO_MANIFEST_DIR")]).args(arguments));
    git(&["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"])
}

fn first_line(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    let line = String::from_utf8_lossy(&output.stdout).lines().next()?.trim().to_owned();
    (!line.is_empty()).then_some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpus_name_is_found_where_there_is_one() {
        let text = "processor\t: 0\nmodel name\t: Some CPU @ 2.0GHz\nprocessor\t: 1\n";
        assert_eq!(cpu_model(text).as_deref(), Some("Some CPU @ 2.0GHz"));
        assert_eq!(cpu_model("processor : 0\n"), None);
    }

    #[test]
    fn a_program_without_a_version_is_unknown() {
        assert_eq!(version_of(Path::new("/nonexistent")), "unknown");
    }
}
