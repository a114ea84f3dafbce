//! `start`: finds out who asks, asks the daemon for a task socket, answers in the caller's form.
//!
//! ```text
//!              containerd 1.6      1.7 – 2.2                     2.3 and later
//!   stdin      options or nothing  options or nothing            BootstrapParams
//!   stdout     address             address (v2) or JSON (v3)     BootstrapResult
//!   restored   <bundle>/address,   the same (v2);                bootstrap.json,
//!   from       written here        bootstrap.json, containerd's  containerd's
//! ```
//!
//! The runtime options on stdin are of no use here: the daemon gets them again in Create.
//!
//! Fails where the caller did not say who it is, where stdin is neither form, and where the daemon
//! does not hand out a socket; then nothing is printed and no file is written.

use std::env;
use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use hearth_shim::{CONTROL_SOCKET, CONTROL_SOCKET_ENV, TaskSocketReply, TaskSocketRequest};
use prost::Message;
use prost_types::Any;
use rustix::fs::OFlags;

use crate::args::{Bundle, Flags};
use crate::control::{self, CONTROL_TIMEOUT};
use crate::failure::{Failure, Result};

/// The most that is read from stdin, in bytes: containerd's own limit for its shims.
const MAX_STDIN_BYTES: u64 = 10 << 20;

/// Where containerd's ttrpc socket is named.
const TTRPC_ADDRESS_ENV: &str = "TTRPC_ADDRESS";

/// Set by containerd 1.7 and later, always to 2: it tells those apart from 1.6 and nothing more.
const MAX_SHIM_VERSION_ENV: &str = "MAX_SHIM_VERSION";

/// The file containerd 1.x restores the shim's address from.
const ADDRESS_FILE: &str = "address";

/// The protocol of our task sockets, in containerd's words.
const PROTOCOL: &str = "ttrpc";

/// What containerd 2.3 and later write to stdin: those fields of
/// `containerd.runtime.bootstrap.v1.BootstrapParams` that matter here.
#[derive(Clone, PartialEq, Message)]
struct BootstrapParams {
    #[prost(string, tag = "1")]
    instance_id: String,
    #[prost(string, tag = "2")]
    namespace: String,
    #[prost(string, tag = "4")]
    containerd_version: String,
    #[prost(string, tag = "5")]
    containerd_ttrpc_address: String,
    #[prost(string, tag = "6")]
    containerd_grpc_address: String,
}

/// `containerd.runtime.bootstrap.v1.BootstrapResult`.
#[derive(Clone, PartialEq, Message)]
struct BootstrapResult {
    #[prost(int32, tag = "1")]
    version: i32,
    #[prost(string, tag = "2")]
    address: String,
    #[prost(string, tag = "3")]
    protocol: String,
}

/// What containerd says through the environment.
#[derive(Debug, Default)]
struct Environment {
    ttrpc_address: OsString,
    has_max_shim_version: bool,
}

/// What came on stdin.
#[derive(Debug, PartialEq)]
enum Stdin {
    /// Runtime options, or nothing.
    Options,
    /// The parameters of the bootstrap protocol.
    Params(BootstrapParams),
}

/// The form of the answer on stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// The address and nothing else.
    Plain,
    /// `{"version":3,"address":"…","protocol":"ttrpc"}`.
    Json,
    /// A marshalled [`BootstrapResult`].
    Protobuf,
}

/// Answers containerd's `start`: the bytes for stdout.
///
/// # Errors
/// As the module says.
pub fn start(flags: &Flags) -> Result<Vec<u8>> {
    let environment = Environment {
        ttrpc_address: env::var_os(TTRPC_ADDRESS_ENV).unwrap_or_default(),
        has_max_shim_version: env::var_os(MAX_SHIM_VERSION_ENV).is_some(),
    };
    let stdin = recognise(&read_stdin()?, flags)?;
    let mut question = question(flags, &environment, &stdin)?;
    if let Bundle::At(bundle) = flags.bundle()? {
        question.bundle = bundle.display().to_string();
    }
    let accepts_version_3 = question.accepts_version_3;
    let reply =
        control::task_socket(&control_socket()?, question, CONTROL_TIMEOUT).map_err(|e| Failure::new(e.to_string()))?;
    let form = form(&stdin, accepts_version_3, &reply)?;
    if form == Form::Plain {
        write_address_file(&flags.bundle()?, &reply.address)?;
    }
    Ok(encode(form, reply))
}

