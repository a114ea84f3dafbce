//! A call at the daemon's task socket, as containerd makes one: for what no containerd of today sends by itself.
//!
//! ttrpc is a header of ten bytes (length, stream, kind, flags) before each message of protobuf.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use prost::Message;

use crate::wait::SHORT;

/// Kinds of messages.
const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;

/// The service that every version of containerd knows.
const SERVICE: &str = "containerd.task.v2.Task";

#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(string, tag = "1")]
    service: String,
    #[prost(string, tag = "2")]
    method: String,
    #[prost(bytes = "vec", tag = "3")]
    payload: Vec<u8>,
    #[prost(int64, tag = "4")]
    timeout_nano: i64,
    #[prost(message, repeated, tag = "5")]
    metadata: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(message, optional, tag = "1")]
    status: Option<Status>,
    #[prost(bytes = "vec", tag = "2")]
    payload: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

/// What Create is asked, as far as it is needed.
#[derive(Clone, PartialEq, Message)]
struct CreateTaskRequest {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    bundle: String,
}

/// Start, Kill, Delete: whatever names a task first.
#[derive(Clone, PartialEq, Message)]
struct OfTask {
    #[prost(string, tag = "1")]
    id: String,
}

/// A connection to a task socket.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    calls: u32,
}

impl Client {
    /// Connects.
    ///
    /// # Panics
    /// If nobody listens.
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap_or_else(|error| panic!("{}: {error}", socket.display()));
        stream.set_read_timeout(Some(SHORT)).expect("a timeout can be set");
        Self { stream, calls: 0 }
    }

    /// Creates a task of a bundle whose root is complete.
    ///
    /// # Errors
    /// What was answered.
    pub fn create(&mut self, id: &str, bundle: &Path, metadata: &[(&str, &str)]) -> Result<(), String> {
        let request = CreateTaskRequest { id: id.to_owned(), bundle: bundle.display().to_string() };
        self.call("Create", &request, metadata)
    }

    /// Calls a method that needs a task's id and no more.
    ///
    /// # Errors
    /// What was answered.
    pub fn of_task(&mut self, method: &str, id: &str, metadata: &[(&str, &str)]) -> Result<(), String> {
        self.call(method, &OfTask { id: id.to_owned() }, metadata)
    }

    fn call(&mut self, method: &str, payload: &impl Message, metadata: &[(&str, &str)]) -> Result<(), String> {
        let entry = |&(key, value): &(&str, &str)| KeyValue { key: key.to_owned(), value: value.to_owned() };
        let request = Request {
            service: SERVICE.to_owned(),
            method: method.to_owned(),
            payload: payload.encode_to_vec(),
            timeout_nano: 0,
            metadata: metadata.iter().map(entry).collect(),
        };
        let body = request.encode_to_vec();
        // A client's streams have odd numbers.
        let stream = self.calls * 2 + 1;
        self.calls += 1;
        let length = u32::try_from(body.len()).expect("a short message");
        let header = [&length.to_be_bytes()[..], &stream.to_be_bytes(), &[REQUEST, 0]].concat();
        self.stream.write_all(&[header, body].concat()).expect("the daemon reads");
        let mut header = [0; 10];
        self.stream.read_exact(&mut header).expect("the daemon answers");
        assert_eq!(header[8], RESPONSE, "{header:?}");
        let length = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
        let mut body = vec![0; length as usize];
        self.stream.read_exact(&mut body).expect("the daemon answers");
        match Response::decode(&body[..]).expect("it is an answer").status {
            Some(Status { code, message }) if code != 0 => Err(message),
            _ => Ok(()),
        }
    }
}
