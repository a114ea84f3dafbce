//! Hostile clients, and requests that two servers would read in two ways.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use hearth_tests::{Guest, SHORT, World};

use super::client::{Client, get};
use super::{TwoServices, start_one, wait_for, wait_for_flight};
use crate::{only_on_hearth, skip_unless};

/// All bytes that come until the connection ends.
fn all_of(at: SocketAddr, request: &[u8]) -> String {
    let mut client = Client::connect(at);
    // The service may close it before all of the request is written.
    let _ = client.reader.get_mut().write_all(request);
    let _ = client.reader.get_ref().shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    match client.reader.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// The number of responses in an answer.
fn responses(answer: &str) -> usize {
    answer.matches("HTTP/1.1 ").count()
}

#[test]
fn no_request_is_smuggled_in_another() {
    only_on_hearth!();
    let world = World::new();
    let (at, server) = start_one(&world);
    const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n";
    for (case, request) in [
        ("two lengths", "POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 34\r\n\r\n"),
        ("a list of lengths", "POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 0, 34\r\n\r\n"),
        ("a signed length", "POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: +0\r\n\r\n"),
        ("another coding", "POST /upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n"),
        ("an unknown coding", "POST /upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n"),
        ("chunks in HTTP/1.0", "POST /upload HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("a folded field", "GET /echo HTTP/1.1\r\nHost: a\r\nX: a\r\n folded\r\n\r\n"),
        ("a space before the colon", "POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length : 34\r\n\r\n"),
        ("a NUL in a field", "GET /echo HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n"),
        ("a bare CR in a field", "GET /echo HTTP/1.1\r\nHost: a\r\nX: a\rContent-Length: 34\r\n\r\n"),
        ("a NUL in the path", "GET /ec\0ho HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("two hosts", "GET /echo HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
        ("an unknown version", "GET /echo HTTP/1.2\r\nHost: a\r\n\r\n"),
    ] {
        let answer = all_of(at, format!("{request}{HIDDEN}").as_bytes());
        assert!(answer.starts_with("HTTP/1.1 400 "), "{case}: {answer:?}");
        assert_eq!(responses(&answer), 1, "{case}: {answer:?}");
    }
    // The transfer coding counts, and no request follows it on this connection: an intermediary may have used the
    // length.
    for fields in ["Content-Length: 5\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 5"]
    {
        let answer = all_of(
            at,
            format!("POST /upload HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n3\r\nabc\r\n0\r\n\r\n{HIDDEN}").as_bytes(),
        );
        assert!(answer.contains("3 bytes\n"), "{fields}: {answer:?}");
        assert_eq!(responses(&answer), 1, "{fields}: {answer:?}");
    }
    // Invalid sizes of chunks, and sizes too large to count. The response's head may have been sent before.
    for size in ["-1", "0x3", "ffffffffffffffffff", "3 3"] {
        let request = format!(
            "POST /upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{size}\r\nabc\r\n0\r\n\r\n{HIDDEN}"
        );
        let answer = all_of(at, request.as_bytes());
        assert!(responses(&answer) <= 1 && !answer.contains("no such path"), "{size}: {answer:?}");
    }
    // Lines may end in LF alone (RFC 9112, 2.2), and another request may follow them.
    let mut client = Client::connect(at);
    client.send(b"GET /count HTTP/1.1\nHost: a\n\nGET /count HTTP/1.1\r\nHost: a\r\n\r\n");
    for _ in 0..2 {
        assert_eq!(client.receive(false).expect("an answer").text(), "1\n");
    }
    // Endless fields, and an endless path.
    for begun in ["GET /echo HTTP/1.1\r\nHost: a\r\nX: ", "GET /"] {
        let answer = all_of(at, format!("{begun}{}", "x".repeat(200 << 10)).as_bytes());
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer:?}");
    }
    let many = format!("GET /echo HTTP/1.1\r\nHost: a\r\n{}\r\n", "a: b\r\n".repeat(1_000));
    assert!(all_of(at, many.as_bytes()).starts_with("HTTP/1.1 431 "));
    // After all invalid requests the service still answers.
    assert_eq!(get(at, "/count").text(), "1\n");
    wait_for_flight(&world, 0.0);
    world.kill("service", "SIGTERM").ok();
    server.wait(SHORT).assert_code(0);
}

/// A connection of HTTP/2 that writes and reads single frames (RFC 9113, 4).
struct Http2(TcpStream);

/// Kinds of frames.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;

/// `GET`, `http`, `/count`, authority `a`, as HPACK has them (RFC 7541).
const GET_COUNT: &[u8] = b"\x82\x86\x04\x06/count\x01\x01a";

impl Http2 {
    fn connect(at: SocketAddr) -> Http2 {
        let stream = TcpStream::connect(at).expect("the service listens");
        stream.set_read_timeout(Some(SHORT)).expect("it is a socket");
        let mut connection = Http2(stream);
        connection.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        connection.frame(SETTINGS, 0, 0, b"");
        connection
    }

    fn write(&mut self, bytes: &[u8]) {
        // The other side may have closed the connection.
        let _ = self.0.write_all(bytes);
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = &(payload.len() as u32).to_be_bytes()[1..];
        self.write(&[length, &[kind, flags], &stream.to_be_bytes(), payload].concat());
    }

    /// The next frame: kind, stream and payload; `None` at the connection's end.
    fn next(&mut self) -> Option<(u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.0.read_exact(&mut payload).ok()?;
        Some((head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
    }

    /// The error code with which the other side ends the connection.
    fn ends_with(&mut self) -> Option<u32> {
        while let Some((kind, _, payload)) = self.next() {
            if kind == GOAWAY {
                return Some(u32::from_be_bytes([payload[4], payload[5], payload[6], payload[7]]));
            }
        }
        None
    }
}

#[test]
fn http_2_is_spoken_as_its_rfc_has_it() {
    only_on_hearth!();
    let world = World::new();
    let (at, server) = start_one(&world);
    // Requests side by side on one connection are all answered.
    let mut many = Http2::connect(at);
    for stream in (1..=19).step_by(2) {
        many.frame(HEADERS, 5, stream, GET_COUNT);
    }
    many.frame(PING, 0, 0, b"12345678");
    let (mut answered, mut pinged) = (0, false);
    while answered < 10 || !pinged {
        match many.next().expect("it goes on") {
            (DATA, _, payload) if payload == b"1\n" => answered += 1,
            (PING, 0, payload) if payload == b"12345678" => pinged = true,
            _ => {}
        }
    }
    // Errors of the protocol end the connection with their code (RFC 9113, 7): PROTOCOL_ERROR is 1; for a stream that
    // is not open it may be STREAM_CLOSED, 5.
    type Wrong = fn(&mut Http2);
    let wrongs: [(&str, &[u32], Wrong); 4] = [
        ("DATA of no stream", &[1], |h2| h2.frame(DATA, 0, 0, b"x")),
        ("HEADERS of an even stream", &[1], |h2| h2.frame(HEADERS, 5, 2, GET_COUNT)),
        ("DATA of a stream that is not open", &[1, 5], |h2| h2.frame(DATA, 0, 1, b"x")),
        ("SETTINGS of a stream", &[1], |h2| h2.frame(SETTINGS, 0, 1, b"")),
    ];
    for (case, codes, wrong) in wrongs {
        let mut connection = Http2::connect(at);
        wrong(&mut connection);
        let code = connection.ends_with();
        assert!(code.is_some_and(|code| codes.contains(&code)), "{case}: {code:?}");
    }
    wait_for(&world, "hearth_http_requests_in_flight", 0.0);
    assert_eq!(get(at, "/count").text(), "1\n");
    // The service closes a connection with a last PING. A client that does not answer it does not hold up the drain.
    world.kill("service", "SIGTERM").ok();
    server.wait(SHORT).assert_code(0);
    drop(many);
}

#[test]
fn a_client_without_a_place_waits_and_harms_no_other() {
    only_on_hearth!();
    let world = World::configured(
        "[tenant]\nhttp_connections_max = 8\n[http]\nheader_timeout_ms = 1000\nidle_timeout_ms = 3000\n",
    );
    let services = TwoServices::start(&world, ["crowded", "free"]);
    let [crowded, free] = services.addresses;
    // Silent clients: each has a second for its request's head.
    let silent: Vec<_> = (0..20).map(|_| TcpStream::connect(crowded).expect("there is room in the queue")).collect();
    assert_eq!(get(free, "/count").text(), "1\n", "another container's clients do not wait");
    assert_eq!(get(crowded, "/count").text(), "1\n", "their time is over after a second");
    // A client that never reads: its guest blocks, and is ended when no byte has moved for three seconds.
    let mut deaf = TcpStream::connect(free).expect("the service listens");
    deaf.write_all(b"GET /download HTTP/1.1\r\nHost: a\r\n\r\n").expect("it reads");
    wait_for_flight(&world, 1.0);
    wait_for_flight(&world, 0.0);
    drop((silent, deaf));
    services.stop();
}

#[test]
fn a_flood_of_pings_harms_no_other_client() {
    only_on_hearth!();
    let world = World::new();
    let services = TwoServices::start(&world, ["flooded", "other"]);
    let [flooded, other] = services.addresses;
    // The preface and empty settings, then more PINGs than the service has time to answer.
    let begin = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
    let ping = [&[0, 0, 8, 6, 0, 0, 0, 0, 0][..], b"flooding"].concat();
    let pings = ping.repeat(4_096);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let floods: Vec<_> = (0..2 * cores)
        .map(|_| {
            let mut stream = TcpStream::connect(flooded).expect("the service listens");
            stream.write_all(&begin).expect("it reads");
            let (mut answers, mut sender, pings) = (stream.try_clone().expect("a socket"), stream, pings.clone());
            let ended = sender.try_clone().expect("a socket");
            let threads = [
                std::thread::spawn(move || while sender.write_all(&pings).is_ok() {}),
                std::thread::spawn(move || {
                    let mut buffer = [0; 1 << 16];
                    while answers.read(&mut buffer).is_ok_and(|count| count > 0) {}
                }),
            ];
            (ended, threads)
        })
        .collect();
    for _ in 0..20 {
        assert_eq!(get(other, "/count").text(), "1\n");
        assert_eq!(get(flooded, "/count").text(), "1\n");
    }
    for (stream, threads) in floods {
        stream.shutdown(std::net::Shutdown::Both).ok();
        threads.into_iter().for_each(|thread| thread.join().expect("it does not panic"));
    }
    services.stop();
}

#[test]
fn a_guest_that_traps_in_each_request_does_not_flood_the_log() {
    only_on_hearth!();
    /// Many times the number of lines of one kind that the log takes in a second.
    const REQUESTS: usize = 1_000;
    let world = World::new();
    let (at, server) = start_one(&world);
    let logged = || world.hearthd_log().matches("the guest of a request trapped").count();
    let began = std::time::Instant::now();
    for _ in 0..REQUESTS {
        assert_eq!(get(at, "/trap").status, 500);
    }
    let seconds = began.elapsed().as_secs() as usize;
    let lines = logged();
    assert!((20..=20 * (seconds + 2)).contains(&lines), "{lines} lines in {seconds} s");
    let counted = |name: &str| world.metrics().sum(name, &[]) as usize;
    assert_eq!(counted("hearth_log_lines_suppressed_total"), REQUESTS - lines, "suppressed lines are counted");
    assert_eq!(counted("hearth_http_traps_total"), REQUESTS);
    // `hearthctl traps` still has the text of every trap.
    let traps = world.ask(&["traps", "--last", "1"]);
    assert!(traps[0]["text"].as_str().is_some_and(|text| text.contains("unreachable")), "{traps}");
    // Lines of other kinds are not suppressed.
    world.run(&world.program(&Guest::NO_ENTRY), "broken").run();
    assert!(world.hearthd_log().contains("a task was refused"));
    drop(server);
}

/// h2spec is in no distribution. Its cases run where it is on the `PATH`.
#[test]
fn violations_of_http_2_are_refused_as_its_rfc_says() {
    only_on_hearth!();
    skip_unless!(Command::new("h2spec").arg("--version").output().is_ok(), "h2spec is not on the PATH");
    let world = World::new();
    let (at, server) = start_one(&world);
    let port = at.port().to_string();
    let output = Command::new("h2spec")
        .args(["--host", "127.0.0.1", "--port", &port, "--path", "/upload", "--timeout", "5", "--strict"])
        .output()
        .expect("it runs");
    let told = String::from_utf8_lossy(&output.stdout);
    // An invalid preface is read as HTTP/1, which the same port serves: the answer is 400, and the connection is
    // closed.
    let failed = told.lines().filter(|line| line.trim_start().starts_with('×') && !line.contains("connection preface"));
    assert_eq!(failed.count(), 0, "{told}");
    assert!(told.contains("147 tests, 146 passed"), "{told}");
    assert_eq!(get(at, "/count").text(), "1\n", "the service still answers");
    world.kill("service", "SIGTERM").ok();
    server.wait(SHORT).assert_code(0);
}
