use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

use tokio::runtime::Runtime;

use super::*;
use crate::output::tests::{CHUNK, is_pending, pattern, run};
use hearth_testing::make_fifo;

struct Fixture {
    _dir: tempfile::TempDir,
    path: PathBuf,
    _runtime: Runtime,
    input: Arc<Input>,
}

/// An input as Create leaves it; `before` runs the client's acts before that.
fn fixture_after<T>(before: impl FnOnce(&PathBuf) -> T) -> (Fixture, T) {
    let dir = tempfile::tempdir().unwrap();
    let path = make_fifo(dir.path(), "f");
    let result = before(&path);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let input = Input::fifo(fifo::open_input(&path).unwrap(), CHUNK, runtime.handle().clone());
    (Fixture { _dir: dir, path, _runtime: runtime, input }, result)
}

fn fixture() -> Fixture {
    fixture_after(|_| ()).0
}

impl Fixture {
    fn stream(&self) -> Reader {
        Reader(self.input.clone())
    }

    /// A client, whose open waits for a reader as clients' do.
    fn client(&self) -> File {
        OpenOptions::new().write(true).open(&self.path).unwrap()
    }

    /// The bytes that a guest reads up to the end.
    fn rest(&self) -> Vec<u8> {
        let mut stream = self.stream();
        run(async {
            let mut all = Vec::new();
            loop {
                match stream.blocking_read(4_096).await {
                    Ok(bytes) => all.extend_from_slice(&bytes),
                    Err(StreamError::Closed) => return all,
                    Err(error) => panic!("{error}"),
                }
            }
        })
    }

    fn waits(&self) -> bool {
        let mut stream = self.stream();
        stream.read(100).unwrap().is_empty() && is_pending(stream.ready())
    }
}

#[test]
fn without_a_fifo_the_end_is_at_once() {
    let fixture = fixture();
    let mut stream = Reader(Input::none(fixture._runtime.handle().clone()));
    run(stream.ready());
    assert!(matches!(stream.read(1), Err(StreamError::Closed)));
    assert_eq!(run(tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut Vec::new())).unwrap(), 0);
}

#[test]
fn close_io_ends_the_input_after_what_was_written() {
    let fixture = fixture();
    let mut client = fixture.client();
    fixture.input.start();
    client.write_all(b"some input").unwrap();
    fixture.input.close_asked();
    drop(client);
    assert_eq!(fixture.rest(), b"some input");
}

#[test]
fn a_guest_that_waits_is_woken_by_data_and_by_close_io() {
    let fixture = fixture();
    let client = fixture.client();
    fixture.input.start();
    assert!(fixture.waits());
    std::thread::scope(|scope| {
        let guest = scope.spawn(|| fixture.rest());
        (&client).write_all(b"one").unwrap();
        drop(client);
        fixture.input.close_asked();
        assert_eq!(guest.join().unwrap(), b"one");
    });
}

#[test]
fn close_io_right_after_start_does_not_cut_off_a_client_that_still_writes() {
    let fixture = fixture();
    let mut client = fixture.client();
    fixture.input.start();
    fixture.input.close_asked();
    let all = pattern(10 << 20);
    std::thread::scope(|scope| {
        let guest = scope.spawn(|| fixture.rest());
        client.write_all(&all).unwrap();
        drop(client);
        assert!(guest.join().unwrap() == all);
    });
}

#[test]
fn a_client_whose_input_was_over_before_start_needs_no_close_io() {
    // `ctr run </dev/null`: opened, found nothing to say and closed, all before Create.
    let (fixture, ()) = fixture_after(|path| {
        let reader = fifo::open_input(path).unwrap();
        drop(OpenOptions::new().write(true).open(path).unwrap());
        drop(reader);
    });
    fixture.input.start();
    assert_eq!(fixture.rest(), b"");
    // `echo hello | ctr run`: written and closed between Create and Start.
    let fixture = self::fixture();
    fixture.client().write_all(b"hello").unwrap();
    fixture.input.start();
    assert_eq!(fixture.rest(), b"hello");
}

