//! Compiling ahead: an image's program is compiled when the image is imported, not when it is started.

use hearth_tests::daemons::HearthdOptions;
use hearth_tests::world::NAMESPACE;
use hearth_tests::{Guest, Image, SHORT, World, eventually};

use crate::only_on_hearth;

fn world() -> World {
    World::with(HearthdOptions { ahead: vec![NAMESPACE.into()], ..HearthdOptions::default() })
}

/// Waits until this number of images have this result, since the start of the daemon's process.
#[track_caller]
fn wait_for(world: &World, result: &str, images: f64) {
    eventually(&format!("{images} images are {result}"), SHORT, || {
        let seen = world.metrics().sum("hearth_images_ahead_total", &[("result", result)]);
        (seen >= images).then_some(())
    });
}

fn compiles(world: &World) -> f64 {
    world.metrics().sum("hearth_compiles_total", &[])
}

/// Starts that waited for a compile.
fn compiled_starts(world: &World) -> f64 {
    world.metrics().sum("hearth_module_lookups_total", &[("source", "compiled")])
}

#[test]
fn the_first_start_of_an_image_that_was_imported_compiles_nothing() {
    only_on_hearth!();
    let world = world();
    let image = world.program(&Guest::HELLO);
    wait_for(&world, "compiled", 1.0);
    let before = (compiles(&world), compiled_starts(&world));
    world.run(&image, "first").ok();
    assert_eq!((compiles(&world), compiled_starts(&world)), before);
    assert_eq!(before.0, 1.0);
}

#[test]
fn images_imported_while_the_daemon_was_away_are_compiled_when_it_is_back() {
    only_on_hearth!();
    let mut world = world();
    world.stop_hearthd();
    let image = world.program(&Guest::EXIT);
    world.start_hearthd();
    wait_for(&world, "compiled", 1.0);
    world.run(&image, "first").args(["5"]).run().assert_code(5);
    assert_eq!(compiles(&world), 1.0);

    world.kill_hearthd();
    world.start_hearthd();
    wait_for(&world, "known", 1.0);
    // No file was read again: the store knows the module by the image's manifest.
    assert_eq!(world.metrics().sum("hearth_module_reads_total", &[]), 0.0);
    world.run(&image, "second").args(["6"]).run().assert_code(6);
    assert_eq!(compiles(&world), 0.0);
}

#[test]
fn which_images_are_compiled_ahead_is_read_again() {
    only_on_hearth!();
    let world = World::new();
    let file = world.layout().hearthd_config();
    let text = std::fs::read_to_string(&file).unwrap();
    let none = world.program(&Guest::EXIT);
    let follow = |namespaces: &str| {
        assert!(text.contains("namespaces = []\n"), "{text}");
        std::fs::write(&file, text.replace("namespaces = []\n", &format!("namespaces = {namespaces}\n"))).unwrap();
        world.hearthctl(["reload"]).ok();
    };
    assert_eq!(compiles(&world), 0.0);
    // An image that exists already, and one that is imported later.
    follow(&format!("[{NAMESPACE:?}]"));
    wait_for(&world, "compiled", 1.0);
    let later = world.program(&Guest::HELLO);
    wait_for(&world, "compiled", 2.0);
    world.run(&none, "first").args(["5"]).run().assert_code(5);
    world.run(&later, "second").ok();
    assert_eq!(compiles(&world), 2.0);
    // No namespace is followed any more: a start compiles.
    follow("[]");
    let unforeseen = world.program(&Guest::SLEEP);
    let before = compiled_starts(&world);
    world.run(&unforeseen, "third").args(["0"]).ok();
    assert_eq!(compiled_starts(&world), before + 1.0);
}

#[test]
fn a_containerd_that_restarts_is_followed_again() {
    only_on_hearth!();
    let mut world = world();
    world.kill_containerd();
    world.start_containerd();
    world.program(&Guest::HELLO);
    wait_for(&world, "compiled", 1.0);
}

#[test]
fn an_artifact_is_compiled_ahead_and_a_native_image_is_let_be() {
    only_on_hearth!();
    let world = world();
    world.import(&Image::artifact("hearth.test/module:1", "wasip1", Guest::HELLO.wasm_bytes()));
    wait_for(&world, "compiled", 1.0);
    world.import(&Image::of_file("native", "/native", Guest::HELLO.native_bytes()));
    wait_for(&world, "not_wasm", 1.0);
    assert_eq!(compiles(&world), 1.0);
}

#[test]
fn faults_of_an_image_are_left_to_its_start() {
    only_on_hearth!();
    let world = world();
    let broken = world.import(&Image::of_file("broken", "/broken.wasm", "no wasm at all"));
    wait_for(&world, "failed", 1.0);
    world.run(&broken, "broken").run().assert_fault(&["/broken.wasm"]);
}
