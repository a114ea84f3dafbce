//! `hearthctl`: looks into the node's `hearthd`, and tells it what to do. See [`hearth_ctl`].

use std::process::ExitCode;

fn main() -> ExitCode {
    hearth_ctl::main()
}
