//! Pods with a process of their own (isolation level `pod`).

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;

use hearth_tests::daemons::{HearthdOptions, with_sandboxer};
use hearth_tests::machine::Machine;
use hearth_tests::task::Run;
use hearth_tests::{Guest, Image, Imported, Layer, Node, SHORT, World, eventually};
use serde_json::Value;

use crate::only_on_hearth;

/// A task at level `pod`, by the option that a handler has. Its control group is the machine's.
fn isolated<'a>(world: &'a World, image: &Imported, id: &str) -> Run<'a> {
    let cgroup = format!("{}/{id}", world.machine().cgroup());
    world.run(image, id).flags(["--runtime-config-path", "isolation=pod", "--cgroup", &cgroup])
}

/// A task in the list of the daemons and cells.
fn info(world: &World, id: &str) -> Value {
    let tasks = world.ask(&["ps", "--all"]);
    let found = tasks.as_array().expect("a list").iter().find(|task| task["id"] == id).cloned();
    found.unwrap_or_else(|| panic!("no task {id} in {tasks}"))
}

/// The pid of a cell, as the test sees it: the one process in its control group.
fn cell(world: &World, id: &str) -> i32 {
    let group = memory_group(world, id);
    let text = fs::read_to_string(group.join("cgroup.procs")).expect("the group is there");
    let mut pids = text.lines().map(|line| line.parse().expect("a number"));
    let pid = pids.next().expect("the cell is in its group");
    assert_eq!(pids.next(), None, "and nothing else is");
    pid
}

/// The control group of a task, with the controller of memory.
fn memory_group(world: &World, id: &str) -> PathBuf {
    let below = format!("{}/{id}", world.machine().cgroup().trim_start_matches('/'));
    let v1 = PathBuf::from("/sys/fs/cgroup/memory").join(&below);
    if v1.exists() { v1 } else { PathBuf::from("/sys/fs/cgroup").join(&below) }
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).expect("a process id");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it lives");
}

/// The field of `/proc/PID/status`.
fn status(pid: i32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {field} in {text}")).trim().to_owned()
}

fn tools() -> Image {
    let layer = [Guest::SLEEP, Guest::EXIT, Guest::HELLO]
        .iter()
        .fold(Layer::new(), |layer, guest| layer.file(&format!("/{}.wasm", guest.name()), 0o755, guest.wasm_bytes()));
    Image::scratch("hearth.test/tools:1").layer(layer).entrypoint(["/sleep.wasm"])
}

#[test]
fn a_task_in_a_cell_runs_as_any_other() {
    only_on_hearth!();
    let world = World::new();
    let output = isolated(&world, &world.program(&Guest::HELLO), "hello").args(["there"]).ok();
    assert!(output.stdout().contains("arg 1: there\n"), "{}", output.stdout());
    assert!(output.stderr().contains("hello on stderr\n"), "{}", output.stderr());
    isolated(&world, &world.program(&Guest::EXIT), "exit").args(["7"]).run().assert_code(7);
    isolated(&world, &world.program(&Guest::TRAP), "trap").run().assert_code(134);
    let cat = isolated(&world, &world.program(&Guest::CAT), "cat").ctr().stdin("through a cell").ok();
    assert_eq!(cat.stdout(), "through a cell");
    // Cells that ended in good order left nothing.
    eventually("the cells are gone", SHORT, || {
        (world.metrics().sum("hearth_cells_ended_total", &[("reason", "done")]) == 4.0).then_some(())
    });
    assert_eq!(world.metrics().sum("hearth_cells", &[]), 0.0);
    assert_eq!(world.machine().cgroups(), Vec::<PathBuf>::new());
}

