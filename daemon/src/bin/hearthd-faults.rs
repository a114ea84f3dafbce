//! `hearthd` with fault points, at which stories kill it: see [`hearth_base::faults`]. Only the feature `faults`
//! builds it, and no package contains it.
//!
//! `hearthd-faults --list-fault-points` prints the name of each fault point on a line of its own, so that stories
//! need no list of their own.

use std::process::ExitCode;

use hearth_base::faults::{self, Point};

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|word| word == faults::LIST_FLAG) {
        for (_, name) in Point::ALL {
            println!("{name}");
        }
        return ExitCode::SUCCESS;
    }
    hearthd::command::main()
}
