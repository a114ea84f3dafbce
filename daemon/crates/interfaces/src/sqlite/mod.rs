//! Spin's SQLite databases: `fermyon:spin/sqlite@2.0.0`, `spin:sqlite/sqlite@3.0.0` and `3.1.0`.
//!
//! Each connection of a guest is one of its own to the database's file, so that transactions of two guests do not mix. A
//! connection counts as an open file of the container.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{ToSql, params_from_iter};
use wasmtime::component::{Accessor, FutureReader, HasSelf, Linker, Resource, StreamReader};

use hearth_wasm::access::{Access, InterfaceState};
use hearth_wasm::host_interface::HostInterface;
use hearth_wasm::state::ComponentState;

use crate::container::Container;
use crate::handles::{HostResult, TOO_MANY, close, keep};
use crate::storage::{Caller, ConnectionKey, Place, StorageError};

/// The registration.
pub const INTERFACE: HostInterface = HostInterface {
    imports: &["fermyon:spin/sqlite@", "spin:sqlite/"],
    is_granted: Access::has::<Databases>,
    setting: "the environment variable HEARTH_SQLITE: NAME=/path/in/the/container",
    add_to_linker,
};

/// Bytes that a value takes beside its text.
const VALUE_BYTES: usize = 32;

mod generated {
    wasmtime::component::bindgen!({
        path: "src/sqlite/sqlite.wit",
        world: "hearth:sqlite/host",
        imports: { default: async | trappable },
        with: {
            "fermyon:spin/sqlite.connection": super::Connection,
            "spin:sqlite/sqlite.connection": super::Connection,
        },
    });
}

use generated::fermyon::spin::sqlite as v2;
use generated::spin::sqlite::sqlite as v3;

/// The databases of one component, by label.
pub struct Databases {
    container: Arc<Container>,
    files: BTreeMap<String, PathBuf>,
    opened: AtomicU64,
}

impl InterfaceState for Databases {
    fn close(&self) {
        self.container.storage.close();
    }
}

impl Databases {
    /// These files of the container.
    pub fn new(container: &Arc<Container>, files: BTreeMap<String, PathBuf>) -> Databases {
        Databases { container: container.clone(), files, opened: AtomicU64::new(1) }
    }
}

/// An open connection. A handle of a guest.
pub struct Connection {
    container: Arc<Container>,
    key: ConnectionKey,
    /// Of the last statement.
    last: Arc<Last>,
}

/// The results of a connection's last statement.
#[derive(Default)]
struct Last {
    rowid: AtomicI64,
    changes: AtomicU64,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.container.storage.close_connection(self.key.clone());
    }
}

/// Why a call failed.
enum Failure {
    Denied,
    Full,
    Io(String),
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Failure {
        if error.is_full() { Failure::Full } else { Failure::Io(error.to_string()) }
    }
}

/// A value of a statement or of a row.
#[derive(Clone)]
enum Value {
    Integer(i64),
    Real(f64),
    Text(String),
    Blob(Vec<u8>),
    Null,
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Value::Integer(number) => ValueRef::Integer(*number),
            Value::Real(number) => ValueRef::Real(*number),
            Value::Text(text) => ValueRef::Text(text.as_bytes()),
            Value::Blob(bytes) => ValueRef::Blob(bytes),
            Value::Null => ValueRef::Null,
        }))
    }
}

impl Value {
    fn of(value: ValueRef<'_>) -> Value {
        match value {
            ValueRef::Integer(number) => Value::Integer(number),
            ValueRef::Real(number) => Value::Real(number),
            ValueRef::Text(text) => Value::Text(String::from_utf8_lossy(text).into_owned()),
            ValueRef::Blob(bytes) => Value::Blob(bytes.to_vec()),
            ValueRef::Null => Value::Null,
        }
    }

    /// The bytes of its text.
    fn length(value: ValueRef<'_>) -> usize {
        match value {
            ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes.len(),
            ValueRef::Integer(_) | ValueRef::Real(_) | ValueRef::Null => 0,
        }
    }
}

