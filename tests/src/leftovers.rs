//! Finds the things that the tests of this checkout have left on the host: directories, cgroups, processes, mounts.
//!
//! All of it carries the path of a machine's directory somewhere: in its own name, in a command line, in a mount point.
//! A network namespace is left only where a process or a mount holds it: the namespaces of a machine's pods are mounted
//! in its own `/run` and go with it, as does the bridge in the machine's own namespace. The bridge must not exist on
//! the host.

use std::fs;
use std::path::{Path, PathBuf};

use crate::daemons::BRIDGE;
use crate::machine::{command_line, prefix};
use crate::process;

/// One line for each thing that lies, runs or is mounted under a path that begins with `path`.
pub fn under(path: &str) -> Vec<String> {
    let mut left = Vec::new();
    let (parent, name) = path.rsplit_once('/').expect("an absolute path");
    for path in entries(Path::new(parent)) {
        if path.file_name().is_some_and(|found| found.to_string_lossy().starts_with(name)) {
            left.push(format!("directory {}", path.display()));
        }
    }
    let cgroups = Path::new("/sys/fs/cgroup");
    let hierarchies = entries(cgroups).into_iter().filter(|path| path.is_dir());
    for cgroup in hierarchies.chain([cgroups.to_owned()]).flat_map(|hierarchy| entries(&hierarchy)) {
        if cgroup.file_name().is_some_and(|found| found.to_string_lossy().starts_with(name)) {
            left.push(format!("cgroup {}", cgroup.display()));
        }
    }
    if Path::new("/sys/class/net").join(BRIDGE).exists() {
        left.push(format!("bridge {BRIDGE}"));
    }
    for (pid, _) in process::all() {
        let line = command_line(pid);
        let ours = pid == std::process::id() as i32;
        if line.contains(path) && !ours && process::is_alive(pid) {
            left.push(format!("process {pid}: {line}"));
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    left.extend(points.filter(|point| point.starts_with(path)).map(|point| format!("mount {point}")));
    left
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// As [`under`], for every machine of this checkout.
pub fn all() -> Vec<String> {
    under(&prefix())
}
