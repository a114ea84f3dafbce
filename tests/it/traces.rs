//! Starts as OpenTelemetry traces: a collector that takes them, and one that hangs.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use hearth_tests::daemons::{HearthdOptions, try_start_hearthd};
use hearth_tests::{Guest, SHORT, World, eventually};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::trace::v1::Span;
use tonic::{Request, Response, Status};

use crate::only_on_hearth;

/// A collector: what it is sent, it passes on.
struct Collector(Sender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        // The story may be over.
        let _ = self.0.send(request.into_inner());
        Ok(Response::default())
    }
}

/// Starts a collector: its port, and what it gets. It ends with the runtime.
fn collector(runtime: &tokio::runtime::Runtime) -> (u16, Receiver<ExportTraceServiceRequest>) {
    let (sender, received) = channel();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let port = listener.local_addr().unwrap().port();
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(Collector(sender)));
    runtime.spawn(server.serve_with_incoming(incoming));
    (port, received)
}

fn options(pairs: &[(&str, String)]) -> HearthdOptions {
    let environment = pairs.iter().map(|(name, value)| (name.to_string(), value.clone())).collect();
    HearthdOptions { environment, ..HearthdOptions::default() }
}

#[test]
fn a_collector_gets_each_start_with_its_phases() {
    only_on_hearth!();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (port, received) = collector(&runtime);
    let world = World::with(options(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://127.0.0.1:{port}")),
        ("OTEL_BSP_SCHEDULE_DELAY", "50".into()),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test".into()),
    ]));
    let hello = world.program(&Guest::HELLO);
    world.run(&hello, "traced").ok();
    let mut spans: BTreeMap<String, Span> = BTreeMap::new();
    eventually("the spans of a start have come", SHORT, || {
        while let Ok(request) = received.try_recv() {
            for resource in request.resource_spans {
                let attributes = format!("{:?}", resource.resource);
                assert!(
                    attributes.contains("hearthd") && attributes.contains("deployment.environment"),
                    "{attributes}"
                );
                let all = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
                spans.extend(all.map(|span| (span.name.clone(), span)));
            }
        }
        spans.contains_key("hearth.start").then_some(())
    });
    let root = &spans["hearth.start"];
    assert!(root.parent_span_id.is_empty() && format!("{:?}", root.attributes).contains("traced"), "{root:?}");
    for phase in ["create", "start", "bundle", "lookup", "compile", "mounts", "instantiate", "first_call"] {
        let span = spans.get(phase).unwrap_or_else(|| panic!("no span {phase}"));
        assert_eq!((&span.trace_id, &span.parent_span_id), (&root.trace_id, &root.span_id), "{phase}");
        assert!(span.start_time_unix_nano >= root.start_time_unix_nano, "{phase}");
        assert!(span.end_time_unix_nano > span.start_time_unix_nano, "{phase}");
    }
    let trace = root.trace_id.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(world.ask(&["trace", "--last", "1"])[0]["trace_id"], trace.as_str());
    eventually("they are counted", SHORT, || {
        (world.metrics().sum("hearth_otel_spans_exported_total", &[]) >= 9.0).then_some(())
    });
}

#[test]
fn a_collector_that_hangs_or_is_not_there_holds_nothing_up() {
    only_on_hearth!();
    // It takes connections, and says nothing.
    let hanging = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = hanging.local_addr().unwrap().port();
    let mut world = World::with(options(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://127.0.0.1:{port}")),
        ("OTEL_BSP_SCHEDULE_DELAY", "10".into()),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "16".into()),
    ]));
    let hello = world.program(&Guest::HELLO);
    for number in 0..8 {
        world.run(&hello, &format!("start-{number}")).ok();
    }
    eventually("what finds no room is dropped and counted", SHORT, || {
        (world.metrics().sum("hearth_otel_spans_dropped_total", &[]) > 0.0).then_some(())
    });
    assert_eq!(world.metrics().sum("hearth_otel_spans_exported_total", &[]), 0.0);
    let began = Instant::now();
    world.stop_hearthd();
    assert!(began.elapsed() < Duration::from_secs(10), "a stop waits for nobody");
}

#[test]
fn what_the_variables_ask_for_and_cannot_be_done_is_said_at_the_start() {
    only_on_hearth!();
    let mut world = World::new();
    world.stop_hearthd();
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318".to_string());
    let wrong: [(&[(&str, String)], &str); 3] = [
        (&[endpoint.clone(), ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf".into())], "say grpc"),
        (&[("OTEL_TRACES_EXPORTER", "zipkin".into())], "say otlp or none"),
        (&[endpoint, ("OTEL_BSP_MAX_QUEUE_SIZE", "none".into())], "OTEL_BSP_MAX_QUEUE_SIZE"),
    ];
    for (pairs, says) in wrong {
        let (mut hearthd, ready) = try_start_hearthd(world.machine(), world.layout(), &options(pairs));
        assert!(!ready && !hearthd.wait(SHORT).expect("it ends").success());
        assert!(world.hearthd_log().contains(says), "{says}: {}", world.hearthd_log());
    }
}
