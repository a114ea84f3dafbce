//! `make test-vm`: a whole node in a virtual machine, as nodes in the field are: systemd, pure cgroup v2, AppArmor. It
//! has no KVM and is slow, so it shows what is true and not what is fast.
//!
//!   vm IMAGE PACKAGE NEWER     the directory of `image.sh`, Hearth's package, and the same of a later version
//!
//! The stories follow each other on one node, and end it more than once without warning. The report, a table of stories
//! with time and result, is the end of the output. The first story that fails ends the run: the others need it.
//!
//! Files, in reading order:
//!
//! * `main.rs`: this page: runs the stories and prints the report.
//! * `machine.rs`: the virtual machine: its disks, its power, its agent.
//! * `stories.rs`: the stories.
//! * `pods.rs`: a program on the machine: pods through CRI.
//! * `image.sh`: makes the disk, once.
//! * `run.sh`: makes the disk and the packages, and runs this program.
//! * `agent`: runs scripts on the machine.

mod machine;
mod stories;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use machine::{Disks, Machine};
use stories::STORIES;

fn main() -> ExitCode {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [image, package, newer] = arguments.as_slice() else {
        eprintln!("usage: vm IMAGE PACKAGE NEWER; `make test-vm` calls it");
        return ExitCode::from(2);
    };
    let began = Instant::now();
    let mut machine = Machine::start(Disks::new(image, package, newer));
    let mut report: Vec<(&str, Duration)> = vec![("the machine starts", began.elapsed())];
    let mut failed = None;
    for (name, story) in STORIES {
        eprintln!("vm: {name}");
        let began = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| story(&mut machine)));
        report.push((name, began.elapsed()));
        if result.is_err() {
            failed = Some(name);
            eprintln!("--- the end of the console:\n{}", machine.console());
            break;
        }
    }
    println!("\n| story | s | result |\n|:---|---:|:---|");
    for (name, took) in &report {
        let result = if failed.is_some_and(|failed| failed == name) { "FAILED" } else { "ok" };
        println!("| {name} | {} | {result} |", took.as_secs());
    }
    println!("\n{} s in all", began.elapsed().as_secs());
    ExitCode::from(u8::from(failed.is_some()))
}
