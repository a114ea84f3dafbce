//! Subscriptions to the channels of a Redis server.
//!
//! Messages are read one at a time: while one is handled, the next ones wait in the kernel's buffers and in the server,
//! which ends the connection of a subscriber that stays too far behind. So the daemon keeps one message at most.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use combine::parser::combinator::AnySendSyncPartialState;
use combine::stream::PointerOffset;
use redis::{Cmd, ErrorKind, RedisError, Value, cmd, parse_redis_value_async};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};

use hearth_base::destinations::Destinations;
use hearth_base::error::{Error, Result};
use hearth_wasm::memory::{HeldMemory, MemoryUse};

use crate::container::Container;
use crate::metered::{Meter, MeteredStream};
use crate::network::{ConnectError, Network};
use crate::redis_client::{Address, OpenError, SCHEME};

/// How long a server may be silent before it is asked whether it is there. It has as long to answer.
const SILENCE: Duration = Duration::from_secs(30);

/// A connection, of TCP or TLS.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A server with channels of it. The address is the application's, and no component's: every server is allowed.
pub struct Subscription {
    network: Network,
    address: Address,
    channels: Vec<String>,
}

impl Subscription {
    /// The channels of the server with this address: `redis://` or `rediss://`.
    ///
    /// # Errors
    /// `InvalidArgument` for an address that is none. It is not in the text, as it may have a password.
    pub fn new(container: &Arc<Container>, address: &str, channels: Vec<String>) -> Result<Subscription> {
        let parsed = Address::parse(address);
        let address =
            parsed.map_err(|error| Error::InvalidArgument(format!("the address of the redis trigger: {error}")))?;
        let network = Network { container: container.clone(), destinations: Destinations::default() };
        Ok(Subscription { network, address, channels })
    }

    /// Connects, logs in and subscribes.
    ///
    /// # Errors
    /// Why there is no subscription.
    pub async fn begin(&self) -> Result<Messages, OpenError> {
        let (network, address) = (self.network.clone(), self.address.clone());
        let deadline = network.deadline();
        let shared = network.container.shared.clone();
        let connecting = async move {
            let stream = network.connect(SCHEME, &address.host, address.port, deadline).await?;
            let stream: Box<dyn Stream> = match address.secure {
                true => Box::new(network.secure(&address.host, stream).await?),
                false => Box::new(stream),
            };
            Ok::<_, ConnectError>(stream)
        };
        let ended = || ConnectError::Late(format!("{:?}", self.address));
        let stream = shared.spawn(connecting).result().await.ok_or_else(ended)??;
        let subscribing = self.subscribe(stream);
        tokio::time::timeout_at(deadline.into(), subscribing).await.map_err(|_| ended())?
    }

    async fn subscribe(&self, stream: Box<dyn Stream>) -> Result<Messages, OpenError> {
        let config = self.network.container.shared.config();
        let meter: Arc<Meter> = Arc::default();
        let (reader, writer) = tokio::io::split(MeteredStream::new(stream, meter.clone()));
        let mut messages =
            Messages { reader, writer, parser: Parser::default(), meter, bytes_max: config.answer_bytes_max };
        for command in self.address.login_commands() {
            write(&mut messages.writer, &command).await?;
            messages.answer().await?;
        }
        write(&mut messages.writer, cmd("SUBSCRIBE").arg(&self.channels)).await?;
        // The first answer. Those for further channels are no messages, and are passed over.
        messages.answer().await?;
        Ok(messages)
    }
}

impl fmt::Display for Subscription {
    /// The server, without the login.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.address)
    }
}

/// A message of a channel.
pub struct Message {
    /// The channel.
    pub channel: String,
    /// Its bytes.
    pub payload: Vec<u8>,
    /// It counts as memory of the container until it is dropped.
    _held: HeldMemory,
}

/// The parser of answers, with what is read of the next ones.
type Parser = combine::stream::Decoder<AnySendSyncPartialState, PointerOffset<[u8]>>;

/// The messages of a subscription.
pub struct Messages {
    reader: ReadHalf<MeteredStream<Box<dyn Stream>>>,
    writer: WriteHalf<MeteredStream<Box<dyn Stream>>>,
    parser: Parser,
    meter: Arc<Meter>,
    bytes_max: u64,
}

impl Messages {
    /// The next message. `memory`: the container's.
    ///
    /// # Errors
    /// The connection is lost, or the message is larger than `interfaces.answer_bytes_max` or the container's memory.
    pub async fn next(&mut self, memory: &Arc<MemoryUse>) -> Result<Message, RedisError> {
        loop {
            let value = self.next_value(memory).await?;
            let Some((channel, payload)) = message_of(value.extract_error()?) else { continue };
            let mut held = memory.hold();
            if !held.grow(payload.len() as u64) {
                let error = (ErrorKind::ClientError, "the container has no memory left for a message");
                return Err(RedisError::from(error));
            }
            return Ok(Message { channel, payload, _held: held });
        }
    }

    /// The next answer of the server, which is asked from time to time whether it is there.
    async fn next_value(&mut self, memory: &Arc<MemoryUse>) -> Result<Value, RedisError> {
        let _metered = self.meter.begin(self.bytes_max, memory);
        let (parser, reader, writer) = (&mut self.parser, &mut self.reader, &mut self.writer);
        let mut value = pin!(parse_redis_value_async(parser, reader));
        for is_asked in [false, true] {
            if let Ok(value) = tokio::time::timeout(SILENCE, &mut value).await {
                return value;
            }
            if !is_asked {
                write(writer, &cmd("PING")).await?;
            }
        }
        Err(RedisError::from((ErrorKind::IoError, "the server is silent")))
    }

    /// One answer to a command.
    async fn answer(&mut self) -> Result<(), RedisError> {
        parse_redis_value_async(&mut self.parser, &mut self.reader).await?.extract_error()?;
        Ok(())
    }
}

async fn write(writer: &mut (impl AsyncWrite + Unpin), command: &Cmd) -> Result<(), RedisError> {
    writer.write_all(&command.get_packed_command()).await?;
    Ok(writer.flush().await?)
}

/// Channel and payload, if the value is a message.
fn message_of(value: Value) -> Option<(String, Vec<u8>)> {
    let Value::Array(parts) = value else { return None };
    match <[Value; 3]>::try_from(parts) {
        Ok([Value::BulkString(kind), Value::BulkString(channel), Value::BulkString(payload)]) if kind == b"message" => {
            Some((String::from_utf8(channel).ok()?, payload))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_messages_of_channels_are_messages() {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let message = message_of(Value::Array(vec![text("message"), text("news"), text("hello")]));
        assert_eq!(message, Some(("news".into(), b"hello".to_vec())));
        for other in [
            Value::Array(vec![text("subscribe"), text("news"), Value::Int(1)]),
            Value::Array(vec![text("pong"), text("")]),
            Value::Array(vec![text("pmessage"), text("news"), text("hello")]),
            Value::SimpleString("PONG".into()),
        ] {
            assert_eq!(message_of(other), None);
        }
    }
}
