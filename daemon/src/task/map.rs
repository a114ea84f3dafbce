//! The tasks of one containerd instance and namespace, by id.
//!
//! A [`Reservation`] holds an id while its task is being created, so that two Creates of one id cannot
//! both succeed; dropping it gives the id back.

use std::collections::{HashMap, VecDeque};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::task::Task;
use hearth_base::error::{Error, Result};

/// How long a task may take from the answer with its task socket until its Create. containerd gives a shim less time.
const ARRIVAL_TIME: Duration = Duration::from_secs(30);

/// How long to wait for a task that is being created. containerd gives the answer 5 s.
const SETTLE_TIME: Duration = Duration::from_secs(4);

/// How many announced tasks are remembered.
const ARRIVING_MAX: usize = 4_096;

/// How many tasks the whole daemon has, against its limit, and which are announced: their shim has been told the task
/// socket, and their Create has not come yet.
pub struct TaskCount {
    limit: AtomicUsize,
    used: AtomicUsize,
    asked: AtomicUsize,
    arriving: Mutex<VecDeque<(Instant, Arc<str>)>>,
    /// Notified when a task is gone, or one that was announced was refused.
    fewer: Notify,
}

/// A question that may be answered with a task socket of this daemon; see [`TaskCount::asked`].
pub struct PendingQuestion(Arc<TaskCount>);

impl Drop for PendingQuestion {
    fn drop(&mut self) {
        self.0.asked.fetch_sub(1, Ordering::Release);
    }
}

impl TaskCount {
    /// `limit`: `rpc.tasks_max`.
    pub fn new(limit: usize) -> Arc<TaskCount> {
        let [used, asked] = [0, 0].map(AtomicUsize::new);
        Arc::new(TaskCount {
            limit: AtomicUsize::new(limit),
            used,
            asked,
            arriving: Mutex::default(),
            fewer: Notify::new(),
        })
    }

    /// Changes the limit; tasks beyond it stay.
    pub fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// How many tasks there are, with those that are being created.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Acquire)
    }

    /// A question for a task socket has come. A task may be announced until this is dropped, which is after
    /// [`Self::expect`] and the answer.
    pub fn asked(self: &Arc<Self>) -> PendingQuestion {
        self.asked.fetch_add(1, Ordering::AcqRel);
        PendingQuestion(self.clone())
    }

    /// Announces a task: its shim is told a task socket of this daemon.
    pub fn expect(&self, id: &str) {
        let mut arriving = self.arriving.lock();
        arriving.push_back((Instant::now(), id.into()));
        while arriving.len() > ARRIVING_MAX || arriving.front().is_some_and(|(at, _)| at.elapsed() > ARRIVAL_TIME) {
            arriving.pop_front();
        }
    }

    /// Whether there are no tasks, and none is announced.
    pub fn is_idle(&self) -> bool {
        // In this order: a task is announced before its question is dropped, and counted before its announcement is
        // removed.
        if self.asked.load(Ordering::Acquire) > 0 {
            return false;
        }
        let awaited = self.arriving.lock().iter().any(|(at, _)| at.elapsed() <= ARRIVAL_TIME);
        !awaited && self.used() == 0
    }

    /// Waits until there are no tasks, and none is announced. It looks again when a task is gone, and when an announced one
    /// has not come in its time.
    pub async fn idle(&self) {
        loop {
            let mut fewer = pin!(self.fewer.notified());
            // Enabled before the check, so that no notification is missed between the check and the wait.
            fewer.as_mut().enable();
            if self.is_idle() {
                return;
            }
            match self.used() {
                0 => drop(tokio::time::timeout(ARRIVAL_TIME, fewer).await),
                _ => fewer.await,
            }
        }
    }

    fn arrived(&self, id: &str) {
        let mut arriving = self.arriving.lock();
        // The oldest are in front, where this task is likely to be.
        if let Some(place) = arriving.iter().position(|(_, expected)| **expected == *id) {
            arriving.remove(place);
        }
    }

    fn take(&self) -> Result<()> {
        let limit = self.limit.load(Ordering::Relaxed);
        self.used
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |used| (used < limit).then_some(used + 1))
            .map(|_| ())
            .map_err(|used| {
                Error::ResourceExhausted(format!("the node has {used} Wasm tasks, as many as it may (rpc.tasks_max)"))
            })
    }

    fn give_back(&self) {
        self.used.fetch_sub(1, Ordering::AcqRel);
        self.fewer.notify_waiters();
    }
}

