//! A `hearthd` of this program's own: launched with a configuration file in the scratch directory,
//! asked for its task socket as a shim asks, scraped, and ended.
//!
//! Failure paths: a daemon that does not come up, or that dies under way, is reported with its exit
//! status and the end of its log.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use hearth_shim::{Reply, Request, TaskSocketRequest, reply, request};
use tokio::net::UnixDatagram;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::events::EventSink;
use crate::metrics::{self, Scrape};
use crate::process::{Tied, tied_command};

/// containerd's namespace of all tasks of this program.
pub const NAMESPACE: &str = "bench";

/// How long a launch may take.
const READY_DEADLINE: Duration = Duration::from_secs(30);

/// How long the control socket may take to answer.
const CONTROL_DEADLINE: Duration = Duration::from_secs(10);

/// Lines of the daemon's log that an error quotes.
const LOG_LINES: usize = 15;

/// The directory of a daemon's files. Several launches may share it, one after another.
#[derive(Debug, Clone)]
pub struct Home {
    dir: PathBuf,
    /// TOML tables after the bench's own.
    config: String,
}

/// A running daemon, ended when dropped.
pub struct Hearthd {
    home: Home,
    process: Tied,
    metrics_address: String,
    /// The ttrpc address of the task socket.
    pub task_address: String,
}

impl Home {
    /// A new, empty home in a directory that must not exist yet. The path is kept short: sockets
    /// live in it.
    ///
    /// # Errors
    /// Of the file system.
    pub fn create(dir: PathBuf) -> Result<Home> {
        crate::bundle::make_dir(&dir)?;
        Ok(Home { dir, config: String::new() })
    }

    /// The same, with TOML tables added to the configuration.
    pub fn configured(self, config: &str) -> Home {
        Home { config: config.to_owned(), ..self }
    }

    /// The control socket's path.
    pub fn control_socket(&self) -> PathBuf {
        self.dir.join("control.sock")
    }

    /// Asks for the task socket, as the shim does at `start`.
    ///
    /// # Errors
    /// If there is no answer, or another one.
    pub fn ask_task_socket(&self, events: &EventSink) -> Result<String> {
        let socket = self.control_socket();
        let ask = || {
            let mut control = UnixStream::connect(&socket)?;
            control.set_read_timeout(Some(CONTROL_DEADLINE))?;
            control.set_write_timeout(Some(CONTROL_DEADLINE))?;
            let question = TaskSocketRequest {
                namespace: NAMESPACE.into(),
                grpc_address: self.dir.join("no-containerd.sock").display().to_string(),
                ttrpc_address: events.socket().display().to_string(),
                id: "bench".into(),
                containerd_version: String::new(),
                accepts_version_3: false,
                bundle: String::new(),
                config_path: String::new(),
            };
            let question = Request { body: Some(request::Body::TaskSocket(question)) };
            hearth_shim::write_frame(&mut control, &question)?;
            hearth_shim::read_frame::<Reply>(&mut control)
        };
        let answer = ask().with_context(|| format!("cannot ask {}", socket.display()))?;
        match answer.body {
            Some(reply::Body::TaskSocket(task_socket)) => Ok(task_socket.address),
            Some(reply::Body::Error(text)) => bail!("hearthd gave no task socket: {text}"),
            Some(reply::Body::Operator(_)) | None => bail!("hearthd gave an empty answer for the task socket"),
        }
    }

    fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Writes the configuration: the paths, and defaults for the rest.
    fn write_config(&self) -> Result<PathBuf> {
        // A JSON string of a path is a TOML string too.
        let quoted = |path: PathBuf| serde_json::to_string(&path);
        let text = format!(
            "state_dir = {}\nroot_dir = {}\ncontrol_socket = {}\n\n[metrics]\naddress = \"127.0.0.1:0\"\n{}",
            quoted(self.state_dir())?,
            quoted(self.dir.join("root"))?,
            quoted(self.control_socket())?,
            self.config,
        );
        let path = self.dir.join("config.toml");
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// An error with the end of the daemon's log behind it.
    fn with_log(&self, error: anyhow::Error) -> anyhow::Error {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        match &lines[lines.len().saturating_sub(LOG_LINES)..] {
            [] => anyhow!("{error:#}; hearthd logged nothing"),
            tail => anyhow!("{error:#}; the end of hearthd's log:\n{}", tail.join("\n")),
        }
    }
}

impl Hearthd {
    /// Launches a daemon and waits until it serves. To be called on the main thread.
    ///
    /// # Errors
    /// If it does not come up; the error quotes its log.
    pub async fn launch(program: &Path, home: &Home, events: &EventSink) -> Result<Hearthd> {
        Hearthd::start(program, home, events, &[]).await
    }

