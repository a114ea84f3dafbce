//! runc's shim: its program, which starts its server or deletes what is left of a container, and calls to the server.

use std::io;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::api::ShutdownRequest;
use containerd_shim_protos::protobuf::Message;
use hearth_shim::NATIVE_ADDRESS_FILE;
use serde_json::Value;
use tokio::process::{Child, Command};
use ttrpc::r#async::Client;
use ttrpc::proto::{Request, Response};

use super::bundle::Mounts;
use hearth_base::config;
use hearth_base::error::{Error, Result};
use hearth_base::namespace::ContainerdNamespace;
use hearth_containerd::peer::{Key, socket_path};
use hearth_os::mount::in_node_namespace;

/// A container's bundle for runc's shim.
pub(super) struct ShimBundle {
    /// The container's id.
    pub(super) id: Arc<str>,
    /// The bundle's directory.
    pub(super) path: PathBuf,
    /// The mount namespace of its shim.
    pub(super) mounts: Mounts,
}

/// runc's shim program, for the containers of one containerd and namespace.
pub(super) struct ShimProgram {
    namespace: ContainerdNamespace,
    key: Key,
    config: config::Native,
}

/// A connection to a runc shim.
pub(super) struct Shim {
    client: Client,
    service: String,
    /// How long it may take to answer a call that is not containerd's.
    timeout: Duration,
}

impl ShimProgram {
    /// The configured program.
    pub(super) fn new(namespace: ContainerdNamespace, key: Key, config: config::Native) -> ShimProgram {
        ShimProgram { namespace, key, config }
    }

    /// Starts runc's shim, or finds the one that serves this pod already.
    pub(super) async fn start(&self, bundle: &ShimBundle) -> Result<Shim> {
        let output = self.exec(bundle, "start").await?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            return Err(Error::Unavailable(format!("{} start: {}", self.config.shim.display(), text.trim())));
        }
        let said = String::from_utf8_lossy(&output.stdout);
        let (address, version) = bootstrap(said.trim());
        // For the `delete` of Hearth's shim, or the next daemon, if this daemon has died.
        let owner = format!("{}\n{}\n", self.namespace, self.key.grpc);
        std::fs::write(bundle.path.join(NATIVE_ADDRESS_FILE), format!("{address}\n{version}\n{owner}"))
            .map_err(|e| Error::Internal(format!("cannot write into {}: {e}", bundle.path.display())))?;
        let path = socket_path(&address);
        let stream = tokio::net::UnixStream::connect(path)
            .await
            .map_err(|e| Error::Unavailable(format!("containerd-shim-runc-v2 at {path}: {e}")))?;
        let service = format!("containerd.task.v{version}.Task");
        let timeout = Duration::from_millis(self.config.shim_timeout_ms);
        Ok(Shim { client: Client::new(stream.into()), service, timeout })
    }

    /// Has runc's shim program remove whatever there is of a container, without its server.
    pub(super) async fn delete(&self, bundle: &ShimBundle) {
        let id = &*bundle.id;
        match self.exec(bundle, "delete").await {
            Ok(output) if output.status.success() => {}
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stderr).into_owned();
                tracing::debug!(task = id, text, "containerd-shim-runc-v2 delete");
            }
            Err(error) => tracing::warn!(task = id, %error, "a native container was not cleaned up"),
        }
    }

    #[allow(clippy::disallowed_methods, reason = "containerd's own shim, called as containerd calls it")]
    async fn exec(&self, bundle: &ShimBundle, verb: &str) -> Result<Output> {
        let Key { grpc, ttrpc } = &self.key;
        let mut command = Command::new(&self.config.shim);
        command
            .args(["-namespace", &self.namespace, "-address", grpc, "-publish-binary", "containerd", "-id", &bundle.id])
            .arg("-bundle")
            .arg(&bundle.path)
            .arg(verb)
            .current_dir(&bundle.path)
            .env("TTRPC_ADDRESS", ttrpc)
            .env("GRPC_ADDRESS", grpc)
            .env("NAMESPACE", &*self.namespace)
            .env("MAX_SHIM_VERSION", "2")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let timeout = Duration::from_millis(self.config.shim_timeout_ms);
        let name = self.config.shim.display();
        let output = async { spawn(command, bundle.mounts).await?.wait_with_output().await };
        match tokio::time::timeout(timeout, output).await {
            Ok(Ok(output)) => Ok(output),
            Ok(Err(error)) => Err(Error::FailedPrecondition(format!(
                "the container's program is native, and {name}, which would run it, cannot be started: {error}"
            ))),
            Err(_) => Err(Error::Unavailable(format!(
                "{name} {verb}: no answer within native.shim_timeout_ms = {}",
                self.config.shim_timeout_ms
            ))),
        }
    }
}

impl Shim {
    /// Passes a call on. An error that the shim answers is a response, too.
    pub(super) async fn pass(&self, request: Request) -> ttrpc::Result<Response> {
        let request = Request { service: self.service.clone(), ..request };
        match self.client.request(request).await {
            Err(ttrpc::Error::RpcStatus(status)) => {
                let mut response = Response::new();
                response.set_status(status);
                Ok(response)
            }
            other => other,
        }
    }

    /// Makes a call of the daemon's own. An error is only logged: no caller could do better.
    pub(super) async fn tell(&self, method: &str, message: &impl Message) {
        if let Ok(request) = call(method, message) {
            let timeout_nano = i64::try_from(self.timeout.as_nanos()).unwrap_or(i64::MAX);
            if let Err(error) = self.pass(Request { timeout_nano, ..request }).await {
                tracing::debug!(method, %error, "containerd-shim-runc-v2 did not answer");
            }
        }
    }

    /// Lets the shim go if this was its last container.
    pub(super) async fn shut_down(&self, id: &str) {
        self.tell("Shutdown", &ShutdownRequest { id: id.into(), ..Default::default() }).await;
    }
}

/// Starts runc's shim binary in a mount namespace.
async fn spawn(mut command: Command, mounts: Mounts) -> io::Result<Child> {
    if mounts == Mounts::Daemon {
        return command.spawn();
    }
    let runtime = tokio::runtime::Handle::current();
    let spawn = move || {
        in_node_namespace(|| {
            // The runtime watches the child.
            let _runtime = runtime.enter();
            command.spawn()
        })
    };
    tokio::task::spawn_blocking(spawn).await.map_err(io::Error::other)??
}

/// A call of the Task API.
pub(super) fn call(method: &str, message: &impl Message) -> Result<Request> {
    let payload = message.write_to_bytes().map_err(|e| Error::Internal(format!("{method}: {e}")))?;
    Ok(Request { method: method.into(), payload, ..Default::default() })
}

/// The error of a shim that does not answer.
pub(super) fn unreachable_shim(error: &ttrpc::Error) -> Error {
    Error::Unavailable(format!("containerd-shim-runc-v2: {error}"))
}

/// The output of `start`: an address (containerd 1.x), or JSON with the version of the Task API.
fn bootstrap(said: &str) -> (String, u64) {
    let parsed = serde_json::from_str::<Value>(said).ok();
    let address = parsed.as_ref().and_then(|said| said["address"].as_str());
    let version = parsed.as_ref().and_then(|said| said["version"].as_u64());
    (address.unwrap_or(said).to_string(), version.unwrap_or(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_shims_answer_are_understood() {
        assert_eq!(bootstrap("unix:///run/x"), ("unix:///run/x".into(), 2));
        let json = r#"{"version":3,"address":"unix:///run/y","protocol":"ttrpc"}"#;
        assert_eq!(bootstrap(json), ("unix:///run/y".into(), 3));
    }
}
