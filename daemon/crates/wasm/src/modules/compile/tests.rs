//! Real compile processes, and the reports of their ends.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::Instant;

use super::*;
use crate::modules::compile_process::{MESSAGE_CHARACTERS_MAX, one_line};
use crate::modules::pace::Urgency;
use crate::modules::samples;
use crate::modules::turns::Owner;
use hearth_os::memfd;

fn memory(bytes: &[u8]) -> File {
    let file = memfd::create("test").unwrap();
    file.write_all_at(bytes, 0).unwrap();
    memfd::seal(&file).unwrap();
    file
}

fn compiler(change: impl FnOnce(&mut config::Modules)) -> Compiler {
    let mut modules = config::Modules::default();
    change(&mut modules);
    Compiler::new(modules, config::Engine::default(), &config::Ahead::default(), Arc::new(Metrics::new()))
}

/// A compiler whose program is this shell script.
fn script(directory: &tempfile::TempDir, text: &str) -> Compiler {
    let program = directory.path().join("program");
    // Written by another process: a descriptor of ours could be inherited by what another test
    // starts meanwhile, and a file that a process has open to write cannot be executed.
    let mut install =
        Command::new("install").args(["-m755", "/dev/stdin"]).arg(&program).stdin(Stdio::piped()).spawn().unwrap();
    writeln!(install.stdin.take().unwrap(), "#!/bin/sh\n{text}").unwrap();
    assert!(install.wait().unwrap().success());
    Compiler { program, ..compiler(|_| {}) }
}

fn pace() -> Arc<Pace> {
    Pace::new(Urgency::Start, Vec::new())
}

fn turn(compiler: &Compiler) -> Turn {
    futures_util::FutureExt::now_or_never(compiler.turns.wait(&pace())).expect("a turn is free")
}

/// Runs one process and returns its result and the metric's label.
fn run(compiler: &Compiler, wasm: &[u8], wall: Option<Duration>) -> (Result<File>, &'static str) {
    let mut job = compiler.job(pace(), Work::Compile(Baseline::Never));
    job.wall = wall.unwrap_or(job.wall);
    let result = job.run(memory(wasm), ModuleKind::Core, &turn(compiler)).map_err(|failed| {
        assert_eq!(failed.is_limit, matches!(failed.error, Error::ResourceExhausted(_)));
        failed.error
    });
    let counted: Vec<_> = ["ok", "invalid", "limit", "crashed", "failed"]
        .into_iter()
        .filter(|label| compiler.metrics.compiles.results.with_label_values(&[label]).get() == 1)
        .collect();
    assert_eq!(counted.len(), 1, "counted once: {counted:?}");
    assert_eq!(compiler.metrics.compiles.seconds.get_sample_count(), 1);
    (result, counted[0])
}

fn limit(compiler: &Compiler, wasm: &[u8], key: &str) {
    let (result, label) = run(compiler, wasm, None);
    let Err(Error::ResourceExhausted(text)) = result else { panic!("{key}: {result:?}") };
    assert!(text.contains(key) && !text.contains('\n'), "{text}");
    assert_eq!(label, "limit");
}

#[test]
fn a_module_becomes_an_artifact_that_nobody_can_change() {
    let (artifact, label) = run(&compiler(|_| {}), &samples::command(1), None);
    let artifact = artifact.unwrap();
    assert_eq!(label, "ok");
    assert!(artifact.metadata().unwrap().len() > 100);
    assert!(artifact.write_at(b"x", 0).is_err() && artifact.set_len(0).is_err());
}

#[test]
fn a_module_that_is_no_good_is_told_in_wasmtimes_words() {
    for (wasm, words) in
        [(samples::invalid(), "type mismatch"), (b"\0asm\x01\0\0\0\xff".to_vec(), "malformed section id")]
    {
        let (result, label) = run(&compiler(|_| {}), &wasm, None);
        let Err(Error::InvalidArgument(text)) = result else { panic!("{result:?}") };
        assert!(text.starts_with("it cannot be compiled: ") && text.contains(words) && !text.contains('\n'), "{text}");
        assert_eq!(label, "invalid");
    }
}

#[test]
fn a_module_that_is_too_much_is_stopped_at_the_limit_and_names_it() {
    let heavy = samples::heavy();
    limit(&compiler(|modules| modules.compile_cpu_seconds_max = 1), &heavy, "modules.compile_cpu_seconds_max");
    limit(
        &compiler(|modules| modules.compile_memory_bytes_max = 400 << 20),
        &heavy,
        "modules.compile_memory_bytes_max",
    );
    limit(&compiler(|modules| modules.compile_seconds_max = 1), &heavy, "modules.compile_seconds_max");
    limit(&compiler(|modules| modules.artifact_bytes_max = 100), &samples::command(1), "modules.artifact_bytes_max");
}

