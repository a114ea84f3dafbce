//! The compile process' own side: an order in, an artifact out.
//!
//! It is hearthd itself, started as `hearthd compile ORDER` with the module as its standard input, the
//! artifact's file as its standard output and a pipe for diagnostics. Before it reads a byte of
//! the module it gives up every right and resource that it does not need ([`hearth_os::confine`]).
//!
//! The limits of this confinement: a module that crashes, hangs or bloats the compiler harms this
//! process only, and a module that takes over the compiler reaches no file, network or process. But code that controls
//! the compiler controls its output, which the daemon runs: the sandbox of guests is as good as Cranelift and, unless
//! `modules.baseline` is `never`, as Winch.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use crate::engine::{self, CompileError, ModuleKind, Tier};
use crate::modules::{adapt, candidates, core_instances, world};
use hearth_base::config;
use hearth_os::confine::{Bounds, confine};
use hearth_os::{alloc, memfd};

/// The first argument that makes `hearthd` a compile process.
pub const SUBCOMMAND: &str = "compile";

/// How the compile process ends when it is not killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompileExit {
    /// The artifact is written.
    Done = 0,
    /// It could not confine itself, or was not started by hearthd.
    Unready = 64,
    /// The module is wrong; why is on standard error.
    Invalid = 65,
    /// It had no memory, or no room for another thread.
    Memory = 66,
    /// The artifact is larger than allowed.
    TooLarge = 67,
    /// It could not read the module or write the artifact.
    Streams = 68,
    /// The configuration wants no baseline code for the module.
    Unwanted = 69,
    /// The component has more core instances than allowed; how many is on standard error.
    Structure = 70,
}

impl CompileExit {
    /// All of them.
    pub const ALL: [CompileExit; 8] = [
        CompileExit::Done,
        CompileExit::Unready,
        CompileExit::Invalid,
        CompileExit::Memory,
        CompileExit::TooLarge,
        CompileExit::Streams,
        CompileExit::Unwanted,
        CompileExit::Structure,
    ];
}

/// The daemon's order, as JSON in the second argument.
#[derive(Debug, Serialize, Deserialize)]
pub struct CompileOrder {
    /// Whether the module is a component.
    pub component: bool,
    /// Whether a component is to be made of the module, and nothing compiled.
    pub adapt: bool,
    /// Which modules to compile with the baseline compiler; `never` asks for the optimising one.
    pub baseline: config::Baseline,
    /// The engine that will run it.
    pub engine: config::Engine,
    /// See [`Bounds`].
    pub memory_bytes: u64,
    /// See [`Bounds`].
    pub cpu_seconds: u64,
    /// The largest artifact, in bytes.
    pub artifact_bytes: u64,
    /// See [`Bounds`].
    pub uid: u32,
    /// The daemon.
    pub parent: i32,
}

/// The compile process' `main`. Its arguments are the process' own.
pub fn child_main() -> ExitCode {
    ExitCode::from(run() as u8)
}

pub(super) fn run() -> CompileExit {
    match compile_as_ordered() {
        Ok(()) => CompileExit::Done,
        Err((exit, text)) => {
            // A pipe to the daemon; if it is closed, the daemon has ended.
            let _ = writeln!(std::io::stderr(), "{text}");
            exit
        }
    }
}

fn compile_as_ordered() -> Result<(), (CompileExit, String)> {
    let unready = |text: String| (CompileExit::Unready, text);
    let order =
        std::env::args().nth(2).ok_or_else(|| unready("hearthd starts this by itself, to compile modules".into()))?;
    let order: CompileOrder =
        serde_json::from_str(&order).map_err(|e| unready(format!("not an order of hearthd's: {e}")))?;
    let bounds = Bounds {
        memory_bytes: order.memory_bytes,
        cpu_seconds: order.cpu_seconds,
        file_bytes: order.artifact_bytes,
        uid: order.uid,
        parent: order.parent,
    };
    // Mapped, not read: the daemon has sealed it.
    let wasm = memfd::map(rustix::stdio::stdin())
        .map_err(|e| (CompileExit::Streams, format!("cannot map the module: {e}")))?;
    confine(&bounds).map_err(unready)?;
    alloc::exit_on_failure(CompileExit::Memory as u8);
    start_threads()?;

    if order.adapt {
        let component = adapt::component_of(&wasm).map_err(|text| (CompileExit::Invalid, text))?;
        return write(&order, &component);
    }
    let kind = if order.component { ModuleKind::Component } else { ModuleKind::Core };
    let wasm = candidates::released(&wasm);
    if kind == ModuleKind::Component {
        let (has, limit) = (core_instances::count(&wasm), order.engine.component_core_instances_max);
        if has > limit.into() {
            return Err((CompileExit::Structure, format!("the component has {has} core instances, more than {limit}")));
        }
    }
    let tier = match order.baseline {
        config::Baseline::Never => Tier::Optimised,
        config::Baseline::Services if kind == ModuleKind::Core || !world::has_an_instance_per_request(&wasm) => {
            return Err((CompileExit::Unwanted, "it is no HTTP service with an instance for each request".into()));
        }
        config::Baseline::Services | config::Baseline::All => Tier::Baseline,
    };
    let artifact = engine::compile(&order.engine, &wasm, kind, tier).map_err(|error| match error {
        CompileError::Invalid(text) => (CompileExit::Invalid, text),
        CompileError::Memory(text) => (CompileExit::Memory, text),
    })?;
    write(&order, &artifact)
}

fn write(order: &CompileOrder, artifact: &[u8]) -> Result<(), (CompileExit, String)> {
    if artifact.len() as u64 > order.artifact_bytes {
        return Err((CompileExit::TooLarge, format!("the artifact has {} bytes", artifact.len())));
    }
    // Line buffering looks for line ends in machine code; large pieces pass it by.
    let mut output = std::io::stdout().lock();
    let written = output.write_all(artifact).and_then(|()| output.flush());
    written.map_err(|error| (CompileExit::Streams, format!("cannot write the artifact: {error}")))
}

/// Starts the compiler's threads. wasmtime would start them at the first function, and panic without room for them.
fn start_threads() -> Result<(), (CompileExit, String)> {
    rayon::ThreadPoolBuilder::new().build_global().map_err(|e| {
        let no_room = std::error::Error::source(&e)
            .and_then(|cause| cause.downcast_ref::<std::io::Error>())
            .is_some_and(|cause| matches!(cause.kind(), ErrorKind::WouldBlock | ErrorKind::OutOfMemory));
        let exit = if no_room { CompileExit::Memory } else { CompileExit::Unready };
        (exit, format!("cannot start the compiler's threads: {e}"))
    })
}
