//! The records that a cell keeps on the node for the daemon, and its memory limit.
//!
//! A task's record lies in the cell's directory from the answer to Create until its end is told. If the cell dies, the
//! daemon finds there which tasks died with it, also a daemon that was not there at that time.
//!
//! The kernel's memory limit of the cell is the sum of its containers' limits. A container without a limit takes the limit
//! away: then that of the pod's own group holds, which kubelet has set above this one.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use hearth_base::cell::{LivingTask, TASKS_DIRECTORY};
use hearth_base::error::{Error, Result};
use hearth_os::cell_group::Cgroup;

/// The least memory that a container's limit must leave for its guests beyond the cell's own, in bytes.
const LEAST_ROOM_BYTES: u64 = 1 << 20;

/// A cell's own things on the node.
pub struct CellHome {
    /// Where the records are.
    records: PathBuf,
    cgroup: Cgroup,
    /// The memory limits of the containers that have not ended, by id.
    limits: Mutex<HashMap<Arc<str>, Option<u64>>>,
}

impl CellHome {
    /// In the cell's directory, and with its control group.
    ///
    /// # Errors
    /// As mkdir(2).
    pub fn new(directory: &Path, cgroup: Cgroup) -> std::io::Result<Arc<CellHome>> {
        let records = directory.join(TASKS_DIRECTORY);
        std::fs::create_dir(&records)?;
        Ok(Arc::new(CellHome { records, cgroup, limits: Mutex::default() }))
    }

    /// A container's task is about to be made. `limit`: its memory limit, in bytes.
    ///
    /// # Errors
    /// `ResourceExhausted` if the limit is less than what the cell holds without it; `Internal` if the record or the limit
    /// cannot be written. Then nothing has changed.
    pub fn begin(&self, id: &Arc<str>, limit: Option<u64>, termination_log: Option<PathBuf>) -> Result<()> {
        self.set_limit(id, limit)?;
        self.note(id, termination_log).inspect_err(|_| self.end(id))
    }

    /// A task is about to be made that runs nothing: a pod's sandbox.
    ///
    /// # Errors
    /// `Internal` if the record cannot be written.
    pub fn note(&self, id: &Arc<str>, termination_log: Option<PathBuf>) -> Result<()> {
        let record = LivingTask { id: id.to_string(), termination_log };
        let written = serde_json::to_vec(&record).map_err(std::io::Error::other);
        written.and_then(|bytes| std::fs::write(self.record(id), bytes)).map_err(|e| {
            Error::Internal(format!("cannot note the task for hearthd in {}: {e}", self.records.display()))
        })
    }

    /// Sets the memory limit of a container, in bytes.
    ///
    /// # Errors
    /// As [`CellHome::begin`].
    pub fn set_limit(&self, id: &Arc<str>, limit: Option<u64>) -> Result<()> {
        let mut limits = self.limits.lock();
        let mut changed = limits.clone();
        changed.insert(id.clone(), limit);
        self.apply(&changed)?;
        *limits = changed;
        Ok(())
    }

    /// The end of a task has been told.
    pub fn end(&self, id: &Arc<str>) {
        {
            let mut limits = self.limits.lock();
            limits.remove(id);
            // A lower limit can be less than what the kernel still counts for the one that has ended; then the higher one
            // stays until the next change.
            if let Err(error) = self.apply(&limits) {
                tracing::debug!(%error, "the cell keeps its memory limit");
            }
        }
        let _ = std::fs::remove_file(self.record(id));
    }

    fn apply(&self, limits: &HashMap<Arc<str>, Option<u64>>) -> Result<()> {
        let limit = sum(limits.values().copied());
        if let Some(limit) = limit {
            let used = self.cgroup.memory_usage().unwrap_or(0);
            if limit < used.saturating_add(LEAST_ROOM_BYTES) {
                return Err(Error::ResourceExhausted(format!(
                    "linux.resources.memory.limit: the pod's process holds {used} bytes without its guests, and the pod's containers may have {limit} together; raise the limit, or choose a runtime class without a process for each pod"
                )));
            }
        }
        self.cgroup
            .limit_memory(limit)
            .map_err(|e| Error::Internal(format!("cannot set the memory limit of the pod's process: {e}")))
    }

    fn record(&self, id: &str) -> PathBuf {
        self.records.join(blake3::hash(id.as_bytes()).to_hex().as_str())
    }
}

/// The limit of all containers together. `None`: none. A cell without containers has none: it is about to get one, or to
/// end.
fn sum(limits: impl IntoIterator<Item = Option<u64>>) -> Option<u64> {
    let mut all = limits.into_iter().peekable();
    all.peek()?;
    all.try_fold(0u64, |sum, limit| Some(sum.saturating_add(limit?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_container_without_a_limit_leaves_the_pod_without() {
        assert_eq!(sum([]), None);
        assert_eq!(sum([Some(3), Some(4)]), Some(7));
        assert_eq!(sum([Some(3), None]), None);
        assert_eq!(sum([Some(u64::MAX), Some(1)]), Some(u64::MAX));
    }
}
