//! Upgrades of hearthd: the new daemon takes new tasks, the old one serves its own.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use hearth_tests::api::{self, Api};
use hearth_tests::daemons::{HearthdOptions, try_start_hearthd};
use hearth_tests::{Guest, NewContainer, Node, Runtime, SHORT, World, eventually};
use rustix::process::Signal;

use crate::only_on_hearth;
use crate::restarts::{release, waiter};

/// Waits until no daemon but the newest lives.
fn alone(world: &mut World) {
    eventually("the old hearthd leaves", SHORT, || (world.older_hearthds() == 0).then_some(()));
}

#[test]
fn an_upgrade_keeps_tasks_and_the_new_daemon_takes_new_ones() {
    only_on_hearth!();
    let mut world = World::new();
    let image = world.program(&Guest::AWAIT);
    let exit = world.program(&Guest::EXIT);
    waiter(&world, &image, "old", 5);
    let events = world.events();
    world.upgrade_hearthd();
    assert_eq!(world.task_status("old").as_deref(), Some("RUNNING"));
    world.run(&exit, "new").args(["3"]).run().assert_code(3);
    waiter(&world, &image, "newer", 6);
    // Both generations' tasks are counted, with a label for the older generation.
    let metrics = world.metrics();
    assert_eq!(metrics.sum("hearth_tasks", &[("state", "running")]), 2.0, "{}", metrics.text);
    let old =
        metrics.samples.iter().find(|sample| sample.name == "hearth_tasks" && sample.labels.contains_key("generation"));
    assert!(old.is_some(), "{}", metrics.text);
    // hearthctl asks both, and names them.
    let listed = world.hearthctl(["generations"]).ok().stdout();
    let takes = |word: &str| listed.lines().filter(|line| line.split_whitespace().nth(3) == Some(word)).count();
    assert_eq!((listed.lines().count(), takes("yes"), takes("no")), (3, 1, 1), "{listed}");
    let listed = world.ask(&["ps"]);
    let ids: Vec<&str> = listed.as_array().expect("a list").iter().filter_map(|task| task["id"].as_str()).collect();
    assert!(ids.contains(&"old") && ids.contains(&"newer"), "{listed}");
    // An exec reaches the daemon of its task.
    world.ctr(["tasks", "exec", "--exec-id", "e", "old", "/await.wasm", "/signals/.keep", "4"]).run().assert_code(4);
    release(&world, "old");
    let of_init = |event: &hearth_tests::events::Event| event.topic == "/tasks/exit" && event.fields["id"] == "old";
    assert_eq!(events.wait_for("the exit of the task itself", of_init).exit_status(), 5);
    assert_eq!(world.finish("old"), 5);
    drop(events);
    alone(&mut world);
    assert_eq!(world.metrics().sum("hearth_tasks", &[]), 1.0);
    release(&world, "newer");
    assert_eq!(world.finish("newer"), 6);
}

#[test]
fn an_old_daemon_without_tasks_leaves_at_once() {
    only_on_hearth!();
    let mut world = World::new();
    for turn in 0..3 {
        world.upgrade_hearthd();
        alone(&mut world);
        let hello = world.program(&Guest::HELLO);
        world.run(&hello, &format!("hello-{turn}")).ok();
    }
}

#[test]
fn a_pod_gets_new_containers_from_the_daemon_that_has_its_sandbox() {
    only_on_hearth!();
    let mut node = Node::new();
    let exit = node.program(&Guest::EXIT);
    let sleep = node.program(&Guest::SLEEP);
    let native = node.import(&hearth_tests::Image::of(&Guest::EXIT, Runtime::Runc));
    let old = node.pod("old").run();
    let first = old.container("first", &sleep).args(["3600"]).start();
    node.upgrade_hearthd();
    let young = node.pod("young").run();
    for pod in [&old, &young] {
        let second = pod.container("second", &exit).args(["7"]).start();
        assert_eq!(second.wait(), 7);
        let sidecar = pod.container("sidecar", &native).args(["8"]).start();
        assert_eq!(sidecar.wait(), 8);
    }
    // A containerd that restarts finds both again.
    node.restart_containerd();
    assert!(old.is_ready() && young.is_ready());
    let third = old.container("third", &exit).args(["9"]).start();
    assert_eq!(third.wait(), 9);
    drop(first);
    drop(old);
    alone(&mut node);
    let third = young.container("third", &exit).args(["9"]).start();
    assert_eq!(third.wait(), 9);
}

