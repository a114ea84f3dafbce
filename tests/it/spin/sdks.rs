//! Applications whose components are built with Spin's SDKs, of all ages.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};

use hearth_tests::servers::Server;
use hearth_tests::{Guest, LONG, SHORT, SpinApplication, World, eventually};
use serde_json::json;

use super::{create, start};
use crate::http::client::{Client, Response, get};
use crate::http::free_address;
use crate::{only_on_hearth, skip_unless};

/// Sends a request without a body.
fn request(at: SocketAddr, method: &str, path: &str, headers: &str) -> Response {
    let mut client = Client::connect(at);
    client.send(format!("{method} {path} HTTP/1.1\r\nHost: here\r\n{headers}\r\n").as_bytes());
    client.receive(false).expect("an answer")
}

fn post(at: SocketAddr, path: &str, body: &[u8]) -> Response {
    let mut client = Client::connect(at);
    client.send(format!("POST {path} HTTP/1.1\r\nHost: here\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes());
    client.send(body);
    client.receive(false).expect("an answer")
}

#[test]
fn a_module_of_the_first_sdks_runs_as_it_is() {
    only_on_hearth!();
    let world = World::configured("[http]\nrequest_timeout_ms = 4000\n");
    let redis = Server::redis(&world, None);
    let server = format!("redis://127.0.0.1:{}", redis.port);
    let granted = json!({
        "metadata": {"allowed_outbound_hosts": [server, "http://self"], "key_value_stores": ["default"]},
        "env": {"NAME": "first"},
        "config": {"key": "{{ word }} again"},
    });
    let application = SpinApplication::new("first-sdks")
        .component("web", Guest::SPIN_V1.wasm_bytes(), granted)
        .route("/...", "web")
        .edit(|locked| locked["variables"] = json!({"word": {"default": "hello"}}));
    let compiles = || world.metrics().sum("hearth_compiles_total", &[]);
    let (running, at) = start(&world, &application, "first-sdks", &[]);

    assert_eq!(get(at, "/env/NAME").text(), "first");
    assert_eq!(get(at, "/header/spin-path-info").text(), "/header/spin-path-info");
    let large = "a whole body ".repeat(100_000);
    assert_eq!(post(at, "/echo", large.as_bytes()).text(), large);
    let no_content = get(at, "/status/204");
    assert_eq!((no_content.status, no_content.body.len()), (204, 0));
    assert_eq!(get(at, "/status/9").status, 500, "9 is no status");
    assert_eq!(request(at, "TRACE", "/env/NAME", "").status, 405);
    assert_eq!(request(at, "POST", "/echo", "Content-Length: 20000000\r\n").status, 413);

    // What is granted works; the rest fails at its call, with the interface's own errors.
    assert_eq!(get(at, "/config/key").text(), "hello again");
    assert_eq!(get(at, "/config/other").text(), "get-config 0");
    assert_eq!(get(at, "/keep/default/value").text(), "value");
    assert_eq!(get(at, "/keep/other/value").text(), "open 2");
    assert_eq!(get(at, "/fetch//env/NAME").text(), "200 first");
    assert_eq!(get(at, "/fetch/http://127.0.0.1:1/").text(), "request 1");
    assert_eq!(get(at, &format!("/redis/{server}")).text(), "1 a value");
    assert_eq!(get(at, &format!("/redis/{server}")).text(), "2 a value");
    assert_eq!(get(at, "/redis/redis://127.0.0.2:1").text(), "set 1");
    assert_eq!(redis.redis_answer(&world, "GET count"), "$1\r\n2\r\n");

    assert_eq!((get(at, "/trap").status, get(at, "/exit").status), (500, 500));
    assert_eq!(compiles(), 1.0);
    world.kill("first-sdks", "SIGTERM").ok();
    let output = running.wait(SHORT).assert_code(0);
    assert!(output.stdout().contains("request 0 /env/NAME\n"), "{output}");
    // A component has success and failure only: the adapter makes 1 of every code but 0.
    for told in ["web: GET /trap: ", "web: GET /exit: the guest exited with 1"] {
        assert!(output.stderr().contains(told), "{output}");
    }
}

#[test]
fn whole_bodies_are_the_containers_memory() {
    only_on_hearth!();
    let world = World::new();
    let application = SpinApplication::new("whole").component("web", Guest::SPIN_V1.wasm_bytes(), json!({}));
    let (running, at) = start(&world, &application.route("/...", "web"), "whole", &[]);
    world.api().update_task("whole", &json!({"memory": {"limit": 8 << 20}})).expect("a limit is changed");
    assert_eq!(post(at, "/echo", &vec![b'x'; 1 << 20]).body.len(), 1 << 20);
    // The daemon cannot keep a body of 15 MiB.
    let mut client = Client::connect(at);
    client.send(format!("POST /echo HTTP/1.1\r\nHost: here\r\nContent-Length: {}\r\n\r\n", 15 << 20).as_bytes());
    // The daemon may have answered before all is sent.
    let _ = client.reader.get_mut().write_all(&vec![b'x'; 15 << 20]);
    assert_eq!(client.receive(false).expect("an answer").status, 503);
    assert_eq!(post(at, "/echo", b"again").text(), "again");
    world.kill("whole", "SIGKILL").ok();
    running.wait(SHORT);
}

/// An application of one component that uses variables, stores, databases and its own routes.
fn with_everything(name: &str, wasm: Vec<u8>) -> SpinApplication {
    let granted = json!({
        "metadata": {
            "allowed_outbound_hosts": ["http://self"],
            "key_value_stores": ["default"],
            "databases": ["default"],
        },
        "config": {"greeting": "{{ word }} again"},
    });
    SpinApplication::new(name)
        .component("web", wasm, granted)
        .route("/...", "web")
        .edit(|locked| locked["variables"] = json!({"word": {"default": "hello"}}))
}

/// Runs a component of `spin/`, and looks at each of its paths.
fn runs(guest: &Guest, hello: &str, denied: &str) {
    let world = World::new();
    let name = guest.name();
    let image = world.import(&with_everything(name, guest.wasm_bytes()).image());
    let at = free_address();
    create(&world, &image, name, at, &[]);
    let running = world.ctr(["tasks", "start", name]).deadline(LONG).spawn();
    // A large component is compiled first.
    eventually("it listens", LONG, || TcpStream::connect(at).ok());
    assert_eq!(get(at, "/hello/you").text(), hello);
    assert_eq!(get(at, "/variable/greeting").text(), "hello again");
    assert_eq!(get(at, "/variable/other").status, 500);
    assert_eq!(get(at, "/keep/value").text(), "value");
    assert_eq!((get(at, "/rows/3").text(), get(at, "/rows/4").text()), ("3", "7"));
    assert_eq!(get(at, "/fetch/http://self.alt/keep/inner").text(), "200 inner");
    let refused = get(at, "/fetch/http://127.0.0.1:1/");
    assert!(refused.text().contains(denied), "{refused:?}");
    let large = "a body ".repeat(50_000);
    assert_eq!(post(at, "/echo", large.as_bytes()).text(), large);
    assert_eq!(get(at, "/nowhere").status, 404);
    world.kill(name, "SIGTERM").ok();
    running.wait(SHORT).assert_code(0);
}

#[test]
fn a_component_of_rust_sdk_5_runs_as_it_is() {
    only_on_hearth!();
    runs(&Guest::SPIN_RUST_5, "hello from SDK 5: you /hello/you", "HttpRequestDenied");
}

#[test]
fn a_component_of_rust_sdk_6_runs_as_it_is() {
    only_on_hearth!();
    skip_unless!(std::env::var_os("HEARTH_TEST_PROGRAMS").is_some(), "`make test-programs` has it");
    runs(&Guest::SPIN_RUST_6, "hello from an SDK of WASI 0.3: you /hello/you", "HttpRequestDenied");
}

#[test]
fn a_component_of_rust_sdk_7_runs_as_it_is() {
    only_on_hearth!();
    skip_unless!(std::env::var_os("HEARTH_TEST_PROGRAMS").is_some(), "`make test-programs` has it");
    runs(&Guest::SPIN_RUST_7, "hello from an SDK of WASI 0.3: you /hello/you", "HttpRequestDenied");
}
