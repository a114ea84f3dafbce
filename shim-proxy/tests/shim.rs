//! The real binary, as containerd execs it, against a control socket of the test's own.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, SystemTime};

use hearth_shim::{
    CONTROL_SOCKET_ENV, Reply, Request, TaskSocketReply, TaskSocketRequest, read_frame, reply, request, write_frame,
};
use prost::Message;
use prost_types::{Any, Timestamp};
use tempfile::TempDir;

const SHIM: &str = env!("CARGO_BIN_EXE_containerd-shim-hearth-v1");
const ADDRESS: &str = "unix:///run/hearth/t/0123456789abcdef.sock";

/// The deadline of an event that must come at once.
const DEADLINE: Duration = Duration::from_secs(30);

/// `containerd.runtime.bootstrap.v1.BootstrapParams`, as containerd 2.3 fills it.
#[derive(Clone, PartialEq, Message)]
struct BootstrapParams {
    #[prost(string, tag = "1")]
    instance_id: String,
    #[prost(string, tag = "2")]
    namespace: String,
    #[prost(int32, tag = "3")]
    log_level: i32,
    #[prost(string, tag = "4")]
    containerd_version: String,
    #[prost(string, tag = "5")]
    containerd_ttrpc_address: String,
    #[prost(string, tag = "6")]
    containerd_grpc_address: String,
    #[prost(string, tag = "7")]
    containerd_binary: String,
    #[prost(message, repeated, tag = "8")]
    extensions: Vec<Extension>,
    #[prost(string, optional, tag = "9")]
    socket_dir: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Extension {
    #[prost(message, optional, tag = "1")]
    value: Option<Any>,
}

#[derive(Clone, PartialEq, Message)]
struct BootstrapResult {
    #[prost(int32, tag = "1")]
    version: i32,
    #[prost(string, tag = "2")]
    address: String,
    #[prost(string, tag = "3")]
    protocol: String,
}

#[derive(Clone, PartialEq, Message)]
struct DeleteResponse {
    #[prost(uint32, tag = "1")]
    pid: u32,
    #[prost(uint32, tag = "2")]
    exit_status: u32,
    #[prost(message, optional, tag = "3")]
    exited_at: Option<Timestamp>,
}

#[derive(Clone, PartialEq, Message)]
struct RuntimeInfo {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    version: Option<RuntimeVersion>,
}

#[derive(Clone, PartialEq, Message)]
struct RuntimeVersion {
    #[prost(string, tag = "1")]
    version: String,
    #[prost(string, tag = "2")]
    revision: String,
}

/// A directory with a bundle and room for a control socket.
struct Fixture {
    dir: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("bundle/rootfs")).unwrap();
        Self { dir }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("control.sock")
    }

    fn bundle(&self) -> PathBuf {
        self.dir.path().join("bundle")
    }

    /// The names in the bundle, sorted.
    fn bundle_content(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.bundle())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// A daemon that answers one request; the receiver gets the request.
    fn daemon(&self, answer: reply::Body) -> Receiver<TaskSocketRequest> {
        let listener = UnixListener::bind(self.socket()).unwrap();
        let (tell, asked) = mpsc::channel();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let request: Request = read_frame(&mut stream).unwrap();
            let Some(request::Body::TaskSocket(question)) = request.body else {
                panic!("asked nothing");
            };
            tell.send(question).unwrap();
            write_frame(&mut stream, &Reply { body: Some(answer) }).unwrap();
        });
        asked
    }

    /// The shim as containerd 1.6 starts it; an environment of containerd's and nothing else.
    fn shim(&self, action: &[&str]) -> Command {
        let mut command = Command::new(SHIM);
        command
            .args(["-namespace", "k8s.io"])
            .args(["-address", "/run/containerd/containerd.sock"])
            .args(["-publish-binary", "/usr/bin/containerd"])
            .args(["-id", "c1"])
            .args(action)
            .current_dir(self.bundle())
            .env_clear()
            .env(CONTROL_SOCKET_ENV, self.socket())
            .env("TTRPC_ADDRESS", "/run/containerd/containerd.sock.ttrpc")
            .env("GOMAXPROCS", "2")
            .stdin(Stdio::null());
        command
    }
}

