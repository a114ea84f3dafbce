//! The error for a program whose imports Hearth does not offer: wasmtime's text about the first, and all others by
//! name.

use wasmtime::component::Component;
use wasmtime::{ExternType, Linker, Module, UnknownImportError};

use crate::state::CoreState;
use hearth_base::error::Error;
use hearth_base::text::{NAME_BYTES_MAX, shown};

/// The most imports that are looked for.
const IMPORTS_MAX: usize = 32;

/// The most bytes of the list of imports.
const LIST_BYTES_MAX: usize = 600;

/// The error for a module; `error` is wasmtime's.
pub(super) fn module(linker: &Linker<CoreState>, module: &Module, error: &wasmtime::Error) -> Error {
    let mut linker = linker.clone();
    let mut unknown = Vec::new();
    while unknown.len() < IMPORTS_MAX {
        let Err(error) = linker.instantiate_pre(module) else { break };
        let Some(import) = error.downcast_ref::<UnknownImportError>() else { break };
        unknown.push(format!("{}::{}", import.module(), import.name()));
        let ExternType::Func(kind) = import.ty() else { break };
        // It is never called: no guest is made by this linker. wasmtime goes on to the next import.
        let defined = linker.func_new(import.module(), import.name(), kind, |_, _, _| Ok(()));
        if defined.is_err() {
            break;
        }
    }
    cannot_be_linked(error, &unknown)
}

/// The error for a component; `error` is wasmtime's. The interfaces outside of WASI are named: Hearth offers none.
pub(super) fn component(component: &Component, error: &wasmtime::Error) -> Error {
    let of_component = component.component_type();
    let names = of_component.imports(component.engine()).map(|(name, _)| name);
    let unknown: Vec<_> = names.filter(|name| !name.starts_with("wasi:")).take(IMPORTS_MAX).map(String::from).collect();
    cannot_be_linked(error, &unknown)
}

fn cannot_be_linked(error: &wasmtime::Error, unknown: &[String]) -> Error {
    let text = format!("{error:#}");
    let text = shown(&text, NAME_BYTES_MAX);
    let all = match unknown {
        [] | [_] => String::new(),
        unknown => {
            let names: Vec<_> = unknown.iter().map(|name| shown(name, NAME_BYTES_MAX)).collect();
            let more = if unknown.len() == IMPORTS_MAX { " or more" } else { "" };
            let names = names.join(", ");
            format!("; in all {}{more} are unknown: {}", unknown.len(), shown(&names, LIST_BYTES_MAX))
        }
    };
    Error::InvalidArgument(format!(
        "the module cannot be linked: {text}{all}; Hearth offers WASI preview 1 to modules and the imports of wasi:cli/command 0.2 and 0.3, wasi:http/proxy 0.2 and wasi:http/service 0.3 to components"
    ))
}
