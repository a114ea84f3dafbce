//! Output that no client has read yet when its process ends: waiting for a reader.

use std::time::Duration;

use hearth_os::fifo::Unread;

/// How long a client gets to read the rest before the end is reported, and how often that is checked. A client of
/// containerd closes its side unread if it hears of the end before it has noticed that the FIFO is open.
const LAST_READ: Duration = Duration::from_millis(100);
const LAST_READ_CHECK: Duration = Duration::from_millis(1);

/// Waits until the rest has been read.
pub async fn last_read(kept: Vec<Unread>) {
    let read = async {
        while !kept.iter().all(Unread::is_over) {
            tokio::time::sleep(LAST_READ_CHECK).await;
        }
    };
    // A slower reader still finds all of it in the FIFO.
    let _ = tokio::time::timeout(LAST_READ, read).await;
}

/// How often a FIFO is checked for a reader: poll(2) does not report one.
const READER_CHECK: Duration = Duration::from_millis(20);

/// Keeps a FIFO's content until a reader has come.
pub async fn wait_for_reader(kept: Unread, most: Duration) {
    let come = async {
        while !kept.is_safe() {
            tokio::time::sleep(READER_CHECK).await;
        }
    };
    if tokio::time::timeout(most, come).await.is_err() {
        tracing::debug!("a task's output was dropped: no reader came");
    }
}
