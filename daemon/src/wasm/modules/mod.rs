//! The module store.
pub mod identify;
pub mod lookup;
pub mod origin;
pub mod places;
pub mod directory;
pub mod store;
pub mod known;
