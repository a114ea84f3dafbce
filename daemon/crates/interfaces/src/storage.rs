//! SQLite databases of a container, on a thread of their own.
//!
//! A database's file is on a volume or in the container's root, so a call on it may wait for a disk that does not answer,
//! and its path may lead through links that a guest makes. So the thread has the root directory and the user of the
//! container ([`hearth_os::rooted`]), and only this container's calls wait for it. It starts with the first call and ends
//! with the container.
//!
//! A call ends at its deadline, and when its guest ends. The CPU time of a call is charged to its guest.
//!
//! * `tests.rs`: statements that try to reach or take more than they may.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::limits::Limit;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::{mpsc, oneshot};

use hearth_os::identity::Identity;
use hearth_os::rooted;
use hearth_wasm::memory::{HeldMemory, MemoryUse};
use hearth_wasm::scheduler::Guest;

/// Calls that may wait for the thread; the callers of more wait before that.
const JOBS_MAX: usize = 64;

/// Memory for the pages of one open database, in KiB. It is charged to the container.
const CACHE_KIB: u64 = 512;

/// Steps of SQLite's virtual machine between two looks at the deadline.
const STEPS: i32 = 1000;

/// How long a call waits before it tries again a database that another connection has locked.
const LOCKED_WAIT: Duration = Duration::from_millis(5);

/// The longest statement, in bytes.
const STATEMENT_BYTES_MAX: i32 = 1 << 20;

/// Databases attached to one connection: VACUUM needs one.
const ATTACHED_MAX: i32 = 1;

/// The thread, as callers see it.
pub struct Storage {
    root: PathBuf,
    identity: Identity,
    thread: Mutex<Thread>,
    closed: Arc<AtomicBool>,
    /// Connections that no call uses any more.
    unused: Arc<Mutex<Vec<ConnectionKey>>>,
}

enum Thread {
    NotStarted,
    Running(mpsc::Sender<Job>),
}

type Job = Box<dyn FnOnce(&mut OpenDatabases) + Send>;

/// Why a call on a database failed.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The container has ended.
    #[error("the container has ended")]
    Closed,
    /// The deadline.
    #[error("the call took longer than interfaces.call_timeout_ms allows")]
    Late,
    /// There is no thread, or it cannot have the container's root or user.
    #[error("{0}")]
    Thread(String),
    /// The container has no memory left.
    #[error("the container has no memory left: its limit is {0} bytes")]
    Memory(u64),
    /// The answer is too large.
    #[error("the answer is larger than interfaces.answer_bytes_max ({0} bytes)")]
    Large(u64),
    /// The directory of a database cannot be made.
    #[error("{path}: {error}", path = path.display())]
    Directory {
        /// Its path in the container.
        path: PathBuf,
        /// The kernel's reason.
        error: io::Error,
    },
    /// SQLite's error.
    #[error("{0}")]
    Sqlite(#[from] rusqlite::Error),
}

impl StorageError {
    /// Whether another connection has locked the database.
    fn is_locked(&self) -> bool {
        self.is(&[ErrorCode::DatabaseBusy, ErrorCode::DatabaseLocked])
    }

    /// Whether the database has reached its largest size.
    pub fn is_full(&self) -> bool {
        self.is(&[ErrorCode::DiskFull])
    }

    fn is(&self, codes: &[ErrorCode]) -> bool {
        let StorageError::Sqlite(error) = self else { return false };
        error.sqlite_error_code().is_some_and(|code| codes.contains(&code))
    }
}

/// Where a database is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Place {
    /// In this file of the container.
    File(PathBuf),
    /// In memory, which is charged to the container.
    Memory,
}

/// The caller of a database.
#[derive(Clone)]
pub struct Caller {
    /// It is charged for the CPU time.
    pub guest: Arc<Guest>,
    /// It is charged for memory.
    pub memory: Arc<MemoryUse>,
    /// How long the call may take.
    pub timeout: Duration,
    /// The largest answer, in bytes.
    pub answer_bytes_max: u64,
}

/// Which connection a call uses.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ConnectionKey {
    /// The database.
    pub place: Place,
    /// Tells apart the connections to one database; a database in memory has only one.
    pub number: u64,
}

/// The end of a call, as SQLite looks at it from time to time.
struct Control {
    deadline: Instant,
    abandoned: AtomicBool,
    closed: Arc<AtomicBool>,
}

impl Control {
    fn must_end(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed) || self.closed.load(Ordering::Relaxed) || Instant::now() > self.deadline
    }
}

/// A call under way; SQLite stops if its caller goes away.
struct Pending(Arc<Control>);

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.abandoned.store(true, Ordering::Relaxed);
    }
}

impl Storage {
    /// For a container with this root and user. No thread is started yet.
    pub fn new(root: PathBuf, identity: Identity) -> Storage {
        Storage {
            root,
            identity,
            thread: Mutex::new(Thread::NotStarted),
            closed: Arc::default(),
            unused: Arc::default(),
        }
    }

