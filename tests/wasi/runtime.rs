//! How Hearth and `wasmtime` start a test.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use hearth_tests::world::NAMESPACE;
use hearth_tests::{World, api, paths};

use crate::case::Case;

/// The parameters of a `run` operation.
pub struct Request<'a> {
    pub case: &'a Case,
    pub args: &'a [String],
    pub env: BTreeMap<String, String>,
    /// A copy of the directory that becomes the root; the test may change it.
    pub root: Option<&'a Path>,
    /// Its number, unique in the run.
    pub index: usize,
}

/// A program to be started.
pub struct Started {
    pub command: Command,
    /// Where a service listens, if that is known before it starts.
    pub address: Option<String>,
}

/// A runtime.
pub trait Runtime {
    /// The command of a test.
    fn command(&self, request: &Request<'_>) -> Started;
    /// Sends it a signal.
    fn kill(&self, pid: u32, index: usize, signal: &str);
}

/// Hearth, through `ctr`.
pub struct Hearth<'a> {
    world: &'a World,
}

impl<'a> Hearth<'a> {
    pub fn new(world: &'a World) -> Self {
        Self { world }
    }

    fn id(index: usize) -> String {
        format!("case-{index}")
    }
}

/// The program's file in its root.
const PROGRAM: &str = "program.wasm";

impl Runtime for Hearth<'_> {
    fn command(&self, request: &Request<'_>) -> Started {
        let id = Self::id(request.index);
        let root = request.root.map_or_else(|| self.world.path(&format!("empty-{id}")), Path::to_owned);
        fs::create_dir_all(&root).expect("the machine's directory is writable");
        fs::copy(&request.case.wasm, root.join(PROGRAM)).expect("the machine's directory is writable");
        let mut env = request.env.clone();
        let mut address = None;
        if request.case.spec.is_service() {
            let port = free_port();
            // The tests export `wasi:cli/run`, too.
            env.insert("HEARTH_HTTP".into(), "serve".into());
            env.insert("HEARTH_HTTP_PORT".into(), port.to_string());
            address = Some(format!("127.0.0.1:{port}"));
        }
        let program = format!("/{PROGRAM}");
        let args: Vec<&str> = [program.as_str()].into_iter().chain(request.args.iter().map(String::as_str)).collect();
        let mut spec = api::spec(&args, &[]);
        spec["process"]["env"] = env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        spec["root"]["path"] = root.display().to_string().into();
        let spec = self.world.write(&format!("{id}.json"), spec.to_string().as_bytes());
        let mut command = self.world.machine().command(paths::containerd("ctr"));
        let runtime = self.world.runtime().name();
        command.arg("--address").arg(self.world.layout().containerd_socket()).args(["--namespace", NAMESPACE]);
        command.args(["run", "--rm", "--runtime", runtime, "--config"]).arg(spec).arg(id);
        Started { command, address }
    }

    fn kill(&self, _pid: u32, index: usize, signal: &str) {
        self.world.kill(&Self::id(index), signal).run();
    }
}

/// `wasmtime run` and `wasmtime serve`.
pub struct Wasmtime {
    program: PathBuf,
}

impl Wasmtime {
    pub fn new(program: &Path) -> Self {
        Self { program: program.to_owned() }
    }
}

impl Runtime for Wasmtime {
    fn command(&self, request: &Request<'_>) -> Started {
        let spec = &request.case.spec;
        let mut command = Command::new(&self.program);
        command.arg(if spec.is_service() { "serve" } else { "run" });
        if spec.is_service() {
            command.args(["-Scli", "--addr=127.0.0.1:0"]);
        }
        if request.case.is_p3 {
            command.args(["-Wcomponent-model-async", "-Sp3"]);
            command.args(spec.needs("http").then_some("-Shttp"));
            command.args(spec.needs("sockets").then_some("-Sinherit-network"));
        }
        for (name, value) in &request.env {
            command.arg("--env").arg(format!("{name}={value}"));
        }
        if let Some(root) = request.root {
            command.arg("--dir").arg(format!("{}::/", root.display()));
        }
        command.arg(&request.case.wasm).args(request.args);
        Started { command, address: None }
    }

    fn kill(&self, pid: u32, _index: usize, signal: &str) {
        let signal = match signal {
            "SIGINT" => rustix::process::Signal::INT,
            "SIGKILL" => rustix::process::Signal::KILL,
            _ => rustix::process::Signal::TERM,
        };
        if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
            // It may have ended by itself.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
}

/// A port of the loopback interface that no program listens on.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    listener.local_addr().expect("it is bound").port()
}
