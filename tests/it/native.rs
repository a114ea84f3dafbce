//! Native containers beside Wasm ones, in one pod.

use std::collections::BTreeMap;

use hearth_tests::cri::v1;
use hearth_tests::daemons::with_sandboxer;
use hearth_tests::{Guest, Image, Imported, Node, SHORT, eventually};

use crate::volumes::{Mounted, propagated, there};
use crate::{only_on_hearth, skip_unless};

/// The native program.
fn peer(node: &Node) -> Imported {
    node.import(&Image::of_file("peer", "/peer", Guest::PEER.native_bytes()))
}

/// The output of `peer where`, by name.
fn facts(text: &str) -> BTreeMap<String, String> {
    text.lines().filter_map(|line| line.split_once(' ')).map(|(name, value)| (name.into(), value.into())).collect()
}

#[test]
fn a_native_container_prepares_what_a_wasm_container_reads() {
    only_on_hearth!();
    let node = Node::new();
    let native = node.import(&Image::of_file("native-files", "/files", Guest::FILES.native_bytes()));
    let wasm = node.program(&Guest::FILES);
    let volume = node.write("empty-dir/.keep", b"");
    let volume = volume.parent().expect("a file is in a directory");
    let pod = node.pod("prepared").run();
    let init = pod.container("init", &native).args(["write", "/work/text", "prepared"]).volume(volume, "/work").start();
    assert_eq!(init.wait(), 0, "{:?}", init.log());
    init.remove();
    let main = pod.container("main", &wasm).args(["read", "/work/text"]).volume(volume, "/work").start();
    assert_eq!((main.wait(), main.stdout().as_str()), (0, "prepared"));
    let failing = pod.container("failing", &native).args(["read", "/no/such"]).start();
    assert_ne!(failing.wait(), 0);
}

#[test]
fn a_sidecar_shares_the_network_and_the_name_of_its_pod() {
    only_on_hearth!();
    let node = Node::new();
    let (peer, net) = (peer(&node), node.program(&Guest::NET));
    let pods = [node.pod("first").run(), node.pod("second").run()];
    let mut seen = Vec::new();
    for pod in &pods {
        // The same port in both pods.
        let server = pod.container("server", &net).args(["listen", "8080", "from Wasm"]).start();
        server.wait_for_stdout("listening");
        let client = pod.container("client", &peer).args(["fetch", "8080"]).start();
        assert_eq!((client.wait(), client.stdout().as_str()), (0, "from Wasm: hello\n"), "{:?}", client.log());
        let twice = ["one", "two"].map(|name| {
            let container = pod.container(name, &peer).args(["where"]).start();
            assert_eq!(container.wait(), 0, "{:?}", container.log());
            facts(&container.stdout())
        });
        for shared in ["host", "ipc", "net", "uts"] {
            assert_eq!(twice[0][shared], twice[1][shared], "{shared}");
        }
        seen.push(twice[0].clone());
    }
    assert_eq!((seen[0]["host"].as_str(), seen[1]["host"].as_str()), ("first", "second"));
    for namespace in ["ipc", "net", "uts"] {
        assert_ne!(seen[0][namespace], seen[1][namespace], "two pods share no {namespace} namespace");
        assert_ne!(seen[0][namespace], of_machine(&node, namespace), "nor the node's");
    }
}

#[test]
fn a_native_container_has_all_that_runc_gives_it() {
    only_on_hearth!();
    let mut node = Node::new();
    let peer = peer(&node);
    let pod = node.pod("sidecar").run();
    let sleeper = pod.container("sleeper", &peer).args(["sleep"]).start();
    sleeper.wait_for_stdout("asleep");
    let answer = sleeper.exec(["/peer", "where"]).expect("it is there");
    assert_eq!(answer.exit_code, 0);
    assert_eq!(facts(&String::from_utf8_lossy(&answer.stdout))["host"], "sidecar");
    assert!(sleeper.stats().memory.is_some_and(|memory| memory.working_set_bytes.is_some()));
    node.restart_containerd();
    assert!(sleeper.is_running(), "{:?}", sleeper.status());
    sleeper.stop(SHORT.as_secs() as i64);
    assert_eq!(sleeper.wait(), 143);
    let again = pod.container("again", &peer).args(["where"]).start();
    assert_eq!(again.wait(), 0);
}

