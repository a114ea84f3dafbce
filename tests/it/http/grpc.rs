//! gRPC by a real client and a real server: Python's grpcio (`tests/clients/grpc_peer.py`).

use std::process::Command;

use hearth_tests::paths;
use hearth_tests::tls::Authority;
use hearth_tests::{Guest, Running, SHORT, World};

use super::{free_address, start};
use crate::only_on_hearth;

/// A Python with grpcio, and the client's file.
fn client() -> [String; 2] {
    let clients = paths::repository().join("tests/clients");
    let made = Command::new(clients.join("grpc.sh")).output().expect("bash starts");
    let log = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "grpc.sh (needs PyPI):\n{log}");
    let python = String::from_utf8_lossy(&made.stdout).trim_end().to_owned();
    [python, clients.join("grpc_peer.py").display().to_string()]
}

/// The client's output.
fn ask(arguments: &[&str]) -> String {
    let [python, file] = client();
    let output = Command::new(python).arg(file).args(arguments).output().expect("it is there");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_service_answers_a_grpc_client() {
    only_on_hearth!();
    let world = World::new();
    let image = world.program(&Guest::HTTP);
    let at = free_address();
    let server = start(&world, &image, "service", at, &[]);
    let authority = at.to_string();
    // As kubelet's gRPC probe asks.
    assert_eq!(ask(&["check", &authority]), "SERVING\n");
    // Messages go both ways while the call is open, and the status comes after them.
    assert_eq!(ask(&["chat", &authority, "100"]), "100 the end\n");
    assert_eq!(ask(&["fail", &authority]), "NOT_FOUND\n");
    world.kill("service", "SIGTERM").ok();
    server.wait(SHORT).assert_code(0);
    assert_eq!(ask(&["check", &authority]), "UNAVAILABLE\n");
}

/// A server of grpcio, and its port.
fn serve(world: &World, pair: &[&str]) -> (Running, String) {
    let [python, file] = client();
    let arguments = [&[file.as_str(), "serve"], pair].concat();
    let mut server = world.program_on_machine(&python, arguments).open_stdin().spawn();
    server.wait_for_stdout("\n");
    let text = server.seen_of_stdout();
    let port = text.trim().rsplit(' ').next().expect("a port").to_owned();
    (server, format!("localhost:{port}"))
}

#[test]
fn a_guest_calls_a_grpc_server_with_tls_and_without() {
    only_on_hearth!();
    let world = World::new();
    let image = world.program(&Guest::FETCH);
    let authority = Authority::new();
    let ca = world.write("ca.pem", authority.pem().as_bytes());
    let (certificate, key) = authority.pair("localhost");
    let pair = [("server.crt", certificate), ("server.key", key)];
    let pair = pair.map(|(name, text)| world.write(name, text.as_bytes()).display().to_string());
    let mount = format!("type=bind,src={},dst=/ca.pem,options=bind:ro", ca.display());
    let call = |id: &str, scheme: &str, at: &str| {
        let flags = ["--net-host", "--mount", &mount, "--env", "SSL_CERT_FILE=/ca.pem"];
        let arguments = [scheme, at, "/hearth.test.Echo/Call", "grpc=1", "times=2"];
        world.run(&image, id).flags(flags).args(arguments).run().stdout()
    };
    let (plain, at_plain) = serve(&world, &[]);
    let (secure, at_secure) = serve(&world, &[&pair[0], &pair[1]]);
    for (id, scheme, at) in [("plain", "http", &at_plain), ("secure", "https", &at_secure)] {
        let output = call(id, scheme, at);
        assert_eq!(output.matches("200 10 hello\n").count(), 2, "{id}: {output}");
        assert_eq!(output.matches("trailer grpc-status\n").count(), 2, "{id}: {output}");
        assert_eq!(output.matches("trailer x-trailer\n").count(), 2, "{id}: {output}");
    }
    let metrics = world.metrics();
    assert_eq!(metrics.sum("hearth_http_outgoing_requests_total", &[("code", "2xx")]), 4.0);
    // A server without HTTP/2.
    let http1 = super::server::Server::greets();
    assert!(call("http1", "http", &http1.authority()).starts_with("error "), "it has no gRPC");
    drop((plain, secure));
}
