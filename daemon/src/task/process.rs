//! A process: one guest with its stdio, its state and its events. The only place that applies the state
//! machine.
//!
//! Start hands the guest to the scheduler and waits for the instance; from then on the guest's worker
//! tells the process what became of it. The order everybody sees: the start's event is queued before
//! the first instruction, stdio is closed before TaskExit is queued, TaskExit is queued before a Wait
//! is answered.
//!
//! A task's first process is its *init*, later ones are *execs*. What they share is their
//! [`Container`].

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use hearth_base::bundle::ProcessSpec;
use hearth_base::error::{Error, Result};
use hearth_base::faults::{self, Point};
use hearth_base::operator::EndKind;
use hearth_base::text::shown_lines;
use hearth_containerd::events::{Event, Reservation};
use hearth_http::accept;
use hearth_http::outgoing::Outgoing;
use hearth_http::outgoing::client::Client;
use hearth_http::requests::Requests;
use hearth_http::service::{NewService, Service};
use hearth_observe::logging;
use hearth_os::pty::Size;
use hearth_stdio::{Stdio, StdioPaths};
use hearth_wasm::command::{self, CommandOutcome, Launch, TRAP_STATUS};
use hearth_wasm::engine::{LiveProgram, ModuleKind, Program};
use hearth_wasm::resolver::Names;
use hearth_wasm::runtime::Runtime;
use hearth_wasm::scheduler::{Guest, GuestEnd, Throttling};
use hearth_wasm::slots::Placed;

use crate::task::container::Container;
use crate::task::oom;
use crate::task::state::{Effect, Input, NEVER_STARTED, Role, State};
use crate::task::world::World;

/// Status of a guest that was ended without a signal of containerd's (its task's init has ended).
const KILLED_STATUS: u32 = 137;

/// The signals that drain a service (signal(7)): SIGINT and SIGTERM.
const DRAINS: [u32; 2] = [2, 15];

/// The most bytes of a note in the container's standard error.
const NOTE_BYTES_MAX: usize = 8 << 10;

/// A process of a container.
pub struct Process {
    /// The container's id for its init, the exec's for an exec.
    pub id: Arc<str>,
    /// Which of the two it is.
    pub role: Role,
    /// As in the request that made it.
    pub stdio_paths: StdioPaths,
    container: Arc<Container>,
    pub(super) guest: Arc<Guest>,
    /// Whether the last growth of memory the guest asked for was refused.
    starved: Arc<AtomicBool>,
    stdio: Arc<Stdio>,
    /// Room in the queue for all of its events.
    pub(super) events: Reservation,
    pub(super) inner: Mutex<Inner>,
    exit: watch::Sender<Option<Exit>>,
}

/// What a process is made from.
pub struct NewProcess {
    /// As in [`Process`].
    pub id: Arc<str>,
    /// As in [`Process`].
    pub role: Role,
    /// As in [`Process`].
    pub stdio_paths: StdioPaths,
    /// What they name, open.
    pub stdio: Stdio,
    /// Who it is and what CPU time it may have.
    pub guest: Guest,
    /// Room for all of its events.
    pub events: Reservation,
    /// What it does when it is started.
    pub work: Work,
}

/// What a started process does.
pub enum Work {
    /// Runs a program.
    Program(Box<Prepared>),
    /// Serves HTTP with a program.
    Serve(Box<Prepared>),
    /// Nothing, until it is killed: a pod's sandbox.
    Pause,
}

/// What a program's Start needs.
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

/// What changes, guarded by one lock.
pub(super) struct Inner {
    pub(super) state: State,
    /// Taken by Start.
    work: Option<Work>,
    /// The status the first fatal signal gives, once the scheduler has ended the guest.
    pub(super) killed_with: Option<u32>,
    /// While it is paused.
    pub(super) pause: Option<Pause>,
}