    /// Launches one that takes over from another in the same home, and waits until it serves.
    ///
    /// # Errors
    /// As [`Hearthd::launch`].
    pub async fn replace(program: &Path, home: &Home, events: &EventSink) -> Result<Hearthd> {
        Hearthd::start(program, home, events, &["--replace"]).await
    }

    async fn start(program: &Path, home: &Home, events: &EventSink, flags: &[&str]) -> Result<Hearthd> {
        let notify_socket = home.dir.join("notify.sock");
        let _ = fs::remove_file(&notify_socket);
        let notify = UnixDatagram::bind(&notify_socket)
            .with_context(|| format!("cannot listen on {}", notify_socket.display()))?;
        let mut command = tied_command(program.as_os_str())?;
        command.arg("--config").arg(home.write_config()?).args(flags).env("NOTIFY_SOCKET", &notify_socket);
        log_to(&mut command, &home.log())?;
        // Watched before the launch, so that no end is missed.
        let mut children = signal(SignalKind::child())?;
        let mut process = Tied::spawn("hearthd", command)?;
        let ready = wait_ready(&notify, &mut process, &mut children).await;
        ready.map_err(|error| home.with_log(error))?;
        let task_address = home.ask_task_socket(events).map_err(|error| home.with_log(error))?;
        let address_file = home.state_dir().join("metrics.address");
        let metrics_address = fs::read_to_string(&address_file)
            .with_context(|| format!("hearthd wrote no {}", address_file.display()))?;
        let metrics_address = metrics_address.trim().to_owned();
        Ok(Hearthd { home: home.clone(), process, metrics_address, task_address })
    }

    /// Scrapes its metrics.
    ///
    /// # Errors
    /// If it does not answer with Prometheus' text format.
    pub async fn scrape(&self) -> Result<Scrape> {
        metrics::scrape(&self.metrics_address).await
    }

    /// Scrapes its metrics, and leaves them as they are.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn scrape_text(&self) -> Result<String> {
        metrics::text(&self.metrics_address).await
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Ends it. The next launch in the same home finds its files.
    ///
    /// # Errors
    /// If SIGTERM was not enough.
    pub fn end(&mut self) -> Result<()> {
        if !self.process.end() {
            return Err(self.home.with_log(anyhow!("hearthd had to be killed")));
        }
        Ok(())
    }

    /// Adds the daemon's exit status and the end of its log to the error of a call.
    pub fn explain(&mut self, error: anyhow::Error) -> anyhow::Error {
        let error = match self.process.status() {
            Some(status) => anyhow!("{error:#}; hearthd has ended: {status}"),
            None => error,
        };
        self.home.with_log(error)
    }
}

fn log_to(command: &mut Command, path: &Path) -> Result<()> {
    let log = File::options().create(true).append(true).open(path);
    let log = log.with_context(|| format!("cannot open {}", path.display()))?;
    command.stdin(Stdio::null()).stderr(log.try_clone()?).stdout(log);
    Ok(())
}

/// Waits for the daemon's `READY=1`, or its end.
async fn wait_ready(notify: &UnixDatagram, process: &mut Tied, children: &mut Signal) -> Result<()> {
    let ready = async {
        let mut message = [0; 4096];
        loop {
            let length = notify.recv(&mut message).await?;
            if message[..length].split(|&byte| byte == b'\n').any(|line| line == b"READY=1") {
                return Ok(());
            }
        }
    };
    let ended = async {
        loop {
            children.recv().await;
            if let Some(status) = process.status() {
                return status;
            }
        }
    };
    tokio::select! {
        result = ready => result,
        status = ended => bail!("hearthd ended before it was ready: {status}"),
        () = tokio::time::sleep(READY_DEADLINE) => {
            bail!("hearthd did not send READY=1 within {} s", READY_DEADLINE.as_secs())
        }
    }
}
