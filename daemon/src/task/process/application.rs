//! Start of a Spin application: its HTTP components are served, others take messages, its commands run side by side, and
//! the first of them that ends ends the container.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll};

use hearth_base::error::{Error, Result};
use hearth_http::accept;
use hearth_http::component::{ComponentFiles, ComponentParts, NewComponent};
use hearth_http::listener::Listen;
use hearth_http::outgoing::Outgoing;
use hearth_http::outgoing::client::Client;
use hearth_http::service::{NewService, NewSite, Service};
use hearth_http::shared_instances::Reuse;
use hearth_http::site::NewApplication;
use hearth_spin::environment::LISTEN_ADDRESS;
use hearth_wasm::command::{self, CommandOutcome, Launch, LaunchFiles};
use hearth_wasm::instantiate::{GuestSettings, component_files};
use hearth_wasm::resolver::Names;

use crate::spin::access::ComponentsAccess;
use crate::spin::subscriptions::Subscriptions;
use crate::task::world::World;

use super::start::StartCaller;
use super::{PreparedApplication, Process};

/// A command of an application under way.
type RunningCommand = Pin<Box<dyn Future<Output = CommandOutcome> + Send>>;

impl Process {
    /// Starts an application. Returns once its port is bound and its commands can run, or why not.
    pub(super) async fn start_application(
        self: &Arc<Self>,
        world: &Arc<World>,
        prepared: PreparedApplication,
    ) -> Result<u32> {
        let (caller, told) = StartCaller::new();
        let (process, world_of_guest, waiting) = (self.clone(), world.clone(), caller.clone());
        let running = async move {
            let ran = process.run_application(world_of_guest, prepared, waiting).await;
            ran.unwrap_or_else(CommandOutcome::NotStarted)
        };
        let process = self.clone();
        world.runtime.scheduler.spawn(self.guest.clone(), running, move |end| process.ended(end, &caller));
        self.result_of_start(told).await
    }

    /// The future of the application's own guest.
    async fn run_application(
        self: Arc<Self>,
        world: Arc<World>,
        prepared: PreparedApplication,
        caller: StartCaller,
    ) -> Result<CommandOutcome> {
        self.container.files.wait_ready().await?;
        let root = self.container.files.path().to_path_buf();
        let names = self.names_at(&world.runtime, root);
        let start = ApplicationStart { process: &self, world: &world, prepared: &prepared, names };
        let bound = match prepared.application.configured.answers() {
            true => Some(start.bind().await?),
            false => None,
        };
        let mut running = start.commands()?;
        if let Some(bound) = &bound {
            running.extend(start.subscriptions(bound.service()));
        }
        drop(start);
        drop(prepared);
        // Before the first request's or the first command's first instruction.
        self.started();
        self.container.recent.started(&self.container.about);
        caller.answer(Ok(()));
        if let Some(bound) = bound {
            accept::serve(bound);
        }
        let requests = self.container.requests.clone();
        let drained = async {
            match requests {
                Some(requests) => requests.drained().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = drained => Ok(CommandOutcome::Exited(0)),
            outcome = FirstOf(running) => Ok(outcome),
        }
    }
}

/// An application on its way from Create to its first instruction.
struct ApplicationStart<'a> {
    process: &'a Arc<Process>,
    world: &'a Arc<World>,
    prepared: &'a PreparedApplication,
    names: Names,
}

