//! The end of a [`World`]: its tasks are deleted, its daemons stopped, and any leftover is an error.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::World;
use crate::daemons;
use crate::process::Process;
use crate::wait::{SHORT, within};

impl World {
    /// Deletes the tasks that are left, if it can: a story may have ended with one of the daemons down.
    fn delete_tasks(&self) {
        if self.containerd.is_none() {
            return;
        }
        let quick = Duration::from_secs(10);
        let listed = self.ctr(["containers", "ls", "--quiet"]).deadline(quick).run().stdout();
        for id in listed.split_whitespace() {
            self.ctr(["tasks", "rm", "--force", id]).deadline(quick).run();
            self.ctr(["containers", "rm", id]).deadline(quick).run();
        }
    }

    /// The leftovers after the deletion of every task, one line each.
    fn leftovers(&mut self) -> Vec<String> {
        let mut left = Vec::new();
        if self.hearthd.is_some() {
            let gone = within(SHORT, || self.hearthd_mounts().is_empty().then_some(()));
            if gone.is_none() {
                left.extend(self.hearthd_mounts().into_iter().map(|m| format!("mount {m}")));
            }
        }
        left.extend(self.stop_hearthds());
        self.containerd.take().map(Process::stop);
        let gone = within(SHORT, || self.machine.processes().is_empty().then_some(()));
        if gone.is_none() {
            let processes = self.machine.processes().into_iter();
            left.extend(processes.map(|(pid, line)| format!("process {pid}: {line}")));
        }
        left.extend(self.mounts_of(self.machine.init()).into_iter().map(|m| format!("mount {m}")));
        left.extend(sockets(&self.layout.hearthd_state()));
        left.extend(self.machine.cgroups().into_iter().map(|cgroup| format!("cgroup {}", cgroup.display())));
        left.extend(self.network_namespaces().into_iter().map(|name| format!("network namespace {name}")));
        left
    }

    /// Stops the newest daemon. A replaced daemon ends by itself when its tasks are deleted.
    fn stop_hearthds(&mut self) -> Vec<String> {
        let gone = within(SHORT, || (self.older_hearthds() == 0).then_some(()));
        let left = match gone {
            Some(()) => Vec::new(),
            None => vec![format!("{} older hearthds although their tasks are deleted", self.older_hearthds())],
        };
        self.stop_hearthd();
        self.successors.get_mut().expect("no story panics in here").clear();
        self.hearthd = None;
        let generations = fs::read_dir(self.layout.hearthd_state().join("s")).into_iter().flatten().flatten();
        left.into_iter().chain(generations.map(|entry| format!("generation {}", entry.path().display()))).collect()
    }

    fn show_logs(&self) {
        for log in [self.layout.containerd_log(), self.layout.hearthd_log()] {
            if log.exists() {
                eprintln!("--- the end of {}:\n{}", log.display(), daemons::tail(&log));
            }
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_logs();
            return;
        }
        self.delete_tasks();
        let left = self.leftovers();
        if !left.is_empty() {
            self.show_logs();
        }
        assert!(left.is_empty(), "left behind:\n{}", left.join("\n"));
    }
}

/// The sockets in a directory of the daemon's, which removes them when it ends.
fn sockets(directory: &Path) -> Vec<String> {
    use std::os::unix::fs::FileTypeExt;
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()))
        .map(|entry| format!("socket {}", entry.path().display()))
        .collect()
}
