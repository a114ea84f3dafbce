//! The state machine of a process: pure, no clock, no lock, no I/O.
//!
//! ```text
//!             Start            Started               Exited
//!   Created ────────▶ Starting ────────▶ Running ──────────────▶ Stopped
//!      │                  │                   │  ▲  Exited           ▲
//!      │ Kill (fatal)     │ Exited      Pause ▼  │ Resume  ┌─────────┤
//!      │ Delete           │                  Paused ────────┘         │
//!      └──────────────────┴─────────────────────────────────────────┘
//! ```
//!
//! A signal to a paused process does what it does to one in runc's freezer: SIGKILL ends it, any other
//! that is fatal ends it when it is resumed. What is paused can end by itself for a moment still: a pause
//! does not wait until the guest looks up.
//!
//! Delete is allowed in Created, which it ends so that no Start can follow, and in Stopped; then the
//! entry goes from the map. There are no setters and no second status; containerd's status is `From<&State>`.

use hearth_base::error::{Error, Result};

/// The states of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Everything is ready for Start.
    Created,
    /// Start has been accepted; there is no instance yet.
    Starting,
    /// It runs.
    Running,
    /// It would run, but it was paused.
    Paused,
    /// It has ended, with this status as a shell would show it.
    Stopped(u32),
}

/// An event of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// The Start call.
    Start,
    /// There is an instance.
    Started,
    /// The Kill call with this signal number.
    Kill(u32),
    /// The guest ended, or could not be started, with this status.
    Exited(u32),
    /// The Pause call.
    Pause,
    /// The Resume call.
    Resume,
    /// The Delete call.
    Delete,
    /// Start was refused, and no other can follow.
    Refused,
}

/// The owner's act after a transition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Hand the guest to the scheduler.
    Launch,
    /// Publish TaskStart.
    AnnounceStart,
    /// Tell the scheduler to end the guest; the status is this once it has.
    Interrupt(u32),
    /// The same once it is resumed.
    InterruptLater(u32),
    /// Tell the scheduler to stop the guest, publish TaskPaused.
    Freeze,
    /// Tell the scheduler to let the guest go on, publish TaskResumed.
    Thaw,
    /// Close stdio, publish TaskExit with this status, answer every Wait.
    Finish(u32),
    /// Let everything go, publish TaskDelete with this status.
    Remove(u32),
}

/// The role of a process in its task; some errors differ by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A task's first process.
    Init,
    /// A later one.
    Exec,
}

/// Signals that end a guest, which has no handlers: HUP, INT, QUIT, ABRT, KILL, TERM (signal(7)), by which people and
/// Kubernetes ask a program to end. Others leave it alone, as the first process of a PID namespace is left alone
/// by signals without a handler (pid_namespaces(7)).
const FATAL: [u32; 6] = [1, 2, 3, 6, SIGKILL, 15];

/// The signal that nothing holds back.
pub(super) const SIGKILL: u32 = 9;

/// The highest signal number on Linux.
const SIGNAL_MAX: u32 = 64;

/// Status of an init that was never started and was deleted, and of a start that failed: as runc's
/// shim and CRI have it.
pub const NEVER_STARTED: u32 = 128;

/// Status of an exec that was never started and was deleted, as runc's shim has it.
const DELETED_EXEC: u32 = 0;