#[test]
fn a_compiler_that_dies_is_told_from_a_bad_module() {
    let directory = tempfile::tempdir().unwrap();
    // A foreign kill -9, a crash, silence, a program that is no compiler.
    let table = [
        ("kill -9 $$", "limit", "SIGKILL by another process"),
        ("kill -SEGV $$", "crashed", "crashed on this module (signal 11); nothing else was affected"),
        ("echo thread main panicked >&2; exit 101", "crashed", "exit status 101: thread main panicked"),
        ("exit 0", "crashed", "it wrote nothing"),
        ("kill -XFSZ $$", "limit", "modules.artifact_bytes_max"),
        ("exit 66", "limit", "modules.compile_memory_bytes_max"),
        ("echo 'memory allocation of 9 bytes failed' >&2; kill -ABRT $$", "crashed", "signal 6: memory allocation"),
        ("echo the component has 51 core instances >&2; exit 70", "limit", "engine.component_core_instances_max"),
        ("echo cannot confine >&2; exit 64", "failed", "could not do its work: cannot confine"),
    ];
    for (text, want, words) in table {
        let (result, label) = run(&script(&directory, text), b"", None);
        let error = result.unwrap_err();
        assert!(error.to_string().contains(words), "{text}: {error}");
        assert_eq!(label, want, "{text}");
        assert_eq!(matches!(error, Error::ResourceExhausted(_)), label == "limit", "{error:?}");
    }
    let gone = Compiler { program: directory.path().join("none"), ..compiler(|_| {}) };
    let Err(Failed { error: Error::Internal(text), .. }) =
        gone.job(pace(), Work::Compile(Baseline::Never)).run(memory(b""), ModuleKind::Core, &turn(&gone))
    else {
        panic!()
    };
    assert!(text.contains("cannot start the compiler"), "{text}");
}

#[test]
fn what_it_says_is_bounded_and_on_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let flood = script(&directory, "head -c 3000000 /dev/zero | tr '\\0' 'x' >&2; printf 'y\\033\\n' >&2; exit 65");
    let (result, label) = run(&flood, b"", None);
    let text = result.unwrap_err().to_string();
    assert_eq!(label, "invalid");
    assert!(text.chars().count() < MESSAGE_CHARACTERS_MAX + 100 && text.ends_with('…'), "{text}");
    assert_eq!(one_line(b" a\n\tb\x1b[31m\xff "), "a b [31m\u{fffd}");
}

#[test]
fn a_compiler_that_hangs_is_killed_even_if_it_closed_its_streams() {
    let directory = tempfile::tempdir().unwrap();
    for text in ["exec sleep 1000", "exec sleep 1000 2>&-"] {
        let began = Instant::now();
        let (result, label) = run(&script(&directory, text), b"", Some(Duration::from_millis(50)));
        let Err(Error::ResourceExhausted(text)) = result else { panic!("{result:?}") };
        assert!(text.contains("modules.compile_seconds_max"), "{text}");
        assert_eq!(label, "limit");
        assert!(began.elapsed() < Duration::from_secs(100));
    }
}

#[test]
fn it_gets_the_module_its_order_and_nothing_of_our_environment() {
    let directory = tempfile::tempdir().unwrap();
    let (artifact, _) = run(&script(&directory, "cat; echo; echo \"$1 $2\"; env"), b"the module", None);
    let mut bytes = vec![0; 10_000];
    let read = artifact.unwrap().read_at(&mut bytes, 0).unwrap();
    let text = String::from_utf8(bytes[..read].to_vec()).unwrap();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("the module"));
    let order: CompileOrder = serde_json::from_str(lines.next().unwrap().strip_prefix("compile ").unwrap()).unwrap();
    assert_eq!((order.uid, order.engine), (65_534, config::Engine::default()));
    let left: Vec<_> = lines
        .filter(|line| !line.starts_with("RAYON_NUM_THREADS=") && !line.starts_with("PWD=") && !line.starts_with("_="))
        .collect();
    assert_eq!(left, Vec::<&str>::new());
}

/// A script that runs until something is written into the FIFO beside it.
fn waiting_script(directory: &tempfile::TempDir) -> (Compiler, PathBuf) {
    let fifo = directory.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    (script(directory, &format!("read line < {}; echo \"$line\"", fifo.display())), fifo)
}

