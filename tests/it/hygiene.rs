//! The tests leave nothing behind, however they end.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use hearth_tests::{Guest, Node, SHORT, World, eventually, leftovers};

#[test]
fn a_killed_test_leaves_nothing_behind() {
    is_killed("hygiene::a_test_that_waits_to_be_killed");
}

#[test]
fn a_killed_test_with_pods_leaves_nothing_behind() {
    is_killed("hygiene::a_test_with_pods_that_waits_to_be_killed");
}

/// Runs a test in a process of its own, kills it, and checks that nothing of it is left.
fn is_killed(story: &str) {
    let mut victim = Command::new(std::env::current_exe().expect("Linux knows"))
        .args(["--exact", "--ignored", "--nocapture", story])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("this program runs");
    let stdout = victim.stdout.take().expect("stdout is a pipe");
    let directory = BufReader::new(stdout)
        .lines()
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("victim in ").map(str::to_owned));
    let Some(directory) = directory else {
        panic!("the victim did not get as far as running tasks: {:?}", victim.wait());
    };
    assert_ne!(leftovers::under(&directory), Vec::<String>::new(), "it has daemons and a directory");
    victim.kill().expect("it is a child of ours");
    victim.wait().expect("it is a child of ours");
    let gone = hearth_tests::wait::within(SHORT, || leftovers::under(&directory).is_empty().then_some(()));
    assert!(gone.is_some(), "left behind:\n{}", leftovers::under(&directory).join("\n"));
}

#[test]
#[ignore = "a_killed_test_leaves_nothing_behind runs and kills it"]
fn a_test_that_waits_to_be_killed() {
    let world = World::new();
    let image = world.program(&Guest::SLEEP);
    world.run(&image, "sleeper").args(["3600"]).detach().ok();
    let mut foreground = world.run(&image, "foreground").args(["3600"]).spawn();
    foreground.wait_for_stdout("asleep");
    println!("victim in {}", world.machine().directory().display());
    eventually("the story kills this process", 4 * SHORT, || None::<()>);
}

/// Its pods have network namespaces, and cgroups on the stock runtime.
#[test]
#[ignore = "a_killed_test_with_pods_leaves_nothing_behind runs and kills it"]
fn a_test_with_pods_that_waits_to_be_killed() {
    let node = Node::new();
    let sleep = node.program(&Guest::SLEEP);
    let pods = [node.pod("one").run(), node.pod("two").run()];
    let sleepers: Vec<_> = pods.iter().map(|pod| pod.container("sleeper", &sleep).args(["3600"]).start()).collect();
    for sleeper in sleepers {
        sleeper.wait_for_stdout("asleep");
    }
    println!("victim in {}", node.machine().directory().display());
    eventually("the story kills this process", 4 * SHORT, || None::<()>);
}

#[test]
fn a_world_that_ends_well_leaves_nothing_behind() {
    let directory = {
        let world = World::new();
        let image = world.program(&Guest::SLEEP);
        world.run(&image, "sleeper").args(["3600"]).detach().ok();
        world.machine().directory().display().to_string()
    };
    assert_eq!(leftovers::under(&directory), Vec::<String>::new());
}
