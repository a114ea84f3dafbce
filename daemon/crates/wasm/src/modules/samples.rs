//! Modules for the tests, put together from bytes as the WebAssembly specification has them, and the
//! way by which a test gets a real compile process.

use std::alloc::System;

use hearth_os::alloc::ExitOnFailure;

use crate::modules::child::{self, SUBCOMMAND};

/// As in hearthd, so that compile processes of tests end alike without memory.
#[global_allocator]
static ALLOCATOR: ExitOnFailure<System> = ExitOnFailure(System);

/// `\0asm`, version 1, layer 0.
const HEADER: &[u8] = b"\0asm\x01\0\0\0";

fn leb128(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

fn with_length(content: &[u8]) -> Vec<u8> {
    [leb128(content.len()), content.to_vec()].concat()
}

fn section(id: u8, content: &[u8]) -> Vec<u8> {
    [vec![id], with_length(content)].concat()
}

fn name(text: &str) -> Vec<u8> {
    with_length(text.as_bytes())
}

/// `functions` of the type `() -> ()` with these instructions; the first is exported as `_start`.
fn module(functions: usize, instructions: &[u8]) -> Vec<u8> {
    // No locals, the instructions, end.
    let body = with_length(&[&[0], instructions, &[0x0b]].concat());
    [
        HEADER.to_vec(),
        section(1, &[1, 0x60, 0, 0]),
        section(3, &[leb128(functions), vec![0; functions]].concat()),
        section(7, &[vec![1], name("_start"), vec![0, 0]].concat()),
        section(10, &[leb128(functions), body.repeat(functions)].concat()),
    ]
    .concat()
}

/// A command that does nothing; another one for each number.
pub fn command(number: u32) -> Vec<u8> {
    let custom = [name("number"), number.to_le_bytes().to_vec()].concat();
    [module(1, &[]), section(0, &custom)].concat()
}

/// Well-formed, but leaves a number on the stack of a function without results.
pub fn invalid() -> Vec<u8> {
    module(1, &[0x41, 0])
}

/// Imports a function that no world has.
pub fn unknown_import() -> Vec<u8> {
    let import = [vec![1], name("moon"), name("landing"), vec![0, 0]].concat();
    [HEADER.to_vec(), section(1, &[1, 0x60, 0, 0]), section(2, &import)].concat()
}

/// A component that has nothing.
pub fn component() -> Vec<u8> {
    b"\0asm\x0d\0\x01\0".to_vec()
}

/// An HTTP service of WASI 0.2, as far as a compiler can tell: its exports are empty.
pub fn service() -> Vec<u8> {
    exporting("wasi:http/incoming-handler@0.2.3", "")
}

/// A service that the baseline compiler does not take.
pub fn tail_calling_service() -> Vec<u8> {
    exporting("wasi:http/incoming-handler@0.2.3", "(func $f return_call $f)")
}

/// A service that is invalid.
pub fn invalid_service() -> Vec<u8> {
    exporting("wasi:http/incoming-handler@0.2.3", "(func i32.const 0)")
}

/// A component that is a command, as [`service`] is a service.
pub fn command_component() -> Vec<u8> {
    exporting("wasi:cli/run@0.2.3", "")
}

fn exporting(name: &str, functions: &str) -> Vec<u8> {
    let text = format!(
        "(component (core module {functions}) (component $c) (instance $i (instantiate $c))
           (export \"{name}\" (instance $i)))"
    );
    wat::parse_str(text).unwrap()
}

/// Takes a compiler many seconds and much memory: its work on a function grows faster than the function.
pub fn heavy() -> Vec<u8> {
    // A loop around `if (popcnt 1) continue`.
    let statement = [0x03, 0x40, 0x41, 1, 0x69, 0x04, 0x40, 0x0c, 0x01, 0x0b, 0x0b];
    module(2, &statement.repeat(300_000))
}

/// Turns the test program, which is no hearthd, into a compile process: started as `PROGRAM compile …`, it is one before
/// the test harness's `main` sees the arguments. So unit tests start real compile processes, made of the code under
/// test, and need no second program.
#[used]
#[unsafe(link_section = ".init_array")]
#[allow(unsafe_code, reason = "the linker section of functions that run before main; used by tests only")]
static BECOME_COMPILER: extern "C" fn() = become_compiler;

extern "C" fn become_compiler() {
    // glibc hands the arguments to std in an earlier entry of the same section.
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        // `cargo test compile` is no order.
        Some(SUBCOMMAND) if arguments.next().is_some_and(|order| order.starts_with('{')) => {
            std::process::exit(child::run() as i32)
        }
        _ => {}
    }
}
