//! Ends with 1 and a list if the stories of this checkout have left anything on the host.

use std::process::ExitCode;

use hearth_tests::leftovers;
use hearth_tests::wait::{SHORT, within};

fn main() -> ExitCode {
    // A keeper removes its directory a moment after the test process has ended.
    if within(SHORT, || leftovers::all().is_empty().then_some(())).is_some() {
        println!("nothing is left behind: no directory, process, mount, cgroup or bridge");
        return ExitCode::SUCCESS;
    }
    eprintln!("left behind:\n{}", leftovers::all().join("\n"));
    ExitCode::FAILURE
}
