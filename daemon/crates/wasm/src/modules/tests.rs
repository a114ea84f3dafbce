//! Stories of the module store, with real compile processes.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::*;
use crate::engine::{ModuleKind, Tier};
use crate::modules::cache::REJECTED_FOR;
use crate::modules::places::RootMount;
use crate::modules::turns::Turn;
use hearth_os::memfd;

/// A node with a root file system; each [`Node::daemon`] is a life of the daemon.
struct Node {
    directory: tempfile::TempDir,
    config: Config,
}

/// One life of the daemon.
struct Daemon {
    modules: Arc<ModuleStore>,
    metrics: Arc<Metrics>,
    rootfs: PathBuf,
}

impl Node {
    fn new() -> Node {
        // A tmpfs, on which a file has a place.
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let mut config = Config { root_dir: directory.path().join("lib"), ..Config::default() };
        config.engine.pool_slots = 2;
        for name in ["rootfs", "layer", "up"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        Node { directory, config }
    }

    fn daemon(&self) -> Daemon {
        let metrics = Arc::new(Metrics::new());
        let engines = Arc::new(Engines::new(&self.config.engine, self.config.modules.baseline, &[]).unwrap());
        let modules = ModuleStore::open(&self.config, engines, metrics.clone(), Handle::current()).unwrap();
        Daemon { modules, metrics, rootfs: self.directory.path().join("rootfs") }
    }

    /// The place of `/app.wasm` in a snapshot.
    fn place(&self) -> Place {
        let at = |name: &str| self.directory.path().join(name).display().to_string();
        let options = [format!("lowerdir={}", at("layer")), format!("upperdir={}", at("up"))];
        Place::of_snapshot(&[RootMount { fstype: "overlay", options: &options }], &wanted("/app.wasm"), &[]).unwrap()
    }

    fn artifacts(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.config.root_dir.join("modules")).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|extension| extension == "artifact")).collect()
    }
}

fn wanted(program: &str) -> Wanted {
    Wanted { program: program.into(), path: None, cwd: "/".into() }
}

impl Daemon {
    fn write(&self, wasm: &[u8]) {
        fs::write(self.rootfs.join("app.wasm"), wasm).unwrap();
    }

    async fn find(&self, program: &str) -> Origin {
        let root = fs::File::open(&self.rootfs).unwrap();
        Origin::File(self.modules.find(root.into(), wanted(program)).await.unwrap())
    }

    /// Starts `/app.wasm`, by the root's own file.
    async fn load(&self, place: Option<Place>) -> Result<Loaded> {
        let origin = self.find("/app.wasm").await;
        self.modules.load(origin, place, Owner::default()).await
    }

    async fn layer(&self, wasm: Vec<u8>) -> Result<Loaded> {
        self.modules.load(image(wasm), None, Owner::default()).await
    }

    fn compiles(&self, result: &str) -> u64 {
        self.metrics.compiles.results.with_label_values(&[result]).get()
    }

    fn reads(&self) -> u64 {
        self.metrics.modules.reads.get()
    }
}

/// A Wasm artifact.
fn image(wasm: Vec<u8>) -> Origin {
    Origin::Layer { name: "image:1".into(), digest: Digest::of(&wasm), bytes: wasm.into(), export: None }
}

fn text(result: Result<Loaded>) -> String {
    match result {
        Ok(_) => panic!("it was loaded"),
        Err(error) => {
            let text = error.to_string();
            assert!(!text.contains('\n'), "{text}");
            text
        }
    }
}

