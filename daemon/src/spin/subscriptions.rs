//! The channels of Redis servers whose messages an application's components take.
//!
//! Each server has one connection. Its messages are handled one after the other; the components of one channel take a
//! message at the same time. A connection that is lost is made again, and messages that are sent meanwhile are lost, as
//! Redis keeps none.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;

use hearth_base::error::{Error, Result};
use hearth_http::service::Service;
use hearth_interfaces::container::Container;
use hearth_interfaces::redis_subscription::{Message, Messages, Subscription};
use hearth_spin::redis_trigger::Subscription as Trigger;
use hearth_wasm::access::{Access, InterfaceState};

/// The pause after the first failure to connect; each further one doubles it.
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// The most servers of an application: each is a connection of the daemon.
const SERVERS_MAX: usize = 16;

/// A server, and which components take the messages of each channel.
struct Server {
    subscription: Subscription,
    components: BTreeMap<String, Vec<String>>,
}

/// The servers of an application.
#[derive(Default)]
pub struct Subscriptions(Vec<Arc<Server>>);

impl InterfaceState for Subscriptions {}

impl Subscriptions {
    /// The servers of these triggers.
    ///
    /// # Errors
    /// `InvalidArgument` for an address that is none.
    pub fn new(container: &Arc<Container>, triggers: &[Trigger]) -> Result<Subscriptions> {
        let mut by_address: BTreeMap<&str, BTreeMap<String, Vec<String>>> = BTreeMap::new();
        for Trigger { component, address, channel } in triggers {
            by_address.entry(address).or_default().entry(channel.clone()).or_default().push(component.clone());
        }
        if by_address.len() > SERVERS_MAX {
            return Err(Error::InvalidArgument(format!(
                "the redis triggers name {} servers; a container is connected to {SERVERS_MAX} at most",
                by_address.len()
            )));
        }
        let servers = by_address.into_iter().map(|(address, components)| {
            let channels = components.keys().cloned().collect();
            let within = |error: Error| {
                let first = components.values().flatten().next().cloned().unwrap_or_default();
                error.context(format!("the component {first:?}"))
            };
            let subscription = Subscription::new(container, address, channels).map_err(within)?;
            Ok(Arc::new(Server { subscription, components }))
        });
        Ok(Subscriptions(servers.collect::<Result<_>>()?))
    }

    /// The work of each server of the application with this access. It ends when the container drains.
    pub fn of(access: &Access, service: &Arc<Service>) -> Vec<impl Future<Output = ()> + Send + use<>> {
        let all = access.get::<Subscriptions>();
        let servers = all.iter().flat_map(|all| all.0.iter().cloned());
        servers.map(|server| follow(server, service.clone())).collect()
    }
}

/// Delivers the messages of a server until the container drains.
async fn follow(server: Arc<Server>, service: Arc<Service>) {
    // It is under way as a listener is: the container ends after it. None: the container has ended.
    let Some(_member) = service.container.requests.begin_listening() else { return };
    let mut draining = service.container.requests.draining();
    let mut pause = PAUSE_MIN;
    loop {
        let Some(begun) = unless(&mut draining, server.subscription.begin()).await else { return };
        let lost = match begun {
            Ok(messages) => {
                pause = PAUSE_MIN;
                match deliver_all(&server, &service, messages, &mut draining).await {
                    Some(error) => error,
                    None => return,
                }
            }
            Err(error) => error.to_string(),
        };
        let text = format!("{lost}; trying again in {} s", pause.as_secs());
        service.note_later(&format!("redis {}", server.subscription).into(), text);
        if unless(&mut draining, tokio::time::sleep(pause)).await.is_none() {
            return;
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Delivers messages until the connection is lost, and says why; `None`: the container drains.
async fn deliver_all(
    server: &Server,
    service: &Arc<Service>,
    mut messages: Messages,
    draining: &mut watch::Receiver<bool>,
) -> Option<String> {
    loop {
        // The container's memory is charged: the message is kept for its guests.
        match unless(draining, messages.next(&service.container.memory)).await? {
            Ok(message) => deliver(server, service, message).await,
            Err(error) => return Some(error.to_string()),
        }
    }
}

/// Gives a message to the components of its channel, and waits for all of them.
async fn deliver(server: &Server, service: &Arc<Service>, message: Message) {
    let Some(components) = server.components.get(&message.channel) else { return };
    let name = format!("message of {}", message.channel);
    join_all(components.iter().map(|id| service.deliver(id, &name, message.payload.clone()))).await;
}

/// The result of some work; `None` once the container drains.
async fn unless<T>(draining: &mut watch::Receiver<bool>, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        // An error: the container is gone.
        _ = draining.wait_for(|draining| *draining) => None,
        done = work => Some(done),
    }
}
