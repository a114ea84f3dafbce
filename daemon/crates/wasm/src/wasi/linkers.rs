//! Which functions core modules and components can import.

use wasmtime::component::Linker as ComponentLinker;
use wasmtime::{Engine, Linker};
use wasmtime_wasi::p1;

use super::{http_types, preview1, sockets};
use crate::host_interface::HostInterface;
use crate::state::{ComponentState, CoreState};
use crate::{files, names};

/// The linker of core modules: WASI preview 1.
///
/// # Errors
/// If a name is added twice: a mistake of this module.
pub fn core_linker(engine: &Engine) -> wasmtime::Result<Linker<CoreState>> {
    let mut linker = Linker::new(engine);
    p1::add_to_linker_async(&mut linker, |state: &mut CoreState| &mut state.wasi)?;
    preview1::replace(&mut linker)?;
    files::p1::replace(&mut linker)?;
    Ok(linker)
}

/// The linker of components: what `wasi:cli/command` and `wasi:http/proxy` (0.2) or `wasi:http/service` (0.3)
/// import, and these interfaces.
///
/// # Errors
/// If a name is added twice: a mistake of this module or of an interface.
pub fn component_linker(
    engine: &Engine,
    interfaces: &[HostInterface],
) -> wasmtime::Result<ComponentLinker<ComponentState>> {
    let mut linker = ComponentLinker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    wasmtime_wasi::p3::add_to_linker(&mut linker)?;
    wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
    names::replace(&mut linker)?;
    files::p2::replace(&mut linker)?;
    files::p3::replace(&mut linker)?;
    sockets::replace(&mut linker)?;
    http_types::replace(&mut linker)?;
    for interface in interfaces {
        (interface.add_to_linker)(&mut linker)?;
    }
    Ok(linker)
}
