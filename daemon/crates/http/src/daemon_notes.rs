//! Notes of the daemon in a service's stderr, at a bounded rate: clients decide how often a guest traps.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use hearth_stdio::Stdio;

/// DaemonNotes in one [`WINDOW`].
const NOTES_MAX: u32 = 10;

/// The time over which notes are counted.
const WINDOW: Duration = Duration::from_secs(1);

/// The longest note, in bytes.
const NOTE_BYTES_MAX: usize = 8 << 10;

/// The notes of one container.
#[derive(Debug, Default)]
pub struct DaemonNotes(Mutex<Counted>);

#[derive(Debug, Default)]
struct Counted {
    window: Option<Instant>,
    written: u32,
    left_out: u64,
}

impl DaemonNotes {
    /// Writes a note, unless there were too many in this window.
    pub fn write(&self, stdio: &Stdio, text: &str) {
        let Some(left_out) = self.admit(Instant::now()) else { return };
        if left_out > 0 {
            stdio.write_stderr(&format!("hearth: {left_out} messages like the next were left out\n"));
        }
        let end = text.floor_char_boundary(NOTE_BYTES_MAX);
        stdio.write_stderr(&format!("hearth: {}\n", &text[..end]));
    }

    /// How many notes were left out before this one; none if this one is left out, too.
    fn admit(&self, now: Instant) -> Option<u64> {
        let mut counted = self.0.lock();
        if counted.window.is_none_or(|began| now.duration_since(began) >= WINDOW) {
            counted.window = Some(now);
            counted.written = 0;
        }
        if counted.written >= NOTES_MAX {
            counted.left_out += 1;
            return None;
        }
        counted.written += 1;
        Some(std::mem::take(&mut counted.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_in_a_window_and_the_rest_is_counted() {
        let (notes, now) = (DaemonNotes::default(), Instant::now());
        for _ in 0..NOTES_MAX {
            assert_eq!(notes.admit(now), Some(0));
        }
        assert_eq!((notes.admit(now), notes.admit(now)), (None, None));
        assert_eq!(notes.admit(now + WINDOW), Some(2));
        assert_eq!(notes.admit(now + WINDOW), Some(0));
    }
}
