//! The module store: which modules are compiled, found, read and kept.

use std::fs;

use hearth_tests::daemons::HearthdOptions;
use hearth_tests::{Guest, Image, LONG, Layer, World};

use crate::only_on_hearth;

/// Compiles, look-ups that found a module in memory, and files read, so far.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Counted {
    compiles: f64,
    warm: f64,
    disk: f64,
    reads: f64,
}

fn counted(world: &World) -> Counted {
    let metrics = world.metrics();
    let lookups = |source| metrics.sum("hearth_module_lookups_total", &[("source", source)]);
    Counted {
        compiles: metrics.sum("hearth_compiles_total", &[]),
        warm: lookups("warm"),
        disk: lookups("disk"),
        reads: metrics.sum("hearth_module_reads_total", &[]),
    }
}

#[test]
fn the_second_start_compiles_nothing_and_reads_no_file() {
    only_on_hearth!();
    let world = World::new();
    let image = world.program(&Guest::HELLO);
    world.run(&image, "first").ok();
    let first = counted(&world);
    assert_eq!(first.compiles, 1.0, "{first:?}");
    for index in 0..5 {
        world.run(&image, &format!("again-{index}")).ok();
    }
    let later = counted(&world);
    assert_eq!(later, Counted { warm: first.warm + 5.0, ..first });
}

#[test]
fn a_module_compiled_before_a_restart_of_the_daemon_is_found_on_disk() {
    only_on_hearth!();
    let mut world = World::new();
    let image = world.program(&Guest::HELLO);
    world.run(&image, "first").ok();
    for restart in 0..2 {
        if restart == 0 {
            world.stop_hearthd();
        } else {
            world.kill_hearthd();
        }
        world.start_hearthd();
        world.run(&image, &format!("after-{restart}")).ok();
        let after = counted(&world);
        assert_eq!((after.compiles, after.disk), (0.0, 1.0), "{after:?}");
        world.run(&image, &format!("again-{restart}")).ok();
        assert_eq!(counted(&world), Counted { warm: after.warm + 1.0, ..after });
    }
}

#[test]
fn one_module_in_two_images_is_compiled_once() {
    only_on_hearth!();
    let world = World::new();
    let one = world.program(&Guest::EXIT);
    let layer = Layer::new().file("/elsewhere/other.wasm", 0o755, Guest::EXIT.wasm_bytes());
    let two = Image::scratch("hearth.test/two:1").layer(layer).entrypoint(["/elsewhere/other.wasm"]);
    let two = world.import(&two);
    world.run(&one, "one").args(["3"]).run().assert_code(3);
    world.run(&two, "two").args(["4"]).run().assert_code(4);
    assert_eq!(counted(&world).compiles, 1.0);
}

#[test]
fn many_starts_of_a_new_module_wait_for_one_compile() {
    only_on_hearth!();
    let world = World::new();
    let image = world.import(&Image::of_file("big", "/big.wasm", Guest::BIG.wasm_bytes()));
    let runs: Vec<_> = (0..8).map(|index| world.run(&image, &format!("big-{index}")).spawn()).collect();
    for run in runs {
        run.wait(LONG).assert_code(hearth_tests::guests::BIG_CODE);
    }
    assert_eq!(counted(&world).compiles, 1.0);
}

#[test]
fn a_changed_file_in_a_container_is_a_new_module() {
    only_on_hearth!();
    let world = World::new();
    let image = world.program(&Guest::EXIT);
    world.run(&image, "same").args(["7"]).run().assert_code(7);
    // A container whose own upper layer has another program under the same path.
    let other = world.write("other.wasm", &Guest::HELLO.wasm_bytes()).display().to_string();
    let mount = format!("type=bind,src={other},dst=/exit.wasm,options=rbind:ro");
    let output = world.run(&image, "changed").flags(["--mount", &mount]).ok();
    assert!(output.stdout().starts_with("hello from C"), "{output}");
    world.run(&image, "same-again").args(["8"]).run().assert_code(8);
}

#[test]
fn damaged_artifacts_are_compiled_again() {
    only_on_hearth!();
    let mut world = World::new();
    let image = world.program(&Guest::EXIT);
    world.run(&image, "first").args(["7"]).run().assert_code(7);
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, Damage); 3] = [
        ("truncated", |bytes| bytes.truncate(bytes.len() / 2)),
        ("flipped", |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x40;
        }),
        ("emptied", Vec::clear),
    ];
    for (name, damage) in damages {
        world.stop_hearthd();
        let mut artifacts = regular_files(&world.layout().hearthd_root());
        // The contents of the lock file do not matter: the lock itself marks the owner.
        artifacts.retain(|path| path.extension().is_none_or(|extension| extension != "in-use"));
        assert!(!artifacts.is_empty(), "the store has an artifact");
        for path in &artifacts {
            let mut bytes = fs::read(path).expect("root reads it");
            damage(&mut bytes);
            fs::write(path, bytes).expect("root writes it");
        }
        world.start_hearthd();
        world.run(&image, name).args(["7"]).run().assert_code(7);
        let metrics = world.metrics();
        assert_eq!(metrics.sum("hearth_module_store_damaged_total", &[]), 1.0, "{name}");
        assert_eq!(metrics.sum("hearth_compiles_total", &[]), 1.0, "{name}");
    }
}

#[test]
fn a_full_disk_costs_the_cache_and_no_task() {
    only_on_hearth!();
    let options = HearthdOptions { module_store_bytes: Some(64 * 1024), ..HearthdOptions::default() };
    let world = World::with(options);
    let image = world.program(&Guest::HELLO);
    for id in ["first", "second"] {
        world.run(&image, id).ok();
    }
    let metrics = world.metrics();
    assert!(metrics.sum("hearth_module_store_write_failures_total", &[]) >= 1.0);
    assert!(world.hearthd_log().contains("No space left"), "the log names the reason");
}

/// The regular files under a directory.
fn regular_files(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            found.extend(regular_files(&entry.path()));
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    found
}
