//! Prints what the daemon's mounts, paths and stdio cost on this machine: `cargo run --release --example files`.
//!
//! Needs root. Everything happens in a private mount namespace below the directory given as argument
//! (default: the temporary directory), on whose file system writable overlays depend.

use std::hint::black_box;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hearth_base::bundle::SpecMount;
use hearth_base::config;
use hearth_base::tenant::{Limits, Tenant};
use hearth_observe::metrics::Metrics;
use hearth_stdio::Stdio;
use hearth_stdio::StdioPaths;
use hearth_wasm::budget::GuestDescriptors;
use hearth_wasm::engine::structure::StructureLimits;
use hearth_wasm::memory::{MemoryLimiter, MemoryUse};
use hearth_wasm::state::CoreState;
use hearth_wasm::wasi::linkers::core_linker;
use hearthd::task::root::{self, FsMount, RootSpec};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use wasmtime::{Engine, Linker, Module, Store, Trap};
use wasmtime_wasi::cli::{StdinStream, StdoutStream};
use wasmtime_wasi::{FsPerms, WasiCtx, p1};

const ROUNDS: usize = 200;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    hearth_os::mount::enter_private_namespace()?;
    let parent = std::env::args().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(parent)?;
    mounts(dir.path())?;
    paths(dir.path())?;
    stdio(dir.path())
}

/// Opens, reads and closes the file at [`OPENED`] so many times as it is told.
const OPENER: &str = r#"(module
    (import "wasi_snapshot_preview1" "path_open"
        (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_close" (func $close (param i32) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 0) "\00\04\00\00\40\00\00\00")
    (func (export "run") (param $length i32) (param $times i32)
        (loop $again
            (if (call $open (i32.const 3) (i32.const 1) (i32.const 64) (local.get $length) (i32.const 0)
                    (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 16)) (then unreachable))
            (if (call $read (i32.load (i32.const 16)) (i32.const 0) (i32.const 1) (i32.const 20)) (then unreachable))
            (if (call $close (i32.load (i32.const 16))) (then unreachable))
            (local.set $times (i32.sub (local.get $times) (i32.const 1)))
            (br_if $again (local.get $times)))))"#;

/// Where [`OPENER`] has the path in its memory.
const OPENED: usize = 64;

/// The cost of a guest's path with wasmtime-wasi's own calls and with the daemon's, side by side.
fn paths(base: &Path) -> Result<(), Box<dyn std::error::Error>> {
    const TIMES: i32 = 500;
    let root = base.join("root");
    std::fs::create_dir_all(root.join("usr/lib/deep"))?;
    for path in ["file", "usr/lib/deep/file"] {
        std::fs::write(root.join(path), "text")?;
    }
    std::os::unix::fs::symlink("lib/deep", root.join("usr/relative"))?;
    std::os::unix::fs::symlink("/usr/lib/deep", root.join("absolute"))?;
    let engine = Engine::default();
    let module = Module::new(&engine, wat::parse_str(OPENER)?)?;
    let mut own = Linker::new(&engine);
    p1::add_to_linker_async(&mut own, |state: &mut CoreState| &mut state.wasi)?;
    let linkers = [own, core_linker(&engine)?];
    println!("\n{:<36} {:>14} {:>10}   ns to open, read and close", "path", "wasmtime-wasi", "daemon");
    for path in ["file", "usr/lib/deep/file", "usr/relative/file", "absolute/file"] {
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            for (linker, times) in linkers.iter().zip(&mut times) {
                times.extend(opening(linker, &module, &root, path, TIMES)?);
            }
        }
        let [own, daemons] = times.map(|times| match times.is_empty() {
            true => "refused".to_owned(),
            false => format!("{:.0}", median(times) * 1e3),
        });
        println!("{path:<36} {own:>14} {daemons:>10}");
    }
    Ok(())
}

