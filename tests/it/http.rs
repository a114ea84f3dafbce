//! HTTP components, served by the daemon.
//!
//! Files:
//!
//! * `baseline.rs`: services on code of the baseline compiler.
//! * `client.rs`: an HTTP/1.1 client that writes every byte itself.
//! * `drain.rs`: a service that is stopped under load.
//! * `endings.rs`: exchanges that fail: what the client gets, what is counted and what is told.
//! * `grpc.rs`: gRPC by a real client and a real server.
//! * `hostile.rs`: hostile clients, and ambiguous requests.
//! * `languages.rs`: services in JavaScript, Python and Rust, in pods.
//! * `outgoing.rs`: outgoing requests of guests.
//! * `observed.rs`: slow requests, traces and the access log.
//! * `p3.rs`: commands and services of WASI 0.3.
//! * `server.rs`: servers for guests that fetch.
//! * `tls.rs`: TLS at the port of a service.

mod baseline;
pub mod client;
mod drain;
mod endings;
mod grpc;
mod hostile;
mod languages;
mod observed;
mod outgoing;
mod p3;
mod server;
mod tls;

use std::collections::VecDeque;
use std::io::{BufRead, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use hearth_tests::wait::within;
use hearth_tests::{Guest, Image, Imported, Layer, Node, Pod, Running, SHORT, World, eventually};

use crate::only_on_hearth;
use client::{Client, get};

/// The size of the guest's download, in bytes.
const DOWNLOAD: usize = 10_000_000;

/// A free port of the loopback.
pub(crate) fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("the loopback is up");
    listener.local_addr().expect("it is bound")
}

/// Starts a service in the node's network, and waits until it listens.
fn start(world: &World, image: &Imported, id: &str, at: SocketAddr, flags: &[&str]) -> Running {
    let port = format!("HEARTH_HTTP_PORT={}", at.port());
    let flags = [&["--net-host", "--env", &port], flags].concat();
    let server = world.run(image, id).flags(flags).spawn();
    eventually(&format!("{id} listens at {at}"), SHORT, || TcpStream::connect(at).ok());
    server
}

/// Starts the C guest as `service`, at a free address.
fn start_one(world: &World) -> (SocketAddr, Running) {
    let at = free_address();
    let server = start(world, &world.program(&Guest::HTTP), "service", at, &[]);
    (at, server)
}

/// Two services of the C guest on one daemon.
struct TwoServices<'a> {
    world: &'a World,
    addresses: [SocketAddr; 2],
    /// The services that were not stopped yet, by their ids.
    running: VecDeque<(&'a str, Running)>,
}

impl<'a> TwoServices<'a> {
    /// Starts both, and waits until they listen.
    fn start(world: &'a World, ids: [&'a str; 2]) -> Self {
        let image = world.program(&Guest::HTTP);
        let addresses = [free_address(), free_address()];
        let running = ids.iter().zip(addresses).map(|(&id, at)| (id, start(world, &image, id, at, &[]))).collect();
        Self { world, addresses, running }
    }

    /// Stops the first that still runs with SIGTERM. It must drain and end with code 0.
    #[track_caller]
    fn stop_one(&mut self) {
        let (id, server) = self.running.pop_front().expect("a service runs");
        self.world.kill(id, "SIGTERM").ok();
        server.wait(SHORT).assert_code(0);
    }

    /// Stops all that still run, as [`Self::stop_one`].
    #[track_caller]
    fn stop(mut self) {
        while !self.running.is_empty() {
            self.stop_one();
        }
    }
}