#[test]
fn a_cell_is_a_process_of_its_own_in_the_control_group_of_its_pod() {
    only_on_hearth!();
    let world = World::new();
    let image = world.import(&tools());
    isolated(&world, &image, "alone").args(["3600"]).detach().ok();
    world.run(&image, "shared").args(["3600"]).detach().ok();
    let (alone, shared) = (info(&world, "alone"), info(&world, "shared"));
    assert_eq!((alone["isolation"].as_str(), shared["isolation"].as_str()), (Some("pod"), Some("node")));
    assert_ne!(alone["pid"], shared["pid"]);
    let listed = world.hearthctl(["ps"]).ok().stdout();
    assert!(listed.lines().any(|line| line.contains("alone") && line.contains(" pod ")), "{listed}");
    world.hearthctl(["inspect", "alone"]).ok();
    let pid = cell(&world, "alone");
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim(), "hearthd-cell");
    assert_eq!((status(pid, "NoNewPrivs").as_str(), status(pid, "Seccomp").as_str()), ("1", "2"));
    let capabilities = u64::from_str_radix(&status(pid, "CapBnd"), 16).unwrap();
    // CAP_SYS_PTRACE, CAP_SYS_MODULE, CAP_NET_ADMIN, CAP_SYS_BOOT, CAP_MKNOD, CAP_KILL of linux/capability.h.
    for gone in [19, 16, 12, 22, 27, 5] {
        assert_eq!(capabilities & (1 << gone), 0, "capability {gone}");
    }
    // Its mounts are its own: the node and the daemon see none of them, and it sees none of another task's.
    assert!(!world.machine_mounts().iter().any(|mount| mount.contains("/alone/")), "{:?}", world.machine_mounts());
    assert!(!world.hearthd_mounts().iter().any(|mount| mount.contains("/alone/")), "{:?}", world.hearthd_mounts());
    let mounts = fs::read_to_string(format!("/proc/{pid}/mounts")).unwrap();
    assert!(mounts.contains("/alone/rootfs") && !mounts.contains("/shared/rootfs"), "{mounts}");
    // exec, kill and statistics go to the cell.
    world.ctr(["tasks", "exec", "--exec-id", "e", "alone", "/exit.wasm", "5"]).run().assert_code(5);
    let metrics = world.ctr(["tasks", "metrics", "--format", "json", "alone"]).ok().stdout();
    assert!(metrics.contains("usage"), "{metrics}");
    world.kill("alone", "SIGTERM").ok();
    assert_eq!(world.finish("alone"), 143);
    assert_eq!(world.task_status("shared").as_deref(), Some("RUNNING"));
    world.kill("shared", "SIGKILL").ok();
    world.finish("shared");
}

#[test]
fn the_kernel_ends_a_cell_over_its_memory_limit_and_containerd_is_told() {
    only_on_hearth!();
    let world = World::new();
    let image = world.program(&Guest::GROW);
    let events = world.events();
    world.run(&image, "other").args(["4", "3600"]).detach().ok();
    let limit = (64 << 20).to_string();
    // ctr may find the task gone before it has the answer to its start.
    isolated(&world, &image, "greedy").flags(["--memory-limit", &limit]).args(["1000000", "3600"]).detach().run();
    events.wait_for_topic("/tasks/oom", "greedy");
    let exit = events.wait_for_topic("/tasks/exit", "greedy");
    assert_eq!(exit.exit_status(), 137);
    eventually("its remains are gone", SHORT, || {
        (world.metrics().sum("hearth_cells_ended_total", &[("reason", "out_of_memory")]) == 1.0).then_some(())
    });
    assert_eq!(world.metrics().sum("hearth_cells", &[]), 0.0);
    assert!(!memory_group(&world, "greedy").exists());
    assert_eq!(world.task_status("other").as_deref(), Some("RUNNING"));
    world.remove("greedy");
    // A limit that the process itself would not fit into is refused with the reason.
    let refused = isolated(&world, &image, "tiny").flags(["--memory-limit", "1048576"]).run();
    refused.assert_fault(&["memory.limit", "the pod's process holds"]);
    world.kill("other", "SIGKILL").ok();
    world.finish("other");
}

