//! `fermyon:spin/redis` without a version, as Spin's first SDKs have it: each call names its server, and has a connection
//! of its own.

use redis::{Cmd, FromRedisValue, cmd};

use hearth_wasm::state::ComponentState;

use super::{Failure, Results, Single, begin, command};
use crate::spin_v1::redis::Host;
use crate::spin_v1::redis_types::{Error, Host as TypesHost, RedisParameter, RedisResult};

impl From<Failure> for Error {
    fn from(_: Failure) -> Error {
        Error::Error
    }
}

/// Sends one command to the server.
async fn send<T: FromRedisValue>(state: &mut ComponentState, address: &str, command: &Cmd) -> Result<T, Error> {
    let opening = begin(state, address)?;
    let caller = opening.network.container.caller(state);
    let sent = async move { Ok::<_, Failure>(opening.finish().await?.inner.call(command, &caller).await?) }.await;
    state.descriptors.give_back();
    Ok(sent?)
}

impl Host for ComponentState {
    async fn publish(&mut self, address: String, channel: String, payload: Vec<u8>) -> Result<(), Error> {
        send(self, &address, &command("PUBLISH", channel, payload)).await
    }

    async fn get(&mut self, address: String, key: String) -> Result<Vec<u8>, Error> {
        let value: Option<Vec<u8>> = send(self, &address, cmd("GET").arg(key)).await?;
        Ok(value.unwrap_or_default())
    }

    async fn set(&mut self, address: String, key: String, value: Vec<u8>) -> Result<(), Error> {
        send(self, &address, &command("SET", key, value)).await
    }

    async fn incr(&mut self, address: String, key: String) -> Result<i64, Error> {
        send(self, &address, cmd("INCR").arg(key)).await
    }

    async fn del(&mut self, address: String, keys: Vec<String>) -> Result<i64, Error> {
        send(self, &address, cmd("DEL").arg(keys)).await
    }

    async fn sadd(&mut self, address: String, key: String, values: Vec<String>) -> Result<i64, Error> {
        send(self, &address, &command("SADD", key, values)).await
    }

    async fn smembers(&mut self, address: String, key: String) -> Result<Vec<String>, Error> {
        send(self, &address, cmd("SMEMBERS").arg(key)).await
    }

    async fn srem(&mut self, address: String, key: String, values: Vec<String>) -> Result<i64, Error> {
        send(self, &address, &command("SREM", key, values)).await
    }

    async fn execute(
        &mut self,
        address: String,
        name: String,
        arguments: Vec<RedisParameter>,
    ) -> Result<Vec<RedisResult>, Error> {
        let mut command = cmd(&name);
        for argument in arguments {
            match argument {
                RedisParameter::Int64(number) => command.arg(number),
                RedisParameter::Binary(bytes) => command.arg(bytes),
            };
        }
        let Results(results) = Results::of(send(self, &address, &command).await?);
        let convert = |single| match single {
            Single::Nil => RedisResult::Nil,
            Single::Status(text) => RedisResult::Status(text),
            Single::Integer(number) => RedisResult::Int64(number),
            Single::Binary(bytes) => RedisResult::Binary(bytes),
        };
        Ok(results.into_iter().map(convert).collect())
    }
}

impl TypesHost for ComponentState {}
