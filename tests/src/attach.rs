//! A hand on a container's stdin, as `kubectl attach -i` has it: a WebSocket to containerd's streaming
//! server, on which each message begins with the number of its stream.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::wait::SHORT;

/// The number of stdin.
const STDIN: u8 = 0;

/// An open stdin. Dropping it closes it.
#[derive(Debug)]
pub struct Attached {
    connection: TcpStream,
}

impl Attached {
    /// Opens what CRI's `Attach` answered: `http://HOST:PORT/PATH`. Must be called in the network of the server.
    ///
    /// # Panics
    /// If the server does not take it.
    pub(crate) fn open(url: &str) -> Self {
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
        Self { connection }
    }

    /// Writes to stdin.
    ///
    /// # Panics
    /// If the server is gone.
    pub fn write(&mut self, bytes: &[u8]) {
        // Short messages only: their length is in 7 bits.
        for part in bytes.chunks(100) {
            const FINAL_BINARY: u8 = 0x82;
            const MASKED: u8 = 0x80;
            let length = u8::try_from(part.len() + 1).expect("a part is short");
            // A client masks what it sends; with zeros, nothing changes.
            let mut message = vec![FINAL_BINARY, MASKED | length, 0, 0, 0, 0, STDIN];
            message.extend(part);
            self.connection.write_all(&message).expect("the server reads messages");
        }
    }
}

/// An answer up to the empty line, byte by byte: what follows is not ours to read.
fn head(connection: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && connection.read(&mut byte).expect("the server answers") > 0 {
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).into_owned()
}
