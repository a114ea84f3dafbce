//! A service that is stopped under load.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hearth_tests::{SHORT, World, eventually};

use super::TwoServices;
use crate::only_on_hearth;

/// The number of requests in all, and of the clients that share them.
const REQUESTS: usize = 10_000;
const CLIENTS: usize = 8;

/// A client that keeps its connection as long as the service does. It connects again after a response with `connection:
/// close`, and goes to the next service when the first one's port is closed.
struct FailoverClient {
    services: Vec<SocketAddr>,
    connection: Option<BufReader<TcpStream>>,
}

impl FailoverClient {
    fn connected(&mut self) -> BufReader<TcpStream> {
        if let Some(connection) = self.connection.take() {
            return connection;
        }
        let stream = self.services.iter().find_map(|at| TcpStream::connect(at).ok()).expect("one of them listens");
        stream.set_read_timeout(Some(SHORT)).expect("it is a socket");
        BufReader::new(stream)
    }

    /// Sends one request, without a retry.
    fn ask(&mut self) -> Result<(), String> {
        let mut connection = self.connected();
        let text = |error: std::io::Error| error.to_string();
        connection.get_mut().write_all(b"GET /count HTTP/1.1\r\nHost: here\r\n\r\n").map_err(text)?;
        let (mut head, mut body) = (String::new(), [0; 2]);
        while !head.ends_with("\r\n\r\n") {
            if connection.read_line(&mut head).map_err(text)? == 0 {
                return Err(format!("the connection ended after {head:?}"));
            }
        }
        let head = head.to_ascii_lowercase();
        if head.contains("transfer-encoding: chunked") {
            let mut chunks = [0; 12];
            connection.read_exact(&mut chunks).map_err(text)?;
            body.copy_from_slice(&chunks[3..5]);
        } else {
            connection.read_exact(&mut body).map_err(text)?;
        }
        if !head.starts_with("http/1.1 200 ") || &body != b"1\n" {
            return Err(head);
        }
        if !head.contains("connection: close") {
            self.connection = Some(connection);
        }
        Ok(())
    }
}

#[test]
fn no_request_of_ten_thousand_fails_when_a_service_is_stopped_under_load() {
    only_on_hearth!();
    let world = World::new();
    let mut services = TwoServices::start(&world, ["old", "new"]);
    let [old, new] = services.addresses;
    let answered = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let answered = answered.clone();
            std::thread::spawn(move || {
                let mut client = FailoverClient { services: vec![old, new], connection: None };
                let mut failures = Vec::new();
                for _ in 0..REQUESTS / CLIENTS {
                    failures.extend(client.ask().err());
                    answered.fetch_add(1, Ordering::SeqCst);
                }
                failures
            })
        })
        .collect();
    eventually("a third is answered", SHORT, || (answered.load(Ordering::SeqCst) > REQUESTS / 3).then_some(()));
    services.stop_one();
    assert!(answered.load(Ordering::SeqCst) < REQUESTS, "it was stopped in the middle");
    for client in clients {
        assert_eq!(client.join().expect("it does not panic"), Vec::<String>::new());
    }
    services.stop();
}
