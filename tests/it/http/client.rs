//! An HTTP/1.1 client that writes every byte itself.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use hearth_tests::SHORT;

/// A client's connection.
pub struct Client {
    /// The reading side; the stream in it is the writing side, too.
    pub reader: BufReader<TcpStream>,
}

/// A response.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
    /// The trailers of a chunked body.
    pub trailers: String,
    /// Whether the body came to its end.
    pub whole: bool,
}

impl Response {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("it is text")
    }
}

impl Client {
    pub fn connect(at: SocketAddr) -> Self {
        let stream = TcpStream::connect(at).expect("the service listens");
        stream.set_read_timeout(Some(SHORT)).expect("it is a socket");
        Client { reader: BufReader::new(stream) }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.reader.get_mut().write_all(bytes).expect("the service reads");
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).expect("the service answers");
        line
    }

    /// One response; `None` if there is none any more.
    pub fn receive(&mut self, to_head: bool) -> Option<Response> {
        let first = self.line();
        let status = first.split(' ').nth(1)?.parse().expect("a status line");
        let mut response = Response { status, head: first, body: Vec::new(), trailers: String::new(), whole: true };
        loop {
            let line = self.line();
            if line == "\r\n" || line.is_empty() {
                break;
            }
            response.head += &line.to_ascii_lowercase();
        }
        let length = response.head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if to_head || matches!(status, 100 | 204 | 304) {
            return Some(response);
        }
        if let Some(length) = length {
            response.body = vec![0; length.trim().parse().expect("a length")];
            self.reader.read_exact(&mut response.body).expect("the service sends all of it");
        } else if response.head.contains("transfer-encoding: chunked") {
            self.chunks(&mut response);
        }
        Some(response)
    }

    fn chunks(&mut self, response: &mut Response) {
        loop {
            let line = self.line();
            let Ok(size) = usize::from_str_radix(line.trim(), 16) else {
                response.whole = false;
                return;
            };
            if size == 0 {
                break;
            }
            let begin = response.body.len();
            response.body.resize(begin + size, 0);
            self.reader.read_exact(&mut response.body[begin..]).expect("a whole piece");
            self.line();
        }
        loop {
            let line = self.line();
            if line.trim().is_empty() {
                return;
            }
            response.trailers += &line;
        }
    }

    pub fn get(&mut self, path: &str) -> Response {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: here\r\n\r\n").as_bytes());
        self.receive(false).expect("an answer")
    }
}

/// The answer to a GET on a connection of its own.
pub fn get(at: SocketAddr, path: &str) -> Response {
    Client::connect(at).get(path)
}
