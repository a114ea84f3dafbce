//! `containerd-shim-floor-v1`: the smallest possible containerd shim, with which `hearth-bench` measures containerd's
//! own time.
//!
//! `start` prints the address of a server that runs already, `NAMESPACE.sock` beside this program. Every other action
//! succeeds without output, which containerd reads as an empty answer. No file is read, no socket dialled.
//!
//! Failure path: arguments that name no namespace are one line on stderr and status 1.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if arguments.last().is_none_or(|action| action != "start") {
        return ExitCode::SUCCESS;
    }
    let flag = arguments.iter().position(|word| word == "-namespace" || word == "--namespace");
    let namespace = flag.and_then(|at| arguments.get(at + 1));
    let (Some(namespace), Ok(program)) = (namespace, std::env::current_exe()) else {
        eprintln!("containerd-shim-floor-v1: no -namespace; it is started by containerd, for hearth-bench");
        return ExitCode::FAILURE;
    };
    let mut socket = namespace.clone();
    socket.push(".sock");
    let address = format!("unix://{}", program.with_file_name(socket).display());
    match std::io::stdout().write_all(address.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("containerd-shim-floor-v1: {error}");
            ExitCode::FAILURE
        }
    }
}
