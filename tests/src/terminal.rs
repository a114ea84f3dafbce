//! A process with a terminal, and its user: containerd's API and two FIFOs, as `kubectl` uses them in the end.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{
    CreateTaskRequest, DeleteProcessRequest, DeleteTaskRequest, ExecProcessRequest, ResizePtyRequest, StartRequest,
    WaitRequest,
};
use containerd_client::tonic::Status;
use containerd_client::tonic::transport::Channel;
use prost_types::Any;
use serde_json::Value;
use tempfile::TempDir;

use crate::api::{Api, request};
use crate::wait::SHORT;

/// Type URL under which containerd's own clients send an exec's process.
const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// A process with a terminal.
#[derive(Debug)]
pub struct Terminal<'a> {
    api: &'a Api,
    id: String,
    /// Empty for the task's first process.
    exec_id: String,
    directory: TempDir,
    keyboard: Option<File>,
    chunks: Receiver<Vec<u8>>,
    seen: Vec<u8>,
}

impl Api {
    /// Creates the task of a container, with a terminal.
    ///
    /// # Errors
    /// The runtime's error.
    pub fn create_on_terminal(&self, id: &str) -> Result<Terminal<'_>, Status> {
        let terminal = Terminal::new(self, id, "");
        let [stdin, stdout] = terminal.fifos();
        let create = CreateTaskRequest {
            container_id: id.to_owned(),
            stdin,
            stdout,
            terminal: true,
            ..CreateTaskRequest::default()
        };
        self.runtime.block_on(terminal.client().create(request(create)))?;
        Ok(terminal)
    }

    /// Adds an exec to a task, with a terminal. `process` is its OCI process.
    ///
    /// # Errors
    /// The runtime's error.
    pub fn exec_on_terminal(&self, id: &str, exec_id: &str, process: &Value) -> Result<Terminal<'_>, Status> {
        let terminal = Terminal::new(self, id, exec_id);
        let [stdin, stdout] = terminal.fifos();
        let exec = ExecProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            stdin,
            stdout,
            terminal: true,
            spec: Some(Any { type_url: PROCESS_TYPE.to_owned(), value: process.to_string().into_bytes() }),
            ..ExecProcessRequest::default()
        };
        self.runtime.block_on(terminal.client().exec(request(exec)))?;
        Ok(terminal)
    }
}

impl<'a> Terminal<'a> {
    fn new(api: &'a Api, id: &str, exec_id: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        for name in ["stdin", "stdout"] {
            let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600));
            let path = directory.path().join(name);
            rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0).expect("a FIFO can be made");
        }
        let keyboard = Some(keyboard(directory.path()));
        let chunks = screen(directory.path());
        Self { api, id: id.to_owned(), exec_id: exec_id.to_owned(), directory, keyboard, chunks, seen: Vec::new() }
    }

    fn fifos(&self) -> [String; 2] {
        ["stdin", "stdout"].map(|name| self.directory.path().join(name).display().to_string())
    }

    fn client(&self) -> TasksClient<Channel> {
        TasksClient::new(self.api.channel.clone())
    }

    /// Starts the process.
    ///
    /// # Panics
    /// If the runtime refuses.
    #[track_caller]
    pub fn start(&self) {
        let start = StartRequest { container_id: self.id.clone(), exec_id: self.exec_id.clone() };
        self.api.runtime.block_on(self.client().start(request(start))).expect("the process starts");
    }

    /// Types.
    ///
    /// # Panics
    /// If the runtime does not have the FIFO open.
    pub fn types(&mut self, bytes: &[u8]) {
        self.keyboard.as_mut().expect("the client is there").write_all(bytes).expect("the runtime reads it");
    }

    /// Sets the window's size.
    ///
    /// # Errors
    /// The runtime's error.
    pub fn resize(&self, width: u32, height: u32) -> Result<(), Status> {
        let (container_id, exec_id) = (self.id.clone(), self.exec_id.clone());
        let resize = ResizePtyRequest { container_id, exec_id, width, height };
        self.api.runtime.block_on(self.client().resize_pty(request(resize))).map(|_| ())
    }

    /// Closes the client's ends and opens them again, as when one attach ends and another begins.
    pub fn attach_again(&mut self) {
        self.keyboard = None;
        self.keyboard = Some(keyboard(self.directory.path()));
    }

    /// Waits until the output contains `text`.
    ///
    /// # Panics
    /// If the output ends first, or [`SHORT`] passes.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        let end = Instant::now() + SHORT;
        while !self.text().contains(text) {
            match self.chunks.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(chunk) => self.seen.extend(chunk),
                Err(error) => panic!("the terminal did not show {text:?} ({error}), but {:?}", self.text()),
            }
        }
    }

    /// All output so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }

    /// Waits for the end of the process and of its output, and deletes it. Returns its exit code and all output.
    ///
    /// # Panics
    /// If it does not end within [`SHORT`], or the runtime refuses.
    #[track_caller]
    pub fn finish(mut self) -> (u32, String) {
        let (container_id, exec_id) = (self.id.clone(), self.exec_id.clone());
        let wait = WaitRequest { container_id: container_id.clone(), exec_id: exec_id.clone() };
        let mut client = self.client();
        let code = self.api.runtime.block_on(client.wait(request(wait))).expect("it ends").into_inner().exit_status;
        while let Ok(chunk) = self.chunks.recv_timeout(SHORT) {
            self.seen.extend(chunk);
        }
        let deleted = if exec_id.is_empty() {
            self.api.runtime.block_on(client.delete(request(DeleteTaskRequest { container_id })))
        } else {
            self.api.runtime.block_on(client.delete_process(request(DeleteProcessRequest { container_id, exec_id })))
        };
        assert_eq!(deleted.expect("it is deleted").into_inner().exit_status, code);
        (code, self.text())
    }
}

/// The FIFO to type into: read-write, so that the open does not wait for the runtime.
fn keyboard(directory: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(directory.join("stdin")).expect("it was just made")
}

/// The output, read by a thread. It ends when the runtime has closed the FIFO.
fn screen(directory: &Path) -> Receiver<Vec<u8>> {
    let (sender, chunks) = channel();
    let path = directory.join("stdout");
    std::thread::spawn(move || {
        let Ok(mut pipe) = File::open(path) else { return };
        let mut chunk = [0u8; 4096];
        while let Ok(length @ 1..) = pipe.read(&mut chunk) {
            if sender.send(chunk[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    chunks
}
