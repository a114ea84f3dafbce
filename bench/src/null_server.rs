//! The floor: a server of the same ttrpc stack and the same runtime shape as the daemon's, in a
//! process of its own, whose Create, Start, Wait and Delete answer at once with default values.
//!
//! A client measures here the two round trips alone; no daemon with ttrpc over a Unix socket can be faster on this
//! machine.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use containerd_shim_protos::api;
use containerd_shim_protos::shim_async::{Task, create_task};
use ttrpc::asynchronous::{Server, TtrpcContext};

use crate::process::{Tied, tied_command};
use crate::signals::Signals;

/// Threads that serve requests: the daemon's default.
const WORKER_THREADS: usize = 2;

/// The line that the server prints when it listens.
const READY: &str = "ready\n";

struct NullTask;

#[async_trait]
impl Task for NullTask {
    async fn create(&self, _: &TtrpcContext, _: api::CreateTaskRequest) -> ttrpc::Result<api::CreateTaskResponse> {
        Ok(api::CreateTaskResponse::default())
    }

    async fn start(&self, _: &TtrpcContext, _: api::StartRequest) -> ttrpc::Result<api::StartResponse> {
        Ok(api::StartResponse::default())
    }

    async fn wait(&self, _: &TtrpcContext, _: api::WaitRequest) -> ttrpc::Result<api::WaitResponse> {
        Ok(api::WaitResponse::default())
    }

    async fn delete(&self, _: &TtrpcContext, _: api::DeleteRequest) -> ttrpc::Result<api::DeleteResponse> {
        Ok(api::DeleteResponse::default())
    }
}

/// The `null-server` command: serves on `socket` until SIGTERM or SIGINT, then removes it.
///
/// # Errors
/// If the socket cannot be bound.
pub fn serve(socket: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKER_THREADS).enable_all().build()?;
    runtime.block_on(async {
        let mut signals = Signals::watch()?;
        let mut server = Server::new()
            .bind(&address(socket))
            .with_context(|| format!("cannot listen on {}", socket.display()))?
            .register_service(create_task(Arc::new(NullTask)));
        server.start().await?;
        say_ready(READY)?;
        signals.first().await;
        server.shutdown().await?;
        std::fs::remove_file(socket).with_context(|| format!("cannot remove {}", socket.display()))
    })
}

/// Starts the server in a process of its own and waits until it listens.
///
/// # Errors
/// If it does not come up.
pub fn spawn(socket: &Path) -> Result<Tied> {
    let own = std::env::current_exe().context("cannot find this program's own path")?;
    let mut command = tied_command(own.as_os_str())?;
    command.arg("null-server").arg(socket).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut server = Tied::spawn("the null server", command)?;
    let line = first_line(&mut server)?;
    ensure!(line == READY, "the null server did not come up; its error is above");
    Ok(server)
}

/// Tells the parent that this server listens.
///
/// # Errors
/// If the parent is gone.
pub fn say_ready(word: &str) -> Result<()> {
    let mut stdout = std::io::stdout();
    stdout
        .write_all(word.as_bytes())
        .and_then(|()| stdout.flush())
        .context("cannot tell the parent that this server listens")
}

/// The first line a server prints; empty if it ended before.
///
/// # Errors
/// If its stdout is no pipe of ours.
pub fn first_line(server: &mut Tied) -> Result<String> {
    let mut line = String::new();
    let stdout = server.child_mut().stdout.take().context("the server has no stdout")?;
    BufReader::new(stdout).read_line(&mut line).context("cannot read the server's output")?;
    Ok(line)
}

/// The ttrpc address of a socket.
pub fn address(socket: &Path) -> String {
    format!("unix://{}", socket.display())
}
