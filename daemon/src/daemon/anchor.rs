//! The process that systemd takes for the service's main one, beside the daemon: a restart of the unit ends no pod.
//!
//! systemd restarts a service by ending its main process and then starting another. A daemon that has tasks to
//! serve must outlive that; so it has a second process stand for it, this program again, which does nothing but
//! watch the daemon and take systemd's signals:
//!
//! | Event | Act |
//! |---|---|
//! | the daemon ends | ends with an error: systemd starts another |
//! | SIGTERM, and systemd has a job to restart the unit | ends; the daemon goes on until the next takes over |
//! | SIGTERM otherwise | has every hearthd on the state directory end its guests and go, and ends then |
//! | SIGABRT: the watchdog's time has passed | kills the daemon, and ends with an error |
//! | SIGHUP | passes it on |
//!
//! It is no child of the daemon: systemd notices the end of its own children only, and inherits a process whose parent
//! has ended.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use hearth_base::generation::stop;
use hearth_os::signals::SignalFd;

/// The argument with which this program starts an anchor, and prints its pid.
pub const SUBCOMMAND: &str = "anchor";

/// The argument with which this program is the anchor.
const ITSELF: &str = "itself";

/// This program.
const PROGRAM: &str = "/proc/self/exe";

/// How long a daemon may take to end its guests.
const STOP_TIME: Duration = Duration::from_secs(25);

/// Starts one for this process; gives its pid. Blocks until it runs.
///
/// # Errors
/// If there is no process to be had.
#[allow(clippy::disallowed_methods, reason = "this program again, with no descriptor but its streams")]
pub fn start(unit: &str, state_dir: &Path) -> io::Result<u32> {
    let daemon = std::process::id().to_string();
    let mut command = Command::new(PROGRAM);
    command.args([SUBCOMMAND, unit, &daemon]).arg(state_dir).stdin(Stdio::null());
    // The one that stays has this stream, too: of a pipe the end would never come.
    command.stderr(Stdio::inherit());
    let output = command.output()?;
    let pid = String::from_utf8_lossy(&output.stdout);
    pid.trim().parse().map_err(|_| io::Error::other("it did not say its pid"))
}

/// The main function of the process.
#[allow(clippy::disallowed_methods, reason = "this program again, with no descriptor but its streams")]
pub fn child_main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(2).collect();
    let [unit, daemon, state_dir, rest @ ..] = args.as_slice() else { return ExitCode::FAILURE };
    let (Some(unit), Some(daemon)) = (unit.to_str(), daemon.to_str().and_then(|pid| pid.parse().ok())) else {
        return ExitCode::FAILURE;
    };
    if rest.first().is_some_and(|word| word == ITSELF) {
        return match stand(unit, daemon, &PathBuf::from(state_dir)) {
            Ok(code) => code,
            Err(error) => {
                eprintln!("hearthd: the service's main process cannot watch the daemon: {error}");
                ExitCode::FAILURE
            }
        };
    }
    let mut command = Command::new(PROGRAM);
    command.arg(SUBCOMMAND).args(&args).arg(ITSELF).stdin(Stdio::null()).stdout(Stdio::null());
    match command.spawn() {
        Ok(child) => {
            println!("{}", child.id());
            ExitCode::SUCCESS
        }
        Err(_) => ExitCode::FAILURE,
    }
}

fn stand(unit: &str, daemon: i32, state_dir: &Path) -> io::Result<ExitCode> {
    // (Of a link in /proc it would be `exe`.)
    rustix::thread::set_name(c"hearthd-anchor")?;
    let daemon = Pid::from_raw(daemon).ok_or(io::ErrorKind::InvalidInput)?;
    let daemon = pidfd_open(daemon, PidfdFlags::empty())?;
    let signals = SignalFd::block(&[Signal::TERM, Signal::INT, Signal::ABORT, Signal::HUP])?;
    loop {
        let mut waiting = [PollFd::new(&daemon, PollFlags::IN), PollFd::new(&signals, PollFlags::IN)];
        match poll(&mut waiting, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        let [ended, signalled] = waiting.map(|fd| fd.revents().contains(PollFlags::IN));
        if ended {
            return Ok(ExitCode::FAILURE);
        }
        if !signalled {
            continue;
        }
        let Some(signal) = signals.read()? else { continue };
        match signal {
            Signal::HUP => pidfd_send_signal(&daemon, Signal::HUP)?,
            Signal::ABORT => {
                let _ = pidfd_send_signal(&daemon, Signal::KILL);
                return Ok(ExitCode::FAILURE);
            }
            _ => {
                // If it cannot be told, this is a stop: an end was asked for.
                if stop::is_restarting(unit).unwrap_or(false) {
                    return Ok(ExitCode::SUCCESS);
                }
                let _ = pidfd_send_signal(&daemon, Signal::TERM);
                let others = stop::stop_all(state_dir);
                has_ended(&daemon, STOP_TIME)?;
                if let Err(error) = others {
                    eprintln!("hearthd: {error}");
                }
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
}

/// Waits for a process's end.
fn has_ended(process: &OwnedFd, time: Duration) -> io::Result<bool> {
    let time = Timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: 0 };
    let process = process.as_fd();
    let mut waiting = [PollFd::new(&process, PollFlags::IN)];
    Ok(poll(&mut waiting, Some(&time))? > 0)
}
