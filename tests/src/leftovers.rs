//! What the tests of this checkout have left on the host: directories, processes, mounts.
//!
//! All of it carries the path of a machine's directory somewhere: in its own name, in a command line, in
//! a mount point. A network namespace is left where a process or a mount holds it.

use std::fs;

use crate::machine::{command_line, prefix};
use crate::process;

/// One line for each thing that lies, runs or is mounted under a path that begins with `path`.
pub fn under(path: &str) -> Vec<String> {
    let mut left = Vec::new();
    let (parent, name) = path.rsplit_once('/').expect("an absolute path");
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(name) {
            left.push(format!("directory {}", entry.path().display()));
        }
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

/// As [`under`], for every machine of this checkout.
pub fn all() -> Vec<String> {
    under(&prefix())
}
