//! Log programs (`binary://`), with containerd's protocol for them.
//!
//! The program reads the task's standard output from descriptor 3 and its standard error from 4. It reports on
//! descriptor 5 that it is ready, by a write or by closing it. Its environment is `CONTAINER_ID` and
//! `CONTAINER_NAMESPACE`.
//!
//! ```text
//!   spawned ──▶ ready ──▶ the task ends, its pipes close ──▶ drains ──▶ exits
//!      │                                                        └─ too slow ──▶ SIGTERM ──▶ SIGKILL
//!      └─ not in time, or it died ──▶ Create fails
//! ```
//!
//! A supervisor task owns the process from its start and reaps it, even if the request is given up. If the program dies
//! early, writes of its task fail with `EPIPE`; no other task is affected.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::Signal;
use tokio::io::Interest;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::timeout;

use hearth_base::config;
use hearth_base::error::{Error, Result};
use hearth_base::namespace::ContainerdNamespace;
use hearth_os::fifo;
use hearth_os::spawn::{Child, Ended, is_exiting, spawn};

/// How long to wait for the status of a program that is exiting.
const EXIT_WAIT: Duration = Duration::from_secs(1);

/// A log program that is ready.
pub(super) struct LogProgram {
    /// The daemon's end of its descriptor 3.
    pub(super) stdout: OwnedFd,
    /// The daemon's end of its descriptor 4.
    pub(super) stderr: OwnedFd,
    /// Ends the program when it is dropped.
    pub(super) lease: Lease,
}

