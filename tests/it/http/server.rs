//! Servers for guests that fetch: each handles all connections in one way.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hearth_tests::tls::Authority;
use rustls::{ServerConnection, StreamOwned};

/// A server on the loopback.
pub struct Server {
    /// The server's address.
    pub at: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Server {
    /// Calls `serve` with each connection, on a thread of its own.
    pub fn new(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("the loopback is up");
        let at = listener.local_addr().expect("it is bound");
        let connections = Arc::new(AtomicUsize::new(0));
        let (counted, serve) = (connections.clone(), Arc::new(serve));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                counted.fetch_add(1, Ordering::SeqCst);
                let serve = serve.clone();
                std::thread::spawn(move || serve(stream.expect("a connection")));
            }
        });
        Server { at, connections }
    }

    /// Answers every request with `hello`.
    pub fn greets() -> Server {
        Server::new(greet)
    }

    /// The same over TLS, as `name`, with a certificate of this authority.
    pub fn greets_by_tls(authority: &Authority, name: &str) -> Server {
        let config = Arc::new(authority.server(name));
        Server::new(move |stream| {
            let tls = ServerConnection::new(config.clone()).expect("the configuration is right");
            greet(StreamOwned::new(tls, stream));
        })
    }

    /// Reads a request's head, writes `answer`, and keeps the connection until the client closes it.
    pub fn says(answer: &'static [u8]) -> Server {
        Server::new(move |mut stream| {
            if read_head(&mut stream).is_some() && stream.write_all(answer).is_ok() {
                let _ = stream.read(&mut [0; 1]);
            }
        })
    }

    /// Reads a request's head, writes `answer`, and closes the connection.
    pub fn cuts(answer: &'static [u8]) -> Server {
        Server::new(move |mut stream| {
            if read_head(&mut stream).is_some() {
                let _ = stream.write_all(answer);
            }
        })
    }

    /// The number of connections so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// `localhost` and its port.
    pub fn authority(&self) -> String {
        format!("localhost:{}", self.at.port())
    }
}

/// A request's head, in lower case; `None` at the connection's end.
pub fn read_head(stream: &mut impl Read) -> Option<String> {
    let (mut head, mut byte) = (Vec::new(), [0; 1]);
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    Some(String::from_utf8_lossy(&head).to_ascii_lowercase())
}

/// Answers each request with `hello` and the number of bytes of its body.
fn greet(mut stream: impl Read + Write) {
    while let Some(head) = read_head(&mut stream) {
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: u64 = length.map_or(0, |length| length.trim().parse().expect("a length"));
        let read = std::io::copy(&mut Read::by_ref(&mut stream).take(length), &mut std::io::sink());
        let body = format!("hello {}", read.unwrap_or(0));
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}
