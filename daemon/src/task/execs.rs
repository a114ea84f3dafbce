//! The execs of one task, by id, and how they end with its init.
//!
//! ```text
//!   reserve(id) ─▶ fill ─▶ begin ─▶ ended ─▶ remove
//!                            │         ▲
//!   the init ends: close ────┴─ kills ─┘   the last to end takes the steps after the init's end
//! ```
//!
//! The end of a container's first process ends its execs, and their ends are told before its own, as with a kernel
//! that ends a pid namespace and with containerd's runc shim: when containerd hears that the task has ended, nothing
//! of it runs any more.
//!
//! The init decides that the task is paused, resumed or ended, and tells the execs. One lock guards the map and
//! decides all races. It is held for a few instructions; the lock of a process may be taken within it, never the
//! other way round.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use hearth_base::error::{Error, Result};
use hearth_base::tenant::{Kind, Permit, Tenant};

/// An exec, as the set of them sees it.
pub trait Member {
    /// Its id.
    fn id(&self) -> &Arc<str>;

    /// Lets its guest see a change of the init's guest: a pause or a limit.
    fn wake(&self);

    /// Ends it because the init ends, if it runs. An exec that was never started stays as it is.
    fn end_with_init(&self);
}

/// The execs of one task.
pub struct Execs<P> {
    tenant: Arc<Tenant>,
    inner: Mutex<Members<P>>,
}

struct Members<P> {
    entries: HashMap<Arc<str>, Entry<P>>,
    /// How many have been started and not ended.
    running: usize,
    starts: Starts,
    /// The call to make once none runs.
    afterwards: Option<Box<dyn FnOnce() + Send>>,
}

/// An id, and its exec.
struct Entry<P> {
    /// `None`: the id is taken for an exec that is being made.
    exec: Option<Arc<P>>,
    _permit: Permit,
}

/// The init's decision about a start of an exec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Starts {
    Allowed,
    /// The task is paused.
    Paused,
    /// The init has ended.
    Closed,
}

impl<P: Member> Execs<P> {
    /// An empty set, of at most as many execs as the container may have.
    pub fn new(tenant: Arc<Tenant>) -> Execs<P> {
        let members = Members { entries: HashMap::new(), running: 0, starts: Starts::Allowed, afterwards: None };
        Execs { tenant, inner: Mutex::new(members) }
    }