#[tokio::test]
async fn the_second_start_reads_and_compiles_nothing_after_a_restart_neither() {
    let node = Node::new();
    let place = node.place();
    let daemon = node.daemon();
    daemon.write(&samples::command(1));
    assert!(daemon.modules.warm(&place).is_none());
    assert!(daemon.modules.known(&place).await.unwrap().is_none());
    let first = daemon.load(Some(place)).await.unwrap();
    assert_eq!(first.source, Source::Compiled);
    assert!(first.compile_time.is_some_and(|time| time > Duration::ZERO));
    assert_eq!((daemon.reads(), daemon.compiles("ok")), (1, 1));
    let second = daemon.modules.warm(&place).unwrap();
    assert_eq!((second.source, second.compile_time), (Source::Warm, None));
    assert!(Arc::ptr_eq(&first.program, &second.program));
    assert_eq!((daemon.reads(), daemon.compiles("ok")), (1, 1));
    assert_eq!(daemon.metrics.modules.prepared.get(), 1);

    fs::remove_file(daemon.rootfs.join("app.wasm")).unwrap();
    let daemon = node.daemon();
    assert!(daemon.modules.warm(&place).is_none());
    let known = daemon.modules.known(&place).await.unwrap().unwrap();
    assert_eq!((known.source, known.compile_time), (Source::Disk, None));
    assert!(daemon.modules.warm(&place).is_some());
    assert_eq!((daemon.reads(), daemon.compiles("ok")), (0, 0));
    let text = daemon.metrics.render();
    assert!(text.contains("hearth_module_lookups_total{source=\"disk\"} 1"), "{text}");
    assert!(text.contains("hearth_module_lookups_total{source=\"warm\"} 1"), "{text}");
}

#[tokio::test]
async fn an_export_belongs_to_its_place() {
    let node = Node::new();
    let daemon = node.daemon();
    daemon.write(&samples::command(1));
    let (plain, named) = (Place([1; 32]), Place([2; 32]));
    assert_eq!(daemon.load(Some(plain)).await.unwrap().export, None);
    let origin = daemon.find("/app.wasm#run").await;
    assert_eq!(
        daemon.modules.load(origin, Some(named), Owner::default()).await.unwrap().export.as_deref(),
        Some("run")
    );
    for daemon in [daemon, node.daemon()] {
        assert_eq!(daemon.modules.known(&plain).await.unwrap().unwrap().export, None);
        assert_eq!(daemon.modules.known(&named).await.unwrap().unwrap().export.as_deref(), Some("run"));
    }
}

