//! The export of a program that is called: the entry point of a command, an HTTP handler, or an export by its name.

use wasmtime::Module;
use wasmtime::component::Component;

use hearth_base::error::{Error, Result};
use hearth_base::text::shown;

/// The most bytes of each name in a list.
const LISTED_BYTES_MAX: usize = 100;

/// The export that a start calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A function that is called once.
    Run,
    /// `wasi:http/incoming-handler`, `wasi:http/handler` or Spin's `inbound-http`, called for each request.
    Serve,
}

/// A preview 1 command's entry point.
pub const START: &str = "_start";
/// A preview 1 reactor's initialiser, called before any other of its exports.
pub const INITIALIZE: &str = "_initialize";

pub(super) fn check_core_entry(module: &Module, export: Option<&str>) -> Result<()> {
    let name = export.unwrap_or(START);
    match module.get_export(name).as_ref().and_then(wasmtime::ExternType::func) {
        Some(ty) if ty.params().len() == 0 && ty.results().len() <= 1 => Ok(()),
        Some(ty) => Err(Error::InvalidArgument(format!(
            "the export {name:?} has the type {ty}; only a function without parameters and with at most one result can be started"
        ))),
        None => {
            let functions: Vec<_> =
                module.exports().filter(|e| e.ty().func().is_some()).map(|e| e.name().to_string()).collect();
            let hint = if export.is_none() {
                "; a command exports \"_start\"; name another export as FILE.wasm#EXPORT"
            } else {
                ""
            };
            Err(Error::InvalidArgument(format!(
                "the module exports no function {name:?}; its functions: {}{hint}",
                list(&functions)
            )))
        }
    }
}

/// Up to eight names, for a one-line message.
fn list(names: &[String]) -> String {
    let listed: Vec<_> = names.iter().take(8).map(|name| shown(name, LISTED_BYTES_MAX)).collect();
    match names.len() {
        0 => "none".into(),
        1..=8 => listed.join(", "),
        more => format!("{}, and {} more", listed.join(", "), more - 8),
    }
}

pub(super) fn component_exports(component: &Component) -> String {
    let names: Vec<_> =
        component.component_type().exports(component.engine()).map(|(name, _)| name.to_string()).collect();
    list(&names)
}

pub(super) fn unsupported_world(component: &Component) -> Error {
    let exports = component_exports(component);
    Error::InvalidArgument(format!(
        "the component is neither a command (world wasi:cli/command) nor an HTTP service (world wasi:http/proxy or wasi:http/service): it exports {exports}; a command exports wasi:cli/run, a service wasi:http/incoming-handler 0.2 or wasi:http/handler 0.3; call a function of it as FILE.wasm#EXPORT"
    ))
}

pub(super) fn nothing_to_serve(found: &str) -> Error {
    Error::InvalidArgument(format!(
        "the pod asks for an HTTP service, but {found}; a service exports wasi:http/incoming-handler 0.2 or wasi:http/handler 0.3"
    ))
}