fn task_socket(version: u32) -> reply::Body {
    reply::Body::TaskSocket(TaskSocketReply { address: ADDRESS.into(), version })
}

fn run_with_stdin(mut command: Command, stdin: &[u8]) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    match child.stdin.take().unwrap().write_all(stdin) {
        // A shim that does not read its stdin may be gone already.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => {}
        written => written.unwrap(),
    }
    child.wait_with_output().unwrap()
}

/// The answer of a shim that succeeded: containerd reads stderr too, so nothing may be there.
fn answer(output: Output) -> Vec<u8> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {stderr}", output.status);
    assert_eq!(stderr, "");
    output.stdout
}

/// The one line of a shim that failed, which must be all it wrote.
fn complaint(output: Output) -> String {
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(output.stdout, b"");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.starts_with("io.containerd.hearth.v1: "), "{stderr}");
    assert!(!stderr.contains('\n'), "{stderr:?}");
    stderr
}

fn runtime_options() -> Vec<u8> {
    Any { type_url: "runtimeoptions.v1.Options".into(), value: b"\x0a\x0bhearth.type".to_vec() }.encode_to_vec()
}

#[test]
fn containerd_1_6_gets_a_plain_address_and_the_address_file() {
    let fixture = Fixture::new();
    let asked = fixture.daemon(task_socket(2));
    let output = fixture.shim(&["start"]).output().unwrap();
    assert_eq!(answer(output), ADDRESS.as_bytes());
    assert_eq!(fixture.bundle_content(), ["address", "rootfs"]);
    let file = fs::read_to_string(fixture.bundle().join("address")).unwrap();
    assert_eq!(file, ADDRESS);
    let expected = TaskSocketRequest {
        namespace: "k8s.io".into(),
        grpc_address: "/run/containerd/containerd.sock".into(),
        ttrpc_address: "/run/containerd/containerd.sock.ttrpc".into(),
        id: "c1".into(),
        containerd_version: String::new(),
        accepts_version_3: false,
        bundle: fixture.bundle().display().to_string(),
        config_path: String::new(),
    };
    assert_eq!(asked.recv_timeout(DEADLINE).unwrap(), expected);
}

#[test]
fn containerd_1_7_gets_the_same_with_options_and_a_bundle_named() {
    let fixture = Fixture::new();
    let asked = fixture.daemon(task_socket(2));
    let bundle = fixture.bundle();
    let mut shim = fixture.shim(&["-debug", "-bundle", bundle.to_str().unwrap(), "start"]);
    shim.current_dir("/").env("MAX_SHIM_VERSION", "2");
    let output = run_with_stdin(shim, &runtime_options());
    assert_eq!(answer(output), ADDRESS.as_bytes());
    let file = fs::read_to_string(bundle.join("address")).unwrap();
    assert_eq!(file, ADDRESS);
    assert!(asked.recv_timeout(DEADLINE).unwrap().accepts_version_3);
}

