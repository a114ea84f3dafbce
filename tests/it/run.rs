use hearth_tests::*;

#[test]
fn hello_from_c() {
    let world = World::new();
    let image = world.import(&Image::of(&Guest::HELLO, world.runtime()));
    let output = world.run(&image, "hello").ok();
    println!("{output}");
    assert!(output.stdout().contains("hello from C"));
}