impl State {
    /// The label of the metric `tasks`, which operators see, too.
    pub fn label(self) -> &'static str {
        match self {
            State::Created | State::Starting => "created",
            State::Running => "running",
            State::Paused => "paused",
            State::Stopped(_) => "stopped",
        }
    }

    /// Applies an event, and returns the owner's act.
    ///
    /// # Errors
    /// The refusal containerd expects; the state is unchanged.
    pub fn apply(&mut self, input: Input, role: Role) -> Result<Effect> {
        let (next, effect) = match (*self, input) {
            (State::Created, Input::Start) => (State::Starting, Effect::Launch),
            (State::Starting | State::Running | State::Paused, Input::Start) => {
                return Err(Error::FailedPrecondition("the process has been started already".into()));
            }
            (State::Stopped(_), Input::Start) => {
                return Err(Error::FailedPrecondition("a stopped process cannot be started again".into()));
            }

            (State::Starting, Input::Started) => (State::Running, Effect::AnnounceStart),
            (State::Created | State::Running | State::Paused | State::Stopped(_), Input::Started) => {
                (*self, Effect::None)
            }

            (_, Input::Kill(signal)) => return self.kill(signal, role),

            (State::Running, Input::Pause) => (State::Paused, Effect::Freeze),
            (State::Created | State::Starting, Input::Pause) => return refused("has not started; start it first"),
            (State::Paused, Input::Pause) => return refused("is paused already"),
            (State::Stopped(_), Input::Pause | Input::Resume) => return refused("has ended"),
            (State::Paused, Input::Resume) => (State::Running, Effect::Thaw),
            (State::Created | State::Starting | State::Running, Input::Resume) => return refused("is not paused"),

            (State::Starting | State::Running | State::Paused, Input::Exited(status)) => {
                (State::Stopped(status), Effect::Finish(status))
            }
            (State::Created | State::Stopped(_), Input::Exited(_)) => (*self, Effect::None),

            (State::Created, Input::Delete) if role == Role::Exec => {
                (State::Stopped(DELETED_EXEC), Effect::Remove(DELETED_EXEC))
            }
            (State::Created, Input::Delete | Input::Refused) => {
                (State::Stopped(NEVER_STARTED), Effect::Remove(NEVER_STARTED))
            }
            (State::Stopped(status), Input::Delete | Input::Refused) => (*self, Effect::Remove(status)),
            (State::Starting | State::Running | State::Paused, Input::Delete | Input::Refused) => {
                return refused("is running; kill it first");
            }
        };
        *self = next;
        Ok(effect)
    }

    fn kill(&mut self, signal: u32, role: Role) -> Result<Effect> {
        if signal > SIGNAL_MAX {
            return Err(Error::InvalidArgument(format!("there is no signal {signal}; the highest is {SIGNAL_MAX}")));
        }
        let fatal = FATAL.contains(&signal);
        let status = 128 + signal;
        match *self {
            State::Stopped(_) => Err(Error::NotFound("process already finished".into())),
            State::Created if role == Role::Exec => {
                Err(Error::FailedPrecondition("the process has not been started".into()))
            }
            State::Created if fatal => {
                *self = State::Stopped(status);
                Ok(Effect::Finish(status))
            }
            State::Paused if fatal && signal != SIGKILL => Ok(Effect::InterruptLater(status)),
            State::Starting | State::Running | State::Paused if fatal => Ok(Effect::Interrupt(status)),
            State::Created | State::Starting | State::Running | State::Paused => Ok(Effect::None),
        }
    }
}

fn refused(why: &str) -> Result<Effect> {
    Err(Error::FailedPrecondition(format!("the process {why}")))
}

impl From<&State> for containerd_shim_protos::api::Status {
    fn from(state: &State) -> Self {
        use containerd_shim_protos::api::Status;
        match state {
            State::Created | State::Starting => Status::CREATED,
            State::Running => Status::RUNNING,
            State::Paused => Status::PAUSED,
            State::Stopped(_) => Status::STOPPED,
        }
    }
}

#[cfg(test)]
mod tests {
    use ttrpc::Code;

    use super::*;

    fn after(inputs: &[Input]) -> (State, Vec<Result<Effect, Code>>) {
        let mut state = State::Created;
        let effects = inputs.iter().map(|&i| state.apply(i, Role::Init).map_err(|e| e.code())).collect();
        (state, effects)
    }

    #[test]
    fn a_life_from_create_to_delete() {
        let (state, effects) = after(&[Input::Start, Input::Started, Input::Exited(7), Input::Delete]);
        assert_eq!(state, State::Stopped(7));
        let want = [Effect::Launch, Effect::AnnounceStart, Effect::Finish(7), Effect::Remove(7)];
        assert_eq!(effects, want.map(Ok));
    }

    #[test]
    fn a_guest_that_ends_before_anybody_looked_is_finished_once() {
        let (state, effects) = after(&[Input::Start, Input::Exited(1), Input::Started, Input::Exited(2)]);
        assert_eq!(state, State::Stopped(1));
        assert_eq!(effects[1..], [Ok(Effect::Finish(1)), Ok(Effect::None), Ok(Effect::None)]);
    }

