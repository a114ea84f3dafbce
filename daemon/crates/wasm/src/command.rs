//! A command's life: an instance, its entry point, the exit code.
//!
//! [`run`] is the future that the scheduler polls. Dropping it at any point unwinds the guest and gives the slot
//! back.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use wasmtime::component;
use wasmtime::{Store, Val};
use wasmtime_wasi::I32Exit;

use hearth_base::error::Error;
use hearth_base::text::{shown, shown_lines};
use hearth_observe::metrics::{Metrics, Phase};
use hearth_observe::starts::About;
use hearth_stdio::Stdio;

use crate::engine::{INITIALIZE, START};
use crate::instantiate::{Call, Files, Instance, Outgoing, Refusal, Streams, Surroundings, instantiate};
use crate::resolver::Names;
use crate::runtime::Runtime;
use crate::scheduler::Guest;
use crate::slots::Placed;
use crate::wasi::{ComponentState, CoreState, MemoryUse};

/// Exit status of a guest that trapped: 128 + SIGABRT, as `wasmtime run` has it.
pub const TRAP_STATUS: u32 = 134;

/// The most bytes of a trap's text.
const TRAP_BYTES_MAX: usize = 4 << 10;

/// The most bytes of wasmtime's reason why it does not instantiate a module.
const REFUSAL_BYTES_MAX: usize = 512;

/// Handles a command may have at once.
const HANDLES_MAX: usize = 65_536;

/// All that one command needs to run.
pub struct Launch {
    /// The program, and its slot.
    pub placed: Placed,
    /// The export to call instead of the entry point.
    pub export: Option<Arc<str>>,
    /// `argv`, the program's name first.
    pub args: Vec<String>,
    /// The environment.
    pub env: Vec<(String, String)>,
    /// The working directory, absolute in the guest's root.
    pub cwd: String,
    /// The guest's `/` on the host.
    pub root: PathBuf,
    /// Whether `/`, or a volume in it, refuses writes.
    pub partly_read_only: bool,
    /// Files a module may have open.
    pub open_files_max: u32,
    /// stdin, stdout and stderr.
    pub stdio: Arc<Stdio>,
    /// What the linear memories and tables of all the container's guests hold together, and may hold.
    pub memory: Arc<MemoryUse>,
    /// Set while the last growth this guest asked for was refused.
    pub starved: Arc<AtomicBool>,
    /// The scheduler's view of this guest.
    pub guest: Arc<Guest>,
    /// How it looks up names; none for a core module, which has no sockets.
    pub names: Option<Names>,
    /// Makes what sends its requests to others.
    pub outgoing: Box<dyn Fn() -> Outgoing + Send + Sync>,
    /// Whose start it is; none for an exec.
    pub about: Option<Arc<About>>,
}

/// How a guest that ran came to its end by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It returned or called exit.
    Exited(u32),
    /// It trapped; wasmtime's text with the backtrace.
    Trapped(String),
    /// There was no instance; it never ran.
    NotStarted(Error),
}

/// Runs one guest. `started` is called once there is an instance, before the entry point is called.
pub async fn run(runtime: Arc<Runtime>, launch: Launch, started: impl FnOnce() + Send) -> Outcome {
    let began = Instant::now();
    let refused_before = launch.memory.refused();
    let ready: Arc<OnceLock<Instant>> = Arc::default();
    let Launch { placed, export, args, env, cwd, root, stdio, memory, starved, guest, names, outgoing, about, .. } =
        launch;
    let surroundings = Surroundings {
        args: &args,
        env: &env,
        cwd: &cwd,
        files: Files::At(&root),
        partly_read_only: launch.partly_read_only,
        open_files_max: launch.open_files_max,
        handles_max: HANDLES_MAX,
        names,
        memory: &memory,
        starved: &starved,
        outgoing: &*outgoing,
    };
    let call = export.as_deref().map_or(Call::Entry, Call::Export);
    let streams = || Streams { stdin: Some(stdio.stdin()), stdout: stdio.stdout(), stderr: stdio.stderr() };
    let first = || Some(first_instruction(&runtime, &ready, about.as_ref()));
    let made = instantiate(&runtime, &guest, placed, call, &surroundings, streams, first).await;
    let (_slot, instance) = match made {
        Ok(made) => made,
        Err(Refusal::Full(error) | Refusal::NotReady(error)) => return Outcome::NotStarted(error),
        Err(Refusal::Failed(error)) if error.is::<wasmtime::Trap>() || error.is::<I32Exit>() => {
            started();
            return ended(&error);
        }
        Err(Refusal::Failed(error)) => return Outcome::NotStarted(refused(&memory, refused_before, &error)),
    };
    phase(about.as_deref(), &runtime.metrics, Phase::Instantiate, began);
    let _ = ready.set(Instant::now());
    started();
    match instance {
        Instance::Core(store, instance) => call_core(store, instance, export.as_deref()).await,
        Instance::Command(mut store, command) => ran(command.wasi_cli_run().call_run(&mut store).await),
        Instance::CommandP3(mut store, command) => {
            let run = store.run_concurrent(async |store| command.wasi_cli_run().call_run(store).await);
            ran(run.await.flatten())
        }
        Instance::Export(store, function) => call_component(store, function).await,
        Instance::Service(..) | Instance::ServiceP3(..) => {
            Outcome::NotStarted(Error::Internal("a service was started as a command".into()))
        }
    }
}

