//! Pods, as kubelet makes them.

use std::fs;
use std::io::Read;
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use hearth_tests::{Guest, Image, Imported, Layer, Node, Runtime, SHORT, eventually};

use crate::{only_on_hearth, skip_unless};

/// 128 + SIGTERM.
const TERMINATED: i32 = 143;

/// An image with several programs; the first is the entry point.
fn programs(node: &Node, guests: &[Guest]) -> Imported {
    let runtime = node.runtime();
    let layer = guests
        .iter()
        .fold(Layer::new(), |layer, guest| layer.file(&program(guest, runtime), 0o755, guest.bytes_for(runtime)));
    let image = Image::scratch("hearth.test/programs:1").layer(layer).entrypoint([program(&guests[0], runtime)]);
    node.import(&image)
}

/// Where [`programs`] has a guest.
fn program(guest: &Guest, runtime: Runtime) -> String {
    match runtime {
        Runtime::Hearth => format!("/{}.wasm", guest.name()),
        Runtime::Runc => format!("/{}", guest.name()),
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the paths of a machine are text")
}

#[test]
fn a_pod_prints_to_its_log_and_exits() {
    let node = Node::new();
    let hello = node.program(&Guest::HELLO);
    let pod = node.pod("greeter").run();
    assert!(pod.is_ready());
    let container = pod.container("hello", &hello).args(["world"]).start();
    let status = container.ended();
    assert_eq!((status.exit_code, status.reason.as_str()), (0, "Completed"));
    assert!(container.stdout().contains("hello from C\n"), "{:?}", container.log());
    assert!(container.stdout().contains("arg 1: world\n"), "{:?}", container.log());
    assert!(container.stderr().contains("hello on stderr\n"), "{:?}", container.log());
    pod.stop();
    assert!(!pod.is_ready());
}

#[test]
fn an_exit_code_is_seen_in_the_status() {
    let node = Node::new();
    let exit = node.program(&Guest::EXIT);
    let pod = node.pod("failing").run();
    let status = pod.container("exit", &exit).args(["7"]).start().ended();
    assert_eq!((status.exit_code, status.reason.as_str()), (7, "Error"));
    // (containerd notes the start by its own clock after the shim's answer, which may be after so short a life.)
    assert!(status.finished_at >= status.created_at && status.started_at > 0, "{status:?}");
}

#[test]
fn a_container_is_started_again_in_the_same_pod() {
    let node = Node::new();
    let exit = node.program(&Guest::EXIT);
    let pod = node.pod("crashing").run();
    for code in 1..=3 {
        let container = pod.container("exit", &exit).args([code.to_string()]).start();
        assert_eq!(container.wait(), code);
        assert!(pod.is_ready(), "after attempt {code}");
        // As kubelet does: the last but one stays for `kubectl logs --previous`, older ones are removed.
        if code > 1 {
            container.remove();
        }
    }
}

#[test]
fn two_containers_of_one_pod_live_and_end_apart() {
    let node = Node::new();
    let image = programs(&node, &[Guest::SLEEP, Guest::HELLO]);
    let pod = node.pod("pair").run();
    let first = pod.container("first", &image).args(["3600"]).start();
    let second = pod.container("second", &image).args(["3600"]).start();
    for container in [&first, &second] {
        container.wait_for_stdout("asleep");
    }
    first.stop(SHORT.as_secs() as i64);
    assert_eq!(first.wait(), TERMINATED);
    first.remove();
    assert!(second.is_running() && pod.is_ready());
    let third = pod.container("third", &image).command([program(&Guest::HELLO, node.runtime())]).start();
    assert_eq!(third.wait(), 0);
    assert!(second.is_running());
    pod.stop();
    assert!(!second.is_running(), "it ends with its sandbox");
}

#[test]
fn the_containers_of_a_pod_share_the_limit_of_its_control_group() {
    only_on_hearth!();
    const MIB: u64 = 1 << 20;
    let node = Node::new();
    // As kubelet makes it for `spec.resources` of a pod.
    let name = format!("{}/budget", node.machine().cgroup());
    let (hierarchy, file) = match Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        true => ("/sys/fs/cgroup", "memory.max"),
        false => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
    };
    let group = PathBuf::from(format!("{hierarchy}{name}"));
    let made = fs::create_dir_all(&group).is_ok() && group.join(file).exists();
    skip_unless!(made, "this machine has no control groups of memory");
    let limit = |bytes: u64| fs::write(group.join(file), bytes.to_string()).expect("root may change it");
    limit(48 * MIB);
    let grow = node.program(&Guest::GROW);
    let pod = node.pod("budget").options(|options| options.cgroup_parent = Some(name.clone())).run();
    let run = |name: &str, arguments: [&str; 2]| pod.container(name, &grow).args(arguments).start();
    let holds = run("holds", ["30", "3600"]);
    holds.wait_for_stdout("got 30 MiB");
    let refused = run("refused", ["30", "0"]);
    assert_eq!(refused.wait(), 9, "{:?}", refused.log());
    let dies = run("dies", ["30", "abort"]);
    let status = dies.ended();
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"), "{:?}", dies.log());
    assert!(dies.stderr().contains(&format!("that of its pod {}", 48 * MIB)), "{}", dies.stderr());
    // A raise is seen by the next growth, and the end of a container makes room.
    limit(96 * MIB);
    assert_eq!(run("raised", ["30", "0"]).wait(), 0);
    limit(48 * MIB);
    holds.stop(SHORT.as_secs() as i64);
    assert_eq!(run("again", ["30", "0"]).wait(), 0);
    drop(pod);
    fs::remove_dir(&group).expect("no process is in it");
}

