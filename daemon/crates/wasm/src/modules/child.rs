//! The compile process' own side: an order in, an artifact out.
//!
//! It is hearthd itself, started as `hearthd compile ORDER` with the module as its standard input, the
//! artifact's file as its standard output and a pipe for what it has to say. Before it reads a byte of
//! the module it gives away everything it does not need ([`hearth_os::confine`]).
//!
//! What confinement is for, and what it is not for: a module that crashes, hangs or bloats the
//! compiler harms this process alone, and one that takes it over finds no file, network or process to
//! reach. But whoever controls the compiler controls its output, and the daemon runs that; here, as
//! everywhere, the sandbox of guests is as good as Cranelift, and, unless `modules.baseline` is `never`, as Winch.

use std::io::{Read, Write};
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use crate::engine::{self, Kind, Tier};
use crate::modules::world;
use hearth_base::config;
use hearth_os::confine::{Bounds, confine};

/// The first argument that makes `hearthd` a compile process.
pub const SUBCOMMAND: &str = "compile";

/// How the compile process ends when it is not killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The artifact is written.
    Done = 0,
    /// It could not confine itself, or was not started by hearthd.
    Unready = 64,
    /// The module is wrong; why is on standard error.
    Invalid = 65,
    /// A limit of its own was too low; which is on standard error.
    Memory = 66,
    /// The artifact is larger than allowed.
    TooLarge = 67,
    /// It could not read the module or write the artifact.
    Streams = 68,
    /// It is none of those that the baseline compiler is wanted for.
    Unwanted = 69,
}

impl Exit {
    /// All of them.
    pub const ALL: [Exit; 7] =
        [Exit::Done, Exit::Unready, Exit::Invalid, Exit::Memory, Exit::TooLarge, Exit::Streams, Exit::Unwanted];
}

/// What the daemon asks for, as JSON in the second argument.
#[derive(Debug, Serialize, Deserialize)]
pub struct Order {
    /// Whether the module is a component.
    pub component: bool,
    /// What to compile with the baseline compiler; `never` asks for the optimising one.
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

pub(super) fn run() -> Exit {
    match compile_as_ordered() {
        Ok(()) => Exit::Done,
        Err((exit, text)) => {
            // To a pipe of the daemon's; if that is gone, so is whoever would read it.
            let _ = writeln!(std::io::stderr(), "{text}");
            exit
        }
    }
}

fn compile_as_ordered() -> Result<(), (Exit, String)> {
    let unready = |text: String| (Exit::Unready, text);
    let order =
        std::env::args().nth(2).ok_or_else(|| unready("hearthd starts this by itself, to compile modules".into()))?;
    let order: Order = serde_json::from_str(&order).map_err(|e| unready(format!("not an order of hearthd's: {e}")))?;
    let bounds = Bounds {
        memory_bytes: order.memory_bytes,
        cpu_seconds: order.cpu_seconds,
        file_bytes: order.artifact_bytes,
        uid: order.uid,
        parent: order.parent,
    };
    confine(&bounds).map_err(unready)?;

    let streams = |what: &str| {
        let what = what.to_string();
        move |e: std::io::Error| (Exit::Streams, format!("cannot {what}: {e}"))
    };
    let wasm = read_input().map_err(streams("read the module"))?;
    let kind = if order.component { Kind::Component } else { Kind::Core };
    let tier = match order.baseline {
        config::Baseline::Never => Tier::Optimised,
        config::Baseline::Services if kind == Kind::Core || !world::has_an_instance_per_request(&wasm) => {
            return Err((Exit::Unwanted, "it is no HTTP service with an instance for each request".into()));
        }
        config::Baseline::Services | config::Baseline::All => Tier::Baseline,
    };
    let artifact = engine::compile(&order.engine, &wasm, kind, tier)
        .map_err(|text| (if is_out_of_memory(&text) { Exit::Memory } else { Exit::Invalid }, text))?;
    if artifact.len() as u64 > order.artifact_bytes {
        return Err((Exit::TooLarge, format!("the artifact has {} bytes", artifact.len())));
    }
    // Line buffering looks for line ends in machine code; large pieces pass it by.
    let mut output = std::io::stdout().lock();
    output.write_all(&artifact).and_then(|()| output.flush()).map_err(streams("write the artifact"))
}

/// All of the standard input. Asks only for what the filter allows.
fn read_input() -> std::io::Result<Vec<u8>> {
    let input = rustix::stdio::stdin();
    let length = rustix::fs::fstat(input)?.st_size;
    let mut wasm = Vec::with_capacity(usize::try_from(length).unwrap_or(0) + 1);
    std::io::stdin().lock().read_to_end(&mut wasm)?;
    Ok(wasm)
}

/// Whether a text is the system's way of saying that there is no memory. Threads that cannot be made
/// for want of it are "temporarily unavailable".
pub fn is_out_of_memory(text: &str) -> bool {
    ["memory allocation of ", "Cannot allocate memory", "out of memory", "os error 12", "os error 11"]
        .iter()
        .any(|words| text.contains(words))
}
