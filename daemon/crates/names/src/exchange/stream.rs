//! Questions by TCP.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::{Exchange, Outcome, Round, no_socket, settling};
use crate::message::{Packet, Reply, read};
use crate::resolver::Network;

impl<N: Network> Exchange<'_, N> {
    /// Asks one server by TCP, both questions at once whatever the options say, as glibc does. A connection that is
    /// reset is tried a second time.
    pub(super) async fn stream(&self, round: &mut Round, server: usize) -> Outcome {
        let deadline = Instant::now() + self.patience(server);
        let mut was_reset = false;
        loop {
            let server = &self.configuration.servers[server];
            let socket = match self.network.stream(server.family()).await {
                Ok(socket) => socket,
                Err(error) => return no_socket(&error),
            };
            let at = server.at(&socket);
            let replies = async {
                let connection = match socket.connect(at).await {
                    Ok(connection) => connection,
                    Err(error) => return (Err(error), false),
                };
                (converse(round, connection).await, true)
            };
            let Ok((replies, connected)) = timeout_at(deadline, replies).await else {
                (round.failure.silent, round.failure.unreachable) = (true, false);
                return Outcome::Next;
            };
            match replies {
                Ok(replies) if replies.is_empty() => {
                    round.failure.unreachable = false;
                    return Outcome::Next;
                }
                Ok(replies) => return Outcome::Answered(replies),
                Err(error) if connected && error.kind() == io::ErrorKind::ConnectionReset && !was_reset => {
                    was_reset = true;
                }
                Err(error) => {
                    round.failure.unreachable = error.kind() == io::ErrorKind::ConnectionRefused;
                    return Outcome::Next;
                }
            }
        }
    }
}

/// Sends all questions, and reads until each has its answer. Returns no reply if they do not settle the name.
async fn converse(round: &mut Round, mut connection: TcpStream) -> io::Result<Vec<Reply>> {
    let mut sent = Vec::new();
    for question in &round.questions {
        let length = u16::try_from(question.bytes.len()).map_err(io::Error::other)?;
        sent.extend_from_slice(&length.to_be_bytes());
        sent.extend_from_slice(&question.bytes);
    }
    connection.write_all(&sent).await?;
    let mut is_open = vec![true; round.questions.len()];
    let (mut replies, mut failures) = (Vec::new(), Vec::new());
    while is_open.iter().any(|open| *open) {
        let length = usize::from(connection.read_u16().await?);
        connection.read_exact(&mut round.buffer[..length]).await?;
        round.reached = true;
        match read(&round.buffer[..length], &round.questions, &is_open) {
            Packet::Foreign => {}
            // No transport takes larger answers.
            Packet::Short | Packet::Truncated => return Err(io::ErrorKind::InvalidData.into()),
            Packet::Unusable(question, code) => {
                round.failure.last = Some(code);
                failures.push(code);
                is_open[question] = false;
            }
            Packet::Answer(question, reply) => {
                is_open[question] = false;
                replies.push(reply);
            }
        }
    }
    Ok(settling(replies, &failures))
}
