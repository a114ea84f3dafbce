//! The steps after the end of a guest, in order: the text on stderr and in the termination log, the ends of the execs
//! and requests, the end of stdio, TaskExit, the answers to Wait. Also the end of a process that is deleted without
//! a start.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use hearth_base::error::{Error, Result};
use hearth_base::faults::{self, Point};
use hearth_base::operator::EndKind;
use hearth_base::text::shown_lines;
use hearth_containerd::events::Event;
use hearth_observe::logging;
use hearth_wasm::command::CommandOutcome;
use hearth_wasm::scheduler::GuestEnd;

use super::diagnosis::{Diagnosis, Fault, OOM_STATUS};
use super::lifecycle::Transition;
use super::start::StartCaller;
use super::state::{Effect, Input, Role, SIGKILL, State};
use super::{Exit, Process};

/// The most bytes of a note in the container's standard error.
const NOTE_BYTES_MAX: usize = 8 << 10;

impl Process {
    /// The guest is gone; called by its worker.
    pub(super) fn ended(self: &Arc<Self>, end: GuestEnd<CommandOutcome>, caller: &StartCaller) {
        faults::at(Point::Ended);
        let kill_status = self.inner.lock().lifecycle.kill_status();
        let diagnosis = Diagnosis::of(end, kill_status, self.starved.load(Ordering::Relaxed));
        self.note_fault(&diagnosis, caller);
        if diagnosis.out_of_memory {
            let memory = &self.container.memory;
            let pod = memory.pod_limit().map(|limit| format!(", and that of its pod {limit}"));
            let text = format!("out of memory: its limit is {} bytes{}", memory.limit(), pod.unwrap_or_default());
            self.note_out_of_memory(diagnosis.status, &text);
        }
        let transition = self.inner.lock().lifecycle.apply(Input::Exited(diagnosis.status), self.role);
        if let Ok(Transition { before, effect: Effect::Finish(status) }) = transition {
            self.finish(before, status);
        }
        if let Some(error) = diagnosis.refusal {
            // Last: the caller may look at the state, or delete the process, at once.
            caller.answer(Err(error));
        }
    }

    /// Counts an end that was no exit, and tells of it where users and operators look for it.
    fn note_fault(&self, diagnosis: &Diagnosis, caller: &StartCaller) {
        let Some(Fault { kind, status, text }) = &diagnosis.fault else { return };
        let container = &self.container;
        match kind {
            EndKind::Trap => {
                container.metrics.tasks.traps.inc();
                container.about.traps.fetch_add(1, Ordering::Relaxed);
            }
            EndKind::Panic => {
                tracing::error!(namespace = %container.namespace, task = %container.id, process = %self.id, panic = %text, "a host function panicked; only this process ends");
            }
            EndKind::NotStarted => {
                if self.role == Role::Init {
                    container.metrics.starts.failed.inc();
                    container.recent.failed(&container.about, text);
                }
                if caller.waits() {
                    // The caller of Start shows the text.
                    return;
                }
            }
            // Not of a process: requests report theirs, and an end for want of memory is told after this.
            EndKind::OutOfMemory | EndKind::Request | EndKind::Response | EndKind::TimeOut => {}
        }
        tracing::info!(target: logging::GUEST, namespace = %container.namespace, task = %container.id, process = %self.id, kind = kind.name(), text, "a guest ended badly");
        self.stdio.write_stderr(&format!("hearth: {}\n", shown_lines(text, NOTE_BYTES_MAX)));
        // An end for want of memory is recorded as that, and not as its trap.
        if !diagnosis.out_of_memory {
            container.recent.ended(&container.about, *kind, *status, text);
            if self.role == Role::Init {
                container.note_end(text);
            }
        }
    }

    /// Ends an init because the daemon has no memory left for it; `text` says so. Its status is that of SIGKILL.
    pub fn end_for_memory(self: &Arc<Self>, text: &str) {
        self.note_out_of_memory(OOM_STATUS, text);
        // An init that has ended meanwhile gives its memory back all the same.
        let _ = self.kill(SIGKILL);
    }

