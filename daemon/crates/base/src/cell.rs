//! The messages between the node's daemon and the cells, which are processes that run one pod each.
//!
//! * The daemon to a new cell, once: [`Orders`]; the cell's answer: [`Ready`]. JSON, one frame each.
//! * A cell to the daemon, whenever it needs a program: one [`ProgramRequest`] for each connection, one [`ProgramReply`]. The
//!   file of the module and the artifact go as descriptors, after the message that announces them.
//!
//! Fields are added, never changed: a cell outlives the daemon that made it, and asks the next one.

use std::io::{self, Read, Write};
use std::path::PathBuf;

use hearth_shim::{decode, frame, read_body};
use prost::Message;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::bundle::NetworkNamespace;
use crate::config::Config;
use crate::error::Error;

/// In the daemon's state directory: the state directory of its cells ([`crate::generation::directory`]).
pub const DIRECTORY: &str = "cells";

/// In the daemon's state directory: the socket on which the leading daemon gives cells their programs.
pub const PROGRAMS_SOCKET: &str = "programs.sock";

/// In a cell's directory: its [`About`].
pub const ABOUT_FILE: &str = "about.json";

/// In a cell's directory: a file for each task that has not ended, with its [`LivingTask`], named by the hexadecimal digits
/// of the id's hash.
pub const TASKS_DIRECTORY: &str = "tasks";

/// The longest message, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// The record of a cell: its pod and its process. It stays in the cell's directory, where the next daemon finds it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct About {
    /// containerd's gRPC socket.
    pub grpc: String,
    /// containerd's ttrpc socket.
    pub ttrpc: String,
    /// containerd's namespace.
    pub namespace: String,
    /// The pod's sandbox, or the only task.
    pub id: String,
    /// The directories of its control group.
    pub cgroup: Vec<PathBuf>,
    /// Its process id, as the daemon sees it.
    pub pid: u32,
}

/// The daemon's orders to a new cell.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Orders {
    /// The daemon's configuration in force.
    pub config: Config,
    /// The record of the cell.
    pub about: About,
    /// The network it enters.
    pub network: NetworkNamespace,
}

/// A new cell's answer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Ready {
    /// It serves.
    Serves {
        /// The name of its directory.
        id: String,
        /// Its task socket: `unix:///…`.
        address: String,
    },
    /// It does not, and ends.
    Failed {
        /// The reason, one line.
        why: String,
    },
}

/// A task of a cell that has not ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct LivingTask {
    /// Its id.
    pub id: String,
    /// The file that kubelet reads the reason of an end from.
    pub termination_log: Option<PathBuf>,
}

/// A cell's request for a program. Exactly one field of the body is set.
#[derive(Clone, PartialEq, Message)]
pub struct ProgramRequest {
    /// The fingerprint of the cell's engine: code of another engine is of no use to it.
    #[prost(string, tag = "1")]
    pub fingerprint: String,
    /// The body.
    #[prost(oneof = "program_request::Body", tags = "2, 3, 4")]
    pub body: Option<program_request::Body>,
}

/// Bodies of [`ProgramRequest`].
pub mod program_request {
    /// One variant per request.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Body {
        /// The program in a known place: 32 bytes.
        #[prost(bytes, tag = "2")]
        Place(Vec<u8>),
        /// The program of a module: its digest's 32 bytes.
        #[prost(bytes, tag = "3")]
        Digest(Vec<u8>),
        /// The program of a module whose file follows as a descriptor.
        #[prost(message, tag = "4")]
        File(super::ModuleFile),
    }
}

/// A module's file.
#[derive(Clone, PartialEq, Message)]
pub struct ModuleFile {
    /// Its name in messages.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its place: 32 bytes, or none. The daemon remembers it only if no guest can have run in the cell yet.
    #[prost(bytes, tag = "2")]
    pub place: Vec<u8>,
    /// The export that belongs to the place.
    #[prost(string, optional, tag = "3")]
    pub export: Option<String>,
}

/// The daemon's reply. Exactly one field of the body is set.
#[derive(Clone, PartialEq, Message)]
pub struct ProgramReply {
    /// The body.
    #[prost(oneof = "program_reply::Body", tags = "1, 2, 3")]
    pub body: Option<program_reply::Body>,
}

/// Bodies of [`ProgramReply`].
pub mod program_reply {
    /// One variant per reply.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Body {
        /// It cannot be had.
        #[prost(message, tag = "1")]
        Refused(super::Refused),
        /// It is not known: the cell has to look it up.
        #[prost(message, tag = "2")]
        Unknown(super::Unknown),
        /// Its artifact follows as a descriptor.
        #[prost(message, tag = "3")]
        Program(super::ProgramFound),
    }
}

/// A program that is not known.
#[derive(Clone, PartialEq, Message)]
pub struct Unknown {}

