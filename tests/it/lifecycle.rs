//! A task from create to delete, as `ctr` drives it.

use hearth_tests::{Guest, Imported, SHORT, World};

use crate::only_on_hearth;

/// Starts a sleeper in the background.
fn sleeper(world: &World, image: &Imported, id: &str) {
    world.run(image, id).args(["3600"]).detach().ok();
}

#[test]
fn a_detached_task_is_listed_killed_and_removed() {
    let world = World::new();
    let image = world.program(&Guest::SLEEP);
    sleeper(&world, &image, "sleeper");
    let tasks = world.tasks();
    assert!(
        matches!(&tasks[..], [(id, pid, status)] if id == "sleeper" && *pid > 0 && status == "RUNNING"),
        "{tasks:?}"
    );
    world.kill("sleeper", "SIGKILL").ok();
    world.wait_for_status("sleeper", "STOPPED");
    assert_eq!(world.finish("sleeper"), 137);
    assert_eq!(world.task_status("sleeper"), None);
    world.ctr(["containers", "rm", "sleeper"]).ok();
}

#[test]
fn a_container_starts_again_after_its_task_was_removed() {
    let world = World::new();
    let image = world.program(&Guest::SLEEP);
    sleeper(&world, &image, "again");
    for _ in 0..3 {
        world.kill("again", "SIGKILL").ok();
        assert_eq!(world.finish("again"), 137);
        world.ctr(["tasks", "start", "--detach", "--null-io", "again"]).ok();
        assert_eq!(world.task_status("again").as_deref(), Some("RUNNING"));
    }
}

#[test]
fn a_signal_that_ends_a_program_gives_128_and_its_number() {
    let world = World::new();
    let image = world.program(&Guest::SLEEP);
    let signals =
        [("SIGHUP", 129), ("SIGINT", 130), ("SIGQUIT", 131), ("SIGABRT", 134), ("SIGKILL", 137), ("SIGTERM", 143)];
    for (signal, code) in signals {
        let mut run = world.run(&image, signal).args(["3600"]).spawn();
        run.wait_for_stdout("asleep");
        world.kill(signal, signal).ok();
        run.wait(SHORT).assert_code(code);
    }
}

#[test]
fn other_signals_leave_a_guest_alone() {
    only_on_hearth!();
    let world = World::new();
    let image = world.program(&Guest::SLEEP);
    sleeper(&world, &image, "steadfast");
    for signal in ["SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGCHLD", "SIGCONT"] {
        world.kill("steadfast", signal).ok();
    }
    assert_eq!(world.task_status("steadfast").as_deref(), Some("RUNNING"));
}

#[test]
fn a_kill_interrupts_a_guest_whatever_it_does() {
    let world = World::new();
    let started = [(Guest::SPIN, "spinning"), (Guest::SLEEP, "asleep")];
    for (guest, text) in started {
        let image = world.program(&guest);
        let mut run = world.run(&image, guest.name()).spawn();
        run.wait_for_stdout(text);
        world.kill(guest.name(), "SIGKILL").ok();
        run.wait(SHORT).assert_code(137);
    }
    // A guest that is blocked on its stdin.
    let image = world.program(&Guest::TALLY);
    let mut run = world.run(&image, "reader").ctr().open_stdin().spawn();
    run.write(b"one\n");
    run.wait_for_stdout("line 1");
    world.kill("reader", "SIGKILL").ok();
    run.close_stdin();
    run.wait(SHORT).assert_code(137);
}

#[test]
fn a_second_kill_and_a_kill_after_the_end_do_no_harm() {
    let world = World::new();
    let image = world.program(&Guest::SLEEP);
    sleeper(&world, &image, "twice");
    world.kill("twice", "SIGKILL").ok();
    // The second may find it running, stopped, or ending: it succeeds or says that it has finished.
    let second = world.kill("twice", "SIGKILL").run();
    assert!(second.status.success() || says_gone(&second.stderr()), "{second}");
    world.wait_for_status("twice", "STOPPED");
    let late = world.kill("twice", "SIGKILL").run();
    assert!(late.status.success() || says_gone(&late.stderr()), "{late}");
    assert_eq!(world.finish("twice"), 137);
    world.kill("twice", "SIGKILL").run().assert_fault(&["twice", "not found"]);
}

