//! The container: the parts that all processes of a task share. Also the termination log, which tells `kubectl
//! describe` why it ended.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{FileType, Mode, OFlags};

use crate::cell::home::CellHome;
use crate::task::files::Files;
use crate::task::sandbox::{Joined, Membership};
use hearth_base::bundle::Cpu;
use hearth_base::isolation::Level;
use hearth_base::namespace::ContainerdNamespace;
use hearth_base::operator::ApplicationInfo;
use hearth_base::tenant::Tenant;
use hearth_base::text::shown_lines;
use hearth_http::requests::Requests;
use hearth_observe::metrics::Metrics;
use hearth_observe::metrics::task_series::Seat;
use hearth_observe::starts::{About, Recent};
use hearth_wasm::access::Access;
use hearth_wasm::memory::MemoryUse;

/// A container: everything of a task that is not a process.
pub struct Container {
    /// Its id, the task's.
    pub id: Arc<str>,
    /// containerd's namespace.
    pub namespace: ContainerdNamespace,
    /// Its record for operators.
    pub about: Arc<About>,
    /// Its claim to metrics of its own.
    pub seat: Seat,
    /// The bundle.
    pub bundle: PathBuf,
    /// The network it is in: that of its pod, if it has one.
    pub network: Joined,
    /// The pod it belongs to.
    pub pod: Membership,
    /// The root file system.
    pub files: Arc<Files>,
    /// Whether it, or a volume in it, refuses writes.
    pub partly_read_only: bool,
    /// The bytes that the memories and tables of all its guests together hold, and may hold.
    pub memory: Arc<MemoryUse>,
    /// Its budget: the things beside memory that it has taken from the node, and may take.
    pub tenant: Arc<Tenant>,
    /// The servers and host interfaces that its components may use.
    pub access: Access,
    /// The most memory they may ever be given, in bytes: the engine's.
    pub memory_limit_max: u64,
    /// The spec's CPU limits, with all updates.
    pub cpu: Mutex<Cpu>,
    /// The file on the node that kubelet reads the end of a container from, if the container may write to it.
    pub termination_log: Option<PathBuf>,
    /// What operators see of it, if it is a Spin application.
    pub application: Option<Arc<ApplicationInfo>>,
    /// The requests under way; only of an HTTP component, or of components that take messages.
    pub requests: Option<Arc<Requests>>,
    /// The daemon's metrics.
    pub metrics: Arc<Metrics>,
    /// Where its start and its faults are recorded.
    pub recent: Arc<Recent>,
    /// The cell's directory, where it keeps records for the daemon; none if the process is no cell.
    pub cell: Option<Arc<CellHome>>,
}

/// Where Kubernetes mounts the file whose text `kubectl describe` shows for a container that ended
/// (`terminationMessagePath`, unless a pod says otherwise).
pub const TERMINATION_LOG: &str = "/dev/termination-log";

/// The most of it that kubelet shows, in bytes.
const TERMINATION_TEXT_BYTES_MAX: usize = 4096;

/// Writes why a container ended into its termination log, unless the guest has written to it.
///
/// # Errors
/// As open(2) and write(2).
pub fn note_end_in(path: &Path, text: &str) -> std::io::Result<()> {
    let text = shown_lines(text, TERMINATION_TEXT_BYTES_MAX);
    // The guest cannot replace the file, which is mounted alone. The checks keep out every other kind of file.
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_size == 0 {
        std::fs::File::from(file).write_all(text.as_bytes())?;
    }
    Ok(())
}

impl Container {
    /// Writes why the container ended into the termination log, unless the guest has written to it. A few system
    /// calls on a file of kubelet.
    pub fn note_end(&self, text: &str) {
        let Some(path) = &self.termination_log else { return };
        if let Err(error) = note_end_in(path, text) {
            tracing::debug!(task = %self.id, %error, "the termination log was not written");
        }
    }

    /// The isolation level of its guests.
    pub fn level(&self) -> Level {
        if self.cell.is_some() { Level::Pod } else { Level::Node }
    }

    /// The pid that containerd is told: the daemon's, or that of the process that holds the network namespace.
    pub fn pid(&self) -> u32 {
        self.network.pid()
    }
}