/// A program's artifact, checked by the daemon.
#[derive(Clone, PartialEq, Message)]
pub struct ProgramFound {
    /// The module's digest: 32 bytes.
    #[prost(bytes, tag = "1")]
    pub digest: Vec<u8>,
    /// Whether the module is a component.
    #[prost(bool, tag = "2")]
    pub component: bool,
    /// The export to call, if the place has one.
    #[prost(string, optional, tag = "3")]
    pub export: Option<String>,
    /// Where the daemon had it from: the number of a `Source` of hearth-observe.
    #[prost(uint32, tag = "4")]
    pub source: u32,
    /// The duration of that compile, in seconds.
    #[prost(double, optional, tag = "5")]
    pub compile_seconds: Option<f64>,
}

/// An error, with its kind.
#[derive(Clone, PartialEq, Message)]
pub struct Refused {
    /// The ttrpc code of the error, or 0 for [`Error::Native`].
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// One line.
    #[prost(string, tag = "2")]
    pub text: String,
}

impl From<&Error> for Refused {
    fn from(error: &Error) -> Refused {
        let code = if matches!(error, Error::Native(_)) { 0 } else { error.code() as i32 };
        Refused { code, text: error.to_string() }
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Error {
        let Refused { code, text } = refused;
        let all = [
            Error::InvalidArgument,
            Error::NotFound,
            Error::AlreadyExists,
            Error::FailedPrecondition,
            Error::ResourceExhausted,
            Error::Unimplemented,
            Error::Unavailable,
        ];
        if code == 0 {
            return Error::Native(text);
        }
        match all.iter().find(|make| make(String::new()).code() as i32 == code) {
            Some(make) => make(text),
            None => Error::Internal(text),
        }
    }
}

/// Writes a message of protobuf; blocks.
///
/// # Errors
/// `InvalidInput` if it is longer than [`MESSAGE_BYTES_MAX`]; the writer's.
pub fn write(writer: &mut impl Write, message: &impl Message) -> io::Result<()> {
    writer.write_all(&frame(&message.encode_to_vec(), MESSAGE_BYTES_MAX)?)
}

/// Reads a message of protobuf; blocks.
///
/// # Errors
/// `InvalidData` if it is longer than [`MESSAGE_BYTES_MAX`] or another message; the reader's.
pub fn read<M: Message + Default>(reader: &mut impl Read) -> io::Result<M> {
    decode(&read_body(reader, MESSAGE_BYTES_MAX)?)
}

/// Writes a message of JSON; blocks.
///
/// # Errors
/// `InvalidInput` if it is longer than [`MESSAGE_BYTES_MAX`]; the writer's.
pub fn write_json(writer: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    writer.write_all(&frame(&serde_json::to_vec(message)?, MESSAGE_BYTES_MAX)?)
}

/// Reads a message of JSON; blocks.
///
/// # Errors
/// `InvalidData` if it is longer than [`MESSAGE_BYTES_MAX`] or another message; the reader's.
pub fn read_json<T: DeserializeOwned>(reader: &mut impl Read) -> io::Result<T> {
    Ok(serde_json::from_slice(&read_body(reader, MESSAGE_BYTES_MAX)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_its_kind_on_its_way() {
        let text = || "x".to_string();
        for error in [
            Error::InvalidArgument(text()),
            Error::Native(text()),
            Error::NotFound(text()),
            Error::AlreadyExists(text()),
            Error::FailedPrecondition(text()),
            Error::ResourceExhausted(text()),
            Error::Unimplemented(text()),
            Error::Unavailable(text()),
            Error::Internal(text()),
        ] {
            assert_eq!(Error::from(Refused::from(&error)), error);
        }
    }

    #[test]
    fn messages_are_framed_and_bounded() {
        let mut bytes = Vec::new();
        write_json(&mut bytes, &"abc").unwrap();
        assert_eq!(read_json::<String>(&mut bytes.as_slice()).unwrap(), "abc");
        let kind = |bytes: &[u8]| read_json::<String>(&mut &*bytes).unwrap_err().kind();
        assert_eq!(kind(&bytes[..5]), io::ErrorKind::UnexpectedEof);
        assert_eq!(kind(&[0xff; 8]), io::ErrorKind::InvalidData);
        assert!(write_json(&mut Vec::new(), &"x".repeat(MESSAGE_BYTES_MAX)).is_err());
    }

    #[test]
    fn orders_survive_the_way() {
        let orders = Orders {
            config: Config::default(),
            about: About { id: "a".into(), cgroup: vec!["/g".into()], ..About::default() },
            network: NetworkNamespace::Path("/n".into()),
        };
        let again: Orders = serde_json::from_slice(&serde_json::to_vec(&orders).unwrap()).unwrap();
        assert_eq!((again.config, again.about, again.network), (orders.config, orders.about, orders.network));
    }
}
