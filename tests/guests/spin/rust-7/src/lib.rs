//! The component of `rust-5` with Spin's SDK 7 for Rust, and with SDK 6: a component of WASI 0.3 and of its candidate.

use spin_sdk::http::body::IncomingBodyExt;
use spin_sdk::http::{IntoResponse, Request, Response, StatusCode, get};
use spin_sdk::http_service;
use spin_sdk::key_value::Store;
use spin_sdk::sqlite::{Connection, Value};
use spin_sdk::variables;

#[http_service]
async fn handle(request: Request) -> anyhow::Result<impl IntoResponse> {
    let path = request.uri().path().trim_start_matches('/').to_owned();
    println!("an SDK of WASI 0.3 handles /{path}");
    let info = request.headers().get("spin-path-info").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (what, rest) = path.split_once('/').unwrap_or((&path, ""));
    let body = match what {
        "hello" => format!("hello from an SDK of WASI 0.3: {rest} {info}"),
        "variable" => variables::get(rest).await?,
        "keep" => {
            let store = Store::open_default().await?;
            store.set("key", rest.as_bytes()).await?;
            String::from_utf8(store.get("key").await?.unwrap_or_default())?
        }
        "rows" => rows(rest.parse()?).await?.to_string(),
        "fetch" => match get(rest).await {
            Ok(response) => {
                let status = response.status().as_u16();
                format!("{status} {}", String::from_utf8_lossy(&response.into_body().bytes().await?))
            }
            Err(error) => format!("failed: {error}"),
        },
        "echo" => String::from_utf8(request.into_body().bytes().await?.to_vec())?,
        _ => return Ok(Response::builder().status(StatusCode::NOT_FOUND).body("no such path".to_string())?),
    };
    Ok(Response::builder().header("content-type", "text/plain").body(body)?)
}

async fn rows(number: i64) -> anyhow::Result<i64> {
    let database = Connection::open_default().await?;
    database.execute("CREATE TABLE IF NOT EXISTS t (n INTEGER)", []).await?.collect().await?;
    database.execute("INSERT INTO t VALUES (?)", [Value::Integer(number)]).await?.collect().await?;
    let mut sum = database.execute("SELECT sum(n) AS n FROM t", []).await?;
    let row = sum.next().await;
    row.and_then(|row| row.get::<i64>(0)).ok_or_else(|| anyhow::anyhow!("there is no sum"))
}