#[test]
fn a_service_answers_in_every_way() {
    only_on_hearth!();
    let world = World::new();
    let (at, server) = start_one(&world);
    let mut client = Client::connect(at);

    client.send(b"PUT /echo?a=b HTTP/1.1\r\nHost: here\r\nX-One: 1\r\nContent-Length: 0\r\n\r\n");
    let echo = client.receive(false).expect("an answer");
    assert_eq!(echo.status, 200);
    assert!(echo.text().starts_with("PUT /echo?a=b\n") && echo.text().contains("\nx-one: 1\n"), "{echo:?}");

    client.send(b"HEAD /echo HTTP/1.1\r\nHost: here\r\n\r\n");
    assert_eq!(client.receive(true).expect("a head").status, 200);
    assert_eq!(client.get("/empty").status, 204);
    assert_eq!(client.get("/nowhere").status, 404);

    // Its number, as with runwasi.
    let number = |answer: client::Response| answer.text().parse::<u64>().expect("a number");
    let before = number(client.get("/env/REQUEST_ID"));
    assert_eq!(number(client.get("/env/REQUEST_ID")), before + 1);
    // Each request has an instance of its own, on one connection.
    for _ in 0..1_000 {
        assert_eq!(client.get("/count").text(), "1\n");
    }

    client.send(b"POST /upload HTTP/1.1\r\nHost: here\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.receive(false).expect("a word to go on").status, 100);
    client.send(b"hello");
    assert_eq!(client.receive(false).expect("an answer").text(), "5 bytes\n");

    client.send(b"POST /mirror HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
    let mirror = client.receive(false).expect("an answer");
    assert_eq!((mirror.text(), mirror.trailers.as_str()), ("hello", "x-trailer: the end\r\n"));

    assert_eq!(client.get("/say").text(), "said\n");
    world.kill("service", "SIGTERM").ok();
    let output = server.wait(SHORT).assert_code(0);
    assert_eq!(output.stdout(), "one two three\n");
    assert!(output.stderr().contains("to stderr\n"), "{output}");
    let metrics = world.metrics();
    assert!(metrics.sum("hearth_http_requests_total", &[("code", "2xx")]) >= 1_006.0);
    assert_eq!(metrics.sum("hearth_http_requests_total", &[("code", "4xx")]), 1.0);
    assert_eq!(metrics.sum("hearth_http_requests_in_flight", &[]), 0.0);
}

#[test]
fn bodies_are_streamed_both_ways() {
    only_on_hearth!();
    let world = World::new();
    let (at, server) = start_one(&world);
    assert_eq!(get(at, "/download").body.len(), DOWNLOAD);

    let mut client = Client::connect(at);
    client.send(format!("POST /upload HTTP/1.1\r\nHost: here\r\nContent-Length: {DOWNLOAD}\r\n\r\n").as_bytes());
    client.send(&vec![b'y'; DOWNLOAD]);
    assert_eq!(client.receive(false).expect("an answer").text(), format!("{DOWNLOAD} bytes\n"));

    // The guest copies the body in pieces of 4 KiB; no part of the path holds all of it.
    client.send(format!("POST /mirror HTTP/1.1\r\nHost: here\r\nContent-Length: {DOWNLOAD}\r\n\r\n").as_bytes());
    let mut sender = client.reader.get_ref().try_clone().expect("it is a socket");
    let sent = std::thread::spawn(move || sender.write_all(&vec![b'z'; DOWNLOAD]));
    let mirror = client.receive(false).expect("an answer");
    sent.join().expect("it does not panic").expect("the service reads");
    assert!(mirror.body.len() == DOWNLOAD && mirror.body.iter().all(|byte| *byte == b'z'));
    world.kill("service", "SIGKILL").ok();
    server.wait(SHORT).assert_code(137);
}

#[test]
fn a_request_that_fails_harms_no_other() {
    only_on_hearth!();
    let world = World::new();
    let image = world.program(&Guest::HTTP);
    let at = free_address();
    let server = start(&world, &image, "service", at, &["--memory-limit", "33554432"]);
    let mut client = Client::connect(at);
    assert_eq!(client.get("/trap").status, 500);
    assert_eq!(client.get("/count").text(), "1\n");
    assert_eq!(client.get("/mute").status, 500);
    assert_eq!(client.get("/grow").status, 500);
    assert_eq!(client.get("/count").text(), "1\n");
    client.send(b"GET /cut HTTP/1.1\r\nHost: here\r\n\r\n");
    let cut = client.receive(false).expect("the head is sent before the connection is closed");
    assert!(cut.status == 200 && !cut.whole && cut.text() == "half", "{cut:?}");
    assert_eq!(get(at, "/count").text(), "1\n");
    wait_for(&world, "hearth_http_traps_total", 3.0);

    for (request, status) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n", 501),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nHost: a\r\nExpect: a miracle\r\n\r\n", 417),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"no HTTP at all\r\n\r\n", 400),
    ] {
        let mut client = Client::connect(at);
        client.send(request);
        let response = client.receive(false).expect("an answer");
        let asked = String::from_utf8_lossy(request);
        assert_eq!(response.status, status, "{asked}: {response:?}");
        assert_eq!(
            response.text().contains("WebSockets are not supported"),
            asked.contains("websocket"),
            "{response:?}"
        );
    }
    world.kill("service", "SIGTERM").ok();
    let output = server.wait(SHORT).assert_code(0);
    assert!(output.stderr().contains("hearth: GET /trap: ") && output.stderr().contains("unreachable"), "{output}");
    assert!(output.stderr().contains("hearth: GET /grow: out of memory"), "{output}");
}

