//! The access of a component beyond its files: servers that it may reach, and the state of host interfaces.
//!
//! Create decides it, once for each component of a container. All guests of the component share it.

use std::any::{Any, TypeId};
use std::fmt;
use std::sync::Arc;

use hearth_base::destinations::Destinations;

/// The state of a host interface for one component.
pub trait InterfaceState: Any + Send + Sync {
    /// The container has ended: files are closed and threads end, so that its root can be unmounted.
    fn close(&self) {}
}

/// The servers and host interfaces that a component may use. A copy is cheap.
#[derive(Clone, Default)]
pub struct Access {
    /// Servers that it may reach, of those that its pod may.
    pub destinations: Destinations,
    /// The states of interfaces, one of each type.
    states: Arc<Vec<(TypeId, Arc<dyn InterfaceState>)>>,
}

impl Access {
    /// Access to these servers only, and to no interface.
    pub fn to(destinations: Destinations) -> Access {
        Access { destinations, states: Arc::default() }
    }

    /// The same with one more state, which host functions find by its type. Replaces a state of the same type.
    #[must_use]
    pub fn with<T: InterfaceState>(mut self, state: T) -> Access {
        let states = Arc::make_mut(&mut self.states);
        states.retain(|(of, _)| *of != TypeId::of::<T>());
        states.push((TypeId::of::<T>(), Arc::new(state)));
        self
    }

    /// The state of this type; `None`: the container does not have the interface.
    pub fn get<T: InterfaceState>(&self) -> Option<Arc<T>> {
        let (_, state) = self.states.iter().find(|(of, _)| *of == TypeId::of::<T>())?;
        let state: Arc<dyn Any + Send + Sync> = state.clone();
        state.downcast().ok()
    }

    /// Whether there is a state of this type.
    pub fn has<T: InterfaceState>(&self) -> bool {
        self.states.iter().any(|(of, _)| *of == TypeId::of::<T>())
    }

    /// The container has ended.
    pub fn close(&self) {
        self.states.iter().for_each(|(_, state)| state.close());
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").field("destinations", &self.destinations).field("states", &self.states.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    struct Number(u8);
    impl InterfaceState for Number {}

    #[derive(Default)]
    struct Closed(AtomicBool);
    impl InterfaceState for Closed {
        fn close(&self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_state_is_found_by_its_type() {
        let access = Access::default().with(Number(1)).with(Number(2));
        let number = |access: &Access| access.get::<Number>().map(|number| number.0);
        assert_eq!(number(&access), Some(2));
        assert!(access.get::<Closed>().is_none() && !access.has::<Closed>() && access.has::<Number>());
        assert_eq!(number(&access.clone().with(Number(3))), Some(3));
        assert_eq!(number(&access), Some(2), "a copy is changed alone");
    }

    #[test]
    fn the_end_of_the_container_is_told_to_each_state() {
        let access = Access::default().with(Number(1)).with(Closed::default());
        access.close();
        assert!(access.get::<Closed>().unwrap().0.load(Ordering::Relaxed));
    }
}
