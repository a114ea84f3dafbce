//! The memory limit of a pod's control group, which kubelet sets; paths of systemd's control groups.

use std::path::{Component, Path, PathBuf};

/// Where the node's hierarchies are mounted.
pub(crate) const ROOT: &str = "/sys/fs/cgroup";

/// The highest limit that is one, in bytes: cgroup v1 has a number just below 2^63 for none.
pub(crate) const LIMIT_MAX: u64 = 1 << 62;

/// The memory limit, in bytes, of the control group that contains the one with `path`, a spec's `linux.cgroupsPath`.
/// `None` if it has no limit, or there is no such group. Reads a file of the kernel's memory.
pub fn parent_memory_limit(path: &str) -> Option<u64> {
    limit_below(Path::new(ROOT), &parent(path)?)
}

fn limit_below(root: &Path, group: &Path) -> Option<u64> {
    let unified = root.join(group).join("memory.max");
    let text = std::fs::read_to_string(unified)
        .or_else(|_| std::fs::read_to_string(root.join("memory").join(group).join("memory.limit_in_bytes")));
    text.ok()?.trim().parse().ok().filter(|limit| *limit < LIMIT_MAX)
}

/// The containing group, relative to the root. `SLICE:PREFIX:NAME` is systemd's form: the group is in the slice.
fn parent(path: &str) -> Option<PathBuf> {
    if let Some((slice, _)) = path.split_once(':') {
        return expand_slice(slice);
    }
    let relative = Path::new(path.strip_prefix('/')?);
    let is_plain = relative.components().all(|component| matches!(component, Component::Normal(_)));
    relative.parent().filter(|parent| is_plain && !parent.as_os_str().is_empty()).map(Path::to_owned)
}

/// A cgroups path of the systemd driver: `SLICE:PREFIX:NAME`, as runc has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SystemdPath<'a> {
    /// The slice; `system.slice` if the path names none.
    pub(crate) slice: &'a str,
    /// The first part of the unit's name; may be empty.
    pub(crate) prefix: &'a str,
    /// The second part of the unit's name.
    pub(crate) name: &'a str,
}

impl SystemdPath<'_> {
    /// The parts of a path; `None` if it is of another form.
    pub fn parse(path: &str) -> Option<SystemdPath<'_>> {
        let mut parts = path.split(':');
        let (slice, prefix, name) = (parts.next()?, parts.next()?, parts.next()?);
        let slice = if slice.is_empty() { "system.slice" } else { slice };
        let fits = slice.ends_with(".slice") && !name.is_empty() && parts.next().is_none();
        fits.then_some(SystemdPath { slice, prefix, name })
    }
}

/// The directory of a slice, relative to the root: `a-b.slice` is `a.slice/a-b.slice`, and `-.slice` is the root itself
/// (systemd.slice(5)). `None` if it is no name of a slice.
pub(crate) fn expand_slice(slice: &str) -> Option<PathBuf> {
    let name = slice.strip_suffix(".slice")?;
    if name == "-" {
        return Some(PathBuf::new());
    }
    if name.split('-').any(|part| part.is_empty() || part.contains('/')) {
        return None;
    }
    let ends = name.match_indices('-').map(|(at, _)| at).chain([name.len()]);
    Some(ends.map(|end| format!("{}.slice", &name[..end])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_containing_group_is_found_in_both_forms_of_a_path() {
        let table = [
            ("/kubepods/burstable/pod1/abc", Some("kubepods/burstable/pod1")),
            ("/pods/abc", Some("pods")),
            (
                "kubepods-burstable-pod1_2.slice:cri-containerd:abc",
                Some("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice"),
            ),
            ("system.slice:docker:abc", Some("system.slice")),
            ("/abc", None),
            ("", None),
            ("abc", None),
            ("/a/../../etc/abc", None),
            ("a/../b.slice:x:y", None),
        ];
        for (path, group) in table {
            assert_eq!(parent(path), group.map(PathBuf::from), "{path}");
        }
    }

    #[test]
    fn a_cgroup_of_systemds_is_known_by_its_path() {
        for path in ["kubepods-burstable-pod1.slice:cri-containerd:abc", ":cri-containerd:abc"] {
            assert!(SystemdPath::parse(path).is_some(), "{path}");
        }
        for path in ["/kubepods/pod1/abc", "", "a:b:c", "x.slice:abc", "x.slice:cri:", "x.slice:cri:a:b"] {
            assert_eq!(SystemdPath::parse(path), None, "{path}");
        }
    }

    #[test]
    fn limits_of_both_versions_are_read() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("two/memory.max", "33554432\n");
        write("none/memory.max", "max\n");
        write("memory/one/memory.limit_in_bytes", "16777216\n");
        write("memory/all/memory.limit_in_bytes", "9223372036854771712\n");
        let table = [("two", Some(32 << 20)), ("none", None), ("one", Some(16 << 20)), ("all", None), ("gone", None)];
        for (group, limit) in table {
            assert_eq!(limit_below(root.path(), Path::new(group)), limit, "{group}");
        }
    }
}
