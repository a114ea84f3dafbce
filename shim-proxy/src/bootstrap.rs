//! `start`: identifies the calling containerd, asks the daemon for a task socket, and answers in the caller's form.
//!
//! ```text
//!              containerd 1.6      1.7 – 2.2                     2.3 and later
//!   stdin      options or nothing  options or nothing            BootstrapParams
//!   stdout     address             address (v2) or JSON (v3)     BootstrapResult
//!   restored   <bundle>/address,   the same (v2);                bootstrap.json,
//!   from       written here        bootstrap.json, containerd's  containerd's
//! ```
//!
//! Of the runtime options on stdin, the daemon is told the `ConfigPath`: it may ask for a process of the pod's own, whose
//! address is then the answer. (2.3 and later pass no options here; the daemon gets them in Create.)
//!
//! Fails if the caller's namespace, id or sockets are missing, if stdin has neither form, and if the daemon does not
//! hand out a socket. Then stdout stays empty and no file is written.

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

use crate::control::{self, CONTROL_TIMEOUT};
use hearth_shim::args::{Bundle, Flags};
use hearth_shim::failure::{Failure, Result};

/// The most that is read from stdin, in bytes: containerd's own limit for its shims.
const MAX_STDIN_BYTES: u64 = 10 << 20;

/// Where containerd's ttrpc socket is named.
const TTRPC_ADDRESS_ENV: &str = "TTRPC_ADDRESS";

/// Set by containerd 1.7 and later, always to 2: its presence tells these versions from 1.6.
const MAX_SHIM_VERSION_ENV: &str = "MAX_SHIM_VERSION";

/// The file containerd 1.x restores the shim's address from.
const ADDRESS_FILE: &str = "address";

/// The protocol of our task sockets, in containerd's words.
const PROTOCOL: &str = "ttrpc";

/// The message that containerd 2.3 and later write to stdin: the fields of
/// `containerd.runtime.bootstrap.v1.BootstrapParams` that the shim needs.
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

/// containerd's variables in the environment.
#[derive(Debug, Default)]
struct Environment {
    ttrpc_address: OsString,
    has_max_shim_version: bool,
}

/// The message on stdin.
#[derive(Debug, PartialEq)]
enum StdinMessage {
    /// Runtime options, or nothing: their `ConfigPath`.
    Options(String),
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

/// Recognises which of two messages containerd has written to stdin. Both have two leading string or bytes fields, so
/// options can decode as parameters; but options have no further field, and cannot carry the id and the namespace that
/// the command line names.
fn recognise(bytes: &[u8], flags: &Flags) -> Result<StdinMessage> {
    if bytes.is_empty() {
        return Ok(StdinMessage::Options(String::new()));
    }
    if let Ok(params) = BootstrapParams::decode(bytes) {
        let has_more = !params.containerd_version.is_empty()
            || !params.containerd_ttrpc_address.is_empty()
            || !params.containerd_grpc_address.is_empty();
        let matches =
            !params.instance_id.is_empty() && params.instance_id == flags.id && params.namespace == flags.namespace;
        if has_more || matches {
            return Ok(StdinMessage::Params(params));
        }
    }
    match Any::decode(bytes) {
        Ok(options) if !options.type_url.is_empty() => {
            let path = hearth_shim::config_path(&options.type_url, &options.value);
            Ok(StdinMessage::Options(path.unwrap_or_default()))
        }
        _ => Err(Failure::new(format!(
            "the {} bytes on stdin are neither runtime options (google.protobuf.Any) nor BootstrapParams: \
             does this shim know this version of containerd?",
            bytes.len()
        ))),
    }
}

/// The request to the daemon. Parameters on stdin win over flags and environment.
fn question(flags: &Flags, environment: &Environment, stdin: &StdinMessage) -> Result<TaskSocketRequest> {
    let none = BootstrapParams::default();
    let (params, accepts_version_3, config_path) = match stdin {
        StdinMessage::Options(config_path) => (&none, environment.has_max_shim_version, config_path.as_str()),
        StdinMessage::Params(params) => (params, true, ""),
    };
    let ttrpc_from_environment = environment
        .ttrpc_address
        .to_str()
        .ok_or_else(|| Failure::new(format!("{TTRPC_ADDRESS_ENV} {:?} is not UTF-8", environment.ttrpc_address)))?;
    let either = |stdin: &str, other: &str, name: &str| {
        let value = if stdin.is_empty() { other } else { stdin };
        if value.is_empty() {
            return Err(Failure::new(format!(
                "{name} is missing: containerd sets it; this program is not meant to be run by hand"
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
        config_path: config_path.to_owned(),
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
fn form(stdin: &StdinMessage, accepts_version_3: bool, reply: &TaskSocketReply) -> Result<Form> {
    let misfit = |answer: String| {
        Failure::new(format!("hearthd answered with {answer}: install hearthd and the shim from one release"))
    };
    // Without the scheme containerd 1.x takes an address for an abstract socket.
    if !reply.address.starts_with("unix:///") || reply.address.contains(char::is_control) {
        return Err(misfit(format!("the task socket {:?}, which is not a unix:/// address", reply.address)));
    }
    match (stdin, reply.version) {
        (StdinMessage::Params(_), 2 | 3) => Ok(Form::Protobuf),
        (StdinMessage::Options(_), 2) => Ok(Form::Plain),
        (StdinMessage::Options(_), 3) if accepts_version_3 => Ok(Form::Json),
        (StdinMessage::Options(_), 3) => {
            Err(misfit("version 3 of the Task API, which containerd 1.6 does not know".into()))
        }
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

/// Writes `<bundle>/address`. It appears whole or not at all: containerd may restart, and read it, at any time.
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
        // A partial file is of no use. The first error is the one to report.
        let _ = fs::remove_file(temporary);
    }
    written
}

#[cfg(test)]
mod tests;