/// How long each of so many times takes; none if it is refused.
fn opening(
    linker: &Linker<CoreState>,
    module: &Module,
    root: &Path,
    path: &str,
    times: i32,
) -> Result<Option<Duration>, Box<dyn std::error::Error>> {
    let mut context = WasiCtx::builder();
    context.allow_blocking_current_thread(true).preopened_dir(root, "/", FsPerms::ReadWrite)?;
    let structure = StructureLimits::of(&config::Engine::default());
    let limits = MemoryLimiter::new(Arc::new(MemoryUse::new(u64::MAX)), Arc::default(), structure);
    let descriptors = GuestDescriptors::new(Tenant::unnamed(&Limits::none()), u32::MAX);
    let wasi = context.build_p1();
    let state = CoreState { wasi, limits, partly_read_only: false, descriptors };
    let mut store = Store::new(module.engine(), state);
    now(async {
        let instance = linker.instantiate_async(&mut store, module).await?;
        let memory = instance.get_memory(&mut store, "memory").expect("it exports one");
        memory.write(&mut store, OPENED, path.as_bytes())?;
        let run = instance.get_typed_func::<(i32, i32), ()>(&mut store, "run")?;
        let began = Instant::now();
        match run.call_async(&mut store, (path.len() as i32, times)).await {
            Ok(()) => Ok(Some(began.elapsed() / times as u32)),
            Err(error) if error.is::<Trap>() => Ok(None),
            Err(error) => Err(error.into()),
        }
    })
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e6
}

fn mounts(base: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let at = |name: &str| base.join(name).display().to_string();
    for layer in ["l1/etc", "l2/usr", "l3/bin", "bundle"] {
        std::fs::create_dir_all(base.join(layer))?;
    }
    let mut files = Vec::new();
    for name in ["hosts", "hostname", "resolv.conf", "f4", "f5", "f6"] {
        std::fs::write(base.join(name), "")?;
        std::fs::write(base.join("l1/etc").join(name), "")?;
        files.push(mount("bind", &at(name), &format!("/etc/{name}"), &["rbind", "rprivate", "ro"]));
    }
    let tmpfs = vec![mount("tmpfs", "shm", "/dev/shm", &["nosuid", "mode=1777", "size=65536k"])];
    let lower = format!("lowerdir={}:{}:{}", at("l3"), at("l2"), at("l1"));
    let layer = FsMount { fstype: "bind".into(), source: at("l1"), options: vec!["rbind".into(), "rw".into()] };
    type Case<'a> = (&'a str, Option<FsMount>, bool, Vec<SpecMount>);
    let overlay = || FsMount {
        fstype: "overlay".into(),
        source: "overlay".into(),
        options: vec!["index=off".into(), lower.clone()],
    };
    let cases: Vec<Case> = vec![
        ("bare directory", None, false, vec![]),
        ("bare directory, 6 file binds", None, false, files.clone()),
        ("bind", Some(layer.clone()), false, vec![]),
        ("bind, read-only", Some(layer.clone()), true, vec![]),
        ("bind, tmpfs", Some(layer.clone()), false, tmpfs),
        ("bind, 6 file binds", Some(layer), false, files.clone()),
        ("overlay, writable", Some(overlay()), false, vec![]),
        ("overlay, writable, 6 file binds", Some(overlay()), false, files.clone()),
        ("overlay, layers only", Some(overlay()), true, vec![]),
        ("overlay, scratch, 6 file binds", Some(overlay()), true, files),
    ];
    println!("{:<36} {:>10} {:>10}   µs, median of {ROUNDS}", "root", "mount", "unmount");
    let metrics = Metrics::new();
    for (number, (name, snapshot, read_only, volumes)) in cases.into_iter().enumerate() {
        let (mut mounting, mut unmounting) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let mut snapshot = snapshot.clone();
            if let Some(overlay) = snapshot.as_mut().filter(|mount| mount.fstype == "overlay") {
                // A new snapshot each time, as each container has.
                let (upper, work) = (at(&format!("s{number}-{round}/fs")), at(&format!("s{number}-{round}/work")));
                std::fs::create_dir_all(&upper)?;
                std::fs::create_dir_all(&work)?;
                overlay.options.extend([format!("upperdir={upper}"), format!("workdir={work}")]);
            }
            let path = if snapshot.is_some() { at("bundle/rootfs") } else { at("l1") };
            let spec = RootSpec {
                rootfs: snapshot.into_iter().collect(),
                path: path.into(),
                bundle: at("bundle").into(),
                own_path: at("bundle/own").into(),
                read_only,
                volumes: volumes.clone(),
            };
            let began = Instant::now();
            let root = root::plan(spec, &config::Files::default())?.perform(&metrics)?;
            mounting.push(began.elapsed());
            let began = Instant::now();
            root.unmount()?;
            unmounting.push(began.elapsed());
        }
        println!("{name:<36} {:>10.1} {:>10.1}", median(mounting), median(unmounting));
    }
    Ok(())
}

