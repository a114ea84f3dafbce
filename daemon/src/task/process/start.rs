//! Start of a process: a slot is taken, the guest is handed to the scheduler, the start is announced before the
//! guest's first instruction.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use hearth_base::bundle::ProcessSpec;
use hearth_base::error::{Error, Result};
use hearth_base::faults::{self, Point};
use hearth_containerd::events::Event;
use hearth_http::outgoing::Outgoing;
use hearth_http::outgoing::client::Client;
use hearth_wasm::command::{self, CommandOutcome, Launch, LaunchFiles};
use hearth_wasm::engine::{ModuleKind, Program};
use hearth_wasm::instantiate::GuestSettings;
use hearth_wasm::resolver::Names;
use hearth_wasm::runtime::Runtime;
use hearth_wasm::slots::Placed;

use crate::task::world::World;

use super::state::{Effect, Input, Role, State};
use super::{Prepared, Process, Work};

/// The caller of Start, until it has its answer.
#[derive(Clone, Default)]
pub(super) struct StartCaller(Arc<Mutex<Option<oneshot::Sender<Result<()>>>>>);

impl StartCaller {
    /// A caller, and the receiver of the start's result.
    pub(super) fn new() -> (StartCaller, oneshot::Receiver<Result<()>>) {
        let (tell, told) = oneshot::channel();
        (StartCaller(Arc::new(Mutex::new(Some(tell)))), told)
    }

    /// Answers, unless the caller has been answered.
    pub(super) fn answer(&self, result: Result<()>) {
        if let Some(tell) = self.0.lock().take() {
            // A caller that has disconnected needs no answer.
            let _ = tell.send(result);
        }
    }

    /// Whether the caller still waits.
    pub(super) fn waits(&self) -> bool {
        self.0.lock().as_ref().is_some_and(|tell| !tell.is_closed())
    }
}

impl Process {
    /// Starts the guest. Returns once there is an instance, or why there is none; or, where an instance is certain
    /// (a slot of the pool is taken, the memory is within the limit, the root is mounted), as soon as the guest is
    /// in its worker's queue: that saves the caller two changes of thread.
    ///
    /// # Errors
    /// The state forbids it, there is no slot, the root could not be mounted, the module could not be instantiated.
    pub async fn start(self: &Arc<Self>, world: &Arc<World>) -> Result<u32> {
        let start_began = Instant::now();
        let (work, slot) = match self.role {
            Role::Init => self.begin_start(world)?,
            Role::Exec => {
                let begun = self.execs.begin(|| self.begin_start(world));
                // The client of a refused exec waits for the end of its output.
                begun.inspect_err(|_| self.abandon())?
            }
        };
        faults::at(Point::Starting);
        if self.role == Role::Init {
            self.container.about.start_began(start_began);
        }
        self.gauge(State::Created, State::Starting);
        self.start_stdio();
        match (work, slot) {
            (Work::Serve(prepared), _) => self.start_serving(world, *prepared).await,
            (Work::Application(prepared), _) => self.start_application(world, *prepared).await,
            (Work::Program(prepared), Some(placed)) => self.start_program(world, *prepared, placed).await,
            (Work::Refused(error), _) => Err(error),
            (Work::Pause | Work::Program(_), _) => {
                self.started();
                let process = self.clone();
                let ended = move |end| process.ended(end, &StartCaller::default());
                world.runtime.scheduler.spawn(self.guest.clone(), std::future::pending(), ended);
                Ok(self.container.pid())
            }
        }
    }

    /// Takes a slot and what Start needs. Without a slot, or if its start is refused, the process stays as it is; an init
    /// can be started later.
    fn begin_start(&self, world: &Arc<World>) -> Result<(Work, Option<Placed>)> {
        let mut inner = self.inner.lock();
        let slot = match (inner.lifecycle.state(), &inner.work) {
            (State::Created, Some(Work::Program(prepared))) => {
                let program = prepared.program.now();
                let slot = world.runtime.slots.take(&program, &self.container.tenant)?;
                Some((program, slot))
            }
            (State::Created, Some(Work::Refused(error))) => return Err(error.clone()),
            _ => None,
        };
        inner.lifecycle.apply(Input::Start, self.role)?;
        let work = inner.work.take();
        Ok((work.ok_or_else(|| Error::Internal("a created process had nothing to start".into()))?, slot))
    }

    /// Begins to copy stdio. A terminal's signals go to the process.
    fn start_stdio(self: &Arc<Self>) {
        self.stdio.start(|| {
            let process = Arc::downgrade(self);
            move |signal| {
                if let Some(process) = process.upgrade() {
                    // A process that has ended meanwhile has no use for the signal.
                    let _ = process.kill(signal);
                }
            }
        });
    }

