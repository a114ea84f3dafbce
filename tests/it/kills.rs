//! `hearthd` is killed at each phase of a task's life; the next one finds what it has left, and leaves nothing.
//!
//! A build of `hearthd` with points to be killed at does that: `make faults`. `HEARTH_FAULT_ROUNDS` says how often
//! at each (`make test-matrix`: 100).

use std::fs;

use hearth_tests::daemons::HearthdOptions;
use hearth_tests::{Guest, Imported, SHORT, World, eventually, paths, process};

use crate::only_on_hearth;

/// As the daemon's module `faults` has them.
const POINTS: [&str; 12] = [
    "reserved",
    "joined",
    "mounted",
    "compiling",
    "located",
    "opened",
    "created",
    "starting",
    "instantiating",
    "started",
    "ended",
    "deleted",
];

fn rounds() -> usize {
    std::env::var("HEARTH_FAULT_ROUNDS").map_or(1, |rounds| rounds.parse().expect("HEARTH_FAULT_ROUNDS is a number"))
}

#[test]
fn a_daemon_killed_at_any_phase_of_a_start_leaves_nothing_behind() {
    only_on_hearth!();
    let mut world = World::new();
    let image = world.program(&Guest::EXIT);
    world.stop_hearthd();
    for point in POINTS {
        for round in 0..rounds() {
            killed_at(&mut world, &image, point, round);
        }
    }
    world.start_hearthd();
}

fn killed_at(world: &mut World, image: &Imported, point: &str, round: usize) {
    let what = format!("{point}, round {round}");
    // A module that is known skips some of the phases.
    let _ = fs::remove_dir_all(world.layout().hearthd_root().join("modules"));
    let options = HearthdOptions {
        program: Some(paths::hearthd_with_faults()),
        environment: vec![("HEARTH_FAULT".into(), point.into())],
        ..HearthdOptions::default()
    };
    let (mut hearthd, ready) = world.try_start_hearthd(&options);
    assert!(ready, "{what}: {}", world.hearthd_log());
    let id = format!("{point}-{round}");
    let running = world.run(image, &id).args(["0"]).spawn();
    let status = hearthd.wait(SHORT).unwrap_or_else(|| panic!("{what}: hearthd was not killed"));
    assert_eq!(process::code(status), 137, "{what}");
    // Whatever it says: the client comes back.
    drop(running.wait(SHORT));

    let log = world.hearthd_log().len();
    world.start_hearthd();
    let said = world.hearthd_log().split_off(log);
    assert_eq!(said.matches("did not stop cleanly").count(), 1, "{what}: {said}");
    eventually(&format!("{what}: nothing is left"), SHORT, || left(world).is_empty().then_some(()));
    world.ctr(["containers", "rm", &id]).run();
    // The id is free, and the store whole.
    world.run(image, &id).args(["3"]).run().assert_code(3);
    world.stop_hearthd();
}

/// What there is beside the two daemons.
fn left(world: &World) -> Vec<String> {
    let tasks = world.tasks().into_iter().map(|task| format!("task {}", task.0));
    let bundles = world.layout().containerd_state().join("io.containerd.runtime.v2.task/stories");
    let names = |directory: &std::path::Path| {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect::<Vec<_>>()
    };
    let bundles = names(&bundles).into_iter().map(|name| format!("bundle {name}"));
    let generations = names(&world.layout().hearthd_state().join("s"));
    let generations = generations.into_iter().skip(1).map(|name| format!("generation {name}"));
    let half_written = names(&world.layout().hearthd_root().join("modules"));
    let half_written = half_written.into_iter().filter(|name| name.starts_with("tmp-"));
    let mounts = world.hearthd_mounts().into_iter().chain(world.machine_mounts()).map(|point| format!("mount {point}"));
    let processes = world.machine().processes().into_iter().map(|(_, line)| line);
    let strangers = processes.filter(|line| !line.contains("containerd.toml") && !line.contains("hearthd.toml"));
    let strangers = strangers.map(|line| format!("process {line}"));
    tasks.chain(bundles).chain(generations).chain(half_written).chain(mounts).chain(strangers).collect()
}
