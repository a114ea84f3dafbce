//! `hearthd` is killed at each phase of a task's life. The next daemon removes the remains of the dead one, and starts
//! tasks.
//!
//! A build of `hearthd` with fault points does that (`make faults`): it kills itself at the point that `HEARTH_FAULT`
//! names. The program itself lists its points, so a new point without an expectation here fails the story.
//! `HEARTH_FAULT_ROUNDS` is the number of kills at each point (`make test-matrix`: 100).

use std::fs;
use std::process::Command;

use hearth_tests::daemons::HearthdOptions;
use hearth_tests::{Guest, Imported, SHORT, World, eventually, paths, process};

use crate::only_on_hearth;

/// Whether the guest has run before the daemon dies at a point; `None` for a point that is not known here.
fn guest_has_run(point: &str) -> Option<bool> {
    match point {
        "reserved" | "joined" | "mounted" | "compiling" | "located" | "opened" | "created" | "starting"
        | "instantiating" | "started" => Some(false),
        "ended" | "deleted" => Some(true),
        _ => None,
    }
}

/// The fault points of the program, in the order of a task's life.
fn points() -> Vec<String> {
    let program = paths::hearthd_with_faults();
    let output = Command::new(&program).arg("--list-fault-points").output();
    let output = output.unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    assert!(output.status.success(), "--list-fault-points: {}", String::from_utf8_lossy(&output.stderr));
    let points: Vec<_> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    assert!(!points.is_empty(), "{} lists no fault point", program.display());
    points
}

fn rounds() -> usize {
    let rounds = std::env::var("HEARTH_FAULT_ROUNDS").map_or(1, |rounds| rounds.parse().expect("it is a number"));
    assert!(rounds > 0, "HEARTH_FAULT_ROUNDS is 0");
    rounds
}

#[test]
fn a_daemon_killed_at_any_phase_of_a_start_leaves_nothing_behind() {
    only_on_hearth!();
    let mut world = World::new();
    let image = world.program(&Guest::FILES);
    world.stop_hearthd();
    for point in points() {
        let has_run = guest_has_run(&point).unwrap_or_else(|| panic!("there is no expectation for the point {point}"));
        for round in 0..rounds() {
            killed_at(&mut world, &image, &point, round, has_run);
        }
    }
    world.start_hearthd();
}

fn killed_at(world: &mut World, image: &Imported, point: &str, round: usize, has_run: bool) {
    let case = format!("{point}, round {round}");
    // A start of a known module skips some of the phases.
    let _ = fs::remove_dir_all(world.layout().hearthd_root().join("modules"));
    let options = HearthdOptions {
        program: Some(paths::hearthd_with_faults()),
        environment: vec![("HEARTH_FAULT".into(), point.into())],
        ..HearthdOptions::default()
    };
    let (mut hearthd, ready) = world.try_start_hearthd(&options);
    assert!(ready, "{case}: {}", world.hearthd_log());
    let id = format!("{point}-{round}");
    let trace = world.write(&format!("traces/{id}/.keep"), b"").with_file_name("trace");
    let directory = trace.parent().expect("a file is in a directory").display().to_string();
    let mount = format!("type=bind,src={directory},dst=/trace,options=rbind:rw");
    let arguments = ["write", "/trace/trace", "it has run"];
    let running = world.run(image, &id).flags(["--mount", &mount]).args(arguments).spawn();
    let status = hearthd.wait(SHORT).unwrap_or_else(|| panic!("{case}: hearthd was not killed"));
    assert_eq!(process::code(status), 137, "{case}");
    // ctr may succeed or fail: at most points the call it waits for dies with the daemon. It must end.
    drop(running.wait(SHORT));
    assert_eq!(trace.exists(), has_run, "{case}: the guest's trace");

    let log = world.hearthd_log().len();
    world.start_hearthd();
    let said = world.hearthd_log().split_off(log);
    assert_eq!(said.matches("did not stop cleanly").count(), 1, "{case}: {said}");
    eventually(&format!("{case}: nothing is left"), SHORT, || left(world).is_empty().then_some(()));
    world.ctr(["containers", "rm", &id]).run();
    // The id is free, and the module store is intact.
    let again = world.run(image, &id).args(["try", "read", "/no-such-file"]).run().assert_code(0);
    assert_eq!(again.stdout(), "No such file or directory\n", "{case}");
    world.stop_hearthd();
}

/// The tasks, bundles, files, mounts and processes beside those of the two daemons.
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
    let others = processes.filter(|line| !line.contains("containerd.toml") && !line.contains("hearthd.toml"));
    let others = others.map(|line| format!("process {line}"));
    tasks.chain(bundles).chain(generations).chain(half_written).chain(mounts).chain(others).collect()
}
