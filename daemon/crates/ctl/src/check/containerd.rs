//! containerd: its release, the runtime handler in the configuration it has read, and the shim in its `PATH`.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hearth_shim::CONTROL_SOCKET_ENV;
use http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

use super::Finding;
use hearth_base::config;
use hearth_containerd::client::Containerd;

/// The runtime that a handler names.
const RUNTIME: &str = "io.containerd.hearth.v1";

/// The program that containerd looks for, for that.
const SHIM: &str = "containerd-shim-hearth-v1";

/// containerd's first release that is known to work.
const LEAST: (u32, u32) = (1, 6);

/// How long CRI may take to say how it is.
const STATUS_TIME: Duration = Duration::from_secs(10);

pub fn check(socket: &Path, handler: &str, control: &Path) -> Vec<Finding> {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return vec![Finding::fail("containerd", error.to_string(), "are there threads left?")],
    };
    let containerd = Containerd::new(&socket.display().to_string(), &config::Rpc::default());
    let version = match runtime.block_on(containerd.version()) {
        Ok(version) => version,
        Err(error) => {
            let remedy = "systemctl start containerd, or name its socket with --containerd";
            return vec![Finding::fail("containerd", error.to_string(), remedy)];
        }
    };
    let text = format!("{}.{}.{} at {}", version.major, version.minor, version.patch, socket.display());
    let mut findings = vec![match (version.major, version.minor) {
        old if old < LEAST => Finding::fail("containerd", text, "hearthd needs containerd 1.6 or later"),
        _ => Finding::ok("containerd", text),
    }];
    let said = runtime.block_on(async { cri_status(containerd.connection()).await });
    let path = match said {
        Ok(status) => {
            let (finding, path) = handler_of(&status, handler);
            findings.push(finding);
            path
        }
        Err(status) if status.code() == tonic::Code::Unimplemented => {
            let remedy = "take io.containerd.grpc.v1.cri out of its disabled_plugins, unless only ctr is used";
            findings.push(Finding::warn("runtime handler", "containerd serves no CRI: no pods", remedy));
            None
        }
        Err(status) => {
            let text = format!("containerd's CRI does not answer: {}", status.message());
            findings.push(Finding::warn("runtime handler", text, "journalctl -u containerd"));
            None
        }
    };
    findings.push(shim(socket, path.as_deref(), control));
    findings
}

/// `runtime.v1.StatusRequest` of CRI.
#[derive(Clone, PartialEq, prost::Message)]
struct StatusRequest {
    #[prost(bool, tag = "1")]
    verbose: bool,
}

/// `runtime.v1.StatusResponse` of CRI, with the fields that are used here.
#[derive(Clone, PartialEq, prost::Message)]
struct StatusResponse {
    #[prost(map = "string, string", tag = "2")]
    info: HashMap<String, String>,
}

async fn cri_status(channel: Channel) -> Result<StatusResponse, tonic::Status> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
    let mut request = tonic::Request::new(StatusRequest { verbose: true });
    request.set_timeout(STATUS_TIME);
    let path = PathAndQuery::from_static("/runtime.v1.RuntimeService/Status");
    let codec: ProstCodec<StatusRequest, StatusResponse> = ProstCodec::default();
    Ok(client.unary(request, path, codec).await?.into_inner())
}

/// The handler as containerd's CRI has read it, and the path of the shim that it names.
fn handler_of(status: &StatusResponse, handler: &str) -> (Finding, Option<PathBuf>) {
    const NAME: &str = "runtime handler";
    let config = status.info.get("config").and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok());
    let runtimes = config.as_ref().and_then(|config| config.pointer("/containerd/runtimes")?.as_object());
    let Some(runtimes) = runtimes else {
        let remedy = "containerd config dump | grep -A 1 'runtimes\\.'";
        return (Finding::warn(NAME, "containerd does not tell which runtimes it has", remedy), None);
    };
    let Some(found) = runtimes.get(handler) else {
        let others: Vec<_> = runtimes.keys().map(String::as_str).collect();
        let finding = Finding::fail(
            NAME,
            format!("containerd has no {handler:?} but {}", others.join(", ")),
            "hearthctl install containerd, then restart containerd",
        );
        return (finding, None);
    };
    let text = |key: &str| found.get(key).and_then(|value| value.as_str()).unwrap_or_default();
    let path = Some(text("runtimePath")).filter(|path| !path.is_empty()).map(PathBuf::from);
    let finding = match text("runtimeType") {
        RUNTIME => Finding::ok(NAME, format!("{handler:?} is {RUNTIME}")),
        other => Finding::fail(
            NAME,
            format!("{handler:?} is {other:?}"),
            format!("set its runtime_type to {RUNTIME:?} in containerd's configuration, and restart containerd"),
        ),
    };
    (finding, path)
}

