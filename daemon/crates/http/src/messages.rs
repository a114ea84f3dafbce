//! Messages for components of an application: each has an instance of its own, within the limits of requests.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use hearth_wasm::instantiate::{CallTarget, GuestInstance};
use hearth_wasm::scheduler::Guest;
use hearth_wasm::slots::Placed;

use crate::component::Component;
use crate::endings::GuestOutcome;
use crate::instance::another_world;
use crate::service::Service;
use crate::site::Site;
use crate::trace_context::CurrentTrace;

impl Service {
    /// Gives a message to the component `id`, and waits until it has taken it or failed. What fails is told in the
    /// container's log and is lost. `name` is for messages.
    pub async fn deliver(self: &Arc<Self>, id: &str, name: &str, payload: Vec<u8>) {
        let component = match &self.site {
            Site::Application(application) => application.component(id),
            Site::One(_) => None,
        };
        let Some(component) = component.cloned() else { return };
        let name: Arc<str> = name.into();
        let name = component.name_of(&name);
        if let Err(text) = self.deliver_to(&component, &name, payload).await {
            self.note_later(&name, format!("{text}; the message is lost"));
        }
    }

    async fn deliver_to(
        self: &Arc<Self>,
        component: &Arc<Component>,
        name: &Arc<str>,
        payload: Vec<u8>,
    ) -> Result<(), String> {
        let timeout = Duration::from_millis(self.http.config().request_timeout_ms);
        let admitted = tokio::time::timeout(timeout, self.admission.admit(&self.counts)).await;
        let admitted = admitted.ok().flatten().ok_or("too many requests at once")?;
        let program = component.parts.program.now();
        let slot = self.runtime.slots.take(&program, &self.container.tenant).map_err(|error| error.to_string())?;
        let guest = Arc::new(Guest::part(&self.container.guest));
        // The container has ended.
        let Some(member) = self.container.requests.begin(&guest) else { return Ok(()) };
        let (tell, told) = oneshot::channel();
        let future = take((self.clone(), component.clone()), guest.clone(), (program, slot), payload, timeout);
        let ended = {
            let (service, name) = (self.clone(), name.clone());
            move |end| {
                service.guest_ended(end, false, || name.to_string());
                drop(admitted);
                // The container may be gone meanwhile.
                let _ = tell.send(());
                drop(member);
            }
        };
        self.runtime.scheduler.spawn_part(guest, future, ended);
        // An error: the guest was dropped with the container.
        let _ = told.await;
        Ok(())
    }
}

/// The future of a message's guest.
async fn take(
    (service, component): (Arc<Service>, Arc<Component>),
    guest: Arc<Guest>,
    placed: Placed,
    payload: Vec<u8>,
    timeout: Duration,
) -> GuestOutcome {
    let (_slot, instance) =
        match service.instance_for(CallTarget::Subscriber, &component, &guest, placed, CurrentTrace::of(None)).await {
            Ok(made) => made,
            Err(outcome) => return outcome,
        };
    let GuestInstance::Subscriber(mut store, subscriber) = instance else { return another_world() };
    match tokio::time::timeout(timeout, subscriber.take(&mut store, payload)).await {
        Err(_) => GuestOutcome::TooSlow,
        Ok(Ok(Ok(()))) => GuestOutcome::Returned,
        Ok(Ok(Err(error))) => GuestOutcome::Refused(format!("the component failed with the error `{error}`")),
        Ok(Err(error)) => service.outcome(Err(error), &store),
    }
}
