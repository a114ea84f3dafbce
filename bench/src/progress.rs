//! A line on stderr that shows the progress of a run, where stderr is a terminal.

use std::io::IsTerminal;

/// Shows the text in place of the last; nothing where stderr is no terminal.
pub fn progress(text: &str) {
    if std::io::stderr().is_terminal() {
        // Erases the rest of the line, which may be longer.
        eprint!("\r  {text}\x1b[K");
    }
}

/// Clears the line.
pub fn progress_done() {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
}
