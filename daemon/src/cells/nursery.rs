//! Processes that become cells: made by the zygote, a few of them in advance (`isolation.spares`).
//!
//! The zygote is started when the first cell is wanted, or at the daemon's start if there are to be spares; and again if it
//! has ended. All calls here block for system calls, and for the zygote's answer: a fork.

use std::collections::{HashMap, VecDeque};
use std::ffi::CString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

use crate::cell::zygote::{SUBCOMMAND, Told};
use hearth_base::cell;
use hearth_base::config::Live;
use hearth_base::error::{Error, Result};
use hearth_base::generation::wire::send_descriptors;
use hearth_os::mount;
use hearth_os::spawn::{self, Child};

/// This program.
const PROGRAM: &str = "/proc/self/exe";

/// How long the zygote may take to make its engines, and to make a copy.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// Ends of copies that are remembered until [`Nursery::end_of`] is called for them.
const ENDS_MAX: usize = 4_096;

/// Variables of the environment that are about the daemon's own process.
const OWN_VARIABLES: [&str; 6] =
    ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];

/// The supply.
pub struct Nursery {
    config: Arc<Live>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    zygote: Option<Zygote>,
    spares: VecDeque<Unordered>,
    /// Copies that have ended, with the signal that ended each.
    ends: HashMap<u32, Option<i32>>,
    /// No more copies are made.
    closed: bool,
}

/// A process that waits for its orders. It ends when the value is dropped.
#[derive(Debug)]
pub struct Unordered {
    /// Its process id.
    pub pid: u32,
    /// Where the orders go, and the answer comes from.
    pub socket: UnixStream,
}

struct Zygote {
    child: Child,
    socket: UnixStream,
}

impl Nursery {
    /// No process yet.
    pub fn new(config: Arc<Live>) -> Nursery {
        Nursery { config, state: Mutex::default() }
    }

    /// A process of the supply, or a new one. Blocks.
    ///
    /// # Errors
    /// `Internal` if none can be made.
    pub fn take(&self) -> Result<Unordered> {
        let mut state = self.state.lock();
        if let Some(spare) = state.spares.pop_front() {
            return Ok(spare);
        }
        self.make(&mut state)
            .map_err(|e| Error::Internal(format!("cannot make a process for the pod (isolation level pod): {e}")))
    }

    /// Makes the spares that are missing. Blocks.
    pub fn refill(&self) {
        loop {
            // One lock for each process: a start in between does not wait for all of them.
            let mut state = self.state.lock();
            if state.closed || state.spares.len() >= self.config.now().isolation.spares {
                return;
            }
            match self.make(&mut state) {
                Ok(spare) => state.spares.push_back(spare),
                Err(error) => return tracing::warn!(%error, "no process for a pod in advance"),
            }
        }
    }

    /// How many processes wait.
    pub fn spares(&self) -> usize {
        self.state.lock().spares.len()
    }

    /// The signal that ended a copy; `None` if it ended by itself, or its end is not known. Blocks.
    pub fn end_of(&self, pid: u32) -> Option<i32> {
        let mut state = self.state.lock();
        let State { zygote, ends, .. } = &mut *state;
        if let Some(zygote) = zygote {
            while matches!(zygote.hears(Duration::ZERO), Ok(true)) {
                let Ok(told) = zygote.listen() else { break };
                note(ends, told);
            }
        }
        ends.remove(&pid).flatten()
    }

    /// Makes no more processes, and ends those that wait.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.spares.clear();
        let zygote = state.zygote.take();
        drop(state);
        drop(zygote);
    }

    fn make(&self, state: &mut State) -> io::Result<Unordered> {
        if state.closed {
            return Err(io::Error::other("hearthd is leaving"));
        }
        let State { zygote, ends, .. } = state;
        if let Some(living) = zygote {
            match living.copy(ends) {
                Ok(made) => return Ok(made),
                Err(error) => {
                    tracing::warn!(%error, "the process that makes cells has ended, or does not answer; starting another")
                }
            }
            *zygote = None;
        }
        let started = zygote.insert(self.start()?);
        started.copy(ends)
    }

    fn start(&self) -> io::Result<Zygote> {
        let (ours, theirs) = UnixStream::pair()?;
        let args = [c"hearthd".to_owned(), CString::new(SUBCOMMAND)?];
        let is_own = |name: &std::ffi::OsStr| OWN_VARIABLES.iter().any(|own| name == *own);
        let variables = std::env::vars_os().filter(|(name, _)| !is_own(name));
        let environment = variables.filter_map(|(name, value)| {
            use std::os::unix::ffi::OsStrExt;
            CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()).ok()
        });
        let environment: Vec<CString> = environment.collect();
        let stderr = io::stderr();
        let inherited = [theirs.as_fd(), stderr.as_fd()];
        let program = CString::new(PROGRAM)?;
        let child = mount::in_node_namespace(|| spawn::spawn(&program, &args, &environment, &inherited))??;
        drop(theirs);
        let mut zygote = Zygote { child, socket: ours };
        cell::write_json(&mut zygote.socket, &*self.config.now())?;
        match zygote.answer(&mut HashMap::new())? {
            Told::Ready => Ok(zygote),
            Told::Failed { why } => Err(io::Error::other(why)),
            Told::Born { .. } | Told::Ended { .. } => Err(io::Error::other("it speaks out of turn")),
        }
    }
}

impl Zygote {
    fn copy(&mut self, ends: &mut HashMap<u32, Option<i32>>) -> io::Result<Unordered> {
        let (ours, theirs) = UnixStream::pair()?;
        send_descriptors(&self.socket, &[theirs.as_fd()])?;
        drop(theirs);
        match self.answer(ends)? {
            Told::Born { pid } => Ok(Unordered { pid, socket: ours }),
            Told::Failed { why } => Err(io::Error::other(why)),
            Told::Ready | Told::Ended { .. } => Err(io::Error::other("it speaks out of turn")),
        }
    }

    /// The next thing it tells that is no end of a copy.
    fn answer(&mut self, ends: &mut HashMap<u32, Option<i32>>) -> io::Result<Told> {
        loop {
            if !self.hears(ANSWER_TIME)? {
                return Err(io::ErrorKind::TimedOut.into());
            }
            match self.listen()? {
                ended @ Told::Ended { .. } => note(ends, ended),
                other => return Ok(other),
            }
        }
    }

    /// Whether it tells something within this time.
    fn hears(&self, time: Duration) -> io::Result<bool> {
        let time = Timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: i64::from(time.subsec_nanos()) };
        let mut waiting = [PollFd::new(&self.socket, PollFlags::IN)];
        Ok(rustix::io::retry_on_intr(|| poll(&mut waiting, Some(&time)))? > 0)
    }

    fn listen(&mut self) -> io::Result<Told> {
        cell::read_json(&mut self.socket)
    }
}

impl Drop for Zygote {
    fn drop(&mut self) {
        // It has no child that needs it: those without orders see the end of their own sockets.
        self.child.signal(Signal::KILL);
        self.child.wait();
    }
}

fn note(ends: &mut HashMap<u32, Option<i32>>, told: Told) {
    if let Told::Ended { pid, signal } = told {
        // `end_of` is not called for spares, nor for cells that this daemon does not follow.
        if ends.len() >= ENDS_MAX {
            ends.clear();
        }
        ends.insert(pid, signal);
    }
}