#[test]
fn containerd_2_gets_json_and_writes_its_own_file() {
    let fixture = Fixture::new();
    let _asked = fixture.daemon(task_socket(3));
    let mut shim = fixture.shim(&["start"]);
    shim.env("MAX_SHIM_VERSION", "2");
    let output = run_with_stdin(shim, &runtime_options());
    assert_eq!(
        String::from_utf8(answer(output)).unwrap(),
        format!(r#"{{"version":3,"address":"{ADDRESS}","protocol":"ttrpc"}}"#)
    );
    assert_eq!(fixture.bundle_content(), ["rootfs"]);
}

#[test]
fn containerd_2_3_gets_a_bootstrap_result() {
    let fixture = Fixture::new();
    let asked = fixture.daemon(task_socket(3));
    let mut shim = fixture.shim(&["start"]);
    shim.env("MAX_SHIM_VERSION", "2");
    let params = BootstrapParams {
        instance_id: "c1".into(),
        namespace: "k8s.io".into(),
        log_level: -4,
        containerd_version: "v2.3.4".into(),
        containerd_ttrpc_address: "unix:///run/2.3/containerd.sock.ttrpc".into(),
        containerd_grpc_address: "/run/2.3/containerd.sock".into(),
        containerd_binary: "/usr/bin/containerd".into(),
        extensions: vec![Extension { value: Some(Any::decode(&*runtime_options()).unwrap()) }],
        socket_dir: Some("/run/containerd/s".into()),
    };
    let output = run_with_stdin(shim, &params.encode_to_vec());
    let expected = BootstrapResult { version: 3, address: ADDRESS.into(), protocol: "ttrpc".into() };
    assert_eq!(BootstrapResult::decode(&*answer(output)).unwrap(), expected);
    assert_eq!(fixture.bundle_content(), ["rootfs"]);
    let asked = asked.recv_timeout(DEADLINE).unwrap();
    assert_eq!(asked.containerd_version, "v2.3.4");
    assert_eq!(asked.grpc_address, "/run/2.3/containerd.sock");
    assert_eq!(asked.ttrpc_address, "/run/2.3/containerd.sock.ttrpc");
    assert!(asked.accepts_version_3);
}

#[test]
fn a_daemon_that_is_down_is_named_with_its_remedy() {
    let fixture = Fixture::new();
    let missing = complaint(fixture.shim(&["start"]).output().unwrap());
    assert!(missing.contains("hearthd is not running"), "{missing}");
    assert!(missing.contains("does not exist"), "{missing}");
    assert!(missing.contains("systemctl start hearthd"), "{missing}");

    drop(UnixListener::bind(fixture.socket()).unwrap());
    let refused = complaint(fixture.shim(&["start"]).output().unwrap());
    assert!(refused.contains("nothing listens on"), "{refused}");
    assert!(refused.contains("systemctl start hearthd"), "{refused}");
    assert_eq!(fixture.bundle_content(), ["rootfs"]);
}

#[test]
fn the_daemons_own_words_are_passed_on_in_one_line() {
    let fixture = Fixture::new();
    let refusal = "shutting down:\nsend new pods elsewhere";
    let _asked = fixture.daemon(reply::Body::Error(refusal.into()));
    let said = complaint(fixture.shim(&["start"]).output().unwrap());
    assert_eq!(said, "io.containerd.hearth.v1: hearthd: shutting down: send new pods elsewhere");
    assert_eq!(fixture.bundle_content(), ["rootfs"]);
}

#[test]
fn an_answer_that_cannot_be_written_is_a_failure() {
    let fixture = Fixture::new();
    let _asked = fixture.daemon(task_socket(2));
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = fixture.shim(&["start"]).stdout(full).output().unwrap();
    assert!(complaint(output).contains("cannot write to stdout"));
}

#[test]
fn bad_calls_are_refused_before_the_daemon_is_asked() {
    let fixture = Fixture::new();
    let refused = |shim: &mut Command| complaint(shim.output().unwrap());
    assert!(refused(&mut fixture.shim(&["-frobnicate", "start"])).contains("-frobnicate"));
    assert!(refused(&mut fixture.shim(&["serve"])).contains("unknown action"));
    assert!(refused(&mut fixture.shim(&[])).contains("no action"));
    assert!(refused(fixture.shim(&["start"]).env_remove("TTRPC_ADDRESS")).contains("TTRPC_ADDRESS"));
    let relative = refused(fixture.shim(&["start"]).env(CONTROL_SOCKET_ENV, "c.sock"));
    assert!(relative.contains("must be an absolute path"), "{relative}");
    assert!(refused(&mut fixture.shim(&["-bundle", "bundle", "delete"])).contains("is not absolute"));
    let garbage = run_with_stdin(fixture.shim(&["start"]), b"not a protobuf message");
    assert!(complaint(garbage).contains("neither runtime options"));
}

#[test]
fn info_and_version_need_no_daemon() {
    let fixture = Fixture::new();
    let info = run_with_stdin(fixture.shim(&["-info"]), &runtime_options());
    let info = RuntimeInfo::decode(&*answer(info)).unwrap();
    assert_eq!(info.name, "io.containerd.hearth.v1");
    let version = info.version.unwrap();
    assert_eq!(version.version, env!("CARGO_PKG_VERSION"));

    let printed = fixture.shim(&["-v"]).output().unwrap();
    let printed = String::from_utf8(answer(printed)).unwrap();
    let lines: Vec<_> = printed.lines().collect();
    assert_eq!(lines[0], "containerd-shim-hearth-v1:");
    assert_eq!(lines[1], format!("  Version:  {}", version.version));
    assert_eq!(lines[2], format!("  Revision: {}", version.revision));
}

#[test]
fn delete_can_be_repeated_and_needs_neither_daemon_nor_bundle() {
    let fixture = Fixture::new();
    fs::write(fixture.bundle().join("address"), ADDRESS).unwrap();
    let socket = UnixListener::bind(fixture.socket()).unwrap();
    socket.set_nonblocking(true).unwrap();
    let bundle = fixture.bundle();
    let delete = ["-bundle", bundle.to_str().unwrap(), "delete"];
    let before = SystemTime::now();
    for _ in 0..2 {
        let output = fixture.shim(&delete).output().unwrap();
        let response = DeleteResponse::decode(&*answer(output)).unwrap();
        assert_eq!((response.pid, response.exit_status), (0, 137));
        let exited_at = SystemTime::try_from(response.exited_at.unwrap()).unwrap();
        assert!(before <= exited_at && exited_at <= SystemTime::now());
    }
    let left = fixture.bundle_content();
    assert_eq!(left, ["address", "rootfs"], "containerd removes the bundle");
    assert!(fixture.socket().exists());
    let refused = socket.accept().unwrap_err().kind();
    assert_eq!(refused, std::io::ErrorKind::WouldBlock, "the daemon was asked");

    fs::remove_dir_all(&bundle).unwrap();
    let output = fixture.shim(&delete).current_dir("/").output().unwrap();
    let response = DeleteResponse::decode(&*answer(output)).unwrap();
    assert_eq!(response.exit_status, 137);
}

/// Runs a shell script with `$SHIM` and `$BUNDLE` in a mount namespace of its own, so that nothing
/// can be left mounted. Without root, in a user namespace of its own as well.
fn in_private_mounts(fixture: &Fixture, script: &str) -> String {
    let mut unshare = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        unshare.arg("--map-root-user");
    }
    let output = unshare
        .args(["--mount", "--propagation", "private", "sh", "-euc", script])
        .env("SHIM", SHIM)
        .env("BUNDLE", fixture.bundle())
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {stderr}", output.status);
    assert_eq!(stderr, "");
    String::from_utf8(output.stdout).unwrap()
}