#[test]
fn a_cell_that_dies_takes_its_own_task_and_no_other() {
    only_on_hearth!();
    let world = World::new();
    let image = world.import(&tools());
    let events = world.events();
    isolated(&world, &image, "victim").args(["3600"]).detach().ok();
    isolated(&world, &image, "neighbour").args(["3600"]).detach().ok();
    kill(cell(&world, "victim"));
    assert_eq!(events.wait_for_topic("/tasks/exit", "victim").exit_status(), 137);
    eventually("its remains are gone", SHORT, || {
        let died = world.metrics().sum("hearth_cells_ended_total", &[("reason", "died")]);
        (died == 1.0 && !memory_group(&world, "victim").exists()).then_some(())
    });
    assert_eq!(world.task_status("neighbour").as_deref(), Some("RUNNING"));
    world.ctr(["tasks", "exec", "--exec-id", "e", "neighbour", "/exit.wasm", "3"]).run().assert_code(3);
    world.remove("victim");
    world.kill("neighbour", "SIGKILL").ok();
    assert_eq!(world.finish("neighbour"), 137);
}

#[test]
fn cells_outlive_the_daemon_and_the_next_one_finds_them() {
    only_on_hearth!();
    let mut world = World::new();
    let image = world.import(&tools());
    for id in ["one", "two", "dies"] {
        isolated(&world, &image, id).args(["3600"]).detach().ok();
    }
    let before = world.tasks();
    let dying = cell(&world, "dies");
    world.kill_hearthd();
    assert_eq!(world.tasks(), before, "the same tasks, pids and states");
    // A program that the cell has run needs no daemon. One task ends without one, and one dies.
    world.ctr(["tasks", "exec", "--exec-id", "again", "two", "/sleep.wasm", "0"]).ok();
    world.kill("one", "SIGTERM").ok();
    assert_eq!(world.finish("one"), 143);
    kill(dying);
    world.start_hearthd();
    eventually("the new daemon has told of the end", SHORT, || {
        (world.metrics().sum("hearth_cells_ended_total", &[("reason", "died")]) == 1.0).then_some(())
    });
    assert_ne!(world.task_status("dies").as_deref(), Some("RUNNING"));
    assert_eq!(info(&world, "two")["isolation"], "pod");
    // A program that the cell has not seen comes from the new daemon.
    world.ctr(["tasks", "exec", "--exec-id", "e", "two", "/exit.wasm", "4"]).run().assert_code(4);
    eventually("what is left of the others is gone", SHORT, || {
        (!memory_group(&world, "one").exists() && !memory_group(&world, "dies").exists()).then_some(())
    });
    world.remove("dies");
    world.kill("two", "SIGKILL").ok();
    assert_eq!(world.finish("two"), 137);
}

#[test]
fn cells_go_on_through_an_upgrade_and_restarts_of_containerd() {
    only_on_hearth!();
    let mut world = World::new();
    let image = world.import(&tools());
    isolated(&world, &image, "survivor").args(["3600"]).detach().ok();
    let before = world.tasks();
    world.upgrade_hearthd();
    world.kill_containerd();
    world.start_containerd();
    assert_eq!(world.tasks(), before, "the same task, pid and state");
    eventually("the old daemon has left: no cell keeps it", SHORT, || (world.older_hearthds() == 0).then_some(()));
    world.ctr(["tasks", "exec", "--exec-id", "e", "survivor", "/exit.wasm", "6"]).run().assert_code(6);
    world.kill("survivor", "SIGTERM").ok();
    assert_eq!(world.finish("survivor"), 143);
}

#[test]
fn a_stop_of_the_daemon_ends_cells_and_reports_their_exits() {
    only_on_hearth!();
    let mut world = World::configured("[isolation]\nlevel = \"pod\"\nspares = 2\n");
    let image = world.import(&tools());
    let cgroup = format!("{}/quick", world.machine().cgroup());
    world.run(&image, "quick").flags(["--cgroup", &cgroup]).args(["3600"]).detach().ok();
    assert_eq!(info(&world, "quick")["isolation"], "pod");
    eventually("spares wait", SHORT, || (world.metrics().sum("hearth_cell_spares", &[]) == 2.0).then_some(()));
    world.stop_hearthd();
    assert_ne!(world.task_status("quick").as_deref(), Some("RUNNING"));
    assert_eq!(world.machine().cgroups(), Vec::<PathBuf>::new());
    world.start_hearthd();
    world.remove("quick");
}

