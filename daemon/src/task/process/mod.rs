//! A process: one guest with its stdio, its state and its events.
//!
//! Start hands the guest to the scheduler and waits for the instance; from then on the guest's worker tells the
//! process how the guest ended. containerd sees one order: the event of the start is queued before the first
//! instruction, stdio is closed before TaskExit is queued, TaskExit is queued before a Wait is answered.
//!
//! A task's first process is its *init*, later ones are *execs*. They share their [`Container`]. The process owns
//! its state, its pause and the signal that ends it (`Lifecycle`). The guest, the execs and the requests of a
//! service are told of them.
//!
//! * `state.rs`: the states and their transitions, with a diagram: what a signal does in each state.
//! * `lifecycle.rs`: the state with the pause under way and the status of a pending kill.
//! * `start.rs`: Start of a program or of a sandbox.
//! * `application.rs`: Start of a Spin application: its service and its commands.
//! * `service.rs`: Start of an HTTP component.
//! * `control.rs`: Kill, Pause, Resume; SIGTERM to a service; SIGKILL while its requests block every worker.
//! * `diagnosis.rs`: exit status of a guest that exited, trapped, was killed or ran out of memory.
//! * `end.rs`: the steps after an end: the text on stderr, stdio, TaskExit; Delete of a process.

mod application;
mod control;
mod diagnosis;
mod end;
mod lifecycle;
mod service;
mod start;
pub mod state;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::sync::watch;

use hearth_base::bundle::ProcessSpec;
use hearth_base::error::{Error, Result};
use hearth_base::operator::ApplicationInfo;
use hearth_containerd::events::{Event, Reservation};
use hearth_http::requests::Requests;
use hearth_os::pty::Size;
use hearth_stdio::{Stdio, StdioPaths};
use hearth_wasm::engine::LiveProgram;
use hearth_wasm::scheduler::{CpuLimits, Guest, Throttling};

use crate::spin::loaded::LoadedApplication;
use crate::task::container::Container;
use crate::task::execs::{Execs, Member};
use lifecycle::Lifecycle;
use state::{Role, State};

/// A process of a container.
pub struct Process {
    /// The container's id for its init, the exec's id for an exec.
    pub id: Arc<str>,
    /// Init or exec.
    pub role: Role,
    /// As in the request that made it.
    pub stdio_paths: StdioPaths,
    container: Arc<Container>,
    /// The execs of the task, of which this process may be one.
    execs: Arc<Execs<Process>>,
    guest: Arc<Guest>,
    /// Whether the last growth of memory the guest asked for was refused.
    starved: Arc<AtomicBool>,
    stdio: Arc<Stdio>,
    /// Room in the queue for all of its events.
    events: Reservation,
    inner: Mutex<Inner>,
    exit: watch::Sender<Option<Exit>>,
}

/// The parts that a process is made from.
pub struct NewProcess {
    /// As in [`Process`].
    pub id: Arc<str>,
    /// As in [`Process`].
    pub role: Role,
    /// As in [`Process`].
    pub stdio_paths: StdioPaths,
    /// The open files of `stdio_paths`.
    pub stdio: Stdio,
    /// Its user, and the CPU time that it may have.
    pub guest: Guest,
    /// Room for all of its events.
    pub events: Reservation,
    /// The work that Start begins.
    pub work: Work,
}

/// The work of a started process.
pub enum Work {
    /// Runs a program.
    Program(Box<Prepared>),
    /// Serves HTTP with a program.
    Serve(Box<Prepared>),
    /// Starts a Spin application.
    Application(Box<PreparedApplication>),
    /// Nothing, until it is killed: a pod's sandbox.
    Pause,
    /// Nothing: its Start is refused with this error. An exec whose program cannot run.
    Refused(Error),
}

impl Work {
    /// Whether it serves HTTP, or takes messages.
    pub fn serves(&self) -> bool {
        match self {
            Work::Serve(_) => true,
            Work::Application(prepared) => prepared.application.configured.answers(),
            Work::Program(_) | Work::Refused(_) | Work::Pause => false,
        }
    }
}

impl Work {
    /// What operators see of an application.
    pub fn application(&self) -> Option<Arc<ApplicationInfo>> {
        match self {
            Work::Application(prepared) => Some(Arc::new(prepared.application.configured.described())),
            Work::Program(_) | Work::Serve(_) | Work::Refused(_) | Work::Pause => None,
        }
    }
}

/// The parts that an application's Start needs.
pub struct PreparedApplication {
    /// The application.
    pub application: LoadedApplication,
    /// The container's arguments and environment; no component has them.
    pub spec: ProcessSpec,
    /// Files, directories and sockets that each of its guests may have open.
    pub open_files_max: u32,
}

