//! First phase of a Create: the id is taken, so that of two Creates of one id one is refused, and there is room in
//! the event queue for all events of the task's first process.

use std::sync::Arc;

use crate::task::map::{self, TaskMap};
use hearth_base::error::Result;
use hearth_base::faults::{self, Point};
use hearth_containerd::events;

use super::Creator;

/// The id and the room for events. Dropped: both are free again, the id last.
pub(super) struct Reserved {
    pub(super) events: events::Reservation,
    pub(super) id: map::Reservation,
}

impl Reserved {
    /// Takes `id` in `map`.
    ///
    /// # Errors
    /// `AlreadyExists` if the id is taken; `ResourceExhausted` if there are too many tasks or events.
    pub(super) fn new(creator: &Creator, map: &Arc<TaskMap>, id: &str) -> Result<Reserved> {
        let id = map.reserve(id)?;
        let events = creator.peer.events.reserve()?;
        faults::at(Point::Reserved);
        Ok(Reserved { events, id })
    }
}
