//! The runtimes that are measured: the ones on this machine, and containerd's configuration for each.

use std::path::PathBuf;

use hearth_tests::Node;
use hearth_tests::daemons::Handler;

use super::Workload;
use crate::floor;

/// The kind of programs that a runtime runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgramKind {
    /// WebAssembly.
    Wasm,
    /// Native programs.
    Native,
}

/// A runtime.
#[derive(Debug, Clone)]
pub struct Peer {
    /// As the report names it.
    pub name: &'static str,
    /// The kind of its programs.
    pub kind: ProgramKind,
    /// containerd's name of it.
    pub runtime: String,
    /// The program that runc's shim runs instead of runc.
    pub binary: Option<String>,
    /// The handler of its pods.
    pub handler: &'static str,
}

/// The daemon that does nothing.
pub const FLOOR: &str = "floor";
/// This project.
pub const HEARTH: &str = "Hearth";
/// The usual native runtime.
pub const RUNC: &str = "runc";

/// Handlers that the harness has by itself.
const OWN_HANDLERS: [&str; 2] = ["hearth", "runc"];

/// The runtimes that are installed, the floor first. [`Peer::probe`] finds out whether they work.
pub fn installed() -> Vec<Peer> {
    let peer = |name, kind, runtime: &str, handler| Peer { name, kind, runtime: runtime.into(), binary: None, handler };
    let mut peers = vec![
        peer(FLOOR, ProgramKind::Wasm, floor::RUNTIME, "floor"),
        peer(HEARTH, ProgramKind::Wasm, "io.containerd.hearth.v1", "hearth"),
        peer(RUNC, ProgramKind::Native, "io.containerd.runc.v2", "runc"),
    ];
    if let Some(crun) = on_path("crun") {
        let binary = Some(crun.display().to_string());
        peers.push(Peer { binary, ..peer("crun", ProgramKind::Native, "io.containerd.runc.v2", "crun") });
    }
    for (name, engine) in [("runwasi (wasmtime)", "wasmtime"), ("runwasi (wasmedge)", "wasmedge")] {
        if on_path(&format!("containerd-shim-{engine}-v1")).is_some() {
            peers.push(peer(name, ProgramKind::Wasm, &format!("io.containerd.{engine}.v1"), engine));
        }
    }
    peers
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|file| file.is_file())
}

impl Peer {
    /// The handler containerd's configuration has to have for it beyond the harness's own.
    pub fn more_handler(&self) -> Option<Handler> {
        let wanted = !OWN_HANDLERS.contains(&self.handler);
        wanted.then(|| Handler {
            name: self.handler.to_owned(),
            runtime: self.runtime.clone(),
            binary: self.binary.clone(),
        })
    }

    /// The flags `ctr` takes for it.
    pub fn flags(&self) -> Vec<String> {
        let mut flags = vec!["--net-host".to_owned(), "--runtime".into(), self.runtime.clone()];
        if let Some(binary) = &self.binary {
            flags.extend(["--runc-binary".into(), binary.clone()]);
        }
        flags
    }

    /// Runs the workload once.
    pub fn probe(&self, node: &Node, workload: &Workload) -> Result<(), String> {
        let Some(image) = self.image(workload) else { return Err("the workload has no program for it".into()) };
        let id = format!("probe-{}", self.handler);
        let mut arguments = vec!["run".to_owned(), "--rm".into()];
        arguments.extend(self.flags());
        arguments.extend([image.to_owned(), id.clone()]);
        let output = node.ctr(arguments).run();
        if output.status.success() {
            return Ok(());
        }
        node.ctr(["tasks", "rm", "--force", &id]).run();
        node.ctr(["containers", "rm", &id]).run();
        let text = String::from_utf8_lossy(&output.stderr);
        Err(text.lines().last().unwrap_or("it failed without a word").trim().to_owned())
    }
}
