//! Settings of traces in the environment: OpenTelemetry's variables, which containerd reads, too. They are read and
//! checked before the daemon binds anything.
//!
//! On: `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` is set, or `OTEL_TRACES_EXPORTER=otlp`.
//! Off in any case: `OTEL_SDK_DISABLED=true`, `OTEL_TRACES_EXPORTER=none`. An empty variable counts as unset. Variables
//! for traces alone (`OTEL_EXPORTER_OTLP_TRACES_…`) take precedence over those for all signals.

use std::path::PathBuf;
use std::time::Duration;

use http::uri::Uri;
use http::{HeaderName, HeaderValue};
use opentelemetry_sdk::trace::Sampler;

/// The protocol to the collector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 with protobuf: OpenTelemetry's default.
    Http,
    /// gRPC.
    Grpc,
}

impl Protocol {
    /// Its value in `OTEL_EXPORTER_OTLP_PROTOCOL`.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Http => "http/protobuf",
            Protocol::Grpc => "grpc",
        }
    }
}

/// How starts are traced. (Headers, compression and `OTEL_RESOURCE_ATTRIBUTES` are read by OpenTelemetry's library.)
#[derive(Debug, Clone)]
pub struct Settings {
    /// The collector's URL, whole.
    pub endpoint: String,
    /// The protocol there.
    pub protocol: Protocol,
    /// The service's name there (`OTEL_SERVICE_NAME`).
    pub service: Option<String>,
    /// A file with the certificates to trust; none: the node's.
    pub certificate: Option<PathBuf>,
    /// The time-out of one delivery with its retries (`OTEL_EXPORTER_OTLP_TIMEOUT`, in milliseconds).
    pub timeout: Duration,
    /// Decides which starts are traced.
    pub sampler: Sampler,
    /// The most starts that wait to be sent; more are dropped and counted (`OTEL_BSP_MAX_QUEUE_SIZE`).
    pub queue_max: usize,
    /// The time between two deliveries (`OTEL_BSP_SCHEDULE_DELAY`, in milliseconds).
    pub delay: Duration,
    /// Spans in one request; the last start may exceed it by its own (`OTEL_BSP_MAX_EXPORT_BATCH_SIZE`).
    pub batch_spans: usize,
}

// OpenTelemetry's defaults.
const TIMEOUT_MS: u64 = 10_000;
const QUEUE_MAX: u64 = 2_048;
const DELAY_MS: u64 = 5_000;
const BATCH_SPANS: u64 = 512;

/// Gives the value of a variable.
type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Settings {
    /// The settings in this process's environment; none if starts are not to be traced.
    ///
    /// # Errors
    /// The variable that is wrong and the reason, in one line.
    pub fn of_environment() -> Result<Option<Settings>, String> {
        Settings::read(&|name| std::env::var(name).ok())
    }

    fn read(lookup: Environment<'_>) -> Result<Option<Settings>, String> {
        let variables = Variables(lookup);
        if !variables.are_on()? {
            return Ok(None);
        }
        variables.check_headers()?;
        variables.check_compression()?;
        let protocol = variables.protocol()?;
        Ok(Some(Settings {
            endpoint: variables.endpoint(protocol)?,
            protocol,
            service: variables.named("OTEL_SERVICE_NAME").map(|(_, name)| name),
            certificate: variables.certificate()?,
            timeout: Duration::from_millis(variables.number(variables.otlp("TIMEOUT"), TIMEOUT_MS)?),
            sampler: variables.sampler()?,
            queue_max: variables.count("OTEL_BSP_MAX_QUEUE_SIZE", QUEUE_MAX)?,
            delay: Duration::from_millis(variables.number(variables.named("OTEL_BSP_SCHEDULE_DELAY"), DELAY_MS)?),
            batch_spans: variables.count("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", BATCH_SPANS)?,
        }))
    }
}

/// A variable that is set: its name, for an error, and its value.
type Variable = Option<(String, String)>;

struct Variables<'a>(Environment<'a>);

