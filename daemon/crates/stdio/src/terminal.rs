//! A process's terminal: a pseudo-terminal between the client's FIFOs and the guest.
//!
//! ```text
//!   client ──FIFO──▶ typing ──▶ master │ lines, echo,   │ slave ──▶ guest's stdin
//!                      │               │ ^D, \n to \r\n │
//!   client ◀──FIFO── showing ◀─ master │  (the kernel)  │ slave ◀── guest's stdout and stderr
//!                      │
//!                      └─ ^C, ^\: the process is sent the signal
//! ```
//!
//! *Typing* and *showing* are tasks of the daemon. Neither blocks, and neither holds more than [`COPY_BYTES`]. If the
//! client does not read, the terminal fills up and the guest waits; if the guest does not read, the client's FIFO fills
//! up.
//!
//! The kernel sends the signals of ^C and ^\ to the terminal's foreground process group. Guests are not processes, so
//! there is no such group, and *typing* looks for these keys itself, according to the terminal's settings.
//!
//! The end of the client's input is not the end of the guest's input: as with the runc shim, that takes a ^D. At the end
//! of the process its remaining output is shown before the FIFOs are closed, if a reader takes it within
//! `stdio.linger_ms`.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::io::Errno;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::input::{Input, Reader};
use super::output::{Output, Writer};
use hearth_base::config;
use hearth_base::error::{Error, Result};
use hearth_os::pty::{self, Pty, SignalKeys, Size};

/// The most bytes that one direction holds: as many as the kernel keeps of a terminal's input.
const COPY_BYTES: usize = 4096;

/// signal(7).
const SIGINT: u32 = 2;
/// signal(7).
const SIGQUIT: u32 = 3;

/// The client's side of a terminal.
pub(super) struct Terminal {
    from_client: Arc<Input>,
    to_client: Arc<Output>,
    typed: Arc<Output>,
    shown: Arc<Input>,
    guest_stdin: Arc<Input>,
    /// For its size and its settings; none after the close.
    master: Mutex<Option<Arc<OwnedFd>>>,
    copying: Mutex<Copying>,
    linger: Duration,
    runtime: Handle,
}

/// The tasks; none before the start and after the end.
#[derive(Default)]
struct Copying {
    typing: Option<JoinHandle<()>>,
    showing: Option<JoinHandle<()>>,
}

/// The guest's side of a terminal.
pub(super) struct GuestSide {
    pub(super) stdin: Arc<Input>,
    pub(super) stdout: Arc<Output>,
}

impl Terminal {
    /// Makes a terminal between the client's streams and a guest.
    ///
    /// # Errors
    /// `ResourceExhausted` if the node gives no more terminals.
    pub(super) fn open(
        from_client: Arc<Input>,
        to_client: Arc<Output>,
        config: &config::Stdio,
        runtime: Handle,
    ) -> Result<(Terminal, GuestSide)> {
        let Pty { master, slave } = pty::open().map_err(failed)?;
        let linger = Duration::from_millis(config.linger_ms);
        let input = |fd: &OwnedFd| pty::duplicate(fd.as_fd()).map_err(failed);
        let chunk_bytes = config.chunk_bytes;
        let guest = GuestSide {
            stdin: Input::terminal(input(&slave)?, chunk_bytes, runtime.clone()),
            stdout: Output::pipe(slave, chunk_bytes, linger, runtime.clone()),
        };
        let terminal = Terminal {
            from_client,
            to_client,
            typed: Output::pipe(input(&master)?, chunk_bytes, Duration::ZERO, runtime.clone()),
            shown: Input::fifo(input(&master)?, chunk_bytes, runtime.clone()),
            guest_stdin: guest.stdin.clone(),
            master: Mutex::new(Some(Arc::new(master))),
            copying: Mutex::default(),
            linger,
            runtime,
        };
        Ok((terminal, guest))
    }

