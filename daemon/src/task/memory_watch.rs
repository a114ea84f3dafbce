//! Watches the memory of the daemon's control group, so that the kernel never has to end the daemon, and every pod with it.
//!
//! ```text
//!   of the group's limit, without page cache that the kernel can drop at once
//!   below memory.refuse_percent    nothing
//!   from there on                  new containers are refused
//!   from memory.end_percent on     the container that is most over its share is ended, then the next one
//! ```
//!
//! The share of a container is its own memory limit, or an equal part of the group's limit if that is less. Its use is the
//! memory of its guests and the daemon's memory behind their handles. If no container is over its share, the largest one is
//! ended. The container ends as one that is out of memory.
//!
//! Without a limit of the group there is nothing to watch. A pod with a process of its own has a control group of its own.

use std::cmp::Reverse;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;

use hearth_base::config::Live;
use hearth_base::error::{Error, Result};
use hearth_observe::metrics::Metrics;
use hearth_os::memory_group::MemoryGroup;

use crate::task::Task;

/// The pause between two looks: short while new containers are refused, longer below that, long without a limit.
const EVERY: Duration = Duration::from_millis(50);
const EVERY_BELOW: Duration = Duration::from_millis(250);
const EVERY_WITHOUT_LIMIT: Duration = Duration::from_secs(10);

/// The time in which the memory of a container that was ended is given back, before the next one is ended.
const AFTER_END: Duration = Duration::from_secs(2);

/// The least part of the limit that a container has to have, so that its end is of use.
const USEFUL_PART: u64 = 100;

/// Tells whether new containers are refused for want of memory.
#[derive(Debug, Default)]
pub struct Shortage(AtomicBool);

impl Shortage {
    /// Refuses a new container while the daemon is near its limit.
    ///
    /// # Errors
    /// `ResourceExhausted` with a remedy.
    pub fn check(&self) -> Result<()> {
        match self.0.load(Ordering::Relaxed) {
            false => Ok(()),
            true => Err(Error::ResourceExhausted(
                "hearthd is near its memory limit (MemoryMax= of hearthd.service), and takes no new containers until others have ended: raise the limit, or run fewer Wasm containers on this node".into(),
            )),
        }
    }
}

/// Starts to watch, on `runtime`. `tasks`: the tasks of the daemon.
pub fn watch(
    live: Arc<Live>,
    tasks: impl Fn() -> Vec<Arc<Task>> + Send + 'static,
    shortage: Arc<Shortage>,
    metrics: Arc<Metrics>,
    runtime: &Handle,
) {
    runtime.spawn(async move {
        loop {
            // For a large group, the kernel can take milliseconds.
            let group = tokio::task::spawn_blocking(MemoryGroup::own).await.ok().flatten();
            let config = live.now().memory.clone();
            let is_near = group.is_some_and(|group| group.percent() >= config.refuse_percent);
            if is_near != shortage.0.swap(is_near, Ordering::Relaxed) {
                tracing::warn!(?group, is_near, "hearthd refuses new containers while its memory is near its limit");
                metrics.tasks.memory_shortage.set(i64::from(is_near));
            }
            let pause = match group {
                None => EVERY_WITHOUT_LIMIT,
                Some(group) if group.percent() >= config.end_percent && end_one(&tasks(), group.limit) => AFTER_END,
                Some(_) if is_near => EVERY,
                Some(_) => EVERY_BELOW,
            };
            tokio::time::sleep(pause).await;
        }
    });
}

/// A running container's memory, in bytes.
#[derive(Debug, Clone, Copy)]
struct Use {
    used: u64,
    /// Its own limit.
    own: u64,
}

/// The number of the container to end, of those with these uses, in a group with this limit.
fn most_over(uses: &[Use], limit: u64) -> Option<usize> {
    let equal = limit / (uses.len().max(1) as u64);
    let over = |use_: &Use| use_.used.saturating_sub(use_.own.min(equal));
    let useful = uses.iter().enumerate().filter(|(_, use_)| use_.used >= limit / USEFUL_PART);
    // Among equals the first one, which has the lower number.
    useful.max_by_key(|(at, use_)| (over(use_), use_.used, Reverse(*at))).map(|(at, _)| at)
}

/// Ends the container that is most over its share; `false` if none is worth it.
fn end_one(tasks: &[Arc<Task>], limit: u64) -> bool {
    let running: Vec<_> = tasks.iter().filter(|task| task.init.is_running()).collect();
    let of = |task: &&Arc<Task>| Use { used: task.container.memory.current(), own: task.container.memory.limit() };
    let uses: Vec<_> = running.iter().map(of).collect();
    let Some(at) = most_over(&uses, limit) else { return false };
    let (task, used) = (running[at], uses[at].used);
    let text = format!(
        "out of memory: hearthd is near its limit of {limit} bytes, and this container with {used} bytes is most over its share; set resources.limits.memory, or raise MemoryMax= of hearthd.service"
    );
    tracing::warn!(namespace = %task.container.namespace, task = %task.id(), used, limit, "the container that is most over its share of the memory is ended");
    task.init.end_for_memory(&text);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(uses: &[(u64, u64)]) -> Option<usize> {
        let uses: Vec<_> = uses.iter().map(|&(used, own)| Use { used, own }).collect();
        most_over(&uses, 1_000)
    }

    #[test]
    fn the_container_that_is_most_over_its_share_is_found() {
        assert_eq!(over(&[(300, u64::MAX), (600, u64::MAX)]), Some(1));
        assert_eq!(over(&[(400, 100), (500, 490)]), Some(0), "a lower limit is a smaller share");
        assert_eq!(over(&[(450, 900), (550, 10_000)]), Some(1), "a high limit is no share");
        assert_eq!(over(&[(100, 200), (240, 250), (20, 30), (9, 9)]), Some(1), "none is over it: the largest");
        assert_eq!(over(&[(200, 10), (200, 10)]), Some(0));
        assert_eq!(over(&[(9, 1), (0, 0)]), None, "its end would be of no use");
        assert_eq!(over(&[]), None);
    }

    #[test]
    fn a_shortage_refuses_with_a_remedy() {
        let shortage = Shortage::default();
        shortage.check().unwrap();
        shortage.0.store(true, Ordering::Relaxed);
        let Err(Error::ResourceExhausted(text)) = shortage.check() else { panic!() };
        assert!(text.contains("MemoryMax="), "{text}");
    }
}
