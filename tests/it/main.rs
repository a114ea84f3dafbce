//! The stories.
mod run;