    #[test]
    fn kill_by_state_signal_and_role() {
        use State::*;
        let ok = |effect| Ok(effect);
        let table = [
            (Created, 9, Role::Init, ok(Effect::Finish(137))),
            (Created, 15, Role::Init, ok(Effect::Finish(143))),
            (Created, 10, Role::Init, ok(Effect::None)),
            (Created, 9, Role::Exec, Err(Code::FAILED_PRECONDITION)),
            (Starting, 9, Role::Init, ok(Effect::Interrupt(137))),
            (Running, 1, Role::Init, ok(Effect::Interrupt(129))),
            (Running, 2, Role::Exec, ok(Effect::Interrupt(130))),
            (Running, 3, Role::Init, ok(Effect::Interrupt(131))),
            (Running, 6, Role::Init, ok(Effect::Interrupt(134))),
            (Running, 0, Role::Init, ok(Effect::None)),
            (Running, 28, Role::Init, ok(Effect::None)),
            (Running, 64, Role::Init, ok(Effect::None)),
            (Running, 65, Role::Init, Err(Code::INVALID_ARGUMENT)),
            (Paused, 9, Role::Init, ok(Effect::Interrupt(137))),
            (Paused, 15, Role::Init, ok(Effect::InterruptLater(143))),
            (Paused, 28, Role::Exec, ok(Effect::None)),
            (Stopped(0), 9, Role::Init, Err(Code::NOT_FOUND)),
            (Stopped(0), 28, Role::Exec, Err(Code::NOT_FOUND)),
        ];
        for (from, signal, role, want) in table {
            let mut state = from;
            let got = state.apply(Input::Kill(signal), role).map_err(|e| e.code());
            assert_eq!(got, want, "{from:?} {signal} {role:?}");
        }
    }

    #[test]
    fn only_what_runs_is_paused_and_only_what_is_paused_resumed() {
        let (state, effects) =
            after(&[Input::Start, Input::Started, Input::Pause, Input::Resume, Input::Pause, Input::Exited(3)]);
        assert_eq!(state, State::Stopped(3));
        let want = [Effect::Freeze, Effect::Thaw, Effect::Freeze, Effect::Finish(3)];
        assert_eq!(effects[2..], want.map(Ok));
        let refused = [
            (Input::Pause, &[State::Created, State::Starting, State::Paused, State::Stopped(0)][..]),
            (Input::Resume, &[State::Created, State::Starting, State::Running, State::Stopped(0)][..]),
        ];
        for (input, states) in refused {
            for &from in states {
                let mut state = from;
                assert_eq!(state.apply(input, Role::Init).unwrap_err().code(), Code::FAILED_PRECONDITION);
                assert_eq!(state, from);
            }
        }
    }

    #[test]
    fn start_only_from_created_and_delete_never_while_running() {
        for from in [State::Starting, State::Running, State::Paused, State::Stopped(0)] {
            let mut state = from;
            assert_eq!(state.apply(Input::Start, Role::Init).unwrap_err().code(), Code::FAILED_PRECONDITION);
            assert_eq!(state, from);
        }
        for from in [State::Starting, State::Running, State::Paused] {
            let mut state = from;
            assert_eq!(state.apply(Input::Delete, Role::Init).unwrap_err().code(), Code::FAILED_PRECONDITION);
        }
        let mut state = State::Created;
        assert_eq!(state.apply(Input::Delete, Role::Init).unwrap(), Effect::Remove(NEVER_STARTED));
        assert_eq!(state.apply(Input::Start, Role::Init).unwrap_err().code(), Code::FAILED_PRECONDITION);
        assert_eq!(state.apply(Input::Delete, Role::Init).unwrap(), Effect::Remove(NEVER_STARTED), "again");
        for (input, status) in [(Input::Delete, 0), (Input::Refused, 128)] {
            let mut state = State::Created;
            assert_eq!(state.apply(input, Role::Exec).unwrap(), Effect::Remove(status), "{input:?}");
            assert_eq!(state.apply(Input::Delete, Role::Exec).unwrap(), Effect::Remove(status), "again");
        }
    }
}
