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
//! *Typing* and *showing* are tasks of the daemon's. Neither blocks, and neither holds more than
//! [`COPY_BYTES`]: where the client does not read, the terminal fills up and the guest waits; where the
//! guest does not read, the client's FIFO fills up.
//!
//! The kernel sends the signals of ^C and ^\ to the terminal's foreground process group. Guests are no
//! processes, so there is none, and *typing* looks for these keys itself, as the terminal is set up.
//!
//! The end of the client's input is not the end of the guest's: as with the runc shim, that takes a ^D.
//! At the end of the process, what it has written is shown before the FIFOs are closed, if a reader takes
//! it within `stdio.linger_ms`.

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

/// What one direction holds at most, in bytes: as much as the kernel keeps of a terminal's input.
const COPY_BYTES: usize = 4096;

/// signal(7).
const SIGINT: u32 = 2;
/// signal(7).
const SIGQUIT: u32 = 3;

/// A terminal: what is on the client's side of it.
pub(super) struct Terminal {
    from_client: Arc<Input>,
    to_client: Arc<Output>,
    typed: Arc<Output>,
    shown: Arc<Input>,
    guest_stdin: Arc<Input>,
    /// For its size and its settings; none once it is closed.
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

/// What is on the guest's side of it.
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

    /// Begins to copy; `signal` is told the signals that are typed.
    pub(super) fn start(&self, signal: impl Fn(u32) + Send + 'static) {
        self.from_client.start();
        let Some(master) = self.master.lock().clone() else { return };
        let guest_stdin = self.guest_stdin.clone();
        let signal = move |number| {
            // So that ^C is shown before all is over.
            guest_stdin.settle();
            signal(number);
        };
        let typing = typing(Reader(self.from_client.clone()), Writer(self.typed.clone()), master, signal);
        let showing = showing(Reader(self.shown.clone()), Writer(self.to_client.clone()));
        *self.copying.lock() =
            Copying { typing: Some(self.runtime.spawn(typing)), showing: Some(self.runtime.spawn(showing)) };
    }

    /// CloseIO: no more is typed once the last client has left.
    pub(super) fn close_stdin(&self) {
        self.from_client.close_asked();
    }

    /// Sets its size; without effect once it is closed.
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

    /// Once the guest's side is closed: shows what is left, closes everything, and calls `then`.
    pub(super) fn finish(&self, then: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
        let showing = self.copying.lock().showing.take();
        let linger = self.linger;
        self.runtime.spawn(async move {
            if let Some(mut showing) = showing
                && tokio::time::timeout(linger, &mut showing).await.is_err()
            {
                showing.abort();
                tracing::debug!("a terminal's last output was dropped, since nobody read it");
            }
            then();
        })
    }

