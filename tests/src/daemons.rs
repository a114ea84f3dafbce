//! How containerd and `hearthd` are configured and started on the machine, and when they are ready.
//!
//! Failure paths: a daemon that ends before it is ready, or is not ready in time, is a panic that shows
//! the end of its log.
//!
//! Files:
//!
//! * `containerd.rs`: containerd: its configuration in every version, and its start.
//! * `hearthd.rs`: `hearthd`: its options, configuration and start.

mod containerd;
mod hearthd;

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::machine::Machine;
pub use containerd::{
    ContainerdOptions, Handler, containerd_major, containerd_version, start_containerd, with_sandboxer,
};
pub use hearthd::{HearthdOptions, start_hearthd, try_start_hearthd};

/// How much of a log is shown when a test fails, in bytes.
const LOG_TAIL_BYTES: u64 = 16 * 1024;

/// The image of a pod's sandbox, in containerd's namespace of Kubernetes. It is in no registry.
pub const PAUSE_IMAGE: &str = "hearth.test/pause:1";

/// The handler of pods with a pause container, on containerd 2.x. It exists beside the handler `hearth`, whose pods
/// have the sandboxer of the test run.
pub const BY_PAUSE: &str = "hearth-by-pause";
/// The handler of pods of hearthd's sandbox controller, on containerd 2.x.
pub const BY_SANDBOXER: &str = "hearth-by-sandboxer";

/// The bridge of a machine's pods.
pub const BRIDGE: &str = "hearth-test0";

/// The paths of one machine's daemons.
#[derive(Clone, Debug)]
pub struct Layout {
    directory: PathBuf,
}

impl Layout {
    /// The paths under a machine's directory.
    pub fn new(machine: &Machine) -> Self {
        let directory = machine.directory().to_owned();
        Self { directory }
    }

    /// containerd's gRPC socket; its ttrpc socket is beside it.
    pub fn containerd_socket(&self) -> PathBuf {
        self.directory.join("containerd.sock")
    }

    /// containerd's configuration file.
    pub fn containerd_config(&self) -> PathBuf {
        self.directory.join("containerd.toml")
    }

    /// The file of `hearthctl install containerd` that a containerd 2.x imports.
    pub fn containerd_drop_in(&self) -> PathBuf {
        self.directory.join("conf.d/hearth.toml")
    }

    /// containerd's log.
    pub fn containerd_log(&self) -> PathBuf {
        self.directory.join("containerd.log")
    }

    /// containerd's `state`, the directory of its bundles.
    pub fn containerd_state(&self) -> PathBuf {
        self.directory.join("containerd-state")
    }

    /// The daemon's log.
    pub fn hearthd_log(&self) -> PathBuf {
        self.directory.join("hearthd.log")
    }

    /// The daemon's configuration file.
    pub fn hearthd_config(&self) -> PathBuf {
        self.directory.join("hearthd.toml")
    }

    /// The daemon's `state_dir`.
    pub fn hearthd_state(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// The daemon's `root_dir`: the module store.
    pub fn hearthd_root(&self) -> PathBuf {
        self.directory.join("modules")
    }

    /// The control socket the shim dials.
    pub fn control_socket(&self) -> PathBuf {
        self.hearthd_state().join("control.sock")
    }

    /// The socket of the daemon's sandbox controller.
    pub fn sandboxer_socket(&self) -> PathBuf {
        self.hearthd_state().join("sandboxer.sock")
    }

    /// The directory in which host-local keeps the addresses of pods.
    pub fn addresses(&self) -> PathBuf {
        self.directory.join("addresses")
    }

    /// The socket to which the daemon sends `READY=1`, as to systemd.
    pub fn notify_socket(&self) -> PathBuf {
        self.directory.join("notify.sock")
    }
}

/// Sends stdout and stderr to the end of a log.
pub fn logged<'a>(command: &'a mut Command, log: &Path) -> &'a mut Command {
    let file = OpenOptions::new().create(true).append(true).open(log).expect("the machine's directory is writable");
    let second = file.try_clone().expect("a descriptor can be duplicated");
    command.stdout(file).stderr(second)
}

/// The end of a log, for a failing test.
pub fn tail(log: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes);
        Ok(text.lines().filter(|line| !line.contains("loading plugin")).collect::<Vec<_>>().join("\n"))
    };
    read().unwrap_or_else(|error| format!("({}: {error})", log.display()))
}