enum MapEntry {
    Reserved,
    Task(Arc<Task>),
}

/// The map.
pub struct TaskMap {
    entries: Mutex<HashMap<Arc<str>, MapEntry>>,
    /// Notified when a Create has succeeded or failed.
    settled: Notify,
    count: Arc<TaskCount>,
}

impl TaskMap {
    /// An empty map that counts against `count`.
    pub fn new(count: Arc<TaskCount>) -> Arc<TaskMap> {
        Arc::new(TaskMap { entries: Mutex::default(), settled: Notify::new(), count })
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
        self.count.arrived(id);
        let id: Arc<str> = id.into();
        entries.insert(id.clone(), MapEntry::Reserved);
        Ok(Reservation { map: self.clone(), id: Some(id) })
    }

    /// An announced task was refused: it is not expected any more.
    pub fn turned_away(&self, id: &str) {
        self.count.arrived(id);
        self.count.fewer.notify_waiters();
    }

    /// The task with this id.
    ///
    /// # Errors
    /// `NotFound` also while it is being created: containerd learns of it from the answer to Create.
    pub fn get(&self, id: &str) -> Result<Arc<Task>> {
        match self.entries.lock().get(id) {
            Some(MapEntry::Task(task)) => Ok(task.clone()),
            Some(MapEntry::Reserved) | None => Err(Error::NotFound(format!("task {id} not found"))),
        }
    }

    /// The task with this id; waits for a Create that is under way. For a caller that has not created it: a restarted
    /// containerd removes the bundle of a task that is not found, while the Create of the containerd that died goes on.
    ///
    /// # Errors
    /// `NotFound` if there is none, or none after `SETTLE_TIME`.
    pub async fn settled(&self, id: &str) -> Result<Arc<Task>> {
        let settle = async {
            loop {
                let mut told = pin!(self.settled.notified());
                // Enabled before the check, so that no notification is missed between the check and the wait.
                told.as_mut().enable();
                if !matches!(self.entries.lock().get(id), Some(MapEntry::Reserved)) {
                    return;
                }
                told.await;
            }
        };
        // After the time-out the state is reported as it is.
        let _ = tokio::time::timeout(SETTLE_TIME, settle).await;
        self.get(id)
    }

    /// Takes a task out; `false` if it has been taken out already.
    pub fn remove(&self, task: &Arc<Task>) -> bool {
        let mut entries = self.entries.lock();
        match entries.get(task.id()) {
            Some(MapEntry::Task(found)) if Arc::ptr_eq(found, task) => {
                entries.remove(task.id());
                self.count.give_back();
                true
            }
            _ => false,
        }
    }

    /// All tasks, in no order.
    pub fn all(&self) -> Vec<Arc<Task>> {
        let tasks = |entry: &MapEntry| match entry {
            MapEntry::Task(task) => Some(task.clone()),
            MapEntry::Reserved => None,
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
            self.map.entries.lock().insert(id, MapEntry::Task(task));
            self.map.settled.notify_waiters();
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            self.map.entries.lock().remove(&id);
            self.map.count.give_back();
            self.map.settled.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

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

    #[tokio::test]
    async fn a_caller_that_asks_for_a_task_that_is_being_created_waits_for_the_result() {
        let map = TaskMap::new(TaskCount::new(1));
        assert!(map.settled("a").await.is_err());
        let reservation = map.reserve("a").unwrap();
        let mut asks = Box::pin(map.settled("a"));
        assert!(asks.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(reservation);
        assert!(asks.await.is_err());
    }

    #[test]
    fn nothing_is_idle_while_a_task_is_there_or_on_its_way() {
        let count = TaskCount::new(2);
        let map = TaskMap::new(count.clone());
        assert!(count.is_idle());
        let asked = count.asked();
        assert!(!count.is_idle(), "a task may be announced");
        count.expect("a");
        drop(asked);
        count.expect("b");
        assert!(!count.is_idle());
        let a = map.reserve("a").unwrap();
        let b = map.reserve("b").unwrap();
        assert!(!count.is_idle() && count.used() == 2);
        drop((a, b));
        assert!(count.is_idle());
        count.expect("refused");
        assert!(!count.is_idle());
        map.turned_away("refused");
        assert!(count.is_idle());
    }
}
