//! When a guest counts as ended for want of memory.
//!
//! The kernel kills a process that is over its limit. WebAssembly is told instead: its `memory.grow`
//! fails, and what happens then is the program's choice. Kubernetes shows `OOMKilled` only for exit status
//! 137 with an OOM event, so one has to be derived from the other:
//!
//! **A guest ended for want of memory if the last growth it asked for was refused for the limit, and it then
//! trapped or exited with the status of an abort (134).** That is what language runtimes do with an
//! allocation that fails: Rust, C++ and Zig trap, and so does C's `abort()`.
//!
//! * A program that deals with it, and says so by an exit status of its own, keeps that status.
//! * One that got memory afterwards had what it wanted; its trap later is a trap.
//! * A growth over the module's own maximum is not the container's limit.

use hearth_wasm::command::{Outcome, TRAP_STATUS};
use hearth_wasm::scheduler::End;

/// Exit status for Kubernetes and everybody else: 128 + SIGKILL, as the kernel would have it.
pub const OOM_STATUS: u32 = 137;

/// Whether that is how it ended. `starved`: the last growth was refused.
pub fn ended_by(starved: bool, end: &End<Outcome>) -> bool {
    let aborted = match end {
        End::Completed(Outcome::Trapped(_)) => true,
        End::Completed(Outcome::Exited(status)) => *status == TRAP_STATUS,
        End::Completed(Outcome::NotStarted(_)) | End::Killed | End::Panicked(_) => false,
    };
    aborted && starved
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trap_or_an_abort_after_a_refused_growth_and_nothing_else() {
        let trapped = || End::Completed(Outcome::Trapped("unreachable".into()));
        let exited = |status| End::Completed(Outcome::Exited(status));
        for (end, want) in [
            (trapped(), true),
            (exited(134), true),
            (exited(0), false),
            (exited(1), false),
            (End::Killed, false),
            (End::Panicked("ours".into()), false),
        ] {
            assert_eq!(ended_by(true, &end), want, "{end:?}");
            assert!(!ended_by(false, &end), "{end:?}");
        }
    }
}
