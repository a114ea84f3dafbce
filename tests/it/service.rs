//! hearthd as a service of systemd: passed sockets, the watchdog, and reloads.

use std::fs;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::sync::Arc;
use std::time::Duration;

use hearth_tests::daemons::{HearthdOptions, try_start_hearthd};
use hearth_tests::{Guest, SHORT, World, eventually};

use crate::only_on_hearth;

#[test]
fn a_passed_socket_outlives_the_daemon_and_a_start_waits_for_the_next() {
    only_on_hearth!();
    let mut world = World::new();
    let hello = world.program(&Guest::HELLO);
    world.stop_hearthd();
    let path = world.layout().control_socket();
    let listener = Arc::new(UnixListener::bind(&path).unwrap());
    let options = HearthdOptions { passed: Some(listener), ..HearthdOptions::default() };
    let start = || {
        let (hearthd, ready) = try_start_hearthd(world.machine(), world.layout(), &options);
        assert!(ready, "{}", world.hearthd_log());
        hearthd
    };
    let hearthd = start();
    world.run(&hello, "first").ok();
    assert!(hearthd.stop().success());
    assert!(path.exists(), "the daemon does not remove a passed socket");
    // No daemon runs: the connection waits in the socket's queue, as with systemd.
    let waiting = world.run(&hello, "between").spawn();
    eventually("the shim asks", SHORT, || {
        let processes = world.machine().processes();
        processes.iter().any(|(_, line)| line.contains("containerd-shim-hearth-v1")).then_some(())
    });
    let hearthd = start();
    waiting.wait(SHORT).assert_code(0);
    assert!(hearthd.stop().success());
    fs::remove_file(path).unwrap();
}

#[test]
fn a_passed_descriptor_that_is_no_listener_is_refused() {
    only_on_hearth!();
    let mut world = World::new();
    world.stop_hearthd();
    let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let passed = Some(Arc::new(UnixListener::from(std::os::fd::OwnedFd::from(one))));
    let options = HearthdOptions { passed, ..HearthdOptions::default() };
    let (mut hearthd, ready) = try_start_hearthd(world.machine(), world.layout(), &options);
    assert!(!ready);
    assert!(!hearthd.wait(SHORT).expect("it ends").success());
    let log = world.hearthd_log();
    assert!(log.contains("LISTEN_FDS"), "{log}");
}

#[test]
fn a_watchdog_is_fed_while_guests_compute_and_while_nothing_runs() {
    only_on_hearth!();
    let mut world = World::new();
    let spin = world.program(&Guest::SPIN);
    world.stop_hearthd();
    let options = HearthdOptions { watchdog: Some(Duration::from_millis(300)), ..HearthdOptions::default() };
    let (hearthd, ready) = try_start_hearthd(world.machine(), world.layout(), &options);
    assert!(ready, "{}", world.hearthd_log());
    fs::remove_file(world.layout().notify_socket()).unwrap();
    let systemd = UnixDatagram::bind(world.layout().notify_socket()).unwrap();
    systemd.set_read_timeout(Some(SHORT)).unwrap();
    let signs = |count: usize| {
        let mut message = [0; 256];
        for _ in 0..count {
            let length = systemd.recv(&mut message).expect("a sign of life");
            assert_eq!(message[..length].trim_ascii(), b"WATCHDOG=1");
        }
    };
    signs(5);
    world.run(&spin, "busy").detach().ok();
    signs(5);
    world.remove("busy");
    assert!(hearthd.stop().success());
}

#[test]
fn a_configuration_is_read_again_where_that_can_be() {
    only_on_hearth!();
    let mut world = World::new();
    let sleep = world.program(&Guest::SLEEP);
    world.run(&sleep, "first").detach().ok();
    let file = world.layout().hearthd_config();
    let text = fs::read_to_string(&file).unwrap();
    let reload = |more: &str, said: &str| {
        let lines = |world: &World| world.hearthd_log().matches(said).count();
        let before = lines(&world);
        fs::write(&file, text.clone() + more).unwrap();
        world.hearthd().signal(rustix::process::Signal::HUP);
        eventually(said, SHORT, || (lines(&world) > before).then_some(()));
    };
    reload("[rpc]\ntasks_max = 1\n", "the configuration was read again");
    world.run(&sleep, "second").detach().run().assert_fault(&["rpc.tasks_max"]);
    // A setting that needs a restart is named, and no other setting is changed.
    reload("[rpc]\ntasks_max = 2\n[engine]\npool_slots = 7\n", "needs a restart");
    assert!(world.hearthd_log().contains("engine.pool_slots"));
    world.run(&sleep, "third").detach().run().assert_fault(&["rpc.tasks_max"]);
    reload("[rpc]\ntask_max = 2\n", "did you mean tasks_max");
    reload("", "the configuration was read again");
    let said = world.hearthctl(["reload"]).ok().stdout();
    assert!(said.contains("has read its configuration"), "{said}");
    fs::write(&file, text.clone() + "[engine]\npool_slots = 7\n").unwrap();
    let refused = world.hearthctl(["reload"]).run();
    assert!(!refused.status.success() && refused.stderr().contains("engine.pool_slots"), "{refused}");
    fs::write(&file, &text).unwrap();
    world.run(&sleep, "fourth").detach().ok();
    world.stop_hearthd();
    world.start_hearthd();
}
