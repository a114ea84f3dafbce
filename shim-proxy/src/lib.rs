//! The contract between `containerd-shim-hearth-v1` and `hearthd`.
//!
//! The shim dials the daemon's control socket, sends one [`Request`], reads one [`Reply`] and exits.
//! Both are protobuf messages behind a little-endian `u32` length, so that a shim and a daemon of
//! different releases understand each other: fields are added, never changed.
//!
//! The daemon depends on this crate; this crate depends on nothing of the daemon.
#![forbid(unsafe_code)]

pub mod args;
pub mod failure;
pub mod features;
pub mod natives;

use std::io::{self, Read, Write};

use prost::Message;

/// Where `hearthd` listens when neither its configuration nor [`CONTROL_SOCKET_ENV`] says otherwise.
pub const CONTROL_SOCKET: &str = "/run/hearth/control.sock";

/// Environment variable of containerd (inherited by the shim) that names another control socket.
pub const CONTROL_SOCKET_ENV: &str = "HEARTH_CONTROL_SOCKET";

/// Below a bundle: the bundles the daemon makes for native containers, each named by its id.
pub const NATIVE_BUNDLES: &str = "native";

/// In such a bundle: the address of the runc shim that serves it and, on a second line, the version of
/// the Task API it speaks. In one that lies in the daemon's state directory: on two more, containerd's
/// namespace and its gRPC socket.
pub const NATIVE_ADDRESS_FILE: &str = "hearth-shim-address";

/// The longest frame either side accepts, in bytes.
pub const MAX_FRAME_BYTES: usize = 64 * 1024;

/// A request to the daemon. Exactly one field is set.
#[derive(Clone, PartialEq, Message)]
pub struct Request {
    /// The body.
    #[prost(oneof = "request::Body", tags = "1, 2")]
    pub body: Option<request::Body>,
}

/// Bodies of [`Request`].
pub mod request {
    /// One variant for each kind of request.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Body {
        /// The address of the task socket for a containerd instance and namespace.
        #[prost(message, tag = "1")]
        TaskSocket(super::TaskSocketRequest),
        /// An operator's question (`hearthctl`): JSON of the daemon's own. The shim never asks one.
        #[prost(bytes, tag = "2")]
        Operator(Vec<u8>),
    }
}

/// Asks for the task socket of one containerd instance and namespace.
#[derive(Clone, PartialEq, Message)]
pub struct TaskSocketRequest {
    /// containerd's namespace (`-namespace`): it is absent from the metadata of later calls on some
    /// versions, so the address answered here stands for it.
    #[prost(string, tag = "1")]
    pub namespace: String,
    /// containerd's gRPC socket path (`-address`); with the namespace it names the instance.
    #[prost(string, tag = "2")]
    pub grpc_address: String,
    /// containerd's ttrpc socket path (`TTRPC_ADDRESS`), where events go.
    #[prost(string, tag = "3")]
    pub ttrpc_address: String,
    /// Task or sandbox id (`-id`), for the log only.
    #[prost(string, tag = "4")]
    pub id: String,
    /// containerd's version if it passed one (containerd >= 2.3), else empty: the daemon asks for it.
    #[prost(string, tag = "5")]
    pub containerd_version: String,
    /// False where the caller can only take a plain address (containerd 1.6): the daemon need not
    /// ask for the version.
    #[prost(bool, tag = "6")]
    pub accepts_version_3: bool,
    /// The bundle, an absolute path; empty if there is none. Its files name the pod of a container, and so the
    /// generation of the daemon that has it.
    #[prost(string, tag = "7")]
    pub bundle: String,
    /// The `ConfigPath` of the runtime's options, if containerd passed options of that kind; else empty.
    #[prost(string, tag = "8")]
    pub config_path: String,
}

/// The daemon's answer. Exactly one field is set.
#[derive(Clone, PartialEq, Message)]
pub struct Reply {
    /// The body.
    #[prost(oneof = "reply::Body", tags = "1, 2, 3")]
    pub body: Option<reply::Body>,
}

/// Bodies of [`Reply`].
pub mod reply {
    /// One variant for each kind of answer.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Body {
        /// One line for the user, with the fault and its remedy.
        #[prost(string, tag = "1")]
        Error(String),
        /// Answer to [`super::TaskSocketRequest`].
        #[prost(message, tag = "2")]
        TaskSocket(super::TaskSocketReply),
        /// A piece of the answer to an operator's question. More replies follow on the same connection, each
        /// a frame, until an empty piece: an answer may be longer than [`super::MAX_FRAME_BYTES`].
        #[prost(bytes, tag = "3")]
        Operator(Vec<u8>),
    }
}

/// The task socket, and the version of the Task API that containerd uses on it.
#[derive(Clone, PartialEq, Message)]
pub struct TaskSocketReply {
    /// `unix:///...`: without the scheme containerd 1.x takes it for an abstract socket.
    #[prost(string, tag = "1")]
    pub address: String,
    /// 2 for containerd 1.x, 3 from containerd 2.0 on.
    #[prost(uint32, tag = "2")]
    pub version: u32,
}

