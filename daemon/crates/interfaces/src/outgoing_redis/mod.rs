//! Spin's outgoing Redis: `fermyon:spin/redis@2.0.0` and `spin:redis/redis@3.0.0`.
//!
//! * `v1.rs`: the same without a version.
//!
//! The guest gives the address, which has to be in its `allowed_outbound_hosts`. A connection counts as an open file of
//! the container.

mod v1;

use redis::{Cmd, FromRedisValue, RedisError, Value, cmd};
use wasmtime::component::{Accessor, HasSelf, Linker, Resource};

use hearth_wasm::access::{Access, InterfaceState};
use hearth_wasm::host_interface::HostInterface;
use hearth_wasm::state::ComponentState;

use crate::handles::{HostResult, close, keep};
use crate::network::{ConnectError, Network};
use crate::redis_client::{self, Address, OpenError};
use crate::spin_v1;
use crate::storage::Caller;

/// The registration.
pub const INTERFACE: HostInterface = HostInterface {
    imports: &["fermyon:spin/redis", "spin:redis/"],
    is_granted: Access::has::<Redis>,
    setting: "the environment variable HEARTH_ALLOWED_HOSTS: the servers that the component may reach, for example redis://cache:6379",
    add_to_linker,
};

mod generated {
    wasmtime::component::bindgen!({
        path: "src/outgoing_redis/outgoing_redis.wit",
        world: "hearth:outgoing-redis/host",
        imports: { default: async | trappable },
        with: {
            "fermyon:spin/redis.connection": super::Connection,
            "spin:redis/redis.connection": super::Connection,
        },
    });
}

use generated::fermyon::spin::redis as v2;
use generated::spin::redis::redis as v3;

/// The Redis servers of one component.
pub struct Redis(pub Network);

impl InterfaceState for Redis {}

/// An open connection. A handle of a guest.
#[derive(Clone)]
pub struct Connection {
    network: Network,
    inner: redis_client::Connection,
}

/// Why a call failed.
enum Failure {
    InvalidAddress,
    TooMany,
    Type,
    Other(String),
}

impl From<RedisError> for Failure {
    fn from(error: RedisError) -> Failure {
        // The server's code for a command that does not fit the type of a key's value.
        if error.code() == Some("WRONGTYPE") { Failure::Type } else { Failure::Other(error.to_string()) }
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Failure {
        match error {
            OpenError::Connect(ConnectError::Refused(_)) => Failure::InvalidAddress,
            error => Failure::Other(error.to_string()),
        }
    }
}

/// The single results of a command, those of lists one after the other.
struct Results(Vec<Single>);

enum Single {
    Nil,
    Status(String),
    Integer(i64),
    Binary(Vec<u8>),
}

impl Results {
    fn of(value: Value) -> Results {
        let mut results = Vec::new();
        let mut waiting = vec![value];
        while let Some(value) = waiting.pop() {
            results.push(match value {
                Value::Nil => Single::Nil,
                Value::Okay => Single::Status("OK".into()),
                Value::SimpleString(text) => Single::Status(text),
                Value::Int(number) => Single::Integer(number),
                Value::BulkString(bytes) => Single::Binary(bytes),
                Value::Array(values) | Value::Set(values) => {
                    waiting.extend(values.into_iter().rev());
                    continue;
                }
                // The protocol in use, RESP2, has no other.
                other => Single::Status(format!("{other:?}")),
            });
        }
        Results(results)
    }
}

macro_rules! convert {
    ($version:ident) => {
        impl From<Failure> for $version::Error {
            fn from(failure: Failure) -> Self {
                match failure {
                    Failure::InvalidAddress => $version::Error::InvalidAddress,
                    Failure::TooMany => $version::Error::TooManyConnections,
                    Failure::Type => $version::Error::TypeError,
                    Failure::Other(text) => $version::Error::Other(text),
                }
            }
        }

        impl From<Results> for Vec<$version::RedisResult> {
            fn from(results: Results) -> Self {
                let convert = |single| match single {
                    Single::Nil => $version::RedisResult::Nil,
                    Single::Status(text) => $version::RedisResult::Status(text),
                    Single::Integer(number) => $version::RedisResult::Int64(number),
                    Single::Binary(bytes) => $version::RedisResult::Binary(bytes),
                };
                results.0.into_iter().map(convert).collect()
            }
        }

        impl $version::RedisParameter {
            fn add_to(self, command: &mut Cmd) {
                match self {
                    $version::RedisParameter::Int64(number) => command.arg(number),
                    $version::RedisParameter::Binary(bytes) => command.arg(bytes),
                };
            }
        }
    };
}

convert!(v2);
convert!(v3);

/// A connection to be made.
struct Opening {
    network: Network,
    address: Address,
}

/// Checks the address, and counts the connection as an open file.
fn begin(state: &mut ComponentState, address: &str) -> Result<Opening, Failure> {
    let redis = state.access.get::<Redis>().ok_or(Failure::InvalidAddress)?;
    let address = Address::parse(address).map_err(|_| Failure::InvalidAddress)?;
    address.check(&redis.0).map_err(|_| Failure::InvalidAddress)?;
    if !state.descriptors.take() {
        return Err(Failure::TooMany);
    }
    Ok(Opening { network: redis.0.clone(), address })
}

impl Opening {
    async fn finish(self) -> Result<Connection, Failure> {
        let inner = redis_client::Connection::open(&self.network, &self.address, self.network.deadline()).await?;
        Ok(Connection { network: self.network, inner })
    }
}

/// A command on its way to the server.
struct Call {
    connection: redis_client::Connection,
    caller: Caller,
}

impl Call {
    fn new(state: &ComponentState, connection: &Resource<Connection>) -> wasmtime::Result<Call> {
        let connection = state.table.get(connection)?;
        let caller = connection.network.container.caller(state);
        Ok(Call { connection: connection.inner.clone(), caller })
    }