/// Notes the guest's first instruction, measured from when its instance was `ready`.
fn first_instruction(
    runtime: &Runtime,
    ready: &Arc<OnceLock<Instant>>,
    about: Option<&Arc<About>>,
) -> impl FnOnce() + Send + Sync + 'static {
    let (metrics, recent) = (runtime.metrics.clone(), runtime.recent.clone());
    let (ready, about) = (ready.clone(), about.cloned());
    move || {
        if let Some(ready) = ready.get() {
            phase(about.as_deref(), &metrics, Phase::FirstCall, *ready);
        }
        if let Some(about) = &about {
            recent.started(about);
        }
    }
}

/// A phase has ended; of an exec only the metrics hear.
fn phase(about: Option<&About>, metrics: &Metrics, phase: Phase, began: Instant) {
    match about {
        Some(about) => about.phase(metrics, phase, began, began.elapsed()),
        None => metrics.starts.phase(phase, began.elapsed()),
    }
}

/// Why instantiating failed; `refused_before`: how often growing had been refused to the container until then.
fn refused(memory: &MemoryUse, refused_before: u64, error: &wasmtime::Error) -> Error {
    let text = format!("{error:#}");
    let text = shown(&text, REFUSAL_BYTES_MAX);
    if memory.refused() > refused_before {
        return over_memory(memory.limit(), &text);
    }
    Error::FailedPrecondition(format!("the module cannot be instantiated: {text}"))
}

/// A module that starts with more memory than its container may have.
pub fn over_memory(limit: u64, detail: &str) -> Error {
    Error::ResourceExhausted(format!(
        "the module needs more memory to start than the container's limit of {limit} bytes: {detail}; raise resources.limits.memory or the module's initial memory must shrink"
    ))
}

async fn call_core(mut store: Store<CoreState>, instance: wasmtime::Instance, export: Option<&str>) -> Outcome {
    if export.is_some()
        && let Some(initialize) = instance.get_func(&mut store, INITIALIZE)
        && let Err(error) = initialize.call_async(&mut store, &[], &mut []).await
    {
        return ended(&error);
    }
    let name = export.unwrap_or(START);
    let Some(function) = instance.get_func(&mut store, name) else {
        return Outcome::Trapped(format!("the module exports no function {name:?}"));
    };
    let mut results = vec![Val::I32(0); function.ty(&store).results().len()];
    match function.call_async(&mut store, &[], &mut results).await {
        // As a C main's: an i32 result is the exit status.
        Ok(()) => Outcome::Exited(results.first().and_then(Val::i32).map_or(0, exit_status)),
        Err(error) => ended(&error),
    }
}

async fn call_component(mut store: Store<ComponentState>, function: component::Func) -> Outcome {
    let ty = function.ty(&store);
    if ty.params().len() > 0 {
        return Outcome::Trapped("only a function without parameters can be started".into());
    }
    let mut results = vec![component::Val::Bool(false); ty.results().len()];
    match function.call_async(&mut store, &[], &mut results).await {
        Ok(()) => Outcome::Exited(u32::from(matches!(results.first(), Some(component::Val::Result(Err(_)))))),
        Err(error) => ended(&error),
    }
}

/// How a command's `run` ended.
fn ran(result: wasmtime::Result<std::result::Result<(), ()>>) -> Outcome {
    match result {
        Ok(Ok(())) => Outcome::Exited(0),
        Ok(Err(())) => Outcome::Exited(1),
        Err(error) => ended(&error),
    }
}

/// A trap with its backtrace, the cause first: a guest chooses the names of its functions, and the text is bounded.
pub fn trap_text(error: &wasmtime::Error) -> String {
    let mut causes: Vec<_> = error.chain().map(ToString::to_string).collect();
    causes.rotate_right(1);
    shown_lines(&causes.join("\n"), TRAP_BYTES_MAX).into_owned()
}

fn ended(error: &wasmtime::Error) -> Outcome {
    match error.downcast_ref::<I32Exit>() {
        Some(I32Exit(code)) => Outcome::Exited(exit_status(*code)),
        None => Outcome::Trapped(trap_text(error)),
    }
}

/// The low byte, as a Unix parent sees it.
fn exit_status(code: i32) -> u32 {
    u32::from(code as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traps_text_begins_with_its_cause_and_is_bounded() {
        let names = format!("error while executing at wasm backtrace:\n    0: {}\x1b[2J", "f".repeat(1_980_000));
        let text = trap_text(&wasmtime::Error::msg("wasm trap: unreachable").context(names));
        assert!(
            text.starts_with("wasm trap: unreachable\nerror while executing at wasm backtrace:\n    0: fff"),
            "{text}"
        );
        assert!(text.len() <= TRAP_BYTES_MAX && text.ends_with(" bytes)"), "{} bytes", text.len());
        let short = trap_text(&wasmtime::Error::msg("a\x1b[2J"));
        assert_eq!(short, r"a\u{1b}[2J");
    }
}
