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
    let stdio = Arc::new(Stdio::open(&"ns".into(), "task", &paths, config).await.unwrap());
    let keyboard = OpenOptions::new().write(true).open(stdin).unwrap();
    let screen = Some(File::open(stdout).unwrap());
    stdio.resize(Size { width: 80, height: 24 }).unwrap();
    let (sender, signals) = mpsc::channel();
    stdio.start(|| move |signal| sender.send(signal).unwrap());
    Fixture { _dir: dir, stdio, keyboard, screen, signals }
}

impl Fixture {
    /// The text that the guest reads next.
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
    let stdio = Stdio::open(&"ns".into(), "task", &paths, &config::Stdio::default()).await.unwrap();
    let mut screen = File::open(&out).unwrap();
    drop(stdio);
    assert_eq!(screen.read(&mut [0; 9]).unwrap(), 0);
}
