use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Instant;

use bytes::Bytes;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use wasmtime_wasi::p2::StreamError;

use super::*;
use hearth_testing::make_fifo;

#[test]
fn the_page_names_every_file() {
    hearth_testing::page_names_every_file(env!("CARGO_MANIFEST_DIR"));
}

const DEADLINE: Duration = Duration::from_secs(30);

fn paths(stdin: &str, stdout: &str, stderr: &str) -> StdioPaths {
    StdioPaths { stdin: stdin.into(), stdout: stdout.into(), stderr: stderr.into(), terminal: false }
}

async fn open(paths: &StdioPaths) -> Result<Stdio> {
    Stdio::open(&"k8s.io".into(), "task-1", paths, &config::Stdio::default()).await
}

async fn say(stream: Stdout, text: &str) {
    stream.p2_stream().blocking_write_and_flush(Bytes::copy_from_slice(text.as_bytes())).await.unwrap();
}

/// Opens a FIFO for reading; the end comes when the other side has closed.
fn reader(path: &Path) -> impl FnOnce() -> String {
    let mut file = fs::File::open(path).unwrap();
    move || {
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        text
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Waits for a condition that other processes bring about.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_named_is_the_null_device() {
    let stdio = open(&paths("", "", "")).await.unwrap();
    say(stdio.stdout(), "x").await;
    say(stdio.stderr(), "x").await;
    assert!(matches!(stdio.stdin().p2_stream().read(1), Err(StreamError::Closed)));
    assert!(!stdio.stdout().is_terminal() && !stdio.stdin().is_terminal());
    stdio.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn fifos_of_a_client() {
    let dir = tempfile::tempdir().unwrap();
    let [stdin, stdout, stderr] = ["in", "out", "err"].map(|name| make_fifo(dir.path(), name));
    let stdio = open(&paths(text(&stdin), text(&stdout), text(&stderr))).await.unwrap();
    let (out, err) = (reader(&stdout), reader(&stderr));
    fs::write(&stdin, "input").unwrap();
    stdio.start(|| |_| ());
    let mut input = stdio.stdin().p2_stream();
    assert_eq!(input.blocking_read(100).await.unwrap(), "input");
    assert!(matches!(input.blocking_read(100).await, Err(StreamError::Closed)));
    say(stdio.stdout(), "out").await;
    say(stdio.stderr(), "err").await;
    stdio.write_stderr("hearth: note\n");
    let _alive = (stdio.stdin().p2_stream(), stdio.stdout().p2_stream());
    stdio.close();
    assert_eq!((out(), err()), ("out".into(), "errhearth: note\n".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_create_leaves_nothing_open() {
    let dir = tempfile::tempdir().unwrap();
    let stdout = make_fifo(dir.path(), "out");
    let stdio = open(&paths("", text(&stdout), "")).await.unwrap();
    let out = reader(&stdout);
    drop(stdio);
    assert_eq!(out(), "");
    open(&paths("", text(&stdout), "/absent")).await.map(drop).unwrap_err();
    let flags = OFlags::WRONLY | OFlags::NONBLOCK;
    assert_eq!(rustix::fs::open(&stdout, flags, Mode::empty()).unwrap_err(), Errno::NXIO, "a reader is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_fifo_for_both_keeps_the_order() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = make_fifo(dir.path(), "both");
    let stdio = open(&paths("", text(&fifo), text(&fifo))).await.unwrap();
    let out = reader(&fifo);
    say(stdio.stdout(), "1").await;
    say(stdio.stderr(), "2").await;
    say(stdio.stdout(), "3").await;
    stdio.close();
    assert_eq!(out(), "123");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_uri_appends_both_streams_and_makes_directories() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("a b/c/log");
    let uri = format!("file://{}", text(&log).replace(' ', "%20"));
    for stderr in ["", uri.as_str()] {
        let stdio = open(&paths("", &uri, stderr)).await.unwrap();
        say(stdio.stdout(), "out,").await;
        say(stdio.stderr(), "err,").await;
        stdio.write_stderr("note,");
        stdio.close();
        until("the note", || fs::read_to_string(&log).unwrap().ends_with("note,")).await;
    }
    assert_eq!(fs::read_to_string(&log).unwrap(), "out,err,note,out,err,note,");
    assert_eq!(fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o644);
    open(&paths("", "file:///dev/null", "")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_opened_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let fifo = make_fifo(dir.path(), "fifo");
    let at = |path: &Path| text(path).to_string();
    let cases = [
        (paths("", &at(&file), ""), "is a regular file, not a FIFO; to append to a file write file:///"),
        (paths("", "", &at(dir.path())), "stderr: "),
        (paths(&at(&dir.path().join("absent")), "", ""), "does not exist; the client has to make a FIFO there"),
        (paths("file:///x", "", ""), "stdin: \"file:///x\" is a URI; only a FIFO can be read"),
        (paths("", "nonsense", ""), "stdout: \"nonsense\" is neither a path nor a URI"),
        (paths("", &format!("file://{}/x", at(&file)), ""), "stdout: cannot append to "),
        (paths("", &format!("file://{}", at(&fifo)), ""), "cannot append to "),
        (paths("", "binary:///absent", ""), "cannot run the log program /absent: No such file or directory"),
    ];
    for (paths, want) in cases {
        let error = open(&paths).await.map(drop).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument(_)), "{paths:?}: {error:?}");
        assert!(error.to_string().contains(want), "{paths:?}: {error}");
    }
}

/// A log program that notes its pid, arguments and environment and then does `script`.
struct Program {
    dir: tempfile::TempDir,
}

impl Program {
    fn new(script: &str) -> Program {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        let here = dir.path().display();
        let text = format!(
            "#!/bin/sh\necho $$ >{here}/pid\necho \"$*|$CONTAINER_ID|$CONTAINER_NAMESPACE\" >{here}/seen\nD={here}\n{script}\n"
        );
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Program { dir }
    }

    fn uri(&self) -> String {
        format!("binary://{}/program?key=a+value&flag", self.dir.path().display())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Waits until the process is gone, zombie included.
    async fn reaped(&self) {
        let pid = Pid::from_raw(self.read("pid").trim().parse().unwrap()).unwrap();
        until("reaped", || pidfd_open(pid, PidfdFlags::empty()).is_err_and(|e| e == Errno::SRCH)).await;
    }
}

const CONFIG: config::Stdio = config::Stdio {
    chunk_bytes: 65_536,
    log_binary_timeout_ms: 30_000,
    log_binary_drain_ms: 30_000,
    linger_ms: 5_000,
    unread_ms: 60_000,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_log_program_gets_everything_and_time_to_finish() {
    for ready in ["exec 5>&-", "echo >&5"] {
        let program = Program::new(&format!(
            "/bin/cat <&4 5>&- >$D/err &\n{ready}\nexec 5>&-\n/bin/cat <&3 >$D/out\nwait\necho x >$D/end"
        ));
        let paths = paths("", &program.uri(), &program.uri());
        let stdio = Stdio::open(&"k8s.io".into(), "task-1", &paths, &CONFIG).await.unwrap();
        assert_eq!(program.read("seen"), "key a value flag |task-1|k8s.io\n");
        let big = "0123456789".repeat(100_000);
        for chunk in big.as_bytes().chunks(4_096) {
            say(stdio.stdout(), std::str::from_utf8(chunk).unwrap()).await;
        }
        say(stdio.stderr(), "problem").await;
        stdio.close();
        program.reaped().await;
        assert!(program.read("out") == big);
        assert_eq!((program.read("err").as_str(), program.read("end").as_str()), ("problem", "x\n"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_program_of_stderr_alone() {
    let program = Program::new("exec 5>&-\n/bin/cat <&3 >$D/out\n/bin/cat <&4 >$D/err");
    let stdio = Stdio::open(&"n".into(), "i", &paths("", "", &program.uri()), &CONFIG).await.unwrap();
    say(stdio.stdout(), "nowhere").await;
    say(stdio.stderr(), "somewhere").await;
    stdio.close();
    program.reaped().await;
    assert_eq!((program.read("out").as_str(), program.read("err").as_str()), ("", "somewhere"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminals_output_goes_to_one_pipe_of_the_program() {
    let program = Program::new("exec 5>&-\n/bin/cat <&3 >$D/out\n/bin/cat <&4 >$D/err");
    let paths = StdioPaths { terminal: true, ..paths("", &program.uri(), "") };
    let stdio = Arc::new(Stdio::open(&"n".into(), "i", &paths, &CONFIG).await.unwrap());
    stdio.start(|| |_| ());
    say(stdio.stdout(), "1").await;
    say(stdio.stderr(), "2").await;
    stdio.finish(|| ());
    program.reaped().await;
    assert_eq!((program.read("out").as_str(), program.read("err").as_str()), ("12", ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_program_that_dies_breaks_the_pipe_of_its_task_only() {
    let program = Program::new("exec 5>&-\nread line <&3\nexit 3");
    let stdio = Stdio::open(&"n".into(), "i", &paths("", &program.uri(), ""), &CONFIG).await.unwrap();
    say(stdio.stdout(), "a line\n").await;
    program.reaped().await;
    let mut stream = stdio.stdout().p2_stream();
    let Err(StreamError::LastOperationFailed(error)) = stream.blocking_write_and_flush(Bytes::from_static(b"x")).await
    else {
        panic!("a write to nobody succeeded");
    };
    assert_eq!(error.downcast_ref::<std::io::Error>().unwrap().kind(), std::io::ErrorKind::BrokenPipe);
    stdio.write_stderr("lost");
    stdio.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_program_that_fails_at_its_start_says_how() {
    let program = Program::new("exit 3");
    let error = Stdio::open(&"n".into(), "i", &paths("", &program.uri(), ""), &CONFIG).await.map(drop).unwrap_err();
    let Error::FailedPrecondition(text) = &error else { panic!("{error:?}") };
    assert!(text.contains("ended before it was ready (exit status 3)"), "{text}");
    program.reaped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_program_that_is_never_ready_is_ended() {
    let program = Program::new("exec /bin/cat <&3");
    let config = config::Stdio { log_binary_timeout_ms: 300, ..CONFIG };
    let error = Stdio::open(&"n".into(), "i", &paths("", &program.uri(), ""), &config).await.map(drop).unwrap_err();
    assert!(error.to_string().contains("within 300 ms (stdio.log_binary_timeout_ms)"), "{error}");
    program.reaped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_that_is_given_up_leaves_no_log_program() {
    let program = Program::new("read never </proc/$$/fd/4");
    let config = config::Stdio { log_binary_drain_ms: 1, ..CONFIG };
    let paths = paths("", &program.uri(), "");
    let namespace = "n".into();
    let opening = Stdio::open(&namespace, "i", &paths, &config);
    tokio::select! {
        _ = opening => panic!("it was never ready"),
        () = until("started", || !program.read("pid").is_empty()) => {}
    }
    program.reaped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_program_that_does_not_finish_is_terminated_and_then_killed() {
    for script in ["exec 5>&-\nwhile :; do read x </proc/$$/fd/0; done", "trap '' TERM\nexec 5>&-\nwhile :; do :; done"]
    {
        let program = Program::new(script);
        let config = config::Stdio { log_binary_drain_ms: 50, ..CONFIG };
        let stdio = Stdio::open(&"n".into(), "i", &paths("", &program.uri(), ""), &config).await.unwrap();
        stdio.close();
        program.reaped().await;
    }
}
