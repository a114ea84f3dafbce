//! Spin's PostgreSQL: `fermyon:spin/postgres@2.0.0` and `spin:postgres/postgres@3.0.0`.
//!
//! The guest gives the address, which has to be in its `allowed_outbound_hosts`. A connection counts as an open file of
//! the container. A parameter has to be of the type that the server expects; there is no conversion.
//!
//! * `client.rs`: connections, TLS and statements.
//! * `values.rs`: values of parameters and rows, between PostgreSQL's types and Spin's.

mod client;
mod values;

use wasmtime::component::{HasSelf, Linker, Resource};

use hearth_wasm::access::{Access, InterfaceState};
use hearth_wasm::host_interface::HostInterface;
use hearth_wasm::state::ComponentState;

use crate::handles::{HostResult, TOO_MANY, close, keep};
use crate::network::Network;
use crate::storage::Caller;

use client::{Address, Failure, Table};
use values::{Kind, Value};

/// The registration.
pub const INTERFACE: HostInterface = HostInterface {
    imports: &["fermyon:spin/postgres@", "spin:postgres/"],
    is_granted: Access::has::<Postgres>,
    setting: "the environment variable HEARTH_ALLOWED_HOSTS: the servers that the component may reach, for example postgres://db:5432",
    add_to_linker,
};

mod generated {
    wasmtime::component::bindgen!({
        path: "src/postgres/postgres.wit",
        world: "hearth:postgres/host",
        imports: { default: async | trappable },
        with: {
            "fermyon:spin/postgres.connection": super::Connection,
            "spin:postgres/postgres.connection": super::Connection,
        },
    });
}

use generated::fermyon::spin::postgres as v2;
use generated::fermyon::spin::rdbms_types as types;
use generated::spin::postgres::postgres as v3;

/// The PostgreSQL servers of one component.
pub struct Postgres(pub Network);

impl InterfaceState for Postgres {}

/// An open connection. A handle of a guest.
pub struct Connection(client::Connection);

macro_rules! convert_failure {
    ($error:ty) => {
        impl From<Failure> for $error {
            fn from(failure: Failure) -> Self {
                match failure {
                    Failure::Connection(text) => Self::ConnectionFailed(text),
                    Failure::BadParameter(text) => Self::BadParameter(text),
                    Failure::Query(text) => Self::QueryFailed(text),
                    Failure::Conversion(text) => Self::ValueConversionFailed(text),
                    Failure::Other(text) => Self::Other(text),
                }
            }
        }
    };
}

convert_failure!(types::Error);
convert_failure!(v3::Error);

impl From<Kind> for types::DbDataType {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Boolean => Self::Boolean,
            Kind::Int8 => Self::Int8,
            Kind::Int16 => Self::Int16,
            Kind::Int32 => Self::Int32,
            Kind::Int64 => Self::Int64,
            Kind::Floating32 => Self::Floating32,
            Kind::Floating64 => Self::Floating64,
            Kind::Str => Self::Str,
            Kind::Binary => Self::Binary,
            Kind::Date | Kind::Time | Kind::Datetime | Kind::Other => Self::Other,
        }
    }
}

impl From<Kind> for v3::DbDataType {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Boolean => Self::Boolean,
            Kind::Int8 => Self::Int8,
            Kind::Int16 => Self::Int16,
            Kind::Int32 => Self::Int32,
            Kind::Int64 => Self::Int64,
            Kind::Floating32 => Self::Floating32,
            Kind::Floating64 => Self::Floating64,
            Kind::Str => Self::Str,
            Kind::Binary => Self::Binary,
            Kind::Date => Self::Date,
            Kind::Time => Self::Time,
            Kind::Datetime => Self::Datetime,
            Kind::Other => Self::Other,
        }
    }
}

