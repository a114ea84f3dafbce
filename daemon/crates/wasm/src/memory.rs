//! A container's memory limit: the bytes that its guests' linear memories and tables, and the daemon for them, hold together
//! and may hold.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use wasmtime::ResourceLimiter;

use crate::engine::structure::StructureLimits;

/// Bytes a table element takes on the host.
pub const TABLE_ELEMENT_BYTES: u64 = 8;

/// Memory of a container that is held in case it is of use, and can be given back at any time.
pub trait Reclaim: std::fmt::Debug + Send + Sync {
    /// Gives it back. Returns whether there was any.
    fn reclaim(&self) -> bool;
}

/// The memory of one container's guests, shared by their stores, its statistics and updates of its limit; or of all
/// guests of a pod.
#[derive(Debug)]
pub struct MemoryUse {
    limit: AtomicU64,
    current: AtomicU64,
    peak: AtomicU64,
    refused: AtomicU64,
    /// Whether a guest ended for want of it.
    fatal: AtomicBool,
    /// The memory of the pod, which contains this.
    pod: Option<Arc<PodMemory>>,
    spare: OnceLock<Arc<dyn Reclaim>>,
}

/// The memory of all guests of a pod.
pub struct PodMemory {
    used: MemoryUse,
    /// The present limit, in bytes, if there is one.
    read_limit: Box<dyn Fn() -> Option<u64> + Send + Sync>,
}

impl std::fmt::Debug for PodMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PodMemory").field("used", &self.used).finish_non_exhaustive()
    }
}

impl PodMemory {
    /// A use of 0 bytes. `read_limit` reads the limit in bytes, `None` for none: now, at [`PodMemory::refresh`], and
    /// before a growth is refused.
    pub fn new(read_limit: impl Fn() -> Option<u64> + Send + Sync + 'static) -> PodMemory {
        let used = MemoryUse::new(read_limit().unwrap_or(u64::MAX));
        PodMemory { used, read_limit: Box::new(read_limit) }
    }

    /// Reads the limit again.
    pub fn refresh(&self) {
        self.used.set_limit((self.read_limit)().unwrap_or(u64::MAX));
    }

    fn take(&self, more: u64) -> bool {
        self.used.take(more) || {
            // It may have been raised.
            self.refresh();
            self.used.take(more)
        }
    }
}

impl MemoryUse {
    /// A use of 0 bytes, of at most `limit`.
    pub fn new(limit: u64) -> MemoryUse {
        MemoryUse {
            limit: AtomicU64::new(limit),
            current: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            fatal: AtomicBool::new(false),
            pod: None,
            spare: OnceLock::new(),
        }
    }

    /// The same within the memory of a pod.
    pub fn within(self, pod: Arc<PodMemory>) -> MemoryUse {
        MemoryUse { pod: Some(pod), ..self }
    }

    /// The limit of the pod, in bytes, if it has one.
    pub fn pod_limit(&self) -> Option<u64> {
        self.pod.as_ref().map(|pod| pod.used.limit()).filter(|limit| *limit != u64::MAX)
    }

    /// Has `spare` give back its memory before a growth is refused. Only the first one counts.
    pub fn reclaim_from(&self, spare: Arc<dyn Reclaim>) {
        // The same service is never bound twice.
        let _ = self.spare.set(spare);
    }

    /// The limit, in bytes.
    pub fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Changes the limit for every growth from now on. A guest that holds more keeps it: memory cannot be
    /// taken away from WebAssembly.
    pub fn set_limit(&self, limit: u64) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Linear memories and tables, in bytes.
    pub fn current(&self) -> u64 {
        self.current.load(Ordering::Relaxed)
    }

    /// The most it ever was, in bytes.
    pub fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    /// How often growing was refused for the limit.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Takes `more` bytes if the sum stays within the limit.
    fn take(&self, more: u64) -> bool {
        if self.try_take(more) || (self.spare.get().is_some_and(|spare| spare.reclaim()) && self.try_take(more)) {
            return true;
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        false
    }

    fn try_take(&self, more: u64) -> bool {
        let limit = self.limit();
        let add = |held: u64| held.checked_add(more).filter(|sum| *sum <= limit);
        let Ok(before) = self.current.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add) else { return false };
        if self.pod.as_ref().is_some_and(|pod| !pod.take(more)) {
            self.current.fetch_sub(more, Ordering::Relaxed);
            return false;
        }
        self.peak.fetch_max(before + more, Ordering::Relaxed);
        true
    }