    async fn start_program(self: &Arc<Self>, world: &Arc<World>, prepared: Prepared, placed: Placed) -> Result<u32> {
        let (program, slot) = &placed;
        // An exec shares the memory limit with processes that may take what is left of it at any moment, as the
        // containers of a pod with a limit do.
        let certain = self.role == Role::Init
            && slot.is_sure(program.initial_memory(), self.container.memory.limit())
            && self.container.memory.pod_limit().is_none()
            && self.container.files.is_ready();
        if certain {
            self.started();
        }
        let (caller, told) = StartCaller::new();
        let (process, world_of_guest, waiting) = (self.clone(), world.clone(), caller.clone());
        let guest = async move { process.run(world_of_guest, prepared, placed, waiting).await };
        let process = self.clone();
        world.runtime.scheduler.spawn(self.guest.clone(), guest, move |end| process.ended(end, &caller));
        if certain {
            return Ok(self.container.pid());
        }
        self.result_of_start(told).await
    }

    /// Waits for the answer to Start.
    pub(super) async fn result_of_start(&self, told: oneshot::Receiver<Result<()>>) -> Result<u32> {
        match told.await {
            Ok(Ok(())) => Ok(self.container.pid()),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::FailedPrecondition("the process was killed before it had started".into())),
        }
    }

    /// The guest's future: waits for the root, then runs.
    async fn run(
        self: Arc<Self>,
        world: Arc<World>,
        prepared: Prepared,
        (program, slot): Placed,
        caller: StartCaller,
    ) -> CommandOutcome {
        if let Err(error) = self.container.files.wait_ready().await {
            return CommandOutcome::NotStarted(error);
        }
        faults::at(Point::Instantiating);
        let about = (self.role == Role::Init).then(|| self.container.about.clone());
        let settings = self.settings(&world.runtime, &program, prepared.spec, prepared.open_files_max);
        let outgoing = Outgoing::new(self.client(&world, &settings, &settings.env));
        let launch = Launch {
            placed: (program, slot),
            export: prepared.export,
            settings,
            files: LaunchFiles::Root(self.container.files.path().to_path_buf()),
            tenant: self.container.tenant.clone(),
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
            caller.answer(Ok(()));
        })
        .await
    }

    /// The settings of guests that run one program with all of the container's root.
    pub(super) fn settings(
        &self,
        runtime: &Runtime,
        program: &Program,
        spec: ProcessSpec,
        open_files_max: u32,
    ) -> GuestSettings {
        let names = || self.names_at(runtime, self.container.files.path().to_path_buf());
        GuestSettings {
            args: spec.args,
            env: spec.env,
            cwd: spec.cwd,
            partly_read_only: self.container.partly_read_only,
            open_files_max,
            names: (program.kind() == ModuleKind::Component).then(names),
            access: self.container.access.clone(),
            instance_memory: None,
        }
    }

    /// The sender of the requests of guests with these settings; none for guests without names. `env`: the container's
    /// environment.
    pub(super) fn client(
        &self,
        world: &World,
        settings: &GuestSettings,
        env: &[(String, String)],
    ) -> Option<Arc<Client>> {
        let stdio = self.stdio.clone();
        let tell = Box::new(move |text: &str| stdio.write_stderr(&format!("hearth: {text}\n")));
        let destinations = settings.access.destinations.clone();
        Some(Client::new(world.http.outgoing.clone(), settings.names.clone()?, destinations, env, tell))
    }

    /// How its components look up names in the root at `root`.
    pub(super) fn names_at(&self, runtime: &Runtime, root: PathBuf) -> Names {
        runtime.resolvers.names(root, self.guest.identity().clone(), self.container.tenant.clone())
    }

    /// There is an instance: announces the start, once.
    pub(super) fn started(&self) {
        let transition = self.inner.lock().lifecycle.apply(Input::Started, self.role);
        if transition.is_ok_and(|transition| transition.effect == Effect::AnnounceStart) {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caller_of_start_is_answered_once() {
        let (caller, mut told) = StartCaller::new();
        assert!(caller.waits());
        caller.answer(Ok(()));
        caller.answer(Err(Error::Internal("late".into())));
        assert!(!caller.waits());
        assert!(told.try_recv().unwrap().is_ok());
        let (caller, told) = StartCaller::new();
        drop(told);
        assert!(!caller.waits(), "the caller has disconnected");
        assert!(!StartCaller::default().waits());
    }
}
