//! Name servers that follow rules, and keep a log of what they were asked.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// A server of one row. Its rules are separated by `;`, and the first that fits a question applies:
/// `[udp/|tcp/]NAME KIND ACTION`, where `*` is any name or kind. A question without a rule has NXDOMAIN.
#[derive(Clone)]
pub struct Server {
    number: usize,
    rules: &'static str,
    log: Arc<Mutex<Log>>,
}

/// The rule of a server without TCP.
const NO_TCP: &str = "tcp/* * down";

/// A datagram that a server sends back.
const FLUSH: &[u8] = b"flush";

/// The questions of a look-up, in the order of their arrival at any server.
#[derive(Default)]
pub struct Log {
    lines: Vec<String>,
    asked: Vec<Asked>,
}

struct Asked {
    server: usize,
    from: SocketAddr,
    id: u16,
    kind: RecordType,
}

impl Log {
    /// The questions so far; the next look-up begins without any.
    pub fn take(&mut self) -> Vec<String> {
        std::mem::take(self).lines
    }

    /// Notes a question, whether it comes from the socket of the last one to that server, whether it is one that was
    /// asked before, and its options. Returns how often it was asked before.
    fn note(&mut self, server: usize, transport: &str, from: SocketAddr, message: &Message) -> usize {
        let query = &message.queries[0];
        let (id, kind) = (message.metadata.id, query.query_type);
        let last = self.asked.iter().rev().find(|asked| asked.server == server);
        let socket = if last.is_some_and(|last| last.from == from) { "same socket" } else { "new socket" };
        let before = self.asked.iter().filter(|asked| (asked.id, asked.kind) == (id, kind));
        let again = if before.clone().count() > 0 { ", again" } else { "" };
        let times = before.filter(|asked| asked.server == server).count();
        let edns = message.edns.as_ref().map_or(String::new(), |edns| format!(", edns0 of {}", edns.max_payload()));
        let ad = if message.metadata.authentic_data { ", ad" } else { "" };
        let name: Vec<_> = query.name.iter().map(|label| label.escape_ascii().to_string()).collect();
        let line = format!("{server} by {transport}: {kind} {}., {socket}{again}{edns}{ad}", name.join("."));
        self.lines.push(line);
        self.asked.push(Asked { server, from, id, kind });
        times
    }
}

/// A server's act after a question.
enum Action {
    Send(Duration, Vec<Vec<u8>>),
    Nothing,
    Close,
    Reset,
}

impl Server {
    /// Serves by UDP and TCP at port 53 of an address, until the runtime ends.
    pub async fn start(number: usize, at: SocketAddr, rules: &'static str, log: Arc<Mutex<Log>>) -> io::Result<()> {
        let server = Server { number, rules, log };
        let socket = Arc::new(UdpSocket::bind(at).await?);
        tokio::spawn(server.clone().serve_datagrams(socket));
        if rules.contains(NO_TCP) {
            return Ok(());
        }
        let listener = TcpListener::bind(at).await?;
        tokio::spawn(async move {
            while let Ok((connection, from)) = listener.accept().await {
                tokio::spawn(server.clone().serve_stream(connection, from));
            }
        });
        Ok(())
    }

    /// Waits until a server has read all datagrams that were sent to it.
    pub async fn flush(at: SocketAddr) -> io::Result<()> {
        let any: IpAddr = if at.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
        socket.send_to(FLUSH, at).await?;
        socket.recv(&mut [0; FLUSH.len()]).await?;
        Ok(())
    }

    async fn serve_datagrams(self, socket: Arc<UdpSocket>) {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            // Whatever was sent before is in the log.
            if &buffer[..length] == FLUSH {
                socket.send_to(FLUSH, from).await.unwrap();
                continue;
            }
            let Action::Send(delay, packets) = self.answer("udp", from, &buffer[..length]) else { continue };
            let socket = Arc::clone(&socket);
            let send = async move {
                for packet in packets {
                    socket.send_to(&packet, from).await.unwrap();
                }
            };
            if delay.is_zero() {
                send.await;
            } else {
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    send.await;
                });
            }
        }
    }

    async fn serve_stream(self, mut connection: TcpStream, from: SocketAddr) {
        while let Ok(length) = connection.read_u16().await {
            let mut question = vec![0; length.into()];
            connection.read_exact(&mut question).await.unwrap();
            match self.answer("tcp", from, &question) {
                Action::Send(_, packets) => {
                    for packet in packets {
                        let mut framed = (packet.len() as u16).to_be_bytes().to_vec();
                        framed.extend_from_slice(&packet);
                        // The other side may have had enough.
                        let _ = connection.write_all(&framed).await;
                    }
                }
                Action::Nothing => {}
                Action::Close => return,
                Action::Reset => return connection.set_zero_linger().unwrap(),
            }
        }
    }

    fn answer(&self, transport: &str, from: SocketAddr, question: &[u8]) -> Action {
        let message = Message::from_vec(question).unwrap();
        let times = self.log.lock().unwrap().note(self.number, transport, from, &message);
        let query = &message.queries[0];
        let rule = self.rules.split(';').map(|rule| rule.split_whitespace().collect::<Vec<_>>()).find(|rule| {
            let [owner, kind, ..] = rule[..] else { return false };
            let owner = match owner.split_once('/') {
                Some((only, owner)) if only == transport => owner,
                Some(_) => return false,
                None => owner,
            };
            (owner == "*" || self::name(owner).eq_ignore_root(&query.name))
                && (kind == "*" || kind == query.query_type.to_string())
        });
        act(rule.as_ref().map_or(&["nxdomain"], |rule| &rule[2..]), &message, question, times)
    }
}

