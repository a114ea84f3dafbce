//! Sends the spans of starts to a collector.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::tonic_types::transport::{Certificate, ClientTlsConfig};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

use crate::metrics::Metrics;
use crate::starts::Finished;
use crate::traces::settings::{Protocol, Settings};
use crate::traces::spans;

/// The least time between two log lines about lost spans.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// The time that a delivery gets beyond its own timeout before it is abandoned.
const GRACE: Duration = Duration::from_secs(1);

/// Sends spans.
pub struct Exporter {
    exporter: SpanExporter,
    scope: InstrumentationScope,
    delay: Duration,
    batch_spans: usize,
    give_up: Duration,
    metrics: Arc<Metrics>,
    why: Why,
    reports: Reports,
}

/// The failures that the log has and has not.
#[derive(Default)]
struct Reports {
    at: Option<Instant>,
    /// Spans lost since the last log line.
    lost: usize,
}

impl Exporter {
    /// Has to be called within the runtime that the exporter is to run in.
    ///
    /// # Errors
    /// The settings cannot be used, in one line.
    pub fn new(settings: &Settings, generation: &str, metrics: Arc<Metrics>) -> Result<Exporter, String> {
        let (builder, why) = (SpanExporter::builder(), Why::default());
        let exporter = match settings.protocol {
            Protocol::Grpc => {
                let builder = builder.with_tonic().with_endpoint(&settings.endpoint).with_timeout(settings.timeout);
                match is_secure(settings) {
                    true => builder.with_tls_config(tonic_tls(settings)?).build(),
                    false => builder.build(),
                }
            }
            Protocol::Http => {
                let builder = builder.with_http().with_endpoint(&settings.endpoint).with_timeout(settings.timeout);
                builder.with_http_client(Client::new(settings, why.clone())?).build()
            }
        };
        let mut exporter =
            exporter.map_err(|error| format!("OTEL_EXPORTER_OTLP_ENDPOINT: {}: {error}", settings.endpoint))?;
        exporter.set_resource(&resource(settings, generation));
        let scope = InstrumentationScope::builder("hearthd").with_version(env!("CARGO_PKG_VERSION")).build();
        Ok(Exporter {
            exporter,
            scope,
            delay: settings.delay,
            batch_spans: settings.batch_spans,
            give_up: settings.timeout + GRACE,
            metrics,
            why,
            reports: Reports::default(),
        })
    }

    /// Sends the spans of starts until `stopped`, and then those that are left.
    pub async fn run(
        mut self,
        mut starts: mpsc::Receiver<Finished>,
        fills: Arc<Notify>,
        mut stopped: oneshot::Receiver<()>,
    ) {
        loop {
            let is_last = tokio::select! {
                _ = &mut stopped => true,
                _ = fills.notified() => false,
                () = tokio::time::sleep(self.delay) => false,
            };
            while let Some(batch) = self.batch(&mut starts) {
                self.send(batch).await;
            }
            if is_last {
                return;
            }
        }
    }

    /// The spans of waiting starts, as many as go into one request.
    fn batch(&self, starts: &mut mpsc::Receiver<Finished>) -> Option<Vec<SpanData>> {
        let mut batch = Vec::new();
        while batch.len() < self.batch_spans
            && let Ok(start) = starts.try_recv()
        {
            batch.extend(spans::of(&start, &self.scope));
        }
        (!batch.is_empty()).then_some(batch)
    }

    async fn send(&mut self, batch: Vec<SpanData>) {
        let count = batch.len();
        let sent = match tokio::time::timeout(self.give_up, self.exporter.export(batch)).await {
            Ok(sent) => sent.map_err(|error| match self.why.lock().take() {
                Some(why) => format!("{error}: {why}"),
                None => error.to_string(),
            }),
            Err(_) => Err(format!("no answer within {:?}", self.give_up)),
        };
        let result = if sent.is_ok() { "sent" } else { "failed" };
        self.metrics.traces.spans.with_label_values(&[result]).inc_by(count as u64);
        match sent {
            Ok(()) => self.reports.arrived(),
            Err(error) => self.reports.lost(count, &error, Instant::now()),
        }
    }
}