#[test]
fn a_control_group_in_systemds_form_is_an_ordinary_one_without_systemd() {
    only_on_hearth!();
    skip_unless!(!std::path::Path::new("/run/systemd/system").exists(), "this machine runs systemd");
    let node = Node::new();
    let peer = peer(&node);
    // containerd makes `SLICE:cri-containerd:ID` of it, and runc a control group of that name.
    let slice = format!("{}.slice", node.machine().cgroup().replace('/', ""));
    let pod = node.pod("slice").options(|options| options.cgroup_parent = Some(slice.clone())).run();
    let container = pod.container("where", &peer).args(["where"]).start();
    assert_eq!(container.wait(), 0, "{:?}", container.log());
    let cgroup = format!("{slice}:cri-containerd:{}", container.id());
    assert!(container.stdout().contains(&cgroup), "{cgroup}: {}", container.stdout());
}

#[test]
fn a_native_container_mounts_for_the_node_and_for_wasm_containers() {
    only_on_hearth!();
    skip_unless!(!with_sandboxer(), "the mounts of such a pod's native containers stay in hearthd");
    let node = Node::new();
    let (peer, files) = (peer(&node), node.program(&Guest::FILES));
    let volume = node.directory("volume");
    let _shared = Mounted::shared(&node, &volume);
    let inner = node.directory("volume/inner");
    let pod = node.pod("mounter").run();
    let mounter = pod.container("mounter", &peer).args(["mount", "/volume/inner"]).options(|options| {
        options.mounts.push(propagated(&volume, "/volume", v1::MountPropagation::PropagationBidirectional));
        options.capabilities.add_capabilities.push("SYS_ADMIN".into());
    });
    let mounter = mounter.start();
    mounter.wait_for_stdout("mounted");
    assert!(there(&node, &inner).join("inside").exists(), "the mount is not the node's");
    let reader = pod.container("reader", &files).args(["list", "/volume/inner"]).options(|options| {
        options.mounts.push(propagated(&volume, "/volume", v1::MountPropagation::PropagationHostToContainer));
    });
    let reader = reader.start();
    assert_eq!(reader.wait(), 0, "{:?}", reader.log());
    assert!(reader.stdout().contains("inside"), "{:?}", reader.log());
    mounter.stop(SHORT.as_secs() as i64);
}

#[test]
fn native_containers_end_with_the_daemon() {
    only_on_hearth!();
    let mut node = Node::new();
    let peer = peer(&node);
    let pod = node.pod("orphaned").run();
    let sleeper = pod.container("sleeper", &peer).args(["sleep"]).start();
    sleeper.wait_for_stdout("asleep");
    node.kill_hearthd();
    eventually("the container is reported as ended", SHORT, || (!sleeper.is_running()).then_some(()));
    node.start_hearthd();
    // Where hearthd makes the pods, containerd is a moment late to find the new one.
    let next = eventually("a pod can be made", SHORT, || node.pod("next").try_run().ok());
    let container = next.container("where", &peer).args(["where"]).start();
    assert_eq!(container.wait(), 0);
    // The end of the node checks that no runc shim and no process of the container is left.
}

#[test]
fn a_pod_in_the_nodes_network_has_native_containers() {
    only_on_hearth!();
    let node = Node::new();
    let (peer, net) = (peer(&node), node.program(&Guest::NET));
    let pod = node.pod("outside").options(|options| options.host_network = true).run();
    let server = pod.container("server", &net).args(["listen", "8080", "from Wasm"]).start();
    server.wait_for_stdout("listening");
    let client = pod.container("client", &peer).args(["fetch", "8080"]).start();
    assert_eq!((client.wait(), client.stdout().as_str()), (0, "from Wasm: hello\n"), "{:?}", client.log());
    let container = pod.container("where", &peer).args(["where"]).start();
    assert_eq!(container.wait(), 0, "{:?}", container.log());
    let seen = facts(&container.stdout());
    for (namespace, shared) in [("net", true), ("uts", true), ("ipc", false), ("pid", false)] {
        assert_eq!(seen[namespace] == of_machine(&node, namespace), shared, "{namespace}");
    }
}

/// The inode of a namespace of the machine's.
fn of_machine(node: &Node, namespace: &str) -> String {
    let path = format!("/proc/{}/ns/{namespace}", node.machine().init());
    std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).expect("init runs")).to_string()
}

