//! SIGINT, SIGTERM and SIGHUP as a value.

use std::fmt;
use std::io;
use std::path::PathBuf;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that end this program, watched.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

/// The error of a run that a signal ended, with the signal's number.
#[derive(Debug)]
pub struct Interrupted(pub u8);

impl Signals {
    /// Starts watching, within a runtime.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn watch() -> io::Result<Signals> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the first of them.
    pub async fn first(&mut self) -> Interrupted {
        let kind = tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.hang_up.recv() => SignalKind::hangup(),
        };
        Interrupted(kind.as_raw_value() as u8)
    }
}

/// For a run that cannot be broken off in between: on the first signal `directory` is removed and this
/// process ends, and with it its children and the private machine.
///
/// # Errors
/// The kernel's error.
pub fn remove_and_exit_on_signal(directory: PathBuf) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut signals = {
        let _guard = runtime.enter();
        Signals::watch()?
    };
    let wait = move || {
        let Interrupted(signal) = runtime.block_on(signals.first());
        let _ = std::fs::remove_dir_all(directory);
        eprintln!("hearth-bench: interrupted; everything is removed");
        std::process::exit(128 + i32::from(signal));
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).map(drop)
}

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "interrupted by signal {}", self.0)
    }
}

impl std::error::Error for Interrupted {}