#[test]
fn a_container_is_stopped_within_its_grace() {
    let node = Node::new();
    let image = programs(&node, &[Guest::SLEEP, Guest::SPIN]);
    let pod = node.pod("stopped").run();
    let sleeping = pod.container("sleeping", &image).args(["3600"]).start();
    let spinning = pod.container("spinning", &image).command([program(&Guest::SPIN, node.runtime())]).start();
    for (container, text) in [(&sleeping, "asleep"), (&spinning, "spinning")] {
        container.wait_for_stdout(text);
        let begin = std::time::Instant::now();
        container.stop(SHORT.as_secs() as i64);
        assert!(begin.elapsed() < SHORT / 2, "it did not wait for the end of its grace");
        assert_eq!(container.wait(), TERMINATED);
        // A second stop changes nothing.
        container.stop(0);
    }
}

#[test]
fn a_container_is_stopped_by_the_signal_of_its_image() {
    let node = Node::new();
    let runtime = node.runtime();
    let (path, bytes) = match runtime {
        Runtime::Hearth => ("/sleep.wasm", Guest::SLEEP.wasm_bytes()),
        Runtime::Runc => ("/sleep", Guest::SLEEP.native_bytes()),
    };
    let pod = node.pod("signalled").run();
    for (signal, code) in [("SIGINT", 130), ("3", 131)] {
        let name = format!("stopped-by-{}", signal.to_lowercase());
        let image = node.import(&Image::of_file(&name, path, bytes.clone()).stop_signal(signal));
        let container = pod.container(&signal.to_lowercase(), &image).args(["3600"]).start();
        container.wait_for_stdout("asleep");
        container.stop(SHORT.as_secs() as i64);
        assert_eq!(container.wait(), code, "{signal}");
    }
}

#[test]
fn containers_that_prepare_a_volume_run_one_after_another() {
    let node = Node::new();
    let files = node.program(&Guest::FILES);
    let volume = node.write("empty-dir/.keep", b"");
    let volume = volume.parent().expect("a file is in a directory");
    let pod = node.pod("prepared").run();
    for (name, arguments) in [
        ("first-init", ["write", "/work/log", "one "]),
        ("second-init", ["append", "/work/log", "two "]),
        ("main", ["append", "/work/log", "three"]),
    ] {
        let container = pod.container(name, &files).args(arguments).volume(volume, "/work").start();
        assert_eq!(container.wait(), 0, "{name}: {:?}", container.log());
    }
    assert_eq!(fs::read_to_string(volume.join("log")).unwrap(), "one two three");
}

