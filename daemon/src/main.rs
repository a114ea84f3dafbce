//! `hearthd`: see [`hearthd::command`].

use std::process::ExitCode;

fn main() -> ExitCode {
    hearthd::command::main()
}