fn read_stdin() -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let stdin = io::stdin().lock();
    if stdin.is_terminal() {
        return Ok(bytes);
    }
    stdin
        .take(MAX_STDIN_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Failure::new(format!("cannot read stdin: {e}")))?;
    if bytes.len() as u64 > MAX_STDIN_BYTES {
        return Err(Failure::new(format!(
            "stdin holds more than {MAX_STDIN_BYTES} bytes: containerd writes runtime options or bootstrap parameters there"
        )));
    }
    Ok(bytes)
}

fn control_socket() -> Result<PathBuf> {
    let socket = env::var_os(CONTROL_SOCKET_ENV)
        .filter(|path| !path.is_empty())
        .map_or_else(|| CONTROL_SOCKET.into(), PathBuf::from);
    if !socket.is_absolute() {
        return Err(Failure::new(format!("{CONTROL_SOCKET_ENV} is {socket:?}: it must be an absolute path")));
    }
    Ok(socket)
}

/// Tells the two messages apart that containerd may write to stdin. Both have two leading string
/// or bytes fields, so options can decode as parameters; but options have no further field, and
/// cannot carry the id and the namespace that the command line names.
fn recognise(bytes: &[u8], flags: &Flags) -> Result<Stdin> {
    if bytes.is_empty() {
        return Ok(Stdin::Options);
    }
    if let Ok(params) = BootstrapParams::decode(bytes) {
        let has_more = !params.containerd_version.is_empty()
            || !params.containerd_ttrpc_address.is_empty()
            || !params.containerd_grpc_address.is_empty();
        let matches =
            !params.instance_id.is_empty() && params.instance_id == flags.id && params.namespace == flags.namespace;
        if has_more || matches {
            return Ok(Stdin::Params(params));
        }
    }
    match Any::decode(bytes) {
        Ok(options) if !options.type_url.is_empty() => Ok(Stdin::Options),
        _ => Err(Failure::new(format!(
            "the {} bytes on stdin are neither runtime options (google.protobuf.Any) nor BootstrapParams: \
             does this shim know this version of containerd?",
            bytes.len()
        ))),
    }
}

/// The request to the daemon. What stdin says wins over flags and environment.
fn question(flags: &Flags, environment: &Environment, stdin: &Stdin) -> Result<TaskSocketRequest> {
    let none = BootstrapParams::default();
    let (params, accepts_version_3) = match stdin {
        Stdin::Options => (&none, environment.has_max_shim_version),
        Stdin::Params(params) => (params, true),
    };
    let ttrpc_from_environment = environment
        .ttrpc_address
        .to_str()
        .ok_or_else(|| Failure::new(format!("{TTRPC_ADDRESS_ENV} {:?} is not UTF-8", environment.ttrpc_address)))?;
    let either = |stdin: &str, other: &str, what: &str| {
        let value = if stdin.is_empty() { other } else { stdin };
        if value.is_empty() {
            return Err(Failure::new(format!(
                "{what} is missing: containerd sets it; this program is not meant to be run by hand"
            )));
        }
        Ok(value.to_owned())
    };
    let namespace = either(&params.namespace, &flags.namespace, "-namespace")?;
    let id = either(&params.instance_id, &flags.id, "-id")?;
    let grpc = either(&params.containerd_grpc_address, &flags.address, "-address")?;
    let ttrpc = either(&params.containerd_ttrpc_address, ttrpc_from_environment, TTRPC_ADDRESS_ENV)?;
    Ok(TaskSocketRequest {
        namespace,
        grpc_address: socket_path(&grpc, "gRPC")?,
        ttrpc_address: socket_path(&ttrpc, "ttrpc")?,
        id,
        containerd_version: params.containerd_version.clone(),
        accepts_version_3,
        bundle: String::new(),
    })
}