#[test]
fn typed_input_reaches_a_containers_stdin() {
    let node = Node::new();
    let tally = node.program(&Guest::TALLY);
    let pod = node.pod("typing").run();
    let container = pod.container("tally", &tally).options(|options| options.stdin = true).start();
    let mut stdin = container.attach(&node);
    for line in 1..=3 {
        stdin.write(b"a line\n");
        container.wait_for_stdout(&format!("{line}"));
    }
    drop(stdin);
    assert_eq!(container.wait(), 0, "it read to the end of its stdin: {:?}", container.log());
}

/// Writes a ConfigMap's files as kubelet does: into a directory of their own, which `..data` then names.
fn update_config_map(volume: &Path, generation: u32, files: &[(&str, &str)]) {
    let directory = format!("..generation_{generation}");
    fs::create_dir_all(volume.join(&directory)).unwrap();
    for (name, text) in files {
        fs::write(volume.join(&directory).join(name), text).unwrap();
        if generation == 1 {
            symlink(format!("..data/{name}"), volume.join(name)).unwrap();
        }
    }
    symlink(&directory, volume.join("..data_tmp")).unwrap();
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
    if generation > 1 {
        fs::remove_dir_all(volume.join(format!("..generation_{}", generation - 1))).unwrap();
    }
}

#[test]
fn an_update_of_a_config_map_is_seen_by_a_running_container() {
    let node = Node::new();
    let files = node.program(&Guest::FILES);
    let volume = node.path("config-map");
    update_config_map(&volume, 1, &[("colour", "red"), ("shape", "round")]);
    let pod = node.pod("configured").run();
    let container = |name, arguments: &[&str]| {
        pod.container(name, &files).args(arguments.iter().copied()).read_only_volume(&volume, "/config").start()
    };
    let shape = container("shape", &["read", "/config/shape"]);
    assert_eq!((shape.wait(), shape.stdout().trim_end()), (0, "round"), "{:?}", shape.log());
    let waiting = container("colour", &["await", "/config/colour", "blue"]);
    waiting.wait_for_stdout("waiting");
    update_config_map(&volume, 2, &[("colour", "blue"), ("shape", "round")]);
    assert_eq!(waiting.wait(), 0, "{:?}", waiting.log());
    let writing = container("writing", &["write", "/config/colour", "green"]);
    assert_ne!(writing.wait(), 0, "it is read-only");
}

#[test]
fn single_files_are_bound_into_a_container() {
    let node = Node::new();
    let files = node.program(&Guest::FILES);
    let hosts = node.write("etc-hosts", b"127.0.0.1 localhost\n10.87.0.99 elsewhere\n");
    let message = node.write("termination-log", b"");
    let pod = node.pod("bound").run();
    let run = |name: &str, arguments: &[&str]| {
        let plan = pod.container(name, &files).args(arguments.iter().copied());
        let container = plan.volume(&hosts, "/etc/hosts").volume(&message, "/dev/termination-log").start();
        assert_eq!(container.wait(), 0, "{name}: {:?}", container.log());
        container.stdout()
    };
    assert!(run("hosts", &["read", "/etc/hosts"]).contains("10.87.0.99 elsewhere"));
    assert_eq!(run("hostname", &["read", "/etc/hostname"]), "bound\n");
    run("resolver", &["read", "/etc/resolv.conf"]);
    run("message", &["write", "/dev/termination-log", "out of luck"]);
    assert_eq!(fs::read_to_string(&message).unwrap(), "out of luck");
}

