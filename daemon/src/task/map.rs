//! The tasks of one containerd instance and namespace, by id.
//!
//! A [`Reservation`] holds an id while its task is being created, so that two Creates of one id cannot
//! both succeed; dropping it gives the id back.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::task::Task;

/// How many tasks the whole daemon has, against its limit.
pub struct TaskCount {
    limit: usize,
    used: AtomicUsize,
}

impl TaskCount {
    /// `limit`: `rpc.tasks_max`.
    pub fn new(limit: usize) -> Arc<TaskCount> {
        Arc::new(TaskCount { limit, used: AtomicUsize::new(0) })
    }

    fn take(&self) -> Result<()> {
        self.used
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |used| (used < self.limit).then_some(used + 1))
            .map(|_| ())
            .map_err(|used| {
                Error::ResourceExhausted(format!("the node has {used} Wasm tasks, as many as it may (rpc.tasks_max)"))
            })
    }

    fn give_back(&self) {
        self.used.fetch_sub(1, Ordering::AcqRel);
    }
}

enum Entry {
    Reserved,
    Task(Arc<Task>),
}

/// The map.
pub struct TaskMap {
    entries: Mutex<HashMap<Arc<str>, Entry>>,
    count: Arc<TaskCount>,
}

impl TaskMap {
    /// An empty map that counts against `count`.
    pub fn new(count: Arc<TaskCount>) -> Arc<TaskMap> {
        Arc::new(TaskMap { entries: Mutex::new(HashMap::new()), count })
    }

    /// Takes an id.
    ///
    /// # Errors
    /// `AlreadyExists` if it is taken, `ResourceExhausted` if there are too many tasks.
    pub fn reserve(self: &Arc<Self>, id: &str) -> Result<Reservation> {
        let mut entries = self.entries.lock();
        if entries.contains_key(id) {
            return Err(Error::AlreadyExists(format!("task {id} exists already")));
        }
        self.count.take()?;
        let id: Arc<str> = id.into();
        entries.insert(id.clone(), Entry::Reserved);
        Ok(Reservation { map: self.clone(), id: Some(id) })
    }

    /// The task with this id.
    ///
    /// # Errors
    /// `NotFound` also while it is being created: containerd learns of it by Create's answer.
    pub fn get(&self, id: &str) -> Result<Arc<Task>> {
        match self.entries.lock().get(id) {
            Some(Entry::Task(task)) => Ok(task.clone()),
            Some(Entry::Reserved) | None => Err(Error::NotFound(format!("task {id} not found"))),
        }
    }

    /// Takes a task out; `false` if somebody else did.
    pub fn remove(&self, task: &Arc<Task>) -> bool {
        let mut entries = self.entries.lock();
        match entries.get(task.id()) {
            Some(Entry::Task(found)) if Arc::ptr_eq(found, task) => {
                entries.remove(task.id());
                self.count.give_back();
                true
            }
            _ => false,
        }
    }

    /// All tasks, in no order.
    pub fn all(&self) -> Vec<Arc<Task>> {
        let tasks = |entry: &Entry| match entry {
            Entry::Task(task) => Some(task.clone()),
            Entry::Reserved => None,
        };
        self.entries.lock().values().filter_map(tasks).collect()
    }
}

/// An id taken for a task that is being created.
pub struct Reservation {
    map: Arc<TaskMap>,
    id: Option<Arc<str>>,
}

impl Reservation {
    /// Puts the task in its place.
    pub fn fill(mut self, task: Arc<Task>) {
        if let Some(id) = self.id.take() {
            self.map.entries.lock().insert(id, Entry::Task(task));
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            self.map.entries.lock().remove(&id);
            self.map.count.give_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_taken_while_its_task_is_being_created_and_free_after_a_failure() {
        let map = TaskMap::new(TaskCount::new(2));
        let reservation = map.reserve("a").unwrap();
        assert!(matches!(map.reserve("a"), Err(Error::AlreadyExists(_))));
        assert!(matches!(map.get("a"), Err(Error::NotFound(_))));
        drop(reservation);
        let again = map.reserve("a").unwrap();
        let other = map.reserve("b").unwrap();
        assert!(matches!(map.reserve("c"), Err(Error::ResourceExhausted(_))));
        drop((again, other));
        map.reserve("c").unwrap();
    }
}
