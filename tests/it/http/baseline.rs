//! Services that were not compiled before: they run on code of the baseline compiler until the optimised code is ready.

use hearth_tests::{Guest, LONG, SHORT, World, eventually};

use super::client::{Client, get};
use super::{free_address, start, wait_for_flight};
use crate::only_on_hearth;

/// Small services use the baseline compiler, too. One thread compiles, so that the optimising compile of a large
/// service, and of all in the queue behind it, takes longer than the story needs.
const CONFIG: &str = "[modules]\nbaseline_bytes_min = 1\ncompile_threads = 1\n";

fn world(baseline: &str) -> World {
    World::configured(&format!("{CONFIG}{baseline}"))
}

fn baseline_compiles(world: &World) -> f64 {
    world.metrics().sum("hearth_baseline_compiles_total", &[("result", "ok")])
}

fn optimising_compiles(world: &World) -> f64 {
    world.metrics().sum("hearth_compiles_total", &[])
}

fn swaps(world: &World) -> f64 {
    world.metrics().sum("hearth_module_swaps_total", &[("result", "done")])
}

#[test]
fn a_service_answers_before_its_optimising_compile_is_done_and_loses_no_request_when_it_is() {
    only_on_hearth!();
    let world = world("");
    let (large, small) = (world.program(&Guest::JAVASCRIPT), world.program(&Guest::HTTP));
    let at = free_address();
    let service = start(&world, &large, "large", at, &[]);
    let mut client = Client::connect(at);
    assert_eq!(client.get("/").text(), "hello from JavaScript\n");
    assert_eq!((baseline_compiles(&world), optimising_compiles(&world)), (1.0, 0.0));
    let listed = world.hearthctl(["modules", "list"]).ok();
    assert!(listed.stdout().contains("not optimised yet"), "{listed}");

    // The optimising compile of a second service waits for that of the large one. Traps, limits and kills work on
    // baseline code as on any.
    let other_at = free_address();
    let other = start(&world, &small, "small", other_at, &["--memory-limit", "33554432"]);
    assert_eq!(get(other_at, "/count").text(), "1\n");
    assert_eq!(get(other_at, "/trap").status, 500);
    assert_eq!(get(other_at, "/grow").status, 500);
    let mut spinning = Client::connect(other_at);
    spinning.send(b"GET /spin HTTP/1.1\r\nHost: here\r\n\r\n");
    wait_for_flight(&world, 1.0);
    assert_eq!(get(other_at, "/count").text(), "1\n");
    assert_eq!((baseline_compiles(&world), swaps(&world)), (2.0, 0.0));
    world.kill("small", "SIGKILL").ok();
    let output = other.wait(SHORT).assert_code(137);
    assert!(output.stderr().contains("hearth: GET /grow: out of memory"), "{output}");
    wait_for_flight(&world, 0.0);

    let mut answered = 0;
    eventually("both have optimised code", LONG, || {
        assert_eq!(client.get("/").text(), "hello from JavaScript\n", "after {answered}");
        answered += 1;
        (swaps(&world) == 2.0).then_some(())
    });
    assert_eq!(client.get("/").text(), "hello from JavaScript\n");
    assert_eq!((baseline_compiles(&world), optimising_compiles(&world)), (2.0, 2.0));
    let metrics = world.metrics();
    assert_eq!(metrics.sum("hearth_http_requests_total", &[("code", "5xx")]), 2.0, "the requests that were to fail");
    world.kill("large", "SIGTERM").ok();
    service.wait(SHORT).assert_code(0);

    // The next start uses the optimised code.
    let service = start(&world, &large, "again", at, &[]);
    assert_eq!(get(at, "/").text(), "hello from JavaScript\n");
    assert_eq!((baseline_compiles(&world), optimising_compiles(&world), swaps(&world)), (2.0, 2.0, 2.0));
    world.kill("again", "SIGTERM").ok();
    service.wait(SHORT).assert_code(0);
}

#[test]
fn a_command_on_baseline_code_is_limited_killed_and_told_of_like_any() {
    only_on_hearth!();
    let world = world("baseline = \"all\"\n");
    let [spin, grow, trap, recurse] =
        [Guest::SPIN, Guest::GROW, Guest::TRAP, Guest::RECURSE].map(|guest| world.program(&guest));
    world.run(&spin, "spin").detach().ok();
    world.kill("spin", "SIGKILL").ok();
    world.wait_for_status("spin", "STOPPED");
    assert_eq!(world.finish("spin"), 137);
    world.run(&grow, "grow").flags(["--memory-limit", "33554432"]).run().assert_code(9);
    let output = world.run(&trap, "trap").run().assert_code(134);
    assert!(output.stderr().contains("unreachable"), "{output}");
    let output = world.run(&recurse, "recurse").run().assert_code(134);
    assert!(output.stderr().contains("call stack exhausted"), "{output}");
    assert_eq!(baseline_compiles(&world), 4.0);
}
