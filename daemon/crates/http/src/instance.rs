//! Making the instance for a request: the parts that its guest finds, and the reasons why there may be none.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::calls::Caller;
use crate::component::Component;
use crate::endings::GuestOutcome;
use crate::lines::Lines;
use crate::outgoing::Outgoing;
use crate::service::Service;
use crate::site::Site;
use crate::trace_context::CurrentTrace;
use hearth_base::error::Error;
use hearth_wasm::command::trap_text;
use hearth_wasm::instantiate::{self, CallTarget, GuestConfig, GuestInstance, InstantiateError, RootFiles, Streams};
use hearth_wasm::scheduler::Guest;
use hearth_wasm::slots::{Placed, Slot};

impl Service {
    /// The sender of the requests of a component's guests.
    fn outgoing(self: &Arc<Self>, component: &Arc<Component>) -> Outgoing {
        match &self.site {
            Site::One(_) => Outgoing::new(component.parts.client.clone()),
            Site::Application(_) => {
                Outgoing::of_application(component.parts.client.clone(), Caller::new(self.clone(), component.clone()))
            }
        }
    }

    /// Makes the instance for a guest of a component. Its own requests belong to `trace`.
    ///
    /// # Errors
    /// The outcome of a guest that has no instance.
    pub(crate) async fn instance(
        self: &Arc<Self>,
        component: &Arc<Component>,
        guest: &Arc<Guest>,
        placed: Placed,
        trace: CurrentTrace,
    ) -> Result<(Slot, GuestInstance), GuestOutcome> {
        self.instance_for(CallTarget::Handler, component, guest, placed, trace).await
    }

    /// The same for another export than the HTTP handler.
    ///
    /// # Errors
    /// As [`Service::instance`].
    pub(crate) async fn instance_for(
        self: &Arc<Self>,
        call: CallTarget<'_>,
        component: &Arc<Component>,
        guest: &Arc<Guest>,
        placed: Placed,
        trace: CurrentTrace,
    ) -> Result<(Slot, GuestInstance), GuestOutcome> {
        let began = Instant::now();
        let starved: Arc<AtomicBool> = Arc::default();
        let outgoing = || -> instantiate::Outgoing { Box::new(self.outgoing(component).traced(&trace)) };
        let config = GuestConfig {
            settings: &component.parts.settings,
            request_id: Some(self.instances.fetch_add(1, Ordering::Relaxed)),
            files: RootFiles::Open(&component.files),
            tenant: &self.container.tenant,
            handles_max: self.http.config().handles_max.saturating_mul(component.requests_per_instance()),
            memory: &self.container.memory,
            starved: &starved,
            outgoing: &outgoing,
        };
        let mark = self.marks.next();
        let streams = || Streams {
            stdin: None::<tokio::io::Empty>,
            stdout: Lines::new(self.container.stdio.stdout(), mark),
            stderr: Lines::new(self.container.stdio.stderr(), mark),
        };
        let unseen = || None::<fn()>;
        let made = instantiate::instantiate(&self.runtime, guest, placed, call, &config, streams, unseen).await;
        let made = made.map_err(|refusal| match refusal {
            InstantiateError::Full(_) => GuestOutcome::Full,
            InstantiateError::NotReady(error) => GuestOutcome::NotStarted(error),
            // The guest has not run yet, so it is the other requests that hold the container's memory.
            InstantiateError::Failed(_) if starved.load(Ordering::Relaxed) => {
                GuestOutcome::NoMemory(self.container.memory.limit())
            }
            InstantiateError::Failed(error) => GuestOutcome::Trapped(trap_text(&error)),
        })?;
        self.counts.instantiated(began.elapsed());
        Ok(made)
    }
}

/// The outcome where a program changed between WASI 0.2 and 0.3 while it was served.
pub(crate) fn another_world() -> GuestOutcome {
    GuestOutcome::NotStarted(Error::Internal("a service is of another WASI than its program".into()))
}
