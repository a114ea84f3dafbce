//! Statements that try to reach more than their database, or to take more than they may.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hearth_os::identity::{self, Identity};
use hearth_wasm::memory::MemoryUse;

use super::{Answer, Caller, ConnectionKey, Place, Storage, StorageError};

/// A recursive query without an end.
const FOREVER: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";

fn storage(root: &tempfile::TempDir) -> Storage {
    identity::record_daemon().unwrap();
    Storage::new(root.path().to_path_buf(), Identity::default())
}

fn caller(memory: u64) -> Caller {
    Caller {
        guest: Arc::default(),
        memory: Arc::new(MemoryUse::new(memory)),
        timeout: Duration::from_secs(10),
        answer_bytes_max: 1 << 20,
    }
}

fn key(place: Place, number: u64) -> ConnectionKey {
    ConnectionKey { place, number }
}

fn file(number: u64) -> ConnectionKey {
    key(Place::File("/dir/data.db".into()), number)
}

/// Runs a statement, and returns the first column of its rows as text.
async fn sql(storage: &Storage, key: &ConnectionKey, caller: &Caller, text: &str) -> Result<Vec<String>, StorageError> {
    let text = text.to_owned();
    let work = move |connection: &rusqlite::Connection, answer: &mut Answer| {
        let mut statement = connection.prepare(&text)?;
        let mut rows = statement.query([])?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            let value: rusqlite::types::Value = row.get(0)?;
            let value = format!("{value:?}");
            answer.count(value.len())?;
            all.push(value);
        }
        Ok(all)
    };
    storage.run(key, caller, work).await
}

#[tokio::test]
async fn a_database_is_a_file_below_the_containers_root() {
    let root = tempfile::tempdir().unwrap();
    let storage = storage(&root);
    let caller = caller(10 << 20);
    sql(&storage, &file(0), &caller, "CREATE TABLE t (a)").await.unwrap();
    sql(&storage, &file(0), &caller, "INSERT INTO t VALUES ('x'), (2)").await.unwrap();
    assert_eq!(sql(&storage, &file(1), &caller, "SELECT a FROM t").await.unwrap(), [r#"Text("x")"#, "Integer(2)"]);
    assert!(root.path().join("dir/data.db").exists());
    assert!(caller.memory.current() > 0, "the connections' pages are charged");
    storage.close();
    let closed = sql(&storage, &file(0), &caller, "SELECT a FROM t").await;
    assert!(matches!(closed, Err(StorageError::Closed)), "{closed:?}");
}

#[tokio::test]
async fn a_statement_reaches_no_other_file_and_takes_no_memory_that_nothing_bounds() {
    let root = tempfile::tempdir().unwrap();
    let storage = storage(&root);
    let caller = caller(10 << 20);
    for denied in [
        "ATTACH '/other.db' AS o",
        "ATTACH ':memory:' AS o",
        "ATTACH 'file:/other.db' AS o",
        "ATTACH '/oth' || 'er.db' AS o",
        "VACUUM INTO '/other.db'",
        "PRAGMA cache_size = 1000000",
        "PRAGMA temp_store = MEMORY",
        "PRAGMA mmap_size = 1000000000",
        "PRAGMA hard_heap_limit = 0",
        "PRAGMA temp_store_directory = '/tmp'",
        "PRAGMA journal_mode = MEMORY",
        "SELECT load_extension('/lib/x.so')",
    ] {
        let error = sql(&storage, &file(0), &caller, denied).await.unwrap_err().to_string();
        let is_denied =
            ["not authorized", "authorization denied", "no such function"].iter().any(|text| error.contains(text));
        assert!(is_denied, "{denied}: {error}");
    }
    assert!(!root.path().join("other.db").exists());
    for allowed in ["CREATE TABLE t (a)", "PRAGMA table_info(t)", "PRAGMA user_version = 3", "VACUUM"] {
        sql(&storage, &file(0), &caller, allowed).await.unwrap_or_else(|error| panic!("{allowed}: {error}"));
    }
    let large = sql(&storage, &file(0), &caller, "SELECT zeroblob(100000000)").await.unwrap_err();
    assert!(large.to_string().contains("too big"), "{large}");
    let rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 1000000) SELECT i FROM n";
    assert!(matches!(sql(&storage, &file(0), &caller, rows).await, Err(StorageError::Large(_))));
}

#[tokio::test]
async fn a_call_ends_at_its_deadline_and_with_its_caller() {
    let root = tempfile::tempdir().unwrap();
    let storage = storage(&root);
    let short = Caller { timeout: Duration::from_millis(200), ..caller(10 << 20) };
    let late = sql(&storage, &file(0), &short, FOREVER).await;
    assert!(matches!(late, Err(StorageError::Late)), "{late:?}");
    // Its caller goes away; the next call has the thread soon.
    let patient = caller(10 << 20);
    let key = file(0);
    let gone = tokio::time::timeout(Duration::from_millis(200), sql(&storage, &key, &patient, FOREVER)).await;
    assert!(gone.is_err());
    let began = Instant::now();
    sql(&storage, &file(0), &patient, "SELECT 1").await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(patient.guest.cpu_time() > Duration::ZERO, "the guest is charged");
}

#[tokio::test]
async fn a_locked_database_is_tried_again() {
    let root = tempfile::tempdir().unwrap();
    let storage = storage(&root);
    let caller = caller(10 << 20);
    sql(&storage, &file(0), &caller, "CREATE TABLE t (a)").await.unwrap();
    sql(&storage, &file(0), &caller, "BEGIN IMMEDIATE").await.unwrap();
    let (other, second) = (file(1), caller.clone());
    let waiting = sql(&storage, &other, &second, "INSERT INTO t VALUES (1)");
    let first = async {
        sql(&storage, &file(0), &caller, "INSERT INTO t VALUES (2)").await.unwrap();
        sql(&storage, &file(0), &caller, "COMMIT").await.unwrap();
    };
    let (waited, ()) = tokio::join!(waiting, first);
    waited.unwrap();
    assert_eq!(sql(&storage, &file(0), &caller, "SELECT count(*) FROM t").await.unwrap(), ["Integer(2)"]);
    // What is left open is undone with its connection.
    sql(&storage, &file(0), &caller, "BEGIN IMMEDIATE").await.unwrap();
    storage.close_connection(file(0));
    sql(&storage, &file(1), &caller, "INSERT INTO t VALUES (3)").await.unwrap();
}

#[tokio::test]
async fn a_database_in_memory_counts_as_the_containers_memory() {
    let root = tempfile::tempdir().unwrap();
    let storage = storage(&root);
    let caller = caller(4 << 20);
    let memory = key(Place::Memory, 0);
    sql(&storage, &memory, &caller, "CREATE TABLE t (a)").await.unwrap();
    let mut full = None;
    for _ in 0..10 {
        if let Err(error) = sql(&storage, &memory, &caller, "INSERT INTO t VALUES (zeroblob(1000000))").await {
            full = Some(error);
            break;
        }
    }
    assert!(full.is_some_and(|error| error.is_full()), "the memory is bounded");
    assert!(caller.memory.current() > 2 << 20 && caller.memory.current() <= caller.memory.limit());
    storage.close();
    let end = Instant::now() + Duration::from_secs(10);
    while caller.memory.current() > 0 && Instant::now() < end {
        tokio::task::yield_now().await;
    }
    assert_eq!(caller.memory.current(), 0);
}