/// `runtimeoptions.v1.Options`, as containerd's CRI and `ctr --runtime-config-path` pass it
/// (api/types/runtimeoptions/v1/api.proto).
#[derive(Clone, PartialEq, Message)]
struct RuntimeOptions {
    #[prost(string, tag = "2")]
    config_path: String,
}

/// The `ConfigPath` of a runtime's options: the type of the message and its bytes, as in a `google.protobuf.Any`. `None`
/// for options of another type, which have none.
pub fn config_path(type_url: &str, value: &[u8]) -> Option<String> {
    if !type_url.ends_with("runtimeoptions.v1.Options") {
        return None;
    }
    RuntimeOptions::decode(value).ok().map(|options| options.config_path)
}

/// Writes one framed message.
///
/// # Errors
/// `InvalidInput` if it is longer than [`MAX_FRAME_BYTES`]; else the writer's error.
pub fn write_frame<M: Message>(writer: &mut impl Write, message: &M) -> io::Result<()> {
    writer.write_all(&encode_frame(message)?)
}

/// Reads one framed message.
///
/// # Errors
/// `InvalidData` if the length is over [`MAX_FRAME_BYTES`] or the bytes are not such a message; else the reader's
/// error.
pub fn read_frame<M: Message + Default>(reader: &mut impl Read) -> io::Result<M> {
    decode(&read_body(reader, MAX_FRAME_BYTES)?)
}

/// The bytes of a framed message, for callers with their own writer.
///
/// # Errors
/// As [`write_frame`].
pub fn encode_frame<M: Message>(message: &M) -> io::Result<Vec<u8>> {
    frame(&message.encode_to_vec(), MAX_FRAME_BYTES)
}

/// A frame: the length of the body, then the body.
///
/// # Errors
/// `InvalidInput` if the body is longer than `bytes_max`.
pub fn frame(body: &[u8], bytes_max: usize) -> io::Result<Vec<u8>> {
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= bytes_max).ok_or_else(|| {
        let text = format!("a message of {} bytes is over the limit of {bytes_max}", body.len());
        io::Error::new(io::ErrorKind::InvalidInput, text)
    })?;
    Ok([&length.to_le_bytes(), body].concat())
}

/// Reads the body of one frame.
///
/// # Errors
/// As [`frame_length`]; else the reader's error.
pub fn read_body(reader: &mut impl Read, bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut prefix = [0; 4];
    reader.read_exact(&mut prefix)?;
    let mut body = vec![0; frame_length(prefix, bytes_max)?];
    reader.read_exact(&mut body)?;
    Ok(body)
}

/// The body's length announced by a frame's first four bytes.
///
/// # Errors
/// `InvalidData` if it is over `bytes_max`.
pub fn frame_length(prefix: [u8; 4], bytes_max: usize) -> io::Result<usize> {
    let length = u32::from_le_bytes(prefix) as usize;
    if length > bytes_max {
        let text = format!("a message announces {length} bytes, over the limit of {bytes_max}: is the peer of Hearth?");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(length)
}

/// Decodes a frame's body.
///
/// # Errors
/// `InvalidData` if the bytes are not such a message.
pub fn decode<M: Message + Default>(bytes: &[u8]) -> io::Result<M> {
    M::decode(bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    /// Checks that a page lists each file of its folder with its purpose, as `` * `NAME`: PURPOSE ``, and no other. (The
    /// check of the tests' package depends on this crate.)
    fn is_complete(folder: &str, page: &str) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let text = fs::read_to_string(folder.join(page)).unwrap();
        let lines = text.lines().map(|line| line.trim_start_matches("//!").trim_start());
        let entries = lines.filter_map(|line| line.strip_prefix("* `")?.split_once("`: "));
        let listed: BTreeSet<_> = entries.map(|(name, _)| name.to_owned()).collect();
        let files = fs::read_dir(&folder).unwrap().map(|file| file.unwrap()).map(|file| {
            let mark = if file.file_type().unwrap().is_dir() { "/" } else { "" };
            file.file_name().into_string().unwrap() + mark
        });
        let files: BTreeSet<_> = files.filter(|name| name != "README.md").collect();
        assert_eq!(listed, files, "{}", folder.join(page).display());
    }

    #[test]
    fn options_name_a_path() {
        // Field 1 "x", field 2 "isolation=pod".
        let value = b"\x0a\x01x\x12\x0disolation=pod";
        assert_eq!(config_path("runtimeoptions.v1.Options", value).as_deref(), Some("isolation=pod"));
        assert_eq!(config_path("containerd.runc.v1.Options", value), None);
        assert_eq!(config_path("runtimeoptions.v1.Options", b"\xff"), None);
    }

    #[test]
    fn each_file_of_the_shim_is_listed_with_its_purpose() {
        is_complete(".", "README.md");
        is_complete("src", "main.rs");
    }
}
