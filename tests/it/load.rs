//! Many tasks at once.

use hearth_tests::{Guest, LONG, Running, World};

#[test]
fn two_hundred_tasks_started_at_once_all_finish_right() {
    let world = World::new();
    let image = world.program(&Guest::EXIT);
    let started: Vec<(i32, Running)> = (0..200)
        .map(|index| {
            let code = index % 100;
            (code, world.run(&image, &format!("task-{index}")).args([code.to_string()]).spawn())
        })
        .collect();
    for (code, run) in started {
        run.wait(LONG).assert_code(code);
    }
    assert_eq!(world.tasks(), []);
}

#[test]
fn a_busy_loop_on_every_core_stops_no_other_task_and_dies_at_kill() {
    let world = World::new();
    let spin = world.program(&Guest::SPIN);
    let hello = world.program(&Guest::HELLO);
    let cores = std::thread::available_parallelism().expect("Linux knows").get();
    let ids: Vec<String> = (0..=cores).map(|index| format!("spin-{index}")).collect();
    for id in &ids {
        world.run(&spin, id).detach().ok();
    }
    for index in 0..10 {
        world.run(&hello, &format!("hello-{index}")).ok();
    }
    for id in &ids {
        assert_eq!(world.task_status(id).as_deref(), Some("RUNNING"), "{id}");
        world.kill(id, "SIGKILL").ok();
    }
    for id in &ids {
        assert_eq!(world.finish(id), 137);
    }
}

#[test]
fn tasks_start_and_end_while_others_flood_their_output() {
    let world = World::new();
    let flood = world.program(&Guest::FLOOD);
    let exit = world.program(&Guest::EXIT);
    for index in 0..2 {
        world.run(&flood, &format!("flood-{index}")).detach().ok();
    }
    for index in 0..20 {
        let code = index + 1;
        world.run(&exit, &format!("exit-{index}")).args([code.to_string()]).run().assert_code(code);
    }
    for index in 0..2 {
        let id = format!("flood-{index}");
        world.kill(&id, "SIGKILL").ok();
        assert_eq!(world.finish(&id), 137);
    }
}