    /// Runs `work` on the connection, which is made if there is none. While another connection has the database locked,
    /// `work` is tried again.
    ///
    /// # Errors
    /// Those of `work`, and why it did not run.
    pub async fn run<T: Send + 'static>(
        &self,
        key: &ConnectionKey,
        caller: &Caller,
        work: impl Fn(&Connection, &mut Answer) -> Result<T, StorageError> + Clone + Send + 'static,
    ) -> Result<T, StorageError> {
        let deadline = Instant::now() + caller.timeout;
        loop {
            let attempt = self.attempt(key.clone(), caller.clone(), deadline, work.clone());
            match tokio::time::timeout_at(deadline.into(), attempt).await {
                Ok(Err(error)) if error.is_locked() && Instant::now() + LOCKED_WAIT < deadline => {
                    tokio::time::sleep(LOCKED_WAIT).await;
                }
                done => return done.unwrap_or(Err(StorageError::Late)),
            }
        }
    }

    async fn attempt<T: Send + 'static>(
        &self,
        key: ConnectionKey,
        caller: Caller,
        deadline: Instant,
        work: impl Fn(&Connection, &mut Answer) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let control = Arc::new(Control { deadline, abandoned: AtomicBool::new(false), closed: self.closed.clone() });
        let pending = Pending(control.clone());
        let (tell, told) = oneshot::channel();
        let job = move |databases: &mut OpenDatabases| {
            if control.must_end() {
                return;
            }
            let began = clock_gettime(ClockId::ThreadCPUTime);
            let mut answer = Answer { bytes: 0, max: caller.answer_bytes_max, held: caller.memory.hold() };
            let done = databases.with(&key, &caller, &control, |connection| work(connection, &mut answer));
            let used = clock_gettime(ClockId::ThreadCPUTime) - began;
            caller.guest.charge(u64::try_from(used.tv_sec).unwrap_or(0) * 1_000_000_000 + used.tv_nsec as u64);
            // The answer is charged until the caller has it.
            let _ = tell.send((done, answer, control.must_end()));
        };
        let jobs = self.jobs()?;
        jobs.send(Box::new(job)).await.map_err(|_| StorageError::Closed)?;
        let (done, _answer, ended) = told.await.map_err(|_| StorageError::Closed)?;
        drop(pending);
        if ended && done.is_err() { Err(StorageError::Late) } else { done }
    }

    /// The way to the thread, which is started for the first call.
    fn jobs(&self) -> Result<mpsc::Sender<Job>, StorageError> {
        let mut thread = self.thread.lock();
        if self.closed.load(Ordering::Relaxed) {
            return Err(StorageError::Closed);
        }
        if let Thread::Running(jobs) = &*thread {
            return Ok(jobs.clone());
        }
        let (jobs, queue) = mpsc::channel(JOBS_MAX);
        let unused = self.unused.clone();
        let body = move |entered: io::Result<()>| serve(queue, entered, &unused);
        rooted::spawn("storage", &self.root, &self.identity, body)
            .map_err(|error| StorageError::Thread(format!("no thread for the container's databases: {error}")))?;
        *thread = Thread::Running(jobs.clone());
        Ok(jobs)
    }

    /// Closes a connection that no call uses any more.
    pub fn close_connection(&self, key: ConnectionKey) {
        self.unused.lock().push(key);
        if let Thread::Running(jobs) = &*self.thread.lock() {
            // The thread closes it before its next job. With a full queue that is soon.
            let _ = jobs.try_send(Box::new(|_| {}));
        }
    }

    /// Ends the thread: calls under way fail, and files are closed.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        *self.thread.lock() = Thread::NotStarted;
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        self.close();
    }
}

/// The thread's work.
fn serve(mut queue: mpsc::Receiver<Job>, entered: io::Result<()>, unused: &Mutex<Vec<ConnectionKey>>) {
    let mut databases = OpenDatabases { entered, open: HashMap::new() };
    while let Some(job) = queue.blocking_recv() {
        for key in std::mem::take(&mut *unused.lock()) {
            databases.open.remove(&key);
        }
        job(&mut databases);
    }
}

/// The databases that the thread has open.
struct OpenDatabases {
    /// The error of taking the container's root and user, if there was one.
    entered: io::Result<()>,
    open: HashMap<ConnectionKey, Open>,
}

struct Open {
    connection: Connection,
    /// Of a database in memory: how many of its pages are charged.
    pages: u64,
    held: HeldMemory,
}

impl OpenDatabases {
    fn with<T>(
        &mut self,
        key: &ConnectionKey,
        caller: &Caller,
        control: &Arc<Control>,
        work: impl FnOnce(&Connection) -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        if let Err(error) = &self.entered {
            return Err(StorageError::Thread(format!("the container's root cannot be used: {error}")));
        }
        if !self.open.contains_key(key) {
            let open = Open::new(&key.place, caller)?;
            self.open.insert(key.clone(), open);
        }
        let open = self.open.get_mut(key).ok_or(StorageError::Closed)?;
        let control = control.clone();
        open.connection.progress_handler(STEPS, Some(move || control.must_end()))?;
        match key.place {
            Place::File(_) => work(&open.connection),
            Place::Memory => open.within_memory(&caller.memory, work),
        }
    }
}

