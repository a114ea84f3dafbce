//! The module store.
pub mod identify;
pub mod lookup;
pub mod origin;
pub mod places;
pub mod directory;
pub mod store;
pub mod known;
pub mod child;
pub mod compile;

#[cfg(test)]
pub(crate) mod samples;
