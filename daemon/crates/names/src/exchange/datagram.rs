//! Questions by UDP.

use hickory_proto::op::ResponseCode;
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use super::{Exchange, Outcome, Round, no_socket, settling};
use crate::message::{Packet, Reply, read};
use crate::resolver::Network;

/// The questions that a server has been asked.
struct Asked {
    is_open: Vec<bool>,
    replies: Vec<Reply>,
    failures: Vec<ResponseCode>,
    /// How many of the questions were sent.
    sent: usize,
}

/// The end of the wait for a server's answers.
enum Wait {
    /// The server did not answer both questions in time.
    Over,
    /// One question is answered, and the other one is to be sent.
    Half,
    Done(Outcome),
}

impl<N: Network> Exchange<'_, N> {
    /// Asks one server by UDP, both questions at once or one after the other. A server that answers only one of the
    /// questions is asked again: one after the other, and then from two sockets.
    pub(super) async fn datagram(&mut self, round: &mut Round, server: usize) -> Outcome {
        loop {
            let deadline = Instant::now() + self.patience(server);
            let mut asked = Asked {
                is_open: vec![true; round.questions.len()],
                replies: Vec::new(),
                failures: Vec::new(),
                sent: 0,
            };
            match self.wait_for_all(round, server, &mut asked, deadline).await {
                Wait::Done(outcome) => return outcome,
                Wait::Over if asked.replies.is_empty() => {
                    (round.reached, round.failure.silent) = (true, true);
                    return Outcome::Next;
                }
                _ if !self.single => self.single = true,
                _ if !self.reopen => {
                    self.reopen = true;
                    round.close();
                }
                _ => return Outcome::Answered(asked.replies),
            }
        }
    }

    async fn wait_for_all(&self, round: &mut Round, server: usize, asked: &mut Asked, deadline: Instant) -> Wait {
        loop {
            if round.sockets[server].is_none() {
                match self.open(server).await {
                    Ok(socket) => round.sockets[server] = socket,
                    Err(outcome) => return Wait::Done(outcome),
                }
            }
            let Some(socket) = &round.sockets[server] else {
                round.close();
                return Wait::Done(Outcome::Next);
            };
            let count = if self.single { 1 } else { round.questions.len() };
            for question in round.questions.iter().skip(asked.sent).take(count) {
                asked.sent += 1;
                if !matches!(timeout_at(deadline, socket.send(&question.bytes)).await, Ok(Ok(_))) {
                    round.close();
                    return Wait::Done(Outcome::Next);
                }
            }
            match wait(round, server, asked, deadline, self.single).await {
                Wait::Half if self.reopen => round.close(),
                Wait::Half => {}
                end => return end,
            }
        }
    }

    /// A socket that only takes packets from one server. `None` if the server has no route.
    async fn open(&self, server: usize) -> Result<Option<UdpSocket>, Outcome> {
        let server = &self.configuration.servers[server];
        let socket = self.network.datagram(server.family()).await.map_err(|error| no_socket(&error))?;
        let at = server.at(&socket);
        Ok(socket.connect(at).await.ok().map(|()| socket))
    }
}

/// Waits for the answers to the questions that were sent.
async fn wait(round: &mut Round, server: usize, asked: &mut Asked, deadline: Instant, single: bool) -> Wait {
    let Some(socket) = &round.sockets[server] else {
        return Wait::Done(Outcome::Next);
    };
    loop {
        let Ok(received) = timeout_at(deadline, socket.recv(&mut round.buffer)).await else {
            return Wait::Over;
        };
        let Ok(length) = received else {
            // The server's host has reported that no server runs there.
            round.close();
            return Wait::Done(Outcome::Next);
        };
        round.reached = true;
        match read(&round.buffer[..length], &round.questions, &asked.is_open) {
            Packet::Foreign => continue,
            Packet::Short => {
                round.close();
                return Wait::Done(Outcome::Next);
            }
            Packet::Truncated => {
                round.close();
                return Wait::Done(Outcome::Truncated);
            }
            Packet::Unusable(question, code) => {
                round.failure.last = Some(code);
                asked.failures.push(code);
                // The answer to the other question is already there.
                let is_first = asked.is_open.iter().all(|open| *open);
                if !is_first {
                    return Wait::Done(answered_or_next(asked));
                }
                if single || round.questions.len() == 1 {
                    round.close();
                    return Wait::Done(Outcome::Next);
                }
                asked.is_open[question] = false;
            }
            Packet::Answer(question, reply) => {
                asked.is_open[question] = false;
                asked.replies.push(reply);
                if asked.is_open.iter().all(|open| !open) {
                    return Wait::Done(answered_or_next(asked));
                }
                if single {
                    return Wait::Half;
                }
            }
        }
    }
}

fn answered_or_next(asked: &mut Asked) -> Outcome {
    let replies = settling(std::mem::take(&mut asked.replies), &asked.failures);
    if replies.is_empty() { Outcome::Next } else { Outcome::Answered(replies) }
}

impl Round {
    /// Closes all sockets. Late answers to them are lost.
    pub(super) fn close(&mut self) {
        self.sockets.iter_mut().for_each(|socket| *socket = None);
    }
}
