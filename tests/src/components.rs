//! Components: made from core modules with the preview-1 adapter, or from a WIT text alone.

use wit_component::{ComponentEncoder, StringEncoding, dummy_module, embed_component_metadata};
use wit_parser::{ManglingAndAbi, Resolve};

/// A preview-2 command component from a preview-1 command module.
///
/// # Panics
/// If the module is not one.
pub fn from_command(module: &[u8]) -> Vec<u8> {
    from_adapted(module, wasi_preview1_component_adapter_provider::WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER)
}

fn from_adapted(module: &[u8], adapter: &[u8]) -> Vec<u8> {
    use wasi_preview1_component_adapter_provider::WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME as NAME;
    ComponentEncoder::default()
        .module(module)
        .and_then(|encoder| encoder.adapter(NAME, adapter))
        .and_then(|mut encoder| encoder.encode())
        .unwrap_or_else(|error| panic!("cannot make a component: {error:#}"))
}

/// As [`from_command`], for a module that also calls functions of the given world's imports.
///
/// # Panics
/// If the text is not WIT, or the module calls a function that the world does not import.
pub fn from_command_in(module: &[u8], wit: &str, world: &str) -> Vec<u8> {
    from_command(&described(module, wit, world))
}

/// A component of the given world from a preview-1 reactor module that implements the world's exports.
///
/// # Panics
/// As [`from_command_in`].
pub fn from_reactor_in(module: &[u8], wit: &str, world: &str) -> Vec<u8> {
    let adapter = wasi_preview1_component_adapter_provider::WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER;
    from_adapted(&described(module, wit, world), adapter)
}

/// A core module with the description of the world that it implements, as wit-bindgen leaves it.
///
/// # Panics
/// As [`from_command_in`].
pub fn described(module: &[u8], wit: &str, world: &str) -> Vec<u8> {
    let mut module = module.to_vec();
    let mut embed = || {
        let mut resolve = Resolve::default();
        let package = resolve.push_str("world.wit", wit)?;
        let world = resolve.select_world(&[package], Some(world))?;
        embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)
    };
    embed().unwrap_or_else(|error| panic!("cannot make a component of world {world}: {error:#}"));
    module
}

/// A component from a module of wasm32-wasip2, which describes the component: what the linker of that target makes.
///
/// # Panics
/// If the module is none.
pub fn from_described(module: &[u8]) -> Vec<u8> {
    let made = ComponentEncoder::default().module(module).and_then(|mut encoder| encoder.encode());
    made.unwrap_or_else(|error| panic!("cannot make a component: {error:#}"))
}

/// The module of a text.
///
/// # Panics
/// If the text is no module.
pub fn module(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap_or_else(|error| panic!("{error}"))
}

/// A component of the given world whose functions trap.
///
/// # Panics
/// If the text is not WIT, or has no such world.
pub fn from_wit(wit: &str, world: &str) -> Vec<u8> {
    let make = || {
        let mut resolve = Resolve::default();
        let package = resolve.push_str("world.wit", wit)?;
        let world = resolve.select_world(&[package], Some(world))?;
        let mut module = dummy_module(&resolve, world, ManglingAndAbi::Standard32);
        embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)?;
        ComponentEncoder::default().module(&module)?.encode()
    };
    make().unwrap_or_else(|error| panic!("cannot make a component of world {world}: {error:#}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A component's first bytes: the magic number, then version 13 of layer 1.
    const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

    #[test]
    fn a_world_given_as_text_becomes_a_component() {
        let wit = "package a:b; interface i { f: func(); } world w { export i; }";
        assert!(from_wit(wit, "w").starts_with(COMPONENT));
    }

    #[test]
    #[should_panic(expected = "not found in package")]
    fn a_missing_world_is_named() {
        from_wit("package a:b; world w {}", "other");
    }
}