    fn give_back(&self, bytes: u64) {
        self.current.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(pod) = &self.pod {
            pod.used.give_back(bytes);
        }
    }

    /// Memory that will be charged to the container.
    pub fn hold(self: &Arc<Self>) -> HeldMemory {
        HeldMemory { usage: self.clone(), bytes: 0 }
    }

    /// Records that a guest ended for want of memory.
    pub fn set_fatal(&self) {
        self.fatal.store(true, Ordering::Relaxed);
    }

    /// Whether a guest ended for want of memory.
    pub fn was_fatal(&self) -> bool {
        self.fatal.load(Ordering::Relaxed)
    }
}

/// Memory that is charged to a container until this is dropped: a guest's, or the daemon's for an answer of a server or a
/// cache.
#[derive(Debug)]
pub struct HeldMemory {
    usage: Arc<MemoryUse>,
    bytes: u64,
}

impl HeldMemory {
    /// The container's limit, in bytes.
    pub fn limit(&self) -> u64 {
        self.usage.limit()
    }

    /// Charges `more` bytes. `false`: the container has no room for them.
    pub fn grow(&mut self, more: u64) -> bool {
        let taken = self.usage.take(more);
        if taken {
            self.bytes += more;
        }
        taken
    }

    /// Charges this many bytes in all. `false`: the container has no room for them, and the charge is the former one.
    pub fn set(&mut self, bytes: u64) -> bool {
        match bytes.checked_sub(self.bytes) {
            Some(more) => self.grow(more),
            None => {
                self.usage.give_back(self.bytes - bytes);
                self.bytes = bytes;
                true
            }
        }
    }
}

impl Drop for HeldMemory {
    fn drop(&mut self) {
        self.usage.give_back(self.bytes);
    }
}

/// Counts a guest's memory over all its linear memories and tables, and refuses growth that would take the container
/// over its limit. The guest's share is given back when its store is dropped. Also bounds the number of core
/// instances, memories and tables of the store.
pub struct MemoryLimiter {
    held: HeldMemory,
    /// The most of this guest alone.
    max: u64,
    starved: Arc<AtomicBool>,
    structure: StructureLimits,
}

impl MemoryLimiter {
    /// Counts in `usage`; keeps in `starved` whether the last growth was refused.
    pub fn new(usage: Arc<MemoryUse>, starved: Arc<AtomicBool>, structure: StructureLimits) -> MemoryLimiter {
        MemoryLimiter { held: HeldMemory { usage, bytes: 0 }, max: u64::MAX, starved, structure }
    }

    /// The same for a guest that may have at most `max` bytes, if that is given.
    #[must_use]
    pub fn within(mut self, max: Option<u64>) -> MemoryLimiter {
        self.max = max.unwrap_or(u64::MAX);
        self
    }

    /// The container's memory.
    pub fn usage(&self) -> &Arc<MemoryUse> {
        &self.held.usage
    }

    /// Whether the last growth was refused.
    pub fn is_starved(&self) -> bool {
        self.starved.load(Ordering::Relaxed)
    }

    /// Records that the guest was refused memory, of which it can see nothing.
    pub fn set_starved(&self) {
        self.starved.store(true, Ordering::Relaxed);
    }

    fn grow(&mut self, current: u64, desired: u64) -> bool {
        let more = desired.saturating_sub(current);
        let taken = self.held.bytes.saturating_add(more) <= self.max && self.held.grow(more);
        self.starved.store(!taken, Ordering::Relaxed);
        taken
    }
}

