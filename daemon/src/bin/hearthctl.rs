//! `hearthctl`: looks into the node's `hearthd`, and tells it what to do. See [`hearthd::ctl`].

use std::process::ExitCode;

fn main() -> ExitCode {
    hearthd::ctl::main()
}
