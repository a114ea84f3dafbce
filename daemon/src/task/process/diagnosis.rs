//! Exit status of a guest, and the report of an end that was no exit: the one place where the scheduler's [`GuestEnd`],
//! the command's [`CommandOutcome`] and the operators' [`EndKind`] meet.
//!
//! # Out of memory
//!
//! The kernel kills a process that is over its limit. WebAssembly is told instead: its `memory.grow` fails, and the
//! program decides what happens then. Kubernetes shows `OOMKilled` only for exit status 137 with an OOM event, so
//! the end has to be derived from the refusal:
//!
//! **A guest ended for want of memory if the last growth it asked for was refused for the limit, and it then
//! trapped.** Language runtimes do that with an allocation that fails: Rust, C++ and Zig trap, and so does `abort()` of
//! wasi-libc, which is `unreachable`.
//!
//! * A program that handles the refusal and exits keeps its exit status, be it 134 or 137.
//! * A program that got memory afterwards lacked none; its later trap is a trap.
//! * A growth over the module's own maximum is not the container's limit.

use hearth_base::error::Error;
use hearth_base::operator::EndKind;
use hearth_wasm::command::{CommandOutcome, TRAP_STATUS};
use hearth_wasm::scheduler::GuestEnd;

use super::state::NEVER_STARTED;

/// Exit status of a guest that ended for want of memory: 128 + SIGKILL, as if the kernel had killed it.
pub(super) const OOM_STATUS: u32 = 137;

/// The meaning of an end.
#[derive(Debug)]
pub(super) struct Diagnosis {
    /// The exit status, as a shell would show it.
    pub(super) status: u32,
    /// The fault that ended it; none for an exit.
    pub(super) fault: Option<Fault>,
    /// Why the guest was never started.
    pub(super) refusal: Option<Error>,
    /// Whether it ended for want of memory; then `status` is that of SIGKILL.
    pub(super) out_of_memory: bool,
}

/// An end that was no exit.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// Its kind.
    pub(super) kind: EndKind,
    /// The status that goes with the kind.
    pub(super) status: u32,
    /// The event, in one line or more.
    pub(super) text: String,
}

impl Diagnosis {
    /// Diagnoses an end. `kill_status`: of the signal that ended the guest, if one did. `starved`: the last growth
    /// of memory that it asked for was refused.
    pub(super) fn of(end: GuestEnd<CommandOutcome>, kill_status: u32, starved: bool) -> Diagnosis {
        let fault = |kind, status, text| Some(Fault { kind, status, text });
        let (status, fault, refusal, trapped) = match end {
            GuestEnd::Completed(CommandOutcome::Exited(status)) => (status, None, None, false),
            GuestEnd::Completed(CommandOutcome::Trapped(text)) => {
                (TRAP_STATUS, fault(EndKind::Trap, TRAP_STATUS, text), None, true)
            }
            GuestEnd::Completed(CommandOutcome::NotStarted(error)) => {
                let fault = fault(EndKind::NotStarted, NEVER_STARTED, error.to_string());
                (NEVER_STARTED, fault, Some(error), false)
            }
            GuestEnd::Killed => (kill_status, None, None, false),
            GuestEnd::Panicked(text) => {
                let text = format!("hearthd failed in a host function: {text}");
                (TRAP_STATUS, fault(EndKind::Panic, TRAP_STATUS, text), None, false)
            }
        };
        let out_of_memory = trapped && starved;
        Diagnosis { status: if out_of_memory { OOM_STATUS } else { status }, fault, refusal, out_of_memory }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KILL_STATUS: u32 = 143;

    fn trapped() -> GuestEnd<CommandOutcome> {
        GuestEnd::Completed(CommandOutcome::Trapped("unreachable".into()))
    }

    fn exited(status: u32) -> GuestEnd<CommandOutcome> {
        GuestEnd::Completed(CommandOutcome::Exited(status))
    }

    fn not_started() -> GuestEnd<CommandOutcome> {
        GuestEnd::Completed(CommandOutcome::NotStarted(Error::Internal("no slot".into())))
    }

    #[test]
    fn every_end_has_its_status_and_its_kind() {
        let cases = [
            (exited(7), 7, None),
            (trapped(), 134, Some((EndKind::Trap, 134, "unreachable"))),
            (not_started(), 128, Some((EndKind::NotStarted, 128, "no slot"))),
            (GuestEnd::Killed, KILL_STATUS, None),
            (
                GuestEnd::Panicked("index".into()),
                134,
                Some((EndKind::Panic, 134, "hearthd failed in a host function: index")),
            ),
        ];
        for (end, status, fault) in cases {
            let case = format!("{end:?}");
            let got = Diagnosis::of(end, KILL_STATUS, false);
            assert_eq!((got.status, got.out_of_memory), (status, false), "{case}");
            let want = fault.map(|(kind, status, text)| Fault { kind, status, text: text.into() });
            assert_eq!(got.fault, want, "{case}");
        }
        assert!(matches!(Diagnosis::of(not_started(), 0, false).refusal, Some(Error::Internal(_))));
        assert!(Diagnosis::of(trapped(), 0, false).refusal.is_none());
    }

    #[test]
    fn a_trap_after_a_refused_growth_and_nothing_else_is_out_of_memory() {
        let killed_by_sigabrt = (GuestEnd::Killed, false);
        let cases = [
            (trapped(), true),
            (exited(134), false),
            (exited(0), false),
            (exited(1), false),
            (exited(137), false),
            killed_by_sigabrt,
            (GuestEnd::Panicked("ours".into()), false),
            (not_started(), false),
        ];
        for (end, want) in cases {
            let case = format!("{end:?}");
            let got = Diagnosis::of(end, 134, true);
            assert_eq!(got.out_of_memory, want, "{case}");
            assert!(!want || got.status == 137, "{case}");
        }
        let trap = Diagnosis::of(trapped(), 0, true);
        assert!(matches!(trap.fault, Some(Fault { kind: EndKind::Trap, status: 134, .. })), "the trap is told too");
    }
}