    /// Takes an id.
    ///
    /// # Errors
    /// `AlreadyExists` if it is taken, `ResourceExhausted` if there are too many,
    /// `FailedPrecondition` if the init has ended.
    pub fn reserve(&self, id: &str) -> Result<Reserved<'_, P>> {
        let mut inner = self.inner.lock();
        if inner.starts == Starts::Closed {
            return Err(Error::FailedPrecondition("cannot exec in a stopped task: its init process has ended".into()));
        }
        if inner.entries.contains_key(id) {
            return Err(Error::AlreadyExists(format!("exec {id} exists already")));
        }
        let permit = self.tenant.take(Kind::Execs, 1);
        let permit =
            permit.map_err(|full| Error::ResourceExhausted(format!("{full}; delete those that have ended")))?;
        let id: Arc<str> = id.into();
        inner.entries.insert(id.clone(), Entry { exec: None, _permit: permit });
        Ok(Reserved { execs: self, id: Some(id) })
    }

    /// The exec with this id; `None` also while it is being made.
    pub fn get(&self, id: &str) -> Option<Arc<P>> {
        self.inner.lock().entries.get(id)?.exec.clone()
    }

    /// All execs, in no order.
    pub fn all(&self) -> Vec<Arc<P>> {
        self.inner.lock().entries.values().filter_map(|entry| entry.exec.clone()).collect()
    }

    /// Takes an exec out.
    pub fn remove(&self, exec: &Arc<P>) {
        let mut inner = self.inner.lock();
        let found = inner.entries.get(exec.id()).and_then(|entry| entry.exec.as_ref());
        let is_it = found.is_some_and(|found| Arc::ptr_eq(found, exec));
        if is_it {
            inner.entries.remove(exec.id());
        }
    }

    /// Takes all out, and lets no more in.
    pub fn take_all(&self) -> Vec<Arc<P>> {
        let mut inner = self.inner.lock();
        inner.starts = Starts::Closed;
        std::mem::take(&mut inner.entries).into_values().filter_map(|entry| entry.exec).collect()
    }

    /// Lets an exec start; `start` changes its state. The end of the init then finds it either running or not
    /// started.
    ///
    /// # Errors
    /// `FailedPrecondition` if the init has ended, and what `start` says.
    pub(super) fn begin<T>(&self, start: impl FnOnce() -> Result<T>) -> Result<T> {
        let mut inner = self.inner.lock();
        if inner.starts == Starts::Closed {
            return Err(Error::FailedPrecondition("the task has ended, and its execs with it".into()));
        }
        if inner.starts == Starts::Paused {
            return Err(Error::FailedPrecondition("the task is paused; resume it first".into()));
        }
        let started = start()?;
        inner.running += 1;
        Ok(started)
    }

    /// The task is paused; the guests of its execs are paused with that of the init. None starts.
    pub(super) fn pause(&self) {
        self.inner.lock().replace_starts(Starts::Allowed, Starts::Paused);
    }

    /// The task is resumed.
    pub(super) fn resume(&self) {
        self.inner.lock().replace_starts(Starts::Paused, Starts::Allowed);
        self.wake();
    }

    /// Lets the execs see a change of the init's guest.
    pub(super) fn wake(&self) {
        self.all().iter().for_each(|exec| exec.wake());
    }

    /// The init is being killed: so is every exec that runs.
    pub(super) fn end_running(&self) {
        self.all().iter().for_each(|exec| exec.end_with_init());
    }

    /// An exec that had begun has ended, and its exit is told.
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

    /// The init has ended: no exec starts any more, the execs that run are ended, and `afterwards` is done when
    /// none is left; at once if none is.
    pub(super) fn close(&self, afterwards: impl FnOnce() + Send + 'static) {
        {
            let mut inner = self.inner.lock();
            inner.starts = Starts::Closed;
            if inner.running == 0 {
                drop(inner);
                return afterwards();
            }
            inner.afterwards = Some(Box::new(afterwards));
        }
        self.end_running();
    }
}

impl<P> Members<P> {
    /// A pause or a resume that comes after the end changes nothing.
    fn replace_starts(&mut self, from: Starts, to: Starts) {
        if self.starts == from {
            self.starts = to;
        }
    }
}

/// An id taken for an exec that is being made; dropped, it is free again.
pub struct Reserved<'a, P> {
    execs: &'a Execs<P>,
    id: Option<Arc<str>>,
}

impl<P: Member> Reserved<'_, P> {
    /// Puts the exec in its place, and calls `announce` before it can be found.
    ///
    /// # Errors
    /// `FailedPrecondition` if the init has ended meanwhile.
    pub fn fill(mut self, exec: Arc<P>, announce: impl FnOnce()) -> Result<()> {
        let mut inner = self.execs.inner.lock();
        if inner.starts == Starts::Closed {
            drop(inner);
            return Err(Error::FailedPrecondition("the task has ended".into()));
        }
        if let Some(entry) = self.id.take().and_then(|id| inner.entries.get_mut(&id)) {
            announce();
            entry.exec = Some(exec);
        }
        Ok(())
    }
}

