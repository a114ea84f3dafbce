//! The HTTP servers that tests ask, and the requests to tests. Each connection has one exchange.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use hearth_tests::SHORT;

use crate::case::{Endpoint, Response, Server, ShortResponse};
use crate::runtime::free_port;

/// A message: its first line, headers in lower case, body and trailers.
struct Message {
    first: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    trailers: Vec<(String, String)>,
}

/// A response.
pub struct Answer {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        value(&self.headers, &name.to_lowercase())
    }
}

/// Sends a request, and reads its response.
///
/// # Errors
/// Of the connection, or if the response is none.
pub fn ask(
    address: &str,
    method: &str,
    path: &str,
    headers: &BTreeMap<String, String>,
    body: &str,
) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(SHORT))?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    stream.write_all(format!("{head}\r\n{body}").as_bytes())?;
    let message = read(&mut BufReader::new(stream), true)?;
    let status = message.first.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| io::Error::other(format!("not a response: {:?}", message.first)))?;
    Ok(Answer { status, headers: message.headers, body: message.body })
}

/// Servers by the variables that have their addresses. Their threads end with this program.
pub struct Servers {
    environment: BTreeMap<String, String>,
}

impl Servers {
    /// Starts them.
    pub fn start(servers: &[Server]) -> Self {
        let start = |server: &Server| {
            let name = format!("HTTP_SERVER_{}", server.name.to_uppercase());
            let port = match server.kind.as_deref() {
                Some("closed") => free_port(),
                _ => serve(server.endpoints.clone()),
            };
            (name, format!("127.0.0.1:{port}"))
        };
        Self { environment: servers.iter().map(start).collect() }
    }

    /// For the test.
    pub fn environment(&self) -> BTreeMap<String, String> {
        self.environment.clone()
    }
}

fn serve(endpoints: Vec<Endpoint>) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let port = listener.local_addr().expect("it is bound").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let endpoints = endpoints.clone();
            // A client that breaks off has its answer in its own test.
            std::thread::spawn(move || answer(&stream, &endpoints));
        }
    });
    port
}

fn answer(mut stream: &TcpStream, endpoints: &[Endpoint]) -> io::Result<()> {
    stream.set_read_timeout(Some(SHORT))?;
    let message = read(&mut BufReader::new(stream), false)?;
    let mut words = message.first.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let response =
        endpoints.iter().find(|endpoint| endpoint.method.eq_ignore_ascii_case(method) && endpoint.path == path);
    let mut echo = Vec::new();
    let response = match response {
        None => Response { status: 404, ..Response::default() },
        Some(endpoint) => match (endpoint.mode.as_deref(), &endpoint.response) {
            (Some("echo-body"), _) => {
                Response { body: String::from_utf8_lossy(&message.body).into_owned(), ..Response::default() }
            }
            (Some("echo-headers"), _) => {
                echo = echoed(method, path, &message);
                Response::default()
            }
            (_, Some(ShortResponse::Whole(response))) => response.clone(),
            (_, Some(ShortResponse::Body(body))) => Response { body: body.clone(), ..Response::default() },
            (_, None) => Response::default(),
        },
    };
    stream.write_all(&encoded(&response, &echo, method == "HEAD"))
}

/// The request as headers, of which one name may be there more than once.
fn echoed(method: &str, path: &str, message: &Message) -> Vec<(String, String)> {
    let mut headers =
        vec![("x-request-method".to_owned(), method.to_owned()), ("x-request-path".to_owned(), path.to_owned())];
    for (prefix, fields) in [("x-echo-", &message.headers), ("x-trailer-", &message.trailers)] {
        headers.extend(fields.iter().map(|(name, value)| (format!("{prefix}{name}"), value.clone())));
    }
    headers
}

fn encoded(response: &Response, more: &[(String, String)], is_head: bool) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {} x\r\nConnection: close\r\n", response.status);
    let own = response.headers.iter();
    for (name, value) in own.chain(more.iter().map(|(name, value)| (name, value))) {
        text += &format!("{name}: {value}\r\n");
    }
    match &response.chunks {
        None => {
            text += &format!("Content-Length: {}\r\n\r\n", response.body.len());
            if !is_head {
                text += &response.body;
            }
        }
        Some(chunks) => {
            text += "Transfer-Encoding: chunked\r\n";
            let names: Vec<_> = response.trailers.keys().map(String::as_str).collect();
            if !names.is_empty() {
                text += &format!("Trailer: {}\r\n", names.join(", "));
            }
            text += "\r\n";
            for chunk in chunks {
                text += &format!("{:x}\r\n{chunk}\r\n", chunk.len());
            }
            text += "0\r\n";
            for (name, value) in &response.trailers {
                text += &format!("{name}: {value}\r\n");
            }
            text += "\r\n";
        }
    }
    text.into_bytes()
}

/// Reads a message. `to_end`: without a length, the body goes to the end of the connection.
fn read(reader: &mut impl BufRead, to_end: bool) -> io::Result<Message> {
    let first = line(reader)?;
    let headers = fields(reader)?;
    let (mut body, mut trailers) = (Vec::new(), Vec::new());
    if value(&headers, "transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        loop {
            let size = line(reader)?;
            let size = usize::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16);
            let size = size.map_err(io::Error::other)?;
            if size == 0 {
                break;
            }
            let start = body.len();
            body.resize(start + size, 0);
            reader.read_exact(&mut body[start..])?;
            line(reader)?;
        }
        trailers = fields(reader)?;
    } else if let Some(length) = value(&headers, "content-length") {
        body.resize(length.parse().map_err(io::Error::other)?, 0);
        reader.read_exact(&mut body)?;
    } else if to_end {
        reader.read_to_end(&mut body)?;
    }
    Ok(Message { first, headers, body, trailers })
}

fn line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// Headers or trailers, to the empty line.
fn fields(reader: &mut impl BufRead) -> io::Result<Vec<(String, String)>> {
    let mut fields = Vec::new();
    loop {
        let line = line(reader)?;
        if line.is_empty() {
            return Ok(fields);
        }
        let (name, value) = line.split_once(':').unwrap_or((&line, ""));
        fields.push((name.trim().to_lowercase(), value.trim().to_owned()));
    }
}

fn value<'a>(fields: &'a [(String, String)], name: &str) -> Option<&'a str> {
    fields.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunked_message_with_trailers_is_read_as_it_was_written() {
        let response = Response {
            chunks: Some(vec!["one".into(), "two".into()]),
            trailers: BTreeMap::from([("x-sum".into(), "6".into())]),
            ..Response::default()
        };
        let message = read(&mut encoded(&response, &[], false).as_slice(), true).unwrap();
        assert_eq!((message.first.as_str(), message.body.as_slice()), ("HTTP/1.1 200 x", b"onetwo".as_slice()));
        assert_eq!(message.trailers, [("x-sum".to_owned(), "6".to_owned())]);
        let plain = Response { status: 404, body: "no".into(), ..Response::default() };
        let message = read(&mut encoded(&plain, &[], false).as_slice(), true).unwrap();
        assert_eq!((message.first.as_str(), message.body.as_slice()), ("HTTP/1.1 404 x", b"no".as_slice()));
    }
}
