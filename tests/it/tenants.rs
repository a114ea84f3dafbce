//! Containers at their limits, and others beside them that are not affected.

use std::fs;
use std::path::{Path, PathBuf};

use hearth_tests::{Guest, Image, LONG, Layer, SHORT, World, eventually};
use serde_json::Value;

use crate::{only_on_hearth, skip_unless};

/// Opens `/etc` until that fails, then sleeps for an hour.
const OPENS: &str = r#"(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "etc")
  (func (export "_start")
    (loop $again
      (br_if $again (i32.eqz (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 3) (i32.const 0)
        (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 64)))))
    (i32.store (i32.const 144) (i32.const 1))
    (i64.store (i32.const 152) (i64.const 3600000000000))
    (drop (call $poll (i32.const 128) (i32.const 256) (i32.const 1) (i32.const 300)))))"#;

/// Makes sets of headers of 60,000 bytes for ever.
const HEADERS: &str = r#"(component
  (import "wasi:http/types@0.2.0" (instance $types
    (export "fields" (type $fields (sub resource)))
    (type $error (variant (case "invalid-syntax") (case "forbidden") (case "immutable")))
    (export "header-error" (type $header-error (eq $error)))
    (export "[constructor]fields" (func (result (own $fields))))
    (export "[method]fields.append" (func (param "self" (borrow $fields)) (param "name" string)
      (param "value" (list u8)) (result (result (error $header-error)))))))
  (core module $memory (memory (export "memory") 2))
  (core instance $memory (instantiate $memory))
  (core func $new (canon lower (func $types "[constructor]fields")))
  (core func $append (canon lower (func $types "[method]fields.append") (memory $memory "memory")))
  (core module $program
    (import "memory" "memory" (memory 2))
    (import "types" "new" (func $new (result i32)))
    (import "types" "append" (func $append (param i32 i32 i32 i32 i32 i32)))
    (func (export "run") (result i32)
      (memory.fill (i32.const 0) (i32.const 120) (i32.const 60100))
      (loop $again
        (call $append (call $new) (i32.const 0) (i32.const 1) (i32.const 16) (i32.const 60000) (i32.const 70000))
        (br $again))
      (i32.const 0)))
  (core instance $program (instantiate $program
    (with "memory" (instance $memory))
    (with "types" (instance (export "new" (func $new)) (export "append" (func $append))))))
  (func $run (result (result)) (canon lift (core func $program "run")))
  (instance $cli (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $cli)))"#;

/// A program in WebAssembly's text format.
fn wasm(text: &str) -> Vec<u8> {
    wat::parse_str(text).expect("the text is well-formed")
}

/// One kind of a task's budget, as `hearthctl inspect` has it.
fn budget(world: &World, id: &str, kind: &str) -> Value {
    let details = world.ask(&["inspect", id]);
    let found = details["budgets"].as_array().and_then(|all| all.iter().find(|budget| budget["kind"] == kind));
    found.unwrap_or_else(|| panic!("no {kind} in {details}")).clone()
}

#[test]
fn a_container_with_all_its_descriptors_is_told_so_and_others_open_files() {
    only_on_hearth!();
    let world = World::configured("[tenant]\ndescriptors_max = 16\n");
    let layer = Layer::new().file("/opens.wasm", 0o755, wasm(OPENS)).file("/etc/motd", 0o644, "welcome");
    let greedy = world.import(&Image::scratch("hearth.test/greedy:1").layer(layer).entrypoint(["/opens.wasm"]));
    let attacker = world.run(&greedy, "greedy").spawn();
    eventually("it has all that it may have", SHORT, || {
        let has = world.task_status("greedy").is_some().then(|| budget(&world, "greedy", "descriptors"))?;
        (has["used"] == 16 && has["refused"].as_u64() >= Some(1)).then_some(())
    });
    let layer = Layer::new().file("/files.wasm", 0o755, Guest::FILES.wasm_bytes()).file("/etc/motd", 0o644, "welcome");
    let files = world.import(&Image::scratch("hearth.test/files:1").layer(layer).entrypoint(["/files.wasm"]));
    let output = world.run(&files, "other").args(["hoard", "/etc/motd", "15", ",", "read", "/etc/motd"]).ok();
    assert_eq!(output.stdout(), "15\nwelcome");
    let refused = world.metrics().sum("hearth_tenant_refused_total", &[("kind", "descriptors")]);
    assert!(refused >= 1.0, "{refused}");
    assert_eq!(world.metrics().sum("hearth_tenant_largest", &[("kind", "descriptors")]), 16.0);
    world.kill("greedy", "SIGKILL").ok();
    let output = attacker.wait(SHORT).assert_code(137);
    assert!(output.stderr().contains("refused: the container has as many open files"), "{output}");
    assert!(output.stderr().contains("16 (tenant.descriptors_max"), "{output}");
}

#[test]
fn headers_that_the_daemon_keeps_for_a_component_count_as_its_memory() {
    only_on_hearth!();
    let world = World::new();
    let image = world.import(&Image::of_file("headers", "/headers.wasm", wasm(HEADERS)));
    let limit = ["--memory-limit".to_owned(), (32 << 20).to_string()];
    let output = world.run(&image, "headers").flags(limit).run().assert_code(137);
    assert!(output.stderr().contains("handles (headers, requests, bodies)"), "{output}");
    assert!(output.stderr().contains("out of memory: its limit is 33554432 bytes"), "{output}");
    world.run(&world.program(&Guest::HELLO), "hello").ok();
}

