//! Modules of wit-bindgen 0.2, as Spin's first SDKs and TinyGo make them: they become modules from which a component can be
//! made. Asked by the compile process, which is confined: it parses bytes of an image.
//!
//! Their functions have the canonical ABI of today under other names, so that it is enough to rename the imports and exports
//! and to add the description of their world.
//!
//! Rust and JavaScript guests are *commands* to their linker, which has each export call the constructors first and the
//! destructors last. Constructors ask WASI for the environment, and destructors may write; but while the canonical ABI
//! allocates memory, a component may not call out. So these two calls are taken out of the allocator, and the constructors
//! are exported as `_initialize`, which is called before anything else.

use std::collections::BTreeSet;
use std::ops::Range;

use wasm_encoder::reencode::{Reencode, RoundtripReencoder};
use wasm_encoder::{ExportKind, ExportSection, ImportSection, Module, RawSection};
use wasmparser::{ExternalKind, FunctionBody, Operator, Parser, Payload, TypeRef};
use wit_component::{StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use crate::engine::INITIALIZE;
use crate::spin_handlers::V1;

/// The module of the functions of WASI.
const PREVIEW1: &str = wasi_preview1_component_adapter_provider::WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME;

/// The modules of the imports, and the interfaces of today.
const IMPORTS: [(&str, &str); 4] = [
    ("spin-config", "config"),
    ("wasi-outbound-http", "http"),
    ("key-value", "key-value"),
    ("outbound-redis", "redis"),
];

/// A handler that a module exports.
struct OldHandler {
    name: &'static str,
    interface: &'static str,
    function: &'static str,
}

const HANDLERS: [OldHandler; 2] = [
    OldHandler { name: "handle-http-request", interface: "inbound-http", function: "handle-request" },
    OldHandler { name: "handle-redis-message", interface: "inbound-redis", function: "handle-message" },
];

/// The name of the allocator of memory, and that of today.
const REALLOC: (&str, &str) = ("canonical_abi_realloc", "cabi_realloc");

/// An instruction that does nothing, in WebAssembly's binary format.
const NOP: u8 = 0x01;

/// The constructors of a command, and where its allocator calls them and the destructors.
struct Unwrapped {
    constructors: u32,
    calls: Vec<Range<usize>>,
}

/// Whether an export is a handler of such a module.
pub fn is_handler(export: &str) -> bool {
    HANDLERS.iter().any(|handler| handler.name == export)
}

/// The module with the names of today and the description of its world.
///
/// # Errors
/// Why there is none, in one line.
pub fn renamed(module: &[u8]) -> Result<Vec<u8>, String> {
    let unwrapped = unwrapped(module).map_err(text)?;
    let mut module = module.to_vec();
    for call in unwrapped.iter().flat_map(|unwrapped| &unwrapped.calls) {
        module[call.clone()].fill(NOP);
    }
    let mut renamed = Module::new();
    let (mut imported, mut exported) = (BTreeSet::new(), BTreeSet::new());
    for payload in Parser::new(0).parse_all(&module) {
        match payload.map_err(text)? {
            Payload::ImportSection(imports) => {
                let mut section = ImportSection::new();
                for import in imports.into_imports() {
                    let import = import.map_err(text)?;
                    let ty = RoundtripReencoder.entity_type(import.ty).map_err(text)?;
                    if import.module == PREVIEW1 {
                        section.import(import.module, import.name, ty);
                        continue;
                    }
                    let interface = interface_of(import.module)?;
                    imported.insert(interface);
                    section.import(&qualified(interface), function_of(interface, import.name), ty);
                }
                renamed.section(&section);
            }
            Payload::ExportSection(exports) => {
                let mut section = ExportSection::new();
                if let Some(Unwrapped { constructors, .. }) = &unwrapped {
                    section.export(INITIALIZE, ExportKind::Func, *constructors);
                }
                for export in exports {
                    let export = export.map_err(text)?;
                    let kind = RoundtripReencoder.export_kind(export.kind).map_err(text)?;
                    let handler = HANDLERS.iter().find(|handler| handler.name == export.name);
                    let name = match handler {
                        Some(OldHandler { interface, function, .. }) => {
                            exported.insert(*interface);
                            format!("{}#{function}", qualified(interface))
                        }
                        None if export.name == REALLOC.0 => REALLOC.1.into(),
                        None => export.name.into(),
                    };
                    section.export(&name, kind, export.index);
                }
                renamed.section(&section);
            }
            other => {
                if let Some((id, range)) = other.as_section() {
                    renamed.section(&RawSection { id, data: &module[range] });
                }
            }
        }
    }
    let mut renamed = renamed.finish();
    describe(&mut renamed, &imported, &exported)?;
    Ok(renamed)
}

/// The functions of a module, as far as they tell a command.
#[derive(Default)]
struct Functions<'a> {
    /// Types without parameters and results, by index.
    are_plain: Vec<bool>,
    /// The type of each function, imported ones first.
    types: Vec<u32>,
    imported: usize,
    bodies: Vec<FunctionBody<'a>>,
    /// Exported functions.
    exports: Vec<(&'a str, u32)>,
}

/// The index of the function that is called, and where the call is in the module.
type Call = (u32, Range<usize>);

impl<'a> Functions<'a> {
    fn of(module: &'a [u8]) -> wasmparser::Result<Functions<'a>> {
        let mut functions = Functions::default();
        for payload in Parser::new(0).parse_all(module) {
            match payload? {
                Payload::TypeSection(types) => {
                    for ty in types.into_iter_err_on_gc_types() {
                        let ty = ty?;
                        functions.are_plain.push(ty.params().is_empty() && ty.results().is_empty());
                    }
                }
                Payload::ImportSection(imports) => {
                    for import in imports.into_imports() {
                        if let TypeRef::Func(ty) = import?.ty {
                            functions.types.push(ty);
                        }
                    }
                    functions.imported = functions.types.len();
                }
                Payload::FunctionSection(types) => {
                    functions.types.extend(types.into_iter().collect::<wasmparser::Result<Vec<_>>>()?);
                }
                Payload::ExportSection(exports) => {
                    for export in exports {
                        let export = export?;
                        if export.kind == ExternalKind::Func {
                            functions.exports.push((export.name, export.index));
                        }
                    }
                }
                Payload::CodeSectionEntry(body) => functions.bodies.push(body),
                _ => {}
            }
        }
        Ok(functions)
    }

    /// The first and the last call of an exported function, if its body begins and ends with one of a function without
    /// parameters and results: which function, and where the call is.
    fn around(&self, export: &str) -> wasmparser::Result<[Option<Call>; 2]> {
        let index = self.exports.iter().find(|(name, _)| *name == export).map(|(_, index)| *index as usize);
        let body = index.and_then(|index| index.checked_sub(self.imported)).and_then(|index| self.bodies.get(index));
        let Some(body) = body else { return Ok([None, None]) };
        let operators =
            body.get_operators_reader()?.into_iter_with_offsets().collect::<wasmparser::Result<Vec<_>>>()?;
        let plain = |at: usize| match operators.get(at..at + 2) {
            Some([(Operator::Call { function_index }, from), (_, to)]) => {
                let ty = self.types.get(*function_index as usize).and_then(|ty| self.are_plain.get(*ty as usize));
                ty.is_some_and(|is_plain| *is_plain).then_some((*function_index, *from..*to))
            }
            _ => None,
        };
        Ok([plain(0), operators.len().checked_sub(2).and_then(plain)])
    }
}

/// The constructors of a command; none for a module that is initialised in another way.
fn unwrapped(module: &[u8]) -> wasmparser::Result<Option<Unwrapped>> {
    let functions = Functions::of(module)?;
    if functions.exports.iter().any(|(name, _)| *name == INITIALIZE) {
        return Ok(None);
    }
    let [Some((constructors, first)), last] = functions.around(REALLOC.0)? else { return Ok(None) };
    let mut calls = vec![first];
    let mut destructors = last;
    for handler in HANDLERS.iter().filter(|handler| functions.exports.iter().any(|(name, _)| *name == handler.name)) {
        let [first, last] = functions.around(handler.name)?;
        if first.is_none_or(|(function, _)| function != constructors) {
            return Ok(None);
        }
        destructors = destructors.filter(|(function, _)| last.as_ref().is_some_and(|(other, _)| other == function));
    }
    calls.extend(destructors.map(|(_, call)| call));
    Ok(Some(Unwrapped { constructors, calls }))
}

/// Adds the description of the world with these interfaces.
fn describe(module: &mut Vec<u8>, imported: &BTreeSet<&str>, exported: &BTreeSet<&str>) -> Result<(), String> {
    let imports: String = imported.iter().map(|interface| format!("import {interface}; ")).collect();
    let exports: String = exported.iter().map(|interface| format!("export {interface}; ")).collect();
    let wit = format!("{V1}\nworld module {{ {imports}{exports}}}\n");
    let mut resolve = Resolve::default();
    let described = resolve.push_str("v1.wit", &wit).and_then(|package| {
        let world = resolve.select_world(&[package], Some("module"))?;
        embed_component_metadata(module, &resolve, world, StringEncoding::UTF8)
    });
    described.map_err(|error| format!("{error:#}"))
}

/// The interface of today of a module of imports.
fn interface_of(module: &str) -> Result<&'static str, String> {
    IMPORTS.iter().find(|(old, _)| *old == module).map(|(_, interface)| *interface).ok_or_else(|| {
        let known: Vec<_> = IMPORTS.iter().map(|(old, _)| *old).collect();
        format!(
            "it imports {module:?}, which Hearth does not offer to modules of wit-bindgen 0.2; it offers {}",
            known.join(", ")
        )
    })
}

fn function_of<'a>(interface: &str, name: &'a str) -> &'a str {
    if (interface, name) == ("http", "request") { "send-request" } else { name }
}

