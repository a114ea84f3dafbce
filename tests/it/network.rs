//! A guest's sockets and names.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use hearth_tests::{Guest, Imported, SHORT, World};

use crate::only_on_hearth;

fn net(world: &World) -> Imported {
    world.program(&Guest::NET)
}

/// A port nobody has right now.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("the loopback is up");
    listener.local_addr().expect("it is bound").port()
}

#[test]
fn a_guest_in_the_nodes_network_serves_and_fetches() {
    only_on_hearth!();
    let world = World::new();
    let image = net(&world);
    let port = free_port().to_string();
    let mut server = world.run(&image, "server").flags(["--net-host"]).args(["listen", &port, "from Wasm"]).spawn();
    server.wait_for_stdout("listening");
    let at = (Ipv4Addr::LOCALHOST, port.parse().expect("it is a number"));
    let mut peer = TcpStream::connect(at).expect("the guest listens");
    peer.write_all(b"question").expect("the guest reads");
    let mut answer = String::new();
    peer.read_to_string(&mut answer).expect("the guest answers in UTF-8");
    assert_eq!(answer, "from Wasm: question\n");
    let client = world.run(&image, "client").flags(["--net-host"]).args(["fetch", "localhost", &port]).ok();
    assert_eq!(client.stdout(), "from Wasm: hello\n");
    world.kill("server", "SIGTERM").ok();
    server.wait(SHORT).assert_code(143);
}

#[test]
fn what_cannot_be_reached_is_the_guests_own_error() {
    only_on_hearth!();
    let world = World::new();
    let image = net(&world);
    let port = free_port().to_string();
    let refused = world.run(&image, "refused").flags(["--net-host"]).args(["fetch", "127.0.0.1", &port]).run();
    assert!(refused.stderr().contains("connection refused"), "{refused}");
    let hosts = world.write("hosts", b"10.77.1.2 peer\n");
    let resolv = world.write("resolv.conf", b"nonsense\n");
    let mounts = [("hosts", &hosts), ("resolv.conf", &resolv)]
        .map(|(name, source)| format!("type=bind,src={},dst=/etc/{name},options=bind:ro", source.display()));
    let run = |id: &str, name: &str| {
        let flags = ["--mount", &mounts[0], "--mount", &mounts[1], "--with-ns", "network:/proc/1/ns/net"];
        world.run(&image, id).flags(flags).args(["lookup", name]).run()
    };
    assert_eq!(run("known", "peer").assert_code(0).stdout(), "10.77.1.2\n");
    let unknown = run("unknown", "no-such-name");
    assert!(unknown.stderr().contains("no-such-name: "), "{unknown}");
}

#[test]
fn without_a_network_there_is_none() {
    only_on_hearth!();
    let world = World::new();
    let image = net(&world);
    let output = world.run(&image, "alone").args(["fetch", "127.0.0.1", &free_port().to_string()]).run();
    assert_ne!(output.code(), 0);
    assert!(output.stderr().contains("access denied") || output.stderr().contains("refused"), "{output}");
}
