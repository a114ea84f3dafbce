//! The control group of a pod's cell: found by `linux.cgroupsPath`, made, joined, limited, read and removed.
//!
//! * cgroup v2 (one hierarchy): the group's directory below `/sys/fs/cgroup`.
//! * cgroup v1 (one hierarchy for each controller, also beside v2): a directory in each hierarchy of `CONTROLLERS` that the
//!   node has. The others, and systemd's own hierarchy, have no bearing on what a pod may use.
//!
//! A path of the systemd driver (`SLICE:PREFIX:NAME`) names a scope below a slice; its directory is made as runc's
//! (`libcontainer/cgroups/systemd/common.go`, `ExpandSlice` and `getUnitName`). systemd itself is not asked: it leaves
//! alone what lies below a slice that kubelet has made with delegation.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::cgroup::{ROOT, SystemdPath, expand_slice};

/// The controllers of cgroup v1 whose groups a cell joins.
const CONTROLLERS: [&str; 4] = ["memory", "cpu", "cpuacct", "pids"];

/// `CGROUP2_SUPER_MAGIC` of linux/magic.h.
const CGROUP2_MAGIC: i64 = 0x6367_7270;

/// The version of the node's control groups, as containerd decides it: unified if [`ROOT`] itself is a cgroup2 file
/// system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// A control group: its directories. The value may be sent to another process; the group is removed by
/// [`Cgroup::remove`] only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    version: Version,
    /// The group in each hierarchy.
    directories: Vec<PathBuf>,
}

/// Why `linux.cgroupsPath` names no group.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("linux.cgroupsPath {0:?} names no control group")]
pub struct BadPath(String);

impl Cgroup {
    /// The group that `cgroups_path` names on this node. Nothing is made.
    ///
    /// # Errors
    /// The path is empty, or has components that lead elsewhere.
    pub fn named(cgroups_path: &str) -> Result<Cgroup, BadPath> {
        let version = match rustix::fs::statfs(ROOT) {
            Ok(stat) if stat.f_type == CGROUP2_MAGIC => Version::V2,
            _ => Version::V1,
        };
        let below = expand(cgroups_path)?;
        let hierarchies: Vec<PathBuf> = match version {
            Version::V2 => vec![ROOT.into()],
            Version::V1 => {
                CONTROLLERS.iter().map(|name| Path::new(ROOT).join(name)).filter(|dir| dir.is_dir()).collect()
            }
        };
        Ok(Cgroup { version, directories: hierarchies.into_iter().map(|hierarchy| hierarchy.join(&below)).collect() })
    }

    /// Makes the group with its parents, and moves a process into it.
    ///
    /// # Errors
    /// As mkdir(2) and write(2), with the path. What was made stays: [`Cgroup::remove`] removes it.
    pub fn admit(&self, pid: u32) -> io::Result<()> {
        for directory in &self.directories {
            let at = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", directory.display()));
            fs::create_dir_all(directory).map_err(at)?;
            if self.version == Version::V2 {
                enable_controllers(directory);
            }
            fs::write(directory.join("cgroup.procs"), pid.to_string()).map_err(at)?;
        }
        Ok(())
    }

    /// Limits the memory of all of the group's processes, in bytes; `None`: not at all.
    ///
    /// # Errors
    /// As write(2): `EBUSY` if they hold more and the kernel cannot reclaim it (cgroup v1).
    pub fn limit_memory(&self, bytes: Option<u64>) -> io::Result<()> {
        let (file, none) = match self.version {
            Version::V2 => ("memory.max", "max"),
            Version::V1 => ("memory.limit_in_bytes", "-1"),
        };
        fs::write(self.memory().join(file), bytes.map_or_else(|| none.to_owned(), |bytes| bytes.to_string()))
    }

    /// The memory that the group's processes hold, in bytes: the kernel's count.
    ///
    /// # Errors
    /// As read(2).
    pub fn memory_usage(&self) -> io::Result<u64> {
        let file = match self.version {
            Version::V2 => "memory.current",
            Version::V1 => "memory.usage_in_bytes",
        };
        let text = fs::read_to_string(self.memory().join(file))?;
        text.trim().parse().map_err(io::Error::other)
    }

    /// How many of the group's processes the kernel has ended for want of memory. A group that is gone has had none.
    pub fn out_of_memory_kills(&self) -> u64 {
        let file = match self.version {
            Version::V2 => "memory.events",
            Version::V1 => "memory.oom_control",
        };
        let text = fs::read_to_string(self.memory().join(file)).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
    }

