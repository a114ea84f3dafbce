//! The `shim` command: how long an exec of the shim takes from its start to its end, beside
//! `/bin/true`.
//!
//! Processes are started by the standard library, which uses `posix_spawn`, so the size of this
//! program does not count. The clock runs from the spawn to the end of output and of the process,
//! as containerd waits. `start` asks a control socket served by this program, which answers at
//! once; with `--hearthd` it asks a daemon too.
//!
//! Failure paths: a shim that fails or says nothing ends the run with its output.

use std::ffi::OsString;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hearth_shim::{CONTROL_SOCKET_ENV, Reply, Request, TaskSocketReply, reply};
use serde::Serialize;

use crate::bundle::{make_dir, remove_dir};
use crate::events::EventSink;
use crate::hearthd::{Hearthd, Home, NAMESPACE};
use crate::machine::{MachineFacts, version_of};
use crate::progress::{progress, progress_done};
use crate::report::Program;
use crate::scratch::Scratch;
use crate::stats::Summary;
use crate::table::{Table, micros};

/// Executions of each command that are not counted.
const WARM_UP: usize = 20;

/// The parameters of a run.
pub struct Options {
    /// The shim's binary.
    pub shim: PathBuf,
    /// A daemon for a second `start`.
    pub hearthd: Option<PathBuf>,
    /// Executions of each command.
    pub runs: usize,
}

/// The report: durations in microseconds.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Version of this layout.
    schema: u32,
    machine: MachineFacts,
    shim: Program,
    shim_bytes: u64,
    hearthd: Option<Program>,
    commands: Vec<CommandReport>,
}

#[derive(Debug, Serialize)]
struct CommandReport {
    command: String,
    exec_to_exit: Summary,
}

/// One command that is measured.
struct Case {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<OsString>,
    control_socket: Option<PathBuf>,
    /// Whether it must print something to succeed.
    speaks: bool,
    samples: Vec<Duration>,
}

/// Measures all commands in turn. To be called on the main thread.
///
/// # Errors
/// If the shim or the daemon fails.
pub async fn run(options: &Options, scratch: &Scratch) -> Result<Report> {
    let machine = MachineFacts::here();
    let shim = options.shim.canonicalize();
    let shim = shim.with_context(|| format!("no shim at {}", options.shim.display()))?;
    let shim_bytes = shim.metadata()?.len();
    let events = EventSink::listen(scratch.path().join("events.sock"))?;
    let control = NullControl::listen(scratch.path().join("control.sock"))?;
    let daemon = match &options.hearthd {
        Some(program) => {
            let home = Home::create(scratch.path().join("h"))?;
            let daemon = Hearthd::launch(program, &home, &events).await?;
            Some((daemon, home))
        }
        None => None,
    };
    let bundle = scratch.bundles().join("bundle");
    let home = daemon.as_ref().map(|(_, home)| home);
    let mut cases = cases(&shim, &bundle, &control, home);
    for run in 0..WARM_UP + options.runs {
        if run % 50 == 0 {
            progress(&format!("run {run} of {}", WARM_UP + options.runs));
            // The only place where a Ctrl-C is noticed.
            tokio::task::yield_now().await;
        }
        for case in &mut cases {
            let took = case.execute(&bundle, &events)?;
            if run >= WARM_UP {
                case.samples.push(took);
            }
        }
    }
    progress_done();
    if let Some((mut daemon, _)) = daemon {
        daemon.end()?;
    }
    let commands = cases.into_iter().map(|case| {
        let exec_to_exit = Summary::of(case.samples).context("--runs is 0")?;
        Ok(CommandReport { command: case.name.to_owned(), exec_to_exit })
    });
    Ok(Report {
        schema: crate::report::SCHEMA,
        machine,
        shim: Program { path: shim.display().to_string(), version: version_of_shim(&shim) },
        shim_bytes,
        hearthd: options
            .hearthd
            .as_ref()
            .map(|path| Program { path: path.display().to_string(), version: version_of(path) }),
        commands: commands.collect::<Result<_>>()?,
    })
}

