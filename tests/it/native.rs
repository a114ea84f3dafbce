//! Native containers beside Wasm ones, in one pod.

use std::collections::BTreeMap;

use hearth_tests::{Guest, Image, Imported, Node, SHORT, eventually};

use crate::only_on_hearth;

/// The native program.
fn peer(node: &Node) -> Imported {
    node.import(&Image::of_file("peer", "/peer", Guest::PEER.native_bytes()))
}

/// What `peer where` printed.
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
        let path = format!("/proc/{}/ns/{namespace}", std::process::id());
        let hosts = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).expect("procfs is mounted"));
        assert_ne!(seen[0][namespace], hosts.to_string(), "nor the node's");
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
    let next = node.pod("next").run();
    let container = next.container("where", &peer).args(["where"]).start();
    assert_eq!(container.wait(), 0);
    // That no runc shim and no process of the container is left is checked with everything else.
}
