//! Makes a component of a core module, as Spin's SDKs 1 to 5 build them for `wasm32-wasip1`. Asked by the compile process,
//! which is confined: it parses bytes of an image.
//!
//! | Module | Component |
//! |---|---|
//! | has a `component-type` section (wit-bindgen) | with the preview 1 adapter for reactors |
//! | exports `handle-http-request` or `handle-redis-message` (wit-bindgen 0.2) | the same, after its functions are renamed |
//! | exports `_start`, and nothing of a reactor | with the preview 1 adapter for commands |
//! | any other | refused |

use std::borrow::Cow;

use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER, WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER,
};
use wasmparser::{Parser, Payload};
use wit_component::ComponentEncoder;

use super::old_bindgen;
use crate::engine::START;

/// The start of the name of the section in which wit-bindgen describes a module's component.
const COMPONENT_TYPE: &str = "component-type";

/// The exports of reactors for their callers' memory: of the component model, and of wit-bindgen 0.2.
const REALLOCS: [&str; 2] = ["cabi_realloc", "canonical_abi_realloc"];

/// The component of a core module.
///
/// # Errors
/// Why there is none, in one line.
pub fn component_of(module: &[u8]) -> Result<Vec<u8>, String> {
    let shape = shape_of(module)?;
    let module = match shape {
        Shape::Old => Cow::Owned(old_bindgen::renamed(module)?),
        _ => Cow::Borrowed(module),
    };
    let adapter = match shape {
        Shape::Reactor | Shape::Old => WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER,
        Shape::Command => WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER,
        Shape::Other => {
            return Err("it is a core module that is neither made by a Spin SDK nor a command: build it with a Spin SDK, or make a component of it".into());
        }
    };
    let encoded = ComponentEncoder::default()
        .module(&module)
        .and_then(|encoder| encoder.adapter(WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, adapter))
        .and_then(|mut encoder| encoder.encode());
    encoded.map_err(|error| format!("no component can be made of it: {error:#}"))
}

/// How a module is made.
#[derive(Debug, PartialEq, Eq)]
enum Shape {
    /// By wit-bindgen, for a component.
    Reactor,
    /// For a command line.
    Command,
    /// By wit-bindgen 0.2.
    Old,
    /// In another way.
    Other,
}

fn shape_of(module: &[u8]) -> Result<Shape, String> {
    let (mut described, mut starts, mut reallocates, mut old) = (false, false, false, false);
    for payload in Parser::new(0).parse_all(module) {
        match payload.map_err(|error| error.to_string())? {
            Payload::CustomSection(section) => described |= section.name().starts_with(COMPONENT_TYPE),
            Payload::ExportSection(exports) => {
                for export in exports {
                    let name = export.map_err(|error| error.to_string())?.name;
                    starts |= name == START;
                    reallocates |= REALLOCS.contains(&name);
                    old |= old_bindgen::is_handler(name);
                }
            }
            _ => {}
        }
    }
    Ok(match (described, starts, reallocates, old) {
        (true, ..) => Shape::Reactor,
        (_, _, _, true) => Shape::Old,
        (_, true, false, _) => Shape::Command,
        _ => Shape::Other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(text: &str) -> Vec<u8> {
        wat::parse_str(text).unwrap()
    }

    #[test]
    fn a_command_becomes_a_component() {
        let command = module(
            r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func (param i32)))
                 (memory (export "memory") 1) (func (export "_start")))"#,
        );
        let component = component_of(&command).unwrap();
        assert!(component.starts_with(b"\0asm\x0d\0\x01\0"));
        let run = b"wasi:cli/run@0.2";
        assert!(component.windows(run.len()).any(|window| window == run));
    }

    #[test]
    fn modules_are_told_by_their_sections_and_exports() {
        let described = r#"(module (@custom "component-type:x" "") (func (export "_start")))"#;
        for (text, shape) in [
            (described, Shape::Reactor),
            (r#"(module (func (export "_start")))"#, Shape::Command),
            (r#"(module (func (export "_start")) (func (export "cabi_realloc")))"#, Shape::Other),
            (r#"(module (func (export "handle-http-request")) (func (export "canonical_abi_realloc")))"#, Shape::Old),
            (r#"(module (func (export "f")))"#, Shape::Other),
        ] {
            assert_eq!(shape_of(&module(text)).unwrap(), shape, "{text}");
        }
    }

    #[test]
    fn what_is_no_module_of_spin_is_refused() {
        let old = component_of(&module(r#"(module (func (export "handle-http-request")))"#)).unwrap_err();
        assert!(old.starts_with("no component can be made of it"), "{old}");
        let other = component_of(&module(r#"(module (func (export "f")))"#)).unwrap_err();
        assert!(other.starts_with("it is a core module that is neither"), "{other}");
        let damaged = component_of(&module(r#"(module (@custom "component-type:x" "no world"))"#)).unwrap_err();
        assert!(damaged.starts_with("no component can be made of it"), "{damaged}");
    }
}
