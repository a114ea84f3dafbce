//! `hearthd` with points to be killed at, for stories: see [`hearthd::faults`]. It is built with the feature
//! `faults` alone, and never shipped.

use std::process::ExitCode;

fn main() -> ExitCode {
    hearthd::command::main()
}
