//! containerd's gRPC API, for calls that `ctr` cannot make: a container of an image that is not a Linux image (as CRI
//! makes it), or one with a runtime spec that `ctr` itself would refuse.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{
    CloseIoRequest, Container, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest, DeleteProcessRequest,
    DeleteTaskRequest, ExecProcessRequest, StartRequest, UpdateTaskRequest, WaitRequest, container,
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

/// Type URL of the process of an exec.
const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// Type URL of a task's limits.
const RESOURCES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

/// A connection to containerd.
#[derive(Debug)]
pub struct Api {
    pub(crate) runtime: Runtime,
    pub(crate) channel: Channel,
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
    /// A separate connection, for a thread that cannot borrow the [`crate::World`].
    ///
    /// # Panics
    /// If containerd does not answer at `socket`.
    pub fn connect(socket: &Path) -> Self {
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

    /// Creates the task of a container, without mounts; stdin, stdout and stderr are FIFOs' paths, or empty.
    ///
    /// # Errors
    /// The runtime's error.
    pub fn create_task(&self, id: &str, [stdin, stdout, stderr]: [&str; 3]) -> Result<u32, Status> {
        let request = request(CreateTaskRequest {
            container_id: id.to_owned(),
            stdin: stdin.to_owned(),
            stdout: stdout.to_owned(),
            stderr: stderr.to_owned(),
            ..CreateTaskRequest::default()
        });
        let mut client = TasksClient::new(self.channel.clone());
        let answer = self.runtime.block_on(client.create(request))?;
        Ok(answer.into_inner().pid)
    }

    /// Runs the task of a container to its end, as a careful client does: feeds `input` and then closes stdin, reads
    /// stdout to *its* end, and only then deletes the task. (`ctr` 1.6.20 closes stdout as soon as the task has ended,
    /// and so loses output that it has not read by then.) Returns the exit code and the output, stdout's and stderr's.
    ///
    /// # Panics
    /// If containerd refuses any of it, or the task has not ended at the deadline.
    pub fn run_task(&self, id: &str, input: &[u8], deadline: Duration) -> (u32, Vec<u8>) {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let fifo = |name: &str| {
            let path = directory.path().join(name);
            let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600));
            rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0).expect("a FIFO can be made");
            path
        };
        let (stdin, stdout) = (fifo("stdin"), fifo("stdout"));
        let path = |path: &Path| path.display().to_string();
        let mut client = TasksClient::new(self.channel.clone());
        std::thread::scope(|scope| {
            // The opens wait for the runtime's, which Create makes; stdin must have a writer at Start.
            let (opened, is_open) = std::sync::mpsc::channel::<()>();
            let writer = scope.spawn({
                let stdin = stdin.clone();
                move || {
                    let mut pipe = OpenOptions::new().write(true).open(stdin).expect("the runtime opens stdin");
                    // Err: Create failed, which is reported below.
                    let _ = opened.send(());
                    // EPIPE: the guest ended first; its exit code shows why.
                    let _ = pipe.write_all(input);
                }
            });
            let reader = scope.spawn({
                let stdout = stdout.clone();
                move || {
                    let mut all = Vec::new();
                    File::open(stdout).and_then(|mut pipe| pipe.read_to_end(&mut all)).expect("stdout is readable");
                    all
                }
            });
            let (stdin_path, stdout_path) = (path(&stdin), path(&stdout));
            self.create_task(id, [&stdin_path, &stdout_path, &stdout_path]).unwrap_or_else(|error| {
                // Ends the opens of both threads.
                for fifo in [&stdin, &stdout] {
                    drop(OpenOptions::new().read(true).write(true).open(fifo));
                }
                panic!("{error}")
            });
            is_open.recv().expect("the writer reports");
            let start = request(StartRequest { container_id: id.to_owned(), ..StartRequest::default() });
            self.runtime.block_on(client.start(start)).expect("the task starts");
            writer.join().expect("the writer never panics");
            let close = CloseIoRequest { container_id: id.to_owned(), stdin: true, ..CloseIoRequest::default() };
            // NotFound: it has ended by itself.
            let _ = self.runtime.block_on(client.close_io(request(close)));
            let mut wait = request(WaitRequest { container_id: id.to_owned(), ..WaitRequest::default() });
            wait.set_timeout(deadline);
            let code = self.runtime.block_on(client.wait(wait)).expect("the task ends").into_inner().exit_status;
            let output = reader.join().expect("the reader never panics");
            self.delete_task(id).expect("a stopped task is deleted");
            (code, output)
        })
    }

    /// Runs the task of a container, without stdio, to its end; returns its exit code.
    ///
    /// # Errors
    /// containerd's error to any of the calls.
    pub fn run_quietly(&self, id: &str) -> Result<u32, Status> {
        self.create_task(id, ["", "", ""])?;
        let mut client = TasksClient::new(self.channel.clone());
        let start = request(StartRequest { container_id: id.to_owned(), ..StartRequest::default() });
        self.runtime.block_on(client.start(start))?;
        let wait = request(WaitRequest { container_id: id.to_owned(), ..WaitRequest::default() });
        let code = self.runtime.block_on(client.wait(wait))?.into_inner().exit_status;
        self.delete_task(id)?;
        Ok(code)
    }

    /// Changes a task's limits, given as the runtime spec's `LinuxResources`.
    ///
    /// # Errors
    /// The runtime's error.
    pub fn update_task(&self, id: &str, resources: &Value) -> Result<(), Status> {
        let resources = Any { type_url: RESOURCES_TYPE.to_owned(), value: resources.to_string().into_bytes() };
        let request = request(UpdateTaskRequest {
            container_id: id.to_owned(),
            resources: Some(resources),
            ..UpdateTaskRequest::default()
        });
        let mut client = TasksClient::new(self.channel.clone());
        self.runtime.block_on(client.update(request)).map(|_| ())
    }

    /// Makes an exec of a task, without stdio. Its `PATH` is `/bin`.
    ///
    /// # Errors
    /// The runtime's error.
    pub fn exec(&self, id: &str, exec_id: &str, arguments: &[&str]) -> Result<(), Status> {
        let process = serde_json::json!({"args": arguments, "env": ["PATH=/bin"], "cwd": "/", "user": {}});
        let process = Any { type_url: PROCESS_TYPE.to_owned(), value: process.to_string().into_bytes() };
        let request = request(ExecProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            spec: Some(process),
            ..ExecProcessRequest::default()
        });
        let mut client = TasksClient::new(self.channel.clone());
        self.runtime.block_on(client.exec(request)).map(|_| ())
    }

    /// Starts an exec, and returns its pid.
    ///
    /// # Errors
    /// The runtime's error.
    pub fn start_exec(&self, id: &str, exec_id: &str) -> Result<u32, Status> {
        let request = request(StartRequest { container_id: id.to_owned(), exec_id: exec_id.to_owned() });
        let mut client = TasksClient::new(self.channel.clone());
        Ok(self.runtime.block_on(client.start(request))?.into_inner().pid)
    }

    /// Deletes an exec that does not run, and returns its exit code.
    ///
    /// # Errors
    /// The runtime's error.
    pub fn delete_exec(&self, id: &str, exec_id: &str) -> Result<u32, Status> {
        let request = request(DeleteProcessRequest { container_id: id.to_owned(), exec_id: exec_id.to_owned() });
        let mut client = TasksClient::new(self.channel.clone());
        Ok(self.runtime.block_on(client.delete_process(request))?.into_inner().exit_status)
    }

    /// Deletes a stopped task, and returns its exit code.
    ///
    /// # Errors
    /// The runtime's error.
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

pub(crate) fn request<T>(message: T) -> Request<T> {
    let mut request = containerd_client::with_namespace!(message, NAMESPACE);
    request.set_timeout(SHORT);
    request
}
