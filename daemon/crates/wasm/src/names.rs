//! `wasi:sockets/ip-name-lookup` of both WASI versions, by the pod's files and network ([`crate::resolver`]).

use std::net::IpAddr;

use hearth_names::literal;
use wasmtime::StoreContextMut;
use wasmtime::component::{Accessor, Linker, Resource, ResourceType};
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddress, Network as NetworkHandle};
use wasmtime_wasi::p2::{DynPollable, Pollable, subscribe};
use wasmtime_wasi::p3::bindings::sockets::{ip_name_lookup as p3, types as p3_types};

use crate::resolver::{LookUp, Names, Unresolved};
use crate::state::ComponentState;

/// WASI 0.2's code for a name without addresses.
fn code(why: Unresolved) -> ErrorCode {
    match why {
        Unresolved::Invalid => ErrorCode::InvalidArgument,
        Unresolved::Unknown | Unresolved::NoAddress => ErrorCode::NameUnresolvable,
        Unresolved::Late | Unresolved::Temporary => ErrorCode::TemporaryResolverFailure,
        Unresolved::Permanent | Unresolved::NoResolver => ErrorCode::PermanentResolverFailure,
    }
}

/// WASI 0.3's.
fn code_p3(why: Unresolved) -> p3::ErrorCode {
    match why {
        Unresolved::Invalid => p3::ErrorCode::InvalidArgument,
        Unresolved::Unknown | Unresolved::NoAddress => p3::ErrorCode::NameUnresolvable,
        Unresolved::Late | Unresolved::Temporary => p3::ErrorCode::TemporaryResolverFailure,
        Unresolved::Permanent | Unresolved::NoResolver => p3::ErrorCode::PermanentResolverFailure,
    }
}

/// `resolve-address-stream`.
enum Addresses {
    Asked(LookUp),
    Found(std::vec::IntoIter<IpAddr>),
    Failed(ErrorCode),
}

fn look_up(names: &Names, name: String) -> Addresses {
    match literal(&name) {
        Ok(Some(address)) => Addresses::Found(vec![address].into_iter()),
        Ok(None) => Addresses::Asked(names.ask(name)),
        Err(why) => Addresses::Failed(code(why)),
    }
}

#[async_trait::async_trait]
impl Pollable for Addresses {
    async fn ready(&mut self) {
        if let Addresses::Asked(asked) = self {
            *self = match asked.answer().await {
                Ok(found) => Addresses::Found(found.into_iter()),
                Err(why) => Addresses::Failed(code(why)),
            };
        }
    }
}

impl Addresses {
    fn next(&mut self) -> Result<Option<IpAddress>, ErrorCode> {
        if let Addresses::Asked(_) = self {
            let ready = std::pin::pin!(self.ready());
            // One look: a guest that wants to wait subscribes.
            if ready.poll(&mut std::task::Context::from_waker(std::task::Waker::noop())).is_pending() {
                return Err(ErrorCode::WouldBlock);
            }
        }
        match self {
            Addresses::Asked(_) => Err(ErrorCode::WouldBlock),
            Addresses::Found(found) => Ok(found.next().map(IpAddress::from)),
            Addresses::Failed(error) => Err(*error),
        }
    }
}

/// The interface, as wasmtime-wasi 48 has it; a guest's older 0.2 is linked to it too.
const INTERFACE: &str = "wasi:sockets/ip-name-lookup@0.2.12";

/// WASI 0.3's.
const INTERFACE_P3: &str = "wasi:sockets/ip-name-lookup@0.3.0";

/// Puts these look-ups in the place of wasmtime-wasi's.
///
/// # Errors
/// None in practice: the names are there once.
pub fn replace(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    type Caller<'a> = StoreContextMut<'a, ComponentState>;
    linker.allow_shadowing(true);
    let mut interface = linker.instance(INTERFACE)?;
    let kind = ResourceType::host::<Addresses>();
    interface.resource("resolve-address-stream", kind, |mut store, rep| {
        store.data_mut().table.delete(Resource::<Addresses>::new_own(rep))?;
        Ok(())
    })?;
    interface.func_wrap(
        "resolve-addresses",
        |mut store: Caller, (network, name): (Resource<NetworkHandle>, String)| {
            let state = store.data_mut();
            // The handle of a network is the right to ask.
            state.table.get(&network)?;
            let addresses = match &state.names {
                Some(names) if state.access.destinations.look_up(&name) => look_up(names, name),
                _ => Addresses::Failed(ErrorCode::AccessDenied),
            };
            // What is wrong with the name is told at once.
            if let Addresses::Failed(error) = addresses {
                return Ok((Err(error),));
            }
            Ok((Ok(state.table.push(addresses)?),))
        },
    )?;
    interface.func_wrap(
        "[method]resolve-address-stream.resolve-next-address",
        |mut store: Caller, (stream,): (Resource<Addresses>,)| Ok((store.data_mut().table.get_mut(&stream)?.next(),)),
    )?;
    interface.func_wrap(
        "[method]resolve-address-stream.subscribe",
        |mut store: Caller, (stream,): (Resource<Addresses>,)| -> wasmtime::Result<(Resource<DynPollable>,)> {
            Ok((subscribe(&mut store.data_mut().table, stream)?,))
        },
    )?;
    linker.instance(INTERFACE_P3)?.func_wrap_concurrent(
        "resolve-addresses",
        |store: &Accessor<ComponentState>, (name,): (String,)| {
            let names = store.with(|mut store| {
                let state = store.data_mut();
                state.names.clone().filter(|_| state.access.destinations.look_up(&name))
            });
            Box::pin(async move {
                let Some(names) = names else { return Ok((Err(p3::ErrorCode::AccessDenied),)) };
                let found = names.ask(name).answer().await;
                let found = found.map(|found| found.into_iter().map(p3_types::IpAddress::from).collect::<Vec<_>>());
                Ok((found.map_err(code_p3),))
            })
        },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}
