//! Start of an HTTP component: its guest listens, and the process ends with the listener.

use std::sync::Arc;

use hearth_base::error::{Error, Result};
use hearth_http::accept;
use hearth_http::component::{ComponentFiles, ComponentParts, NewComponent};
use hearth_http::listener::Listen;
use hearth_http::requests::Requests;
use hearth_http::service::{NewService, NewSite, ServedContainer, Service};
use hearth_http::shared_instances::Reuse;
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

    /// The container that serves.
    pub(super) fn served(&self, requests: Arc<Requests>) -> ServedContainer {
        ServedContainer {
            stdio: self.stdio.clone(),
            memory: self.container.memory.clone(),
            tenant: self.container.tenant.clone(),
            guest: self.guest.clone(),
            requests,
            about: self.container.about.clone(),
        }
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
        let (listen, reuse) = match (Listen::of(&prepared.spec.env), Reuse::of(&prepared.spec.env)) {
            (Ok(listen), Ok(reuse)) => (listen, reuse),
            (Err(error), _) | (_, Err(error)) => return CommandOutcome::NotStarted(error),
        };
        let env = prepared.spec.env.clone();
        let settings = self.settings(&world.runtime, &prepared.program.now(), prepared.spec, prepared.open_files_max);
        let client = self.client(&world, &settings, &env);
        let parts = ComponentParts { id: None, program: prepared.program, settings, client };
        let component = NewComponent { parts, files: ComponentFiles::Root(root.clone()), reuse };
        let new = NewService {
            site: NewSite::One(Box::new(component)),
            listen: Some(listen),
            env,
            root,
            container: self.served(requests.clone()),
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
