//! The zygote: a process with one thread, in which the engines are made, and which makes copies of itself.
//!
//! It is this program again, started by the daemon when the first cell is wanted, in the node's mount namespace, so that no
//! cell holds a mount of another task. It ends when its socket does, that is with the daemon; its copies that have
//! no orders yet end then, too, and cells go on.
//!
//! ```text
//!   daemon ──▶ zygote    the configuration, once; then one byte with a descriptor for each copy
//!   zygote ──▶ daemon    Told: a copy was made, or not, or has ended
//! ```

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use hearth_base::cell;
use hearth_base::config::{Baseline, Config};
use hearth_base::generation::wire::receive_descriptors;
use hearth_observe::metrics::Metrics;
use hearth_os::fork::{self, Forked};
use hearth_os::mount;
use hearth_os::signals::SignalFd;
use hearth_wasm::engine::Engines;

use super::{configuration, process};

/// The argument that makes this program the zygote.
pub const SUBCOMMAND: &str = "zygote";

/// A message of the zygote to the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Told {
    /// It can make copies.
    Ready,
    /// A copy was made.
    Born {
        /// Its process id.
        pid: u32,
    },
    /// No copy was made.
    Failed {
        /// The reason, one line.
        why: String,
    },
    /// A copy has ended.
    Ended {
        /// The process id that it had.
        pid: u32,
        /// The signal that ended it, if one did.
        signal: Option<i32>,
    },
}

/// The parts that every copy has from the start.
pub(super) struct Inherited {
    /// The engines.
    pub(super) engines: Arc<Engines>,
    /// The metrics, none counted yet.
    pub(super) metrics: Arc<Metrics>,
}

/// The zygote's main function, and that of every cell.
pub fn child_main() -> ExitCode {
    let [socket, stderr] = fork::inherited();
    // The log of every cell goes where the daemon's goes.
    if rustix::stdio::dup2_stderr(&stderr).and_then(|()| rustix::stdio::dup2_stdout(&stderr)).is_err() {
        return ExitCode::FAILURE;
    }
    drop(stderr);
    let mut socket = UnixStream::from(socket);
    match serve(&mut socket) {
        Ok(Some((orders, inherited))) => {
            // The daemon would take it for the zygote's.
            drop(socket);
            process::run(orders, inherited)
        }
        Ok(None) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = tell(&mut socket, &Told::Failed { why: error.to_string().replace('\n', " ") });
            ExitCode::FAILURE
        }
    }
}

/// Makes copies until the daemon ends (`None`), or this is one of the copies: its socket, and the parts that it
/// inherits.
fn serve(socket: &mut UnixStream) -> io::Result<Option<(UnixStream, Inherited)>> {
    rustix::thread::set_name(c"hearthd-zygote")?;
    // A service manager signals all processes of a unit: this one and its copies end with the daemon, or with their pod.
    let ended = SignalFd::block(&[Signal::CHILD, Signal::TERM, Signal::INT, Signal::HUP])?;
    mount::unshare_mounts()?;
    let config: Config = cell::read_json(socket)?;
    let engine = configuration(config).engine;
    let engines = Engines::new(&engine, Baseline::Never, hearth_interfaces::ALL).map_err(io::Error::other)?;
    let inherited = Inherited { engines: Arc::new(engines), metrics: Arc::new(Metrics::new()) };
    tell(socket, &Told::Ready)?;
    loop {
        let mut waiting = [PollFd::new(&*socket, PollFlags::IN), PollFd::new(&ended, PollFlags::IN)];
        match poll(&mut waiting, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        let [asked, signalled] = waiting.map(|fd| !fd.revents().is_empty());
        if signalled {
            while ended.read()?.is_some() {}
            while let Some(end) = fork::reap()? {
                let pid = end.pid.as_raw_nonzero().get().unsigned_abs();
                tell(socket, &Told::Ended { pid, signal: end.signal })?;
            }
        }
        if asked {
            let theirs = match receive_descriptors(socket.as_fd()) {
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
                received => received?.pop(),
            };
            let theirs = theirs.ok_or_else(|| io::Error::other("a copy was asked for without a socket"))?;
            match fork::fork() {
                Ok(Forked::Child) => return Ok(Some((theirs.into(), inherited))),
                Ok(Forked::Parent(pid)) => {
                    tell(socket, &Told::Born { pid: pid.as_raw_nonzero().get().unsigned_abs() })?;
                }
                Err(error) => tell(socket, &Told::Failed { why: error.to_string() })?,
            }
        }
    }
}

fn tell(socket: &mut UnixStream, told: &Told) -> io::Result<()> {
    cell::write_json(socket, told)
}
