//! The execs of one task, by id, and how they end with its init.
//!
//! ```text
//!   reserve(id) ─▶ fill ─▶ begin ─▶ ended ─▶ remove
//!                            │         ▲
//!   the init ends: close ────┴─ kills ─┘   the last to end does what follows the init's end
//! ```
//!
//! The end of a container's first process ends the others, and theirs is told before its own, as a
//! kernel that ends a pid namespace and containerd's runc shim have it: whoever hears that the task has
//! ended may rely on nothing of it running any more.
//!
//! One lock guards the map and decides all races. It is held for a few instructions; a process's own
//! lock may be taken within it, never the other way round.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::task::process::Process;
use hearth_base::error::{Error, Result};

/// The execs of one task.
pub struct Execs {
    limit: usize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// `None`: the id is taken for one that is being made.
    entries: HashMap<Arc<str>, Option<Arc<Process>>>,
    /// Those that have been started and not ended.
    running: usize,
    /// The init has ended.
    closed: bool,
    /// The task is paused.
    paused: bool,
    /// What to do once none runs.
    afterwards: Option<Box<dyn FnOnce() + Send>>,
}

impl Execs {
    /// None yet, and `limit` at most.
    pub fn new(limit: usize) -> Execs {
        Execs { limit, inner: Mutex::default() }
    }

    /// Takes an id.
    ///
    /// # Errors
    /// `AlreadyExists` if it is taken, `ResourceExhausted` if there are too many,
    /// `FailedPrecondition` if the init has ended.
    pub fn reserve(&self, id: &str) -> Result<Reserved<'_>> {
        let mut inner = self.inner.lock();
        if inner.closed {
            return Err(Error::FailedPrecondition("cannot exec in a stopped task: its init process has ended".into()));
        }
        if inner.entries.contains_key(id) {
            return Err(Error::AlreadyExists(format!("exec {id} exists already")));
        }
        if inner.entries.len() >= self.limit {
            return Err(Error::ResourceExhausted(format!(
                "the task has {} execs, as many as it may (rpc.execs_per_task_max); delete those that have ended",
                self.limit
            )));
        }
        let id: Arc<str> = id.into();
        inner.entries.insert(id.clone(), None);
        Ok(Reserved { execs: self, id: Some(id) })
    }

    /// The exec with this id; none also while it is being made.
    pub fn get(&self, id: &str) -> Option<Arc<Process>> {
        self.inner.lock().entries.get(id)?.clone()
    }

    /// Those that exist, in no order.
    pub fn all(&self) -> Vec<Arc<Process>> {
        self.inner.lock().entries.values().flatten().cloned().collect()
    }

    /// Takes one out.
    pub fn remove(&self, exec: &Arc<Process>) {
        let mut inner = self.inner.lock();
        if matches!(inner.entries.get(&exec.id), Some(Some(found)) if Arc::ptr_eq(found, exec)) {
            inner.entries.remove(&exec.id);
        }
    }

    /// Takes all out, and lets no more in.
    pub fn take_all(&self) -> Vec<Arc<Process>> {
        let mut inner = self.inner.lock();
        inner.closed = true;
        std::mem::take(&mut inner.entries).into_values().flatten().collect()
    }

    /// Lets an exec start, with `start` changing its state: afterwards the end of the init either finds
    /// it running, or it has not been started.
    ///
    /// # Errors
    /// `FailedPrecondition` if the init has ended, and what `start` says.
    pub(super) fn begin<T>(&self, start: impl FnOnce() -> Result<T>) -> Result<T> {
        let mut inner = self.inner.lock();
        if inner.closed {
            return Err(Error::FailedPrecondition("the task has ended, and its execs with it".into()));
        }
        if inner.paused {
            return Err(Error::FailedPrecondition("the task is paused; resume it first".into()));
        }
        let started = start()?;
        inner.running += 1;
        Ok(started)
    }

    /// The task is paused, and with its init's guest those that run: none starts.
    pub(super) fn pause(&self) {
        self.inner.lock().paused = true;
    }

    /// The task is resumed.
    pub(super) fn resume(&self) {
        self.inner.lock().paused = false;
        self.wake();
    }

    /// Lets those that run look at what has changed of their init's guest.
    pub(super) fn wake(&self) {
        self.inner.lock().entries.values().flatten().for_each(|exec| exec.guest.wake());
    }

    /// One that had begun has ended, and its exit is told.
    pub(super) fn ended(&self) {
        let afterwards = {
            let mut inner = self.inner.lock();
            inner.running -= 1;
            if inner.running == 0 { inner.afterwards.take() } else { None }
        };
        if let Some(afterwards) = afterwards {
            afterwards();
        }
    }

    /// The init has ended: no exec starts any more, those that run are ended, and `afterwards` is done
    /// when none is left; at once if none is.
    pub(super) fn close(&self, afterwards: impl FnOnce() + Send + 'static) {
        let running: Vec<_> = {
            let mut inner = self.inner.lock();
            inner.closed = true;
            if inner.running > 0 {
                inner.afterwards = Some(Box::new(afterwards));
                inner.entries.values().flatten().cloned().collect()
            } else {
                drop(inner);
                return afterwards();
            }
        };
        for exec in running {
            exec.end_with_init();
        }
    }
}