#[tokio::test]
async fn a_search_that_met_a_volume_is_not_remembered_for_the_snapshot() {
    let node = Node::new();
    let daemon = node.daemon();
    daemon.write(&samples::command(1));
    let Origin::File(found) = daemon.find("/app.wasm").await else { unreachable!() };
    let place = node.place();
    let origin = Origin::File(ProgramFile { on_root_mount: false, ..found });
    daemon.modules.load(origin, Some(place), Owner::default()).await.unwrap();
    assert!(daemon.modules.warm(&place).is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_at_once_are_one_compile() {
    let node = Node::new();
    let daemon = node.daemon();
    daemon.write(&samples::command(1));
    let loads: Vec<_> = (0..50)
        .map(|number| {
            let modules = daemon.modules.clone();
            let root = fs::File::open(&daemon.rootfs).unwrap();
            // Half of them as a layer of an image: it is the bytes that count.
            tokio::spawn(async move {
                let origin = match number % 2 {
                    0 => Origin::File(modules.find(root.into(), wanted("/app.wasm")).await?),
                    _ => image(samples::command(1)),
                };
                modules.load(origin, None, Owner::default()).await
            })
        })
        .collect();
    let mut programs = Vec::new();
    for load in loads {
        programs.push(load.await.unwrap().unwrap().program);
    }
    assert_eq!(daemon.compiles("ok"), 1);
    assert!(programs.iter().all(|program| Arc::ptr_eq(program, &programs[0])));
    assert_eq!(node.artifacts().len(), 1);
    assert!(daemon.modules.loader.loads.lock().is_empty());

    // The same for an artifact on the disk.
    let daemon = node.daemon();
    let digest = Digest::of(&samples::command(1));
    let loads: Vec<_> = (0..50)
        .map(|_| {
            let modules = daemon.modules.clone();
            tokio::spawn(async move { modules.known_digest(digest, None).await })
        })
        .collect();
    let mut programs = Vec::new();
    for load in loads {
        programs.push(load.await.unwrap().unwrap().unwrap().program);
    }
    assert!(programs.iter().all(|program| Arc::ptr_eq(program, &programs[0])));
}

#[tokio::test]
async fn a_caller_that_goes_away_stops_nothing() {
    let node = Node::new();
    let daemon = node.daemon();
    daemon.write(&samples::command(1));
    let origin = daemon.find("/app.wasm").await;
    {
        let load = daemon.modules.load(origin, None, Owner::default());
        tokio::pin!(load);
        // Until the load has started.
        while daemon.modules.loader.loads.lock().is_empty() {
            assert!(futures_util::poll!(&mut load).is_pending());
            tokio::task::yield_now().await;
        }
    }
    daemon.load(None).await.unwrap();
    assert_eq!(daemon.compiles("ok"), 1);
}

#[tokio::test]
async fn core_modules_and_components_are_told_apart() {
    let node = Node::new();
    for daemon in [node.daemon(), node.daemon()] {
        let core = daemon.layer(samples::command(1)).await.unwrap();
        let component = daemon.layer(samples::component()).await.unwrap();
        assert_eq!(
            (core.program.now().kind(), component.program.now().kind()),
            (ModuleKind::Core, ModuleKind::Component)
        );
    }
    assert_eq!(node.artifacts().len(), 2);
}

#[tokio::test]
async fn a_damaged_artifact_is_compiled_again() {
    let node = Node::new();
    drop(node.daemon().layer(samples::command(1)).await.unwrap());
    let artifact = &node.artifacts()[0];
    let file = fs::OpenOptions::new().write(true).open(artifact).unwrap();
    file.write_all_at(b"\x90", file.metadata().unwrap().len() / 2).unwrap();
    let daemon = node.daemon();
    assert_eq!(daemon.layer(samples::command(1)).await.unwrap().source, Source::Compiled);
    assert_eq!((daemon.metrics.store.damaged.get(), daemon.compiles("ok")), (1, 1));
    assert_eq!(node.daemon().layer(samples::command(1)).await.unwrap().source, Source::Disk);
}

#[tokio::test]
async fn an_artifact_that_wasmtime_refuses_is_compiled_again() {
    let node = Node::new();
    let daemon = node.daemon();
    let wasm = samples::command(1);
    let memory = memfd::create("test").unwrap();
    memory.write_all_at(b"no code at all", 0).unwrap();
    memfd::seal(&memory).unwrap();
    daemon.modules.loader.store.put(Digest::of(&wasm), ModuleKind::Core, memory);
    assert_eq!(daemon.layer(wasm).await.unwrap().source, Source::Compiled);
    assert_eq!(daemon.metrics.store.damaged.get(), 1);
    assert_eq!(node.artifacts().len(), 1);
}

#[tokio::test]
async fn an_invalid_module_is_named_and_compiled_once() {
    let node = Node::new();
    let daemon = node.daemon();
    daemon.write(&samples::invalid());
    for _ in 0..3 {
        let error = text(daemon.load(None).await);
        assert!(error.starts_with("/app.wasm: it cannot be compiled: ") && error.contains("type mismatch"), "{error}");
    }
    let error = text(daemon.layer(samples::invalid()).await);
    assert!(error.starts_with("image:1: it cannot be compiled: "), "{error}");
    assert_eq!(daemon.compiles("invalid"), 1);
    // Not for ever.
    let (loader, digest) = (&daemon.modules.loader, Digest::of(&samples::invalid()));
    let later = Instant::now() + REJECTED_FOR;
    assert!(loader.rejected(digest, Instant::now()).is_some());
    assert!(loader.rejected(digest, later).is_none());
    text(daemon.load(None).await);
    assert_eq!(daemon.compiles("invalid"), 2);
}

#[tokio::test]
async fn a_limit_that_was_reached_is_tried_again() {
    let mut node = Node::new();
    node.config.modules.artifact_bytes_max = 100;
    let daemon = node.daemon();
    for _ in 0..2 {
        let Err(Error::ResourceExhausted(text)) = daemon.layer(samples::command(1)).await else { panic!() };
        assert!(text.starts_with("image:1: ") && text.contains("modules.artifact_bytes_max"), "{text}");
    }
    assert_eq!(daemon.compiles("limit"), 2);
    // A third time after a pause, which a restart does not end; with another limit at once.
    for (daemon, compiles) in [(daemon, 2), (node.daemon(), 0)] {
        let refused = text(daemon.layer(samples::command(1)).await);
        assert!(refused.contains("modules.artifact_bytes_max") && refused.contains("tried again in"), "{refused}");
        assert_eq!(daemon.compiles("limit"), compiles);
    }
    node.config.modules.artifact_bytes_max = 1 << 30;
    node.daemon().layer(samples::command(1)).await.unwrap();
}

#[tokio::test]
async fn a_module_over_the_structure_limits_is_refused_whatever_engine_would_take_it() {
    let mut node = Node::new();
    node.config.engine.memories_max = 2;
    node.config.engine.tables_max = 3;
    node.config.engine.component_core_instances_max = 2;
    let daemon = node.daemon();
    let module = |text: &str| wat::parse_str(format!("(module {text} (func (export \"_start\")))")).unwrap();
    let component = |instances: usize| {
        let instances = "(core instance (instantiate $m))".repeat(instances);
        wat::parse_str(format!("(component (core module $m (memory 0) (table 0 funcref)) {instances})")).unwrap()
    };
    let refused = [
        (module("(memory 0) (memory 0) (memory 0)"), "3 linear memories, more than 2: raise engine.memories_max"),
        (module(&"(table 0 funcref)".repeat(4)), "4 tables, more than 3: raise engine.tables_max"),
        (component(3), "3 core instances, more than 2: raise engine.component_core_instances_max"),
    ];
    for (wasm, words) in refused {
        for _ in 0..2 {
            let result = daemon.layer(wasm.clone()).await;
            let Err(Error::ResourceExhausted(text)) = result else { panic!("{words}: {:?}", result.err()) };
            assert!(text.contains(words), "{text}");
        }
    }
    // What a slot has no room for runs on demand, within the same numbers.
    node.config.engine.table_elements_max = 10;
    let daemon = node.daemon();
    let loaded = daemon.layer(module("(memory 0) (memory 0) (table 11 funcref)")).await.unwrap();
    assert!(!loaded.program.now().fits_pool());
    assert!(daemon.layer(component(2)).await.is_ok_and(|loaded| loaded.program.now().fits_pool()));
}

#[tokio::test]
async fn an_unknown_import_is_named_and_its_artifact_kept() {
    let node = Node::new();
    for daemon in [node.daemon(), node.daemon()] {
        let error = text(daemon.layer(samples::unknown_import()).await);
        assert!(error.contains("moon") && error.contains("landing"), "{error}");
    }
    assert_eq!(node.artifacts().len(), 1);
    assert_eq!(node.daemon().metrics.store.damaged.get(), 0);
}

#[tokio::test]
async fn all_unknown_imports_are_named_in_one_line() {
    let daemon = Node::new().daemon();
    let known = r#"(import "wasi_snapshot_preview1" "sched_yield" (func (result i32)))"#;
    let socket = r#"(import "wasi_snapshot_preview1" "sock_open" (func (param i32 i32 i32) (result i32)))"#;
    let many = |count: usize| {
        let imports = (0..count).map(|n| format!(r#"(import "moon" "landing{n}" (func))"#));
        wat::parse_str(format!("(module {known} {socket} {} (func (export \"_start\")))", imports.collect::<String>()))
    };
    let error = text(daemon.layer(many(2).unwrap()).await);
    let list = "in all 3 are unknown: wasi_snapshot_preview1::sock_open, moon::landing0, moon::landing1;";
    assert!(error.contains(list), "{error}");
    let error = text(daemon.layer(many(400).unwrap()).await);
    assert!(error.contains("in all 32 or more are unknown") && error.len() < 1500, "{error}");
    let spin = r#"(component (import "spin:llm/a@2.0.0" (instance)) (import "spin:llm/b@2.0.0" (instance (export "f" (func)))))"#;
    let error = text(daemon.layer(wat::parse_str(spin).unwrap()).await);
    assert!(error.contains("in all 2 are unknown: spin:llm/a@2.0.0, spin:llm/b@2.0.0;"), "{error}");
}

#[tokio::test]
async fn what_is_not_wasm_is_refused_before_a_process_is_started() {
    let daemon = Node::new().daemon();
    let error = text(daemon.layer(b"#!/bin/sh\n".to_vec()).await);
    assert!(error.starts_with("image:1: it is a script"), "{error}");
    let metrics = daemon.metrics.render();
    assert!(metrics.contains("hearth_compile_seconds_count 0"), "{metrics}");
}

#[tokio::test]
async fn without_a_disk_it_runs_from_memory() {
    let mut node = Node::new();
    node.config.root_dir = Path::new("/proc/hearth").into();
    let daemon = node.daemon();
    let place = Place([1; 32]);
    daemon.write(&samples::command(1));
    assert_eq!(daemon.load(Some(place)).await.unwrap().source, Source::Compiled);
    assert_eq!(daemon.metrics.store.write_failures.get(), 1);
    assert!(daemon.modules.warm(&place).is_some());
}

#[tokio::test]
async fn programs_in_memory_are_bounded_and_those_in_use_live_on() {
    let mut node = Node::new();
    node.config.modules.prepared_max = 1;
    let daemon = node.daemon();
    let first = daemon.layer(samples::command(1)).await.unwrap();
    daemon.layer(samples::command(2)).await.unwrap();
    assert_eq!(daemon.metrics.modules.prepared.get(), 1);
    assert_eq!(first.program.now().kind(), ModuleKind::Core);
    let again = daemon.layer(samples::command(1)).await.unwrap();
    assert_eq!((again.source, daemon.compiles("ok")), (Source::Disk, 2));
}

#[tokio::test]
async fn a_file_is_read_once_when_it_is_old_enough() {
    let node = Node::new();
    let daemon = node.daemon();
    daemon.write(&samples::command(1));
    let loader = &daemon.modules.loader;
    let origin = daemon.find("/app.wasm").await;
    let Origin::File(found) = &origin else { unreachable!() };
    let place = Place::of_file(&found.file).expect("a file on a tmpfs has a place");
    let now = SystemTime::now();
    assert_eq!(
        loader.inspect(&origin, Evidence::InPlaces, now).unwrap().learned,
        None,
        "it may change within the same instant"
    );
    let read = loader.inspect(&origin, Evidence::InPlaces, now + Duration::from_secs(10)).unwrap();
    assert_eq!(read.learned, Some(place));
    loader.places.learn(place, KnownModule { digest: read.digest, export: None });
    let reads = daemon.reads();
    daemon.modules.load(origin, None, Owner::default()).await.unwrap();
    assert_eq!(daemon.reads(), reads + 1, "for the compiler");
    daemon.load(None).await.unwrap();
    assert_eq!(daemon.reads(), reads + 1);
}

#[tokio::test]
async fn what_is_wrongly_known_of_a_file_is_corrected() {
    let node = Node::new();
    let daemon = node.daemon();
    daemon.write(&samples::command(1));
    let Origin::File(found) = daemon.find("/app.wasm").await else { unreachable!() };
    let place = Place::of_file(&found.file).expect("a file on a tmpfs has a place");
    daemon.modules.loader.places.learn(place, KnownModule { digest: Digest([7; 32]), export: None });
    let loaded = daemon.modules.load(Origin::File(found), None, Owner::default()).await.unwrap();
    assert_eq!(loaded.source, Source::Compiled);
    assert!(daemon.modules.loader.prepared(Digest::of(&samples::command(1)), Tier::Baseline).is_some());
    assert!(daemon.modules.loader.prepared(Digest([7; 32]), Tier::Baseline).is_none());
}

#[tokio::test]
async fn a_file_that_changes_under_way_harms_no_other_of_the_same_digest() {
    let node = Node::new();
    let daemon = node.daemon();
    let wasm = samples::command(1);
    let digest = Digest::of(&wasm);
    daemon.write(b"#!/bin/sh\n");
    let origin = Arc::new(daemon.find("/app.wasm").await);
    let changed = daemon
        .modules
        .loader
        .single_flight(
            digest,
            Some(CompileInput::Origin { origin, is_read: true }),
            Depth::Optimised,
            &Pace::new(Urgency::Start, Vec::new()),
        )
        .await;
    assert!(matches!(changed, Err(Error::Unavailable(_))));
    assert_eq!(daemon.layer(wasm).await.unwrap().source, Source::Compiled, "it is not taken for a script");
}

/// A node on which even a service of a few bytes is worth baseline code.
fn node_with(baseline: Baseline) -> Node {
    let mut node = Node::new();
    node.config.modules.baseline = baseline;
    node.config.modules.baseline_bytes_min = 1;
    node
}

impl Daemon {
    /// Has optimising compiles that no start waits for wait for us.
    async fn hold_optimising(&self) -> Turn {
        self.modules.loader.compiler.ahead_turns.wait(&Pace::new(Urgency::Ahead, Vec::new())).await
    }

    async fn ahead(&self, wasm: Vec<u8>) -> Result<Loaded> {
        self.modules.load_ahead(image(wasm), None).await
    }

    fn baseline_compiles(&self, result: &str) -> u64 {
        self.metrics.compiles.baseline_results.with_label_values(&[result]).get()
    }

    /// Of all results.
    fn baseline_processes(&self) -> u64 {
        self.metrics.compiles.baseline_seconds.get_sample_count()
    }

    fn swaps(&self, result: &str) -> u64 {
        self.metrics.modules.swaps.with_label_values(&[result]).get()
    }

    /// Waits until so many modules have other code, or will not get it.
    async fn wait_for_swaps(&self, result: &str, count: u64) {
        while self.swaps(result) < count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

fn tier(loaded: &Loaded) -> Tier {
    loaded.program.now().tier()
}

#[tokio::test]
async fn a_service_starts_on_baseline_code_and_is_given_better_code_once() {
    let node = node_with(Baseline::Services);
    let daemon = node.daemon();
    let place = node.place();
    daemon.write(&samples::service());
    let optimising = daemon.hold_optimising().await;
    let first = daemon.load(Some(place)).await.unwrap();
    assert_eq!((first.source, tier(&first)), (Source::Compiled, Tier::Baseline));
    assert!(first.compile_time.is_some_and(|time| time > Duration::ZERO));
    assert!(!first.program.now().fits_pool());
    // Ten more while it has nothing better.
    for _ in 0..5 {
        let warm = daemon.modules.warm(&place).unwrap();
        assert!(Arc::ptr_eq(&first.program, &warm.program));
        assert!(Arc::ptr_eq(&first.program, &daemon.load(None).await.unwrap().program));
    }
    assert_eq!((daemon.baseline_compiles("ok"), daemon.compiles("ok"), daemon.swaps("done")), (1, 0, 0));
    assert!(daemon.modules.inventory().compiled[0].baseline);
    assert_eq!(daemon.modules.inventory().compiling.len(), 1);
    assert_eq!(node.artifacts().len(), 0, "baseline code is in memory only");
    let old = Arc::downgrade(&first.program.now());

    drop(optimising);
    daemon.wait_for_swaps("done", 1).await;
    assert_eq!(tier(&first), Tier::Optimised);
    assert!(first.program.now().fits_pool());
    assert!(old.upgrade().is_none(), "nobody holds the baseline code any more");
    let warm = daemon.modules.warm(&place).unwrap();
    assert_eq!((warm.source, tier(&warm)), (Source::Warm, Tier::Optimised));
    assert!(!daemon.modules.inventory().compiled[0].baseline);
    assert_eq!((daemon.baseline_compiles("ok"), daemon.compiles("ok"), daemon.swaps("done")), (1, 1, 1));
    assert_eq!((node.artifacts().len(), daemon.metrics.modules.prepared.get()), (1, 1));

    let daemon = node.daemon();
    let known = daemon.modules.known(&place).await.unwrap().unwrap();
    assert_eq!((known.source, tier(&known)), (Source::Disk, Tier::Optimised));
    assert_eq!((daemon.baseline_processes(), daemon.compiles("ok")), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_starts_at_once_are_one_compile_of_each() {
    let daemon = node_with(Baseline::Services).daemon();
    let loads: Vec<_> = (0..50)
        .map(|_| {
            let modules = daemon.modules.clone();
            let origin = image(samples::service());
            tokio::spawn(async move { modules.load(origin, None, Owner::default()).await })
        })
        .collect();
    for load in loads {
        load.await.unwrap().unwrap();
    }
    daemon.wait_for_swaps("done", 1).await;
    assert_eq!((daemon.baseline_compiles("ok"), daemon.compiles("ok"), daemon.swaps("done")), (1, 1, 1));
    assert!(daemon.modules.loader.loads.lock().is_empty());
}

#[tokio::test]
async fn a_start_does_not_wait_for_a_compile_ahead_whose_code_it_gets_later() {
    let daemon = node_with(Baseline::Services).daemon();
    let optimising = daemon.hold_optimising().await;
    let ahead = daemon.ahead(samples::service());
    tokio::pin!(ahead);
    while daemon.modules.loader.loads.lock().is_empty() {
        assert!(futures_util::poll!(&mut ahead).is_pending());
        tokio::task::yield_now().await;
    }
    let start = daemon.layer(samples::service()).await.unwrap();
    assert_eq!(tier(&start), Tier::Baseline);
    assert!(futures_util::poll!(&mut ahead).is_pending(), "it is not content with baseline code");
    drop(optimising);
    assert_eq!(tier(&ahead.await.unwrap()), Tier::Optimised);
    daemon.wait_for_swaps("done", 1).await;
    assert_eq!((tier(&start), daemon.compiles("ok")), (Tier::Optimised, 1));
}

#[tokio::test]
async fn a_compile_ahead_of_a_start_is_an_optimising_one() {
    let daemon = node_with(Baseline::All).daemon();
    assert_eq!(tier(&daemon.ahead(samples::service()).await.unwrap()), Tier::Optimised);
    assert_eq!((daemon.baseline_processes(), daemon.compiles("ok")), (0, 1));
    let start = daemon.layer(samples::service()).await.unwrap();
    assert_eq!((start.source, tier(&start), daemon.compiles("ok")), (Source::Warm, Tier::Optimised, 1));
}

#[tokio::test]
async fn what_the_baseline_compiler_does_not_take_goes_to_the_other() {
    let node = node_with(Baseline::Services);
    let daemon = node.daemon();
    let loaded = daemon.layer(samples::tail_calling_service()).await.unwrap();
    assert_eq!((loaded.source, tier(&loaded)), (Source::Compiled, Tier::Optimised));
    assert_eq!((daemon.baseline_compiles("invalid"), daemon.compiles("ok")), (1, 1));
    assert_eq!((daemon.swaps("done"), daemon.swaps("failed"), node.artifacts().len()), (0, 0, 1));
}

#[tokio::test]
async fn an_invalid_service_is_told_in_the_same_words() {
    let mut texts = Vec::new();
    for baseline in [Baseline::Never, Baseline::Services] {
        let daemon = node_with(baseline).daemon();
        texts.push(text(daemon.layer(samples::invalid_service()).await));
        assert_eq!(text(daemon.layer(samples::invalid_service()).await), texts[0]);
        assert_eq!(daemon.compiles("invalid"), 1, "it is remembered");
    }
    assert_eq!(texts[0], texts[1]);
}

#[tokio::test]
async fn baseline_code_is_for_what_the_configuration_says() {
    use Baseline::{All, Never, Services};
    use Tier::{Baseline as Slow, Optimised};
    let table = [
        (Never, samples::service(), Optimised, 0),
        (Services, samples::service(), Slow, 1),
        (Services, samples::command_component(), Optimised, 1),
        (Services, samples::command(1), Optimised, 0),
        (All, samples::service(), Slow, 1),
        (All, samples::command_component(), Slow, 1),
        (All, samples::command(1), Slow, 1),
    ];
    for (baseline, wasm, want, processes) in table {
        let node = node_with(baseline);
        let daemon = node.daemon();
        let optimising = daemon.hold_optimising().await;
        assert_eq!(tier(&daemon.layer(wasm.clone()).await.unwrap()), want, "{baseline:?}");
        assert_eq!(daemon.baseline_processes(), processes, "{baseline:?}");
        assert_eq!(daemon.baseline_compiles("unwanted"), u64::from(want == Optimised) * processes);
        drop(optimising);
    }
    let mut small = node_with(All);
    small.config.modules.baseline_bytes_min = samples::service().len() as u64 + 1;
    let daemon = small.daemon();
    assert_eq!(tier(&daemon.layer(samples::service()).await.unwrap()), Optimised);
    assert_eq!(daemon.baseline_processes(), 0);
}

#[tokio::test]
async fn a_function_that_is_called_by_name_has_optimised_code() {
    let node = node_with(Baseline::Services);
    let daemon = node.daemon();
    daemon.write(&samples::service());
    let (plain, named) = (Place([1; 32]), Place([2; 32]));
    let optimising = daemon.hold_optimising().await;
    assert_eq!(tier(&daemon.load(Some(plain)).await.unwrap()), Tier::Baseline);
    let known = KnownModule { digest: Digest::of(&samples::service()), export: Some("run".into()) };
    daemon.modules.loader.places.learn(named, known);
    assert!(daemon.modules.warm(&named).is_none());
    assert!(daemon.modules.known(&named).await.unwrap().is_none());
    let origin = daemon.find("/app.wasm#run").await;
    let called = daemon.modules.load(origin, Some(named), Owner::default()).await.unwrap();
    assert_eq!(tier(&called), Tier::Optimised);
    drop(optimising);
    daemon.wait_for_swaps("done", 1).await;
    assert_eq!((daemon.compiles("ok"), daemon.baseline_compiles("ok")), (1, 1));
}

#[tokio::test]
async fn a_module_that_cannot_be_optimised_goes_on_and_the_next_start_tries_again() {
    let node = node_with(Baseline::Services);
    let daemon = node.daemon();
    let (wasm, loader) = (samples::service(), &daemon.modules.loader);
    let digest = Digest::of(&wasm);
    let optimising = daemon.hold_optimising().await;
    // A compile ahead, of a file that will have changed when its turn comes.
    daemon.write(b"#!/bin/sh\n");
    let changed = CompileInput::Origin { origin: Arc::new(daemon.find("/app.wasm").await), is_read: true };
    let ahead = loader.join_load(digest, Some(changed), Depth::Optimised, &Pace::new(Urgency::Ahead, Vec::new()));
    let first = daemon.layer(wasm.clone()).await.unwrap();
    drop(optimising);
    assert!(ahead.await.is_err());
    daemon.wait_for_swaps("failed", 1).await;
    assert_eq!(tier(&first), Tier::Baseline);
    let second = daemon.layer(wasm).await.unwrap();
    assert!(Arc::ptr_eq(&first.program, &second.program));
    daemon.wait_for_swaps("done", 1).await;
    assert_eq!((tier(&first), daemon.baseline_compiles("ok"), daemon.compiles("ok")), (Tier::Optimised, 1, 1));
}