#[test]
fn native_containers_share_processes_if_their_pod_says_so() {
    only_on_hearth!();
    let mut node = Node::new();
    let (peer, hello) = (peer(&node), node.program(&Guest::HELLO));
    let pod = node.pod("shared").options(|options| options.shares_pids = true).run();
    let run = |name: &str, arguments: &[&str]| {
        let container = pod.container(name, &peer).args(arguments.iter().copied()).start();
        let code = container.wait();
        (code, container.stdout())
    };
    assert_eq!(pod.container("wasm", &hello).start().wait(), 0);
    let sleeper = pod.container("sleeper", &peer).args(["sleep"]).start();
    sleeper.wait_for_stdout("asleep");
    let seen = ["one", "two"].map(|name| {
        let (code, text) = run(name, &["where"]);
        assert_eq!(code, 0);
        facts(&text)
    });
    assert_eq!(seen[0]["pid"], seen[1]["pid"]);
    assert_ne!(seen[0]["pid"], of_machine(&node, "pid"));
    assert_ne!(seen[0]["self"], "1", "the first process is another one");
    // The first process reaps orphans, and other processes cannot read its files.
    assert_eq!(run("orphan", &["orphan"]), (0, "reaped\n".into()));
    let (code, text) = run("look", &["look"]);
    assert_eq!(code, 0);
    assert!(text.lines().count() == 5 && text.lines().all(|line| line.ends_with(" refused")), "{text}");
    node.restart_containerd();
    assert!(sleeper.is_running(), "{:?}", sleeper.status());
    // One container signals another's process.
    assert_eq!(run("signal", &["signal", "sleep"]), (0, "sent\n".into()));
    assert_eq!(sleeper.wait(), 143);
    // Another pod has a pid namespace of its own.
    let other = node.pod("other").options(|options| options.shares_pids = true).run();
    let container = other.container("where", &peer).args(["where"]).start();
    assert_eq!(container.wait(), 0);
    assert_ne!(facts(&container.stdout())["pid"], seen[0]["pid"]);
}

#[test]
fn a_debug_container_sees_the_processes_of_its_target() {
    only_on_hearth!();
    let node = Node::new();
    let (peer, sleep) = (peer(&node), node.program(&Guest::SLEEP));
    let pod = node.pod("debugged").run();
    let native = pod.container("native", &peer).args(["sleep"]).start();
    let wasm = pod.container("wasm", &sleep).args(["3600"]).start();
    for container in [&native, &wasm] {
        container.wait_for_stdout("asleep");
    }
    let debug = |name: &str, target: &str, arguments: &[&str]| {
        let plan = pod.container(name, &peer).args(arguments.iter().copied());
        let container = plan.options(|options| options.target = Some(target.to_owned())).start();
        (container.wait(), container.stdout())
    };
    let (code, said) = debug("debug", native.id(), &["signal", "sleep"]);
    // It may have signalled the first process of its own pid namespace: the kernel then ends all others.
    assert!(matches!(code, 0 | 137) && said == "sent\n", "{code}: {said}");
    assert_eq!(native.wait(), 143);
    // A guest has no processes: the debug container sees the pod's, and none of the daemon's.
    let (code, said) = debug("beside", wasm.id(), &["where"]);
    assert_eq!(code, 0, "{said}");
    let seen = facts(&said);
    assert_ne!(seen["pid"], of_machine(&node, "pid"));
    assert!(wasm.is_running());
}

#[test]
fn a_pod_of_native_containers_alone_works() {
    let node = Node::new();
    let native = |guest: &Guest| node.import(&Image::of_file(guest.name(), "/program", guest.native_bytes()));
    let (peer, tcp, tty) = (native(&Guest::PEER), native(&Guest::TCP), native(&Guest::TTY));
    let pod = node.pod("native").run();
    let server = pod.container("server", &tcp).args(["8080"]).start();
    server.wait_for_stdout("listening");
    let client = pod.container("client", &peer).args(["fetch", "8080"]).start();
    assert_eq!((client.wait(), client.stdout().as_str()), (0, "hello over TCP\n"), "{:?}", client.log());
    // A terminal ends lines with CR LF.
    let terminal =
        pod.container("terminal", &tty).options(|options| (options.tty, options.stdin) = (true, true)).start();
    terminal.wait_for_stdout("terminals 111");
    let mut typing = terminal.attach(&node);
    typing.write(b"hello\n");
    terminal.wait_for_stdout("got <hello>");
    typing.write(b"\x04");
    assert_eq!(terminal.wait(), 6, "{:?}", terminal.log());
    let container = pod.container("where", &peer).args(["where"]).start();
    assert_eq!(container.wait(), 0);
    let text = container.stdout();
    assert_eq!(facts(&text)["oom_score_adj"], "1000");
    let cgroup = format!("{}/{}", node.machine().cgroup(), container.id());
    assert!(text.lines().any(|line| line.starts_with("cgroup") && line.ends_with(&cgroup)), "{cgroup}: {text}");
}