impl Variables<'_> {
    fn named(&self, name: &str) -> Variable {
        let value = self.0(name)?.trim().to_owned();
        (!value.is_empty()).then(|| (name.to_owned(), value))
    }

    /// `OTEL_EXPORTER_OTLP_…`, for traces or for all signals.
    fn otlp(&self, name: &str) -> Variable {
        let of_traces = self.named(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}"));
        of_traces.or_else(|| self.named(&format!("OTEL_EXPORTER_OTLP_{name}")))
    }

    fn is_true(&self, found: Variable) -> Result<bool, String> {
        match found {
            None => Ok(false),
            Some((_, value)) if value.eq_ignore_ascii_case("true") => Ok(true),
            Some((_, value)) if value.eq_ignore_ascii_case("false") => Ok(false),
            Some((name, value)) => Err(format!("{name}: {value:?} is neither true nor false")),
        }
    }

    fn are_on(&self) -> Result<bool, String> {
        if self.is_true(self.named("OTEL_SDK_DISABLED"))? {
            return Ok(false);
        }
        match self.named("OTEL_TRACES_EXPORTER") {
            None => Ok(self.otlp("ENDPOINT").is_some()),
            Some((_, value)) if value == "otlp" => Ok(true),
            Some((_, value)) if value == "none" => Ok(false),
            Some((name, value)) => Err(format!("{name}: hearthd has no exporter {value:?}; there are otlp and none")),
        }
    }

    fn protocol(&self) -> Result<Protocol, String> {
        match self.otlp("PROTOCOL") {
            None => Ok(Protocol::Http),
            Some((_, value)) if value == Protocol::Http.name() => Ok(Protocol::Http),
            Some((_, value)) if value == Protocol::Grpc.name() => Ok(Protocol::Grpc),
            Some((name, value)) => {
                Err(format!("{name}: hearthd does not speak {value:?}; there are http/protobuf (the default) and grpc"))
            }
        }
    }

    /// For HTTP, the path of traces is appended to an endpoint for all signals.
    fn endpoint(&self, protocol: Protocol) -> Result<String, String> {
        let of_traces = self.named("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
        let is_whole = of_traces.is_some() || protocol == Protocol::Grpc;
        let (name, value) = match of_traces.or_else(|| self.named("OTEL_EXPORTER_OTLP_ENDPOINT")) {
            Some(found) => found,
            None => return Ok(default_endpoint(protocol).into()),
        };
        let url = match protocol {
            Protocol::Grpc if !value.contains("://") => {
                let scheme = if self.is_true(self.otlp("INSECURE"))? { "http" } else { "https" };
                format!("{scheme}://{value}")
            }
            _ => value.clone(),
        };
        let wrong = |why: &str| format!("{name}: {value:?} is no URL like {}: {why}", default_endpoint(protocol));
        let uri: Uri = url.parse().map_err(|error: http::uri::InvalidUri| wrong(&error.to_string()))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(wrong("it begins with neither http:// nor https://"));
        }
        if uri.host().is_none_or(str::is_empty) {
            return Err(wrong("it names no host"));
        }
        Ok(if is_whole { url } else { format!("{}/v1/traces", url.trim_end_matches('/')) })
    }

    fn certificate(&self) -> Result<Option<PathBuf>, String> {
        for part in ["CLIENT_CERTIFICATE", "CLIENT_KEY"] {
            if let Some((name, _)) = self.otlp(part) {
                return Err(format!(
                    "{name}: hearthd shows a collector no certificate of its own; use a header for it"
                ));
            }
        }
        Ok(self.otlp("CERTIFICATE").map(|(_, path)| path.into()))
    }

    /// `name=value,name=value`, the values percent-encoded. OpenTelemetry's library sends them, and silently leaves
    /// out wrong ones.
    fn check_headers(&self) -> Result<(), String> {
        let Some((variable, list)) = self.otlp("HEADERS") else { return Ok(()) };
        let is_header = |pair: &str| {
            let Some((name, value)) = pair.split_once('=') else { return false };
            let value = percent_encoding::percent_decode_str(value.trim()).decode_utf8();
            name.trim().parse::<HeaderName>().is_ok() && value.is_ok_and(|value| HeaderValue::from_str(&value).is_ok())
        };
        let wrong = list.split(',').filter(|pair| !pair.trim().is_empty()).position(|pair| !is_header(pair));
        // Without the value, which is often a secret.
        wrong.map_or(Ok(()), |at| Err(format!("{variable}: entry {} is no header like name=value", at + 1)))
    }

    /// OpenTelemetry's library compresses, and silently ignores a compression that it does not know.
    fn check_compression(&self) -> Result<(), String> {
        match self.otlp("COMPRESSION") {
            Some((name, value)) if !["gzip", "none"].iter().any(|known| value.eq_ignore_ascii_case(known)) => {
                Err(format!("{name}: hearthd has no compression {value:?}; there are gzip and none"))
            }
            _ => Ok(()),
        }
    }

    fn number(&self, found: Variable, default: u64) -> Result<u64, String> {
        let Some((name, value)) = found else { return Ok(default) };
        let number = value.parse().ok().filter(|&number| number > 0);
        number.ok_or_else(|| format!("{name}: {value:?} is no whole number above 0"))
    }

    fn count(&self, name: &str, default: u64) -> Result<usize, String> {
        /// The longest queue.
        const MOST: u64 = 1 << 20;
        let number = self.number(self.named(name), default)?;
        usize::try_from(number)
            .ok()
            .filter(|_| number <= MOST)
            .ok_or_else(|| format!("{name}: {number} is over {MOST}"))
    }

    fn sampler(&self) -> Result<Sampler, String> {
        let by_parent = |root| Sampler::ParentBased(Box::new(root));
        let Some((name, value)) = self.named("OTEL_TRACES_SAMPLER") else { return Ok(by_parent(Sampler::AlwaysOn)) };
        Ok(match value.as_str() {
            "always_on" => Sampler::AlwaysOn,
            "always_off" => Sampler::AlwaysOff,
            "traceidratio" => Sampler::TraceIdRatioBased(self.ratio()?),
            "parentbased_always_on" => by_parent(Sampler::AlwaysOn),
            "parentbased_always_off" => by_parent(Sampler::AlwaysOff),
            "parentbased_traceidratio" => by_parent(Sampler::TraceIdRatioBased(self.ratio()?)),
            _ => {
                return Err(format!(
                    "{name}: hearthd has no sampler {value:?}; there are always_on, always_off, traceidratio, and each \
                     of them after parentbased_"
                ));
            }
        })
    }

    fn ratio(&self) -> Result<f64, String> {
        let Some((name, value)) = self.named("OTEL_TRACES_SAMPLER_ARG") else { return Ok(1.0) };
        let ratio = value.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
        ratio.ok_or_else(|| format!("{name}: {value:?} is no number from 0 to 1"))
    }
}