impl Reports {
    fn lost(&mut self, spans: usize, error: &str, now: Instant) {
        self.lost += spans;
        if self.at.is_none_or(|at| now.duration_since(at) >= REPORT_INTERVAL) {
            self.at = Some(now);
            let spans = std::mem::take(&mut self.lost);
            tracing::warn!(
                spans,
                error,
                "the OpenTelemetry collector does not take spans of starts; they are lost, and nothing waits for it"
            );
        }
    }

    fn arrived(&mut self) {
        // Within the interval the next delivery may fail again.
        if self.at.is_some_and(|at| at.elapsed() >= REPORT_INTERVAL) {
            *self = Reports::default();
            tracing::info!("the OpenTelemetry collector takes spans of starts again");
        }
    }
}

fn is_secure(settings: &Settings) -> bool {
    settings.endpoint.starts_with("https:")
}

fn tonic_tls(settings: &Settings) -> Result<ClientTlsConfig, String> {
    let tls = ClientTlsConfig::new();
    Ok(match &settings.certificate {
        None => tls.with_native_roots(),
        Some(path) => {
            let pem = std::fs::read(path);
            tls.ca_certificate(Certificate::from_pem(pem.map_err(|error| wrong_certificate(settings, &error))?))
        }
    })
}

/// The client for OTLP/HTTP. It keeps the reason of a failed request, which the library's error lacks.
#[derive(Debug)]
struct Client {
    inner: HyperClient<HttpsConnector<HttpConnector>>,
    why: Why,
}

/// The last failure of a request, until it is logged.
type Why = Arc<Mutex<Option<String>>>;

impl Client {
    fn new(settings: &Settings, why: Why) -> Result<Client, String> {
        let provider = Arc::new(crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| format!("TLS: {error}"))?;
        let roots = if is_secure(settings) { roots(settings)? } else { RootCertStore::empty() };
        let tls = builder.with_root_certificates(roots).with_no_client_auth();
        let connector =
            hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
        Ok(Client { inner: HyperClient::new(connector, settings.timeout, None), why })
    }
}

#[async_trait::async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let answer = self.inner.send_bytes(request).await;
        *self.why.lock() = match &answer {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("it answers {}", answer.status())),
            Err(error) => Some(chain(error.as_ref())),
        };
        answer
    }
}

/// An error and its causes, in one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += ": ";
        text += &error.to_string();
        source = error.source();
    }
    text
}

fn roots(settings: &Settings) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    match &settings.certificate {
        None => {
            // A damaged certificate among the node's does not harm the others.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(format!(
                    "OTEL_EXPORTER_OTLP_ENDPOINT: {}: this node has no certificates to know the collector by; install \
                     ca-certificates, or name its own in OTEL_EXPORTER_OTLP_CERTIFICATE",
                    settings.endpoint
                ));
            }
        }
        Some(path) => {
            let certificates = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
            let certificates = certificates.map_err(|error| wrong_certificate(settings, &error))?;
            roots.add_parsable_certificates(certificates);
            if roots.is_empty() {
                return Err(wrong_certificate(settings, &"it holds no certificate in PEM form"));
            }
        }
    }
    Ok(roots)
}

fn wrong_certificate(settings: &Settings, error: &dyn std::fmt::Display) -> String {
    let path = settings.certificate.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    format!("OTEL_EXPORTER_OTLP_CERTIFICATE: {path}: {error}")
}

/// The attributes of this daemon; those of the environment take precedence.
fn resource(settings: &Settings, generation: &str) -> Resource {
    let node = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let own = [
        KeyValue::new("service.name", "hearthd"),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", generation.to_owned()),
        KeyValue::new("host.name", node),
    ];
    let builder = Resource::builder_empty()
        .with_attributes(own)
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_detector(Box::new(EnvResourceDetector::new()));
    match &settings.service {
        Some(name) => builder.with_service_name(name.clone()).build(),
        None => builder.build(),
    }
}
