//! Requests as an operator sees them: slow ones, their traces, and the access log.

use hearth_tests::{Guest, SHORT, World, eventually};

use super::client::Client;
use super::{free_address, start, start_one};
use crate::only_on_hearth;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// A request of a client that traces.
fn traced(client: &mut Client, path: &str) -> String {
    let parent = format!("00-{TRACE}-b7ad6b7169203331-01");
    let request = format!("GET {path} HTTP/1.1\r\nHost: here\r\ntraceparent: {parent}\r\ntracestate: a=b\r\n\r\n");
    client.send(request.as_bytes());
    client.receive(false).expect("an answer").text().to_owned()
}

#[test]
fn a_slow_request_is_found_with_its_trace_and_its_phases() {
    only_on_hearth!();
    let world = World::configured("[http]\nslow_request_ms = 500\n");
    let (at, _server) = start_one(&world);
    let mut client = Client::connect(at);
    assert_eq!(client.get("/count").status, 200);
    assert_eq!(traced(&mut client, "/slow"), "slow\n");
    let found = eventually("it is listed", SHORT, || {
        let all = world.ask(&["trace", "--requests"]);
        all.as_array().expect("a list").first().cloned()
    });
    assert_eq!(world.ask(&["trace", "--requests"]).as_array().map(Vec::len), Some(1), "the other one was fast");
    assert_eq!((&found["request"], &found["status"], &found["cut"]), (&"GET /slow".into(), &200.into(), &false.into()));
    assert_eq!((&found["trace_id"], &found["id"]), (&TRACE.into(), &"service".into()));
    let phases = found["phases"].as_array().expect("a list");
    let names: Vec<_> = phases.iter().map(|phase| phase["name"].as_str().expect("a name")).collect();
    assert_eq!(names, ["queue", "instance", "head", "body"]);
    let seconds = |value: &serde_json::Value| value["seconds"].as_f64().expect("a number");
    let sum: f64 = phases.iter().map(seconds).sum();
    assert!(seconds(&phases[2]) >= 0.9 && (sum - seconds(&found)).abs() < 1e-3, "{found}");
    let shown = world.hearthctl(["trace", TRACE]).ok().stdout();
    for part in ["GET /slow", "stories/service", "head", "answered with 200"] {
        assert!(shown.contains(part), "{part} is missing in {shown}");
    }
    assert!(world.hearthctl(["trace", "--requests", "--slowest", "service"]).ok().stdout().contains(TRACE));
    // One that its client leaves.
    let mut leaves = Client::connect(at);
    leaves.send(b"GET /spin HTTP/1.1\r\nHost: here\r\n\r\n");
    super::wait_for_flight(&world, 1.0);
    std::thread::sleep(std::time::Duration::from_millis(600));
    drop(leaves);
    eventually("it is listed, too", SHORT, || {
        let last = world.ask(&["trace", "--requests"])[0].clone();
        (last["request"] == "GET /spin" && last["status"] == 0 && last["cut"] == true).then_some(())
    });
    world.kill("service", "SIGKILL").ok();
}

#[test]
fn a_trace_goes_on_with_the_guests_own_requests() {
    only_on_hearth!();
    let world = World::new();
    let (at, _server) = start_one(&world);
    let mut client = Client::connect(at);
    let relayed = traced(&mut client, &format!("/relay/{at}/echo"));
    assert!(relayed.starts_with("GET /echo\n"), "{relayed}");
    assert!(relayed.contains(&format!("\ntraceparent: 00-{TRACE}-b7ad6b7169203331-01\n")), "{relayed}");
    assert!(relayed.contains("\ntracestate: a=b\n"), "{relayed}");
    let plain = client.get(&format!("/relay/{at}/echo"));
    assert!(plain.text().starts_with("GET /echo\n") && !plain.text().contains("traceparent"), "{plain:?}");
    world.kill("service", "SIGKILL").ok();
}

#[test]
fn an_access_log_has_a_line_for_each_request() {
    only_on_hearth!();
    let world = World::new();
    let image = world.program(&Guest::HTTP);
    let [json, combined] = [free_address(), free_address()];
    let with_json = start(&world, &image, "json", json, &["--env", "HEARTH_HTTP_ACCESS_LOG=json"]);
    let with_combined = start(&world, &image, "combined", combined, &["--env", "HEARTH_HTTP_ACCESS_LOG=combined"]);
    for at in [json, combined] {
        let mut client = Client::connect(at);
        client.send(b"GET /count\"b HTTP/1.1\r\nHost: here\r\nUser-Agent: x\x9b\"y\r\nReferer: z\r\n\r\n");
        assert_eq!(client.receive(false).expect("an answer").status, 200);
        traced(&mut client, "/download");
        assert_eq!(client.get("/trap").status, 500);
        client.send(b"GET /cut HTTP/1.1\r\nHost: here\r\n\r\n");
        assert!(!client.receive(false).expect("a part").whole);
    }
    world.kill("json", "SIGTERM").ok();
    let output = with_json.wait(SHORT).assert_code(0).stdout();
    let lines: Vec<serde_json::Value> = output
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let of = |key: &str| lines.iter().map(|line| line[key].clone()).collect::<Vec<_>>();
    assert_eq!(of("path"), ["/count\"b", "/download", "/trap", "/cut"], "{output}");
    assert_eq!(of("status"), [200, 200, 500, 200]);
    assert_eq!(of("whole"), [true, true, true, false]);
    assert_eq!(
        (&lines[0]["bytes"], &lines[1]["bytes"], &lines[3]["bytes"]),
        (&2.into(), &10_000_000.into(), &4.into())
    );
    assert_eq!((&lines[1]["trace_id"], &lines[0]["remote_addr"]), (&TRACE.into(), &"127.0.0.1".into()));
    assert!(lines[0]["head_seconds"].as_f64().is_some_and(|took| took > 0.0), "{output}");
    assert!(!output.contains('\u{9b}'), "{output:?}");
    world.kill("combined", "SIGTERM").ok();
    let output = with_combined.wait(SHORT).assert_code(0).stdout();
    assert_eq!(output.lines().count(), 4, "{output}");
    let first = output.lines().next().expect("a line");
    assert!(
        first.starts_with("127.0.0.1 - - [") && first.contains("\"GET /count\\\"b HTTP/1.1\" 200 2 \"z\" \"x"),
        "{first}"
    );
    let wrong = ["--net-host", "--env", "HEARTH_HTTP_ACCESS_LOG=xml"];
    world.run(&image, "wrong").flags(wrong).run().assert_fault(&["HEARTH_HTTP_ACCESS_LOG", "combined"]);
}

#[test]
fn an_access_log_leaves_lines_out_and_says_so() {
    only_on_hearth!();
    let world = World::configured("[http]\naccess_log_lines_max = 2\n");
    let image = world.program(&Guest::HTTP);
    let at = free_address();
    let server = start(&world, &image, "service", at, &["--env", "HEARTH_HTTP_ACCESS_LOG=combined"]);
    let mut client = Client::connect(at);
    for _ in 0..200 {
        assert_eq!(client.get("/count").status, 200);
    }
    // Its line comes in another second.
    assert_eq!(client.get("/slow").status, 200);
    world.kill("service", "SIGTERM").ok();
    let output = server.wait(SHORT).assert_code(0);
    assert!(output.stdout().lines().count() < 100, "{output}");
    assert!(output.stderr().contains("lines of the access log were left out"), "{output}");
}