/// An id taken for an exec that is being made; dropped, it is free again.
pub struct Reserved<'a> {
    execs: &'a Execs,
    id: Option<Arc<str>>,
}

impl Reserved<'_> {
    /// Puts the exec in its place, and does `announce` before anybody finds it.
    ///
    /// # Errors
    /// `FailedPrecondition` if the init has ended meanwhile.
    pub fn fill(mut self, exec: Arc<Process>, announce: impl FnOnce()) -> Result<()> {
        let mut inner = self.execs.inner.lock();
        if inner.closed {
            drop(inner);
            return Err(Error::FailedPrecondition("the task has ended".into()));
        }
        if let Some(id) = self.id.take() {
            announce();
            inner.entries.insert(id, Some(exec));
        }
        Ok(())
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            self.execs.inner.lock().entries.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn refusal<T>(result: Result<T>) -> Error {
        result.err().expect("a refusal")
    }

    #[test]
    fn an_id_is_taken_while_its_exec_is_being_made_and_free_after_a_failure() {
        let execs = Execs::new(2);
        let reserved = execs.reserve("a").unwrap();
        assert!(matches!(refusal(execs.reserve("a")), Error::AlreadyExists(_)));
        assert!(execs.get("a").is_none());
        drop(reserved);
        let held = [execs.reserve("a").unwrap(), execs.reserve("b").unwrap()];
        let full = refusal(execs.reserve("c"));
        assert!(matches!(&full, Error::ResourceExhausted(text) if text.contains("rpc.execs_per_task_max")), "{full}");
        drop(held);
        execs.reserve("c").unwrap();
    }

    #[test]
    fn what_follows_the_inits_end_waits_for_the_last_exec() {
        let execs = Execs::new(9);
        let done = Arc::new(AtomicBool::new(false));
        execs.begin(|| Ok(())).unwrap();
        execs.begin(|| Ok(())).unwrap();
        refusal(execs.begin(|| Err::<(), _>(Error::NotFound("x".into()))));
        let theirs = done.clone();
        execs.close(move || theirs.store(true, Ordering::SeqCst));
        assert!(matches!(refusal(execs.begin(|| Ok(()))), Error::FailedPrecondition(_)));
        assert!(matches!(refusal(execs.reserve("late")), Error::FailedPrecondition(_)));
        execs.ended();
        assert!(!done.load(Ordering::SeqCst));
        execs.ended();
        assert!(done.load(Ordering::SeqCst));
    }

    #[test]
    fn without_execs_the_end_of_the_init_waits_for_nothing() {
        let execs = Execs::new(9);
        execs.begin(|| Ok(())).unwrap();
        execs.ended();
        let done = Arc::new(AtomicBool::new(false));
        let theirs = done.clone();
        execs.close(move || theirs.store(true, Ordering::SeqCst));
        assert!(done.load(Ordering::SeqCst));
    }
}