fn mount(fstype: &str, source: &str, destination: &str, options: &[&str]) -> SpecMount {
    SpecMount {
        destination: destination.into(),
        fstype: fstype.into(),
        source: source.into(),
        options: options.iter().map(|option| option.to_string()).collect(),
    }
}

fn stdio(base: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let fifo = |name: &str| -> std::io::Result<String> {
        let path = base.join(name);
        rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
        Ok(path.display().to_string())
    };
    let paths = StdioPaths { stdin: fifo("in")?, stdout: fifo("out")?, stderr: fifo("err")?, terminal: false };
    let config = config::Stdio::default();
    let open = || runtime.block_on(Stdio::open(&"namespace".into(), "task", &paths, &config));
    let (mut opening, mut closing) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let stdio = open()?;
        stdio.start(|| |_| ());
        opening.push(began.elapsed());
        let began = Instant::now();
        stdio.close();
        closing.push(began.elapsed());
    }
    println!("\nopen and start three FIFOs {:.1} µs, close {:.1} µs", median(opening), median(closing));

    let stdio = open()?;
    let flags = OFlags::RDWR | OFlags::NONBLOCK;
    let out = rustix::fs::open(&paths.stdout, flags, Mode::empty())?;
    let mut p2 = stdio.stdout().p2_stream();
    println!("\n{:<36} {:>10} {:>10}   ns a write", "output", "64 bytes", "4096 bytes");
    let raw = |bytes: &[u8]| {
        rustix::io::write(&out, bytes).expect("there is room");
    };
    per_write("write(2)", &out, raw);
    per_write("a copy of the bytes and write(2)", &out, |bytes| raw(black_box(&Bytes::from(bytes.to_vec()))));
    per_write("blocking-write-and-flush", &out, |bytes| {
        now(p2.blocking_write_and_flush(bytes.to_vec().into())).expect("there is room");
    });
    let mut p2 = stdio.stdout().p2_stream();
    per_write("check-write, write, flush", &out, |bytes| {
        p2.check_write()
            .and_then(|_| p2.write(bytes.to_vec().into()))
            .and_then(|()| p2.flush())
            .expect("there is room");
    });
    let mut p3 = Box::into_pin(stdio.stdout().async_stream());
    per_write("WASI 0.3", &out, |bytes| {
        now(std::future::poll_fn(|cx| p3.as_mut().poll_write(cx, bytes))).expect("there is room");
    });

    let client = rustix::fs::open(&paths.stdin, flags, Mode::empty())?;
    stdio.start(|| |_| ());
    let mut input = stdio.stdin().p2_stream();
    let mut buffer = vec![0; 4_096];
    println!("\n{:<36} {:>10}   ns a read of 4096 bytes", "input", "");
    per_read("read(2)", &client, || rustix::io::read(&client, &mut buffer[..]).expect("there is data"));
    per_read("blocking-read", &client, || now(input.blocking_read(4_096)).expect("there is data").len());
    Ok(())
}

/// The output of a future that has no reason to wait.
fn now<F: Future>(future: F) -> F::Output {
    match std::pin::pin!(future).poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(done) => done,
        std::task::Poll::Pending => panic!("it waits"),
    }
}

fn per_write(name: &str, fifo: &OwnedFd, mut write: impl FnMut(&[u8])) {
    let mut nanoseconds = |size: usize, count: usize| {
        let (bytes, mut sink) = (vec![0; size], vec![0; 1 << 20]);
        let times = (0..2_000).map(|_| {
            let began = Instant::now();
            for _ in 0..count {
                write(&bytes);
            }
            let took = began.elapsed() / count as u32;
            rustix::io::read(fifo, &mut sink[..]).expect("it was written");
            took
        });
        median(times.collect()) * 1e3
    };
    println!("{name:<36} {:>10.0} {:>10.0}", nanoseconds(64, 500), nanoseconds(4_096, 15));
}

fn per_read(name: &str, fifo: &OwnedFd, mut read: impl FnMut() -> usize) {
    const COUNT: u32 = 15;
    let bytes = vec![0; COUNT as usize * 4_096];
    let times = (0..2_000).map(|_| {
        rustix::io::write(fifo, &bytes).expect("there is room");
        let began = Instant::now();
        for _ in 0..COUNT {
            assert_eq!(read(), 4_096);
        }
        began.elapsed() / COUNT
    });
    println!("{name:<36} {:>10.0}", median(times.collect()) * 1e3);
}
