//! The client's hold on a request: a client that goes away ends the guest of its request.

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::refused::Refused;
use crate::request_state::RequestState;
use crate::shared_instances::InUse;
use hearth_wasm::scheduler::Guest;

/// Held by the client's side while the response is under way. Dropped before the response's end, it ends the guest
/// if that guest has no other request.
pub struct RequestGuard {
    guest: Option<Arc<Guest>>,
    state: Arc<RequestState>,
    in_use: Option<Arc<InUse>>,
    armed: bool,
}

impl RequestGuard {
    /// Of a request that has `guest` for itself, if there is one, and a place in a shared instance, if there is one.
    pub fn new(guest: Option<Arc<Guest>>, state: Arc<RequestState>, in_use: Option<Arc<InUse>>) -> RequestGuard {
        RequestGuard { guest, state, in_use, armed: true }
    }

    /// The guest may end by itself.
    pub fn release(mut self) {
        self.armed = false;
    }

    /// The state that both sides of the request know.
    pub fn state(&self) -> &Arc<RequestState> {
        &self.state
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.state.end();
        if self.armed
            && let Some(guest) = &self.guest
        {
            guest.kill();
        }
        if let Some(in_use) = &self.in_use {
            in_use.changed();
        }
    }
}

/// A request that a guest has.
pub struct StartedRequest {
    /// The client's hold on the guest.
    pub guard: RequestGuard,
    /// The answer if the guest ends without a head.
    pub answer: oneshot::Receiver<Refused>,
}
