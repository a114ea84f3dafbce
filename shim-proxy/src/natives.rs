//! The native containers of a dead daemon: runc's shims, which still run, and their containers.
//!
//! The daemon gives runc's shim the bundle `<the sandbox's bundle>/native/<id>`, or one in its own state directory if
//! the sandbox has none, and writes the shim's address and Task API version into [`NATIVE_ADDRESS_FILE`] there; it
//! removes the directory when the container is deleted in good order. So a directory of a dead daemon means that no
//! process manages its container any more.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use prost::Message;
use rustix::process::{Pid, Signal};

use crate::{NATIVE_ADDRESS_FILE, NATIVE_BUNDLES};

/// containerd's shim for native containers, which is found in `PATH` like this one.
pub const RUNC_SHIM: &str = "containerd-shim-runc-v2";

/// The time that it may take to answer with its pid; containerd gives the whole of `delete` five seconds.
const ANSWER_TIME: Duration = Duration::from_secs(1);

/// The longest answer to a question for a pid, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// ttrpc's message types.
const REQUEST: u8 = 1;

/// `ttrpc.Request`.
#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(string, tag = "1")]
    service: String,
    #[prost(string, tag = "2")]
    method: String,
    #[prost(bytes = "vec", tag = "3")]
    payload: Vec<u8>,
}

/// `ttrpc.Response`, without its status: an error has no payload.
#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(bytes = "vec", tag = "2")]
    payload: Vec<u8>,
}

/// `ConnectRequest` of the Task API.
#[derive(Clone, PartialEq, Message)]
struct ConnectRequest {
    #[prost(string, tag = "1")]
    id: String,
}

/// `ConnectResponse` of the Task API.
#[derive(Clone, PartialEq, Message)]
struct ConnectResponse {
    #[prost(uint32, tag = "1")]
    shim_pid: u32,
}

/// Ends every native container that lies in the bundle of a sandbox, and its shim. `namespace` and `address`
/// are containerd's.
pub fn clean(bundle: &Path, namespace: &str, address: &str) {
    let Ok(entries) = std::fs::read_dir(bundle.join(NATIVE_BUNDLES)) else { return };
    for entry in entries.flatten() {
        if let Some(id) = entry.file_name().to_str() {
            end(Path::new(RUNC_SHIM), &entry.path(), id, namespace, address);
        }
    }
}

/// Ends the native container `id` whose bundle this is, and its shim; `shim` is the program of the latter.
pub fn end(shim: &Path, bundle: &Path, id: &str, namespace: &str, address: &str) {
    if let Some(pid) = shim_pid(bundle, id).and_then(|pid| Pid::from_raw(pid.cast_signed())) {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
    // It removes the container by force, in any state.
    let _ = Command::new(shim)
        .args(["-namespace", namespace, "-address", address, "-id", id, "-bundle"])
        .arg(bundle)
        .arg("delete")
        .current_dir(bundle)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

/// Asks the shim that serves `id`.
fn shim_pid(bundle: &Path, id: &str) -> Option<u32> {
    let text = std::fs::read_to_string(bundle.join(NATIVE_ADDRESS_FILE)).ok()?;
    let mut lines = text.lines();
    let (address, version) = (lines.next()?, lines.next()?);
    let mut stream = UnixStream::connect(address.strip_prefix("unix://").unwrap_or(address)).ok()?;
    stream.set_read_timeout(Some(ANSWER_TIME)).ok()?;
    stream.set_write_timeout(Some(ANSWER_TIME)).ok()?;
    let request = Request {
        service: format!("containerd.task.v{version}.Task"),
        method: "Connect".into(),
        payload: ConnectRequest { id: id.into() }.encode_to_vec(),
    };
    stream.write_all(&frame(&request)).ok()?;
    let mut header = [0; 10];
    stream.read_exact(&mut header).ok()?;
    let length = u32::from_be_bytes(*header.first_chunk()?) as usize;
    let mut answer = vec![0; (length <= ANSWER_BYTES_MAX).then_some(length)?];
    stream.read_exact(&mut answer).ok()?;
    let response = Response::decode(answer.as_slice()).ok()?;
    let pid = ConnectResponse::decode(response.payload.as_slice()).ok()?.shim_pid;
    (pid > 1).then_some(pid)
}

/// ttrpc's framing: length, stream, type, flags.
fn frame(request: &Request) -> Vec<u8> {
    let body = request.encode_to_vec();
    let mut frame = (body.len() as u32).to_be_bytes().to_vec();
    frame.extend_from_slice(&1u32.to_be_bytes());
    frame.extend_from_slice(&[REQUEST, 0]);
    frame.extend_from_slice(&body);
    frame
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_shim_is_asked_for_its_pid() {
        let bundle = tempfile::tempdir().unwrap();
        let socket = bundle.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        std::fs::write(bundle.path().join(NATIVE_ADDRESS_FILE), format!("unix://{}\n2\n", socket.display())).unwrap();
        let shim = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut header = [0; 10];
            stream.read_exact(&mut header).unwrap();
            let mut body = vec![0; u32::from_be_bytes(*header.first_chunk().unwrap()) as usize];
            stream.read_exact(&mut body).unwrap();
            let request = Request::decode(body.as_slice()).unwrap();
            assert_eq!((request.service.as_str(), request.method.as_str()), ("containerd.task.v2.Task", "Connect"));
            let payload = ConnectResponse { shim_pid: 4711 }.encode_to_vec();
            let body = Response { payload }.encode_to_vec();
            let mut answer = (body.len() as u32).to_be_bytes().to_vec();
            answer.extend_from_slice(&[0, 0, 0, 1, 2, 0]);
            answer.extend_from_slice(&body);
            stream.write_all(&answer).unwrap();
        });
        assert_eq!(shim_pid(bundle.path(), "id"), Some(4711));
        shim.join().unwrap();
        assert_eq!(shim_pid(bundle.path(), "id"), None, "it is gone");
        assert_eq!(shim_pid(&bundle.path().join("absent"), "id"), None);
    }
}