#[test]
fn a_new_daemon_that_fails_leaves_the_old_one_in_charge() {
    only_on_hearth!();
    let mut world = World::new();
    let image = world.program(&Guest::AWAIT);
    waiter(&world, &image, "old", 5);
    let configured = |config: &str| HearthdOptions { config: config.into(), ..HearthdOptions::default() };
    for (config, word) in [
        ("[engine]\npool_slot = 3\n", "pool_slots"),
        // More address space than there is.
        ("[engine]\npool_slots = 4_000_000\n", "engine.pool_slots"),
        ("[upgrade]\ngenerations_max = 1\n", "upgrade.generations_max"),
    ] {
        let (mut failed, ready) = world.try_upgrade_hearthd(&configured(config));
        assert!(!ready, "{config}");
        assert!(!failed.wait(SHORT).expect("it ends").success(), "{config}");
        let log = world.hearthd_log();
        assert!(log.lines().rev().take(6).any(|line| line.contains(word)), "{config}: {log}");
        let hello = world.program(&Guest::HELLO);
        world.run(&hello, "hello").ok();
    }
    // A daemon without --replace does not take over.
    let (mut refused, ready) = try_start_hearthd(world.machine(), world.layout(), &HearthdOptions::default());
    assert!(!ready);
    assert!(!refused.wait(SHORT).expect("it ends").success());
    assert!(world.hearthd_log().contains("--replace"));
    release(&world, "old");
    assert_eq!(world.finish("old"), 5);
    assert_eq!(world.older_hearthds(), 0);
}

#[test]
fn generations_are_ended_by_name_and_all_together() {
    only_on_hearth!();
    let mut world = World::new();
    let sleep = world.program(&Guest::SLEEP);
    world.run(&sleep, "old").args(["3600"]).detach().ok();
    world.upgrade_hearthd();
    world.run(&sleep, "young").args(["3600"]).detach().ok();
    let unknown = world.hearthctl(["stop", "--generation", "nonesuch"]).run();
    assert!(!unknown.status.success() && unknown.stderr().contains("hearthctl generations"), "{unknown}");
    let listed = world.hearthctl(["generations"]).ok().stdout();
    let old = listed.lines().find(|line| line.split_whitespace().nth(3) == Some("no")).expect("the old one");
    let name = old.split_whitespace().next().expect("a name");
    world.hearthctl(["stop", "--generation", name]).ok();
    alone(&mut world);
    assert_eq!(world.task_status("young").as_deref(), Some("RUNNING"));
    world.hearthctl(["stop"]).ok();
    eventually("containerd has noticed", SHORT, || world.tasks().is_empty().then_some(()));
    assert!(!world.layout().control_socket().exists());
    world.stop_hearthd();
    world.start_hearthd();
}

#[test]
fn an_old_daemon_ends_its_tasks_when_its_time_is_over() {
    only_on_hearth!();
    let mut world = World::configured("[upgrade]\ndrain_seconds_max = 1\n");
    let sleep = world.program(&Guest::SLEEP);
    world.run(&sleep, "sleeper").args(["3600"]).detach().ok();
    let events = world.events();
    world.upgrade_hearthd();
    assert_eq!(events.wait_for_topic("/tasks/exit", "sleeper").exit_status(), 137);
    drop(events);
    alone(&mut world);
    let hello = world.program(&Guest::HELLO);
    world.run(&hello, "after").ok();
}

#[test]
fn a_daemon_may_be_killed_before_and_after_another_takes_over() {
    only_on_hearth!();
    let mut world = World::new();
    let image = world.program(&Guest::AWAIT);
    let hello = world.program(&Guest::HELLO);
    waiter(&world, &image, "first", 3);
    world.upgrade_hearthd();
    waiter(&world, &image, "second", 4);
    // The daemon in charge is killed: another replaces it, and the oldest goes on.
    world.kill_hearthd();
    world.upgrade_hearthd();
    world.run(&hello, "third").ok();
    assert_eq!(world.task_status("first").as_deref(), Some("RUNNING"));
    // The oldest is killed: the daemon in charge removes its directory.
    world.hearthd().signal(Signal::KILL);
    eventually("the dead one's directory is gone", SHORT, || {
        let left = std::fs::read_dir(world.layout().hearthd_state().join("s")).expect("it is there").count();
        (left == 1).then_some(())
    });
    assert!(world.hearthd_log().contains("did not stop cleanly"));
    world.run(&hello, "fourth").ok();
    eventually("containerd has noticed", SHORT, || world.tasks().is_empty().then_some(()));
    alone(&mut world);
}