#[test]
fn a_running_task_is_not_removed() {
    let world = World::new();
    let image = world.program(&Guest::SLEEP);
    sleeper(&world, &image, "running");
    let refused = world.ctr(["tasks", "rm", "running"]).run();
    assert!(!refused.status.success(), "{refused}");
    assert_eq!(world.task_status("running").as_deref(), Some("RUNNING"));
    world.kill("running", "SIGKILL").ok();
    world.wait_for_status("running", "STOPPED");
    world.ctr(["tasks", "rm", "running"]).ok();
    assert_eq!(world.task_status("running"), None);
}

#[test]
fn the_pid_of_a_task_with_a_network_of_its_own_ends_before_its_exit_is_told() {
    let world = World::new();
    let image = world.program(&Guest::SLEEP);
    let events = world.events();
    for round in 0..5 {
        let id = format!("pid-{round}");
        sleeper(&world, &image, &id);
        let pid = world.tasks().into_iter().find(|(found, ..)| *found == id).expect("it is listed").1;
        let process = format!("/proc/{}/root/proc/{pid}", world.machine().init());
        assert!(std::fs::exists(&process).expect("init runs"), "{process}");
        world.kill(&id, "SIGKILL").ok();
        events.wait_for("its exit", |event| event.topic == "/tasks/exit" && event.fields["id"] == id.as_str());
        assert!(!std::fs::exists(&process).expect("init runs"), "{process} is there after the exit");
        assert_eq!(world.finish(&id), 137);
    }
}

#[test]
fn two_tasks_of_one_id_live_in_two_namespaces() {
    only_on_hearth!();
    let world = World::new();
    let image = world.program(&Guest::SLEEP);
    let other = hearth_tests::Image::of(&Guest::SLEEP, world.runtime());
    let tar = world.write("other.tar", &other.to_tar()).display().to_string();
    world.ctr_in("other", ["images", "import", &tar]).ok();
    sleeper(&world, &image, "same");
    let run = [
        "run",
        "--runtime",
        world.runtime().name(),
        "--detach",
        "--null-io",
        other.name(),
        "same",
        "/sleep.wasm",
        "3600",
    ];
    world.ctr_in("other", run).ok();
    world.ctr_in("other", ["tasks", "kill", "--signal", "SIGKILL", "same"]).ok();
    hearth_tests::eventually("the other one is stopped", SHORT, || {
        world.ctr_in("other", ["tasks", "ls"]).ok().stdout().contains("STOPPED").then_some(())
    });
    assert_eq!(world.task_status("same").as_deref(), Some("RUNNING"), "the namespace of the kill was the other one");
    world.ctr_in("other", ["tasks", "rm", "same"]).ok();
    world.ctr_in("other", ["containers", "rm", "same"]).ok();
}

#[test]
fn events_come_in_the_order_of_a_life() {
    let world = World::new();
    let image = world.program(&Guest::EXIT);
    let events = world.events();
    for (id, code) in [("well", 0), ("ill", 7)] {
        world.run(&image, id).args([code.to_string()]).run().assert_code(code);
        events.wait_for_topic("/tasks/delete", id);
        assert_eq!(
            events.task_topics(id),
            ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"],
            "of {id}"
        );
        let exit = events.wait_for_topic("/tasks/exit", id);
        assert_eq!(exit.exit_status(), u64::try_from(code).expect("it is positive"));
        assert_eq!(exit.namespace, hearth_tests::world::NAMESPACE);
    }
}

#[test]
fn a_task_has_metrics() {
    only_on_hearth!();
    let world = World::new();
    let image = world.program(&Guest::SPIN);
    world.run(&image, "spin").detach().ok();
    let cpu = || {
        let listed = world.ctr(["tasks", "metrics", "--format", "json", "spin"]).ok().stdout();
        let metrics: serde_json::Value = serde_json::from_str(&listed).expect("it is JSON");
        // The host's cgroup version decides the form: v1 counts nanoseconds, v2 microseconds.
        let v1 = metrics["cpu"]["usage"]["total"].as_u64();
        v1.or_else(|| metrics["cpu"]["usage_usec"].as_u64()).unwrap_or(0)
    };
    hearth_tests::eventually("a spinning guest is charged CPU time", SHORT, || (cpu() > 0).then_some(()));
}

fn says_gone(message: &str) -> bool {
    message.contains("not found") || message.contains("already finished")
}
