//! Exchanges that fail: what the client gets, what is counted, and what the container's log and `hearthctl traps` say.

use std::io::{ErrorKind, Read};
use std::net::SocketAddr;

use hearth_tests::{Guest, SHORT, World, eventually};

use super::client::{Client, get};
use super::{free_address, start, start_one, wait_for, wait_for_flight};
use crate::only_on_hearth;

/// All that a client receives until its connection is closed.
fn all_of(at: SocketAddr, path: &str) -> String {
    let mut client = Client::connect(at);
    client.send(format!("GET {path} HTTP/1.1\r\nHost: here\r\n\r\n").as_bytes());
    let mut answer = Vec::new();
    match client.reader.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    String::from_utf8_lossy(&answer).into_owned()
}

fn cut(world: &World, reason: &str) -> f64 {
    world.metrics().sum("hearth_http_responses_cut_total", &[("reason", reason)])
}

#[test]
fn a_response_that_is_not_finished_is_told_to_the_client_and_to_the_operator() {
    only_on_hearth!();
    const TIMES: usize = 40;
    let world = World::new();
    let image = world.program(&Guest::HTTP);
    let at = free_address();
    let server = start(&world, &image, "service", at, &[]);
    for (path, reason) in [("/drop", "dropped"), ("/short", "length"), ("/cut", "trap")] {
        for _ in 0..TIMES {
            let answer = all_of(at, path);
            assert!(answer.starts_with("HTTP/1.1 200 "), "{path}: the head goes out: {answer:?}");
            assert!(answer.contains("half"), "{path}: so does the body so far: {answer:?}");
            assert!(!answer.ends_with("0\r\n\r\n"), "{path}: it does not look whole: {answer:?}");
        }
        assert_eq!(cut(&world, reason), TIMES as f64, "{path}");
    }
    // The rest of a body that is too long is left out.
    let mut client = Client::connect(at);
    assert_eq!(client.get("/long").text(), "half");
    assert_eq!(client.get("/count").text(), "1\n");
    assert_eq!(cut(&world, "length"), TIMES as f64);

    let traps = world.ask(&["traps", "--last", "200"]);
    let traps = traps.as_array().expect("a list");
    for text in ["GET /drop: the response was cut", "GET /short: the response was cut"] {
        let is_it = |end: &&serde_json::Value| end["text"].as_str().is_some_and(|found| found.starts_with(text));
        let end = traps.iter().find(is_it).unwrap_or_else(|| panic!("{text}: {traps:?}"));
        assert_eq!((&end["kind"], &end["status"]), (&"response".into(), &200.into()), "{end}");
    }
    world.kill("service", "SIGTERM").ok();
    server.wait(SHORT).assert_code(0);
    // So many notes a second are left out of a container's log; these are not.
    let at = free_address();
    let server = start(&world, &image, "told", at, &[]);
    for path in ["/drop", "/short"] {
        all_of(at, path);
    }
    world.kill("told", "SIGTERM").ok();
    let output = server.wait(SHORT).assert_code(0);
    for line in [
        "hearth: GET /drop: the response was cut: the guest gave its body up before its end",
        "hearth: GET /short: the response was cut: the guest's body is 6 bytes shorter than its Content-Length",
    ] {
        assert!(output.stderr().contains(line), "{line}: {output}");
    }
}

#[test]
fn a_request_without_a_response_is_told_with_its_reason() {
    only_on_hearth!();
    let world = World::configured("[http]\nrequest_timeout_ms = 2000\n");
    let (at, server) = start_one(&world);
    for (path, status, kind, text) in [
        ("/mute", 500, "response", "the guest returned without a response"),
        ("/fail", 500, "response", "DestinationNotFound"),
        ("/fields", 500, "request", "total size of fields exceeds limit"),
        ("/spin", 504, "time_out", "took over 2000 ms"),
        ("/linger", 200, "time_out", "took over 2000 ms"),
    ] {
        assert_eq!(get(at, path).status, status, "{path}");
        let is_told = || {
            let end = &world.ask(&["traps", "--last", "1"])[0];
            (end["kind"] == kind && end["text"].as_str()?.contains(text)).then_some(())
        };
        eventually(&format!("{path} is listed"), SHORT, is_told);
    }
    world.kill("service", "SIGTERM").ok();
    let output = server.wait(SHORT).assert_code(0);
    for line in
        ["GET /mute: the guest returned without", "GET /fail: the guest answered with", "GET /linger: took over"]
    {
        assert!(output.stderr().contains(&format!("hearth: {line}")), "{line}: {output}");
    }
    assert_eq!(world.metrics().sum("hearth_http_traps_total", &[]), 1.0, "only that of the fields");
    assert_eq!(world.metrics().sum("hearth_http_responses_cut_total", &[]), 0.0);
}

#[test]
fn a_request_for_which_the_container_has_no_memory_is_refused_and_is_no_trap() {
    only_on_hearth!();
    let world = World::new();
    let image = world.program(&Guest::HTTP);
    let at = free_address();
    let server = start(&world, &image, "service", at, &["--memory-limit", "16777216"]);
    let mut holder = Client::connect(at);
    holder.send(b"POST /hold HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n");
    let mut head = vec![0; 1_024];
    let mut seen = String::new();
    while !seen.contains("held") {
        let length = holder.reader.read(&mut head).expect("it answers");
        assert_ne!(length, 0, "{seen:?}");
        seen += &String::from_utf8_lossy(&head[..length]);
    }
    let refused = get(at, "/count");
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.head.contains("retry-after: "), "{refused:?}");
    holder.send(b"0\r\n\r\n");
    wait_for_flight(&world, 0.0);
    assert_eq!(get(at, "/count").status, 200);
    assert_eq!(world.metrics().sum("hearth_http_requests_refused_total", &[]), 1.0);
    assert_eq!(world.metrics().sum("hearth_http_traps_total", &[]), 0.0);
    world.kill("service", "SIGTERM").ok();
    let output = server.wait(SHORT).assert_code(0);
    assert!(output.stderr().contains("hearth: GET /count: out of memory: no room for another instance"), "{output}");
}

