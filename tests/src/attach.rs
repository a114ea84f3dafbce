//! A connection to a container's stdin, as of `kubectl attach -i`, or to a pod's port, as of `kubectl port-forward`: a
//! WebSocket to containerd's streaming server, on which each message begins with the number of its stream.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::wait::SHORT;

/// The number of the stream of stdin, and of the data for the first port.
const FIRST: u8 = 0;

/// An open stdin. Dropping it closes it.
#[derive(Debug)]
pub struct Attached {
    connection: TcpStream,
}

impl Attached {
    /// Opens the URL that CRI's `Attach` answered: `http://HOST:PORT/PATH`. Must be called in the network of the
    /// server.
    ///
    /// # Panics
    /// If the server does not take it.
    pub(crate) fn open(url: &str) -> Self {
        Self { connection: connect(url) }
    }

    /// Writes to stdin.
    ///
    /// # Panics
    /// If the server is gone.
    pub fn write(&mut self, bytes: &[u8]) {
        send(&mut self.connection, bytes);
    }
}

/// A connection to a port of a pod. Dropping it closes it.
#[derive(Debug)]
pub struct Forwarded {
    connection: TcpStream,
}

impl Forwarded {
    /// Opens the URL that CRI's `PortForward` answered. Must be called in the network of the server.
    ///
    /// # Panics
    /// If the server does not take it.
    pub(crate) fn open(url: &str, port: u16) -> Self {
        // SPDY has the port in a header.
        Self { connection: connect(&format!("{url}?port={port}")) }
    }

    /// Writes to the port.
    ///
    /// # Panics
    /// If the server is gone.
    pub fn write(&mut self, bytes: &[u8]) {
        send(&mut self.connection, bytes);
    }

    /// All data from the port until it is closed, or the server's error.
    ///
    /// # Errors
    /// The text of the stream for errors.
    pub fn read_to_end(&mut self) -> Result<String, String> {
        const ERROR: u8 = 1;
        /// Both streams begin with the port's number.
        const PORT_BYTES: usize = 2;
        let mut streams = [Vec::new(), Vec::new()];
        while let Some(message) = receive(&mut self.connection) {
            if let Some((&stream, bytes)) = message.split_first() {
                streams[usize::from(stream == ERROR)].extend(bytes);
            }
        }
        let [data, error] =
            streams.map(|bytes| String::from_utf8_lossy(bytes.get(PORT_BYTES..).unwrap_or_default()).into_owned());
        if error.is_empty() { Ok(data) } else { Err(error) }
    }
}

/// A WebSocket to `http://HOST:PORT/PATH`.
fn connect(url: &str) -> TcpStream {
    let (address, path) =
        url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).expect("a streaming server has a URL");
    let mut connection = TcpStream::connect(address).unwrap_or_else(|error| panic!("{address}: {error}"));
    connection.set_read_timeout(Some(SHORT)).expect("a timeout can be set");
    let request = format!(
        "GET /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: aGVhcnRoIGhlYXJ0aCBoZQ==\r\n\
         Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n"
    );
    connection.write_all(request.as_bytes()).expect("the server reads a request");
    let head = head(&mut connection);
    assert!(head.starts_with("HTTP/1.1 101"), "{url}: {head}");
    connection
}

/// Messages to the first stream.
fn send(connection: &mut TcpStream, bytes: &[u8]) {
    // Short messages only: their length is in 7 bits.
    for part in bytes.chunks(100) {
        const FINAL_BINARY: u8 = 0x82;
        const MASKED: u8 = 0x80;
        let length = u8::try_from(part.len() + 1).expect("a part is short");
        // A client masks its data; a mask of zeros changes nothing.
        let mut message = vec![FINAL_BINARY, MASKED | length, 0, 0, 0, 0, FIRST];
        message.extend(part);
        connection.write_all(&message).expect("the server reads messages");
    }
}

/// The next message; none when the server closes.
fn receive(connection: &mut TcpStream) -> Option<Vec<u8>> {
    const CLOSE: u8 = 8;
    let mut head = [0; 2];
    connection.read_exact(&mut head).ok()?;
    let length = match head[1] & 0x7f {
        126 => {
            let mut length = [0; 2];
            connection.read_exact(&mut length).ok()?;
            usize::from(u16::from_be_bytes(length))
        }
        length => usize::from(length),
    };
    let mut message = vec![0; length];
    connection.read_exact(&mut message).ok()?;
    (head[0] & 0xf != CLOSE).then_some(message)
}

/// The head of an answer, up to the empty line. It is read byte by byte: the bytes after it belong to the first
/// message.
fn head(connection: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && connection.read(&mut byte).expect("the server answers") > 0 {
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).into_owned()
}