    /// Begins to copy. `signal` receives the signals that are typed.
    pub(super) fn start(&self, signal: impl Fn(u32) + Send + 'static) {
        self.from_client.start();
        let Some(master) = self.master.lock().clone() else { return };
        let guest_stdin = self.guest_stdin.clone();
        let signal = move |number| {
            // The terminal shows ^C before the process ends.
            guest_stdin.settle();
            signal(number);
        };
        let typing = typing(Reader(self.from_client.clone()), Writer(self.typed.clone()), master, signal);
        let showing = showing(Reader(self.shown.clone()), Writer(self.to_client.clone()));
        *self.copying.lock() =
            Copying { typing: Some(self.runtime.spawn(typing)), showing: Some(self.runtime.spawn(showing)) };
    }

    /// CloseIO: typing ends when the last client has closed its FIFO.
    pub(super) fn close_stdin(&self) {
        self.from_client.close_asked();
    }

    /// Sets its size. After the close it has no effect.
    ///
    /// # Errors
    /// `Internal` if the kernel refuses.
    pub(super) fn resize(&self, size: Size) -> Result<()> {
        match self.master.lock().as_ref() {
            Some(master) => pty::resize(master.as_fd(), size)
                .map_err(|e| Error::Internal(format!("cannot set the size of the terminal: {e}"))),
            None => Ok(()),
        }
    }

    /// After the guest's side is closed: shows the rest, closes all streams, and calls `then`.
    pub(super) fn finish(&self, then: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
        let showing = self.copying.lock().showing.take();
        let linger = self.linger;
        self.runtime.spawn(async move {
            if let Some(mut showing) = showing
                && tokio::time::timeout(linger, &mut showing).await.is_err()
            {
                showing.abort();
                tracing::debug!("a terminal's last output was dropped: it had no reader");
            }
            then();
        })
    }

    /// Closes all streams. Output that has not been shown is lost. A second call has no effect.
    pub(super) fn close(&self) {
        let Copying { typing, showing } = std::mem::take(&mut *self.copying.lock());
        for task in [typing, showing].into_iter().flatten() {
            task.abort();
        }
        self.from_client.close();
        self.typed.close();
        self.shown.close();
        self.to_client.close();
        self.master.lock().take();
    }
}

fn failed(error: Errno) -> Error {
    match error {
        Errno::NOSPC | Errno::MFILE | Errno::NFILE => Error::ResourceExhausted(format!(
            "no terminal is left on the node ({error}): raise the sysctl kernel.pty.max, or LimitNOFILE of hearthd"
        )),
        error => Error::Internal(format!("cannot make a terminal: {error}; is /dev/ptmx there for hearthd?")),
    }
}

/// Copies the client's bytes to the terminal.
async fn typing(mut client: Reader, mut terminal: Writer, master: Arc<OwnedFd>, signal: impl Fn(u32) + Send) {
    let mut buffer = vec![0; COPY_BYTES];
    let mut keyboard = Keyboard::default();
    while let Ok(length @ 1..) = client.read(&mut buffer).await {
        let bytes = &buffer[..length];
        let keys = pty::signal_keys(master.as_fd()).unwrap_or_default();
        // The terminal first: it shows ^C, and drops the bytes that were typed before it.
        if terminal.write_all(bytes).await.is_err() {
            return;
        }
        if let Some(number) = keyboard.signal(bytes, keys) {
            signal(number);
        }
    }
}

/// Copies the terminal's output to the client.
async fn showing(mut terminal: Reader, mut client: Writer) {
    let mut buffer = vec![0; COPY_BYTES];
    // An error means the end: the last descriptor of the other side is closed.
    while let Ok(length @ 1..) = terminal.read(&mut buffer).await {
        if client.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

/// Finds keys that send signals.
#[derive(Debug, Default)]
struct Keyboard {
    /// The last key was the quote.
    quoted: bool,
}

impl Keyboard {
    /// The first signal typed in `bytes`.
    fn signal(&mut self, bytes: &[u8], keys: SignalKeys) -> Option<u32> {
        let mut first = None;
        for byte in bytes.iter().copied().map(Some) {
            if std::mem::take(&mut self.quoted) {
                continue;
            }
            let signal = match byte {
                _ if byte == keys.interrupt => SIGINT,
                _ if byte == keys.quit => SIGQUIT,
                _ => {
                    self.quoted = byte == keys.quote;
                    continue;
                }
            };
            first.get_or_insert(signal);
        }
        first
    }
}

#[cfg(test)]
mod tests;