    /// Counts and tells of an end for want of memory.
    fn note_out_of_memory(&self, status: u32, text: &str) {
        let container = &self.container;
        let memory = &container.memory;
        container.metrics.tasks.oom_kills.inc();
        self.stdio.write_stderr(&format!("hearth: {text}\n"));
        tracing::info!(target: logging::GUEST, namespace = %container.namespace, task = %container.id, process = %self.id, limit = memory.limit(), "a guest ended for want of memory");
        container.recent.ended(&container.about, EndKind::OutOfMemory, status, text);
        if self.role == Role::Init {
            container.note_end(text);
            memory.set_fatal();
            self.publish(Event::Oom { container_id: container.id.clone() });
        }
    }

    /// Everything that follows the transition to Stopped. The execs and the requests of the task end before its
    /// init's end is told.
    pub(super) fn finish(self: &Arc<Self>, before: State, status: u32) {
        let exit = Exit { status, at: SystemTime::now() };
        self.gauge(before, State::Stopped(status));
        match self.role {
            Role::Init => {
                let process = self.clone();
                let afterwards = move || {
                    let init = process.clone();
                    process.execs.close(move || init.close(exit));
                };
                match self.requests() {
                    Some(requests) => requests.close(afterwards),
                    None => afterwards(),
                }
            }
            Role::Exec => self.close(exit),
        }
    }

    /// Closes stdio, then tells of the end.
    fn close(self: &Arc<Self>, exit: Exit) {
        let process = self.clone();
        self.stdio.finish(move || process.end_holder(exit));
    }

    /// Tells of the end once the pid of the task is that of no process, if it has a process of its own: clients take a
    /// task whose pid is there for one that runs.
    fn end_holder(self: Arc<Self>, exit: Exit) {
        match (self.role, self.container.network.holder.clone()) {
            (Role::Init, Some(holder)) => holder.end(move || self.tell_end(exit)),
            _ => self.tell_end(exit),
        }
    }

    fn tell_end(&self, exit: Exit) {
        if self.role == Role::Init {
            self.container.access.close();
            self.container.files.release();
        }
        tracing::debug!(task = %self.container.id, process = %self.id, status = exit.status, "ended");
        self.publish(Event::Exit {
            container_id: self.container.id.clone(),
            id: self.id.clone(),
            pid: self.container.pid(),
            exit_status: exit.status,
            exited_at: exit.at,
        });
        if self.role == Role::Init
            && let Some(cell) = &self.container.cell
        {
            cell.end(&self.container.id);
        }
        self.exit.send_replace(Some(exit));
        if self.role == Role::Exec {
            self.execs.ended();
        }
    }

    /// The Delete call: the process must not run any more. Once this returns its exit has been told, its stdio is
    /// closed, and every Wait is answered.
    ///
    /// # Errors
    /// `FailedPrecondition` while it runs.
    pub(in crate::task) async fn remove(&self) -> Result<Exit> {
        self.end_unstarted(Input::Delete)?;
        // Its TaskExit comes before its TaskDelete, also if Delete comes between the end and TaskExit.
        self.wait().await
    }

    /// Ends a process that will not be started. No event tells of it; a Wait is answered.
    fn end_unstarted(&self, input: Input) -> Result<()> {
        let Transition { before, effect } = self.inner.lock().lifecycle.apply(input, self.role)?;
        if let (State::Created, Effect::Remove(status)) = (before, effect) {
            self.stdio.close();
            self.gauge(before, State::Stopped(status));
            self.exit.send_replace(Some(Exit { status, at: SystemTime::now() }));
        }
        Ok(())
    }

    /// Gives up a process whose start was refused.
    pub(super) fn abandon(&self) {
        // A process that runs was started twice, and goes on.
        let _: Result<(), Error> = self.end_unstarted(Input::Refused);
    }
}
