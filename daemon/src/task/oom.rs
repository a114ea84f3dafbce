//! When a guest counts as ended for want of memory.
//!
//! The kernel kills a process that is over its limit. WebAssembly is told instead: its `memory.grow`
//! fails, and what happens then is the program's choice. Kubernetes shows `OOMKilled` only for exit status
//! 137 with an OOM event, so one has to be derived from the other:
//!
//! **A guest ended for want of memory if the last growth it asked for was refused for the limit, and it then
//! trapped.** That is what language runtimes do with an allocation that fails: Rust, C++ and Zig trap, and so does
//! `abort()` of wasi-libc, which is `unreachable`.
//!
//! * A program that handles the refusal and exits keeps its exit status, be it 134 or 137.
//! * One that got memory afterwards had what it wanted; its trap later is a trap.
//! * A growth over the module's own maximum is not the container's limit.

use hearth_wasm::command::CommandOutcome;
use hearth_wasm::scheduler::GuestEnd;

/// The exit status of a guest that ended for want of memory: 128 + SIGKILL, as of a process that the kernel kills.
pub const OOM_STATUS: u32 = 137;

/// Whether a guest ended for want of memory. `starved`: its last growth was refused.
pub fn ended_by(starved: bool, end: &GuestEnd<CommandOutcome>) -> bool {
    starved && matches!(end, GuestEnd::Completed(CommandOutcome::Trapped(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trap_after_a_refused_growth_and_nothing_else() {
        let trapped = || GuestEnd::Completed(CommandOutcome::Trapped("unreachable".into()));
        let exited = |status| GuestEnd::Completed(CommandOutcome::Exited(status));
        for (end, want) in [
            (trapped(), true),
            (exited(134), false),
            (exited(137), false),
            (exited(0), false),
            (exited(1), false),
            (GuestEnd::Killed, false),
            (GuestEnd::Panicked("ours".into()), false),
        ] {
            assert_eq!(ended_by(true, &end), want, "{end:?}");
            assert!(!ended_by(false, &end), "{end:?}");
        }
    }
}