#[tokio::test]
async fn the_queue_is_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let (mut compiler, fifo) = waiting_script(&directory);
    compiler.config.compile_queue_max = 1;
    let pace = pace();
    let compile = || compiler.compile(async { Ok((memory(b""), ModuleKind::Core)) }, &pace);
    let (first, second) = (compile(), compile());
    tokio::pin!(first, second);
    assert!(futures_util::poll!(&mut first).is_pending());
    assert!(futures_util::poll!(&mut second).is_pending());
    assert_eq!(compiler.metrics.compiles.pending.get(), 2);
    let Err(Failed { error: Error::ResourceExhausted(text), is_limit: false }) = compile().await else { panic!() };
    assert!(text.contains("modules.compile_queue_max"), "{text}");
    // Opening waits for the script, so each of them gets one line; the second starts when the
    // first has ended.
    let write = |fifo: PathBuf| tokio::task::spawn_blocking(move || fs::write(fifo, "go\n").unwrap());
    let ((), result) = (write(fifo.clone()).await.unwrap(), first.await);
    result.unwrap();
    assert_eq!(compiler.metrics.compiles.pending.get(), 1);
    let (result, written) = tokio::join!(second, write(fifo));
    result.unwrap();
    written.unwrap();
    assert_eq!(compiler.metrics.compiles.pending.get(), 0);
    assert_eq!(compiler.metrics.compiles.results.with_label_values(&["ok"]).get(), 2);
}

#[tokio::test]
async fn a_caller_that_goes_away_does_not_stop_a_compile_and_leaves_no_place_taken() {
    let directory = tempfile::tempdir().unwrap();
    let (compiler, fifo) = waiting_script(&directory);
    {
        let pace = pace();
        let running = compiler.compile(async { Ok((memory(b""), ModuleKind::Core)) }, &pace);
        let queued = compiler.compile(async { unreachable!("its caller is gone") }, &pace);
        tokio::pin!(running, queued);
        assert!(futures_util::poll!(&mut running).is_pending());
        assert!(futures_util::poll!(&mut queued).is_pending());
    }
    assert_eq!(compiler.metrics.compiles.pending.get(), 1);
    tokio::task::spawn_blocking(move || fs::write(fifo, "go\n").unwrap()).await.unwrap();
    drop(compiler.turns.wait(&pace()).await);
    assert_eq!(compiler.metrics.compiles.results.with_label_values(&["ok"]).get(), 1);
}

/// The state of a process group's leader in `/proc/PID/stat`: the children of this process that run `program`.
fn states(program: &std::path::Path) -> Vec<char> {
    let mut states = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let is_ours = String::from_utf8_lossy(&line).contains(&*program.to_string_lossy());
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        if let Some(rest) = is_ours.then(|| stat.rsplit_once(") ")).flatten() {
            states.extend(rest.1.chars().next());
        }
    }
    states
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_compile_is_stopped_while_another_namespace_has_its_turn() {
    let directory = tempfile::tempdir().unwrap();
    let fifos = ["a", "b"].map(|name| hearth_testing::make_fifo(directory.path(), name));
    // It runs until something is written into the FIFO that its module names.
    let text = format!("read line < {}/$(cat); echo \"$line\"", directory.path().display());
    let mut compiler = script(&directory, &text);
    compiler.config.compile_turn_ms = 20;
    let compiler = Arc::new(compiler);
    let compile = |name: &'static str| {
        let owner = Owner::new(name, "pod");
        let (compiler, pace) = (compiler.clone(), Pace::new(Urgency::Start, vec![owner]));
        let module = async move { Ok((memory(name.as_bytes()), ModuleKind::Core)) };
        tokio::spawn(async move { compiler.compile(module, &pace).await })
    };
    let long = compile("a");
    while compiler.metrics.compiles.running.get() < 1 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let short = compile("b");
    // The long one is stopped, and the other one runs.
    while compiler.metrics.compiles.running.get() < 2 || !states(&compiler.program).contains(&'T') {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(compiler.metrics.compiles.parked.get() >= 1);
    let [of_long, of_short] = fifos.map(|fifo| move || fs::write(fifo, "go\n").unwrap());
    tokio::task::spawn_blocking(of_short).await.unwrap();
    short.await.unwrap().unwrap();
    // It goes on.
    tokio::task::spawn_blocking(of_long).await.unwrap();
    long.await.unwrap().unwrap();
    let metrics = &compiler.metrics.compiles;
    assert_eq!((metrics.running.get(), metrics.pending.get()), (0, 0));
}