    async fn send<T: FromRedisValue>(self, command: &Cmd) -> Result<T, Failure> {
        Ok(self.connection.call(command, &self.caller).await?)
    }
}

fn command<A: redis::ToRedisArgs>(name: &str, key: String, values: A) -> Cmd {
    let mut command = cmd(name);
    command.arg(key).arg(values);
    command
}

/// Functions of both versions: name, arguments, result, command.
macro_rules! functions {
    ($apply:ident) => {
        $apply! {
            publish(channel: String, payload: Vec<u8>) -> (), command("PUBLISH", channel, payload);
            get(key: String) -> Option<Vec<u8>>, cmd("GET").arg(key).to_owned();
            set(key: String, value: Vec<u8>) -> (), command("SET", key, value);
            incr(key: String) -> i64, cmd("INCR").arg(key).to_owned();
            del(keys: Vec<String>) -> u32, cmd("DEL").arg(keys).to_owned();
            sadd(key: String, values: Vec<String>) -> u32, command("SADD", key, values);
            smembers(key: String) -> Vec<String>, cmd("SMEMBERS").arg(key).to_owned();
            srem(key: String, values: Vec<String>) -> u32, command("SREM", key, values);
        }
    };
}

macro_rules! implement_v2 {
    ($($name:ident($($argument:ident: $type:ty),*) -> $result:ty, $command:expr;)*) => {
        impl v2::HostConnection for ComponentState {
            async fn open(&mut self, address: String) -> HostResult<Resource<Connection>, v2::Error> {
                let opening = match begin(self, &address) {
                    Ok(opening) => opening,
                    Err(failure) => return Ok(Err(failure.into())),
                };
                let opened = opening.finish().await;
                Ok(keep(self, opened)?.map_err(Into::into))
            }

            $(async fn $name(
                &mut self,
                connection: Resource<Connection>,
                $($argument: $type),*
            ) -> HostResult<$result, v2::Error> {
                let call = Call::new(self, &connection)?;
                Ok(call.send(&$command).await.map_err(Into::into))
            })*

            async fn execute(
                &mut self,
                connection: Resource<Connection>,
                name: String,
                arguments: Vec<v2::RedisParameter>,
            ) -> HostResult<Vec<v2::RedisResult>, v2::Error> {
                let call = Call::new(self, &connection)?;
                let mut command = cmd(&name);
                arguments.into_iter().for_each(|argument| argument.add_to(&mut command));
                Ok(call.send(&command).await.map(|value| Results::of(value).into()).map_err(Into::into))
            }

            async fn drop(&mut self, connection: Resource<Connection>) -> wasmtime::Result<()> {
                close(self, connection)
            }
        }
    };
}

macro_rules! implement_v3 {
    ($($name:ident($($argument:ident: $type:ty),*) -> $result:ty, $command:expr;)*) => {
        impl<T: Send> v3::HostConnectionWithStore<T> for HasSelf<ComponentState> {
            async fn open(store: &Accessor<T, Self>, address: String) -> HostResult<Resource<Connection>, v3::Error> {
                let opening = match store.with(|mut store| begin(store.get(), &address)) {
                    Ok(opening) => opening,
                    Err(failure) => return Ok(Err(failure.into())),
                };
                let opened = opening.finish().await;
                Ok(store.with(|mut store| keep(store.get(), opened))?.map_err(Into::into))
            }

            $(async fn $name(
                store: &Accessor<T, Self>,
                connection: Resource<Connection>,
                $($argument: $type),*
            ) -> HostResult<$result, v3::Error> {
                let call = store.with(|mut store| Call::new(store.get(), &connection))?;
                Ok(call.send(&$command).await.map_err(Into::into))
            })*

            async fn execute(
                store: &Accessor<T, Self>,
                connection: Resource<Connection>,
                name: String,
                arguments: Vec<v3::RedisParameter>,
            ) -> HostResult<Vec<v3::RedisResult>, v3::Error> {
                let call = store.with(|mut store| Call::new(store.get(), &connection))?;
                let mut command = cmd(&name);
                arguments.into_iter().for_each(|argument| argument.add_to(&mut command));
                Ok(call.send(&command).await.map(|value| Results::of(value).into()).map_err(Into::into))
            }
        }
    };
}

functions!(implement_v2);
functions!(implement_v3);

impl v2::Host for ComponentState {}
impl v3::Host for ComponentState {}

impl v3::HostConnection for ComponentState {
    async fn drop(&mut self, connection: Resource<Connection>) -> wasmtime::Result<()> {
        close(self, connection)
    }
}

fn add_to_linker(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    spin_v1::redis::add_to_linker::<_, HasSelf<ComponentState>>(linker, |state| state)?;
    v2::add_to_linker::<_, HasSelf<ComponentState>>(linker, |state| state)?;
    v3::add_to_linker::<_, HasSelf<ComponentState>>(linker, |state| state)
}