impl Report {
    /// The report as Markdown.
    pub fn markdown(&self) -> String {
        let mut table = Table::new(1, &["command", "n", "p50", "p90", "p99", "min", "max"]);
        for case in &self.commands {
            let summary = &case.exec_to_exit;
            table.row([
                case.command.clone(),
                summary.n.to_string(),
                micros(summary.p50),
                micros(summary.p90),
                micros(summary.p99),
                micros(summary.min),
                micros(summary.max),
            ]);
        }
        let machine = &self.machine;
        format!(
            "# The shim, exec → exit\n\n{} · {} · {} cores · {} · load {} · {}\n\n{} ({}), {} bytes\n\nAll in µs.\n\n{table}",
            machine.date,
            machine.cpu,
            machine.cores,
            machine.kernel,
            machine.load_average,
            machine.git_revision,
            self.shim.path,
            self.shim.version,
            self.shim_bytes,
        )
    }
}

fn cases(shim: &Path, bundle: &Path, control: &NullControl, home: Option<&Home>) -> Vec<Case> {
    let case = |name, arguments: &[&str], control_socket: Option<PathBuf>, speaks| Case {
        name,
        program: shim.to_owned(),
        arguments: arguments.iter().map(OsString::from).collect(),
        control_socket,
        speaks,
        samples: Vec::new(),
    };
    let bundle = bundle.to_string_lossy();
    let publish = shim.to_string_lossy();
    let flags = [
        "-namespace",
        NAMESPACE,
        "-address",
        "/run/containerd/containerd.sock",
        "-publish-binary",
        &publish,
        "-id",
        "bench",
        "-bundle",
        &bundle,
    ];
    let with = |action| [flags.as_slice(), &[action]].concat();
    let mut cases = vec![
        Case { program: "/bin/true".into(), ..case("/bin/true", &[], None, false) },
        case("-v", &["-v"], None, true),
        case("start", &with("start"), Some(control.socket.clone()), true),
        case("delete", &with("delete"), Some(control.socket.clone()), true),
    ];
    if let Some(home) = home {
        cases.push(case("start (hearthd)", &with("start"), Some(home.control_socket()), true));
    }
    cases
}

impl Case {
    /// Executes the command once in a fresh bundle, as containerd does.
    fn execute(&self, bundle: &Path, events: &EventSink) -> Result<Duration> {
        make_dir(bundle)?;
        make_dir(&bundle.join("rootfs"))?;
        std::fs::write(bundle.join("config.json"), b"{\"ociVersion\":\"1.1.0\"}")?;
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).current_dir(bundle).stdin(Stdio::null());
        command.env("TTRPC_ADDRESS", events.socket()).env("GOMAXPROCS", "2");
        if let Some(socket) = &self.control_socket {
            command.env(CONTROL_SOCKET_ENV, socket);
        }
        let begin = Instant::now();
        let output = command.output().with_context(|| format!("cannot execute {:?}", self.program))?;
        let took = begin.elapsed();
        ensure!(
            output.status.success() && (!self.speaks || !output.stdout.is_empty()),
            "`{}` of {} failed: {}; it said {:?}",
            self.name,
            self.program.display(),
            output.status,
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()),
        );
        if bundle.exists() {
            remove_dir(bundle)?;
        }
        Ok(took)
    }
}

fn version_of_shim(shim: &Path) -> String {
    let output = Command::new(shim).arg("-v").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let lines = text.unwrap_or_default();
    lines.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(", ")
}

/// A control socket that answers each shim with the same task socket, on a thread of its own.
struct NullControl {
    socket: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl NullControl {
    fn listen(socket: PathBuf) -> Result<NullControl> {
        let listener = UnixListener::bind(&socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            for client in listener.incoming() {
                if stopped.load(Ordering::Acquire) {
                    return;
                }
                // A shim that closes the connection fails its own run.
                let _ = client.and_then(answer);
            }
        });
        Ok(NullControl { socket, stop, thread: Some(thread) })
    }
}

fn answer(mut client: UnixStream) -> std::io::Result<()> {
    hearth_shim::read_frame::<Request>(&mut client)?;
    let task_socket = TaskSocketReply { address: "unix:///run/hearth/bench.sock".into(), version: 2 };
    let reply = Reply { body: Some(reply::Body::TaskSocket(task_socket)) };
    hearth_shim::write_frame(&mut client, &reply)
}

impl Drop for NullControl {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes the thread, which then sees the flag.
        let woken = UnixStream::connect(&self.socket).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| woken) {
            let _ = thread.join();
        }
    }
}
