//! CRI, as kubelet speaks it: a blocking client of containerd's plugin, and the log files it writes.
//!
//! Failure paths: a call without an answer within its deadline is an error; each error names the call.

use std::fs;
use std::future::Future;
use std::path::Path;
use std::time::Duration;

use containerd_client::tonic::transport::Channel;
use tokio::runtime::Runtime;
use tonic::{Request, Response, Status};

use crate::wait::{LONG, SHORT, within};

use v1::image_service_client::ImageServiceClient;
use v1::runtime_service_client::RuntimeServiceClient;

/// The messages of CRI, generated from `proto/cri.proto`.
#[allow(missing_docs)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

/// A connection to containerd's CRI plugin. It outlives a restart of containerd.
#[derive(Debug)]
pub struct Cri {
    runtime: Runtime,
    channel: Channel,
}

/// A call that failed.
#[derive(Debug)]
pub struct Failed {
    /// E.g. `StartContainer`.
    pub call: &'static str,
    /// containerd's error.
    pub status: Status,
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {:?}: {}", self.call, self.status.code(), self.status.message())
    }
}

impl std::error::Error for Failed {}

macro_rules! calls {
    ($($(#[$doc:meta])* $verb:ident = $call:literal $method:ident($request:ty) -> $answer:ty;)*) => {
        $(
            $(#[$doc])*
            ///
            /// # Errors
            /// containerd's error.
            pub fn $verb(&self, request: $request) -> Result<$answer, Failed> {
                let mut client = RuntimeServiceClient::new(self.channel.clone());
                self.call($call, request, |request| async move { client.$method(request).await })
            }
        )*
    };
}

impl Cri {
    /// Connects.
    ///
    /// # Panics
    /// If containerd does not answer at `socket`.
    pub fn connect(socket: &Path) -> Self {
        // A thread of its own drives the connection: several threads of a story may call at once.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime can be made");
        let channel = runtime
            .block_on(containerd_client::connect(socket))
            .unwrap_or_else(|error| panic!("{}: {error}", socket.display()));
        Self { runtime, channel }
    }

    /// Waits until the plugin and its network are ready.
    ///
    /// # Panics
    /// With the conditions, if they are not met within [`SHORT`].
    pub fn wait_until_ready(&self) {
        let mut last = String::from("no answer");
        let ready = within(SHORT, || match self.status(v1::StatusRequest { verbose: false }) {
            Ok(answer) => {
                let conditions = answer.status.map(|status| status.conditions).unwrap_or_default();
                // Other conditions, such as of deprecated settings, do not matter.
                let ready = ["RuntimeReady", "NetworkReady"]
                    .iter()
                    .all(|name| conditions.iter().any(|found| found.r#type == *name && found.status));
                last = format!("{conditions:?}");
                ready.then_some(())
            }
            Err(error) => {
                last = error.to_string();
                None
            }
        });
        assert!(ready.is_some(), "CRI is not ready: {last}");
    }

    calls! {
        /// The readiness of runtime and network.
        status = "Status" status(v1::StatusRequest) -> v1::StatusResponse;
        /// Makes and starts a pod's sandbox.
        run_pod = "RunPodSandbox" run_pod_sandbox(v1::RunPodSandboxRequest) -> v1::RunPodSandboxResponse;
        /// Stops a pod's sandbox, its containers and its network.
        stop_pod = "StopPodSandbox" stop_pod_sandbox(v1::StopPodSandboxRequest) -> v1::Empty;
        /// Removes a pod's sandbox and its containers.
        remove_pod = "RemovePodSandbox" remove_pod_sandbox(v1::RemovePodSandboxRequest) -> v1::Empty;
        /// A pod's state and address.
        pod_status = "PodSandboxStatus" pod_sandbox_status(v1::PodSandboxStatusRequest) -> v1::PodSandboxStatusResponse;
        /// All pods.
        list_pods = "ListPodSandbox" list_pod_sandbox(v1::Empty) -> v1::ListPodSandboxResponse;
        /// Makes a container in a pod.
        create_container = "CreateContainer" create_container(v1::CreateContainerRequest) -> v1::CreateContainerResponse;
        /// Starts a container.
        start_container = "StartContainer" start_container(v1::StartContainerRequest) -> v1::Empty;
        /// Stops a container: its stop signal, then SIGKILL.
        stop_container = "StopContainer" stop_container(v1::StopContainerRequest) -> v1::Empty;
        /// Removes a container.
        remove_container = "RemoveContainer" remove_container(v1::RemoveContainerRequest) -> v1::Empty;
        /// All containers.
        list_containers = "ListContainers" list_containers(v1::Empty) -> v1::ListContainersResponse;
        /// A container's state, exit code and reason.
        container_status = "ContainerStatus" container_status(v1::ContainerStatusRequest) -> v1::ContainerStatusResponse;
        /// Changes a container's limits.
        update_resources = "UpdateContainerResources"
            update_container_resources(v1::UpdateContainerResourcesRequest) -> v1::Empty;
        /// Runs a command in a container to its end.
        exec_sync = "ExecSync" exec_sync(v1::ExecSyncRequest) -> v1::ExecSyncResponse;
        /// The URL of a container's standard streams.
        attach = "Attach" attach(v1::AttachRequest) -> v1::AttachResponse;
        /// The URL of a pod's ports.
        port_forward = "PortForward" port_forward(v1::PortForwardRequest) -> v1::PortForwardResponse;
        /// A container's resource usage.
        container_stats = "ContainerStats" container_stats(v1::ContainerStatsRequest) -> v1::ContainerStatsResponse;
        /// All containers' resource usage.
        list_stats = "ListContainerStats" list_container_stats(v1::Empty) -> v1::ListContainerStatsResponse;
        /// All pods' resource usage.
        list_pod_stats = "ListPodSandboxStats" list_pod_sandbox_stats(v1::Empty) -> v1::ListPodSandboxStatsResponse;
    }

    /// Whether the plugin knows an image of this name.
    pub fn has_image(&self, name: &str) -> bool {
        let mut client = ImageServiceClient::new(self.channel.clone());
        let request = v1::ImageStatusRequest { image: Some(v1::ImageSpec { image: name.to_owned() }) };
        let answer = self.call("ImageStatus", request, |request| async move { client.image_status(request).await });
        answer.is_ok_and(|answer| answer.image.is_some())
    }

    fn call<Q, A, F>(&self, name: &'static str, message: Q, make: impl FnOnce(Request<Q>) -> F) -> Result<A, Failed>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        // Longer than any grace a story gives a container, and than compiling a large module.
        const DEADLINE: Duration = LONG;
        let mut request = Request::new(message);
        request.set_timeout(DEADLINE);
        let answer = self.runtime.block_on(make(request));
        answer.map(Response::into_inner).map_err(|status| Failed { call: name, status })
    }
}

/// A standard stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One entry of a container's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// The stream that the container wrote it to.
    pub stream: Stream,
    /// False if the line goes on in the next entry.
    pub is_whole: bool,
    /// Its text, without the end of the line.
    pub text: String,
}

/// Reads a container's log; a last entry still being written is left out.
///
/// # Panics
/// At an entry that is malformed.
pub fn read_log(path: &Path) -> Vec<LogLine> {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let parse =
        |line: &str| parse_log_line(line).unwrap_or_else(|| panic!("{}: not an entry: {line:?}", path.display()));
    whole.lines().map(parse).collect()
}

/// `2026-01-01T00:00:00.000000000Z stdout F text`
fn parse_log_line(line: &str) -> Option<LogLine> {
    let mut fields = line.splitn(4, ' ');
    let time = fields.next()?;
    let stream = match fields.next()? {
        "stdout" => Stream::Stdout,
        "stderr" => Stream::Stderr,
        _ => return None,
    };
    let is_whole = match fields.next()? {
        "F" => true,
        "P" => false,
        _ => return None,
    };
    let text = fields.next()?.to_owned();
    time.contains('T').then_some(LogLine { stream, is_whole, text })
}

/// The text of one stream, put together from its entries.
pub fn text_of(log: &[LogLine], stream: Stream) -> String {
    let mut text = String::new();
    for line in log.iter().filter(|line| line.stream == stream) {
        text += &line.text;
        if line.is_whole {
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_put_together_again() {
        let log = ["stdout P he", "stderr F oops", "stdout F llo", "stdout F "];
        let log: Vec<_> = log.map(|rest| parse_log_line(&format!("2026-01-01T00:00:00.1Z {rest}")).unwrap()).into();
        assert_eq!(text_of(&log, Stream::Stdout), "hello\n\n");
        assert_eq!(text_of(&log, Stream::Stderr), "oops\n");
    }

    #[test]
    fn a_malformed_entry_is_not_taken_for_one() {
        for line in ["", "hello", "2026-01-01T00:00:00Z stdin F x", "2026-01-01T00:00:00Z stdout X x"] {
            assert_eq!(parse_log_line(line), None, "{line:?}");
        }
    }
}
