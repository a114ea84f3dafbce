//! What happens to a task after Create: the only place that applies its state machine.
//!
//! Start hands the guest to the scheduler and waits for the instance; from then on the guest's worker
//! tells the task what became of it. The order everybody sees: TaskStart is queued before the first
//! instruction, stdio is closed before TaskExit is queued, TaskExit is queued before a Wait is
//! answered, and the root is gone before Delete is.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use crate::error::{Error, Result};
use crate::events::Event;
use crate::task::map::TaskMap;
use crate::task::state::{Effect, Input, NEVER_STARTED, Role, State};
use crate::task::{Exit, Prepared, Snapshot, Task, Work, oom, pid};
use crate::wasm::instance::{self, Launch, Outcome, Slot, StartClock, TRAP_STATUS, World};
use crate::wasm::scheduler::{End, Throttling};

/// Status of a guest that was ended without a signal of containerd's (a shutdown of the daemon).
const KILLED_STATUS: u32 = 137;

impl Task {
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
        let (work, slot) = self.begin_start(world)?;
        self.gauge(State::Created, State::Starting);
        self.stdio.start();
        let (Work::Program(prepared), Some(slot)) = (work, slot) else {
            self.started();
            let task = self.clone();
            let ended = move |end| task.ended(end, &Tell::default());
            world.scheduler.spawn(self.guest.clone(), std::future::pending(), ended);
            return Ok(pid());
        };
        let sure = slot.is_sure(prepared.program.initial_memory(), self.memory.limit()) && self.files.is_ready();
        if sure {
            self.started();
        }
        let (tell, told) = oneshot::channel();
        let tell = Arc::new(Mutex::new(Some(tell)));
        let (task, world_of_guest, ready) = (self.clone(), world.clone(), tell.clone());
        let guest = async move { task.run(world_of_guest, *prepared, slot, start_began, ready).await };
        let task = self.clone();
        world.scheduler.spawn(self.guest.clone(), guest, move |end| task.ended(end, &tell));
        if sure {
            return Ok(pid());
        }
        match told.await {
            Ok(Ok(())) => Ok(pid()),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::FailedPrecondition("the task was killed before it had started".into())),
        }
    }

    /// Takes a slot and what Start needs. Without a slot the task stays as it is and can be started
    /// later.
    fn begin_start(&self, world: &Arc<World>) -> Result<(Work, Option<Slot>)> {
        let mut inner = self.inner.lock();
        let slot = match (inner.state, &inner.work) {
            (State::Created, Some(Work::Program(prepared))) => Some(world.slots.take(prepared.program.fits_pool())?),
            _ => None,
        };
        inner.state.apply(Input::Start, Role::Init)?;
        let work = inner.work.take();
        Ok((work.ok_or_else(|| Error::Internal("a created task had nothing to start".into()))?, slot))
    }

    /// The guest's future: waits for the root, then runs.
    async fn run(
        self: Arc<Self>,
        world: Arc<World>,
        prepared: Prepared,
        slot: Slot,
        start_began: Instant,
        tell: Tell,
    ) -> Outcome {
        if let Err(error) = self.files.wait_ready().await {
            return Outcome::NotStarted(error);
        }
        let launch = Launch {
            program: prepared.program,
            export: prepared.export,
            args: prepared.args,
            env: prepared.env,
            cwd: prepared.cwd,
            root: self.files.path().to_path_buf(),
            partly_read_only: prepared.partly_read_only,
            stdio: self.stdio.clone(),
            memory: self.memory.clone(),
            guest: self.guest.clone(),
            slot,
            clock: StartClock { source: prepared.source, create_took: prepared.create_took, start_began },
        };
        let task = self.clone();
        instance::run(world, launch, move || {
            task.started();
            answer(&tell, Ok(()));
        })
        .await
    }

    fn started(&self) {
        let effect = self.inner.lock().state.apply(Input::Started, Role::Init);
        if matches!(effect, Ok(Effect::AnnounceStart)) {
            self.metrics.starts_ok.inc();
            self.gauge(State::Starting, State::Running);
            self.events.publish(&self.namespace, Event::Start { container_id: self.id.clone(), pid: pid() });
        }
    }

    /// The guest is gone; called by its worker.
    fn ended(&self, end: End<Outcome>, tell: &Tell) {
        let out_of_memory = oom::ended_by(&self.memory, &end);
        let (status, note) = match end {
            End::Completed(Outcome::Exited(status)) => (status, None),
            End::Completed(Outcome::NotStarted(error)) => {
                self.metrics.starts_failed.inc();
                let text = error.to_string();
                // Start's caller shows it; where Start has been answered, the container's output does.
                (NEVER_STARTED, (!answer(tell, Err(error))).then_some(text))
            }
            End::Completed(Outcome::Trapped(text)) => {
                self.metrics.traps.inc();
                (TRAP_STATUS, Some(text))
            }
            End::Killed => (self.inner.lock().killed_with.unwrap_or(KILLED_STATUS), None),
            End::Panicked(text) => {
                tracing::error!(namespace = %self.namespace, task = %self.id, panic = %text, "a host function panicked; only this task ends");
                (TRAP_STATUS, Some(format!("hearthd failed in a host function: {text}")))
            }
        };
        if let Some(text) = note {
            tracing::debug!(namespace = %self.namespace, task = %self.id, trap = %text, "a guest trapped");
            self.stdio.write_stderr(&format!("hearth: {text}\n"));
        }
        self.memory.clear();
        let status = if out_of_memory { self.out_of_memory() } else { status };
        let (before, effect) = {
            let mut inner = self.inner.lock();
            let before = inner.state;
            inner.pause = None;
            (before, inner.state.apply(Input::Exited(status), Role::Init))
        };
        if let Ok(Effect::Finish(status)) = effect {
            self.finish(before, status);
        }
    }

    /// Tells that the guest ended for want of memory, and gives its status.
    fn out_of_memory(&self) -> u32 {
        self.memory.set_fatal();
        self.metrics.oom_kills.inc();
        self.stdio.write_stderr(&format!("hearth: out of memory: its limit is {} bytes\n", self.memory.limit()));
        self.events.publish(&self.namespace, Event::Oom { container_id: self.id.clone() });
        oom::OOM_STATUS
    }

    /// Everything that follows the end of a process, in order.
    fn finish(&self, before: State, status: u32) {
        let exit = Exit { status, at: SystemTime::now() };
        self.stdio.close();
        self.gauge(before, State::Stopped(status));
        self.files.release();
        self.events.publish(
            &self.namespace,
            Event::Exit {
                container_id: self.id.clone(),
                id: self.id.clone(),
                pid: pid(),
                exit_status: status,
                exited_at: exit.at,
            },
        );
        self.exit.send_replace(Some(exit));
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// `NotFound` if the process has ended, `InvalidArgument` if there is no such signal.
    pub fn kill(&self, signal: u32) -> Result<()> {
        let (before, effect) = {
            let mut inner = self.inner.lock();
            let before = inner.state;
            let effect = inner.state.apply(Input::Kill(signal), Role::Init)?;
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

    /// Lets everything go and takes the task out of the map.
    ///
    /// # Errors
    /// `FailedPrecondition` while it runs.
    pub async fn delete(self: &Arc<Self>, map: &TaskMap) -> Result<Exit> {
        let (before, status) = {
            let mut inner = self.inner.lock();
            match inner.state.apply(Input::Delete, Role::Init)? {
                Effect::Remove(status) => (inner.state, status),
                _ => return Err(Error::Internal("Delete had no effect".into())),
            }
        };
        self.stdio.close();
        self.files.release();
        self.files.wait_gone().await;
        let exit = self.exit.borrow().unwrap_or(Exit { status, at: SystemTime::now() });
        // Of two Deletes at once, one removes and tells; both are answered.
        if map.remove(self) {
            self.metrics.tasks.with_label_values(&[label(before)]).dec();
            self.events.publish(
                &self.namespace,
                Event::Delete {
                    container_id: self.id.clone(),
                    pid: pid(),
                    exit_status: exit.status,
                    exited_at: exit.at,
                },
            );
        }
        Ok(exit)
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// None while the task is held.
    pub async fn wait(&self) -> Result<Exit> {
        let mut exit: watch::Receiver<Option<Exit>> = self.exit.subscribe();
        let ended = exit.wait_for(Option::is_some).await;
        ended.ok().and_then(|exit| *exit).ok_or_else(|| Error::NotFound(format!("task {} is gone", self.id)))
    }

    /// Waits until the root is unmounted; only once it has ended.
    pub async fn unmounted(&self) {
        self.files.wait_gone().await;
    }

    /// No more input: what the FIFO holds is still read, then the guest sees the end.
    pub fn close_stdin(&self) {
        self.stdio.close_stdin();
    }

    /// Where the task is.
    pub fn snapshot(&self) -> Snapshot {
        let state = self.inner.lock().state;
        Snapshot { state, exit: *self.exit.borrow() }
    }

    /// How the guest was held back by its CPU quota so far.
    pub fn throttling(&self) -> Throttling {
        self.guest.throttling()
    }

    /// CPU time of the guest so far.
    pub fn cpu_time(&self) -> std::time::Duration {
        self.guest.cpu_time()
    }

    pub(super) fn gauge(&self, before: State, after: State) {
        if label(before) != label(after) {
            self.metrics.tasks.with_label_values(&[label(before)]).dec();
            self.metrics.tasks.with_label_values(&[label(after)]).inc();
        }
    }
}

/// Start's caller, until it has its answer.
type Tell = Arc<Mutex<Option<oneshot::Sender<Result<()>>>>>;

/// Answers Start; `false` if nobody waits.
fn answer(tell: &Tell, result: Result<()>) -> bool {
    tell.lock().take().is_some_and(|tell| tell.send(result).is_ok())
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
