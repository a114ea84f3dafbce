//! Counts a component's sockets against the container's descriptors.
//!
//! A socket is counted from its creation until its handle is dropped; in WASI 0.2 its streams are dropped before it.
//! Connections that a listener of WASI 0.3 accepts are handles of the store's table, and bounded by their number.

use std::net::SocketAddr;

use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource, ResourceType};
use wasmtime_wasi::TrappableError;
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddressFamily};
use wasmtime_wasi::p2::bindings::sockets::tcp::HostTcpSocket;
use wasmtime_wasi::p2::bindings::sockets::{tcp_create_socket, udp_create_socket};
use wasmtime_wasi::p2::{TcpSocket, UdpSocket};
use wasmtime_wasi::p3::bindings::sockets::types as p3;
use wasmtime_wasi::sockets::{SocketAddrUse, TcpSocket as TcpSocketP3, UdpSocket as UdpSocketP3, WasiSocketsView};

use crate::state::ComponentState;
use hearth_base::destinations::Destinations;

/// The interfaces, as wasmtime-wasi 48 has them; a guest's older 0.2 is linked to them too.
const TCP: &str = "wasi:sockets/tcp@0.2.12";
const TCP_CREATE: &str = "wasi:sockets/tcp-create-socket@0.2.12";
const UDP: &str = "wasi:sockets/udp@0.2.12";
const UDP_CREATE: &str = "wasi:sockets/udp-create-socket@0.2.12";
const TYPES_P3: &str = "wasi:sockets/types@0.3.0";

/// The text of the error in WASI 0.3, which has no code for it.
const TOO_MANY: &str = "the container has as many files and sockets open as it may";

type Caller<'a> = StoreContextMut<'a, ComponentState>;

/// Whether a component's socket may use the address. A component with a list of destinations does not listen: no entry
/// allows clients.
pub(crate) fn is_allowed(destinations: &Destinations, address: SocketAddr, purpose: SocketAddrUse) -> bool {
    let allowed = match purpose {
        _ if !destinations.is_limited() => true,
        // A client binds to an address of its own, at a port that the kernel chooses.
        SocketAddrUse::TcpBind | SocketAddrUse::UdpBind => address.port() == 0,
        SocketAddrUse::TcpConnect => destinations.socket("tcp", address),
        SocketAddrUse::UdpSend | SocketAddrUse::UdpReceive => destinations.socket("udp", address),
        SocketAddrUse::TcpListen | SocketAddrUse::TcpAccept => false,
    };
    if !allowed {
        tracing::debug!(%address, ?purpose, "a socket's address is not among the component's allowed hosts");
    }
    allowed
}

/// Puts the calls that make and drop sockets in the place of wasmtime-wasi's own.
///
/// # Errors
/// If wasmtime-wasi has no such interface: a mistake of this module.
pub fn replace(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    replace_p2(linker)?;
    replace_p3(linker)?;
    linker.allow_shadowing(false);
    Ok(())
}

fn replace_p2(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    linker.instance(TCP_CREATE)?.func_wrap(
        "create-tcp-socket",
        |mut store: Caller<'_>, (family,): (IpAddressFamily,)| {
            let state = store.data_mut();
            if !state.descriptors.take() {
                return Ok((Err(ErrorCode::NewSocketLimit),));
            }
            let socket = tcp_create_socket::Host::create_tcp_socket(&mut state.sockets(), family);
            Ok((counted(state, socket)?,))
        },
    )?;
    linker.instance(UDP_CREATE)?.func_wrap_async(
        "create-udp-socket",
        |mut store: Caller<'_>, (family,): (IpAddressFamily,)| {
            Box::new(async move {
                let state = store.data_mut();
                if !state.descriptors.take() {
                    return Ok((Err(ErrorCode::NewSocketLimit),));
                }
                let socket = udp_create_socket::Host::create_udp_socket(&mut state.sockets(), family).await;
                Ok((counted(state, socket)?,))
            })
        },
    )?;
    let mut tcp = linker.instance(TCP)?;
    tcp.resource("tcp-socket", ResourceType::host::<TcpSocket>(), |mut store, index| {
        dropped::<TcpSocket>(store.data_mut(), index)
    })?;
    tcp.func_wrap("[method]tcp-socket.accept", |mut store: Caller<'_>, (listener,): (Resource<TcpSocket>,)| {
        let state = store.data_mut();
        if !state.descriptors.take() {
            return Ok((Err(ErrorCode::NewSocketLimit),));
        }
        match HostTcpSocket::accept(&mut state.sockets(), listener) {
            Ok((socket, input, output)) => {
                state.descriptors.socket_made(socket.rep());
                Ok((Ok((socket, input, output)),))
            }
            Err(error) => {
                state.descriptors.give_back();
                Ok((Err(error.downcast()?),))
            }
        }
    })?;
    linker.instance(UDP)?.resource("udp-socket", ResourceType::host::<UdpSocket>(), |mut store, index| {
        dropped::<UdpSocket>(store.data_mut(), index)
    })
}

fn replace_p3(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    let mut types = linker.instance(TYPES_P3)?;
    types.func_wrap("[static]tcp-socket.create", |mut store: Caller<'_>, (family,): (p3::IpAddressFamily,)| {
        let state = store.data_mut();
        if !state.descriptors.take() {
            return Ok((Err(too_many()),));
        }
        let socket = p3::HostTcpSocket::create(&mut state.sockets(), family);
        Ok((counted(state, socket)?,))
    })?;
    types.func_wrap_async(
        "[static]udp-socket.create",
        |mut store: Caller<'_>, (family,): (p3::IpAddressFamily,)| {
            Box::new(async move {
                let state = store.data_mut();
                if !state.descriptors.take() {
                    return Ok((Err(too_many()),));
                }
                let socket = p3::HostUdpSocket::create(&mut state.sockets(), family).await;
                Ok((counted(state, socket)?,))
            })
        },
    )?;
    types.resource("tcp-socket", ResourceType::host::<TcpSocketP3>(), |mut store, index| {
        dropped::<TcpSocketP3>(store.data_mut(), index)
    })?;
    types.resource("udp-socket", ResourceType::host::<UdpSocketP3>(), |mut store, index| {
        dropped::<UdpSocketP3>(store.data_mut(), index)
    })
}

fn too_many() -> p3::ErrorCode {
    p3::ErrorCode::Other(Some(TOO_MANY.into()))
}

/// Counts the socket that a descriptor was taken for, or gives the descriptor back.
///
/// # Errors
/// A trap, as wasmtime-wasi has it.
fn counted<T: 'static, E>(
    state: &mut ComponentState,
    socket: Result<Resource<T>, TrappableError<E>>,
) -> wasmtime::Result<Result<Resource<T>, E>>
where
    E: std::error::Error + Send + Sync + 'static,
{
    match socket {
        Ok(socket) => {
            state.descriptors.socket_made(socket.rep());
            Ok(Ok(socket))
        }
        Err(error) => {
            state.descriptors.give_back();
            error.downcast().map(Err)
        }
    }
}

fn dropped<T: 'static>(state: &mut ComponentState, index: u32) -> wasmtime::Result<()> {
    state.table.delete(Resource::<T>::new_own(index))?;
    state.descriptors.socket_dropped(index);
    Ok(())
}
