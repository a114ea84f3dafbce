//! Starts as OpenTelemetry traces.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use containerd_shim_protos::ttrpc::context;
use containerd_shim_protos::{Client, TaskClient, api as task_api};
use hearth_tests::collector::{Answers, Collector, attribute};
use hearth_tests::daemons::{ContainerdOptions, HearthdOptions, containerd_major, try_start_hearthd};
use hearth_tests::tls::Authority;
use hearth_tests::{Guest, SHORT, World, api, eventually};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;

use crate::{only_on_hearth, skip_unless};

/// Options of a daemon that traces to `collector`, with more variables in its environment.
fn traced(collector: &Collector, more: &[(&str, &str)]) -> HearthdOptions {
    let endpoint = format!("http://{}", collector.address());
    let all = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("OTEL_BSP_SCHEDULE_DELAY", "20")];
    let environment = all.iter().chain(more).map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    HearthdOptions { environment, ..HearthdOptions::default() }
}

/// The spans of one task by name, once the span of Start has come, which is the last.
fn spans_of(collector: &Collector, id: &str) -> BTreeMap<String, Span> {
    let is_of = |span: &Span| attribute(&span.attributes, "container.id").as_deref() == Some(id);
    eventually(&format!("the spans of {id}"), SHORT, || {
        let all = collector.spans();
        all.iter().any(|span| is_of(span) && span.name == "Task/Start").then_some(())
    });
    let all = collector.spans();
    let ids: Vec<_> = all.iter().filter(|span| is_of(span)).map(|span| span.span_id.clone()).collect();
    let ours = all.into_iter().filter(|span| is_of(span) || ids.contains(&span.parent_span_id));
    ours.map(|span| (span.name.clone(), span)).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_start_is_a_trace_with_its_phases_over_either_protocol() {
    only_on_hearth!();
    for (protocol, compression) in [("http/protobuf", "none"), ("grpc", "gzip")] {
        let collector = Collector::start(Answers::Well);
        let world = World::with(traced(
            &collector,
            &[
                ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
                ("OTEL_EXPORTER_OTLP_COMPRESSION", compression),
                ("OTEL_EXPORTER_OTLP_HEADERS", "tenant=blue%20one"),
                ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=story"),
            ],
        ));
        let sleep = world.program(&Guest::SLEEP);
        world.run(&sleep, "cold").args(["3600"]).detach().ok();
        let spans = spans_of(&collector, "cold");
        let names: Vec<_> = spans.keys().map(String::as_str).collect();
        let phases = ["bundle", "compile", "first_call", "instantiate", "lookup", "mounts"];
        assert_eq!(names, [&["Task/Create", "Task/Start"][..], &phases, &["task"]].concat());

        // The tree: each span has its parent.
        let (task, create, start) = (&spans["task"], &spans["Task/Create"], &spans["Task/Start"]);
        assert!(task.parent_span_id.is_empty() && spans.values().all(|span| span.trace_id == task.trace_id));
        assert!([create, start].iter().all(|span| span.parent_span_id == task.span_id));
        for phase in phases {
            let parent = if ["instantiate", "first_call"].contains(&phase) { start } else { create };
            assert_eq!(spans[phase].parent_span_id, parent.span_id, "{phase}");
        }

        // The times: they are the times that hearthctl shows.
        let told = world.ask(&["trace", "cold"]);
        assert_eq!(told["trace_id"], hex(&task.trace_id));
        let after = |span: &Span| (span.start_time_unix_nano - task.start_time_unix_nano) as f64 / 1e9;
        let took = |span: &Span| (span.end_time_unix_nano - span.start_time_unix_nano) as f64 / 1e9;
        let same = |left: f64, right: &serde_json::Value| (left - right.as_f64().unwrap()).abs() < 1e-6;
        for phase in told["phases"].as_array().unwrap() {
            let span = &spans[phase["name"].as_str().unwrap()];
            assert!(same(after(span), &phase["began_seconds"]) && same(took(span), &phase["seconds"]), "{span:?}");
        }
        assert!(same(took(create), &told["create_seconds"]) && same(after(start), &told["start_began_seconds"]));
        assert!(
            same(took(task), &told["started_seconds"]) && same(after(start) + took(start), &told["started_seconds"])
        );

        // The attributes.
        let says = |name: &str| attribute(&start.attributes, name).unwrap_or_default();
        assert_eq!((says("containerd.namespace").as_str(), says("hearth.source").as_str()), ("stories", "compiled"));
        assert_eq!(told["module"], says("hearth.module").as_str());
        assert_eq!(collector.resource("service.name").as_deref(), Some("hearthd"));
        assert_eq!(collector.resource("deployment.environment.name").as_deref(), Some("story"));
        assert_eq!(collector.header("tenant").as_deref(), Some("blue one"));

        // The trace's id is in the output of hearthctl.
        let trace = hex(&task.trace_id);
        assert!(world.hearthctl(["trace", "cold"]).ok().stdout().contains(&format!("trace {trace}")));
        assert!(world.hearthctl(["logs", "cold"]).ok().stdout().contains(&format!("trace={trace}")));
        // They are counted once the collector's answer has come back.
        eventually("they are counted", SHORT, || {
            let sent = world.metrics().sum("hearth_trace_spans_total", &[("result", "sent")]);
            (sent >= spans.len() as f64).then_some(())
        });
    }
}

#[test]
fn a_start_that_fails_says_where_and_why() {
    only_on_hearth!();
    let collector = Collector::start(Answers::Well);
    let world = World::with(traced(&collector, &[("OTEL_SERVICE_NAME", "edge")]));
    let image = world.program(&Guest::NO_ENTRY);
    world.run(&image, "broken").run().assert_fault(&["_start"]);
    let create =
        eventually("its span", SHORT, || collector.spans().into_iter().find(|span| span.name == "Task/Create"));
    let status = create.status.clone().expect("a status");
    assert_eq!(status.code, i32::from(StatusCode::Error as u8), "{create:?}");
    assert!(status.message.contains("_start"), "{status:?}");
    assert!(!collector.spans().iter().any(|span| span.name == "Task/Start"));
    assert_eq!(collector.resource("service.name").as_deref(), Some("edge"));
    // The last spans are sent at a stop.
    let mut world = world;
    let sleep = world.program(&Guest::SLEEP);
    world.run(&sleep, "last").args(["0"]).ok();
    world.stop_hearthd();
    spans_of(&collector, "last");
}

/// A bundle whose root is a directory with the program in it.
fn bundle(world: &World, name: &str) -> PathBuf {
    let spec = api::spec(&["/sleep.wasm", "3600"], &[]).to_string();
    let file = world.write(&format!("{name}/config.json"), spec.as_bytes());
    world.write(&format!("{name}/rootfs/sleep.wasm"), &Guest::SLEEP.wasm_bytes());
    file.parent().expect("it is in the bundle").to_owned()
}

/// A task socket of the daemon, for a namespace of its own.
fn task_socket(world: &World) -> String {
    let containerd = world.layout().containerd_socket().display().to_string();
    let ask = hearth_shim::TaskSocketRequest {
        namespace: "traced".into(),
        ttrpc_address: format!("{containerd}.ttrpc"),
        grpc_address: containerd,
        ..hearth_shim::TaskSocketRequest::default()
    };
    let mut stream = std::os::unix::net::UnixStream::connect(world.layout().control_socket()).unwrap();
    let request = hearth_shim::Request { body: Some(hearth_shim::request::Body::TaskSocket(ask)) };
    hearth_shim::write_frame(&mut stream, &request).unwrap();
    match hearth_shim::read_frame::<hearth_shim::Reply>(&mut stream).unwrap().body {
        Some(hearth_shim::reply::Body::TaskSocket(reply)) => reply.address,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_callers_trace_is_continued() {
    only_on_hearth!();
    let collector = Collector::start(Answers::Well);
    let world = World::with(traced(&collector, &[]));
    let client = TaskClient::new(Client::connect(&task_socket(&world)).expect("the task socket is served"));
    let carrying = |parent: &str| {
        let mut context = context::with_duration(SHORT);
        context.add("traceparent".into(), parent.into());
        context
    };
    let parent = |trace: char, span: char, flags: &str| {
        format!("00-{}-{}-{flags}", trace.to_string().repeat(32), span.to_string().repeat(16))
    };
    let start = |id: &str, create: &str, start: &str| {
        let bundle = bundle(&world, id).display().to_string();
        let request = task_api::CreateTaskRequest { id: id.into(), bundle, ..task_api::CreateTaskRequest::default() };
        client.create(carrying(create), &request).unwrap();
        let request = task_api::StartRequest { id: id.into(), ..task_api::StartRequest::default() };
        client.start(carrying(start), &request).unwrap();
    };
    start("unsampled", &parent('a', '1', "00"), &parent('a', '2', "00"));
    start("nonsense", "00-nonsense", "");
    start("one", &parent('b', '1', "01"), &parent('b', '2', "01"));
    start("two", &parent('c', '1', "01"), &parent('d', '2', "01"));

    let spans = spans_of(&collector, "one");
    assert!(!spans.contains_key("task"), "the caller has the span around it");
    assert!(spans.values().all(|span| hex(&span.trace_id) == "b".repeat(32)));
    let parent_of = |span: &Span| hex(&span.parent_span_id);
    assert_eq!(parent_of(&spans["Task/Create"]), "1".repeat(16));
    assert_eq!(parent_of(&spans["Task/Start"]), "2".repeat(16));
    assert_eq!(spans["bundle"].parent_span_id, spans["Task/Create"].span_id);
    assert_eq!(world.ask(&["trace", "one"])["trace_id"], "b".repeat(32));

    // Two requests with two traces: the second trace links to the first.
    let spans = spans_of(&collector, "two");
    let trace_of = |name: &str| hex(&spans[name].trace_id);
    assert_eq!((trace_of("Task/Create"), trace_of("lookup")), ("c".repeat(32), "c".repeat(32)));
    assert_eq!((trace_of("Task/Start"), trace_of("first_call")), ("d".repeat(32), "d".repeat(32)));
    assert_eq!(spans["Task/Start"].links[0].span_id, spans["Task/Create"].span_id);

    // An invalid trace context is ignored, and a trace that its caller does not sample is not sampled here.
    assert!(spans_of(&collector, "nonsense")["task"].parent_span_id.is_empty());
    assert!(!collector.spans().iter().any(|span| hex(&span.trace_id) == "a".repeat(32)));
    assert_eq!(world.ask(&["trace", "unsampled"])["trace_id"], serde_json::Value::Null);
    for id in ["unsampled", "nonsense", "one", "two"] {
        let request = task_api::KillRequest { id: id.into(), signal: 9, ..task_api::KillRequest::default() };
        client.kill(context::with_duration(SHORT), &request).unwrap();
    }
}

#[test]
fn the_trace_of_a_containerd_that_traces_goes_on() {
    only_on_hearth!();
    skip_unless!(containerd_major() >= 2, "containerd 1.x sends shims no trace context");
    let collector = Collector::start(Answers::Well);
    let options = traced(&collector, &[]);
    let traces = Some(format!("http://{}", collector.address()));
    let options = HearthdOptions { containerd: ContainerdOptions { traces, ..Default::default() }, ..options };
    let world = World::with(options);
    let sleep = world.program(&Guest::SLEEP);
    world.run(&sleep, "traced").args(["3600"]).detach().ok();
    let spans = spans_of(&collector, "traced");
    assert!(!spans.contains_key("task"), "{:?}", spans.keys());
    for name in ["Task/Create", "Task/Start"] {
        let span = &spans[name];
        let theirs = eventually("containerd's own span", SHORT, || {
            collector.spans().into_iter().find(|other| other.span_id == span.parent_span_id)
        });
        assert_eq!(theirs.trace_id, span.trace_id);
        assert!(theirs.name.contains(name), "{}", theirs.name);
        assert!(theirs.start_time_unix_nano <= span.start_time_unix_nano, "{theirs:?} {span:?}");
    }
}

#[test]
fn a_collector_that_hangs_refuses_or_is_away_delays_no_start() {
    only_on_hearth!();
    let away = {
        // Its port is free again: no process listens.
        let gone = Collector::start(Answers::Never);
        gone.address().to_owned()
    };
    let (hangs, refuses) = (Collector::start(Answers::Never), Collector::start(Answers::Refusal));
    let endpoints = [
        ("hangs", hangs.address(), "http/protobuf", "deadline has elapsed"),
        ("hangs", hangs.address(), "grpc", "Timeout expired"),
        ("refuses", refuses.address(), "http/protobuf", "400"),
        ("refuses", refuses.address(), "grpc", "InvalidArgument"),
        ("is away", away.as_str(), "http/protobuf", "Connection refused"),
        ("is away", away.as_str(), "grpc", "Connection refused"),
    ];
    for (how, address, protocol, why) in endpoints {
        let endpoint = format!("http://{address}");
        let environment = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "100"),
            ("OTEL_BSP_SCHEDULE_DELAY", "10"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "2"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1"),
        ];
        let environment = environment.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        let mut world = World::with(HearthdOptions { environment, ..HearthdOptions::default() });
        let sleep = world.program(&Guest::SLEEP);
        for number in 0..6 {
            world.run(&sleep, &format!("t{number}")).args(["3600"]).detach().ok();
        }
        let counted = |name: &str, labels: &[(&str, &str)]| world.metrics().sum(name, labels);
        let failed = || counted("hearth_trace_spans_total", &[("result", "failed")]);
        // Every start's spans are lost in the end, in delivery or in the queue.
        let number = |name: &str| counted(name, &[]);
        eventually("every trace is counted", SHORT, || {
            let lost = failed() / 8.0 + number("hearth_trace_starts_dropped_total");
            (lost >= 6.0).then_some(())
        });
        assert_eq!(counted("hearth_trace_spans_total", &[("result", "sent")]), 0.0, "{how}");
        let log = world.hearthd_log();
        let said: Vec<_> = log.lines().filter(|line| line.contains("does not take spans")).collect();
        assert_eq!(said.len(), 1, "once a minute at most, where it {how}: {said:?}");
        assert!(said[0].contains(why), "{how}, {protocol}: {said:?}");
        world.stop_hearthd();
    }
}

#[test]
fn a_collector_is_known_by_its_certificate() {
    only_on_hearth!();
    let (authority, other) = (Authority::new(), Authority::new());
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(authority.pem().as_bytes()).unwrap();
    let certificate = file.path().display().to_string();
    for protocol in ["http/protobuf", "grpc"] {
        let ours = Collector::start_with_tls(authority.server("localhost"));
        let strange = Collector::start_with_tls(other.server("localhost"));
        let misnamed = Collector::start_with_tls(authority.server("elsewhere"));
        for (collector, is_known) in [(&strange, false), (&misnamed, false), (&ours, true)] {
            let port = collector.address().rsplit_once(':').expect("it has a port").1;
            let endpoint = format!("https://localhost:{port}");
            let environment = [
                ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
                ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
                ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
                ("OTEL_EXPORTER_OTLP_CERTIFICATE", certificate.as_str()),
                ("OTEL_EXPORTER_OTLP_TIMEOUT", "500"),
                ("OTEL_BSP_SCHEDULE_DELAY", "20"),
            ];
            let environment = environment.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
            let world = World::with(HearthdOptions { environment, ..HearthdOptions::default() });
            let hello = world.program(&Guest::HELLO);
            world.run(&hello, "traced").ok();
            if is_known {
                eventually("its spans come", SHORT, || (!collector.spans().is_empty()).then_some(()));
                continue;
            }
            let log = eventually("the log says why none are sent", SHORT, || {
                Some(world.hearthd_log()).filter(|log| log.contains("does not take spans"))
            });
            assert!(log.to_lowercase().contains("certificate"), "{log}");
            assert!(collector.spans().is_empty());
        }
    }
}

#[test]
fn errors_in_the_environment_are_reported_at_the_start() {
    only_on_hearth!();
    let mut world = World::new();
    world.stop_hearthd();
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://localhost:4318");
    let nowhere = ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/ca.pem");
    let cases: [(&[(&str, &str)], &str); 4] = [
        (
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4318")],
            "OTEL_EXPORTER_OTLP_ENDPOINT: \"localhost:4318\" is no URL",
        ),
        (&[endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")], "OTEL_EXPORTER_OTLP_PROTOCOL"),
        (&[endpoint, nowhere], "OTEL_EXPORTER_OTLP_CERTIFICATE: /nowhere/ca.pem"),
        (
            &[endpoint, nowhere, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")],
            "OTEL_EXPORTER_OTLP_CERTIFICATE: /nowhere/ca.pem",
        ),
    ];
    for (environment, says) in cases {
        let environment = environment.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        let before = world.hearthd_log().len();
        let options = HearthdOptions { environment, ..HearthdOptions::default() };
        let (mut hearthd, ready) = try_start_hearthd(world.machine(), world.layout(), &options);
        assert!(!ready && !hearthd.wait(SHORT).expect("it ends").success(), "{says}");
        let log = world.hearthd_log();
        assert!(log[before..].lines().any(|line| line.starts_with("hearthd: ") && line.contains(says)), "{log}");
    }
    world.start_hearthd();
    world.hearthctl(["status"]).ok();
}
