//! WASI 0.3: commands and services.

use std::net::SocketAddr;
use std::time::Duration;

use hearth_tests::{Container, Guest, Imported, Node, Pod, World};

use super::client::{Client, get};
use crate::only_on_hearth;

#[test]
fn a_command_runs_with_the_pods_names_and_files() {
    only_on_hearth!();
    let world = World::new();
    let image = world.program(&Guest::COMMAND_P3);
    let hosts = world.write("hosts", b"10.77.1.2 peer\n");
    let resolv = world.write("resolv.conf", b"");
    let mounts = [("hosts", &hosts), ("resolv.conf", &resolv)]
        .map(|(name, source)| format!("type=bind,src={},dst=/etc/{name},options=bind:ro", source.display()));
    let run = |id: &str, env: &[&str]| {
        let mut flags = vec!["--with-ns", "network:/proc/1/ns/net", "--mount", &mounts[0], "--mount", &mounts[1]];
        env.iter().for_each(|variable| flags.extend(["--env", variable]));
        world.run(&image, id).flags(flags).run()
    };
    let known = run("known", &["NAME=peer", "FILE=/etc/hosts", "WAIT=20"]).assert_code(0);
    assert_eq!(known.stdout(), "10.77.1.2\n10.77.1.2 peer\ndone\n");
    let unknown = run("unknown", &["NAME=no-such-host"]).assert_code(1);
    assert!(unknown.stdout().starts_with("error "), "{unknown}");
    run("failed", &["FAIL=1"]).assert_code(1);
    let waiting = world.run(&image, "waiting").flags(["--env", "WAIT=600000"]).spawn();
    world.wait_for_status("waiting", "RUNNING");
    world.kill("waiting", "SIGTERM").ok();
    waiting.wait(hearth_tests::SHORT).assert_code(143);
}

fn serve(pod: &Pod, name: &str, image: &Imported, env: &[(&str, &str)]) -> Container {
    let env = env.iter().map(|(name, value)| (name.to_string(), value.to_string()));
    let container = pod.container(name, image).options(|options| options.env.extend(env));
    container.start()
}

/// Sends requests one after another; returns the number of each within its instance.
fn numbers(at: SocketAddr, count: usize) -> Vec<usize> {
    let mut client = Client::connect(at);
    let number = |text: &str| text.rsplit(' ').next().and_then(|word| word.trim().parse().ok()).expect("a number");
    (0..count).map(|_| number(client.get("/").text())).collect()
}

#[test]
fn a_service_in_python_has_an_instance_for_each_request_or_as_many_as_its_pod_asks_for() {
    only_on_hearth!();
    let node = Node::new();
    let image = node.program(&Guest::PYTHON_P3);
    let pod = node.pod("service").run();
    let address = pod.ip().parse().expect("an address");
    let alone = serve(&pod, "alone", &image, &[]);
    let shared = [
        ("HEARTH_HTTP_PORT", "8081"),
        ("HEARTH_HTTP_INSTANCE_REQUESTS", "5"),
        ("HEARTH_HTTP_INSTANCE_CONCURRENCY", "4"),
    ];
    let shared = serve(&pod, "shared", &image, &shared);
    node.machine().in_network(|| {
        let at = SocketAddr::new(address, 8080);
        assert_eq!(numbers(at, 3), [1, 1, 1]);
        let mut client = Client::connect(at);
        client.send(b"POST /mirror HTTP/1.1\r\nHost: here\r\nContent-Length: 200000\r\n\r\n");
        client.send(&[b'x'; 200_000]);
        assert_eq!(client.receive(false).expect("an answer").body.len(), 200_000);
        assert_eq!(get(at, "/nowhere").status, 404);
        // A request of its own to the other container, in the pod's network.
        let fetched = get(at, "/fetch?http://127.0.0.1:8081/nowhere");
        assert_eq!((fetched.status, fetched.text()), (404, "no such path\n"));
        let refused = get(at, "/fetch?http://127.0.0.1:1/");
        assert_eq!(refused.status, 502);
        assert!(refused.text().contains("ConnectionRefused"), "{refused:?}");

        let at = SocketAddr::new(address, 8081);
        let numbers = numbers(at, 20);
        assert!(numbers.contains(&2) && numbers.iter().all(|number| *number <= 5), "{numbers:?}");
        let many: Vec<_> = (0..8).map(|_| std::thread::spawn(move || get(at, "/slow").status)).collect();
        for one in many {
            assert_eq!(one.join().expect("it does not panic"), 200);
        }
    });
    for container in [alone, shared] {
        container.stop(Duration::from_secs(20).as_secs() as i64);
        assert_eq!(container.wait(), 0, "{}", container.stderr());
    }
}
