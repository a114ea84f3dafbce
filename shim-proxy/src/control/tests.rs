//! Tests of [`super`].

use std::os::unix::net::UnixListener;
use std::sync::mpsc;
use std::thread;

use super::*;

const SHORT: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(30);

fn question() -> TaskSocketRequest {
    TaskSocketRequest { namespace: "default".into(), ..Default::default() }
}

fn ask(socket: &Path, timeout: Duration) -> Result<TaskSocketReply, ControlError> {
    task_socket(socket, question(), timeout)
}

/// Serves one connection with `serve` while the client asks.
fn ask_served_by(
    timeout: Duration,
    serve: impl FnOnce(UnixStream) + Send + 'static,
) -> Result<TaskSocketReply, ControlError> {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let server = thread::spawn(move || serve(listener.accept().unwrap().0));
    let result = ask(&socket, timeout);
    server.join().unwrap();
    result
}

fn reply(body: Option<reply::Body>) -> Reply {
    Reply { body }
}

#[test]
fn the_request_arrives_and_the_reply_comes_back() {
    let expected = TaskSocketReply { address: "unix:///run/hearth/t/1".into(), version: 3 };
    let (tell, told) = mpsc::channel();
    let answer = expected.clone();
    let result = ask_served_by(LONG, move |mut stream| {
        tell.send(read_frame::<Request>(&mut stream).unwrap()).unwrap();
        let body = reply::Body::TaskSocket(answer);
        write_frame(&mut stream, &reply(Some(body))).unwrap();
    });
    assert_eq!(result.unwrap(), expected);
    assert_eq!(told.recv().unwrap().body, Some(request::Body::TaskSocket(question())));
}

#[test]
fn a_reply_written_before_the_request_was_read_still_counts() {
    let (stream, mut daemon) = UnixStream::pair().unwrap();
    let expected = reply(Some(reply::Body::Error("too many requests".into())));
    write_frame(&mut daemon, &expected).unwrap();
    drop(daemon);
    let deadline = Instant::now() + LONG;
    let stream = Deadlined { stream, deadline };
    assert_eq!(exchange(stream, question()).unwrap(), expected);
}

#[test]
fn a_refusal_is_the_daemons_own_words() {
    let result = ask_served_by(LONG, |mut stream| {
        read_frame::<Request>(&mut stream).unwrap();
        let body = reply::Body::Error("too many requests: try again".into());
        write_frame(&mut stream, &reply(Some(body))).unwrap();
    });
    assert_eq!(result.unwrap_err().to_string(), "hearthd: too many requests: try again");
}

#[test]
fn no_socket_and_no_listener_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control.sock");
    let missing = ask(&socket, LONG).unwrap_err();
    assert!(matches!(missing.kind, ErrorKind::Missing), "{missing:?}");
    assert!(missing.to_string().contains("systemctl start hearthd"));
    assert!(missing.to_string().contains(socket.to_str().unwrap()));
    drop(UnixListener::bind(&socket).unwrap());
    let refused = ask(&socket, LONG).unwrap_err();
    assert!(matches!(refused.kind, ErrorKind::Refused), "{refused:?}");
    assert!(refused.to_string().contains("nothing listens on"));
}

#[test]
fn a_silent_daemon_is_given_up() {
    let (finished, wait) = mpsc::channel::<()>();
    let asked = Instant::now();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        // One byte of the length, then nothing: progress must not extend the deadline.
        stream.write_all(&[0]).unwrap();
        wait.recv().unwrap_err();
    });
    let failure = ask(&socket, SHORT).unwrap_err();
    assert!(matches!(failure.kind, ErrorKind::TimedOut(SHORT)));
    assert!(failure.to_string().contains("within 50ms"), "{failure}");
    assert!(asked.elapsed() >= SHORT);
    assert!(asked.elapsed() < CONTROL_TIMEOUT);
    drop(finished);
    server.join().unwrap();
}

#[test]
fn a_daemon_whose_queue_is_full_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control.sock");
    let listener = net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    net::bind(&listener, &SocketAddrUnix::new(&socket).unwrap()).unwrap();
    net::listen(&listener, 0).unwrap();
    let _queued = UnixStream::connect(&socket).unwrap();
    let (tell, told) = mpsc::channel();
    thread::spawn(move || tell.send(ask(&socket, SHORT)));
    let failure = told.recv_timeout(LONG).expect("still waits").unwrap_err();
    assert!(matches!(failure.kind, ErrorKind::TimedOut(SHORT)));
}

#[test]
fn an_invalid_reply_is_named() {
    let closed = ask_served_by(LONG, |mut stream| {
        read_frame::<Request>(&mut stream).unwrap();
    });
    assert!(matches!(closed.unwrap_err().kind, ErrorKind::Closed));

    let foreign = ask_served_by(LONG, |mut stream| {
        read_frame::<Request>(&mut stream).unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n").unwrap();
    });
    let foreign = foreign.unwrap_err().to_string();
    assert!(foreign.contains("does not speak this shim's protocol"));

    let newer = ask_served_by(LONG, |mut stream| {
        read_frame::<Request>(&mut stream).unwrap();
        write_frame(&mut stream, &reply(None)).unwrap();
    });
    assert!(matches!(newer.unwrap_err().kind, ErrorKind::NotAReply(_)));
}

#[test]
fn system_errors_keep_their_remedy() {
    let failure = |errno: Errno| ControlError {
        socket: "/run/hearth/control.sock".into(),
        kind: ErrorKind::from_io(errno.into(), LONG),
    };
    let denied = failure(Errno::ACCESS).to_string();
    assert!(denied.contains("no permission to connect"), "{denied}");
    let other = failure(Errno::NOTDIR).to_string();
    assert!(other.contains("cannot talk to hearthd"), "{other}");
    let long = PathBuf::from(format!("/{}", "x".repeat(200)));
    let long = ask(&long, LONG).unwrap_err().to_string();
    assert!(long.contains("is too long for a Unix socket"), "{long}");
}