fn mounted_below(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.contains(path.to_str().unwrap())
}

#[test]
fn delete_unmounts_all_that_is_mounted_on_the_rootfs_even_in_use() {
    let fixture = Fixture::new();
    let mounts = in_private_mounts(
        &fixture,
        r#"
        mount -t tmpfs lower "$BUNDLE/rootfs"
        mkdir "$BUNDLE/rootfs/below"
        mount -t tmpfs below "$BUNDLE/rootfs/below"
        exec 3>"$BUNDLE/rootfs/below/in-use"
        mount -t tmpfs upper "$BUNDLE/rootfs"
        grep -c " $BUNDLE" /proc/self/mountinfo
        "$SHIM" -namespace n -id i -bundle "$BUNDLE" delete >/dev/null
        grep -c " $BUNDLE" /proc/self/mountinfo || true
        "#,
    );
    assert_eq!(mounts, "3\n0\n");
    assert_eq!(fixture.bundle_content(), ["rootfs"]);
    assert!(!mounted_below(fixture.dir.path()));
}

#[test]
fn delete_does_not_follow_a_link_in_the_place_of_the_rootfs() {
    let fixture = Fixture::new();
    let elsewhere = fixture.dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::remove_dir(fixture.bundle().join("rootfs")).unwrap();
    symlink(&elsewhere, fixture.bundle().join("rootfs")).unwrap();
    let mounts = in_private_mounts(
        &fixture,
        r#"
        mount -t tmpfs elsewhere "$BUNDLE/../elsewhere"
        "$SHIM" -namespace n -id i -bundle "$BUNDLE" delete >/dev/null
        grep -c /elsewhere /proc/self/mountinfo
        "#,
    );
    assert_eq!(mounts, "1\n", "the other mount is still there");
    assert!(!mounted_below(fixture.dir.path()));
}