#[test]
fn a_drain_lets_requests_finish_and_a_kill_does_not() {
    only_on_hearth!();
    let world = World::new();
    let image = world.program(&Guest::HTTP);
    let at = free_address();
    let server = start(&world, &image, "drained", at, &[]);
    let mut slow = Client::connect(at);
    slow.send(b"GET /slow HTTP/1.1\r\nHost: here\r\n\r\n");
    wait_for_flight(&world, 1.0);
    world.kill("drained", "SIGTERM").ok();
    eventually("it accepts no connection", SHORT, || TcpStream::connect(at).err());
    let answer = slow.receive(false).expect("an answer");
    assert_eq!((answer.status, answer.text()), (200, "slow\n"));
    server.wait(SHORT).assert_code(0);

    // The port is free at once.
    let server = start(&world, &image, "killed", at, &[]);
    let mut spinning = Client::connect(at);
    spinning.send(b"GET /spin HTTP/1.1\r\nHost: here\r\n\r\n");
    wait_for_flight(&world, 1.0);
    world.kill("killed", "SIGTERM").ok();
    world.kill("killed", "SIGKILL").ok();
    server.wait(SHORT).assert_code(137);
    let mut rest = Vec::new();
    match spinning.reader.read_to_end(&mut rest) {
        Ok(_) => assert!(!rest.starts_with(b"HTTP/1.1 2"), "{}", String::from_utf8_lossy(&rest)),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    wait_for_flight(&world, 0.0);
}

/// Waits until this number of requests have an instance.
#[track_caller]
fn wait_for_flight(world: &World, count: f64) {
    wait_for(world, "hearth_http_requests_in_flight", count);
}

/// Waits until a metric has this value.
#[track_caller]
fn wait_for(world: &World, metric: &str, value: f64) {
    let mut last = f64::NAN;
    let reached = within(SHORT, || {
        last = world.metrics().sum(metric, &[]);
        (last == value).then_some(())
    });
    assert!(reached.is_some(), "{metric} is {last} rather than {value}");
}

#[test]
fn a_client_that_goes_away_ends_its_guest() {
    only_on_hearth!();
    let world = World::new();
    let (at, server) = start_one(&world);
    let mut spinning = Client::connect(at);
    spinning.send(b"GET /spin HTTP/1.1\r\nHost: here\r\n\r\n");
    wait_for_flight(&world, 1.0);
    drop(spinning);
    wait_for_flight(&world, 0.0);
    // One that never reads its answer stops its guest, and ends it by leaving.
    let mut deaf = Client::connect(at);
    deaf.send(b"GET /download HTTP/1.1\r\nHost: here\r\n\r\n");
    wait_for_flight(&world, 1.0);
    assert_eq!(get(at, "/count").text(), "1\n");
    drop(deaf);
    wait_for_flight(&world, 0.0);
    world.kill("service", "SIGTERM").ok();
    server.wait(SHORT).assert_code(0);
}

#[test]
fn a_clients_use_of_the_daemon_is_bounded() {
    only_on_hearth!();
    let limits = "queued_max = 1\nheader_timeout_ms = 300\nrequest_timeout_ms = 3000\nidle_timeout_ms = 3000";
    let world = World::configured(&format!("[tenant]\nhttp_requests_max = 1\n[http]\n{limits}\n"));
    let (at, server) = start_one(&world);

    // A head that does not come to its end; and no byte at all.
    for begun in [&b"GET / HTTP/1.1\r\nHost: "[..], b""] {
        let mut client = Client::connect(at);
        client.send(begun);
        let mut rest = Vec::new();
        client.reader.read_to_end(&mut rest).expect("it is closed");
    }
    // A head that is too large.
    let mut client = Client::connect(at);
    client.send(format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(80 << 10)).as_bytes());
    assert_eq!(client.receive(false).expect("an answer").status, 431);
    // A body without end keeps its guest for no longer than the guest may take.
    let mut endless = Client::connect(at);
    endless.send(b"POST /upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    // It has the only place before the next request asks for one.
    wait_for_flight(&world, 1.0);
    let mut sender = endless.reader.get_ref().try_clone().expect("it is a socket");
    let sending = std::thread::spawn(move || while sender.write_all(b"5\r\nhello\r\n").is_ok() {});
    let waiting = std::thread::spawn(move || get(at, "/count"));
    wait_for(&world, "hearth_http_requests_queued", 1.0);
    let refused = get(at, "/count");
    assert_eq!(refused.status, 503);
    assert!(refused.head.contains("retry-after: "), "{refused:?}");
    drop(endless);
    assert!(matches!(waiting.join().expect("it does not panic").status, 200 | 503));
    sending.join().expect("it does not panic");
    wait_for_flight(&world, 0.0);
    // A guest that takes too long.
    assert_eq!(get(at, "/spin").status, 504);
    assert_eq!(get(at, "/count").status, 200);
    world.kill("service", "SIGTERM").ok();
    let output = server.wait(SHORT).assert_code(0);
    assert!(output.stderr().contains("http.request_timeout_ms"), "{output}");
    assert!(world.metrics().sum("hearth_http_requests_refused_total", &[]) >= 1.0);
}

#[test]
fn limits_that_are_read_again_hold_for_a_service_that_runs() {
    only_on_hearth!();
    let world = World::new();
    let (at, server) = start_one(&world);
    assert_eq!(get(at, "/count").status, 200);
    let file = world.layout().hearthd_config();
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{text}[http]\nrequest_timeout_ms = 100\n")).unwrap();
    world.hearthctl(["reload"]).ok();
    assert_eq!(get(at, "/spin").status, 504);
    // The number of threads is fixed at the start.
    std::fs::write(&file, format!("{text}[http]\nthreads = 1\n")).unwrap();
    let refused = world.hearthctl(["reload"]).run();
    assert!(!refused.status.success() && refused.stderr().contains("http.threads"), "{refused}");
    world.kill("service", "SIGTERM").ok();
    server.wait(SHORT).assert_code(0);
}

#[test]
fn http_2_is_understood_by_prior_knowledge() {
    only_on_hearth!();
    let world = World::new();
    let (at, _server) = start_one(&world);
    let mut client = Client::connect(at);
    // The preface, an empty SETTINGS, and as HEADERS of stream 1: GET, http, `/count` as a literal, and `a` as
    // the authority (RFC 9113, RFC 7541).
    let block = b"\x82\x86\x04\x06/count\x01\x01a";
    let head = [0, 0, block.len() as u8, 1, 5, 0, 0, 0, 1];
    client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    client.send(&[&head[..], block].concat());
    // Frames until the data of the answer.
    loop {
        let mut head = [0; 9];
        client.reader.read_exact(&mut head).expect("a frame");
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        client.reader.read_exact(&mut payload).expect("all of it");
        if head[3] == 0 {
            assert_eq!(payload, b"1\n");
            break;
        }
    }
    world.kill("service", "SIGKILL").ok();
}

#[test]
fn a_paused_service_answers_when_it_is_resumed() {
    only_on_hearth!();
    let world = World::new();
    let (at, server) = start_one(&world);
    world.ctr(["task", "pause", "service"]).ok();
    let mut client = Client::connect(at);
    client.send(b"GET /count HTTP/1.1\r\nHost: here\r\n\r\n");
    client.reader.get_ref().set_read_timeout(Some(Duration::from_millis(100))).expect("it is a socket");
    let silent = client.reader.fill_buf().expect_err("nothing of it runs");
    assert_eq!(silent.kind(), ErrorKind::WouldBlock);
    world.ctr(["task", "resume", "service"]).ok();
    client.reader.get_ref().set_read_timeout(Some(SHORT)).expect("it is a socket");
    assert_eq!(client.receive(false).expect("an answer").text(), "1\n");
    world.kill("service", "SIGTERM").ok();
    server.wait(SHORT).assert_code(0);
}

#[test]
fn requests_of_one_service_compute_on_every_processor_and_within_its_limit() {
    only_on_hearth!();
    let world = World::new();
    let image = world.program(&Guest::HTTP);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let computing = |at| {
        let begin = |_| {
            let mut client = Client::connect(at);
            client.send(b"GET /spin HTTP/1.1\r\nHost: here\r\n\r\n");
            client
        };
        (0..cores).map(begin).collect::<Vec<_>>()
    };
    let (free, limited) = (free_address(), free_address());
    let server = start(&world, &image, "free", free, &[]);
    let clients = computing(free);
    let running = || world.metrics().sum("hearth_workers", &[("state", "running")]);
    eventually("all compute at once", SHORT, || (running() == cores as f64).then_some(()));
    world.kill("free", "SIGKILL").ok();
    server.wait(SHORT).assert_code(137);
    drop(clients);
    // The requests of a container with a tenth of a processor wait for their periods, together.
    let server = start(&world, &image, "limited", limited, &["--cpus", "0.1"]);
    let clients = computing(limited);
    eventually("they wait", SHORT, || (world.metrics().sum("hearth_guest_throttled_total", &[]) > 0.0).then_some(()));
    let begin = Instant::now();
    let used = || world.ask(&["ps", "--all"])[0]["cpu_seconds"].as_f64().expect("a number");
    let before = used();
    eventually("some periods pass", SHORT, || (used() - before > 0.05).then_some(()));
    let share = (used() - before) / begin.elapsed().as_secs_f64();
    assert!(share < 0.5, "they had {share} of a processor");
    world.kill("limited", "SIGKILL").ok();
    server.wait(SHORT).assert_code(137);
    drop(clients);
}

#[test]
fn pods_serve_on_the_same_port_each_in_its_network() {
    only_on_hearth!();
    let node = Node::new();
    let image = node.program(&Guest::HTTP);
    let (first, second) = (node.pod("first").run(), node.pod("second").run());
    let serve = |pod: &Pod| pod.container("service", &image).start();
    let containers = [serve(&first), serve(&second)];
    let count = |pod: &Pod, port: u16| {
        let at = SocketAddr::new(pod.ip().parse().expect("an address"), port);
        let answer = node.machine().in_network(|| get(at, "/count"));
        assert_eq!(answer.body, b"1\n", "{answer:?}");
    };
    count(&first, 8080);
    count(&second, 8080);
    let nearby = node.machine().in_network(|| TcpStream::connect((Ipv4Addr::LOCALHOST, 8080)).map(drop));
    assert!(nearby.is_err(), "it is not in the node's network");
    // Another container of a pod needs another port.
    let refused = first.container("same", &image).create().try_start().expect_err("the port is taken");
    assert!(refused.to_string().contains("8080"), "{refused}");
    let other = first.container("other", &image);
    let other = other.options(|options| options.env.push(("HEARTH_HTTP_PORT".into(), "8081".into()))).start();
    count(&first, 8081);
    assert!(other.stats().cpu.and_then(|cpu| cpu.usage_core_nano_seconds).is_some_and(|used| used.value > 0));
    for container in &containers {
        container.stop(SHORT.as_secs() as i64);
        assert_eq!(container.wait(), 0);
    }
    count(&first, 8081);
}

#[test]
fn a_port_that_cannot_be_had_is_named() {
    only_on_hearth!();
    let world = World::new();
    let image = world.program(&Guest::HTTP);
    let held = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port can be had");
    let port = held.local_addr().expect("it is bound").port().to_string();
    let variable = format!("HEARTH_HTTP_PORT={port}");
    let taken = world.run(&image, "taken").flags(["--net-host", "--env", &variable]).run();
    taken.assert_fault(&[&port, "in use", "HEARTH_HTTP_PORT"]);
    let layer = Layer::new().file("/http.wasm", 0o755, Guest::HTTP.wasm_bytes());
    let of_user =
        Image::scratch("hearth.test/http-of-user:1").layer(layer).entrypoint(["/http.wasm"]).user("1000:1000");
    let of_user = world.import(&of_user);
    let privileged = ["--net-host", "--env", "WASMTIME_HTTP_PROXY_SOCKET_ADDR=127.0.0.1:1"];
    world.run(&of_user, "privileged").flags(privileged).run().assert_fault(&["127.0.0.1:1", "denied"]);
    let nonsense = ["--net-host", "--env", "HEARTH_HTTP_PORT=http"];
    world.run(&image, "nonsense").flags(nonsense).run().assert_fault(&["HEARTH_HTTP_PORT", "not a port"]);
}
