//! gRPC by a real client and a real server: Python's grpcio (`tests/clients/grpc.py`).

use std::process::Command;

use hearth_tests::paths;
use hearth_tests::{Guest, SHORT, World};

use super::{free_address, start};
use crate::only_on_hearth;

/// A Python with grpcio, and the client's file.
pub fn client() -> [String; 2] {
    let clients = paths::repository().join("tests/clients");
    let made = Command::new(clients.join("grpc.sh")).output().expect("bash starts");
    let log = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "grpc.sh (needs PyPI):\n{log}");
    let python = String::from_utf8_lossy(&made.stdout).trim_end().to_owned();
    [python, clients.join("grpc.py").display().to_string()]
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
