//! containerd or the daemon stops, dies, comes back.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use hearth_tests::wait::within;
use hearth_tests::{Guest, Imported, LONG, Runtime, SHORT, World, eventually};

use crate::only_on_hearth;

/// Starts a task that waits for [`release`] and then ends with `code`.
pub fn waiter(world: &World, image: &Imported, id: &str, code: i32) {
    let directory = world.write(&format!("signals/{id}/.keep"), b"");
    let directory = directory.parent().expect("a file is in a directory");
    let mount = format!("type=bind,src={},dst=/signals,options=rbind:ro", directory.display());
    world.run(image, id).flags(["--mount", &mount]).args(["/signals/go", &code.to_string()]).detach().ok();
}

pub fn release(world: &World, id: &str) {
    world.write(&format!("signals/{id}/go"), b"");
}

#[test]
fn a_restart_of_containerd_loses_no_task() {
    let mut world = World::new();
    let image = world.program(&Guest::AWAIT);
    let ids = ["one", "two", "three"];
    for (index, id) in ids.iter().enumerate() {
        waiter(&world, &image, id, index as i32 + 3);
    }
    let before = world.tasks();
    world.stop_containerd();
    world.start_containerd();
    assert_eq!(world.tasks(), before, "the same tasks, pids and states");
    for (index, id) in ids.iter().enumerate() {
        release(&world, id);
        assert_eq!(world.finish(id), index as u32 + 3);
    }
}

#[test]
fn a_task_that_ends_while_containerd_is_away_is_reported_when_it_is_back() {
    let mut world = World::new();
    let image = world.program(&Guest::AWAIT);
    waiter(&world, &image, "early", 5);
    waiter(&world, &image, "late", 6);
    world.kill_containerd();
    release(&world, "early");
    if world.runtime() == hearth_tests::Runtime::Hearth {
        eventually("the guest has ended", SHORT, || {
            (world.metrics().sum("hearth_tasks", &[("state", "stopped")]) == 1.0).then_some(())
        });
    }
    world.start_containerd();
    world.wait_for_status("early", "STOPPED");
    assert_eq!(world.task_status("late").as_deref(), Some("RUNNING"));
    assert_eq!(world.finish("early"), 5);
    release(&world, "late");
    assert_eq!(world.finish("late"), 6);
}

#[test]
fn the_exit_event_waits_for_containerd_to_come_back() {
    only_on_hearth!();
    let mut world = World::new();
    let image = world.program(&Guest::AWAIT);
    waiter(&world, &image, "quiet", 9);
    world.stop_containerd();
    release(&world, "quiet");
    eventually("the exit waits in the queue", SHORT, || {
        (world.metrics().sum("hearth_events_queued", &[]) >= 1.0).then_some(())
    });
    world.start_containerd();
    eventually("the exit was delivered", SHORT, || {
        (world.metrics().sum("hearth_events_queued", &[]) == 0.0).then_some(())
    });
    assert_eq!(world.finish("quiet"), 9);
}

#[test]
fn tasks_go_on_through_ten_restarts_of_containerd() {
    let mut world = World::new();
    let image = world.program(&Guest::AWAIT);
    waiter(&world, &image, "survivor", 3);
    for turn in 0..10 {
        if turn % 2 == 0 {
            world.kill_containerd();
        } else {
            world.stop_containerd();
        }
        world.start_containerd();
        assert_eq!(world.task_status("survivor").as_deref(), Some("RUNNING"), "after restart {turn}");
    }
    release(&world, "survivor");
    assert_eq!(world.finish("survivor"), 3);
}

/// The number of tasks that run while containerd restarts. Two of them end in each turn.
const RUNNING: usize = 40;

#[test]
fn twenty_restarts_of_containerd_lose_no_task_and_no_exit_of_many() {
    let mut world = World::new();
    let image = world.program(&Guest::AWAIT);
    let id = |index: usize| format!("task-{index}");
    let code = |index: usize| index as i32 % 100 + 1;
    for index in 0..RUNNING {
        waiter(&world, &image, &id(index), code(index));
    }
    let mut running: std::collections::VecDeque<usize> = (0..RUNNING).collect();
    for turn in 0..20 {
        let ending: Vec<usize> = running.drain(..2).collect();
        // One task ends just before containerd does, one while containerd is down.
        release(&world, &id(ending[0]));
        if turn % 2 == 0 {
            world.kill_containerd();
        } else {
            world.stop_containerd();
        }
        release(&world, &id(ending[1]));
        world.start_containerd();
        for index in ending {
            assert_eq!(world.finish(&id(index)), code(index) as u32, "task {index} in turn {turn}");
        }
        let new = RUNNING + turn;
        waiter(&world, &image, &id(new), code(new));
        running.push_back(new);
        let statuses = world.tasks();
        assert_eq!(statuses.len(), running.len(), "turn {turn}: {statuses:?}");
        assert!(statuses.iter().all(|task| task.2 == "RUNNING"), "turn {turn}: {statuses:?}");
    }
    for index in running {
        release(&world, &id(index));
        assert_eq!(world.finish(&id(index)), code(index) as u32);
    }
}