/// Columns and rows.
struct Table {
    columns: Vec<String>,
    rows: Vec<Vec<Value>>,
}

fn open(state: &mut ComponentState, label: &str) -> HostResult<Resource<Connection>, Failure> {
    let Some(databases) = state.access.get::<Databases>() else { return Ok(Err(Failure::Denied)) };
    let Some(file) = databases.files.get(label) else { return Ok(Err(Failure::Denied)) };
    if !state.descriptors.take() {
        return Ok(Err(Failure::Io(TOO_MANY.into())));
    }
    let number = databases.opened.fetch_add(1, Ordering::Relaxed);
    let key = ConnectionKey { place: Place::File(file.clone()), number };
    keep(state, Ok(Connection { container: databases.container.clone(), key, last: Arc::default() }))
}

/// A statement on its way to the container's thread.
struct Statement {
    container: Arc<Container>,
    key: ConnectionKey,
    last: Arc<Last>,
    caller: Caller,
}

impl Statement {
    fn new(state: &ComponentState, connection: &Resource<Connection>) -> wasmtime::Result<Statement> {
        let Connection { container, key, last } = state.table.get(connection)?;
        let caller = container.caller(state);
        Ok(Statement { container: container.clone(), key: key.clone(), last: last.clone(), caller })
    }

    async fn execute(self, text: String, values: Vec<Value>) -> Result<Table, Failure> {
        let call = Arc::new((text, values));
        let last = self.last;
        let work = move |connection: &rusqlite::Connection, answer: &mut crate::storage::Answer| {
            let (text, values) = &*call;
            let mut statement = connection.prepare(text)?;
            let columns: Vec<String> = statement.column_names().map(ToString::to_string).collect();
            let mut rows = Vec::new();
            let mut found = statement.query(params_from_iter(values))?;
            while let Some(row) = found.next()? {
                let mut kept = Vec::with_capacity(columns.len());
                for index in 0..columns.len() {
                    let value = row.get_ref(index)?;
                    answer.count(VALUE_BYTES + Value::length(value))?;
                    kept.push(Value::of(value));
                }
                rows.push(kept);
            }
            last.rowid.store(connection.last_insert_rowid(), Ordering::Relaxed);
            last.changes.store(connection.changes(), Ordering::Relaxed);
            Ok(Table { columns, rows })
        };
        Ok(self.container.storage.run(&self.key, &self.caller, work).await?)
    }
}

macro_rules! convert {
    ($version:ident) => {
        impl From<Failure> for $version::Error {
            fn from(failure: Failure) -> Self {
                match failure {
                    Failure::Denied => $version::Error::AccessDenied,
                    Failure::Full => $version::Error::DatabaseFull,
                    Failure::Io(text) => $version::Error::Io(text),
                }
            }
        }

        impl From<$version::Value> for Value {
            fn from(value: $version::Value) -> Value {
                match value {
                    $version::Value::Integer(number) => Value::Integer(number),
                    $version::Value::Real(number) => Value::Real(number),
                    $version::Value::Text(text) => Value::Text(text),
                    $version::Value::Blob(bytes) => Value::Blob(bytes),
                    $version::Value::Null => Value::Null,
                }
            }
        }

        impl From<Value> for $version::Value {
            fn from(value: Value) -> Self {
                match value {
                    Value::Integer(number) => $version::Value::Integer(number),
                    Value::Real(number) => $version::Value::Real(number),
                    Value::Text(text) => $version::Value::Text(text),
                    Value::Blob(bytes) => $version::Value::Blob(bytes),
                    Value::Null => $version::Value::Null,
                }
            }
        }

        impl From<Vec<Value>> for $version::RowResult {
            fn from(values: Vec<Value>) -> Self {
                $version::RowResult { values: values.into_iter().map(Into::into).collect() }
            }
        }

        impl From<Table> for $version::QueryResult {
            fn from(table: Table) -> Self {
                $version::QueryResult { columns: table.columns, rows: table.rows.into_iter().map(Into::into).collect() }
            }
        }
    };
}

convert!(v2);
convert!(v3);

