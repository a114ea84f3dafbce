//! A process that does nothing but be the service's main one.
//!
//! systemd restarts a service by ending its main process and starting another. A daemon that has tasks to
//! serve lets it end this process instead. systemd only notices the end of its own children, so the process
//! that starts this one ends at once, and leaves it to systemd.

use std::io;
use std::process::{Command, ExitCode, Stdio};

/// The argument that makes this program start a stand-in, and say its pid.
pub const SUBCOMMAND: &str = "stand-in";

/// The argument that makes this program one.
const ITSELF: &str = "itself";

/// This program.
const PROGRAM: &str = "/proc/self/exe";

/// Starts one; gives its pid. Blocks until it runs.
///
/// # Errors
/// If there is no process to be had.
pub fn start() -> io::Result<u32> {
    let output = Command::new(PROGRAM).arg(SUBCOMMAND).stdin(Stdio::null()).stderr(Stdio::null()).output()?;
    let pid = String::from_utf8_lossy(&output.stdout);
    pid.trim().parse().map_err(|_| io::Error::other("it did not say its pid"))
}

/// What the process does. SIGTERM, which nobody handles here, is its end.
pub fn child_main() -> ExitCode {
    if std::env::args_os().nth(2).is_some_and(|word| word == ITSELF) {
        loop {
            std::thread::park();
        }
    }
    let mut command = Command::new(PROGRAM);
    command.args([SUBCOMMAND, ITSELF]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    match command.spawn() {
        Ok(child) => {
            println!("{}", child.id());
            ExitCode::SUCCESS
        }
        Err(_) => ExitCode::FAILURE,
    }
}