/// A pause under way.
pub(super) struct Pause {
    /// Room for its events.
    pub(super) events: Reservation,
    /// The status of a fatal signal that came meanwhile.
    pub(super) killed_with: Option<u32>,
}

/// How and when a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// As a shell would show it.
    pub status: u32,
    /// When.
    pub at: SystemTime,
}

/// What State answers.
#[derive(Debug, Clone, Copy)]
pub struct Snapshot {
    /// Where the process is.
    pub state: State,
    /// Set once it has ended.
    pub exit: Option<Exit>,
}

impl Process {
    /// A process that has not been started.
    pub fn new(container: Arc<Container>, new: NewProcess) -> Arc<Process> {
        let NewProcess { id, role, stdio_paths, stdio, guest, events, work } = new;
        Arc::new(Process {
            id,
            role,
            stdio_paths,
            container,
            guest: Arc::new(guest),
            starved: Arc::default(),
            stdio: Arc::new(stdio),
            events,
            inner: Mutex::new(Inner { state: State::Created, work: Some(work), killed_with: None, pause: None }),
            exit: watch::Sender::new(None),
        })
    }

    /// What it shares with the others.
    pub fn container(&self) -> &Arc<Container> {
        &self.container
    }

    /// Queues an event.
    pub(super) fn publish(&self, event: Event) {
        self.events.publish(&self.container.namespace, event);
    }

    /// Starts the guest. Returns once there is an instance, or why there is none; or, where nothing can
    /// stand in an instance's way any more (a slot of the pool is taken, the memory is within the
    /// limit, the root is mounted), as soon as the guest is in its worker's queue: that saves the
    /// caller two changes of thread.
    ///
    /// # Errors
    /// The state forbids it, there is no slot, the root could not be mounted, the module could not be
    /// instantiated.
    pub async fn start(self: &Arc<Self>, world: &Arc<World>) -> Result<u32> {
        let start_began = Instant::now();
        let (work, slot) = match self.role {
            Role::Init => self.begin_start(world)?,
            Role::Exec => {
                let begun = self.container.execs.begin(|| self.begin_start(world));
                // Its client waits for the end of its output before it says more.
                begun.inspect_err(|_| self.abandon())?
            }
        };
        faults::at(Point::Starting);
        if self.role == Role::Init {
            self.container.about.start_began(start_began);
        }
        self.gauge(State::Created, State::Starting);
        self.stdio.start(|| {
            let process = Arc::downgrade(self);
            move |signal| {
                if let Some(process) = process.upgrade() {
                    // One that has ended meanwhile is as wanted.
                    let _ = process.kill(signal);
                }
            }
        });
        if let Work::Serve(prepared) = work {
            return self.start_serving(world, *prepared).await;
        }
        let (Work::Program(prepared), Some((program, slot))) = (work, slot) else {
            self.started();
            let process = self.clone();
            let ended = move |end| process.ended(end, &Tell::default());
            world.runtime.scheduler.spawn(self.guest.clone(), std::future::pending(), ended);
            return Ok(self.container.pid());
        };
        // An exec shares the memory limit with others, who may take what is left of it at any moment.
        let sure = self.role == Role::Init
            && slot.is_sure(program.initial_memory(), self.container.memory.limit())
            && self.container.files.is_ready();
        if sure {
            self.started();
        }
        let (tell, told) = oneshot::channel();
        let tell = Arc::new(Mutex::new(Some(tell)));
        let (process, world_of_guest, ready) = (self.clone(), world.clone(), tell.clone());
        let guest = async move { process.run(world_of_guest, *prepared, (program, slot), ready).await };
        let process = self.clone();
        world.runtime.scheduler.spawn(self.guest.clone(), guest, move |end| process.ended(end, &tell));
        if sure {
            return Ok(self.container.pid());
        }
        self.hear(told).await
    }

