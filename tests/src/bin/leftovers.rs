//! Lists the things that the stories of this checkout have left on the host; the exit code is 1 if there are any.

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