impl From<Value> for types::DbValue {
    fn from(value: Value) -> Self {
        match value {
            Value::Boolean(value) => Self::Boolean(value),
            Value::Int8(value) => Self::Int8(value),
            Value::Int16(value) => Self::Int16(value),
            Value::Int32(value) => Self::Int32(value),
            Value::Int64(value) => Self::Int64(value),
            Value::Floating32(value) => Self::Floating32(value),
            Value::Floating64(value) => Self::Floating64(value),
            Value::Str(value) => Self::Str(value),
            Value::Binary(value) => Self::Binary(value),
            Value::Null => Self::DbNull,
            Value::Date(_) | Value::Time(_) | Value::Datetime(_) | Value::Timestamp(_) | Value::Unsupported => {
                Self::Unsupported
            }
        }
    }
}

impl From<Value> for v3::DbValue {
    fn from(value: Value) -> Self {
        match value {
            Value::Boolean(value) => Self::Boolean(value),
            Value::Int8(value) => Self::Int8(value),
            Value::Int16(value) => Self::Int16(value),
            Value::Int32(value) => Self::Int32(value),
            Value::Int64(value) => Self::Int64(value),
            Value::Floating32(value) => Self::Floating32(value),
            Value::Floating64(value) => Self::Floating64(value),
            Value::Str(value) => Self::Str(value),
            Value::Binary(value) => Self::Binary(value),
            Value::Date(value) => Self::Date(values::date_parts(value)),
            Value::Time(value) => Self::Time(values::time_parts(value)),
            Value::Datetime(value) => Self::Datetime(values::datetime_parts(value)),
            Value::Timestamp(value) => Self::Timestamp(value.unix_timestamp()),
            Value::Null => Self::DbNull,
            Value::Unsupported => Self::Unsupported,
        }
    }
}

impl TryFrom<types::ParameterValue> for Value {
    type Error = Failure;

    fn try_from(value: types::ParameterValue) -> Result<Value, Failure> {
        use types::ParameterValue as Given;
        Ok(match value {
            Given::Boolean(value) => Value::Boolean(value),
            Given::Int8(value) => Value::Int8(value),
            Given::Int16(value) => Value::Int16(value),
            Given::Int32(value) => Value::Int32(value),
            Given::Int64(value) => Value::Int64(value),
            Given::Floating32(value) => Value::Floating32(value),
            Given::Floating64(value) => Value::Floating64(value),
            Given::Str(value) => Value::Str(value),
            Given::Binary(value) => Value::Binary(value),
            Given::DbNull => Value::Null,
            Given::Uint8(_) | Given::Uint16(_) | Given::Uint32(_) | Given::Uint64(_) => {
                return Err(Failure::BadParameter("PostgreSQL has no unsigned integers".into()));
            }
        })
    }
}

impl TryFrom<v3::ParameterValue> for Value {
    type Error = Failure;

    fn try_from(value: v3::ParameterValue) -> Result<Value, Failure> {
        use v3::ParameterValue as Given;
        Ok(match value {
            Given::Boolean(value) => Value::Boolean(value),
            Given::Int8(value) => Value::Int8(value),
            Given::Int16(value) => Value::Int16(value),
            Given::Int32(value) => Value::Int32(value),
            Given::Int64(value) => Value::Int64(value),
            Given::Floating32(value) => Value::Floating32(value),
            Given::Floating64(value) => Value::Floating64(value),
            Given::Str(value) => Value::Str(value),
            Given::Binary(value) => Value::Binary(value),
            Given::Date(parts) => Value::Date(values::date(parts).map_err(Failure::BadParameter)?),
            Given::Time(parts) => Value::Time(values::time(parts).map_err(Failure::BadParameter)?),
            Given::Datetime(parts) => Value::Datetime(values::datetime(parts).map_err(Failure::BadParameter)?),
            Given::Timestamp(seconds) => Value::Timestamp(values::timestamp(seconds).map_err(Failure::BadParameter)?),
            Given::DbNull => Value::Null,
        })
    }
}

