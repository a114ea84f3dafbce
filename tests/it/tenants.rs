//! Containers at their limits, and others beside them that are not affected.

use hearth_tests::{Guest, Image, SHORT, World, eventually};

use crate::only_on_hearth;

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
