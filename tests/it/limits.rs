//! Pause, CPU limits, updates, and guests that run out of memory.

use std::time::{Duration, Instant};

use hearth_tests::process::Process;
use hearth_tests::{Guest, Image, Layer, SHORT, World, eventually};
use serde_json::{Value, json};

use crate::only_on_hearth;

/// The CPU time of a task as the daemon counts it, from one answer.
#[derive(Clone, Copy, Debug)]
struct Cpu {
    seconds: f64,
    /// Periods of its quota in which it ran.
    periods: u64,
    /// Periods in which it used up its quota and waited.
    throttled_periods: u64,
}

/// The answer of `ctr task metrics`.
fn metrics(world: &World, id: &str) -> Value {
    let listed = world.ctr(["tasks", "metrics", "--format", "json", id]).ok().stdout();
    serde_json::from_str(&listed).expect("it is JSON")
}

fn cpu(world: &World, id: &str) -> Cpu {
    let metrics = metrics(world, id);
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    // The host's cgroup version decides the form: v1 counts nanoseconds, v2 microseconds.
    match metrics["cpu"]["usage"]["total"].as_u64() {
        Some(nanoseconds) => Cpu {
            seconds: nanoseconds as f64 / 1e9,
            periods: number(&metrics["cpu"]["throttling"]["periods"]),
            throttled_periods: number(&metrics["cpu"]["throttling"]["throttled_periods"]),
        },
        None => Cpu {
            seconds: number(&metrics["cpu"]["usage_usec"]) as f64 / 1e6,
            periods: number(&metrics["cpu"]["nr_periods"]),
            throttled_periods: number(&metrics["cpu"]["nr_throttled"]),
        },
    }
}

/// Waits until a task has used CPU time.
fn is_computing(world: &World, id: &str) {
    let before = cpu(world, id).seconds;
    eventually("it computes", SHORT, || (cpu(world, id).seconds > before).then_some(()));
}

#[test]
fn a_paused_task_stands_still_until_it_is_resumed() {
    only_on_hearth!();
    let world = World::new();
    let image = world.program(&Guest::SPIN);
    let events = world.events();
    world.run(&image, "spin").detach().ok();
    is_computing(&world, "spin");
    world.ctr(["tasks", "pause", "spin"]).ok();
    assert_eq!(world.task_status("spin").as_deref(), Some("PAUSED"));
    // It stops at its next tick at the latest; each call of `ctr` takes longer than a tick.
    let settled = eventually("it has stopped", SHORT, || {
        let before = cpu(&world, "spin").seconds;
        (cpu(&world, "spin").seconds == before).then_some(before)
    });
    world.ctr(["tasks", "pause", "spin"]).run().assert_fault(&["paused already"]);
    assert_eq!(cpu(&world, "spin").seconds, settled);
    world.ctr(["tasks", "resume", "spin"]).ok();
    assert_eq!(world.task_status("spin").as_deref(), Some("RUNNING"));
    is_computing(&world, "spin");
    world.ctr(["tasks", "resume", "spin"]).run().assert_fault(&["not paused"]);
    world.kill("spin", "SIGKILL").ok();
    assert_eq!(world.finish("spin"), 137);
    events.wait_for_topic("/tasks/delete", "spin");
    let topics = ["create", "start", "paused", "resumed", "exit", "delete"].map(|name| format!("/tasks/{name}"));
    assert_eq!(events.task_topics("spin"), topics);
}