#[test]
fn a_read_only_root_has_writable_volumes() {
    let node = Node::new();
    let files = node.program(&Guest::FILES);
    let directory = |name: &str| -> PathBuf {
        let path = node.path(name);
        fs::create_dir_all(&path).unwrap();
        path
    };
    let (empty, memory, whole, part) =
        (directory("empty"), directory("memory"), directory("whole/part"), directory("part"));
    // As kubelet prepares them, an emptyDir in memory is a mount of its own, and so is a subPath.
    node.program_on_machine("mount", ["-t", "tmpfs", "-o", "size=1m", "tmpfs", text(&memory)]).ok();
    node.program_on_machine("mount", ["--bind", text(&whole), text(&part)]).ok();
    let pod = node.pod("read-only").run();
    let run = |name: &str, arguments: [&str; 3]| {
        let plan = pod.container(name, &files).args(arguments).options(|options| options.read_only_root = true);
        let plan = plan.volume(&empty, "/empty").volume(&memory, "/memory").volume(&part, "/part");
        let container = plan.start();
        (container.wait(), container.stderr())
    };
    let (code, message) = run("root", ["write", "/new", "x"]);
    assert!(code != 0 && message.contains("Read-only file system"), "{code}: {message}");
    for (name, path) in [("empty", "/empty/new"), ("memory", "/memory/new"), ("part", "/part/new")] {
        assert_eq!(run(name, ["write", path, "x"]), (0, String::new()), "{path}");
    }
    assert_eq!(fs::read_to_string(empty.join("new")).unwrap(), "x");
    assert_eq!(fs::read_to_string(whole.join("new")).unwrap(), "x");
    drop(pod);
    for mounted in [&memory, &part] {
        node.program_on_machine("umount", [text(mounted)]).ok();
    }
}

#[test]
fn a_pod_has_an_address() {
    let node = Node::new();
    let (first, second) = (node.pod("first").run(), node.pod("second").run());
    let addresses = [first.ip(), second.ip()];
    assert!(addresses.iter().all(|address| address.starts_with("10.87.")), "{addresses:?}");
    assert_ne!(addresses[0], addresses[1]);
    let outside = node.pod("outside").options(|options| options.host_network = true).run();
    assert_eq!(outside.ip(), "");
}

#[test]
fn a_restart_of_containerd_loses_no_pod() {
    let mut node = Node::new();
    let await_ = node.program(&Guest::AWAIT);
    let volume = node.write("signals/.keep", b"");
    let volume = volume.parent().expect("a file is in a directory").to_owned();
    let pods: Vec<_> = (0..3).map(|index| node.pod(&format!("pod-{index}")).run()).collect();
    let containers: Vec<_> = pods
        .iter()
        .enumerate()
        .map(|(index, pod)| {
            let arguments = ["/signals/go".to_owned(), (index + 3).to_string()];
            pod.container("waiter", &await_).args(arguments).read_only_volume(&volume, "/signals").start()
        })
        .collect();
    for container in &containers {
        container.wait_for_stdout("waiting");
    }
    let before = node.pods();
    node.restart_containerd();
    assert_eq!(node.pods(), before, "the same pods, all ready");
    for container in &containers {
        assert!(container.is_running(), "{:?}", container.status());
    }
    fs::write(volume.join("go"), b"").unwrap();
    for (index, container) in containers.iter().enumerate() {
        assert_eq!(container.wait(), index as i32 + 3);
    }
    // A pod from before the restart takes new containers.
    let exit = node.program(&Guest::EXIT);
    assert_eq!(pods[0].container("after", &exit).args(["5"]).start().wait(), 5);
}

