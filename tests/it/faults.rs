//! Faults are reported in `ctr`'s output, with the remedy, and harm no other task.

use hearth_tests::daemons::containerd_major;
use hearth_tests::{Guest, Image, Layer, NewContainer, SHORT, World, api, eventually};
use serde_json::json;

use crate::only_on_hearth;

/// Runs an image that must fail with a message with these words. Then checks that no task of it is left and that other
/// images still run.
#[track_caller]
fn fault(world: &World, image: &Image, words: &[&str]) {
    let image = world.import(image);
    world.run(&image, "faulty").run().assert_fault(words);
    unharmed(world);
}

#[track_caller]
fn unharmed(world: &World) {
    assert_eq!(world.tasks(), [], "no task is left of it");
    let hello = world.program(&Guest::HELLO);
    world.run(&hello, "healthy").ok();
}

#[test]
fn a_file_that_is_not_wasm_is_named() {
    only_on_hearth!();
    let world = World::new();
    let text = Image::of_file("text", "/script.sh", "#!/bin/sh\necho hello\n");
    fault(&world, &text, &["/script.sh", "not", "wasm"]);
    let empty = Image::of_file("empty", "/empty.wasm", "");
    fault(&world, &empty, &["/empty.wasm", "not", "wasm"]);
}

#[test]
fn a_native_binary_is_named() {
    only_on_hearth!();
    let world = World::new();
    let native = Guest::EXIT.native_bytes();
    fault(&world, &Image::of_file("native", "/bin/tool", native.clone()), &["/bin/tool", "ELF", "linux/amd64"]);
    // Another machine's: e_machine 0xB7 is AArch64.
    let mut foreign = native;
    foreign[18] = 0xB7;
    fault(&world, &Image::of_file("foreign", "/bin/tool", foreign), &["/bin/tool", "ELF", "arm64"]);
}

#[test]
fn a_truncated_module_is_named() {
    only_on_hearth!();
    let world = World::new();
    let mut bytes = Guest::HELLO.wasm_bytes();
    bytes.truncate(bytes.len() / 2);
    fault(&world, &Image::of_file("truncated", "/half.wasm", bytes), &["/half.wasm", "offset"]);
}

#[test]
fn a_missing_file_is_named() {
    let world = World::new();
    let layer = Layer::new().file("/present", 0o755, Guest::EXIT.bytes_for(world.runtime()));
    let image = Image::scratch("hearth.test/missing:1").layer(layer).entrypoint(["/absent.wasm"]);
    fault(&world, &image, &["/absent.wasm", "no such file"]);
    let image = world.import(&image);
    let unfound = world.run(&image, "unfound").command(["absent"]).run();
    unfound.assert_fault(&["absent", "PATH"]);
    unharmed(&world);
}

#[test]
fn no_arguments_at_all_is_named() {
    only_on_hearth!();
    let world = World::new();
    let layer = Layer::new().file("/present", 0o755, Guest::EXIT.wasm_bytes());
    let image = Image::scratch("hearth.test/empty:1").layer(layer);
    fault(&world, &image, &["args"]);
}

#[test]
fn a_program_outside_the_root_is_refused() {
    only_on_hearth!();
    let world = World::new();
    let outside = world.write("outside.wasm", &Guest::HELLO.wasm_bytes()).display().to_string();
    let up = "../".repeat(30);
    let layer = Layer::new()
        .file("/inside.wasm", 0o755, Guest::HELLO.wasm_bytes())
        .symlink("/absolute.wasm", &outside)
        .symlink("/up.wasm", &format!("{up}{}", outside.trim_start_matches('/')))
        .symlink("/loop.wasm", "/loop.wasm");
    let image = Image::scratch("hearth.test/outside:1").layer(layer).entrypoint(["/inside.wasm"]);
    let image = world.import(&image);
    let dotted = format!("/{up}{}", outside.trim_start_matches('/'));
    for (index, path) in ["/absolute.wasm", "/up.wasm", "/loop.wasm", &outside, &dotted].into_iter().enumerate() {
        let refused = world.run(&image, &format!("outside-{index}")).command([path]).run();
        let refused = refused.assert_fault(&[path]);
        assert!(refused.stdout.is_empty(), "{refused}");
    }
    unharmed(&world);
}

#[test]
fn an_unknown_import_is_named() {
    only_on_hearth!();
    let world = World::new();
    fault(&world, &Image::of(&Guest::UNKNOWN_IMPORT, world.runtime()), &["/unknown-import.wasm", "env", "nope"]);
}

#[test]
fn a_missing_entry_point_is_named() {
    only_on_hearth!();
    let world = World::new();
    fault(&world, &Image::of(&Guest::NO_ENTRY, world.runtime()), &["/no-entry.wasm", "_start"]);
    let image = world.program(&Guest::EXPORTS);
    world.run(&image, "absent").command(["/exports.wasm#absent"]).run().assert_fault(&["absent"]);
    unharmed(&world);
}

#[test]
fn a_world_that_is_not_supported_is_named() {
    only_on_hearth!();
    let world = World::new();
    let calculator = Image::of(&Guest::CALCULATOR, world.runtime());
    fault(&world, &calculator, &["/calculator.wasm", "stories:calculator/operations", "wasi:cli/run"]);
}