#[test]
fn a_paused_task_is_killed_at_once_and_ended_by_other_signals_when_it_goes_on() {
    only_on_hearth!();
    let world = World::new();
    let image = world.program(&Guest::SLEEP);
    for id in ["kill", "term"] {
        world.run(&image, id).args(["3600"]).detach().ok();
        world.ctr(["tasks", "pause", id]).ok();
    }
    world.ctr(["tasks", "rm", "kill"]).run().assert_fault(&["kill"]);
    world.kill("kill", "SIGKILL").ok();
    assert_eq!(world.finish("kill"), 137);
    world.kill("term", "SIGTERM").ok();
    assert_eq!(world.task_status("term").as_deref(), Some("PAUSED"));
    world.ctr(["tasks", "resume", "term"]).ok();
    assert_eq!(world.finish("term"), 143);
    // A task that does not run cannot be paused.
    world.run(&image, "short").args(["0"]).detach().ok();
    world.wait_for_status("short", "STOPPED");
    world.ctr(["tasks", "pause", "short"]).run().assert_fault(&["ended"]);
    world.remove("short");
}

/// The period of the quotas here, in milliseconds: `ctr run --cpus` has no other.
const PERIOD_MS: f64 = 100.0;

/// Checks that a task uses `quota_ms` of CPU time in each period, over the time in which it is throttled `throttled`
/// times more. The check holds on a busy machine: CPU time and periods are the daemon's counts from the same answers, and
/// the clock only bounds the number of periods from above.
#[track_caller]
fn is_held_to(world: &World, id: &str, quota_ms: f64, throttled: u64) {
    let began = Instant::now();
    let before = cpu(world, id);
    let now = eventually("it is throttled", SHORT, || {
        let now = cpu(world, id);
        (now.throttled_periods >= before.throttled_periods + throttled).then_some(now)
    });
    let elapsed_ms = began.elapsed().as_secs_f64() * 1e3;
    let used_ms = (now.seconds - before.seconds) * 1e3;
    let periods = (now.periods - before.periods) as f64;
    let throttled = (now.throttled_periods - before.throttled_periods) as f64;
    let counts = format!("{used_ms} ms in {periods} periods, throttled in {throttled}, over {elapsed_ms} ms");
    // One period has begun before and may be used up now; a guest that runs past its quota by less than the quota of one
    // period owes that to the next.
    assert!(used_ms <= quota_ms * (periods + 2.0), "too much: {counts}");
    // The daemon's periods are as long as they were asked for.
    assert!(periods <= elapsed_ms / PERIOD_MS + 2.0, "too many periods: {counts}");
    // In a period that ends with a wait the guest has used all of its quota; in the first it may have done so before.
    assert!(used_ms >= 0.9 * quota_ms * (throttled - 1.0), "too little: {counts}");
}

#[test]
fn a_quota_is_kept_and_can_be_changed() {
    only_on_hearth!();
    let world = World::new();
    let image = world.program(&Guest::SPIN);
    world.run(&image, "spin").flags(["--cpus", "0.1"]).detach().ok();
    is_held_to(&world, "spin", 10.0, 20);
    assert!(world.metrics().sum("hearth_guest_throttled_seconds_total", &[]) > 0.5);
    let api = world.api();
    api.update_task("spin", &json!({"cpu": {"quota": 30_000}})).expect("a quota is changed");
    is_held_to(&world, "spin", 30.0, 20);
    api.update_task("spin", &json!({"cpu": {"quota": -1}})).expect("a quota is taken away");
    // A wrong value is named in the error and changes nothing.
    for (resources, field) in [
        (json!({"cpu": {"quota": 10}}), "linux.resources.cpu.quota"),
        (json!({"cpu": {"period": 5_000_000}}), "linux.resources.cpu.period"),
        (json!({"memory": {"limit": -7}, "cpu": {"quota": 10_000}}), "linux.resources.memory.limit"),
    ] {
        let error = api.update_task("spin", &resources).expect_err("it is nonsense");
        assert!(error.message().contains(field), "{error}");
    }
    let before = cpu(&world, "spin");
    eventually("it computes", SHORT, || (cpu(&world, "spin").seconds > before.seconds + 0.5).then_some(()));
    assert_eq!(cpu(&world, "spin").throttled_periods, before.throttled_periods, "nothing holds it back");
}