#[test]
fn a_client_that_opened_before_create_is_there_at_start() {
    let (fixture, opening) = fixture_after(|path| {
        let path = path.clone();
        std::thread::spawn(move || OpenOptions::new().write(true).open(path).unwrap())
    });
    let client = opening.join().unwrap();
    fixture.input.start();
    drop(client);
    assert!(fixture.waits(), "the client's leaving is not the end");
}

#[test]
fn a_client_that_restarts_does_not_end_the_input() {
    let fixture = fixture();
    let client = fixture.client();
    fixture.input.start();
    (&client).write_all(b"before, ").unwrap();
    drop(client);
    assert_eq!(fixture.stream().read(100).unwrap(), "before, ");
    assert!(fixture.waits());
    let again = fixture.client();
    (&again).write_all(b"after").unwrap();
    fixture.input.close_asked();
    drop(again);
    assert_eq!(fixture.rest(), b"after");
}

#[test]
fn close_io_before_start_counts() {
    let fixture = fixture();
    let client = fixture.client();
    fixture.input.close_asked();
    fixture.input.start();
    assert!(fixture.waits(), "the client still has it open");
    drop(client);
    assert_eq!(fixture.rest(), b"");
}

#[test]
fn the_end_is_final_even_if_somebody_opens_the_fifo_again() {
    let fixture = fixture();
    let client = fixture.client();
    fixture.input.start();
    assert!(fixture.waits());
    let mut stream = fixture.stream();
    let waiting = std::thread::spawn(move || run(stream.ready()));
    fixture.input.close_asked();
    drop(client);
    waiting.join().unwrap();
    let late = OpenOptions::new().read(true).write(true).open(&fixture.path).unwrap();
    assert_eq!(fixture.rest(), b"");
    drop(late);
}

#[test]
fn ten_megabytes_pass_unchanged() {
    let fixture = fixture();
    let all = pattern(10 << 20);
    let mut client = fixture.client();
    fixture.input.start();
    std::thread::scope(|scope| {
        let guest = scope.spawn(|| fixture.rest());
        client.write_all(&all).unwrap();
        fixture.input.close_asked();
        drop(client);
        assert!(guest.join().unwrap() == all);
    });
}

#[test]
fn wasi_03_streams_read_the_same() {
    let fixture = fixture();
    let all = pattern(3 << 20);
    let mut client = fixture.client();
    fixture.input.start();
    std::thread::scope(|scope| {
        let guest = scope.spawn(|| {
            run(async {
                let mut read = Vec::new();
                tokio::io::AsyncReadExt::read_to_end(&mut fixture.stream(), &mut read).await.unwrap();
                read
            })
        });
        client.write_all(&all).unwrap();
        drop(client);
        fixture.input.close_asked();
        assert!(guest.join().unwrap() == all);
    });
}

#[test]
fn close_wakes_a_guest_and_lets_go_of_the_fifo_though_its_stream_lives() {
    let fixture = fixture();
    let client = fixture.client();
    fixture.input.start();
    assert!(fixture.waits());
    std::thread::scope(|scope| {
        let guest = scope.spawn(|| fixture.rest());
        fixture.input.close();
        assert_eq!(guest.join().unwrap(), b"");
    });
    let refused = (&client).write_all(b"x").unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::BrokenPipe);
    std::fs::remove_file(&fixture.path).unwrap();
    fixture.input.close_asked();
    fixture.input.start();
}

#[test]
fn streams_share_one_position_and_reads_are_bounded() {
    let fixture = fixture();
    let mut client = fixture.client();
    fixture.input.start();
    client.write_all(b"the quick brown fox").unwrap();
    let (mut one, mut two) = (fixture.stream(), fixture.stream());
    assert_eq!(one.read(0).unwrap(), "");
    assert_eq!(one.read(4).unwrap(), "the ");
    assert_eq!(two.read(6).unwrap(), "quick ");
    assert_eq!(one.read(usize::MAX).unwrap(), "brown fox");
    assert_eq!(two.skip(10).unwrap(), 0);
}