#[test]
fn the_memory_a_container_uses_is_told_within_five_per_cent() {
    const MIB: f64 = 1024.0 * 1024.0;
    const TAKEN: f64 = 64.0 * MIB;
    let node = Node::new();
    let image = programs(&node, &[Guest::GROW, Guest::SLEEP]);
    let pod = node.pod("measured").run();
    let grown = pod.container("grown", &image).args(["64", "3600"]).start();
    let other = pod.container("other", &image).command([program(&Guest::SLEEP, node.runtime())]).start();
    grown.wait_for_stdout("got 64 MiB");
    let memory = |stats: &hearth_tests::cri::v1::ContainerStats| {
        let memory = stats.memory.as_ref().expect("memory is reported");
        memory.working_set_bytes.expect("the working set is reported").value as f64
    };
    let all = node.stats();
    assert!(all.contains_key(other.id()), "{all:?}");
    for reported in [memory(&all[grown.id()]), memory(&grown.stats())] {
        assert!((reported / TAKEN - 1.0).abs() < 0.05, "{} MiB of {}", reported / MIB, TAKEN / MIB);
    }
}

#[test]
fn files_belong_to_the_user_and_group_of_the_pod() {
    let node = Node::new();
    let files = node.program(&Guest::FILES);
    let (volume, private) = (node.path("owned"), node.path("private"));
    // An emptyDir with fsGroup 2000, as kubelet prepares it: it has the group, and new files get it, too.
    for directory in [&volume, &private] {
        fs::create_dir(directory).unwrap();
    }
    node.program_on_machine("chgrp", ["2000", text(&volume)]).ok();
    node.program_on_machine("chmod", ["2775", text(&volume)]).ok();
    node.program_on_machine("chmod", ["0700", text(&private)]).ok();
    let pod = node.pod("owned").run();
    let run = |name: &str, arguments: [&str; 3]| {
        let plan = pod.container(name, &files).args(arguments).volume(&volume, "/data").volume(&private, "/private");
        let plan = plan.options(|options| {
            (options.user, options.group) = (Some(1000), Some(1000));
            options.supplemental_groups = vec![2000];
        });
        let container = plan.start();
        (container.wait(), container.stderr())
    };
    assert_eq!(run("writing", ["write", "/data/new", "mine"]), (0, String::new()));
    let metadata = fs::metadata(volume.join("new")).unwrap();
    assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o777), (1000, 2000, 0o644));
    let (code, message) = run("prying", ["write", "/private/new", "x"]);
    assert!(code != 0 && message.contains("Permission denied"), "{code}: {message}");
}

#[test]
fn a_probe_runs_a_command_in_a_container() {
    let node = Node::new();
    let runtime = node.runtime();
    let image = programs(&node, &[Guest::SLEEP, Guest::EXIT, Guest::HELLO]);
    let pod = node.pod("probed").run();
    let container = pod.container("sleeper", &image).args(["3600"]).start();
    container.wait_for_stdout("asleep");
    for code in [0, 7] {
        let answer = container.exec([program(&Guest::EXIT, runtime), code.to_string()]).unwrap();
        assert_eq!(answer.exit_code, code);
    }
    let answer = container.exec([program(&Guest::HELLO, runtime), "probe".to_owned()]).unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&answer.stdout), String::from_utf8_lossy(&answer.stderr));
    assert!(stdout.contains("arg 1: probe\n") && stderr.contains("hello on stderr\n"), "{stdout}{stderr}");
    assert!(container.is_running());
    container.exec(["/no/such/program"]).expect_err("it is not there");
    assert!(container.is_running());
}

#[test]
fn no_log_of_a_short_life_is_lost() {
    const THREADS: usize = 8;
    const LIVES: usize = 10;
    let node = Node::new();
    let hello = node.program(&Guest::HELLO);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (node, hello) = (&node, &hello);
            scope.spawn(move || {
                let pod = node.pod(&format!("pod-{thread}")).run();
                for life in 0..LIVES {
                    let container = pod.container("hello", hello).args([life.to_string()]).start();
                    assert_eq!(container.wait(), 0);
                    let (stdout, stderr) = (container.stdout(), container.stderr());
                    assert!(stdout.contains(&format!("arg 1: {life}\n")), "{thread}/{life}: {stdout:?}");
                    assert_eq!(stderr, "hello on stderr\n", "{thread}/{life}");
                    container.remove();
                }
            });
        }
    });
}