#[test]
fn an_exec_uses_up_the_quota_of_its_task() {
    only_on_hearth!();
    let world = World::new();
    let layer = Layer::new().file("/bin/spin", 0o755, Guest::SPIN.wasm_bytes());
    let image = world.import(&Image::scratch("hearth.test/spin:1").layer(layer).entrypoint(["/bin/spin"]));
    world.run(&image, "spin").flags(["--cpus", "0.1"]).detach().ok();
    let exec = ["tasks", "exec", "--exec-id", "more", "spin", "/bin/spin"];
    let mut exec = world.ctr(exec).spawn();
    exec.wait_for_stdout("spinning");
    is_held_to(&world, "spin", 10.0, 10);
    // An update changes the quota of both.
    world.api().update_task("spin", &json!({"cpu": {"quota": 15_000}})).expect("a quota is changed");
    is_held_to(&world, "spin", 15.0, 10);
    let used = cpu(&world, "spin").seconds;
    world.kill("spin", "SIGKILL").ok();
    exec.wait(SHORT);
    world.wait_for_status("spin", "STOPPED");
    assert!(cpu(&world, "spin").seconds >= used, "the CPU time of an exec stays counted");
}

#[test]
fn a_host_of_pure_cgroup_v2_gets_statistics_in_its_own_form() {
    only_on_hearth!();
    let mut world = World::new();
    world.stop_containerd();
    world.stop_hearthd();
    // The mount is in the machine's own mount namespace. Both daemons look there, and find the files of such a host.
    let mut mount = world.machine().command("mount");
    let mounted = Process::start("mount", mount.args(["-t", "cgroup2", "cgroup2", "/sys/fs/cgroup"])).wait(SHORT);
    assert!(mounted.is_some_and(|status| status.success()), "cgroup v2 cannot be mounted: {mounted:?}");
    world.start_hearthd();
    world.start_containerd();
    let image = world.program(&Guest::GROW);
    let limit = (256 << 20).to_string();
    let flags = ["--memory-limit", &limit, "--cpus", "0.5"];
    world.run(&image, "grown").flags(flags).args(["64", "3600"]).detach().ok();
    let of_v2 = eventually("it has grown", SHORT, || {
        let metrics = metrics(&world, "grown");
        (metrics["memory"]["usage"].as_u64() >= Some(64 << 20)).then_some(metrics)
    });
    assert!((64 << 20..68 << 20).contains(&of_v2["memory"]["usage"].as_u64().unwrap_or_default()), "{of_v2}");
    assert_eq!(of_v2["memory"]["usage_limit"].as_u64(), Some(256 << 20), "{of_v2}");
    assert_eq!(of_v2["pids"]["current"].as_u64(), Some(1), "{of_v2}");
    assert!(of_v2["cpu"]["usage_usec"].as_u64() > Some(0), "{of_v2}");
    world.kill("grown", "SIGKILL").ok();
    assert_eq!(world.finish("grown"), 137);
    world.run(&image, "starved").flags(["--memory-limit", "33554432"]).args(["1000000", "abort"]).detach().ok();
    world.wait_for_status("starved", "STOPPED");
    assert_eq!(metrics(&world, "starved")["memory_events"]["oom_kill"].as_u64(), Some(1));
}

/// The CPU seconds of each task, from one answer of the daemon.
fn cpu_seconds<const N: usize>(world: &World, ids: [&str; N]) -> [f64; N] {
    let tasks = world.ask(&["ps"]);
    let tasks = tasks.as_array().expect("a list");
    ids.map(|id| {
        let task = tasks.iter().find(|task| task["id"] == id).unwrap_or_else(|| panic!("no task {id} in {tasks:?}"));
        task["cpu_seconds"].as_f64().expect("a number")
    })
}