    /// Closes everything. What has not been shown is lost. Doing it again does nothing.
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

/// What the client types, to the terminal.
async fn typing(mut client: Reader, mut terminal: Writer, master: Arc<OwnedFd>, signal: impl Fn(u32) + Send) {
    let mut buffer = vec![0; COPY_BYTES];
    let mut keyboard = Keyboard::default();
    while let Ok(length @ 1..) = client.read(&mut buffer).await {
        let bytes = &buffer[..length];
        let keys = pty::signal_keys(master.as_fd()).unwrap_or_default();
        // The terminal first: it shows ^C, and drops what was typed before it.
        if terminal.write_all(bytes).await.is_err() {
            return;
        }
        if let Some(number) = keyboard.signal(bytes, keys) {
            signal(number);
        }
    }
}

/// What the terminal shows, to the client.
async fn showing(mut terminal: Reader, mut client: Writer) {
    let mut buffer = vec![0; COPY_BYTES];
    // An error is the end: the last descriptor of the other side is closed.
    while let Ok(length @ 1..) = terminal.read(&mut buffer).await {
        if client.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

/// Looks for keys that send signals. Pure.
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
mod tests {
    use std::fs::{File, OpenOptions};
    use std::io::{Read, Write};
    use std::path::Path;
    use std::sync::mpsc;

    use bytes::Bytes;
    use tokio::sync::oneshot;
    use wasmtime_wasi::cli::{IsTerminal, StdinStream, StdoutStream};
    use wasmtime_wasi::p2::StreamError;

    use super::*;
    use crate::Stdio;
    use crate::StdioPaths;
    use hearth_testing::make_fifo;

    const DEADLINE: Duration = Duration::from_secs(30);

    const KEYS: SignalKeys = SignalKeys { interrupt: Some(3), quit: Some(28), quote: Some(22) };

    #[test]
    fn the_first_signal_key_counts_unless_it_is_quoted_or_switched_off() {
        let cases: [(&[u8], SignalKeys, Option<u32>); 8] = [
            (b"abc\n", KEYS, None),
            (b"ab\x03c", KEYS, Some(SIGINT)),
            (b"\x1c\x03", KEYS, Some(SIGQUIT)),
            (b"\x16\x03", KEYS, None),
            (b"\x16\x16\x03", KEYS, Some(SIGINT)),
            (b"\x03", SignalKeys::default(), None),
            (b"\x16\x03", SignalKeys { quote: None, ..KEYS }, Some(SIGINT)),
            (b"\x1c", SignalKeys { quit: None, ..KEYS }, None),
        ];
        for (bytes, keys, want) in cases {
            assert_eq!(Keyboard::default().signal(bytes, keys), want, "{bytes:?} {keys:?}");
        }
        let mut keyboard = Keyboard::default();
        assert_eq!(keyboard.signal(b"x\x16", KEYS), None);
        assert_eq!(keyboard.signal(b"\x03", KEYS), None, "quoted by the chunk before");
        assert_eq!(keyboard.signal(b"\x03", KEYS), Some(SIGINT));
    }

    /// A process's stdio with a terminal, and its client.
    struct Fixture {
        _dir: tempfile::TempDir,
        stdio: Arc<Stdio>,
        keyboard: File,
        screen: Option<File>,
        signals: mpsc::Receiver<u32>,
    }

    async fn fixture(config: &config::Stdio) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let [stdin, stdout] = ["in", "out"].map(|name| make_fifo(dir.path(), name));
        let text = |path: &Path| path.to_str().unwrap().to_string();
        let paths = StdioPaths {
            stdin: text(&stdin),
            stdout: text(&stdout),
            // Ignored, though nothing is there.
            stderr: "/no/such/fifo".into(),
            terminal: true,
        };
        let stdio = Arc::new(Stdio::open("ns", "task", &paths, config).await.unwrap());
        let keyboard = OpenOptions::new().write(true).open(stdin).unwrap();
        let screen = Some(File::open(stdout).unwrap());
        stdio.resize(Size { width: 80, height: 24 }).unwrap();
        let (sender, signals) = mpsc::channel();
        stdio.start(|| move |signal| sender.send(signal).unwrap());
        Fixture { _dir: dir, stdio, keyboard, screen, signals }
    }

    impl Fixture {
        /// What the guest reads next.
        async fn reads(&self) -> Result<String, StreamError> {
            let bytes = self.stdio.stdin().p2_stream().blocking_read(4_096).await?;
            Ok(String::from_utf8(bytes.to_vec()).unwrap())
        }

        async fn says(&self, text: &str) {
            let mut stream = self.stdio.stdout().p2_stream();
            stream.blocking_write_and_flush(Bytes::copy_from_slice(text.as_bytes())).await.unwrap();
        }

        /// All that was shown, once the process has ended.
        async fn finish(&mut self) -> String {
            let mut screen = self.screen.take().unwrap();
            let read = tokio::task::spawn_blocking(move || {
                let mut text = String::new();
                screen.read_to_string(&mut text).unwrap();
                text
            });
            self.ended().await;
            read.await.unwrap()
        }

        /// Waits until the process's end may be told.
        async fn ended(&self) {
            let (tell, told) = oneshot::channel();
            self.stdio.finish(move || tell.send(()).unwrap());
            told.await.unwrap();
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn lines_are_typed_echoed_and_cooked() {
        let mut fixture = fixture(&config::Stdio::default()).await;
        assert!(fixture.stdio.stdin().is_terminal() && fixture.stdio.stderr().is_terminal());
        fixture.keyboard.write_all(b"helo\x7flo\r").unwrap();
        assert_eq!(fixture.reads().await.unwrap(), "hello\n", "backspace, and return is the end of a line");
        fixture.says("1\n2\n").await;
        fixture.stdio.write_stderr("note\n");
        assert_eq!(fixture.finish().await, "helo\x08 \x08lo\r\n1\r\n2\r\nnote\r\n");
        fixture.stdio.resize(Size::default()).unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_end_that_is_typed_is_not_the_last_word() {
        let mut fixture = fixture(&config::Stdio::default()).await;
        fixture.keyboard.write_all(b"a\x04\x04").unwrap();
        assert_eq!(fixture.reads().await.unwrap(), "a");
        assert!(matches!(fixture.reads().await, Err(StreamError::Closed)));
        fixture.keyboard.write_all(b"b\n").unwrap();
        assert_eq!(fixture.reads().await.unwrap(), "b\n");
        fixture.ended().await;
        assert!(matches!(fixture.reads().await, Err(StreamError::Closed)));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn keys_are_signals_also_while_the_guest_reads_nothing() {
        let mut fixture = fixture(&config::Stdio::default()).await;
        for (key, signal) in [(b"\x03", SIGINT), (b"\x1c", SIGQUIT)] {
            fixture.keyboard.write_all(key).unwrap();
            assert_eq!(fixture.signals.recv_timeout(DEADLINE), Ok(signal));
        }
        fixture.ended().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn much_output_is_shown_to_its_last_byte() {
        let mut fixture = fixture(&config::Stdio::default()).await;
        let mut screen = fixture.screen.take().unwrap();
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            screen.read_to_end(&mut all).unwrap();
            all
        });
        let line = "x".repeat(999) + "\n";
        for _ in 0..1_000 {
            fixture.says(&line).await;
        }
        fixture.ended().await;
        assert_eq!(reader.join().unwrap().len(), 1_001_000, "each line has one character more");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_client_that_does_not_read_holds_up_its_guest_and_the_end_for_so_long_only() {
        let fixture = fixture(&config::Stdio { linger_ms: 50, ..Default::default() }).await;
        let mut stdout = fixture.stdio.stdout().p2_stream();
        let line = Bytes::from("y".repeat(4_095) + "\n");
        let flood = async { while stdout.blocking_write_and_flush(line.clone()).await.is_ok() {} };
        assert!(tokio::time::timeout(Duration::from_millis(300), flood).await.is_err(), "it has to wait");
        tokio::time::timeout(DEADLINE, fixture.ended()).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_client_may_leave_and_come_back() {
        let mut fixture = fixture(&config::Stdio::default()).await;
        fixture.keyboard.write_all(b"one\n").unwrap();
        assert_eq!(fixture.reads().await.unwrap(), "one\n");
        let path = fixture._dir.path().join("in");
        // The new one opens after the old one has gone.
        fixture.keyboard = OpenOptions::new().read(true).write(true).open("/dev/null").unwrap();
        fixture.screen = None;
        fixture.says("unseen\n").await;
        fixture.keyboard = OpenOptions::new().write(true).open(path).unwrap();
        fixture.screen = Some(File::open(fixture._dir.path().join("out")).unwrap());
        fixture.keyboard.write_all(b"two\n").unwrap();
        assert_eq!(fixture.reads().await.unwrap(), "two\n");
        assert!(fixture.finish().await.ends_with("unseen\r\ntwo\r\n"));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn one_that_never_started_is_closed_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let out = make_fifo(dir.path(), "out");
        let paths = StdioPaths { stdout: out.to_str().unwrap().into(), terminal: true, ..StdioPaths::default() };
        let stdio = Stdio::open("ns", "task", &paths, &config::Stdio::default()).await.unwrap();
        let mut screen = File::open(&out).unwrap();
        drop(stdio);
        assert_eq!(screen.read(&mut [0; 9]).unwrap(), 0);
    }
}
