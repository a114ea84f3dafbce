//! A guest's sockets and names.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::AsFd;

use hearth_tests::{Guest, Imported, SHORT, World, eventually};

use crate::http::free_address;
use crate::only_on_hearth;

fn net(world: &World) -> Imported {
    world.program(&Guest::NET)
}

#[test]
fn a_guest_in_the_nodes_network_serves_and_fetches() {
    only_on_hearth!();
    let world = World::new();
    let image = net(&world);
    let port = free_address().port().to_string();
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
fn an_unreachable_peer_is_the_guests_own_error() {
    only_on_hearth!();
    let world = World::new();
    let image = net(&world);
    let port = free_address().port().to_string();
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
fn a_task_that_asks_for_a_network_of_its_own_gets_one_others_can_find() {
    only_on_hearth!();
    let world = World::new();
    let image = net(&world);
    // The same port, twice and without a clash.
    for id in ["first", "second"] {
        let log = world.path(&format!("{id}.log"));
        let uri = format!("file://{}", log.display());
        world.run(&image, id).flags(["--log-uri", &uri]).args(["listen", "8080", id]).detach().ok();
        eventually("it listens", SHORT, || std::fs::read_to_string(&log).ok()?.contains("listening").then_some(()));
    }
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, 8080)).is_err(), "it is not in the node's network");
    let pids = ["first", "second"].map(|id| {
        let list = world.ctr(["task", "ls"]).ok().stdout();
        let line = list.lines().find(|line| line.starts_with(id)).expect("it is listed").to_owned();
        line.split_whitespace().nth(1).and_then(|pid| pid.parse::<u32>().ok()).expect("it has a pid")
    });
    assert_ne!(pids[0], pids[1]);
    for (id, pid) in ["first", "second"].into_iter().zip(pids) {
        // CNI's plugins, which `ctr run --cni` calls, enter it by this path.
        let namespace = format!("/proc/{}/root/proc/{pid}/ns/net", world.machine().init());
        let namespace = std::fs::File::open(namespace).expect("the task's process is there");
        let answer = std::thread::spawn(move || {
            let kind = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(namespace.as_fd(), kind).expect("root may enter it");
            let mut peer = TcpStream::connect((Ipv4Addr::LOCALHOST, 8080)).expect("its loopback is up");
            peer.write_all(b"x").expect("the guest reads");
            let mut answer = String::new();
            peer.read_to_string(&mut answer).map(|_| answer)
        });
        assert_eq!(answer.join().expect("it does not panic").expect("UTF-8"), format!("{id}: x\n"));
        world.kill(id, "SIGKILL").ok();
        world.wait_for_status(id, "STOPPED");
    }
}