impl<P> Drop for Reserved<'_, P> {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            self.execs.inner.lock().entries.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use hearth_base::tenant::Limits;

    use super::*;

    /// An exec without a guest.
    struct Fake {
        id: Arc<str>,
        woken: AtomicUsize,
        ends: AtomicUsize,
    }

    impl Fake {
        fn new(id: &str) -> Arc<Fake> {
            Arc::new(Fake { id: id.into(), woken: AtomicUsize::new(0), ends: AtomicUsize::new(0) })
        }
    }

    impl Member for Fake {
        fn id(&self) -> &Arc<str> {
            &self.id
        }

        fn wake(&self) {
            self.woken.fetch_add(1, Ordering::SeqCst);
        }

        fn end_with_init(&self) {
            self.ends.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn container(limit: u64) -> Arc<Tenant> {
        Tenant::unnamed(&Limits::none().with(Kind::Execs, limit))
    }

    fn refusal<T>(result: Result<T>) -> Error {
        result.err().expect("a refusal")
    }

    fn add(execs: &Execs<Fake>, id: &str) -> Arc<Fake> {
        let exec = Fake::new(id);
        execs.reserve(id).unwrap().fill(exec.clone(), || ()).unwrap();
        exec
    }

    #[test]
    fn an_id_is_taken_while_its_exec_is_being_made_and_free_after_a_failure() {
        let execs = Execs::<Fake>::new(container(2));
        let reserved = execs.reserve("a").unwrap();
        assert!(matches!(refusal(execs.reserve("a")), Error::AlreadyExists(_)));
        assert!(execs.get("a").is_none());
        drop(reserved);
        let held = [execs.reserve("a").unwrap(), execs.reserve("b").unwrap()];
        let full = refusal(execs.reserve("c"));
        assert!(matches!(&full, Error::ResourceExhausted(text) if text.contains("tenant.execs_max")), "{full}");
        drop(held);
        execs.reserve("c").unwrap();
    }

    #[test]
    fn an_exec_is_found_under_its_id_until_it_is_removed() {
        let execs = Execs::new(container(9));
        let first = add(&execs, "a");
        assert!(Arc::ptr_eq(&execs.get("a").unwrap(), &first));
        // Another exec of the same id is not taken for it.
        execs.remove(&Fake::new("a"));
        assert_eq!(execs.all().len(), 1);
        execs.remove(&first);
        assert!(execs.get("a").is_none());
        add(&execs, "a");
    }

    #[test]
    fn no_exec_starts_while_the_task_is_paused() {
        let execs = Execs::new(container(9));
        let exec = add(&execs, "a");
        execs.pause();
        let error = refusal(execs.begin(|| Ok(())));
        assert!(matches!(&error, Error::FailedPrecondition(text) if text.contains("paused")), "{error}");
        execs.resume();
        execs.begin(|| Ok(())).unwrap();
        assert_eq!(exec.woken.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_resume_after_the_end_lets_no_exec_start() {
        let execs = Execs::<Fake>::new(container(9));
        execs.pause();
        execs.close(|| ());
        execs.resume();
        execs.pause();
        assert!(matches!(refusal(execs.begin(|| Ok(()))), Error::FailedPrecondition(_)));
        assert!(matches!(refusal(execs.reserve("late")), Error::FailedPrecondition(_)));
    }

    #[test]
    fn what_follows_the_inits_end_waits_for_the_last_exec() {
        let execs = Execs::new(container(9));
        let exec = add(&execs, "a");
        let done = Arc::new(AtomicBool::new(false));
        execs.begin(|| Ok(())).unwrap();
        execs.begin(|| Ok(())).unwrap();
        refusal(execs.begin(|| Err::<(), _>(Error::NotFound("x".into()))));
        // A kill of the init marks its execs before the init has ended.
        execs.end_running();
        assert_eq!(exec.ends.load(Ordering::SeqCst), 1);
        let theirs = done.clone();
        execs.close(move || theirs.store(true, Ordering::SeqCst));
        assert_eq!(exec.ends.load(Ordering::SeqCst), 2);
        assert!(matches!(refusal(execs.begin(|| Ok(()))), Error::FailedPrecondition(_)));
        execs.ended();
        assert!(!done.load(Ordering::SeqCst));
        execs.ended();
        assert!(done.load(Ordering::SeqCst));
    }

    #[test]
    fn without_execs_the_end_of_the_init_waits_for_nothing() {
        let execs = Execs::<Fake>::new(container(9));
        execs.begin(|| Ok(())).unwrap();
        execs.ended();
        let done = Arc::new(AtomicBool::new(false));
        let theirs = done.clone();
        execs.close(move || theirs.store(true, Ordering::SeqCst));
        assert!(done.load(Ordering::SeqCst));
    }
}