fn qualified(interface: &str) -> String {
    format!("fermyon:spin/{interface}")
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imports_and_exports_get_the_names_of_today() {
        let module = wat::parse_str(
            r#"(module
                 (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
                 (import "wasi-outbound-http" "request" (func (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32)))
                 (import "key-value" "close" (func (param i32)))
                 (func (export "handle-http-request")) (func (export "canonical_abi_realloc")) (func (export "other")))"#,
        )
        .unwrap();
        let renamed = renamed(&module).unwrap();
        let (mut imports, mut exports, mut described) = (Vec::new(), Vec::new(), false);
        for payload in Parser::new(0).parse_all(&renamed) {
            match payload.unwrap() {
                Payload::ImportSection(section) => {
                    let names = section.into_imports().map(|import| import.unwrap());
                    imports.extend(names.map(|import| format!("{} {}", import.module, import.name)));
                }
                Payload::ExportSection(section) => {
                    exports.extend(section.into_iter().map(|export| export.unwrap().name.to_owned()));
                }
                Payload::CustomSection(section) => described |= section.name().starts_with("component-type"),
                _ => {}
            }
        }
        let wanted =
            ["wasi_snapshot_preview1 fd_write", "fermyon:spin/http send-request", "fermyon:spin/key-value close"];
        assert_eq!(imports, wanted);
        assert_eq!(exports, ["fermyon:spin/inbound-http#handle-request", "cabi_realloc", "other"]);
        assert!(described);
    }

    #[test]
    fn the_allocator_of_a_command_calls_no_constructors() {
        let with = |allocator: &str, handler: &str, more: &str| {
            let text = format!(
                "(module (import \"wasi_snapshot_preview1\" \"sched_yield\" (func (result i32)))
                   (func $constructors) (func $destructors) (func $other)
                   (func (export \"canonical_abi_realloc\") (param i32 i32 i32 i32) (result i32) {allocator})
                   (func (export \"handle-http-request\") {handler}) {more})"
            );
            let module = wat::parse_str(text).unwrap();
            unwrapped(&module).unwrap().map(|found| {
                let calls: Vec<_> = found.calls.iter().map(|call| module[call.clone()].to_vec()).collect();
                (found.constructors, calls)
            })
        };
        let (allocator, handler) =
            ("call $constructors local.get 0 call $destructors", "call $constructors call $other call $destructors");
        assert_eq!(with(allocator, handler, ""), Some((1, vec![vec![0x10, 1], vec![0x10, 2]])));
        // The destructors are told by the handler, too.
        assert_eq!(with(allocator, "call $constructors call $other", ""), Some((1, vec![vec![0x10, 1]])));
        assert_eq!(with(allocator, handler, "(func (export \"_initialize\"))"), None);
        assert_eq!(with("local.get 0", handler, ""), None);
        assert_eq!(with(allocator, "call $other", ""), None);
    }

    #[test]
    fn an_unknown_import_is_named() {
        let module = wat::parse_str(r#"(module (import "outbound-pg" "query" (func)))"#).unwrap();
        let error = renamed(&module).unwrap_err();
        assert!(error.starts_with("it imports \"outbound-pg\", which Hearth does not offer"), "{error}");
    }

    #[test]
    fn a_damaged_module_is_refused() {
        assert!(renamed(b"\0asm\x01\0\0\0\x02\x7f").is_err());
    }
}
