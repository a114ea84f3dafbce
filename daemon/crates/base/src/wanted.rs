//! The program that a bundle asks for, before it is looked up.

/// What a bundle asks for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Wanted {
    /// `process.args[0]`, as the user wrote it.
    pub program: String,
    /// The value of `PATH` in the environment, if it is set.
    pub path: Option<String>,
    /// `process.cwd`, absolute.
    pub cwd: String,
}
