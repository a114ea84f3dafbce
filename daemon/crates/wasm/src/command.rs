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
use wasmtime_wasi::filesystem::WasiFilesystemCtx;

use hearth_base::error::Error;
use hearth_base::tenant::Tenant;
use hearth_base::text::{shown, shown_lines};
use hearth_observe::metrics::{Metrics, Phase};
use hearth_observe::starts::About;
use hearth_stdio::Stdio;

use crate::engine::{INITIALIZE, START};
use crate::instantiate::{
    CallTarget, GuestConfig, GuestInstance, GuestSettings, InstantiateError, Outgoing, RootFiles, Streams, instantiate,
};
use crate::memory::MemoryUse;
use crate::runtime::Runtime;
use crate::scheduler::Guest;
use crate::slots::Placed;
use crate::state::{ComponentState, CoreState};

/// Exit status of a guest that trapped: 128 + SIGABRT, as `wasmtime run` has it.
pub const TRAP_STATUS: u32 = 134;

/// The most bytes of a trap's text.
const TRAP_BYTES_MAX: usize = 4 << 10;

/// The most bytes of wasmtime's reason why it does not instantiate a module.
const REFUSAL_BYTES_MAX: usize = 512;

/// The parts that one command needs to run.
pub struct Launch {
    /// The program, and its slot.
    pub placed: Placed,
    /// The export to call, if not the entry point.
    pub export: Option<Arc<str>>,
    /// Its arguments, environment and limits.
    pub settings: GuestSettings,
    /// Its files.
    pub files: LaunchFiles,
    /// The container's budget.
    pub tenant: Arc<Tenant>,
    /// stdin, stdout and stderr.
    pub stdio: Arc<Stdio>,
    /// The container's memory: linear memories and tables of all its guests.
    pub memory: Arc<MemoryUse>,
    /// Set while this guest's last growth of memory was refused.
    pub starved: Arc<AtomicBool>,
    /// The scheduler's view of this guest.
    pub guest: Arc<Guest>,
    /// Makes the sender of its HTTP requests.
    pub outgoing: Box<dyn Fn() -> Outgoing + Send + Sync>,
    /// The record of the start; `None` for an exec.
    pub about: Option<Arc<About>>,
}

/// A command's files.
pub enum LaunchFiles {
    /// All of this directory of the host, which becomes its `/`.
    Root(PathBuf),
    /// Directories that are open already.
    Open(WasiFilesystemCtx),
}

/// How a command ended by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandOutcome {
    /// It returned or called exit.
    Exited(u32),
    /// It trapped; wasmtime's text with the backtrace.
    Trapped(String),
    /// It could not be instantiated.
    NotStarted(Error),
}