impl From<Table> for types::RowSet {
    fn from(table: Table) -> Self {
        let column = |(name, kind): (String, Kind)| types::Column { name, data_type: kind.into() };
        let row = |values: Vec<Value>| values.into_iter().map(Into::into).collect();
        types::RowSet {
            columns: table.columns.into_iter().map(column).collect(),
            rows: table.rows.into_iter().map(row).collect(),
        }
    }
}

impl From<Table> for v3::RowSet {
    fn from(table: Table) -> Self {
        let column = |(name, kind): (String, Kind)| v3::Column { name, data_type: kind.into() };
        let row = |values: Vec<Value>| values.into_iter().map(Into::into).collect();
        v3::RowSet {
            columns: table.columns.into_iter().map(column).collect(),
            rows: table.rows.into_iter().map(row).collect(),
        }
    }
}

fn parameters<P>(given: Vec<P>) -> Result<Vec<Value>, Failure>
where
    Value: TryFrom<P, Error = Failure>,
{
    given.into_iter().map(Value::try_from).collect()
}

async fn open(state: &mut ComponentState, address: &str) -> HostResult<Resource<Connection>, Failure> {
    let opening = || {
        let refused = || Failure::Connection("the component has no access to PostgreSQL".into());
        let postgres = state.access.get::<Postgres>().ok_or_else(refused)?;
        let address = Address::parse(address)?;
        address.check(&postgres.0)?;
        Ok((postgres.0.clone(), address))
    };
    let (network, address) = match opening() {
        Ok(opening) => opening,
        Err(failure) => return Ok(Err(failure)),
    };
    if !state.descriptors.take() {
        return Ok(Err(Failure::Connection(TOO_MANY.into())));
    }
    keep(state, client::Connection::open(network, address).await.map(Connection))
}

/// A statement's connection, caller and parameters.
type Statement = (client::Connection, Caller, Vec<Value>);

fn statement<P>(state: &ComponentState, handle: &Resource<Connection>, given: Vec<P>) -> HostResult<Statement, Failure>
where
    Value: TryFrom<P, Error = Failure>,
{
    let connection = state.table.get(handle)?.0.clone();
    let caller = connection.network.container.caller(state);
    Ok(parameters(given).map(|values| (connection, caller, values)))
}

macro_rules! implement {
    ($version:ident, $types:ident) => {
        impl $version::Host for ComponentState {}

        impl $version::HostConnection for ComponentState {
            async fn open(&mut self, address: String) -> HostResult<Resource<Connection>, $types::Error> {
                Ok(open(self, &address).await?.map_err(Into::into))
            }

            async fn query(
                &mut self,
                connection: Resource<Connection>,
                statement: String,
                parameters: Vec<$types::ParameterValue>,
            ) -> HostResult<$types::RowSet, $types::Error> {
                let (connection, caller, values) = match self::statement(self, &connection, parameters)? {
                    Ok(call) => call,
                    Err(failure) => return Ok(Err(failure.into())),
                };
                Ok(connection.query(caller, statement, values).await.map(Into::into).map_err(Into::into))
            }

            async fn execute(
                &mut self,
                connection: Resource<Connection>,
                statement: String,
                parameters: Vec<$types::ParameterValue>,
            ) -> HostResult<u64, $types::Error> {
                let (connection, caller, values) = match self::statement(self, &connection, parameters)? {
                    Ok(call) => call,
                    Err(failure) => return Ok(Err(failure.into())),
                };
                Ok(connection.execute(caller, statement, values).await.map_err(Into::into))
            }

            async fn drop(&mut self, connection: Resource<Connection>) -> wasmtime::Result<()> {
                close(self, connection)
            }
        }
    };
}

implement!(v2, types);
implement!(v3, v3);

impl types::Host for ComponentState {}

fn add_to_linker(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    types::add_to_linker::<_, HasSelf<ComponentState>>(linker, |state| state)?;
    v2::add_to_linker::<_, HasSelf<ComponentState>>(linker, |state| state)?;
    v3::add_to_linker::<_, HasSelf<ComponentState>>(linker, |state| state)
}
