//! Leadership: one generation at a time takes new pods. It holds the lock, the control socket, the metrics
//! endpoint and the sandbox controller's sockets.
//!
//! ```text
//!  a new generation                                       the leading generation
//!  builds all that can fail
//!       ── TakeOver ─────────────────────────────────────▶  serves on
//!       ◀───────────── lock, control socket, and so on ───  serves on
//!  serves, too
//!       ── taken ────────────────────────────────────────▶  takes nothing new, keeps its tasks
//!       ◀──────────────────────────────────── hangs up ───
//! ```
//!
//! During the hand-over both generations hold the same listening sockets, so no connection is refused or dropped,
//! and either generation may answer one. If the new generation ends before `taken`, nothing has changed.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use hearth_base::generation::client::{self, HandedOver};
use hearth_base::generation::directory;
use hearth_base::generation::wire::{HandOver, PASSED_MAX, Passed, TakeOver};

/// How long to ask for the leadership; another generation may be taking it at this moment.
const TAKE_TIME: Duration = Duration::from_secs(10);

/// The pause between two attempts.
const TAKE_AGAIN: Duration = Duration::from_millis(50);

/// The lock and the sockets that this generation holds while it leads.
#[derive(Default)]
pub struct Leadership {
    held: Mutex<Option<Held>>,
}

/// The lock and the sockets that the leading generation holds and hands over.
pub struct Held {
    /// The lock.
    pub lock: File,
    /// The control socket.
    pub control: OwnedFd,
    /// The control socket's file, to be removed at the end; none if a service manager made it.
    pub control_file: Option<PathBuf>,
    /// The metrics endpoint.
    pub metrics: Option<OwnedFd>,
    /// The sockets of the sandbox controller.
    pub controllers: Vec<OwnedFd>,
}

/// The leadership, acquired but not yet exercised.
pub enum Acquired {
    /// No generation led.
    Free(File),
    /// The leading generation hands over.
    HandedOver(HandedOver),
}

impl Leadership {
    /// Takes up the leadership.
    pub fn hold(&self, held: Held) {
        *self.held.lock() = Some(held);
    }

    /// Whether this generation leads.
    pub fn is_held(&self) -> bool {
        self.held.lock().is_some()
    }

    /// Gives up the leadership in this process; a generation that it was handed to keeps it.
    pub fn release(&self) -> Option<Held> {
        self.held.lock().take()
    }

    /// Calls `send` with the descriptors to hand over; `None` if this generation does not lead.
    pub fn hand_on<T>(&self, send: impl FnOnce(HandOver, &[BorrowedFd<'_>]) -> T) -> Option<T> {
        let held = self.held.lock();
        let held = held.as_ref()?;
        let mut all = vec![(Passed::Charge, held.lock.as_fd()), (Passed::Control, held.control.as_fd())];
        all.extend(held.metrics.as_ref().map(|fd| (Passed::Metrics, fd.as_fd())));
        all.extend(held.controllers.iter().map(|fd| (Passed::Controller, fd.as_fd())));
        // The new generation binds the sockets anew whose descriptors do not fit.
        all.truncate(PASSED_MAX);
        let (passed, descriptors): (Vec<_>, Vec<_>) = all.into_iter().unzip();
        let over = HandOver {
            passed: passed.into_iter().map(i32::from).collect(),
            removes_control: held.control_file.is_some(),
            draining: false,
        };
        Some(send(over, &descriptors))
    }
}

/// Acquires the leadership: the lock if it is free, else by a hand-over.
///
/// # Errors
/// One line: which generation leads, and why it does not hand over.
pub fn acquire(state_dir: &Path, own: &str) -> Result<Acquired, String> {
    let end = Instant::now() + TAKE_TIME;
    loop {
        if let Some(lock) = try_free(state_dir)? {
            return Ok(Acquired::Free(lock));
        }
        let others = client::statuses(state_dir).map_err(|e| format!("state_dir: {}: {e}", state_dir.display()))?;
        let why = match others.into_iter().find(|status| status.in_charge) {
            None => "another hearthd is starting or stopping; try again".into(),
            Some(status) => {
                let to = TakeOver { generation: own.into(), version: env!("CARGO_PKG_VERSION").into() };
                match client::hand_over(state_dir, &status.generation, to) {
                    Ok(over) => return Ok(Acquired::HandedOver(over)),
                    Err(why) => format!("hearthd {} (pid {}) does not hand over: {why}", status.version, status.pid),
                }
            }
        };
        if Instant::now() >= end {
            return Err(why);
        }
        std::thread::sleep(TAKE_AGAIN);
    }
}

/// The lock, if it is free.
///
/// # Errors
/// One line.
pub fn try_free(state_dir: &Path) -> Result<Option<File>, String> {
    directory::try_charge(state_dir).map_err(|e| format!("state_dir: cannot lock {}: {e}", state_dir.display()))
}

/// Why a daemon without `--replace` does not start while another generation leads.
pub fn held_by_another(state_dir: &Path) -> String {
    let others = client::statuses(state_dir).unwrap_or_default();
    let leader = others.iter().find(|status| status.in_charge);
    let leader = leader.map(|status| format!(" ({}, pid {})", status.version, status.pid)).unwrap_or_default();
    format!(
        "state_dir: another hearthd{leader} runs with {}; stop it, take over its new pods with --replace, or give this \
         one a --state-dir of its own",
        state_dir.display()
    )
}