/// The path of one of containerd's own sockets, which the daemon will dial from another directory.
fn socket_path(address: &str, which: &str) -> Result<String> {
    let path = address.strip_prefix("unix://").unwrap_or(address);
    if !path.starts_with('/') {
        return Err(Failure::new(format!(
            "containerd's {which} address {address:?} is not the absolute path of a Unix socket: configure containerd with one"
        )));
    }
    Ok(path.to_owned())
}

/// Chooses the form of the answer, and refuses a reply that this containerd would misread.
fn form(stdin: &Stdin, accepts_version_3: bool, reply: &TaskSocketReply) -> Result<Form> {
    let misfit = |what: String| {
        Failure::new(format!("hearthd answered with {what}: install hearthd and the shim from one release"))
    };
    // Without the scheme containerd 1.x takes an address for an abstract socket.
    if !reply.address.starts_with("unix:///") || reply.address.contains(char::is_control) {
        return Err(misfit(format!("the task socket {:?}, which is not a unix:/// address", reply.address)));
    }
    match (stdin, reply.version) {
        (Stdin::Params(_), 2 | 3) => Ok(Form::Protobuf),
        (Stdin::Options, 2) => Ok(Form::Plain),
        (Stdin::Options, 3) if accepts_version_3 => Ok(Form::Json),
        (Stdin::Options, 3) => Err(misfit("version 3 of the Task API, which containerd 1.6 does not know".into())),
        (_, version) => Err(misfit(format!("version {version} of the Task API, which this shim does not know"))),
    }
}