impl ApplicationStart<'_> {
    /// The service of its components that answer requests or take messages.
    async fn bind(&self) -> Result<hearth_http::service::Bound> {
        let (process, container) = (self.process, &self.process.container);
        let Some(requests) = container.requests.clone() else {
            return Err(Error::Internal("an application has nowhere to keep its requests".into()));
        };
        let configured = &self.prepared.application.configured;
        let ids: BTreeSet<_> = configured.serving().into_iter().chain(configured.subscribers()).collect();
        let components = ids.into_iter().map(|id| self.component(id)).collect::<Result<_>>()?;
        let listen = match configured.serves() {
            true => Some(self.listen().await?),
            false => None,
        };
        let site = NewApplication { components, routes: configured.routes(), info: self.prepared.application.info() };
        let new = NewService {
            site: NewSite::Application(site),
            listen,
            env: self.prepared.spec.env.clone(),
            root: self.names.root.clone(),
            container: process.served(requests),
            by_pod: self.world.by_pod,
        };
        Service::bind(&self.world.http, &self.world.runtime, new).await
    }

    /// Where it listens: a host name is looked up as the container's guests do.
    async fn listen(&self) -> Result<Listen> {
        let (host, port) = &self.prepared.application.configured.environment.listen;
        let addresses = self.names.addresses(host).await.map_err(|why| {
            Error::InvalidArgument(format!("{LISTEN_ADDRESS}: the host {host:?} has no address: {why}"))
        })?;
        Ok(Listen::at(addresses.into_iter().map(|address| (address, *port).into()).collect(), LISTEN_ADDRESS))
    }

    fn loaded(&self, id: &str) -> Result<&hearth_wasm::modules::Loaded> {
        let missing = || Error::Internal(format!("the component {id:?} was not loaded"));
        self.prepared.application.components.get(id).ok_or_else(missing)
    }

    fn env(&self, id: &str) -> Vec<(String, String)> {
        let component = self.prepared.application.configured.application.component(id);
        component.map(|component| component.environment.clone()).unwrap_or_default()
    }

    /// The settings of the guests of one component.
    fn settings(&self, id: &str, args: Vec<String>) -> GuestSettings {
        GuestSettings {
            args,
            env: self.env(id),
            cwd: "/".into(),
            partly_read_only: true,
            open_files_max: self.prepared.open_files_max,
            names: Some(self.names.clone()),
            access: ComponentsAccess::of(&self.process.container.access, id),
            instance_memory: self.prepared.application.configured.instance_memory,
        }
    }

    fn client(&self, settings: &GuestSettings) -> Option<Arc<Client>> {
        self.process.client(self.world, settings, &self.prepared.spec.env)
    }

    fn component(&self, id: &str) -> Result<NewComponent> {
        let settings = self.settings(id, Vec::new());
        let client = self.client(&settings);
        let parts = ComponentParts { id: Some(id.into()), program: self.loaded(id)?.program.clone(), settings, client };
        let directories = self.prepared.application.configured.directories(id);
        let files = ComponentFiles::Directories { root: self.names.root.clone(), directories };
        Ok(NewComponent { parts, files, reuse: Reuse::of_spin() })
    }

    /// Its subscriptions to channels. None ends before the container does.
    fn subscriptions(&self, service: &Arc<Service>) -> Vec<RunningCommand> {
        let subscriptions = Subscriptions::of(&self.process.container.access, service).into_iter();
        let running = subscriptions.map(|subscription| -> RunningCommand {
            Box::pin(async move {
                subscription.await;
                std::future::pending().await
            })
        });
        running.collect()
    }

    /// Its commands, which run as soon as they are polled.
    fn commands(&self) -> Result<Vec<RunningCommand>> {
        self.prepared.application.configured.commands().into_iter().map(|id| self.command(id)).collect()
    }

    fn command(&self, id: &str) -> Result<RunningCommand> {
        let (process, container) = (self.process, &self.process.container);
        let program = self.loaded(id)?.program.now();
        let slot = self.world.runtime.slots.take(&program, &container.tenant)?;
        let args = [id.to_string()].into_iter().chain(self.prepared.spec.args.iter().cloned());
        let settings = self.settings(id, args.collect());
        let outgoing = Outgoing::new(self.client(&settings));
        let directories = self.prepared.application.configured.directories(id);
        let launch = Launch {
            placed: (program, slot),
            export: None,
            settings,
            files: LaunchFiles::Open(component_files(&self.names.root, &directories)?),
            tenant: container.tenant.clone(),
            stdio: process.stdio.clone(),
            memory: container.memory.clone(),
            starved: Arc::<AtomicBool>::default(),
            guest: process.guest.clone(),
            outgoing: Box::new(move || Box::new(outgoing.clone())),
            about: None,
        };
        Ok(Box::pin(command::run(self.world.runtime.clone(), launch, || {})))
    }
}

/// The outcome of the command that ends first; none ever without commands.
struct FirstOf(Vec<RunningCommand>);

impl Future for FirstOf {
    type Output = CommandOutcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<CommandOutcome> {
        for command in &mut self.0 {
            if let Poll::Ready(outcome) = command.as_mut().poll(cx) {
                return Poll::Ready(outcome);
            }
        }
        Poll::Pending
    }
}
