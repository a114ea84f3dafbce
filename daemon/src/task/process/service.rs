//! Start of an HTTP component: its guest listens, and the process ends with the listener.

use std::sync::Arc;

use hearth_base::error::{Error, Result};
use hearth_http::accept;
use hearth_http::service::{NewService, Service};
use hearth_wasm::command::CommandOutcome;

use crate::task::world::World;

use super::start::StartCaller;
use super::{Prepared, Process};

impl Process {
    /// Starts a service. Returns once the port is bound, or why it is not.
    pub(super) async fn start_serving(self: &Arc<Self>, world: &Arc<World>, prepared: Prepared) -> Result<u32> {
        let (caller, told) = StartCaller::new();
        let (process, world_of_guest, waiting) = (self.clone(), world.clone(), caller.clone());
        let listening = async move { process.serve(world_of_guest, prepared, waiting).await };
        let process = self.clone();
        world.runtime.scheduler.spawn(self.guest.clone(), listening, move |end| process.ended(end, &caller));
        self.result_of_start(told).await
    }

    /// The future of a service's own guest.
    async fn serve(self: Arc<Self>, world: Arc<World>, prepared: Prepared, caller: StartCaller) -> CommandOutcome {
        if let Err(error) = self.container.files.wait_ready().await {
            return CommandOutcome::NotStarted(error);
        }
        let Some(requests) = self.container.requests.clone() else {
            return CommandOutcome::NotStarted(Error::Internal("a service has nowhere to keep its requests".into()));
        };
        let root = self.container.files.path().to_path_buf();
        let new = NewService {
            names: self.names(&world.runtime, &prepared.program.now(), &root),
            access: self.container.access.clone(),
            program: prepared.program,
            args: prepared.spec.args,
            env: prepared.spec.env,
            cwd: prepared.spec.cwd,
            root,
            partly_read_only: self.container.partly_read_only,
            open_files_max: prepared.open_files_max,
            descriptors: self.container.descriptors.clone(),
            stdio: self.stdio.clone(),
            memory: self.container.memory.clone(),
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
        caller.answer(Ok(()));
        accept::serve(bound);
        requests.drained().await;
        CommandOutcome::Exited(0)
    }
}