impl ResourceLimiter for MemoryLimiter {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        Ok(self.grow(current as u64, desired as u64))
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        Ok(self.grow(current as u64 * TABLE_ELEMENT_BYTES, desired as u64 * TABLE_ELEMENT_BYTES))
    }

    fn instances(&self) -> usize {
        self.structure.core_instances as usize
    }

    fn tables(&self) -> usize {
        self.structure.tables as usize
    }

    fn memories(&self) -> usize {
        self.structure.memories as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRUCTURE: StructureLimits = StructureLimits { core_instances: 1, memories: 2, tables: 1 };

    #[test]
    fn memory_is_counted_over_all_memories_and_refused_at_the_limit() {
        let usage = Arc::new(MemoryUse::new(200_000));
        let starved = Arc::new(AtomicBool::new(false));
        let mut limits = MemoryLimiter::new(usage.clone(), starved.clone(), STRUCTURE);
        assert!(limits.memory_growing(0, 65_536, None).unwrap());
        assert!(limits.memory_growing(0, 65_536, None).unwrap());
        assert!(limits.table_growing(0, 100, None).unwrap());
        assert_eq!(usage.current(), 2 * 65_536 + 800);
        assert!(!limits.memory_growing(65_536, 3 * 65_536, None).unwrap());
        assert_eq!((usage.current(), usage.refused()), (2 * 65_536 + 800, 1));
        assert!(!limits.memory_growing(0, 10, Some(5)).unwrap(), "over the module's own maximum");
        assert_eq!(usage.refused(), 1, "the module's own maximum is not the container's limit");
        assert!(starved.load(Ordering::Relaxed));
        usage.set_limit(300_000);
        assert!(limits.memory_growing(65_536, 3 * 65_536, None).unwrap());
        assert!(!starved.load(Ordering::Relaxed));
        usage.set_limit(1);
        assert!(!limits.memory_growing(0, 1, None).unwrap(), "what is held stays, more is refused");
        assert_eq!((usage.current(), usage.limit()), (4 * 65_536 + 800, 1));
    }

    #[test]
    fn the_containers_of_a_pod_share_its_limit_which_is_read_before_it_refuses() {
        let limit = Arc::new(AtomicU64::new(150_000));
        let read = limit.clone();
        let pod = Arc::new(PodMemory::new(move || Some(read.load(Ordering::Relaxed))));
        let usage = [(); 2].map(|()| Arc::new(MemoryUse::new(100_000).within(pod.clone())));
        let [mut one, mut other] =
            [0, 1].map(|at: usize| MemoryLimiter::new(usage[at].clone(), Arc::default(), STRUCTURE));
        assert!(one.memory_growing(0, 90_000, None).unwrap());
        assert!(!one.memory_growing(90_000, 110_000, None).unwrap(), "over its own limit");
        assert!(!other.memory_growing(0, 70_000, None).unwrap(), "over the pod's");
        assert_eq!((usage[1].current(), usage[1].refused(), usage[1].pod_limit()), (0, 1, Some(150_000)));
        limit.store(200_000, Ordering::Relaxed);
        assert!(other.memory_growing(0, 70_000, None).unwrap(), "it was raised");
        limit.store(1, Ordering::Relaxed);
        pod.refresh();
        drop(one);
        assert!(!other.memory_growing(70_000, 70_001, None).unwrap(), "what is held stays, more is refused");
        drop(other);
        assert_eq!(pod.used.current(), 0);
    }

    #[test]
    fn memory_of_the_daemon_counts_as_the_containers_until_it_is_dropped() {
        let usage = Arc::new(MemoryUse::new(100));
        let mut held = usage.hold();
        assert!(held.grow(60) && !held.grow(41) && held.grow(40));
        assert_eq!((usage.current(), usage.refused()), (100, 1));
        drop(held);
        assert_eq!(usage.current(), 0);
    }

    #[test]
    fn guests_of_one_task_share_its_limit_and_give_back_what_they_held() {
        let usage = Arc::new(MemoryUse::new(200_000));
        let [mut init, mut exec] = [(); 2].map(|()| MemoryLimiter::new(usage.clone(), Arc::default(), STRUCTURE));
        assert!(init.memory_growing(0, 65_536, None).unwrap());
        assert!(exec.memory_growing(0, 131_072, None).unwrap());
        assert!(!init.memory_growing(65_536, 131_072, None).unwrap());
        drop(exec);
        assert_eq!((usage.current(), usage.peak()), (65_536, 196_608));
        assert!(init.memory_growing(65_536, 131_072, None).unwrap());
        drop(init);
        assert_eq!(usage.current(), 0);
    }
}