#[test]
fn tasks_that_compute_share_by_their_weights() {
    only_on_hearth!();
    const SECONDS: f64 = 2.0;
    /// The scheduler's ticks that one task may be ahead of its share.
    const AHEAD_SECONDS: f64 = 0.02;
    let world = World::configured("[scheduler]\nworkers = 1\n");
    let image = world.program(&Guest::SPIN);
    world.run(&image, "light").flags(["--cpu-shares", "512"]).detach().ok();
    world.run(&image, "heavy").flags(["--cpu-shares", "1024"]).detach().ok();
    let before = cpu_seconds(&world, ["light", "heavy"]);
    let [light, heavy] = eventually("they have run for two seconds", SHORT + Duration::from_secs(10), || {
        let now = cpu_seconds(&world, ["light", "heavy"]);
        let used = [now[0] - before[0], now[1] - before[1]];
        (used[0] + used[1] > SECONDS).then_some(used)
    });
    assert!((heavy - 2.0 * light).abs() <= AHEAD_SECONDS, "light {light} s, heavy {heavy} s");
    // Tasks that compute do not delay the start of a third one.
    world.run(&world.program(&Guest::HELLO), "hello").ok();
}

#[test]
fn a_guest_that_aborts_for_want_of_memory_is_out_of_memory() {
    only_on_hearth!();
    let world = World::new();
    let image = world.program(&Guest::GROW);
    let events = world.events();
    let limit = (32 << 20).to_string();
    let arguments = ["1000000", "abort"];
    world.run(&image, "starved").flags(["--memory-limit", &limit]).args(arguments).detach().ok();
    world.wait_for_status("starved", "STOPPED");
    let metrics = metrics(&world, "starved");
    // The host has cgroup v1 or v2.
    let kills = [&metrics["memory_oom_control"]["oom_kill"], &metrics["memory_events"]["oom_kill"]];
    assert_eq!(kills.iter().filter_map(|value| value.as_u64()).sum::<u64>(), 1, "{metrics}");
    assert_eq!(world.finish("starved"), 137);
    events.wait_for_topic("/tasks/delete", "starved");
    let topics = ["create", "start", "oom", "exit", "delete"].map(|name| format!("/tasks/{name}"));
    assert_eq!(events.task_topics("starved"), topics);
    assert_eq!(world.metrics().sum("hearth_oom_kills_total", &[]), 1.0);
    // A guest that handles the failure itself keeps its exit code.
    world.run(&image, "polite").flags(["--memory-limit", &limit]).run().assert_code(9);
    // A trap with memory to spare is a trap.
    world.run(&world.program(&Guest::TRAP), "trap").run().assert_code(134);
}

#[test]
fn a_memory_limit_is_changed_while_the_guest_runs() {
    only_on_hearth!();
    let world = World::new();
    let image = world.program(&Guest::SLEEP);
    let limit = |id: &str| {
        let metrics = metrics(&world, id);
        let v1 = metrics["memory"]["usage"]["limit"].as_u64();
        v1.or_else(|| metrics["memory"]["usage_limit"].as_u64()).expect("there is one")
    };
    world.run(&image, "sleep").flags(["--memory-limit", "33554432"]).args(["3600"]).detach().ok();
    assert_eq!(limit("sleep"), 32 << 20);
    let api = world.api();
    api.update_task("sleep", &json!({"memory": {"limit": 64 << 20}})).expect("a limit is raised");
    assert_eq!(limit("sleep"), 64 << 20);
    // With a limit below its use the guest keeps its memory, and gets no more.
    api.update_task("sleep", &json!({"memory": {"limit": 1}})).expect("a limit is lowered");
    assert_eq!(limit("sleep"), 1);
    assert_eq!(world.task_status("sleep").as_deref(), Some("RUNNING"));
    world.kill("sleep", "SIGKILL").ok();
    world.wait_for_status("sleep", "STOPPED");
    let error = api.update_task("sleep", &json!({"memory": {"limit": 7}})).expect_err("it has ended");
    assert!(error.message().contains("ended"), "{error}");
}