#[test]
fn address_space_is_refused_before_a_guest_beyond_the_pool_is_made() {
    only_on_hearth!();
    let world = World::configured("[engine]\npool_slots = 1\n[tenant]\naddress_space_bytes_max = 30_000_000_000\n");
    world.run(&world.program(&Guest::SLEEP), "sleep").args(["3600"]).detach().ok();
    let text = format!("(module {} (func (export \"_start\")))", "(memory 0)".repeat(10));
    let image = world.import(&Image::of_file("memories", "/memories.wasm", wasm(&text)));
    world.run(&image, "memories").run().assert_fault(&["30000000000", "tenant.address_space_bytes_max"]);
    // One memory is no tenth of that.
    world.run(&world.program(&Guest::HELLO), "hello").ok();
}

#[test]
fn near_its_memory_limit_the_daemon_ends_the_container_most_over_its_share_and_lives() {
    only_on_hearth!();
    const MIB: u64 = 1 << 20;
    let world = World::configured("[memory]\nrefuse_percent = 50\nend_percent = 80\n");
    let (hierarchy, file) = match Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        true => ("/sys/fs/cgroup", "memory.max"),
        false => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
    };
    let group = PathBuf::from(format!("{hierarchy}{}/daemon", world.machine().cgroup()));
    let made = fs::create_dir_all(&group).is_ok() && group.join(file).exists();
    skip_unless!(made, "this machine has no control groups of memory");
    let hello = world.program(&Guest::HELLO);
    world.run(&hello, "first").ok();
    let mut small = world.run(&world.program(&Guest::GROW), "small").args(["10", "3600"]).spawn();
    small.wait_for_stdout("got 10 MiB");
    let tools = [Guest::SLEEP, Guest::GROW]
        .iter()
        .fold(Layer::new(), |layer, guest| layer.file(&format!("/{}.wasm", guest.name()), 0o755, guest.wasm_bytes()));
    let image = world.import(&Image::scratch("hearth.test/tools:1").layer(tools).entrypoint(["/sleep.wasm"]));
    let mut greedy = world.run(&image, "greedy").args(["3600"]).spawn();
    greedy.wait_for_stdout("asleep");
    // Memory that is charged already stays with the former group.
    fs::write(group.join(file), (400 * MIB).to_string()).expect("root may change it");
    let pid = world.hearthd().pid().expect("it runs");
    fs::write(group.join("cgroup.procs"), pid.to_string()).expect("root may move it");
    let grow = |id: &str, mebibytes: &str| {
        world.ctr(["tasks", "exec", "--exec-id", id, "greedy", "/grow.wasm", mebibytes, "3600"]).spawn()
    };
    let first = grow("first", "230");
    eventually("the daemon refuses containers", LONG, || {
        (world.metrics().sum("hearth_memory_shortage", &[]) == 1.0).then_some(())
    });
    world.run(&hello, "refused").run().assert_fault(&["near its memory limit", "MemoryMax="]);
    let second = grow("second", "120");
    let output = greedy.wait(LONG).assert_code(137);
    assert!(output.stderr().contains("most over its share"), "{output}");
    for exec in [first, second] {
        exec.wait(SHORT).assert_code(137);
    }
    eventually("there is room again", LONG, || {
        (world.metrics().sum("hearth_memory_shortage", &[]) == 0.0).then_some(())
    });
    world.run(&hello, "later").ok();
    assert!(world.task_status("small").is_some(), "the other one still runs");
    world.kill("small", "SIGKILL").ok();
    small.wait(SHORT).assert_code(137);
    // The daemon's own, and those that it has made meanwhile.
    eventually("the group is empty", SHORT, || {
        for pid in fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default().lines() {
            // It may have ended.
            let _ = fs::write(format!("{hierarchy}/cgroup.procs"), pid);
        }
        fs::remove_dir(&group).ok()
    });
}

#[test]
fn a_first_start_in_another_namespace_does_not_wait_for_the_end_of_long_compiles() {
    only_on_hearth!();
    let world = World::configured("[modules]\ncompile_turn_ms = 50\n");
    let big = Guest::BIG.wasm_bytes();
    let images: Vec<_> = (0..4)
        .map(|number: u8| {
            // A section that only makes it another module: its id, its length, its name.
            let bytes = [big.as_slice(), &[0, 2, 1, b'a' + number]].concat();
            world.import(&Image::of_file(&format!("big-{number}"), "/big.wasm", bytes))
        })
        .collect();
    let hello = Image::of(&Guest::HELLO, world.runtime());
    let hello = world.import_in("quiet", &hello);
    let mut long: Vec<_> =
        images.iter().enumerate().map(|(number, image)| world.run(image, &format!("big-{number}")).spawn()).collect();
    eventually("they are compiled, or wait for it", SHORT, || {
        (world.metrics().sum("hearth_compiles_pending", &[]) >= 4.0).then_some(())
    });
    world.ctr_in("quiet", ["run", "--rm", "--runtime", world.runtime().name(), &hello.name, "hello"]).ok();
    let left = long.iter_mut().filter_map(|run| run.is_running().then_some(())).count();
    assert!(left >= 2, "{left} of four were not compiled yet");
    for run in long {
        run.wait(10 * SHORT).assert_code(hearth_tests::guests::BIG_CODE);
    }
}