    /// Removes the group, which has no processes any more. Its parents are other programs' and stay. A group that is gone
    /// is no error.
    ///
    /// # Errors
    /// As rmdir(2): `EBUSY` while a process of the group has not been reaped.
    pub fn remove(&self) -> io::Result<()> {
        for directory in &self.directories {
            match fs::remove_dir(directory) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                result => result?,
            }
        }
        Ok(())
    }

    /// The group's directories, for messages and for [`Cgroup::at`] in another process.
    pub fn directories(&self) -> &[PathBuf] {
        &self.directories
    }

    /// The group with these directories, as [`Cgroup::directories`] of another process gave them.
    pub fn at(directories: Vec<PathBuf>) -> Cgroup {
        let is_v2 = |directory: &PathBuf| directory.join("cgroup.controllers").exists();
        let version = if directories.len() == 1 && directories.iter().any(is_v2) { Version::V2 } else { Version::V1 };
        Cgroup { version, directories }
    }

    fn memory(&self) -> &Path {
        // The first of CONTROLLERS; a node without it has no limits, and no such file.
        self.directories.first().map_or(Path::new(ROOT), PathBuf::as_path)
    }
}

/// Has every group above this one hand the controllers down, as the group's own limits need. A parent that refuses has
/// processes of its own; then its children have no limits of their own, and the parent's hold for them.
fn enable_controllers(directory: &Path) {
    let above: Vec<&Path> = directory.ancestors().skip(1).take_while(|dir| dir.starts_with(ROOT)).collect();
    for parent in above.into_iter().rev() {
        for controller in ["+memory", "+cpu", "+pids"] {
            let _ = fs::write(parent.join("cgroup.subtree_control"), controller);
        }
    }
}

/// The directory below a hierarchy's root that a cgroups path names.
fn expand(path: &str) -> Result<PathBuf, BadPath> {
    let bad = || BadPath(path.to_owned());
    let relative = match SystemdPath::parse(path) {
        Some(SystemdPath { slice, prefix, name }) if !name.contains('/') && !prefix.contains('/') => {
            let unit = match (prefix.is_empty(), name.ends_with(".slice")) {
                (_, true) => name.to_owned(),
                (true, false) => format!("{name}.scope"),
                (false, false) => format!("{prefix}-{name}.scope"),
            };
            expand_slice(slice).ok_or_else(bad)?.join(unit)
        }
        None if !path.contains(':') => PathBuf::from(path.trim_start_matches('/')),
        _ => return Err(bad()),
    };
    let is_plain = |part: std::path::Component<'_>| matches!(part, std::path::Component::Normal(_));
    match relative.as_os_str().is_empty() || !relative.components().all(is_plain) {
        true => Err(bad()),
        false => Ok(relative),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_both_drivers_are_directories_below_the_hierarchy() {
        let table = [
            ("/kubepods/besteffort/pod1/abc", "kubepods/besteffort/pod1/abc"),
            ("stories/a", "stories/a"),
            (
                "kubepods-besteffort-pod1_2.slice:cri-containerd:abc",
                "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice/cri-containerd-abc.scope",
            ),
            ("-.slice:cri:x", "cri-x.scope"),
            (":p:x", "system.slice/p-x.scope"),
        ];
        for (path, want) in table {
            assert_eq!(expand(path).unwrap(), PathBuf::from(want), "{path}");
        }
        for path in ["", "/", "/a/../../b", "..", "a.slice:b", "a--b.slice:p:n", "a.slice:p:../n", "a:b:c:d", "x:p:"] {
            assert!(expand(path).is_err(), "{path}");
        }
    }

    #[test]
    fn a_group_is_made_joined_limited_and_removed() {
        let name = format!("/hearth-test-{}", std::process::id());
        let group = Cgroup::named(&name).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        group.admit(child.id()).unwrap();
        assert_eq!(Cgroup::at(group.directories().to_vec()), group);
        for directory in group.directories() {
            assert_eq!(fs::read_to_string(directory.join("cgroup.procs")).unwrap().trim(), child.id().to_string());
        }
        group.limit_memory(Some(64 << 20)).unwrap();
        group.limit_memory(None).unwrap();
        assert!(group.memory_usage().is_ok());
        assert_eq!(group.out_of_memory_kills(), 0);
        child.kill().unwrap();
        child.wait().unwrap();
        group.remove().unwrap();
        group.remove().unwrap();
        assert!(group.directories().iter().all(|directory| !directory.exists()));
        assert_eq!(group.out_of_memory_kills(), 0);
    }
}