impl Open {
    fn new(place: &Place, caller: &Caller) -> Result<Open, StorageError> {
        let mut held = caller.memory.hold();
        if !held.grow(CACHE_KIB << 10) {
            return Err(StorageError::Memory(held.limit()));
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = match place {
            Place::Memory => Connection::open_in_memory_with_flags(flags)?,
            Place::File(path) => {
                make_directory(path)?;
                Connection::open_with_flags(path, flags)?
            }
        };
        connection.busy_timeout(Duration::ZERO)?;
        connection.pragma_update(None, "cache_size", -(CACHE_KIB as i64))?;
        connection.pragma_update(None, "trusted_schema", false)?;
        connection.pragma_update(None, "cell_size_check", true)?;
        connection.set_limit(Limit::SQLITE_LIMIT_SQL_LENGTH, STATEMENT_BYTES_MAX)?;
        connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, i32::try_from(caller.answer_bytes_max).unwrap_or(i32::MAX))?;
        connection.set_limit(Limit::SQLITE_LIMIT_ATTACHED, ATTACHED_MAX)?;
        connection.authorizer(Some(authorize))?;
        Ok(Open { connection, pages: 0, held })
    }

    /// Runs `work` on a database in memory, which may grow by what is left of the container's memory.
    fn within_memory<T>(
        &mut self,
        memory: &Arc<MemoryUse>,
        work: impl FnOnce(&Connection) -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        let page_bytes = number(&self.connection, "page_size")?;
        let left = memory.limit().saturating_sub(memory.current()) / page_bytes;
        // The pragma's value is the largest number of pages, now and for later statements.
        let most = (self.pages + left).clamp(1, u64::from(u32::MAX - 1));
        self.connection.authorizer(None::<fn(AuthContext<'_>) -> Authorization>)?;
        self.connection.pragma_update(None, "max_page_count", most as i64)?;
        self.connection.authorizer(Some(authorize))?;
        let done = work(&self.connection);
        let pages = number(&self.connection, "page_count")?;
        if pages > self.pages && self.held.grow((pages - self.pages) * page_bytes) {
            self.pages = pages;
        }
        done
    }
}

fn number(connection: &Connection, pragma: &str) -> rusqlite::Result<u64> {
    connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0)).map(|number| number.max(0) as u64)
}

/// The directory of a new database, as the container's user.
fn make_directory(path: &Path) -> Result<(), StorageError> {
    let Some(directory) = path.parent() else { return Ok(()) };
    let failed = |error| StorageError::Directory { path: directory.to_path_buf(), error };
    std::fs::create_dir_all(directory).map_err(failed)
}

/// Pragmas that a statement may use: they tell about the database, or change its file only.
const PRAGMAS: &[&str] = &[
    "application_id",
    "auto_vacuum",
    "collation_list",
    "compile_options",
    "data_version",
    "defer_foreign_keys",
    "encoding",
    "foreign_key_check",
    "foreign_key_list",
    "foreign_keys",
    "freelist_count",
    "function_list",
    "incremental_vacuum",
    "index_info",
    "index_list",
    "index_xinfo",
    "integrity_check",
    "optimize",
    "page_count",
    "page_size",
    "quick_check",
    "recursive_triggers",
    "schema_version",
    "table_info",
    "table_list",
    "table_xinfo",
    "user_version",
];

/// Refuses statements that would reach another file, or take memory that nothing bounds.
fn authorize(context: AuthContext<'_>) -> Authorization {
    match context.action {
        // The name of a file that is not in the statement's text, and what this version of rusqlite does not know.
        AuthAction::Unknown { .. } => Authorization::Deny,
        // VACUUM attaches a temporary file, whose name is empty.
        AuthAction::Attach { filename } if !filename.is_empty() => Authorization::Deny,
        AuthAction::Pragma { pragma_name, .. } if !PRAGMAS.contains(&pragma_name.to_ascii_lowercase().as_str()) => {
            Authorization::Deny
        }
        _ => Authorization::Allow,
    }
}

/// The size of an answer so far, charged to the container.
pub struct Answer {
    bytes: u64,
    max: u64,
    held: HeldMemory,
}

impl Answer {
    /// Counts `more` bytes.
    ///
    /// # Errors
    /// The answer is too large, or the container has no memory left.
    pub fn count(&mut self, more: usize) -> Result<(), StorageError> {
        self.bytes += more as u64;
        if self.bytes > self.max {
            return Err(StorageError::Large(self.max));
        }
        if !self.held.grow(more as u64) {
            return Err(StorageError::Memory(self.held.limit()));
        }
        Ok(())
    }
}