/// The parts that a program's Start needs.
pub struct Prepared {
    /// The program.
    pub program: Arc<LiveProgram>,
    /// The export to call instead of the entry point.
    pub export: Option<Arc<str>>,
    /// Arguments, environment, working directory, user.
    pub spec: ProcessSpec,
    /// Files, directories and sockets it may have open.
    pub open_files_max: u32,
}

/// The part that changes, guarded by one lock.
struct Inner {
    lifecycle: Lifecycle<Reservation>,
    /// Taken by Start.
    work: Option<Work>,
}

/// How and when a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// As a shell would show it.
    pub status: u32,
    /// When.
    pub at: SystemTime,
}

/// The answer to a State call.
#[derive(Debug, Clone, Copy)]
pub struct Snapshot {
    /// The state of the process.
    pub state: State,
    /// Set once it has ended.
    pub exit: Option<Exit>,
}

impl Process {
    /// A process that has not been started.
    pub fn new(container: Arc<Container>, execs: Arc<Execs<Process>>, new: NewProcess) -> Arc<Process> {
        let NewProcess { id, role, stdio_paths, stdio, guest, events, work } = new;
        let stdio = Arc::new(stdio);
        if role == Role::Init {
            let notes: Weak<Stdio> = Arc::downgrade(&stdio);
            container.tenant.set_notes(notes);
        }
        Arc::new(Process {
            id,
            role,
            stdio_paths,
            container,
            execs,
            guest: Arc::new(guest),
            starved: Arc::default(),
            stdio,
            events,
            inner: Mutex::new(Inner { lifecycle: Lifecycle::default(), work: Some(work) }),
            exit: watch::Sender::new(None),
        })
    }

    /// The container that it shares with the other processes of the task.
    pub fn container(&self) -> &Arc<Container> {
        &self.container
    }

    /// The guest, which execs of the task join.
    pub(super) fn guest(&self) -> &Arc<Guest> {
        &self.guest
    }

    /// Queues an event.
    pub(super) fn publish(&self, event: Event) {
        self.events.publish(&self.container.namespace, event);
    }

    /// The requests it serves, if it is a service.
    fn requests(&self) -> Option<&Arc<Requests>> {
        self.container.requests.as_ref().filter(|_| self.role == Role::Init)
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// None while the process is held.
    pub async fn wait(&self) -> Result<Exit> {
        let mut exit: watch::Receiver<Option<Exit>> = self.exit.subscribe();
        let ended = exit.wait_for(Option::is_some).await;
        ended.ok().and_then(|exit| *exit).ok_or_else(|| Error::NotFound(format!("process {} is gone", self.id)))
    }

    /// No more input: what the FIFO holds is still read, then the guest sees the end.
    pub fn close_stdin(&self) {
        self.stdio.close_stdin();
    }

    /// The state of the process as callers see it: stopped only once its exit is told, since they would take a
    /// stopped process without an exit status for one that exited with 0.
    pub fn snapshot(&self) -> Snapshot {
        // Read first: a process that has told its exit has stopped.
        let exit = *self.exit.borrow();
        let state = match (self.inner.lock().lifecycle.state(), exit) {
            (State::Stopped(_), None) => State::Running,
            (state, _) => state,
        };
        Snapshot { state, exit }
    }

    /// Sets the size of its terminal, if it has one.
    ///
    /// # Errors
    /// `Internal` if the kernel refuses.
    pub fn resize(&self, size: Size) -> Result<()> {
        self.stdio.resize(size)
    }

    /// Whether it has been started and not ended.
    pub fn is_running(&self) -> bool {
        self.inner.lock().lifecycle.is_running()
    }

    /// CPU time so far; that of an init includes its execs and requests.
    pub fn cpu_time(&self) -> Duration {
        self.guest.cpu_time()
    }

    /// How its CPU quota has held it back so far; that of an init includes its execs and requests.
    pub fn throttling(&self) -> Throttling {
        self.guest.throttling()
    }

    /// Changes the CPU limits of an init, which hold for its execs and requests too.
    pub(super) fn set_cpu(&self, limits: CpuLimits) {
        self.guest.set_cpu(limits);
        self.execs.wake();
        if let Some(requests) = self.requests() {
            requests.wake();
        }
    }

    /// Moves a task between the states of the metric `tasks`; an exec is not counted.
    fn gauge(&self, before: State, after: State) {
        if self.role == Role::Init && before.label() != after.label() {
            self.container.metrics.tasks.by_state.with_label_values(&[before.label()]).dec();
            self.container.metrics.tasks.by_state.with_label_values(&[after.label()]).inc();
        }
    }
}

impl Member for Process {
    fn id(&self) -> &Arc<str> {
        &self.id
    }

    fn wake(&self) {
        self.guest.wake();
    }

    fn end_with_init(&self) {
        if self.inner.lock().lifecycle.end_with_init() {
            self.guest.kill();
        }
    }
}