#[test]
fn a_client_that_goes_away_and_a_container_that_is_killed_are_counted_apart() {
    only_on_hearth!();
    let world = World::new();
    let (at, server) = start_one(&world);
    // Without a head, and in the middle of a body.
    for path in ["/spin", "/download"] {
        let mut leaving = Client::connect(at);
        leaving.send(format!("GET {path} HTTP/1.1\r\nHost: here\r\n\r\n").as_bytes());
        wait_for_flight(&world, 1.0);
        drop(leaving);
        wait_for_flight(&world, 0.0);
    }
    eventually("both are counted", SHORT, || (cut(&world, "client") == 2.0).then_some(()));
    let mut killed = Client::connect(at);
    killed.send(b"GET /spin HTTP/1.1\r\nHost: here\r\n\r\n");
    wait_for_flight(&world, 1.0);
    world.kill("service", "SIGKILL").ok();
    server.wait(SHORT).assert_code(137);
    assert_eq!((cut(&world, "killed"), cut(&world, "client")), (1.0, 2.0));
}

#[test]
fn a_client_that_takes_too_little_loses_its_response() {
    only_on_hearth!();
    let world = World::configured("[http]\nidle_timeout_ms = 2000\nleast_bytes_per_second = 10_000_000\n");
    let (at, server) = start_one(&world);
    let mut slow = Client::connect(at);
    // Otherwise the kernel takes the whole response for it.
    rustix::net::sockopt::set_socket_recv_buffer_size(slow.reader.get_ref(), 4_096).expect("a small buffer");
    slow.send(b"GET /download HTTP/1.1\r\nHost: here\r\n\r\n");
    let mut piece = [0; 1_024];
    eventually("its guest is ended", SHORT, || {
        // It goes on to read, but never as fast as it has to.
        let _ = slow.reader.read(&mut piece);
        (cut(&world, "slow_client") == 1.0).then_some(())
    });
    wait_for_flight(&world, 0.0);
    // A client that reads all that there is is not slow, however slow its guest is.
    assert_eq!(get(at, "/slow").text(), "slow\n");
    world.kill("service", "SIGTERM").ok();
    let output = server.wait(SHORT).assert_code(0);
    assert!(output.stderr().contains("hearth: GET /download: the response was cut: its client took less"), "{output}");
}

#[test]
fn slow_readers_of_two_services_do_not_keep_a_third_from_answering() {
    only_on_hearth!();
    const READERS: usize = 256;
    let world = World::new();
    let image = world.program(&Guest::HTTP);
    let at = [(); 3].map(|()| free_address());
    let ids = ["first", "second", "third"];
    let servers: Vec<_> = ids.iter().zip(at).map(|(id, at)| start(&world, &image, id, at, &[])).collect();
    let mut readers = Vec::new();
    for at in &at[..2] {
        for _ in 0..READERS {
            let mut reader = Client::connect(*at);
            reader.send(b"GET /download HTTP/1.1\r\nHost: here\r\n\r\n");
            readers.push(reader);
        }
    }
    // All of them have asked: they are served, or wait for others of their own service to leave.
    let metrics = || world.metrics();
    eventually("all readers have asked", SHORT, || {
        let served = metrics().sum("hearth_http_requests_in_flight", &[]);
        (served + metrics().sum("hearth_http_requests_queued", &[]) == (2 * READERS) as f64 && served > 300.0)
            .then_some(())
    });
    let third = get(at[2], "/count");
    assert_eq!((third.status, third.text()), (200, "1\n"));
    drop(readers);
    wait_for(&world, "hearth_http_requests_queued", 0.0);
    wait_for_flight(&world, 0.0);
    for (id, server) in ids.iter().zip(servers) {
        world.kill(id, "SIGTERM").ok();
        server.wait(SHORT).assert_code(0);
    }
}

#[test]
fn a_component_that_is_a_command_and_a_service_serves_if_its_pod_says_so() {
    only_on_hearth!();
    let world = World::new();
    let image = world.program(&Guest::HTTP_COMMAND);
    assert_eq!(world.run(&image, "ran").run().assert_code(0).stdout(), "ran\n");
    let at = free_address();
    let server = start(&world, &image, "served", at, &["--env", "HEARTH_HTTP=serve"]);
    assert_eq!(get(at, "/count").text(), "1\n");
    // SIGINT drains as SIGTERM does.
    let mut slow = Client::connect(at);
    slow.send(b"GET /slow HTTP/1.1\r\nHost: here\r\n\r\n");
    wait_for_flight(&world, 1.0);
    world.kill("served", "SIGINT").ok();
    assert_eq!(slow.receive(false).expect("an answer").text(), "slow\n");
    server.wait(SHORT).assert_code(0);
    let refused = world.run(&world.program(&Guest::HELLO), "hello").flags(["--env", "HEARTH_HTTP=serve"]).run();
    assert!(!refused.status.success() && refused.stderr().contains("HTTP service"), "{refused}");
}