/// The tasks that clients have started when containerd dies.
#[derive(Default)]
struct Known {
    /// Tasks that were started and run on.
    alive: BTreeSet<String>,
    /// Tasks that were started and end soon after with [`CODE`].
    ended: BTreeSet<String>,
}

/// The exit code of a task that ends by itself.
const CODE: u32 = 7;

/// Starts, kills and deletes tasks until containerd answers no more.
fn work(world: &World, [exit, sleep]: &[Imported; 2], name: &str, known: &Mutex<Known>, turns: &AtomicUsize) {
    for turn in 0.. {
        let (lives, ends) = (format!("lives-{name}-{turn}"), format!("ends-{name}-{turn}"));
        let started =
            |image, id: &str, argument: &str| world.run(image, id).args([argument]).detach().run().status.success();
        if !started(sleep, &lives, "3600") {
            return;
        }
        let is_to_go = turn % 2 == 1;
        if !is_to_go {
            known.lock().expect("no client panics").alive.insert(lives.clone());
        }
        if !started(exit, &ends, &CODE.to_string()) {
            return;
        }
        known.lock().expect("no client panics").ended.insert(ends);
        if is_to_go && !world.ctr(["tasks", "rm", "--force", &lives]).run().status.success() {
            return;
        }
        turns.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_containerd_killed_amid_starts_and_deletes_loses_no_task_and_no_exit_and_doubles_none() {
    const ROUNDS: usize = 5;
    const CLIENTS: usize = 4;
    let mut world = World::new();
    let images = [world.program(&Guest::EXIT), world.program(&Guest::SLEEP)];
    for round in 0..ROUNDS {
        let (known, turns) = (Mutex::new(Known::default()), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for client in 0..CLIENTS {
                let (world, images, known, turns) = (&world, &images, &known, &turns);
                scope.spawn(move || work(world, images, &format!("{round}-{client}"), known, turns));
            }
            // Each round kills containerd at another moment of the calls under way.
            eventually("the clients have started tasks", LONG, || {
                (turns.load(Ordering::Relaxed) >= CLIENTS + round).then_some(())
            });
            world.containerd().signal(rustix::process::Signal::KILL);
        });
        world.kill_containerd();
        world.start_containerd();
        let known = known.into_inner().expect("no client panicked");
        is_complete(&world, &known, round);
        let listed = world.ctr(["containers", "ls", "--quiet"]).ok().stdout();
        listed.split_whitespace().for_each(|id| world.remove(id));
        assert_eq!(world.tasks(), [], "round {round}");
        if world.runtime() == Runtime::Hearth {
            let mut left = String::new();
            let nothing = within(SHORT, || {
                let metrics = world.metrics();
                let tasks = metrics.sum("hearth_tasks", &[]);
                let slots = metrics.sum("hearth_pool_slots", &[("state", "used")]);
                let mounts = world.hearthd_mounts();
                // A containerd that is killed while it removes a bundle leaves it under a name with a dot in front
                // (atomicDelete), and never looks at it again.
                let bundles: Vec<_> = bundles(&world).into_iter().filter(|name| !name.starts_with('.')).collect();
                left = format!("{tasks} tasks, {slots} slots, mounts {mounts:?}, bundles {bundles:?}");
                (tasks + slots == 0.0 && mounts.is_empty() && bundles.is_empty()).then_some(())
            });
            assert!(nothing.is_some(), "round {round}: still there are {left}; {}", world.ask(&["ps", "--all"]));
        }
    }
}

/// Checks containerd's list against the tasks that clients have started, and the daemon's against containerd's.
fn is_complete(world: &World, known: &Known, round: usize) {
    let tasks = world.tasks();
    let status = |id: &str| tasks.iter().find(|task| task.0 == id).map(|task| task.2.as_str());
    for id in &known.alive {
        assert_eq!(status(id), Some("RUNNING"), "round {round}: {id} was started");
    }
    for id in &known.ended {
        assert!(matches!(status(id), Some("RUNNING" | "STOPPED")), "round {round}: {id} was started: {tasks:?}");
    }
    if world.runtime() == Runtime::Hearth {
        eventually("the daemon has the tasks that containerd has", SHORT, || {
            (world.metrics().sum("hearth_tasks", &[]) == world.tasks().len() as f64).then_some(())
        });
    }
    for (id, _, status) in &tasks {
        // A task without an answer to Start may have been started or not.
        if id.starts_with("ends-") && status != "CREATED" {
            assert_eq!(world.finish(id), CODE, "round {round}: {id}");
        }
    }
}

#[test]
fn a_killed_daemon_is_replaced_and_nothing_stale_remains() {
    only_on_hearth!();
    let mut world = World::new();
    let guests = [Guest::SLEEP, Guest::SPIN, Guest::FLOOD];
    let images: Vec<Imported> = guests.iter().map(|guest| world.program(guest)).collect();
    let ids: Vec<String> = (0..9).map(|index| format!("victim-{index}")).collect();
    for (index, id) in ids.iter().enumerate() {
        world.run(&images[index % images.len()], id).detach().ok();
    }
    {
        let events = world.events();
        let hearthd = world.hearthd();
        hearthd.signal(rustix::process::Signal::KILL);
        for id in &ids {
            let exit = events.wait_for_topic("/tasks/exit", id);
            assert!(exit.exit_status() >= 128, "{exit:?}");
        }
    }
    world.kill_hearthd();
    eventually("no bundle of a dead task is left", SHORT, || bundles(&world).is_empty().then_some(()));
    assert_eq!(world.tasks(), [], "none of them runs or waits to be deleted");

    world.start_hearthd();
    let hello = world.program(&Guest::HELLO);
    world.run(&hello, "after").ok();
    // The same ids can be used again at once.
    for id in &ids {
        world.ctr(["containers", "rm", id]).ok();
    }
    world.run(&images[0], &ids[0]).args(["0"]).ok();
    assert_eq!(world.metrics().sum("hearth_tasks", &[]), 0.0);
    assert_eq!(world.metrics().sum("hearth_pool_slots", &[("state", "used")]), 0.0);
}

#[test]
fn a_daemon_killed_again_and_again_comes_back_each_time() {
    only_on_hearth!();
    let mut world = World::new();
    let hello = world.program(&Guest::HELLO);
    let sleep = world.program(&Guest::SLEEP);
    for turn in 0..5 {
        world.run(&hello, &format!("hello-{turn}")).ok();
        world.run(&sleep, &format!("sleep-{turn}")).detach().ok();
        world.kill_hearthd();
        world.start_hearthd();
    }
    world.run(&hello, "last").ok();
    let sockets: Vec<String> = walk(&world.layout().hearthd_state());
    // The control socket, the sandbox controller's, three of the generation itself (for other generations, for hearthctl,
    // for its pods), and one task socket; none of the dead generations.
    assert_eq!(sockets.len(), 6, "{sockets:?}");
}

#[test]
fn a_daemon_that_is_down_is_named_with_the_remedy() {
    only_on_hearth!();
    let mut world = World::new();
    let hello = world.program(&Guest::HELLO);
    world.run(&hello, "before").ok();
    world.stop_hearthd();
    let output = world.run(&hello, "down").run();
    let output = output.assert_fault(&["hearthd", "systemctl start"]);
    assert!(output.stderr().contains(&world.layout().control_socket().display().to_string()), "{output}");
    world.start_hearthd();
    world.run(&hello, "after").ok();
}

#[test]
fn a_stopped_daemon_ends_its_tasks_and_leaves_no_socket() {
    only_on_hearth!();
    let mut world = World::new();
    let sleep = world.program(&Guest::SLEEP);
    world.run(&sleep, "sleeper").detach().ok();
    world.stop_hearthd();
    assert_eq!(walk(&world.layout().hearthd_state()), Vec::<String>::new());
    eventually("containerd lets go of the task", SHORT, || world.tasks().is_empty().then_some(()));
}

#[test]
fn a_configuration_that_is_wrong_is_named_before_anything_is_bound() {
    only_on_hearth!();
    use hearth_tests::daemons::{HearthdOptions, try_start_hearthd};
    let mut world = World::new();
    world.stop_hearthd();
    let options = HearthdOptions { config: "[no_such_section]\nkey = 1\n".into(), ..HearthdOptions::default() };
    let (mut hearthd, ready) = try_start_hearthd(world.machine(), world.layout(), &options);
    assert!(!ready);
    let status = hearthd.wait(SHORT).expect("it ends");
    assert!(!status.success());
    let log = world.hearthd_log();
    let last = log.lines().rev().take(12).collect::<String>();
    assert!(last.contains("no_such_section"), "{log}");
    assert!(!world.layout().control_socket().exists());
    world.start_hearthd();
}

/// The bundles containerd holds.
fn bundles(world: &World) -> Vec<String> {
    let directory = world.layout().containerd_state().join("io.containerd.runtime.v2.task/stories");
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// The sockets under a directory.
fn walk(directory: &std::path::Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            found.extend(walk(&entry.path()));
        } else if kind.is_socket() {
            found.push(entry.path().display().to_string());
        }
    }
    found
}