#[test]
fn a_trap_is_told_on_stderr_and_ends_the_task() {
    only_on_hearth!();
    let world = World::new();
    let image = world.program(&Guest::TRAP);
    let before = world.metrics().sum("hearth_traps_total", &[]);
    let output = world.run(&image, "trap").run();
    let output = output.assert_code(134);
    assert!(output.stderr().contains("unreachable"), "{output}");
    assert_eq!(world.metrics().sum("hearth_traps_total", &[]), before + 1.0);
    unharmed(&world);
}

#[test]
fn a_stack_that_overflows_traps_and_harms_no_other_task() {
    only_on_hearth!();
    let world = World::new();
    let image = world.program(&Guest::RECURSE);
    let output = world.run(&image, "recurse").run();
    assert!(!output.status.success(), "{output}");
    assert!(output.stderr().contains("call stack exhausted"), "{output}");
    unharmed(&world);
}

#[test]
fn memory_over_the_limit_is_refused_to_the_guest() {
    only_on_hearth!();
    let world = World::new();
    let image = world.program(&Guest::GROW);
    let limit = (32 << 20).to_string();
    let within = world.run(&image, "within").flags(["--memory-limit", &limit]).args(["8"]).ok();
    assert_eq!(within.stdout(), "got 8 MiB\n");
    let over = world.run(&image, "over").flags(["--memory-limit", &limit]).run();
    let over = over.assert_code(9);
    let got: u32 = over.stdout().split(' ').nth(1).and_then(|n| n.parse().ok()).expect("it says how much");
    assert!((16..32).contains(&got), "{over}");
    unharmed(&world);
}

#[test]
fn a_module_that_starts_over_its_memory_limit_is_named() {
    only_on_hearth!();
    let world = World::new();
    let image = world.program(&Guest::BIG_MEMORY);
    let limit = (32 << 20).to_string();
    let output = world.run(&image, "over").flags(["--memory-limit", &limit]).run();
    output.assert_fault(&["memory", &limit]);
    world.run(&image, "unlimited").ok();
    unharmed(&world);
}

#[test]
fn a_full_pool_falls_back_and_then_names_its_limits() {
    only_on_hearth!();
    let world = World::configured("[engine]\npool_slots = 2\non_demand_max = 2\n");
    let sleep = world.program(&Guest::SLEEP);
    let ids: Vec<String> = (0..4).map(|index| format!("sleep-{index}")).collect();
    for id in &ids {
        world.run(&sleep, id).args(["3600"]).detach().ok();
    }
    assert_eq!(world.metrics().sum("hearth_pool_slots", &[("state", "free")]), 0.0);
    assert_eq!(world.metrics().sum("hearth_on_demand_instances", &[]), 2.0);
    let refused = world.run(&sleep, "fifth").args(["3600"]).run();
    refused.assert_fault(&["engine.pool_slots", "engine.on_demand_max"]);
    for id in &ids {
        world.kill(id, "SIGKILL").ok();
        world.wait_for_status(id, "STOPPED");
    }
    eventually("the slots are free again", SHORT, || {
        (world.metrics().sum("hearth_pool_slots", &[("state", "free")]) == 2.0).then_some(())
    });
    world.run(&sleep, "sixth").args(["0"]).ok();
}

#[test]
fn a_malformed_spec_is_named() {
    only_on_hearth!();
    let world = World::new();
    let api = world.api();
    let root = world.write("root/.keep", b"").parent().expect("it is a directory").display().to_string();
    let mut no_process = api::spec(&["/x.wasm"], &[]);
    no_process.as_object_mut().expect("it is one").remove("process");
    let cases = [
        ("no-process", no_process.to_string(), "process"),
        (
            "args-no-list",
            json!({"ociVersion": "1.0.2", "process": {"args": "x", "cwd": "/"}, "root": {"path": root}}).to_string(),
            "args",
        ),
        (
            "relative-cwd",
            json!({"ociVersion": "1.0.2", "process": {"args": ["x"], "cwd": "w"}, "root": {"path": root}}).to_string(),
            "process.cwd",
        ),
        (
            "root-no-path",
            json!({"ociVersion": "1.0.2", "process": {"args": ["x"], "cwd": "/"}, "root": {"path": ""}}).to_string(),
            "root.path",
        ),
    ];
    for (id, spec, word) in cases {
        let runtime = world.runtime().name();
        api.create_container(NewContainer { id, runtime, spec: spec.into_bytes(), ..NewContainer::default() });
        let error = api.create_task(id, ["", "", ""]).expect_err(id);
        // containerd 2.x reads the arguments itself first, and names them in its own words.
        let place = if id == "args-no-list" && containerd_major() >= 2 { "spec" } else { "config.json" };
        assert!(error.message().contains(word) && error.message().contains(place), "{id}: {error}");
        api.delete_container(id);
    }
    unharmed(&world);
}

#[test]
fn a_spec_without_a_root_is_named_by_ctr() {
    only_on_hearth!();
    let world = World::new();
    let spec =
        json!({"ociVersion": "1.0.2", "process": {"args": ["/x.wasm"], "cwd": "/"}, "root": {"path": "/no/such/root"}});
    let path = world.write("spec.json", spec.to_string().as_bytes()).display().to_string();
    let run = ["run", "--rm", "--runtime", world.runtime().name(), "--config", &path, "rootless"];
    world.ctr(run).run().assert_fault(&["/no/such/root"]);
    unharmed(&world);
}