impl v2::Host for ComponentState {}

impl v2::HostConnection for ComponentState {
    async fn open(&mut self, database: String) -> HostResult<Resource<Connection>, v2::Error> {
        Ok(open(self, &database)?.map_err(Into::into))
    }

    async fn execute(
        &mut self,
        connection: Resource<Connection>,
        statement: String,
        parameters: Vec<v2::Value>,
    ) -> HostResult<v2::QueryResult, v2::Error> {
        let call = Statement::new(self, &connection)?;
        let values = parameters.into_iter().map(Into::into).collect();
        Ok(call.execute(statement, values).await.map(Into::into).map_err(Into::into))
    }

    async fn drop(&mut self, connection: Resource<Connection>) -> wasmtime::Result<()> {
        close(self, connection)
    }
}

impl v3::Host for ComponentState {}

impl v3::HostConnection for ComponentState {
    async fn open(&mut self, database: String) -> HostResult<Resource<Connection>, v3::Error> {
        Ok(open(self, &database)?.map_err(Into::into))
    }

    async fn execute(
        &mut self,
        connection: Resource<Connection>,
        statement: String,
        parameters: Vec<v3::Value>,
    ) -> HostResult<v3::QueryResult, v3::Error> {
        let call = Statement::new(self, &connection)?;
        let values = parameters.into_iter().map(Into::into).collect();
        Ok(call.execute(statement, values).await.map(Into::into).map_err(Into::into))
    }

    async fn last_insert_rowid(&mut self, connection: Resource<Connection>) -> wasmtime::Result<i64> {
        Ok(self.table.get(&connection)?.last.rowid.load(Ordering::Relaxed))
    }

    async fn changes(&mut self, connection: Resource<Connection>) -> wasmtime::Result<u64> {
        Ok(self.table.get(&connection)?.last.changes.load(Ordering::Relaxed))
    }

    async fn drop(&mut self, connection: Resource<Connection>) -> wasmtime::Result<()> {
        close(self, connection)
    }
}

type Rows = (Vec<String>, StreamReader<v3::RowResult>, FutureReader<Result<(), v3::Error>>);

impl<T: Send> v3::HostConnectionWithStore<T> for HasSelf<ComponentState> {
    async fn open_async(store: &Accessor<T, Self>, database: String) -> HostResult<Resource<Connection>, v3::Error> {
        Ok(store.with(|mut store| open(store.get(), &database))?.map_err(Into::into))
    }

    async fn execute_async(
        store: &Accessor<T, Self>,
        connection: Resource<Connection>,
        statement: String,
        parameters: Vec<v3::Value>,
    ) -> HostResult<Rows, v3::Error> {
        let call = store.with(|mut store| Statement::new(store.get(), &connection))?;
        let values = parameters.into_iter().map(Into::into).collect();
        let table = match call.execute(statement, values).await {
            Ok(table) => table,
            Err(failure) => return Ok(Err(failure.into())),
        };
        let rows: Vec<v3::RowResult> = table.rows.into_iter().map(Into::into).collect();
        store.with(|mut store| {
            let rows = StreamReader::new(&mut store, rows)?;
            let result = FutureReader::new(&mut store, async { wasmtime::error::Ok(Ok(())) })?;
            Ok(Ok((table.columns, rows, result)))
        })
    }

    async fn last_insert_rowid_async(
        store: &Accessor<T, Self>,
        connection: Resource<Connection>,
    ) -> wasmtime::Result<i64> {
        store.with(|mut store| Ok(store.get().table.get(&connection)?.last.rowid.load(Ordering::Relaxed)))
    }

    async fn changes_async(store: &Accessor<T, Self>, connection: Resource<Connection>) -> wasmtime::Result<u64> {
        store.with(|mut store| Ok(store.get().table.get(&connection)?.last.changes.load(Ordering::Relaxed)))
    }
}

fn add_to_linker(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    v2::add_to_linker::<_, HasSelf<ComponentState>>(linker, |state| state)?;
    v3::add_to_linker::<_, HasSelf<ComponentState>>(linker, |state| state)
}
