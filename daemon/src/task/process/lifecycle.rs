//! The state of a process together with what a transition leaves to do later: the pause under way, and the status
//! of a signal that has not ended the guest yet. No lock, no I/O.

use hearth_base::error::Result;

use super::state::{Effect, Input, Role, State};

/// Status of an exec that ends because its task's init has ended: that of SIGKILL.
const ENDED_WITH_INIT_STATUS: u32 = 137;

/// The state of a process. `E`: the room for its events, which a pause holds until it is over.
pub(super) struct Lifecycle<E> {
    state: State,
    /// The status of the first fatal signal, until the scheduler has ended the guest.
    killed_with: Option<u32>,
    pause: Option<Pause<E>>,
}

struct Pause<E> {
    events: E,
    /// The status of a fatal signal that takes effect on resume.
    killed_with: Option<u32>,
}

/// A transition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Transition {
    /// The state before it.
    pub(super) before: State,
    /// The effect that it asks for.
    pub(super) effect: Effect,
}

/// The acts that a resume asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Resumed<E> {
    /// The events that the pause held.
    pub(super) events: Option<E>,
    /// A fatal signal came during the pause: the guest has to be killed before it goes on.
    pub(super) kill: bool,
}

impl<E> Default for Lifecycle<E> {
    fn default() -> Lifecycle<E> {
        Lifecycle { state: State::Created, killed_with: None, pause: None }
    }
}

impl<E> Lifecycle<E> {
    pub(super) fn state(&self) -> State {
        self.state
    }

    /// Whether it has been started and not ended.
    pub(super) fn is_running(&self) -> bool {
        matches!(self.state, State::Starting | State::Running | State::Paused)
    }

    /// The status that a guest ended by the scheduler exits with.
    pub(super) fn kill_status(&self) -> u32 {
        self.killed_with.unwrap_or(ENDED_WITH_INIT_STATUS)
    }

    /// Applies an input other than Pause and Resume.
    ///
    /// # Errors
    /// As [`State::apply`].
    pub(super) fn apply(&mut self, input: Input, role: Role) -> Result<Transition> {
        let before = self.state;
        let effect = self.state.apply(input, role)?;
        match effect {
            Effect::Interrupt(status) => {
                self.killed_with.get_or_insert(status);
            }
            Effect::InterruptLater(status) => {
                if let Some(pause) = &mut self.pause {
                    pause.killed_with.get_or_insert(status);
                }
            }
            Effect::Finish(_) => self.pause = None,
            Effect::None
            | Effect::Launch
            | Effect::AnnounceStart
            | Effect::Freeze
            | Effect::Thaw
            | Effect::Remove(_) => {}
        }
        Ok(Transition { before, effect })
    }

    /// Begins a pause, which holds `events`.
    ///
    /// # Errors
    /// `FailedPrecondition` unless it runs; `events` is dropped then.
    pub(super) fn pause(&mut self, events: E, role: Role) -> Result<&E> {
        self.state.apply(Input::Pause, role)?;
        Ok(&self.pause.insert(Pause { events, killed_with: None }).events)
    }

    /// Ends a pause.
    ///
    /// # Errors
    /// `FailedPrecondition` unless it is paused.
    pub(super) fn resume(&mut self, role: Role) -> Result<Resumed<E>> {
        self.state.apply(Input::Resume, role)?;
        let Some(Pause { events, killed_with }) = self.pause.take() else {
            return Ok(Resumed { events: None, kill: false });
        };
        if let Some(status) = killed_with {
            self.killed_with.get_or_insert(status);
        }
        Ok(Resumed { events: Some(events), kill: killed_with.is_some() })
    }

    /// The task's init has ended: says whether the guest of this exec has to be killed.
    pub(super) fn end_with_init(&mut self) -> bool {
        let running = self.is_running();
        if running {
            self.killed_with.get_or_insert(ENDED_WITH_INIT_STATUS);
        }
        running
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGHUP: u32 = 1;
    const SIGKILL: u32 = 9;
    const SIGTERM: u32 = 15;

    fn running() -> Lifecycle<&'static str> {
        let mut lifecycle = Lifecycle::default();
        lifecycle.apply(Input::Start, Role::Init).unwrap();
        lifecycle.apply(Input::Started, Role::Init).unwrap();
        lifecycle
    }

    #[test]
    fn the_first_fatal_signal_gives_the_status() {
        let mut lifecycle = running();
        for signal in [SIGTERM, SIGKILL] {
            let transition = lifecycle.apply(Input::Kill(signal), Role::Init).unwrap();
            assert_eq!(transition, Transition { before: State::Running, effect: Effect::Interrupt(128 + signal) });
        }
        assert_eq!(lifecycle.kill_status(), 128 + SIGTERM);
    }

    #[test]
    fn a_fatal_signal_during_a_pause_waits_for_the_resume_and_sigkill_does_not() {
        let mut lifecycle = running();
        assert_eq!(*lifecycle.pause("room", Role::Init).unwrap(), "room");
        assert!(lifecycle.pause("more", Role::Init).is_err());
        for signal in [SIGHUP, SIGTERM] {
            let effect = lifecycle.apply(Input::Kill(signal), Role::Init).unwrap().effect;
            assert_eq!(effect, Effect::InterruptLater(128 + signal));
        }
        let mut killed = running();
        killed.pause("room", Role::Init).unwrap();
        assert_eq!(killed.apply(Input::Kill(SIGKILL), Role::Init).unwrap().effect, Effect::Interrupt(137));
        assert_eq!(killed.kill_status(), 137);
        assert_eq!(lifecycle.resume(Role::Init).unwrap(), Resumed { events: Some("room"), kill: true });
        assert_eq!((lifecycle.state(), lifecycle.kill_status()), (State::Running, 128 + SIGHUP));
        assert!(lifecycle.resume(Role::Init).is_err());
    }

    #[test]
    fn a_pause_ends_with_its_process() {
        let mut lifecycle = running();
        lifecycle.pause("room", Role::Init).unwrap();
        let ended = lifecycle.apply(Input::Exited(3), Role::Init).unwrap();
        assert_eq!(ended, Transition { before: State::Paused, effect: Effect::Finish(3) });
        assert!(lifecycle.pause.is_none() && !lifecycle.is_running());
    }

    #[test]
    fn only_an_exec_that_runs_ends_with_its_init() {
        let mut created = Lifecycle::<()>::default();
        assert!(!created.end_with_init());
        let mut exec = running();
        exec.apply(Input::Kill(SIGTERM), Role::Exec).unwrap();
        assert!(exec.end_with_init());
        assert_eq!(exec.kill_status(), 128 + SIGTERM, "the signal came first");
        exec.apply(Input::Exited(143), Role::Exec).unwrap();
        assert!(!exec.end_with_init());
    }
}
