//! `containerd-shim-hearth-v1`: the program that containerd execs for the runtime `io.containerd.hearth.v1`.
//!
//! It is not a server. `start` hands containerd the address of a task socket of `hearthd`, `delete` cleans a bundle,
//! `-info` and `-v` describe the runtime; each takes about a millisecond.
//!
//! * `main.rs`: this page, and the dispatch of the actions.
//! * `args.rs`: the command line.
//! * `args/`: tests of the command line.
//! * `bootstrap.rs`: `start`, in the forms of every containerd from 1.6 on.
//! * `bootstrap/`: tests of `start`.
//! * `control.rs`: the question to the daemon.
//! * `control/`: tests of the question to the daemon.
//! * `delete.rs`: `delete`, without the daemon.
//! * `info.rs`: `-info` and `-v`.
//! * `features.rs`: the features that `-info` tells; the daemon's tests compare them with its code.
//! * `failure.rs`: the one line that reports a failure.
//! * `lib.rs`: the contract with the daemon.
//! * `natives.rs`: ends the native containers of a dead daemon; the daemon uses it, too.
//!
//! containerd reads stdout and stderr of `start` as one stream. So the shim writes only the answer there on success,
//! and only the one line after a failure.
//!
//! # Building
//!
//! The shim is one static file, under 1 MB, so that it starts fast and runs on any node:
//!
//! ```sh
//! HEARTH_REVISION=$(git rev-parse HEAD) \
//! RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static" \
//! cargo build --profile shim --target x86_64-unknown-linux-gnu -p hearth-shim --bin containerd-shim-hearth-v1
//! ```
//!
//! `--target` keeps the flags from build scripts and derive macros, which cannot be static; a fixed address
//! (`relocation-model`) spares 40 kB of relocations; `build.rs` drops more parts of a static program that it does not
//! need. A plain `cargo build` gives a dynamic shim that behaves the same. Install it in a directory of containerd's
//! `PATH`, and leave it there: if a restarted containerd does not find it, it deletes the bundles of all running
//! containers.
#![forbid(unsafe_code)]

mod bootstrap;
mod control;
mod delete;
mod info;

use std::env;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use hearth_shim::args::{self, Invocation};
use hearth_shim::failure::{Failure, RUNTIME_NAME, Result};

fn main() -> ExitCode {
    let done = run().and_then(|answer| {
        let mut stdout = io::stdout().lock();
        stdout
            .write_all(&answer)
            .and_then(|()| stdout.flush())
            .map_err(|e| Failure::new(format!("cannot write to stdout: {e}")))
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            complain(&failure);
            ExitCode::FAILURE
        }
    }
}

/// Runs the action of the command line and returns the bytes for stdout.
fn run() -> Result<Vec<u8>> {
    match args::parse(env::args_os().skip(1))? {
        Invocation::Start(flags) => bootstrap::start(&flags),
        Invocation::Delete(flags) => {
            let deleted = delete::delete(&flags)?;
            if let Some(warning) = &deleted.warning {
                complain(warning);
            }
            Ok(deleted.answer)
        }
        Invocation::Info => Ok(info::runtime_info()),
        Invocation::Version => Ok(info::version()),
        Invocation::Help => Ok(args::USAGE.into()),
    }
}

/// Prints the one line on stderr. It has a line break only on a terminal: containerd puts its own text right behind it.
fn complain(failure: &Failure) {
    let mut stderr = io::stderr();
    let end = if stderr.is_terminal() { "\n" } else { "" };
    // Without stderr, the exit status alone reports the failure.
    let _ = stderr.write_all(format!("{RUNTIME_NAME}: {failure}{end}").as_bytes());
}