fn default_endpoint(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Http => "http://localhost:4318/v1/traces",
        Protocol::Grpc => "http://localhost:4317",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<Settings>, String> {
        Settings::read(&|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).into()))
    }

    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");

    #[test]
    fn nothing_is_traced_unless_a_collector_is_named() {
        assert!(read(&[]).unwrap().is_none());
        assert!(read(&[("OTEL_SERVICE_NAME", "hearthd"), ("OTEL_EXPORTER_OTLP_ENDPOINT", "")]).unwrap().is_none());
        assert!(read(&[ENDPOINT, ("OTEL_SDK_DISABLED", "TRUE")]).unwrap().is_none());
        assert!(read(&[ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")]).unwrap().is_none());
        assert_eq!(
            read(&[("OTEL_TRACES_EXPORTER", "otlp")]).unwrap().unwrap().endpoint,
            "http://localhost:4318/v1/traces"
        );
    }

    #[test]
    fn a_collector_is_where_opentelemetry_has_it() {
        let endpoint = |more: &[(&str, &str)]| read(more).unwrap().unwrap().endpoint;
        assert_eq!(endpoint(&[ENDPOINT]), "http://collector:4318/v1/traces");
        let of_traces = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://elsewhere/in/");
        assert_eq!(endpoint(&[ENDPOINT, of_traces]), "https://elsewhere/in/");
        let grpc = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
        assert_eq!(endpoint(&[ENDPOINT, grpc]), "http://collector:4318");
        let bare = ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317");
        assert_eq!(endpoint(&[bare, grpc]), "https://collector:4317");
        assert_eq!(endpoint(&[bare, grpc, ("OTEL_EXPORTER_OTLP_INSECURE", "true")]), "http://collector:4317");
    }

    #[test]
    fn every_variable_is_read() {
        let settings = read(&[
            ENDPOINT,
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20x, tenant=blue"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "250"),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "7"),
        ]);
        let settings = settings.unwrap().unwrap();
        assert_eq!((settings.timeout, settings.queue_max), (Duration::from_millis(250), 7));
        assert_eq!(format!("{:?}", settings.sampler), "ParentBased(TraceIdRatioBased(0.25))");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318", "http://"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://", "no URL"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "ftp://collector", "neither"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "there are http/protobuf (the default) and grpc"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "10s", "no whole number"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=b,secret", "entry 2 is no header"),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/key", "no certificate of its own"),
            ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "zstd", "there are gzip and none"),
            ("OTEL_TRACES_SAMPLER", "sometimes", "there are always_on"),
            ("OTEL_TRACES_EXPORTER", "zipkin", "otlp and none"),
            ("OTEL_SDK_DISABLED", "maybe", "neither true nor false"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "1e9", "no whole number"),
        ];
        for (name, value, says) in cases {
            let error = read(&[(name, value), ENDPOINT]).unwrap_err();
            assert!(error.starts_with(name) && error.contains(says), "{name}={value}: {error}");
        }
        let error = read(&[ENDPOINT, ("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "2")]);
        assert!(error.unwrap_err().starts_with("OTEL_TRACES_SAMPLER_ARG"));
    }
}