fn encode(form: Form, reply: TaskSocketReply) -> Vec<u8> {
    match form {
        Form::Plain => reply.address.into_bytes(),
        Form::Json => {
            let mut json = format!(r#"{{"version":{},"address":""#, reply.version);
            // Control characters, the only others that JSON must escape, were refused before.
            for c in reply.address.chars() {
                if matches!(c, '"' | '\\') {
                    json.push('\\');
                }
                json.push(c);
            }
            json.push_str(r#"","protocol":""#);
            json.push_str(PROTOCOL);
            json.push_str(r#""}"#);
            json.into_bytes()
        }
        Form::Protobuf => {
            BootstrapResult { version: reply.version as i32, address: reply.address, protocol: PROTOCOL.into() }
                .encode_to_vec()
        }
    }
}

/// Writes `<bundle>/address`. It appears whole or not at all: containerd may restart at any time
/// and reads whatever lies there.
fn write_address_file(bundle: &Bundle, address: &str) -> Result<()> {
    let Bundle::At(bundle) = bundle else {
        return Err(Failure::new("the bundle is gone: containerd removed it while it was starting the shim"));
    };
    let path = bundle.join(ADDRESS_FILE);
    replace_file(&path, &bundle.join(".address"), address.as_bytes())
        .map_err(|e| Failure::new(format!("cannot write {}: {e}", path.display())))
}

fn replace_file(path: &Path, temporary: &Path, bytes: &[u8]) -> io::Result<()> {
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .custom_flags(OFlags::NOFOLLOW.bits() as i32)
        .open(temporary)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| fs::rename(temporary, path));
    if written.is_err() {
        // What could not be finished is of no use to anyone; the first error is the one to tell.
        let _ = fs::remove_file(temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{self, Invocation};

    const ADDRESS: &str = "unix:///run/hearth/t/1.sock";

    fn flags(args: &[&str]) -> Flags {
        let args = args.iter().chain(&["start"]).map(OsString::from);
        match args::parse(args) {
            Ok(Invocation::Start(flags)) => flags,
            other => panic!("{other:?}"),
        }
    }

    fn usual_flags() -> Flags {
        flags(&["-namespace=k8s.io", "-id=c1", "-address=/run/c.sock"])
    }

    fn usual_environment() -> Environment {
        Environment { ttrpc_address: "/run/c.sock.ttrpc".into(), has_max_shim_version: false }
    }

    fn params() -> BootstrapParams {
        BootstrapParams {
            instance_id: "c1".into(),
            namespace: "k8s.io".into(),
            containerd_version: "2.3.4".into(),
            containerd_ttrpc_address: "unix:///run/other.sock.ttrpc".into(),
            containerd_grpc_address: "/run/other.sock".into(),
        }
    }

    fn options(type_url: &str, value: &[u8]) -> Vec<u8> {
        Any { type_url: type_url.into(), value: value.into() }.encode_to_vec()
    }

    fn reply(version: u32) -> TaskSocketReply {
        TaskSocketReply { address: ADDRESS.into(), version }
    }

    #[test]
    fn options_parameters_and_garbage_are_told_apart() {
        let flags = usual_flags();
        let recognised = |bytes: &[u8]| recognise(bytes, &flags);
        assert_eq!(recognised(b""), Ok(Stdin::Options));
        assert_eq!(recognised(&options("runtimeoptions.v1.Options", b"\x0a\x03abc")), Ok(Stdin::Options));
        assert_eq!(recognised(&options("containerd.runc.v1.Options", b"")), Ok(Stdin::Options));
        // A value that is text decodes as a namespace, and is still an option.
        assert_eq!(recognised(&options("a.b.Options", b"k8s.io")), Ok(Stdin::Options));
        assert_eq!(recognised(&params().encode_to_vec()), Ok(Stdin::Params(params())));
        for garbage in [&b"garbage on stdin"[..], &[0xff; 64], b"{}", b"\x12\x01a"] {
            let failure = recognised(garbage).unwrap_err().to_string();
            assert!(failure.contains("neither runtime options"), "{failure}");
        }
    }

    #[test]
    fn parameters_with_nothing_but_the_identity_are_recognised_by_it() {
        let bare = BootstrapParams { instance_id: "c1".into(), namespace: "k8s.io".into(), ..Default::default() };
        let bytes = bare.encode_to_vec();
        assert_eq!(recognise(&bytes, &usual_flags()), Ok(Stdin::Params(bare)));
        let others = flags(&["-namespace=moby", "-id=c1"]);
        assert_eq!(recognise(&bytes, &others), Ok(Stdin::Options));
    }

    #[test]
    fn unknown_fields_of_later_versions_do_not_disturb() {
        let mut bytes = params().encode_to_vec();
        bytes.extend_from_slice(b"\x18\x04"); // 3, the log level
        bytes.extend_from_slice(b"\x42\x04\x0a\x02\x0a\x00"); // 8, an extension
        bytes.extend_from_slice(b"\x4a\x02/s"); // 9, the socket directory
        bytes.extend_from_slice(b"\xa2\x06\x01x"); // 100, not invented yet
        assert_eq!(recognise(&bytes, &usual_flags()), Ok(Stdin::Params(params())));
    }

    #[test]
    fn flags_and_environment_make_the_request() {
        let flags = flags(&["-namespace=default", "-id=c1", "-address=unix:///run/c.sock"]);
        let environment = Environment { ttrpc_address: "unix:///run/c.sock.ttrpc".into(), has_max_shim_version: true };
        let expected = TaskSocketRequest {
            namespace: "default".into(),
            grpc_address: "/run/c.sock".into(),
            ttrpc_address: "/run/c.sock.ttrpc".into(),
            id: "c1".into(),
            containerd_version: String::new(),
            accepts_version_3: true,
            bundle: String::new(),
        };
        assert_eq!(question(&flags, &environment, &Stdin::Options), Ok(expected));
        let old = question(&flags, &usual_environment(), &Stdin::Options).unwrap();
        assert!(!old.accepts_version_3);
    }

    #[test]
    fn parameters_win_over_flags_and_environment() {
        let flags = flags(&["-namespace=default", "-id=x", "-address=/run/c.sock"]);
        let stdin = Stdin::Params(params());
        let expected = TaskSocketRequest {
            namespace: "k8s.io".into(),
            grpc_address: "/run/other.sock".into(),
            ttrpc_address: "/run/other.sock.ttrpc".into(),
            id: "c1".into(),
            containerd_version: "2.3.4".into(),
            accepts_version_3: true,
            bundle: String::new(),
        };
        let usual = usual_environment();
        assert_eq!(question(&flags, &usual, &stdin).as_ref(), Ok(&expected));
        let nothing = Environment::default();
        assert_eq!(question(&Flags::default(), &nothing, &stdin), Ok(expected), "the parameters alone are enough");
    }

    #[test]
    fn what_is_missing_is_named() {
        let missing = |args: &[&str], environment: Environment| {
            question(&flags(args), &environment, &Stdin::Options).unwrap_err().to_string()
        };
        let all = ["-namespace=n", "-id=i", "-address=/run/c.sock"];
        for (left_out, name) in [(0, "-namespace"), (1, "-id"), (2, "-address")] {
            let mut args = all.to_vec();
            args.remove(left_out);
            let failure = missing(&args, usual_environment());
            assert!(failure.starts_with(&format!("{name} is missing")), "{failure}");
        }
        let failure = missing(&all, Environment::default());
        assert!(failure.starts_with("TTRPC_ADDRESS is missing"), "{failure}");
        let failure = missing(&["-namespace=n", "-id=i", "-address=c.sock"], usual_environment());
        assert!(failure.contains("gRPC address \"c.sock\""), "{failure}");
    }

    #[test]
    fn each_caller_gets_its_form() {
        let params = Stdin::Params(params());
        assert_eq!(form(&Stdin::Options, false, &reply(2)), Ok(Form::Plain));
        assert_eq!(form(&Stdin::Options, true, &reply(2)), Ok(Form::Plain));
        assert_eq!(form(&Stdin::Options, true, &reply(3)), Ok(Form::Json));
        assert_eq!(form(&params, true, &reply(3)), Ok(Form::Protobuf));
        assert_eq!(form(&params, true, &reply(2)), Ok(Form::Protobuf));

        let error = |result: Result<Form>| result.unwrap_err().to_string();
        let old = error(form(&Stdin::Options, false, &reply(3)));
        assert!(old.contains("which containerd 1.6 does not know"), "{old:?}");
        let future = error(form(&params, true, &reply(4)));
        assert!(future.contains("version 4"), "{future:?}");
        for address in ["", "/run/x.sock", "unix://x.sock", "unix:///run/x\n"] {
            let odd = TaskSocketReply { address: address.into(), version: 2 };
            let odd = error(form(&Stdin::Options, true, &odd));
            assert!(odd.contains("not a unix:/// address"), "{odd:?}");
        }
    }

    #[test]
    fn the_forms_are_containerds() {
        assert_eq!(encode(Form::Plain, reply(2)), ADDRESS.as_bytes());
        assert_eq!(
            encode(Form::Json, reply(3)),
            br#"{"version":3,"address":"unix:///run/hearth/t/1.sock","protocol":"ttrpc"}"#
        );
        let quoted = TaskSocketReply { address: r#"unix:///a"b\c"#.into(), version: 3 };
        assert_eq!(encode(Form::Json, quoted), br#"{"version":3,"address":"unix:///a\"b\\c","protocol":"ttrpc"}"#);
        // Field 1 varint 3, field 2 the address of 27 bytes, field 3 "ttrpc".
        let expected = [b"\x08\x03\x12\x1b", ADDRESS.as_bytes(), b"\x1a\x05ttrpc"].concat();
        assert_eq!(encode(Form::Protobuf, reply(3)), expected);
    }

    #[test]
    fn the_address_file_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = Bundle::At(dir.path().to_owned());
        fs::write(dir.path().join(".address"), "left by a shim that was killed").unwrap();
        write_address_file(&bundle, "unix:///first-and-longer").unwrap();
        write_address_file(&bundle, ADDRESS).unwrap();
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["address"]);
        let content = fs::read_to_string(dir.path().join("address")).unwrap();
        assert_eq!(content, ADDRESS, "without a line break");
    }

    #[test]
    fn an_address_file_that_cannot_be_written_fails_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let gone = Bundle::At(dir.path().join("gone"));
        let failure = write_address_file(&gone, ADDRESS).unwrap_err().to_string();
        assert!(failure.contains("gone/address"), "{failure}");
        assert!(write_address_file(&Bundle::Gone, ADDRESS).is_err());

        // A link planted at the temporary name is not written through.
        let outside = dir.path().join("outside");
        fs::write(&outside, "untouched").unwrap();
        std::os::unix::fs::symlink(&outside, dir.path().join(".address")).unwrap();
        write_address_file(&Bundle::At(dir.path().to_owned()), ADDRESS).unwrap_err();
        assert_eq!(fs::read_to_string(&outside).unwrap(), "untouched");
    }
}
