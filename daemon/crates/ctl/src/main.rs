//! `hearthctl`: inspects and controls the node's `hearthd`. See [`hearth_ctl`].

use std::process::ExitCode;

fn main() -> ExitCode {
    hearth_ctl::main()
}
