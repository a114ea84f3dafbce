//! The engine, the module store and the guests.