/// Checks whether containerd finds the shim, and the shim this daemon.
fn shim(socket: &Path, path: Option<&Path>, control: &Path) -> Finding {
    const NAME: &str = "shim";
    let Some(process) = process_of(socket) else {
        return Finding::warn(
            NAME,
            "containerd's process cannot be told by its socket",
            "run this on the node itself, as root",
        );
    };
    let Ok(environment) = fs::read(format!("/proc/{process}/environ")) else {
        return Finding::warn(
            NAME,
            format!("the environment of containerd (pid {process}) cannot be read"),
            "use sudo",
        );
    };
    let root = PathBuf::from(format!("/proc/{process}/root"));
    let inside = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
    let found = match path {
        Some(path) => Some(path.to_owned()).filter(|path| inside(path).exists()),
        None => {
            let directories =
                std::env::split_paths(OsStr::from_bytes(variable(&environment, "PATH").unwrap_or_default()));
            directories.map(|directory| directory.join(SHIM)).find(|program| inside(program).exists())
        }
    };
    let Some(found) = found else {
        return Finding::fail(
            NAME,
            format!("{SHIM} is not in containerd's PATH"),
            "install it there (/usr/bin), or name it as runtime_path below runtime_type",
        );
    };
    let dialled = variable(&environment, CONTROL_SOCKET_ENV).filter(|path| !path.is_empty());
    let dialled =
        dialled.map_or_else(|| hearth_shim::CONTROL_SOCKET.into(), |path| PathBuf::from(OsStr::from_bytes(path)));
    match dialled == control {
        true => Finding::ok(NAME, format!("{}, for {}", found.display(), control.display())),
        false => Finding::fail(
            NAME,
            format!("containerd's shims dial {}, and hearthd is at {}", dialled.display(), control.display()),
            format!(
                "set {CONTROL_SOCKET_ENV} in containerd's environment, or control_socket in hearthd's configuration"
            ),
        ),
    }
}

/// The process that listens on a socket.
fn process_of(socket: &Path) -> Option<i32> {
    let stream = UnixStream::connect(socket).ok()?;
    let peer = rustix::net::sockopt::socket_peercred(&stream).ok()?;
    Some(peer.pid.as_raw_nonzero().get()).filter(|&pid| pid > 0)
}

/// A variable in the bytes of `/proc/PID/environ`.
fn variable<'a>(environment: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let mut all = environment.split(|&byte| byte == 0);
    all.find_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::*;

    fn status(config: &str) -> StatusResponse {
        StatusResponse { info: HashMap::from([("config".into(), config.into())]) }
    }

    #[test]
    fn a_handler_is_right_if_containerd_has_read_it_so() {
        let right = r#"{"containerd":{"runtimes":{"runc":{},"hearth":{"runtimeType":"io.containerd.hearth.v1","runtimePath":"/opt/x"}}}}"#;
        let (finding, path) = handler_of(&status(right), "hearth");
        assert_eq!((finding.severity, path), (Severity::Ok, Some("/opt/x".into())));
        let (missing, _) = handler_of(&status(r#"{"containerd":{"runtimes":{"runc":{}}}}"#), "hearth");
        assert_eq!(missing.severity, Severity::Fail);
        assert!(missing.detail.contains("runc"), "{missing:?}");
        let (wrong, _) = handler_of(
            &status(r#"{"containerd":{"runtimes":{"hearth":{"runtimeType":"io.containerd.runc.v2"}}}}"#),
            "hearth",
        );
        assert_eq!(wrong.severity, Severity::Fail);
        for silent in ["", "{}", "[]"] {
            assert_eq!(handler_of(&status(silent), "hearth").0.severity, Severity::Warn);
        }
    }

    #[test]
    fn a_variable_is_found_by_its_whole_name() {
        let environment = b"XPATH=/x\0PATH=/usr/bin:/bin\0";
        assert_eq!(variable(environment, "PATH"), Some(&b"/usr/bin:/bin"[..]));
        assert_eq!(variable(environment, "HOME"), None);
    }
}
