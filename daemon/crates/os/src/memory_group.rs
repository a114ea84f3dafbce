//! The use and the limit of the memory control group that this process is charged to.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::cgroup::{LIMIT_MAX, ROOT};

/// A use of memory and its limit, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryGroup {
    /// The use of the group, without page cache that the kernel can drop at once.
    pub used: u64,
    /// Its limit (`MemoryMax=` of a systemd unit).
    pub limit: u64,
}

impl MemoryGroup {
    /// The group of this process, or one that contains it, that is nearest to its limit. `None` without a limit. Reads files
    /// of the kernel's memory, which can take milliseconds for a large group.
    pub fn own() -> Option<MemoryGroup> {
        // cgroups(7): the groups of a process.
        fs::read_to_string("/proc/self/cgroup").ok().and_then(|text| MemoryGroup::of(&text, Path::new(ROOT)))
    }

    fn of(groups: &str, root: &Path) -> Option<MemoryGroup> {
        let hierarchy = Hierarchy::of(groups, root)?;
        let nearest = |a: &MemoryGroup, b: &MemoryGroup| a.percent().cmp(&b.percent());
        hierarchy.group.ancestors().filter_map(|group| hierarchy.read(group)).max_by(nearest)
    }

    /// The used part of the limit, in percent.
    pub fn percent(&self) -> u64 {
        self.used.saturating_mul(100) / self.limit.max(1)
    }
}

/// The hierarchy with the memory controller.
struct Hierarchy {
    root: PathBuf,
    /// The group, relative to the root.
    group: PathBuf,
    /// The names of its files: the use, the limit.
    files: [&'static str; 2],
    /// The counter in `memory.stat` of page cache that the kernel drops first.
    droppable: &'static str,
}

impl Hierarchy {
    fn of(groups: &str, root: &Path) -> Option<Hierarchy> {
        let mut unified = None;
        for line in groups.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, group) = (fields.next()?, fields.next()?);
            let group = PathBuf::from(group.trim_start_matches('/'));
            if controllers.split(',').any(|controller| controller == "memory") {
                let files = ["memory.usage_in_bytes", "memory.limit_in_bytes"];
                return Some(Hierarchy { root: root.join("memory"), group, files, droppable: "total_inactive_file " });
            }
            if controllers.is_empty() {
                unified = Some(group);
            }
        }
        let files = ["memory.current", "memory.max"];
        Some(Hierarchy { root: root.to_owned(), group: unified?, files, droppable: "inactive_file " })
    }

    /// A group's use; `None` if it has no limit.
    fn read(&self, group: &Path) -> Option<MemoryGroup> {
        let directory = self.root.join(group);
        let text = |file: &str| -> io::Result<String> { fs::read_to_string(directory.join(file)) };
        let number = |file: &str| text(file).ok()?.trim().parse::<u64>().ok();
        let [used, limit] = self.files;
        // `max` is no number.
        let limit = number(limit).filter(|limit| *limit < LIMIT_MAX)?;
        let stat = text("memory.stat").ok()?;
        let droppable = stat.lines().find_map(|line| line.strip_prefix(self.droppable)?.trim().parse::<u64>().ok());
        Some(MemoryGroup { used: number(used)?.saturating_sub(droppable.unwrap_or_default()), limit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Root(tempfile::TempDir);

    impl Root {
        fn write(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn read(&self, groups: &str) -> Option<(u64, u64)> {
            MemoryGroup::of(groups, self.0.path()).map(|group| (group.used, group.limit))
        }
    }

    #[test]
    fn the_group_is_found_in_both_versions_and_its_droppable_cache_does_not_count() {
        let root = Root(tempfile::tempdir().unwrap());
        let v2 = "0::/system.slice/h.service\n";
        root.write("system.slice/h.service/memory.current", "900\n");
        root.write("system.slice/h.service/memory.max", "1000\n");
        root.write("system.slice/h.service/memory.stat", "anon 500\ninactive_file 300\nfile 400\n");
        assert_eq!(root.read(v2), Some((600, 1000)));
        root.write("system.slice/h.service/memory.max", "max\n");
        assert_eq!(root.read(v2), None, "no limit");
        let v1 = "12:cpu,cpuacct:/x\n5:memory:/h\n0::/y\n";
        root.write("memory/h/memory.usage_in_bytes", "900\n");
        root.write("memory/h/memory.limit_in_bytes", "1000\n");
        root.write("memory/h/memory.stat", "inactive_file 1\ntotal_inactive_file 200\n");
        assert_eq!(root.read(v1), Some((700, 1000)));
        root.write("memory/h/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!((root.read(v1), root.read("")), (None, None));
    }

    #[test]
    fn the_limit_of_a_group_that_contains_it_counts_too() {
        let root = Root(tempfile::tempdir().unwrap());
        root.write("h.service/daemon/memory.current", "100\n");
        root.write("h.service/daemon/memory.max", "1000\n");
        root.write("h.service/daemon/memory.stat", "\n");
        root.write("h.service/memory.current", "400\n");
        root.write("h.service/memory.max", "800\n");
        root.write("h.service/memory.stat", "inactive_file 0\n");
        assert_eq!(root.read("0::/h.service/daemon\n"), Some((400, 800)));
    }
}