/// While it exists the log program may run. After its drop the program gets `stdio.log_binary_drain_ms` to finish.
pub(super) struct Lease(#[allow(dead_code, reason = "held for its drop")] oneshot::Sender<Kill>);

/// Ends a program at once.
struct Kill;

/// Starts `path` and waits until it is ready.
///
/// # Errors
/// `InvalidArgument` if it cannot be run, `FailedPrecondition` if it does not become ready.
pub(super) async fn start(
    path: PathBuf,
    args: &[String],
    namespace: &ContainerdNamespace,
    id: &str,
    config: &config::Stdio,
) -> Result<LogProgram> {
    let internal =
        |e: Errno| Error::Internal(format!("cannot make the pipes of the log program {}: {e}", path.display()));
    let (their_stdout, stdout) = fifo::pipe_to_program().map_err(internal)?;
    let (their_stderr, stderr) = fifo::pipe_to_program().map_err(internal)?;
    let (ready, their_ready) = fifo::pipe_from_program().map_err(internal)?;
    let drain = Duration::from_millis(config.log_binary_drain_ms);
    let (program, args, env) =
        (path.clone(), args.to_vec(), [("CONTAINER_ID", id), ("CONTAINER_NAMESPACE", &**namespace)]);
    let env = env.map(|(name, value)| format!("{name}={value}"));
    // Its file may lie on a slow disk. Started and supervised in one job, the process has an owner even if the request
    // is given up meanwhile.
    let (pid, lease, exited) = blocking(move || {
        let child = run(&program, &args, &env, [&their_stdout, &their_stderr, &their_ready])?;
        let pid = child.pid();
        supervise(child, program, drain).map(|(lease, exited)| (pid, lease, exited))
    })
    .await??;
    let most = Duration::from_millis(config.log_binary_timeout_ms);
    match timeout(most, wait_ready(ready)).await {
        Err(_) => {
            let _ = lease.send(Kill);
            Err(Error::FailedPrecondition(format!(
                "the log program {} did not say within {} ms (stdio.log_binary_timeout_ms) that it is ready; it has to close descriptor 5",
                path.display(),
                most.as_millis()
            )))
        }
        Ok(Err(error)) => {
            let _ = lease.send(Kill);
            Err(Error::Internal(format!("cannot wait for the log program {}: {error}", path.display())))
        }
        // Most programs close the descriptor to report that they are ready; an exit closes it, too.
        Ok(Ok(())) if is_exiting(pid) => {
            let how = match timeout(EXIT_WAIT, exited).await {
                Ok(Ok(ended)) => ended.to_string(),
                _ => "it is still exiting".into(),
            };
            Err(Error::FailedPrecondition(format!(
                "the log program {} ended before it was ready ({how}); see why by running it by hand",
                path.display()
            )))
        }
        Ok(Ok(())) => Ok(LogProgram { stdout, stderr, lease: Lease(lease) }),
    }
}

fn run(path: &Path, args: &[String], env: &[String], inherited: [&OwnedFd; 3]) -> Result<Child> {
    let c = |text: &[u8]| {
        CString::new(text).map_err(|_| {
            Error::InvalidArgument(format!("an argument of the log program {} has a NUL character", path.display()))
        })
    };
    let program = c(path.as_os_str().as_bytes())?;
    let argv = std::iter::once(Ok(program.clone())).chain(args.iter().map(|arg| c(arg.as_bytes())));
    let argv = argv.collect::<Result<Vec<CString>>>()?;
    let env = env.iter().map(|pair| c(pair.as_bytes())).collect::<Result<Vec<CString>>>()?;
    spawn(&program, &argv, &env, &inherited.map(AsFd::as_fd)).map_err(|error| match error {
        Errno::MFILE | Errno::NFILE | Errno::AGAIN | Errno::NOMEM => {
            Error::ResourceExhausted(format!("cannot start the log program {}: {error}", path.display()))
        }
        _ => Error::InvalidArgument(format!(
            "cannot run the log program {}: {error}; install it on the node or correct the log URI",
            path.display()
        )),
    })
}

/// Waits until the program has written to its descriptor or closed it.
async fn wait_ready(ready: OwnedFd) -> std::io::Result<()> {
    fifo::register(Arc::new(ready), Interest::READABLE)?.readable().await.map(drop)
}

/// Hands the process to a task of its own. The sender ends it: at once by `Kill`, in time by its drop. The receiver
/// gets its status.
fn supervise(
    child: Child,
    path: PathBuf,
    drain: Duration,
) -> Result<(oneshot::Sender<Kill>, oneshot::Receiver<Ended>)> {
    let (lease, ending) = oneshot::channel();
    let (tell, exited) = oneshot::channel();
    let pid = child.pid();
    let watched = fifo::register(child.ended(), Interest::READABLE);
    let end = match watched {
        Ok(end) => end,
        Err(error) => {
            child.signal(Signal::KILL);
            // epoll cannot watch it; after SIGKILL the wait is short.
            tokio::task::spawn_blocking(move || child.wait());
            let text = format!("cannot watch the log program {}: {error}", path.display());
            return Err(Error::ResourceExhausted(text));
        }
    };
    Handle::current().spawn(async move {
        let early = tokio::select! {
            biased;
            ending = ending => {
                if ending.is_ok() {
                    child.signal(Signal::KILL);
                }
                false
            }
            _ = end.readable() => true,
        };
        for signal in [Signal::TERM, Signal::KILL] {
            if timeout(drain, end.readable()).await.is_ok() {
                break;
            }
            tracing::warn!(program = %path.display(), %pid, ?signal, "a log program goes on after the end of its task");
            child.signal(signal);
        }
        let _ = end.readable().await;
        match child.reap() {
            Ok(Some(ended)) => {
                if early {
                    tracing::warn!(program = %path.display(), %pid, %ended, "a log program ended before its task");
                }
                let _ = tell.send(ended);
            }
            other => tracing::warn!(program = %path.display(), %pid, ?other, "a log program could not be reaped"),
        }
    });
    Ok((lease, exited))
}

/// Runs a job that may wait for a disk on a thread for blocking calls.
///
/// # Errors
/// If it panicked.
pub(crate) async fn blocking<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(job).await.map_err(|e| Error::Internal(format!("opening stdio failed: {e}")))
}
