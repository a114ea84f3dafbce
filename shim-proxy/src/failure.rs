//! The shim's error message: one line, which users read in the output of `ctr`, CRI or containerd.

use std::fmt;

/// The runtime's name in containerd: users select it, and it begins every message.
pub const RUNTIME_NAME: &str = "io.containerd.hearth.v1";

/// One line with the fault and its remedy.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure(String);

impl Failure {
    /// Takes any text. Line breaks and other control characters become spaces: containerd logs the output as one field,
    /// and text from other programs must not forge further lines.
    pub fn new(text: impl Into<String>) -> Self {
        let text: String = text.into();
        let line = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        Self(line)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The result of everything that can fail in front of the user.
pub type Result<T> = std::result::Result<T, Failure>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line() {
        let failure = Failure::new("first\nsecond\r\u{1b}[31mthird\n");
        assert_eq!(failure.to_string(), "first second  [31mthird");
    }
}
