use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;
use std::time::Instant;

use tokio::runtime::Runtime;

use super::*;
use hearth_testing::make_fifo;

pub(crate) const CHUNK: usize = 64 << 10;
const LINGER: Duration = Duration::from_secs(20);

/// Runs a future as a guest's worker does: on a thread of its own, with no runtime entered.
pub(crate) fn run<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread, AtomicBool);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.1.store(true, Ordering::Release);
            self.0.unpark();
        }
    }
    let unpark = Arc::new(Unpark(std::thread::current(), AtomicBool::new(false)));
    let waker = unpark.clone().into();
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut future = std::pin::pin!(future);
    loop {
        if let Poll::Ready(done) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return done;
        }
        while !unpark.1.swap(false, Ordering::Acquire) {
            assert!(Instant::now() < deadline, "never woken");
            std::thread::park_timeout(Duration::from_secs(60));
        }
    }
}

pub(crate) fn is_pending<F: Future>(future: F) -> bool {
    std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())).is_pending()
}

struct Fixture {
    _dir: tempfile::TempDir,
    path: PathBuf,
    runtime: Runtime,
    output: Arc<Output>,
}

fn fixture(linger: Duration) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let path = make_fifo(dir.path(), "f");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let fd = fifo::open_output(&path).unwrap();
    let output = Output::pipe(fd, CHUNK, linger, runtime.handle().clone());
    Fixture { _dir: dir, path, runtime, output }
}

impl Fixture {
    fn stream(&self) -> Writer {
        Writer(self.output.clone())
    }

    /// Writes without waiting until the FIFO is full and something is pending.
    fn fill(&self) -> usize {
        let mut stream = self.stream();
        let mut written = 0;
        while stream.check_write().unwrap() > 0 {
            stream.write(Bytes::from(vec![b'x'; 10_000])).unwrap();
            written += 10_000;
        }
        written
    }

    fn is_open(&self) -> bool {
        // Nobody but the output has it open for reading, if anybody has.
        let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK;
        rustix::fs::open(&self.path, flags, rustix::fs::Mode::empty()).is_ok()
    }
}

/// A blocking reader of everything up to the end.
fn reader(path: &Path) -> std::thread::JoinHandle<Vec<u8>> {
    let mut file = std::fs::File::open(path).unwrap();
    std::thread::spawn(move || {
        let mut all = Vec::new();
        file.read_to_end(&mut all).unwrap();
        all
    })
}

/// Bytes whose order shows.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length as u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).take(length).collect()
}

#[test]
fn ten_megabytes_pass_unchanged_whatever_the_size_of_a_write() {
    for size in [4_096, 1, 5_000, CHUNK] {
        let fixture = fixture(LINGER);
        let all = pattern(if size == 1 { 200_000 } else { 10 << 20 });
        let reading = reader(&fixture.path);
        let mut stream = fixture.stream();
        for chunk in all.chunks(size) {
            run(stream.blocking_write_and_flush(Bytes::copy_from_slice(chunk))).unwrap();
        }
        fixture.output.close();
        assert!(reading.join().unwrap() == all, "changed at write size {size}");
    }
}

#[test]
fn wasi_03_streams_pass_it_unchanged_too() {
    let fixture = fixture(LINGER);
    let all = pattern(3 << 20);
    let reading = reader(&fixture.path);
    run(async {
        let mut stream = fixture.stream();
        tokio::io::AsyncWriteExt::write_all(&mut stream, &all).await.unwrap();
        tokio::io::AsyncWriteExt::flush(&mut stream).await.unwrap();
    });
    fixture.output.close();
    assert!(reading.join().unwrap() == all);
}

#[test]
fn a_full_fifo_gives_no_permit_and_leaves_the_guest_pending_until_it_is_read() {
    let fixture = fixture(LINGER);
    let written = fixture.fill();
    let (mut one, mut two) = (fixture.stream(), fixture.stream());
    assert_eq!(one.check_write().unwrap(), 0);
    assert!(
        is_pending(one.ready())
            && is_pending(two.ready())
            && is_pending(tokio::io::AsyncWriteExt::write_all(&mut one, b"x"))
    );
    let waiting = [one, two].map(|mut stream| std::thread::spawn(move || run(stream.ready())));
    let reading = reader(&fixture.path);
    for wait in waiting {
        wait.join().unwrap();
    }
    assert_eq!(fixture.stream().check_write().unwrap(), CHUNK);
    fixture.output.close();
    assert_eq!(reading.join().unwrap().len(), written);
}

#[test]
fn a_guest_that_ignores_its_permits_is_stopped_at_a_bound() {
    let fixture = fixture(LINGER);
    let mut stream = fixture.stream();
    let chunk = Bytes::from(vec![0; CHUNK]);
    let refused = (0..100).find_map(|n| stream.write(chunk.clone()).err().map(|error| (n, error)));
    let Some((n, StreamError::Trap(_))) = refused else { panic!("{refused:?}") };
    assert!(n <= PERMITS_MAX + 1, "{n}");
}

