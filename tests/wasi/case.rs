//! A test: its Wasm file, and its specification in the JSON file of the same name
//! (<https://github.com/WebAssembly/wasi-testsuite/blob/main/doc/specification.md>).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// A test.
pub struct Case {
    /// `DIRECTORY/TEST`, the directory relative to the suite's `tests`.
    pub name: String,
    /// The Wasm file.
    pub wasm: PathBuf,
    /// Whether it is of WASI 0.3.
    pub is_p3: bool,
    /// Its specification.
    pub spec: Spec,
}

/// A specification with operations.
#[derive(Deserialize, Default)]
#[serde(default)]
pub struct Spec {
    /// In order.
    pub operations: Vec<Operation>,
    /// `http`, `sockets`.
    pub proposals: Vec<String>,
    /// `wasi:cli/command` or `wasi:http/service`.
    pub world: String,
    /// Servers that the test asks.
    pub servers: Vec<Server>,
}

/// A specification without operations.
#[derive(Deserialize, Default)]
#[serde(default)]
struct ShortSpec {
    args: Vec<String>,
    root: Option<String>,
    env: BTreeMap<String, String>,
    exit_code: i32,
    stdout: Option<String>,
    stderr: Option<String>,
}

/// One step of a test.
#[derive(Deserialize, Clone)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Operation {
    /// Starts it.
    Run {
        #[serde(default)]
        args: Vec<String>,
        #[serde(default)]
        env: BTreeMap<String, String>,
        /// A directory beside the test.
        root: Option<String>,
    },
    /// Waits for its end.
    Wait {
        #[serde(default)]
        exit_code: i32,
    },
    /// Expects output.
    Read {
        #[serde(default = "stdout")]
        id: String,
        #[serde(default)]
        payload: String,
    },
    /// Writes to stdin.
    Write {
        #[serde(default)]
        payload: String,
    },
    /// Connects to the address that it prints.
    Connect {
        #[serde(default = "server")]
        id: String,
    },
    /// Sends over a connection.
    Send {
        id: String,
        #[serde(default)]
        payload: String,
    },
    /// Expects bytes of a connection.
    Recv {
        id: String,
        #[serde(default)]
        payload: String,
    },
    /// Sends an HTTP request, and expects a response.
    Request {
        #[serde(default = "get")]
        method: String,
        #[serde(default = "slash")]
        path: String,
        #[serde(default)]
        headers: BTreeMap<String, String>,
        #[serde(default)]
        body: String,
        #[serde(default)]
        response: Response,
    },
    /// Sends a signal.
    Kill {
        #[serde(default = "sigterm")]
        signal: String,
    },
}

fn stdout() -> String {
    "stdout".into()
}

fn server() -> String {
    "server".into()
}

fn get() -> String {
    "GET".into()
}

fn slash() -> String {
    "/".into()
}

fn sigterm() -> String {
    "SIGTERM".into()
}

/// A response, expected or given.
#[derive(Deserialize, Clone)]
#[serde(default)]
pub struct Response {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: String,
    /// In place of `body`.
    pub chunks: Option<Vec<String>>,
    pub trailers: BTreeMap<String, String>,
}

impl Default for Response {
    fn default() -> Self {
        let (headers, trailers) = Default::default();
        Self { status: 200, headers, body: String::new(), chunks: None, trailers }
    }
}

/// An HTTP server that the test asks. The variable `HTTP_SERVER_NAME` has its address.
#[derive(Deserialize)]
pub struct Server {
    pub name: String,
    /// `listening`, or `closed`: an address without a server.
    pub kind: Option<String>,
    #[serde(default)]
    pub endpoints: Vec<Endpoint>,
}

/// A server's answer at one path.
#[derive(Deserialize, Clone)]
pub struct Endpoint {
    #[serde(default = "get")]
    pub method: String,
    #[serde(default = "slash")]
    pub path: String,
    /// `static`, `echo-body` or `echo-headers`.
    pub mode: Option<String>,
    pub response: Option<ShortResponse>,
}

/// A response, or only its body.
#[derive(Deserialize, Clone)]
#[serde(untagged)]
pub enum ShortResponse {
    Body(String),
    Whole(Response),
}

/// All compiled tests of a checkout, in order of their names.
///
/// # Panics
/// If a specification cannot be read.
pub fn find(checkout: &Path) -> Vec<Case> {
    let tests = checkout.join("tests");
    let mut cases = Vec::new();
    let mut directories = vec![tests.clone()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "wasm") {
                cases.extend(case(&tests, path));
            }
        }
    }
    cases.sort_by(|one, other| one.name.cmp(&other.name));
    cases
}

/// Only the files of a `testsuite` directory are tests.
fn case(tests: &Path, wasm: PathBuf) -> Option<Case> {
    let name = wasm.with_extension("").strip_prefix(tests).ok()?.to_str()?.to_owned();
    let spec = wasm.with_extension("json");
    let spec = match fs::read_to_string(&spec) {
        Ok(text) => parse(&text).unwrap_or_else(|error| panic!("{}: {error}", spec.display())),
        Err(_) => parse("{}").expect("it has defaults"),
    };
    let is_p3 = name.contains("wasip3");
    name.contains("testsuite/").then_some(Case { name, wasm, is_p3, spec })
}

fn parse(text: &str) -> serde_json::Result<Spec> {
    let mut spec: Spec = serde_json::from_str(text)?;
    if spec.operations.is_empty() {
        let short: ShortSpec = serde_json::from_str(text)?;
        spec.operations.push(Operation::Run { args: short.args, env: short.env, root: short.root });
        for (id, payload) in [("stdout", short.stdout), ("stderr", short.stderr)] {
            spec.operations.extend(payload.map(|payload| Operation::Read { id: id.into(), payload }));
        }
        spec.operations.push(Operation::Wait { exit_code: short.exit_code });
    }
    Ok(spec)
}

impl Spec {
    /// Whether the test is a service.
    pub fn is_service(&self) -> bool {
        self.world == "wasi:http/service"
    }

    /// Whether it needs this proposal.
    pub fn needs(&self, proposal: &str) -> bool {
        self.proposals.iter().any(|found| found == proposal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_specification_are_read() {
        let short = parse(r#"{"args": ["a"], "exit_code": 3, "stdout": "x"}"#).unwrap();
        assert!(matches!(&short.operations[0], Operation::Run { args, root: None, .. } if args == &["a"]));
        assert!(matches!(&short.operations[1], Operation::Read { id, payload } if id == "stdout" && payload == "x"));
        assert!(matches!(short.operations[2], Operation::Wait { exit_code: 3 }));
        let long = r#"{"proposals": ["http"], "world": "wasi:http/service",
            "servers": [{"name": "main", "endpoints": [{"path": "/a", "response": "b"}]}],
            "operations": [{"type": "run"}, {"type": "request", "response": {"status": 404}}, {"type": "kill"}]}"#;
        let long = parse(long).unwrap();
        assert!(long.is_service() && long.needs("http") && !long.needs("sockets"));
        assert!(matches!(&long.operations[1], Operation::Request { method, response, .. }
            if method == "GET" && response.status == 404));
        assert!(matches!(&long.operations[2], Operation::Kill { signal } if signal == "SIGTERM"));
    }
}
