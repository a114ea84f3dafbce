//! CNCF Wasm OCI artifacts, read from containerd's content store.
//!
//! `ctr run IMAGE` refuses them on every version of containerd, before it starts a shim: "unknown image config media
//! type" (1.6: "mismatched image rootfs and manifest layers"). So the container is made as CRI makes it, with the
//! image's name and an empty snapshot.

use hearth_tests::{Guest, Image, NewContainer, World, api};

use crate::only_on_hearth;

/// Makes a container of an artifact as CRI does and runs it to its end.
#[track_caller]
fn run(world: &World, image: &str, id: &str, arguments: &[&str]) -> hearth_tests::Output {
    world.ctr(["snapshots", "prepare", id, ""]).ok();
    let spec = api::spec(arguments, &[("io.kubernetes.cri.image-name", image)]).to_string().into_bytes();
    let runtime = world.runtime().name();
    world.api().create_container(NewContainer { id, image, snapshot: id, runtime, spec });
    let output = world.ctr(["tasks", "start", id]).run();
    world.ctr(["tasks", "rm", "--force", id]).run();
    world.ctr(["containers", "rm", id]).ok();
    output
}

#[test]
fn a_module_artifact_runs() {
    only_on_hearth!();
    let world = World::new();
    let image = world.import(&Image::artifact("hearth.test/module:1", "wasip1", Guest::HELLO.wasm_bytes()));
    for id in ["first", "second"] {
        let output = run(&world, &image.name, id, &["/", "one"]).assert_code(0);
        assert!(output.stdout().contains("hello from C\n") && output.stdout().contains("arg 1: one\n"), "{output}");
    }
    assert_eq!(world.metrics().sum("hearth_compiles_total", &[]), 1.0);
}

#[test]
fn a_component_artifact_runs() {
    only_on_hearth!();
    let world = World::new();
    let image = world.import(&Image::artifact("hearth.test/component:1", "wasip2", Guest::EXIT.component_bytes()));
    run(&world, &image.name, "ill", &["exit", "7"]).assert_code(1);
    run(&world, &image.name, "well", &["exit", "0"]).assert_code(0);
}

#[test]
fn an_artifact_that_is_no_wasm_is_named() {
    only_on_hearth!();
    let world = World::new();
    let image = world.import(&Image::artifact("hearth.test/broken:1", "wasip1", "no wasm at all"));
    run(&world, &image.name, "broken", &["/"]).assert_fault(&["wasm"]);
}
