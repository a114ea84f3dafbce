//! The instance for a service's next request, made before the request comes.
//!
//! A short request waits mostly for its instance to be made. So the guest of a request makes the next instance once its
//! response has been written. The spare instance is the container's: its memory counts there, and is given back as soon
//! as a guest of the container would be refused memory for it. A service at rest for `REST` has none, and neither has
//! one that drains or ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::component::Component;
use crate::service::Service;
use crate::trace_context::CurrentTrace;
use hearth_wasm::engine::Program;
use hearth_wasm::instantiate::GuestInstance;
use hearth_wasm::memory::Reclaim;
use hearth_wasm::scheduler::Guest;
use hearth_wasm::slots::Slot;

/// How long an instance waits for a request.
const REST: Duration = Duration::from_secs(1);

/// The spare instance of one container.
#[derive(Default)]
pub struct Spare {
    state: Mutex<State>,
    /// Whether a request came since the last look.
    used: AtomicBool,
}

#[derive(Default)]
struct State {
    ready: Option<Box<Ready>>,
    is_being_made: bool,
    /// Whether a timer looks after it.
    is_watched: bool,
    /// No instance is made any more.
    closed: bool,
}

/// An instance that waits for a request.
pub struct Ready {
    /// The guest to which its store belongs.
    pub guest: Arc<Guest>,
    /// The instance.
    pub instance: GuestInstance,
    /// Its slot: given back after the instance.
    pub slot: Slot,
    /// The trace that its requests belong to.
    pub trace: CurrentTrace,
    program: Arc<Program>,
}

impl Spare {
    /// The spare instance, if there is one of this program.
    pub fn take(&self, program: &Arc<Program>) -> Option<Box<Ready>> {
        // One of another component stays, and so does one of code that has been replaced: it is soon dropped.
        let ready = self.state.lock().ready.take_if(|ready| Arc::ptr_eq(&ready.program, program))?;
        self.used.store(true, Ordering::Relaxed);
        Some(ready)
    }

    /// Drops it, and makes no more.
    pub fn close(&self) {
        let ready = {
            let mut state = self.state.lock();
            state.closed = true;
            state.ready.take()
        };
        drop(ready);
    }

    /// Makes the next instance of a component, unless there is one or the node is short of slots. Called in the future of
    /// a guest of the service, so that the work is the container's. An instance that cannot be made is made again, and
    /// told of, by the request that needs it.
    pub async fn make(service: &Arc<Service>, component: &Arc<Component>) {
        let spare = &service.container.requests.spare;
        // It would be given back for guests of this container, and not for the others of its pod.
        if service.container.memory.pod_limit().is_some() {
            return;
        }
        {
            let mut state = spare.state.lock();
            if state.closed || state.is_being_made || state.ready.is_some() {
                return;
            }
            state.is_being_made = true;
        }
        // Also if this future is dropped.
        let _made = Making(spare);
        let program = component.parts.program.now();
        let Some(slot) = service.runtime.slots.take_spare(program.fits_pool()) else { return };
        let guest = Arc::new(Guest::part(&service.container.guest));
        let trace = CurrentTrace::changing();
        let placed = (program.clone(), slot);
        let Ok((slot, instance)) = service.instance(component, &guest, placed, trace.clone()).await else { return };
        let ready = Box::new(Ready { guest, instance, slot, trace, program });
        let watch = {
            let mut state = spare.state.lock();
            if state.closed {
                drop(state);
                return drop(ready);
            }
            state.ready = Some(ready);
            !std::mem::replace(&mut state.is_watched, true)
        };
        if watch {
            let requests = service.container.requests.clone();
            service.http.runtime.spawn(async move { requests.spare.watch().await });
        }
    }

    /// Drops the instance when no request has come for a while.
    async fn watch(&self) {
        loop {
            self.used.store(false, Ordering::Relaxed);
            tokio::time::sleep(REST).await;
            if self.used.load(Ordering::Relaxed) {
                continue;
            }
            let mut state = self.state.lock();
            state.is_watched = false;
            let ready = state.ready.take();
            drop(state);
            return drop(ready);
        }
    }
}

impl std::fmt::Debug for Spare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spare").finish_non_exhaustive()
    }
}

impl Reclaim for Spare {
    fn reclaim(&self) -> bool {
        // Dropped without the lock.
        let ready = self.state.lock().ready.take();
        ready.is_some()
    }
}

/// An instance in the making.
struct Making<'a>(&'a Spare);

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.0.state.lock().is_being_made = false;
    }
}