/// Runs one guest. `started` is called once there is an instance, before the entry point is called.
pub async fn run(runtime: Arc<Runtime>, launch: Launch, started: impl FnOnce() + Send) -> CommandOutcome {
    let began = Instant::now();
    let refused_before = launch.memory.refused();
    let ready: Arc<OnceLock<Instant>> = Arc::default();
    let Launch { placed, export, settings, files, tenant, stdio, memory, starved, guest, outgoing, about } = launch;
    let config = GuestConfig {
        settings: &settings,
        request_id: None,
        files: match &files {
            LaunchFiles::Root(root) => RootFiles::At(root),
            LaunchFiles::Open(files) => RootFiles::Open(files),
        },
        tenant: &tenant,
        handles_max: runtime.engines.handles_max(),
        memory: &memory,
        starved: &starved,
        outgoing: &*outgoing,
    };
    let call = export.as_deref().map_or(CallTarget::Entry, CallTarget::Export);
    let streams = || Streams { stdin: Some(stdio.stdin()), stdout: stdio.stdout(), stderr: stdio.stderr() };
    let first = || Some(first_instruction(&runtime, &ready, about.as_ref()));
    let made = instantiate(&runtime, &guest, placed, call, &config, streams, first).await;
    let (_slot, instance) = match made {
        Ok(made) => made,
        Err(InstantiateError::Full(error) | InstantiateError::NotReady(error)) => {
            return CommandOutcome::NotStarted(error);
        }
        Err(InstantiateError::Failed(error)) if error.is::<wasmtime::Trap>() || error.is::<I32Exit>() => {
            started();
            return ended(&error);
        }
        Err(InstantiateError::Failed(error)) => {
            return CommandOutcome::NotStarted(refused(&memory, refused_before, &error));
        }
    };
    phase(about.as_deref(), &runtime.metrics, Phase::Instantiate, began);
    let _ = ready.set(Instant::now());
    started();
    match instance {
        GuestInstance::Core(store, instance) => call_core(store, instance, export.as_deref()).await,
        GuestInstance::Command(mut store, command) => ran(command.wasi_cli_run().call_run(&mut store).await),
        GuestInstance::CommandP3(mut store, command) => {
            let run = store.run_concurrent(async |store| command.wasi_cli_run().call_run(store).await);
            ran(run.await.flatten())
        }
        GuestInstance::Export(store, function) => call_component(store, function).await,
        GuestInstance::Service(..)
        | GuestInstance::ServiceP3(..)
        | GuestInstance::SpinService(..)
        | GuestInstance::Subscriber(..) => {
            CommandOutcome::NotStarted(Error::Internal("a service was started as a command".into()))
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

/// Records the end of a phase, of an exec in the metrics only.
fn phase(about: Option<&About>, metrics: &Metrics, phase: Phase, began: Instant) {
    match about {
        Some(about) => about.phase(metrics, phase, began, began.elapsed()),
        None => metrics.starts.phase(phase, began.elapsed()),
    }
}

/// Why instantiating failed. `refused_before`: how often the container was refused memory before that.
fn refused(memory: &MemoryUse, refused_before: u64, error: &wasmtime::Error) -> Error {
    let text = format!("{error:#}");
    let text = shown(&text, REFUSAL_BYTES_MAX);
    if memory.refused() > refused_before {
        return match memory.pod_limit() {
            Some(pod) if pod < memory.limit() => over_memory(pod, &text).context("the pod"),
            _ => over_memory(memory.limit(), &text),
        };
    }
    Error::FailedPrecondition(format!("the module cannot be instantiated: {text}"))
}

/// The error of a module that starts with more memory than its container's limit.
pub fn over_memory(limit: u64, detail: &str) -> Error {
    Error::ResourceExhausted(format!(
        "the module needs more memory to start than the container's limit of {limit} bytes: {detail}; raise resources.limits.memory or the module's initial memory must shrink"
    ))
}

async fn call_core(mut store: Store<CoreState>, instance: wasmtime::Instance, export: Option<&str>) -> CommandOutcome {
    if export.is_some()
        && let Some(initialize) = instance.get_func(&mut store, INITIALIZE)
        && let Err(error) = initialize.call_async(&mut store, &[], &mut []).await
    {
        return ended(&error);
    }
    let name = export.unwrap_or(START);
    let Some(function) = instance.get_func(&mut store, name) else {
        return CommandOutcome::Trapped(format!("the module exports no function {name:?}"));
    };
    let mut results = vec![Val::I32(0); function.ty(&store).results().len()];
    match function.call_async(&mut store, &[], &mut results).await {
        // As a C main's: an i32 result is the exit status.
        Ok(()) => CommandOutcome::Exited(results.first().and_then(Val::i32).map_or(0, exit_status)),
        Err(error) => ended(&error),
    }
}

async fn call_component(mut store: Store<ComponentState>, function: component::Func) -> CommandOutcome {
    let ty = function.ty(&store);
    if ty.params().len() > 0 {
        return CommandOutcome::Trapped("only a function without parameters can be started".into());
    }
    let mut results = vec![component::Val::Bool(false); ty.results().len()];
    match function.call_async(&mut store, &[], &mut results).await {
        Ok(()) => CommandOutcome::Exited(u32::from(matches!(results.first(), Some(component::Val::Result(Err(_)))))),
        Err(error) => ended(&error),
    }
}

/// How a command's `run` ended.
fn ran(result: wasmtime::Result<std::result::Result<(), ()>>) -> CommandOutcome {
    match result {
        Ok(Ok(())) => CommandOutcome::Exited(0),
        Ok(Err(())) => CommandOutcome::Exited(1),
        Err(error) => ended(&error),
    }
}

/// A trap with its backtrace, the cause first: a guest chooses the names of its functions, and the text is bounded.
pub fn trap_text(error: &wasmtime::Error) -> String {
    let mut causes: Vec<_> = error.chain().map(ToString::to_string).collect();
    causes.rotate_right(1);
    shown_lines(&causes.join("\n"), TRAP_BYTES_MAX).into_owned()
}

fn ended(error: &wasmtime::Error) -> CommandOutcome {
    match error.downcast_ref::<I32Exit>() {
        Some(I32Exit(code)) => CommandOutcome::Exited(exit_status(*code)),
        None => CommandOutcome::Trapped(trap_text(error)),
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
    fn the_exit_status_is_the_low_byte_of_any_number() {
        for (code, status) in [(0, 0), (1, 1), (126, 126), (134, 134), (200, 200), (255, 255), (256, 0), (-1, 255)] {
            assert_eq!(ended(&I32Exit(code).into()), CommandOutcome::Exited(status), "{code}");
        }
        assert!(matches!(ended(&wasmtime::Trap::UnreachableCodeReached.into()), CommandOutcome::Trapped(_)));
    }

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

    #[test]
    fn a_traps_text_has_no_frames_of_the_daemon_whatever_its_environment() {
        const VARIABLE: &str = "RUST_LIB_BACKTRACE";
        // std reads the variable once in a process: this test runs again in a process that starts with it.
        if std::env::var_os(VARIABLE).is_none_or(|value| value != "1") {
            let mut again = std::process::Command::new(std::env::current_exe().expect("a test has a file"));
            let name = std::thread::current().name().expect("a test's thread has its name").to_owned();
            let output = again.args(["--exact", &name]).env(VARIABLE, "1").output().expect("a test can run");
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && text.contains(" 1 passed"), "{text}");
            return;
        }
        let error = wasmtime::Error::msg("the cause").context("the guest's frames");
        assert!(format!("{error:?}").contains("Stack backtrace:"), "wasmtime's own text has the frames");
        assert_eq!(trap_text(&error), "the cause\nthe guest's frames");
    }
}
