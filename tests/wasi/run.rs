//! The operations of a test, one after another.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Stdio};
use std::time::Duration;

use hearth_tests::wait::within;
use hearth_tests::{SHORT, eventually};

use crate::case::{Case, Operation, Response};
use crate::http::{self, Servers};
use crate::runtime::{Request, Runtime};

/// How long a test may take, its compilation included.
const DEADLINE: Duration = Duration::from_secs(60);

/// A test that runs. Dropping it kills it.
struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    stderr: BufReader<ChildStderr>,
    /// Where it serves HTTP.
    address: Option<String>,
    connections: BTreeMap<String, TcpStream>,
}

/// Runs a test. `root`: a directory to be made for its root.
///
/// # Errors
/// The first operation that failed, with the output.
pub fn run(runtime: &dyn Runtime, case: &Case, root: &Path, index: usize) -> Result<(), String> {
    let servers = Servers::start(&case.spec.servers);
    let mut process = None;
    for operation in &case.spec.operations {
        if let Operation::Run { args, env, root: wanted } = operation {
            let beside = wanted.as_ref().map(|name| case.wasm.with_file_name(name));
            if let Some(directory) = &beside {
                copy(directory, root).map_err(|error| format!("{}: {error}", directory.display()))?;
            }
            let mut env = env.clone();
            env.extend(servers.environment());
            let request = Request { case, args, env, root: beside.is_some().then_some(root), index };
            process = Some(start(runtime, &request)?);
            continue;
        }
        let running: &mut Process = process.as_mut().ok_or("an operation comes before `run`")?;
        let done = match operation {
            Operation::Wait { exit_code } => running.wait(*exit_code),
            Operation::Kill { signal } => {
                runtime.kill(running.child.id(), index, signal);
                Ok(())
            }
            other => running.perform(other),
        };
        if let Err(why) = done {
            runtime.kill(running.child.id(), index, "SIGKILL");
            return Err(format!("{why}{}", running.rest()));
        }
    }
    Ok(())
}

fn start(runtime: &dyn Runtime, request: &Request<'_>) -> Result<Process, String> {
    let mut started = runtime.command(request);
    started.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = started.command.spawn().map_err(|error| format!("cannot start it: {error}"))?;
    let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (stdin, Some(stdout), Some(stderr)) = pipes else { return Err("it has no pipes".into()) };
    let (stdout, stderr) = (BufReader::new(stdout), BufReader::new(stderr));
    let mut process = Process { child, stdin, stdout, stderr, address: started.address, connections: BTreeMap::new() };
    if request.case.spec.is_service() {
        process.wait_for_service()?;
    }
    Ok(process)
}

impl Process {
    /// Waits until the port is open, which `wasmtime` names in its first line.
    fn wait_for_service(&mut self) -> Result<(), String> {
        if self.address.is_none() {
            let mut line = String::new();
            self.stderr.read_line(&mut line).map_err(|error| error.to_string())?;
            let address = line.split("http://").nth(1).and_then(|rest| rest.split(['/', ' ', '\n']).next());
            self.address = Some(address.ok_or_else(|| format!("no address in {line:?}"))?.to_owned());
        }
        let address = self.address.clone().unwrap_or_default();
        eventually("the service listens", SHORT, || TcpStream::connect(&address).ok());
        Ok(())
    }

    fn perform(&mut self, operation: &Operation) -> Result<(), String> {
        match operation {
            Operation::Read { id, payload } => {
                let mut found = vec![0; payload.len()];
                let read = match id.as_str() {
                    "stderr" => self.stderr.read_exact(&mut found),
                    _ => self.stdout.read_exact(&mut found),
                };
                read.map_err(|error| format!("{id} has not {payload:?}: {error}"))?;
                expect(id, payload.as_bytes(), &found)
            }
            Operation::Write { payload } => {
                let stdin = self.stdin.as_mut().ok_or("stdin is closed")?;
                let written = stdin.write_all(payload.as_bytes()).and_then(|()| stdin.flush());
                written.map_err(|error| format!("stdin: {error}"))
            }
            Operation::Connect { id } => {
                let mut line = String::new();
                self.stdout.read_line(&mut line).map_err(|error| error.to_string())?;
                let stream = TcpStream::connect(line.trim()).map_err(|error| format!("{line:?}: {error}"))?;
                stream.set_read_timeout(Some(SHORT)).map_err(|error| error.to_string())?;
                self.connections.insert(id.clone(), stream);
                Ok(())
            }
            Operation::Send { id, payload } => {
                let stream = self.connections.get_mut(id).ok_or_else(|| format!("no connection {id}"))?;
                stream.write_all(payload.as_bytes()).map_err(|error| format!("send: {error}"))
            }
            Operation::Recv { id, payload } => {
                let stream = self.connections.get_mut(id).ok_or_else(|| format!("no connection {id}"))?;
                let mut found = vec![0; payload.len()];
                stream.read_exact(&mut found).map_err(|error| format!("receive: {error}"))?;
                expect("the connection", payload.as_bytes(), &found)
            }
            Operation::Request { method, path, headers, body, response } => {
                let address = self.address.as_deref().ok_or("it is no service")?;
                let found = http::ask(address, method, path, headers, body)
                    .map_err(|error| format!("{method} {path}: {error}"))?;
                compare(response, &found)
            }
            Operation::Run { .. } | Operation::Wait { .. } | Operation::Kill { .. } => Ok(()),
        }
    }

    fn wait(&mut self, exit_code: i32) -> Result<(), String> {
        self.stdin = None;
        match within(DEADLINE, || self.child.try_wait().transpose()) {
            Some(Ok(status)) if status.code() == Some(exit_code) => Ok(()),
            Some(Ok(status)) => Err(format!("it ended with {status} instead of {exit_code}")),
            Some(Err(error)) => Err(error.to_string()),
            None => Err("it does not end".into()),
        }
    }

    /// The rest of its output, for a failure's text. It has been killed: a pipe that a client of it still held would have
    /// no end.
    fn rest(&mut self) -> String {
        let ended = within(SHORT, || self.child.try_wait().ok().flatten());
        if ended.is_none() {
            return "; and it does not end".into();
        }
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let _ = self.stdout.read_to_end(&mut stdout);
        let _ = self.stderr.read_to_end(&mut stderr);
        let text = |name: &str, bytes: &[u8]| match bytes {
            [] => String::new(),
            bytes => format!("\n    {name}: {}", String::from_utf8_lossy(bytes).trim().replace('\n', "\n    ")),
        };
        text("stdout", &stdout) + &text("stderr", &stderr)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn expect(what: &str, wanted: &[u8], found: &[u8]) -> Result<(), String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if wanted == found {
        return Ok(());
    }
    Err(format!("{what} has {:?} instead of {:?}", text(found), text(wanted)))
}

fn compare(wanted: &Response, found: &http::Answer) -> Result<(), String> {
    if wanted.status != found.status {
        return Err(format!("status {} instead of {}", found.status, wanted.status));
    }
    for (name, value) in &wanted.headers {
        let header = found.header(name).unwrap_or_default();
        expect(&format!("header {name}"), value.as_bytes(), header.as_bytes())?;
    }
    expect("the body", wanted.body.as_bytes(), &found.body)
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()? {
            kind if kind.is_dir() => copy(&entry.path(), &target)?,
            kind if kind.is_symlink() => std::os::unix::fs::symlink(fs::read_link(entry.path())?, target)?,
            _ => fs::copy(entry.path(), target).map(drop)?,
        }
    }
    Ok(())
}
