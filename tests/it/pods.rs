//! Pods, as kubelet makes them.

use hearth_tests::{Guest, Node};

#[test]
fn a_pod_prints_to_its_log_and_exits_with_its_code() {
    let node = Node::new();
    let hello = node.program(&Guest::HELLO);
    let pod = node.pod("greeter").run();
    let container = pod.container("hello", &hello).args(["world"]).start();
    assert_eq!(container.wait(), 0);
    assert!(container.stdout().contains("hello from C\n"), "{:?}", container.log());
    assert!(container.stdout().contains("arg 1: world\n"), "{:?}", container.log());
    assert!(container.stderr().contains("hello on stderr\n"), "{:?}", container.log());
}

#[test]
fn an_exit_code_is_seen_in_the_status() {
    let node = Node::new();
    let exit = node.program(&Guest::EXIT);
    let pod = node.pod("failing").run();
    let status = pod.container("exit", &exit).args(["7"]).start().ended();
    assert_eq!((status.exit_code, status.reason.as_str()), (7, "Error"));
    assert!(status.finished_at >= status.started_at && status.started_at > 0, "{status:?}");
}