#[test]
fn close_ends_the_output_and_wakes_a_blocked_guest_though_its_stream_lives() {
    let fixture = fixture(LINGER);
    let reading = reader(&fixture.path);
    let mut stream = fixture.stream();
    run(stream.blocking_write_and_flush(Bytes::from_static(b"last words"))).unwrap();
    fixture.output.close();
    assert_eq!(reading.join().unwrap(), b"last words");
    assert!(matches!(stream.check_write(), Err(StreamError::Closed)));
    assert!(matches!(stream.write(Bytes::from_static(b"x")), Err(StreamError::Closed)));
    assert!(matches!(stream.flush(), Err(StreamError::Closed)));
    fixture.output.close();

    let fixture = self::fixture(Duration::from_millis(1));
    fixture.fill();
    let mut stream = fixture.stream();
    assert!(is_pending(stream.ready()));
    let blocked = std::thread::spawn(move || run(stream.ready()));
    fixture.output.close();
    blocked.join().unwrap();
    // Nobody reads: after the linger time it is closed all the same.
    let deadline = Instant::now() + Duration::from_secs(20);
    while fixture.is_open() {
        assert!(Instant::now() < deadline, "still open");
        std::thread::yield_now();
    }
}

#[test]
fn what_is_pending_at_the_end_reaches_a_reader_who_is_late() {
    let fixture = fixture(LINGER);
    let written = fixture.fill();
    fixture.output.note("hearth: trapped\n");
    fixture.output.close();
    let all = reader(&fixture.path).join().unwrap();
    assert_eq!(all.len(), written + 16);
    assert!(all.ends_with(b"xxhearth: trapped\n"));
}

#[test]
fn a_client_that_leaves_and_comes_back_misses_nothing() {
    let fixture = fixture(LINGER);
    let mut stream = fixture.stream();
    drop(fifo::open_input(&fixture.path).unwrap());
    run(stream.blocking_write_and_flush(Bytes::from_static(b"while away, "))).unwrap();
    std::fs::rename(&fixture.path, fixture.path.with_extension("moved")).unwrap();
    run(stream.blocking_write_and_flush(Bytes::from_static(b"without a name"))).unwrap();
    let reading = reader(&fixture.path.with_extension("moved"));
    fixture.output.close();
    assert_eq!(reading.join().unwrap(), b"while away, without a name");
}

#[test]
fn a_pipe_whose_reader_died_is_epipe_for_the_guest() {
    let fixture = fixture(LINGER);
    let (theirs, ours) = fifo::pipe_to_program().unwrap();
    let output = Output::pipe(ours, CHUNK, LINGER, fixture.runtime.handle().clone());
    let mut stream = Writer(output.clone());
    while stream.check_write().unwrap() > 0 {
        stream.write(Bytes::from(vec![0; CHUNK])).unwrap();
    }
    let mut second = stream.clone();
    assert!(is_pending(second.ready()));
    let blocked = std::thread::spawn(move || run(second.ready()));
    drop(theirs);
    blocked.join().unwrap();
    for _ in 0..2 {
        let Err(StreamError::LastOperationFailed(error)) = stream.check_write() else { panic!() };
        assert_eq!(error.downcast_ref::<io::Error>().unwrap().kind(), io::ErrorKind::BrokenPipe);
    }
    assert_eq!(
        run(tokio::io::AsyncWriteExt::write_all(&mut stream, b"x")).unwrap_err().kind(),
        io::ErrorKind::BrokenPipe
    );
    output.close();
    assert!(matches!(stream.check_write(), Err(StreamError::Closed)));
}

#[test]
fn discarded_output_is_always_taken() {
    let fixture = fixture(LINGER);
    let output = Output::discard(CHUNK, fixture.runtime.handle().clone());
    let mut stream = Writer(output.clone());
    for _ in 0..100 {
        assert_eq!(stream.check_write().unwrap(), CHUNK);
        stream.write(Bytes::from(vec![0; CHUNK])).unwrap();
    }
    assert_eq!(run(tokio::io::AsyncWriteExt::write(&mut stream, b"xyz")).unwrap(), 3);
    output.note("nobody hears it");
    output.close();
    assert!(matches!(stream.check_write(), Err(StreamError::Closed)));
}

#[test]
fn a_reader_that_comes_after_the_end_finds_everything() {
    let dir = tempfile::tempdir().unwrap();
    let path = make_fifo(dir.path(), "f");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let fd = fifo::open_output(&path).unwrap();
    let output = Output::fifo(fd, CHUNK, LINGER, LINGER, runtime.handle().clone());
    run(Writer(output.clone()).blocking_write_and_flush(Bytes::from_static(b"short life"))).unwrap();
    output.close();
    let mut text = String::new();
    std::fs::File::open(&path).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "short life");
}
