//! Who takes new pods: one generation at a time holds the lock, the control socket, the metrics endpoint and
//! the sandbox controller's sockets.
//!
//! ```text
//!  a new generation                                       the one in charge
//!  builds all that can fail
//!       ── TakeOver ─────────────────────────────────────▶  serves on
//!       ◀───────────── lock, control socket, and so on ───  serves on
//!  serves, too
//!       ── taken ────────────────────────────────────────▶  takes nothing new, keeps its tasks
//!       ◀──────────────────────────────────── hangs up ───
//! ```
//!
//! Both have the same listening sockets, so no connection is ever refused or dropped, and either may answer one
//! in between. If the new one ends at any point before `taken`, nothing has changed.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use hearth_base::generation::client::{self, HandedOver};
use hearth_base::generation::directory;
use hearth_base::generation::wire::{HandOver, PASSED_MAX, Passed, TakeOver};

/// How long to ask for the charge; another may be taking it right now.
const TAKE_TIME: Duration = Duration::from_secs(10);

/// The pause between two attempts.
const TAKE_AGAIN: Duration = Duration::from_millis(50);

/// What this generation holds while it is in charge.
#[derive(Default)]
pub struct Charge {
    held: Mutex<Option<Held>>,
}

/// What the generation in charge has, and hands on.
pub struct Held {
    /// The lock.
    pub lock: File,
    /// The control socket.
    pub control: OwnedFd,
    /// Its file, to be removed at the end; none if a service manager made it.
    pub control_file: Option<PathBuf>,
    /// The metrics endpoint.
    pub metrics: Option<OwnedFd>,
    /// The sockets of the sandbox controller.
    pub controllers: Vec<OwnedFd>,
}

/// The charge, got but not yet exercised.
pub enum Got {
    /// There was none in charge.
    Free(File),
    /// The one in charge hands over.
    HandedOver(HandedOver),
}

impl Charge {
    /// Takes it up.
    pub fn hold(&self, held: Held) {
        *self.held.lock() = Some(held);
    }

    /// Whether this generation is in charge.
    pub fn is_held(&self) -> bool {
        self.held.lock().is_some()
    }

    /// Lets it go, here; whoever has been handed it still has it.
    pub fn release(&self) -> Option<Held> {
        self.held.lock().take()
    }

    /// Has `send` hand it on; none if this generation is not in charge.
    pub fn hand_on<T>(&self, send: impl FnOnce(HandOver, &[BorrowedFd<'_>]) -> T) -> Option<T> {
        let held = self.held.lock();
        let held = held.as_ref()?;
        let mut all = vec![(Passed::Charge, held.lock.as_fd()), (Passed::Control, held.control.as_fd())];
        all.extend(held.metrics.as_ref().map(|fd| (Passed::Metrics, fd.as_fd())));
        all.extend(held.controllers.iter().map(|fd| (Passed::Controller, fd.as_fd())));
        // Those that are too many are bound anew.
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

/// Gets the charge: what is free, or what another hands over.
///
/// # Errors
/// One line: who has it, and why it is not handed over.
pub fn get(state_dir: &Path, ours: &str) -> Result<Got, String> {
    let end = Instant::now() + TAKE_TIME;
    loop {
        if let Some(lock) = try_free(state_dir)? {
            return Ok(Got::Free(lock));
        }
        let others = client::statuses(state_dir).map_err(|e| format!("state_dir: {}: {e}", state_dir.display()))?;
        let why = match others.into_iter().find(|status| status.in_charge) {
            None => "another hearthd is starting or stopping; try again".into(),
            Some(status) => {
                let to = TakeOver { generation: ours.into(), version: env!("CARGO_PKG_VERSION").into() };
                match client::hand_over(state_dir, &status.generation, to) {
                    Ok(over) => return Ok(Got::HandedOver(over)),
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

/// Why a daemon that is not to replace another does not start.
pub fn taken_by_another(state_dir: &Path) -> String {
    let others = client::statuses(state_dir).unwrap_or_default();
    let who = others.iter().find(|status| status.in_charge);
    let who = who.map(|status| format!(" ({}, pid {})", status.version, status.pid)).unwrap_or_default();
    format!(
        "state_dir: another hearthd{who} runs with {}; stop it, take over its new pods with --replace, or give this \
         one a --state-dir of its own",
        state_dir.display()
    )
}