#[test]
fn a_container_beyond_its_memory_is_shown_as_killed() {
    let node = Node::new();
    let grow = node.program(&Guest::GROW);
    let pod = node.pod("greedy").run();
    let limit = |bytes| pod.container("grow", &grow).options(move |o| o.resources.memory_limit_in_bytes = bytes);
    // A guest's allocation fails, and it aborts as most programs do; the kernel kills a native program instead.
    let status = limit(64 << 20).args(["256", "abort"]).start().ended();
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
    assert_eq!(limit(64 << 20).args(["32"]).start().wait(), 0);
}

#[test]
fn a_container_gets_no_more_than_its_share_of_a_core() {
    const NANOSECONDS: f64 = 1e9;
    const SHARE: f64 = 0.2;
    /// CPU time that the container uses while it is observed, in seconds.
    const USED: f64 = 0.4;
    /// The quota of one period, in seconds: it may have been used up just before.
    const QUOTA: f64 = 0.02;
    let node = Node::new();
    let spin = node.program(&Guest::SPIN);
    let pod = node.pod("bounded").run();
    let plan = pod.container("spin", &spin).options(|options| {
        (options.resources.cpu_quota, options.resources.cpu_period) = (20_000, 100_000);
    });
    let container = plan.start();
    let used = || {
        let cpu = container.stats().cpu.expect("it is reported");
        (
            cpu.timestamp as f64 / NANOSECONDS,
            cpu.usage_core_nano_seconds.map_or(0, |used| used.value) as f64 / NANOSECONDS,
        )
    };
    let (begin, before) = used();
    let (end, after) = eventually("it has used its time", SHORT, || Some(used()).filter(|now| now.1 - before > USED));
    let (elapsed, used) = (end - begin, after - before);
    // A busy machine gives it less, never more.
    assert!(used <= SHARE * elapsed + 2.0 * QUOTA, "{used} s of CPU time in {elapsed} s");
}

#[test]
fn a_pod_serves_tcp_at_its_address() {
    let node = Node::new();
    let tcp = node.program(&Guest::TCP);
    let pod = node.pod("server").run();
    let container = pod.container("tcp", &tcp).args(["8080"]).start();
    container.wait_for_stdout("listening");
    let address = format!("{}:8080", pod.ip());
    let greeting = node.machine().in_network(|| {
        let mut text = String::new();
        TcpStream::connect(&address).and_then(|mut stream| stream.read_to_string(&mut text)).map(|_| text)
    });
    assert_eq!(greeting.unwrap(), "hello over TCP\n");
}

#[test]
fn why_a_container_ended_is_in_its_termination_message() {
    only_on_hearth!();
    let node = Node::new();
    let image = programs(&node, &[Guest::TRAP, Guest::GROW, Guest::FILES, Guest::RECURSE]);
    let pod = node.pod("unlucky").run();
    let ended = |name: &str, guest: &Guest, arguments: &[&str]| {
        let message = node.write(&format!("messages/{name}"), b"");
        let command: Vec<_> =
            [program(guest, node.runtime())].into_iter().chain(arguments.iter().map(|&a| a.into())).collect();
        let plan = pod.container(name, &image).command(command).volume(&message, "/dev/termination-log");
        plan.options(|o| o.resources.memory_limit_in_bytes = 64 << 20).start().wait();
        fs::read_to_string(&message).unwrap()
    };
    assert!(ended("trap", &Guest::TRAP, &[]).contains("unreachable"));
    assert!(ended("stack", &Guest::RECURSE, &[]).contains("call stack exhausted"));
    assert!(ended("memory", &Guest::GROW, &["256", "abort"]).starts_with("out of memory"));
    assert_eq!(ended("own", &Guest::FILES, &["write", "/dev/termination-log", "my own"]), "my own");
}