#[test]
fn what_a_cell_cannot_have_is_refused_with_the_level() {
    only_on_hearth!();
    let world = World::new();
    let image = world.import(&tools());
    let refused =
        isolated(&world, &image, "logged").flags(["--log-uri", "binary:///bin/cat"]).args(["1"]).detach().run();
    refused.assert_fault(&["isolation level pod", "log"]);
    let refused = world.run(&image, "vm").flags(["--runtime-config-path", "isolation=vm"]).run();
    refused.assert_fault(&["\"vm\"", "node and pod"]);
    let refused = world.run(&image, "nowhere").flags(["--runtime-config-path", "isolation=pod", "--cgroup", ""]).run();
    refused.assert_fault(&["cgroupsPath", "isolation level pod"]);
}

/// A node whose pods each have a process.
fn strict() -> Node {
    Node::with(HearthdOptions { config: "[isolation]\nlevel = \"pod\"\n".into(), ..HearthdOptions::default() })
}

#[test]
fn a_pod_in_a_cell_has_its_network_its_containers_and_their_restarts() {
    only_on_hearth!();
    crate::skip_unless!(!with_sandboxer(), "pods of the sandbox controller have no process of their own");
    let node = strict();
    let (http, image) = (node.program(&Guest::HTTP), node.import(&tools()));
    let pod = node.pod("web").run();
    let service = pod.container("service", &http).start();
    let fetched = eventually("the service answers", SHORT, || fetch(&pod.ip(), node.machine()));
    assert!(fetched.starts_with("HTTP/1.1 200"), "{fetched}");
    // A second container of the pod is in the same cell, and starts again there.
    for code in 1..=3 {
        let container = pod.container("exit", &image).command(["/exit.wasm", &code.to_string()]).start();
        assert_eq!(container.wait(), code);
    }
    let tasks = node.ask(&["ps", "--all"]);
    let pids: std::collections::BTreeSet<_> =
        tasks.as_array().unwrap().iter().map(|task| task["pid"].as_u64()).collect();
    assert_eq!(pids.len(), 1, "{tasks}");
    pod.stop();
    assert!(!service.is_running());
}

/// The first bytes of an answer from the pod, or `None` while it does not listen.
fn fetch(ip: &str, machine: &Machine) -> Option<String> {
    machine.in_network(|| {
        let mut stream = TcpStream::connect((ip, 8080)).ok()?;
        stream.write_all(b"GET /count HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    })
}

#[test]
fn a_pod_whose_process_dies_shows_the_reason() {
    only_on_hearth!();
    crate::skip_unless!(!with_sandboxer(), "pods of the sandbox controller have no process of their own");
    let node = strict();
    let image = node.program(&Guest::GROW);
    let pod = node.pod("greedy").run();
    let log = node.write("termination-log", b"");
    let container = pod
        .container("grow", &image)
        .args(["1000000", "3600"])
        .volume(&log, "/dev/termination-log")
        .options(|options| options.resources.memory_limit_in_bytes = 64 << 20)
        .start();
    // (The exit code is CRI's own if the connection on which it waits ends before the event comes.)
    container.ended();
    eventually("the reason is shown", SHORT, || (container.status().reason == "OOMKilled").then_some(()));
    let text = eventually("the reason is in the termination log", SHORT, || {
        fs::read_to_string(&log).ok().filter(|text| !text.is_empty())
    });
    assert!(text.contains("out of memory"), "{text}");
    eventually("the pod is not ready any more", SHORT, || (!pod.is_ready()).then_some(()));
}

#[test]
fn a_native_container_is_refused_in_a_pod_with_its_own_process() {
    only_on_hearth!();
    crate::skip_unless!(!with_sandboxer(), "pods of the sandbox controller have no process of their own");
    let node = strict();
    let native = node.import(&Image::of_file("peer", "/peer", Guest::PEER.native_bytes()));
    let pod = node.pod("mixed").run();
    let container = pod.container("native", &native).args(["where"]).create();
    let error = container.try_start().expect_err("a native container").to_string();
    assert!(error.contains("isolation level pod"), "{error}");
}
