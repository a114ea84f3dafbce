//! containerd's gRPC API, for what `ctr` cannot say: a container of an image that is no Linux image (as
//! CRI makes it), or one with a runtime spec that `ctr` itself would refuse.

use std::path::Path;

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{
    Container, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest, DeleteTaskRequest, container,
};
use containerd_client::tonic::transport::Channel;
use containerd_client::tonic::{Request, Status};
use prost_types::Any;
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::wait::SHORT;
use crate::world::NAMESPACE;

/// Type URL under which containerd's own clients store a runtime spec.
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// A connection to containerd.
#[derive(Debug)]
pub struct Api {
    runtime: Runtime,
    channel: Channel,
}

/// A container to be made.
#[derive(Clone, Debug, Default)]
pub struct NewContainer<'a> {
    /// Its id.
    pub id: &'a str,
    /// The image's reference; empty for none.
    pub image: &'a str,
    /// The key of its snapshot; empty for none.
    pub snapshot: &'a str,
    /// containerd's name of the runtime.
    pub runtime: &'a str,
    /// The bytes of its `config.json`.
    pub spec: Vec<u8>,
}

impl Api {
    /// # Panics
    /// If containerd does not answer at `socket`.
    pub(crate) fn connect(socket: &Path) -> Self {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
        let channel = runtime
            .block_on(containerd_client::connect(socket))
            .unwrap_or_else(|error| panic!("{}: {error}", socket.display()));
        Self { runtime, channel }
    }

    /// Makes a container.
    ///
    /// # Panics
    /// If containerd refuses it.
    pub fn create_container(&self, new: NewContainer<'_>) {
        let container = Container {
            id: new.id.to_owned(),
            image: new.image.to_owned(),
            snapshot_key: new.snapshot.to_owned(),
            snapshotter: if new.snapshot.is_empty() { String::new() } else { "overlayfs".into() },
            runtime: Some(container::Runtime { name: new.runtime.to_owned(), options: None }),
            spec: Some(Any { type_url: SPEC_TYPE.to_owned(), value: new.spec }),
            ..Container::default()
        };
        let request = request(CreateContainerRequest { container: Some(container) });
        let mut client = ContainersClient::new(self.channel.clone());
        self.runtime.block_on(client.create(request)).expect("containerd takes the container");
    }

    /// Deletes a container.
    ///
    /// # Panics
    /// If containerd refuses.
    pub fn delete_container(&self, id: &str) {
        let request = request(DeleteContainerRequest { id: id.to_owned() });
        let mut client = ContainersClient::new(self.channel.clone());
        self.runtime.block_on(client.delete(request)).expect("containerd deletes the container");
    }

    /// Creates the task of a container, without mounts; `stdout` is a FIFO's path, or empty.
    ///
    /// # Errors
    /// What the runtime answered.
    pub fn create_task(&self, id: &str, stdout: &str) -> Result<u32, Status> {
        let request = request(CreateTaskRequest {
            container_id: id.to_owned(),
            stdout: stdout.to_owned(),
            ..CreateTaskRequest::default()
        });
        let mut client = TasksClient::new(self.channel.clone());
        let answer = self.runtime.block_on(client.create(request))?;
        Ok(answer.into_inner().pid)
    }

    /// Deletes a stopped task, and gives its exit code.
    ///
    /// # Errors
    /// What the runtime answered.
    pub fn delete_task(&self, id: &str) -> Result<u32, Status> {
        let request = request(DeleteTaskRequest { container_id: id.to_owned() });
        let mut client = TasksClient::new(self.channel.clone());
        Ok(self.runtime.block_on(client.delete(request))?.into_inner().exit_status)
    }
}

/// A runtime spec as CRI writes one for a Wasm container: arguments, a root, annotations.
pub fn spec(arguments: &[&str], annotations: &[(&str, &str)]) -> Value {
    let annotations: serde_json::Map<_, _> =
        annotations.iter().map(|&(name, value)| (name.to_owned(), value.into())).collect();
    serde_json::json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": arguments,
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
        },
        "root": {"path": "rootfs"},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "annotations": annotations,
        "linux": {"namespaces": [{"type": "mount"}]},
    })
}

fn request<T>(message: T) -> Request<T> {
    let mut request = containerd_client::with_namespace!(message, NAMESPACE);
    request.set_timeout(SHORT);
    request
}