    /// What became of the start.
    async fn hear(&self, told: oneshot::Receiver<Result<()>>) -> Result<u32> {
        match told.await {
            Ok(Ok(())) => Ok(self.container.pid()),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::FailedPrecondition("the process was killed before it had started".into())),
        }
    }

    /// Takes a slot and what Start needs. Without a slot the process stays as it is; an init can be started
    /// later.
    fn begin_start(&self, world: &Arc<World>) -> Result<(Work, Option<Placed>)> {
        let mut inner = self.inner.lock();
        let slot = match (inner.state, &inner.work) {
            (State::Created, Some(Work::Program(prepared))) => {
                let program = prepared.program.now();
                let slot = world.runtime.slots.take(program.fits_pool())?;
                Some((program, slot))
            }
            _ => None,
        };
        inner.state.apply(Input::Start, self.role)?;
        let work = inner.work.take();
        Ok((work.ok_or_else(|| Error::Internal("a created process had nothing to start".into()))?, slot))
    }

    /// The guest's future: waits for the root, then runs.
    async fn run(
        self: Arc<Self>,
        world: Arc<World>,
        prepared: Prepared,
        (program, slot): Placed,
        tell: Tell,
    ) -> CommandOutcome {
        if let Err(error) = self.container.files.wait_ready().await {
            return CommandOutcome::NotStarted(error);
        }
        faults::at(Point::Instantiating);
        let about = (self.role == Role::Init).then(|| self.container.about.clone());
        let root = self.container.files.path().to_path_buf();
        let names = self.names(&world.runtime, &program, &root);
        let client = names.clone().map(|names| Client::new(world.http.outgoing.clone(), names, &prepared.spec.env));
        let outgoing = Outgoing::new(client);
        let launch = Launch {
            placed: (program, slot),
            export: prepared.export,
            args: prepared.spec.args,
            env: prepared.spec.env,
            cwd: prepared.spec.cwd,
            root,
            names,
            partly_read_only: self.container.partly_read_only,
            open_files_max: prepared.open_files_max,
            descriptors: self.container.descriptors.clone(),
            stdio: self.stdio.clone(),
            memory: self.container.memory.clone(),
            starved: self.starved.clone(),
            guest: self.guest.clone(),
            outgoing: Box::new(move || Box::new(outgoing.clone())),
            about,
        };
        let process = self.clone();
        command::run(world.runtime.clone(), launch, move || {
            process.started();
            faults::at(Point::Started);
            answer(&tell, Ok(()));
        })
        .await
    }

    /// How the guest looks up names. Only components have sockets, and with a network namespace yet to be
    /// made there is nothing to reach.
    fn names(&self, runtime: &Runtime, program: &Program, root: &Path) -> Option<Names> {
        // Only components have sockets.
        (program.kind() == ModuleKind::Component)
            .then(|| runtime.resolvers.names(root.to_path_buf(), self.guest.identity().clone()))
    }

    /// Starts a service: its guest is a listener, whose end is the process's. Returns once the port is
    /// bound, or why it is not.
    async fn start_serving(self: &Arc<Self>, world: &Arc<World>, prepared: Prepared) -> Result<u32> {
        let (tell, told) = oneshot::channel();
        let tell = Arc::new(Mutex::new(Some(tell)));
        let (process, world_of_guest, ready) = (self.clone(), world.clone(), tell.clone());
        let listening = async move { process.serve(world_of_guest, prepared, ready).await };
        let process = self.clone();
        world.runtime.scheduler.spawn(self.guest.clone(), listening, move |end| process.ended(end, &tell));
        self.hear(told).await
    }

    /// The future of a service's own guest.
    async fn serve(self: Arc<Self>, world: Arc<World>, prepared: Prepared, tell: Tell) -> CommandOutcome {
        if let Err(error) = self.container.files.wait_ready().await {
            return CommandOutcome::NotStarted(error);
        }
        let Some(requests) = self.container.requests.clone() else {
            return CommandOutcome::NotStarted(Error::Internal("a service has nowhere to keep its requests".into()));
        };
        let root = self.container.files.path().to_path_buf();
        let new = NewService {
            names: self.names(&world.runtime, &prepared.program.now(), &root),
            program: prepared.program,
            args: prepared.spec.args,
            env: prepared.spec.env,
            cwd: prepared.spec.cwd,
            root,
            partly_read_only: self.container.partly_read_only,
            stdio: self.stdio.clone(),
            memory: self.container.memory.clone(),
            open_files_max: prepared.open_files_max,
            descriptors: self.container.descriptors.clone(),
            guest: self.guest.clone(),
            requests: requests.clone(),
            about: self.container.about.clone(),
            by_pod: world.by_pod,
        };
        let bound = match Service::bind(&world.http, &world.runtime, new).await {
            Ok(bound) => bound,
            Err(error) => return CommandOutcome::NotStarted(error),
        };
        // Before the first request's first instruction.
        self.started();
        self.container.recent.started(&self.container.about);
        answer(&tell, Ok(()));
        accept::serve(bound);
        requests.drained().await;
        CommandOutcome::Exited(0)
    }

    fn started(&self) {
        let effect = self.inner.lock().state.apply(Input::Started, self.role);
        if matches!(effect, Ok(Effect::AnnounceStart)) {
            let container_id = self.container.id.clone();
            let event = match self.role {
                Role::Init => {
                    self.container.metrics.starts.ok.inc();
                    Event::Start { container_id, pid: self.container.pid() }
                }
                Role::Exec => Event::ExecStarted { container_id, exec_id: self.id.clone(), pid: self.container.pid() },
            };
            self.gauge(State::Starting, State::Running);
            let trace = self.container.about.trace_id().map(tracing::field::display);
            tracing::debug!(task = %self.container.id, process = %self.id, trace, "started");
            self.publish(event);
        }
    }

    /// The guest is gone; called by its worker.
    fn ended(self: &Arc<Self>, end: GuestEnd<CommandOutcome>, tell: &Tell) {
        faults::at(Point::Ended);
        let out_of_memory = oom::ended_by(self.starved.load(Ordering::Relaxed), &end);
        let mut refusal = None;
        let (status, note) = match end {
            GuestEnd::Completed(CommandOutcome::Exited(status)) => (status, None),
            GuestEnd::Completed(CommandOutcome::NotStarted(error)) => {
                let text = error.to_string();
                if self.role == Role::Init {
                    self.container.metrics.starts.failed.inc();
                    self.container.recent.failed(&self.container.about, &text);
                }
                // Start's caller shows it; where Start has been answered, the container's output does.
                let note = (!is_awaited(tell)).then_some((EndKind::NotStarted, text));
                refusal = Some(error);
                (NEVER_STARTED, note)
            }
            GuestEnd::Completed(CommandOutcome::Trapped(text)) => {
                self.container.metrics.tasks.traps.inc();
                self.container.about.traps.fetch_add(1, Ordering::Relaxed);
                (TRAP_STATUS, Some((EndKind::Trap, text)))
            }
            GuestEnd::Killed => (self.inner.lock().killed_with.unwrap_or(KILLED_STATUS), None),
            GuestEnd::Panicked(text) => {
                tracing::error!(namespace = %self.container.namespace, task = %self.container.id, process = %self.id, panic = %text, "a host function panicked; only this process ends");
                (TRAP_STATUS, Some((EndKind::Panic, format!("hearthd failed in a host function: {text}"))))
            }
        };
        if let Some((kind, text)) = note {
            self.note_end(kind, status, &text, out_of_memory);
        }
        let status = if out_of_memory { self.out_of_memory() } else { status };
        let (before, effect) = {
            let mut inner = self.inner.lock();
            let before = inner.state;
            inner.pause = None;
            (before, inner.state.apply(Input::Exited(status), self.role))
        };
        if let Ok(Effect::Finish(status)) = effect {
            self.finish(before, status);
        }
        if let Some(error) = refusal {
            // Its caller may look at the state, or delete it, at once.
            answer(tell, Err(error));
        }
    }

    /// Tells why the guest ended to whoever may look for it.
    fn note_end(&self, kind: EndKind, status: u32, text: &str, out_of_memory: bool) {
        let container = &self.container;
        tracing::info!(target: logging::GUEST, namespace = %container.namespace, task = %container.id, process = %self.id, kind = kind.name(), text, "a guest ended badly");
        self.stdio.write_stderr(&format!("hearth: {}\n", shown_lines(text, NOTE_BYTES_MAX)));
        // For want of memory it is told again, as that.
        if !out_of_memory {
            container.recent.ended(&container.about, kind, status, text);
            if self.role == Role::Init {
                container.note_end(text);
            }
        }
    }

    /// Tells that the guest ended for want of memory, and gives its status.
    fn out_of_memory(&self) -> u32 {
        let memory = &self.container.memory;
        self.container.metrics.tasks.oom_kills.inc();
        let text = format!("out of memory: its limit is {} bytes", memory.limit());
        self.stdio.write_stderr(&format!("hearth: {text}\n"));
        tracing::info!(target: logging::GUEST, namespace = %self.container.namespace, task = %self.container.id, process = %self.id, limit = memory.limit(), "a guest ended for want of memory");
        self.container.recent.ended(&self.container.about, EndKind::OutOfMemory, oom::OOM_STATUS, &text);
        if self.role == Role::Init {
            self.container.note_end(&text);
            memory.set_fatal();
            self.publish(Event::Oom { container_id: self.container.id.clone() });
        }
        oom::OOM_STATUS
    }

    /// Everything that follows the end of a process.
    fn finish(self: &Arc<Self>, before: State, status: u32) {
        let exit = Exit { status, at: SystemTime::now() };
        self.gauge(before, State::Stopped(status));
        match self.role {
            Role::Init => {
                let process = self.clone();
                let afterwards = move || {
                    let init = process.clone();
                    process.container.execs.close(move || init.close(exit));
                };
                match &self.container.requests {
                    Some(requests) => requests.close(afterwards),
                    None => afterwards(),
                }
            }
            Role::Exec => self.close(exit),
        }
    }

    /// Closes stdio, and then tells the world.
    fn close(self: &Arc<Self>, exit: Exit) {
        let process = self.clone();
        self.stdio.finish(move || process.tell_end(exit));
    }

    /// Tells of the end, in order.
    fn tell_end(&self, exit: Exit) {
        if self.role == Role::Init {
            self.container.files.release();
        }
        tracing::debug!(task = %self.container.id, process = %self.id, status = exit.status, "ended");
        self.publish(Event::Exit {
            container_id: self.container.id.clone(),
            id: self.id.clone(),
            pid: self.container.pid(),
            exit_status: exit.status,
            exited_at: exit.at,
        });
        self.exit.send_replace(Some(exit));
        if self.role == Role::Exec {
            self.container.execs.ended();
        }
    }

    /// Ends an exec whose init has ended; one that was never started stays as it is.
    pub(super) fn end_with_init(&self) {
        let mut inner = self.inner.lock();
        if matches!(inner.state, State::Starting | State::Running | State::Paused) {
            inner.killed_with.get_or_insert(KILLED_STATUS);
            drop(inner);
            self.guest.kill();
        }
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// `NotFound` if the process has ended, `InvalidArgument` if there is no such signal.
    pub fn kill(self: &Arc<Self>, signal: u32) -> Result<()> {
        let (before, effect) = {
            let mut inner = self.inner.lock();
            let before = inner.state;
            // A service handles these: it ends once the requests under way have ended.
            if DRAINS.contains(&signal)
                && matches!(before, State::Running | State::Paused)
                && let Some(requests) = self.requests()
            {
                drop(inner);
                requests.drain();
                return Ok(());
            }
            let effect = inner.state.apply(Input::Kill(signal), self.role)?;
            match effect {
                Effect::Interrupt(status) => {
                    inner.killed_with.get_or_insert(status);
                }
                Effect::InterruptLater(status) => {
                    if let Some(pause) = &mut inner.pause {
                        pause.killed_with.get_or_insert(status);
                    }
                }
                _ => {}
            }
            (before, effect)
        };
        match effect {
            Effect::Interrupt(_) => self.guest.kill(),
            Effect::Finish(status) => self.finish(before, status),
            Effect::None
            | Effect::Launch
            | Effect::AnnounceStart
            | Effect::InterruptLater(_)
            | Effect::Freeze
            | Effect::Thaw
            | Effect::Remove(_) => {}
        }
        Ok(())
    }

    /// Those it serves.
    fn requests(&self) -> Option<&Arc<Requests>> {
        self.container.requests.as_ref().filter(|_| self.role == Role::Init)
    }

    /// The Delete call: the process must not run any more. Once this returns its exit has been told, its
    /// stdio is closed, and nobody waits for it.
    ///
    /// # Errors
    /// `FailedPrecondition` while it runs.
    pub(super) async fn remove(&self) -> Result<Exit> {
        self.end_unstarted()?;
        // Its TaskExit comes before its TaskDelete, also for a Delete that comes in between.
        self.wait().await
    }

    /// Ends a process that will not be started, without a word to anybody but those who wait for it.
    fn end_unstarted(&self) -> Result<()> {
        let (before, effect) = {
            let mut inner = self.inner.lock();
            let before = inner.state;
            (before, inner.state.apply(Input::Delete, self.role)?)
        };
        if let (State::Created, Effect::Remove(status)) = (before, effect) {
            self.stdio.close();
            self.gauge(before, State::Stopped(status));
            self.exit.send_replace(Some(Exit { status, at: SystemTime::now() }));
        }
        Ok(())
    }

    /// Gives up a process whose start was refused.
    fn abandon(&self) {
        // One that runs already was started twice, and goes on.
        let _ = self.end_unstarted();
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

    /// Where the process is. For others it has stopped once its exit is told, and no sooner: a status
    /// without its exit code would be taken for a 0.
    pub fn snapshot(&self) -> Snapshot {
        // In this order: one that has told its exit has stopped.
        let exit = *self.exit.borrow();
        let state = match (self.inner.lock().state, exit) {
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
        matches!(self.inner.lock().state, State::Starting | State::Running | State::Paused)
    }

    /// CPU time so far: of an init, that of its execs and requests, too.
    pub fn cpu_time(&self) -> Duration {
        self.guest.cpu_time()
    }

    /// How its CPU quota has held it back so far: of an init, its execs and requests, too.
    pub fn throttling(&self) -> Throttling {
        self.guest.throttling()
    }

    /// Tells the metrics where the task is: where its init is.
    pub(super) fn gauge(&self, before: State, after: State) {
        if self.role == Role::Init && label(before) != label(after) {
            self.container.metrics.tasks.by_state.with_label_values(&[label(before)]).dec();
            self.container.metrics.tasks.by_state.with_label_values(&[label(after)]).inc();
        }
    }
}

/// Start's caller, until it has its answer.
type Tell = Arc<Mutex<Option<oneshot::Sender<Result<()>>>>>;

/// Answers Start; `false` if nobody waits.
fn answer(tell: &Tell, result: Result<()>) -> bool {
    tell.lock().take().is_some_and(|tell| tell.send(result).is_ok())
}

/// Whether somebody waits for Start's answer.
fn is_awaited(tell: &Tell) -> bool {
    tell.lock().as_ref().is_some_and(|tell| !tell.is_closed())
}

/// The value of the metric's label.
pub(super) fn label(state: State) -> &'static str {
    match state {
        State::Created | State::Starting => "created",
        State::Running => "running",
        State::Paused => "paused",
        State::Stopped(_) => "stopped",
    }
}