#[test]
fn a_node_that_takes_no_new_tasks_takes_none_after_an_upgrade_either() {
    only_on_hearth!();
    let mut world = World::new();
    let sleep = world.program(&Guest::SLEEP);
    world.hearthctl(["drain"]).ok();
    world.upgrade_hearthd();
    alone(&mut world);
    world.run(&sleep, "during").args(["0"]).run().assert_fault(&["drained", "hearthctl drain --undo"]);
    assert_eq!(world.ask(&["status"])[0]["draining"], true);
    world.hearthctl(["drain", "--undo"]).ok();
    world.ctr(["containers", "rm", "during"]).run();
    world.upgrade_hearthd();
    world.run(&sleep, "after").args(["0"]).ok();
}

#[test]
fn a_stop_lets_tasks_come_to_their_end_if_it_is_told_to() {
    only_on_hearth!();
    let mut world = World::configured("[upgrade]\nstop_drain_seconds = 3600\n");
    let image = world.program(&Guest::AWAIT);
    let waits = |world: &World, times: usize| {
        eventually("it waits for its tasks", SHORT, || {
            (world.hearthd_log().matches("waits for the tasks to end").count() >= times).then_some(())
        });
    };
    waiter(&world, &image, "slow", 5);
    world.hearthd().signal(Signal::TERM);
    waits(&world, 1);
    world.run(&image, "new").args(["/nothing", "0"]).run().assert_fault(&["drained"]);
    // A second request to stop does not hurry it; a second signal does.
    let asking = world.hearthctl(["stop"]).spawn();
    release(&world, "slow");
    assert_eq!(world.finish("slow"), 5);
    asking.wait(SHORT).assert_code(0);
    assert!(world.hearthd_log().contains("the last task has ended"));
    world.stop_hearthd();
    world.start_hearthd();
    world.ctr(["containers", "rm", "new"]).run();
    waiter(&world, &image, "slower", 6);
    let events = world.events();
    world.hearthd().signal(Signal::TERM);
    waits(&world, 2);
    world.hearthd().signal(Signal::TERM);
    assert_eq!(events.wait_for_topic("/tasks/exit", "slower").exit_status(), 137);
    drop(events);
    world.stop_hearthd();
    world.start_hearthd();
}

/// The number of upgrades in a row.
const UPGRADES: usize = 10;

/// The number of tasks that run all the time.
const RUNNING: usize = 60;

/// The number of clients that start one short task after another.
const STARTERS: usize = 2;

/// The least number of short tasks that end between two upgrades.
const STARTS_BETWEEN: usize = 12;

#[test]
fn ten_upgrades_in_a_row_under_load_lose_no_task_and_no_start() {
    only_on_hearth!();
    let mut world = World::new();
    let image = world.program(&Guest::AWAIT);
    let running: Vec<String> = (0..RUNNING).map(|index| format!("running-{index}")).collect();
    for (index, id) in running.iter().enumerate() {
        waiter(&world, &image, id, index as i32 % 100 + 1);
    }
    world.write("root/exit.wasm", &Guest::EXIT.wasm_bytes());
    let root = world.path("root").display().to_string();
    let (socket, runtime) = (world.layout().containerd_socket(), world.runtime().name());
    let over = AtomicBool::new(false);
    let started = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let starters: Vec<_> = (0..STARTERS)
            .map(|starter| {
                let (over, started, socket, root) = (&over, &started, &socket, &root);
                scope.spawn(move || {
                    let api = Api::connect(socket);
                    for number in 0.. {
                        if over.load(Ordering::Relaxed) {
                            return;
                        }
                        let (id, code) = (format!("short-{starter}-{number}"), number % 100 + 1);
                        let mut spec = api::spec(&["/exit.wasm", &code.to_string()], &[]);
                        spec["root"]["path"] = root.as_str().into();
                        let spec = spec.to_string().into_bytes();
                        api.create_container(NewContainer { id: &id, runtime, spec, ..NewContainer::default() });
                        assert_eq!(api.run_quietly(&id).unwrap_or_else(|error| panic!("{id}: {error}")), code);
                        api.delete_container(&id);
                        started.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        for _ in 0..UPGRADES {
            let before = started.load(Ordering::Relaxed);
            eventually("the load goes on", SHORT, || {
                let dead = starters.iter().any(|starter| starter.is_finished());
                (dead || started.load(Ordering::Relaxed) >= before + STARTS_BETWEEN).then_some(())
            });
            world.upgrade_hearthd();
        }
        over.store(true, Ordering::Relaxed);
        for starter in starters {
            starter.join().expect("every start is answered, and every task ends as it should");
        }
    });
    let statuses = world.tasks();
    for (index, id) in running.iter().enumerate() {
        let status = statuses.iter().find(|task| task.0 == *id).map(|task| task.2.as_str());
        assert_eq!(status, Some("RUNNING"), "{id}");
        release(&world, id);
        assert_eq!(world.finish(id), index as u32 % 100 + 1, "{id}");
    }
    alone(&mut world);
}
