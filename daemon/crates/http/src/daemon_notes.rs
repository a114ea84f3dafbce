//! Notes of the daemon in a service's stderr, at a bounded rate: clients decide how often a guest traps.

use std::time::Instant;

use parking_lot::Mutex;

use hearth_base::rate::{Admission, Rate};
use hearth_base::text::shown_lines;
use hearth_stdio::Stdio;

/// Notes in one second.
const NOTES_MAX: u32 = 10;

/// The longest note, in bytes.
const NOTE_BYTES_MAX: usize = 8 << 10;

/// The notes of one container.
#[derive(Debug, Default)]
pub struct DaemonNotes(Mutex<Rate>);

impl DaemonNotes {
    /// Writes a note, unless there were too many in this second.
    pub fn write(&self, stdio: &Stdio, text: &str) {
        // In a statement of its own: the lock is released before anything is written.
        let admission = self.0.lock().admit(NOTES_MAX, Instant::now());
        let Admission::Admitted { left_out } = admission else { return };
        if left_out > 0 {
            stdio.write_stderr(&format!("hearth: {left_out} messages like the next were left out\n"));
        }
        stdio.write_stderr(&format!("hearth: {}\n", shown_lines(text, NOTE_BYTES_MAX)));
    }
}
