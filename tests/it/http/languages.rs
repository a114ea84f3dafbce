//! Services in JavaScript, Python and Rust, in pods.

use std::net::SocketAddr;

use hearth_tests::{Guest, Node};

use super::client::{Client, Response, get};
use crate::{only_on_hearth, skip_unless};

/// The size of the body that comes back, in bytes.
const BODY: usize = 1_000_000;

/// Serves `guest` in a pod of its own, and calls `look` with the pod's address.
fn in_a_pod(guest: &Guest, look: impl FnOnce(SocketAddr) + Send) {
    let node = Node::new();
    let image = node.program(guest);
    let pod = node.pod("service").run();
    let container = pod.container("service", &image).start();
    let at = SocketAddr::new(pod.ip().parse().expect("an address"), 8080);
    node.machine().in_network(|| look(at));
    container.stop(5);
    assert_eq!(container.wait(), 0, "{}", container.stderr());
}

fn mirror(at: SocketAddr) -> Response {
    let mut client = Client::connect(at);
    client.send(format!("POST /mirror HTTP/1.1\r\nHost: here\r\nContent-Length: {BODY}\r\n\r\n").as_bytes());
    client.send(&vec![b'x'; BODY]);
    client.receive(false).expect("an answer")
}

#[test]
fn a_service_in_javascript_answers_in_a_pod() {
    only_on_hearth!();
    in_a_pod(&Guest::JAVASCRIPT, |at| {
        let hello = get(at, "/");
        assert_eq!((hello.status, hello.text()), (200, "hello from JavaScript\n"));
        assert_eq!(get(at, "/nowhere").status, 404);
        assert_eq!(mirror(at).body.len(), BODY);
        // Its own requests: to itself, and to a port without a listener.
        let fetched = get(at, "/fetch?url=http://127.0.0.1:8080/nowhere");
        assert_eq!((fetched.status, fetched.text()), (404, "no such path\n"));
        assert_eq!(get(at, "/fetch?url=http://127.0.0.1:1/").status, 502);
    });
}

#[test]
fn a_service_in_javascript_sends_150_requests_at_once_for_one() {
    only_on_hearth!();
    let node = Node::new();
    let (asking, asked) = (node.program(&Guest::JAVASCRIPT), node.program(&Guest::RUST_SERVICE));
    let pods = [node.pod("asked").run(), node.pod("asking").run()];
    let asked = pods[0].container("service", &asked).start();
    let asking = pods[1].container("service", &asking).start();
    let [from, at] = [&pods[0], &pods[1]].map(|pod| SocketAddr::new(pod.ip().parse().expect("an address"), 8080));
    node.machine().in_network(|| {
        for _ in 0..3 {
            let all = get(at, &format!("/fetch-all?count=150&url=http://{from}/hello"));
            assert_eq!((all.status, all.text()), (200, "150 of 150\n"));
        }
    });
    for container in [asking, asked] {
        container.stop(5);
        assert_eq!(container.wait(), 0, "{}", container.stderr());
    }
}

#[test]
fn a_service_in_python_answers_in_a_pod() {
    only_on_hearth!();
    // Compiling it takes as long as all other stories about HTTP; `make test` has Python with WASI 0.3.
    skip_unless!(std::env::var_os("HEARTH_TEST_PROGRAMS").is_some(), "`make test-programs` has it");
    in_a_pod(&Guest::PYTHON, |at| {
        let hello = get(at, "/a/path?and=query");
        assert_eq!(hello.status, 200);
        assert!(hello.text().starts_with("hello from Python 3."), "{hello:?}");
        assert!(hello.text().ends_with(": /a/path?and=query\n"), "{hello:?}");
        // Its own requests: to itself, and to a port without a listener.
        let fetched = get(at, "/fetch?http://127.0.0.1:8080/itself");
        assert!(fetched.status == 200 && fetched.text().ends_with(": /itself\n"), "{fetched:?}");
        let refused = get(at, "/fetch?http://127.0.0.1:1/");
        assert!(refused.status == 502 && refused.text().contains("ConnectionRefused"), "{refused:?}");
    });
}

fn post(at: SocketAddr, path: &str, body: &str) -> Response {
    let mut client = Client::connect(at);
    let length = body.len();
    client.send(format!("POST {path} HTTP/1.1\r\nHost: here\r\nContent-Length: {length}\r\n\r\n{body}").as_bytes());
    client.receive(false).expect("an answer")
}

#[test]
fn a_service_in_rust_answers_in_a_pod() {
    only_on_hearth!();
    in_a_pod(&Guest::RUST_SERVICE, |at| {
        let hello = get(at, "/a/path?and=query");
        assert_eq!((hello.status, hello.text()), (200, "hello from Rust: /a/path?and=query\n"));
        let words = post(at, "/words", &"the boy and The dog\n".repeat(10_000));
        assert_eq!((words.status, words.text()), (200, "20000 the\n10000 and\n10000 boy\n10000 dog\n"));
    });
}
