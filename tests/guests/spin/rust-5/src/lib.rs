//! An HTTP component with Spin's SDK 5 for Rust: a core module of wasm32-wasip1.
//!
//! * `/hello/NAME`: a greeting with the path that the route gave.
//! * `/variable/NAME`: the variable.
//! * `/keep/VALUE`: sets a key of the default store, and reads it.
//! * `/rows/NUMBER`: adds the number to a table of the default database, and sums the table up.
//! * `/fetch/URL`: status and body of another server's answer, or why there is none.
//! * `/echo`: the body of the request.

use spin_sdk::http::{send, IntoResponse, Request, Response};
use spin_sdk::http_component;
use spin_sdk::key_value::Store;
use spin_sdk::sqlite::{Connection, Value};
use spin_sdk::variables;

#[http_component]
async fn handle(request: Request) -> anyhow::Result<impl IntoResponse> {
    println!("SDK 5 handles {}", request.path());
    let info = request.header("spin-path-info").and_then(|value| value.as_str()).unwrap_or_default().to_owned();
    let path = request.path().trim_start_matches('/').to_owned();
    let (what, rest) = path.split_once('/').unwrap_or((&path, ""));
    let body = match what {
        "hello" => format!("hello from SDK 5: {rest} {info}"),
        "variable" => variables::get(rest)?,
        "keep" => {
            let store = Store::open_default()?;
            store.set("key", rest.as_bytes())?;
            String::from_utf8(store.get("key")?.unwrap_or_default())?
        }
        "rows" => rows(rest.parse()?)?.to_string(),
        "fetch" => match send::<_, Response>(Request::get(rest)).await {
            Ok(response) => format!("{} {}", response.status(), String::from_utf8_lossy(response.body())),
            Err(error) => format!("failed: {error}"),
        },
        "echo" => String::from_utf8(request.into_body())?,
        _ => return Ok(Response::new(404, "no such path")),
    };
    Ok(Response::builder().status(200).header("content-type", "text/plain").body(body).build())
}

fn rows(number: i64) -> anyhow::Result<i64> {
    let database = Connection::open_default()?;
    database.execute("CREATE TABLE IF NOT EXISTS t (n INTEGER)", &[])?;
    database.execute("INSERT INTO t VALUES (?)", &[Value::Integer(number)])?;
    let sum = database.execute("SELECT sum(n) AS n FROM t", &[])?;
    let row = sum.rows().next();
    row.and_then(|row| row.get::<i64>("n")).ok_or_else(|| anyhow::anyhow!("there is no sum"))
}
