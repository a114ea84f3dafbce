//! Which server is asked when, and how often: glibc's res_send(3).

mod datagram;
mod stream;

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::AsFd;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::Name;
use tokio::net::UdpSocket;

use crate::files::resolv_conf::{Configuration, Server};
use crate::literal::is_link_local;
use crate::message::{Question, Reply};
use crate::resolver::{Family, Network};

/// The port of name servers.
const PORT: u16 = 53;

/// The largest message, in bytes.
const MESSAGE_BYTES_MAX: usize = 65_535;

/// The questions of one look-up.
pub(crate) struct Exchange<'a, N> {
    network: &'a N,
    configuration: &'a Configuration,
    /// Whether the second question waits for the answer to the first. A server that answers only one of two sets it.
    single: bool,
    /// Whether the second question then comes from a new socket.
    reopen: bool,
    /// Where the next round through the servers begins.
    first: usize,
}

/// The state in which no server has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Whether no server runs at any of the addresses. The search ends then.
    pub(crate) unreachable: bool,
    /// Whether a server did not answer in time.
    pub(crate) silent: bool,
    /// The code of the last answer, which was an error.
    pub(crate) last: Option<ResponseCode>,
}

/// The result of the questions to one server.
enum Outcome {
    /// The answers, in the order of their arrival.
    Answered(Vec<Reply>),
    /// The answer does not fit into a datagram.
    Truncated,
    /// The next server is to be asked.
    Next,
    /// No further socket can be made.
    NoSocket,
}

/// The state of one name's questions over all servers.
struct Round {
    questions: Vec<Question>,
    sockets: Vec<Option<UdpSocket>>,
    buffer: Vec<u8>,
    /// Whether a server answered, or had its time to.
    reached: bool,
    failure: Failure,
}

impl<'a, N: Network> Exchange<'a, N> {
    pub(crate) fn new(network: &'a N, configuration: &'a Configuration) -> Exchange<'a, N> {
        // Look-ups share no state, so each rotation begins at a random server.
        let first = if configuration.rotate { usize::from(Message::query().metadata.id) } else { 0 };
        let reopen = configuration.single_request_reopen;
        Exchange { network, configuration, single: configuration.single_request || reopen, reopen, first }
    }

    /// The answers of the first server that answers.
    ///
    /// # Errors
    /// If no server answers.
    pub(crate) async fn ask(&mut self, name: &Name) -> Result<Vec<Reply>, Failure> {
        let failure = Failure { unreachable: false, silent: false, last: None };
        let questions = Question::both(name, self.configuration).ok_or(failure)?;
        let servers = self.configuration.servers.len();
        let sockets = (0..servers).map(|_| None).collect();
        let mut round = Round { questions, sockets, buffer: vec![0; MESSAGE_BYTES_MAX], reached: false, failure };
        let first = self.first % servers;
        if self.configuration.rotate {
            self.first = self.first.wrapping_add(1);
        }
        let mut by_stream = self.configuration.use_vc;
        for _ in 0..self.configuration.attempts {
            for server in (0..servers).map(|place| (first + place) % servers) {
                let mut outcome = if by_stream { Outcome::Truncated } else { self.datagram(&mut round, server).await };
                if matches!(outcome, Outcome::Truncated) {
                    by_stream = true;
                    outcome = self.stream(&mut round, server).await;
                }
                match outcome {
                    Outcome::Answered(replies) => return Ok(replies),
                    Outcome::NoSocket => return Err(round.failure),
                    Outcome::Truncated | Outcome::Next => {}
                }
            }
            // A stream is tried once with each server.
            if by_stream {
                break;
            }
        }
        round.failure.unreachable |= !by_stream && !round.reached;
        Err(round.failure)
    }

    /// How long a server may take: twice as long as the one before it in the file, in all but the first shared by the
    /// servers.
    fn patience(&self, server: usize) -> Duration {
        let servers = self.configuration.servers.len() as u64;
        let seconds = self.configuration.timeout_s << server;
        Duration::from_secs(if server == 0 { seconds } else { (seconds / servers).max(1) })
    }
}

impl Server {
    fn family(&self) -> Family {
        if self.address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// Where the server is, as seen from the network of `socket`: an interface's number differs between networks.
    fn at(&self, socket: impl AsFd) -> SocketAddr {
        let IpAddr::V6(address) = self.address else {
            return SocketAddr::new(self.address, PORT);
        };
        let scope = self.scope.as_deref().map_or(0, |scope| {
            let named =
                if is_link_local(&address) { rustix::net::netdevice::name_to_index(socket, scope).ok() } else { None };
            named.or_else(|| scope.parse().ok()).unwrap_or(0)
        });
        SocketAddrV6::new(address, PORT, 0, scope).into()
    }
}

/// The replies, if they settle the name. SERVFAIL to one question beside an answer without records to the other one
/// does not: the name may have records of the kind that the server cannot look up now.
fn settling(replies: Vec<Reply>, failures: &[ResponseCode]) -> Vec<Reply> {
    let is_empty = |reply: &Reply| reply.code == ResponseCode::NoError && !reply.has_records;
    if failures.contains(&ResponseCode::ServFail) && replies.iter().all(is_empty) { Vec::new() } else { replies }
}

/// The result of the questions if no socket can be made.
fn no_socket(error: &io::Error) -> Outcome {
    if error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()) {
        Outcome::Next
    } else {
        Outcome::NoSocket
    }
}