fn name(text: &str) -> Name {
    Name::from_labels(text.split('.').filter(|label| !label.is_empty()).map(str::as_bytes)).unwrap()
}

fn code(text: &str) -> Option<ResponseCode> {
    Some(match text {
        "nodata" | "lame" => ResponseCode::NoError,
        "nxdomain" => ResponseCode::NXDomain,
        "servfail" => ResponseCode::ServFail,
        "refused" => ResponseCode::Refused,
        "notimp" => ResponseCode::NotImp,
        "formerr" => ResponseCode::FormErr,
        _ => return None,
    })
}

/// Does the first word; the words behind it say how.
fn act(words: &[&str], asked: &Message, question: &[u8], times: usize) -> Action {
    let query = &asked.queries[0];
    let mut reply = Message::new(asked.metadata.id, MessageType::Response, OpCode::Query);
    reply.metadata.recursion_desired = true;
    reply.metadata.recursion_available = words[0] != "lame";
    reply.add_query(query.clone());
    if let Some(code) = code(words[0]) {
        reply.metadata.response_code = code;
        return send(vec![reply.to_vec().unwrap()]);
    }
    // Another packet before the one that the rest of the words describes.
    let after = |packet: &Message| match act(&words[1..], asked, question, times) {
        Action::Send(delay, packets) => {
            Action::Send(delay, std::iter::once(packet.to_vec().unwrap()).chain(packets).collect())
        }
        other => other,
    };
    match words[0] {
        "silent" => Action::Nothing,
        "close" => Action::Close,
        "reset" => Action::Reset,
        "once-silent" if times == 0 => Action::Nothing,
        "once-silent" => act(&words[1..], asked, question, times),
        "slow" => match act(&words[2..], asked, question, times) {
            Action::Send(_, packets) => Action::Send(Duration::from_millis(words[1].parse().unwrap()), packets),
            other => other,
        },
        "truncated" => {
            reply.metadata.truncation = true;
            send(vec![reply.to_vec().unwrap()])
        }
        "wrong-id" => {
            reply.metadata.id ^= 1;
            after(&reply)
        }
        "wrong-question" => {
            reply.queries[0].name = name("wrong.test");
            after(&reply)
        }
        "bare" => {
            reply.metadata.response_code = code(words[1]).unwrap();
            reply.queries.clear();
            send(vec![reply.to_vec().unwrap()])
        }
        "short" => send(vec![question[..5].to_vec()]),
        "echo" => send(vec![question.to_vec()]),
        "garbled" => {
            add_addresses(&mut reply, &query.name, &words[1..], query.query_type);
            let mut packet = reply.to_vec().unwrap();
            packet.pop();
            send(vec![packet])
        }
        "alias" | "alias-last" | "of" => {
            let target = name(words[1]);
            add_addresses(&mut reply, &target, &words[2..], query.query_type);
            let alias = Record::from_rdata(query.name.clone(), 60, RData::CNAME(CNAME(target)));
            match words[0] {
                "alias" => reply.answers.insert(0, alias),
                "alias-last" => reply.answers.push(alias),
                _ => {}
            }
            send(vec![reply.to_vec().unwrap()])
        }
        _ => {
            add_addresses(&mut reply, &query.name, words, query.query_type);
            send(vec![reply.to_vec().unwrap()])
        }
    }
}

fn send(packets: Vec<Vec<u8>>) -> Action {
    Action::Send(Duration::ZERO, packets)
}

/// Adds the addresses of one kind.
fn add_addresses(reply: &mut Message, owner: &Name, addresses: &[&str], kind: RecordType) {
    for address in addresses {
        let data = match address.parse::<IpAddr>().unwrap() {
            IpAddr::V4(address) => RData::A(A(address)),
            IpAddr::V6(address) => RData::AAAA(AAAA(address)),
        };
        if data.record_type() == kind {
            reply.add_answer(Record::from_rdata(owner.clone(), 60, data));
        }
    }
}
