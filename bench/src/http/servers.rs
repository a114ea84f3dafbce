//! The servers of the component: a hearthd of this program's own, `wasmtime serve`, and the floor; each on a free port
//! of 127.0.0.1.
//!
//! Both real servers make an instance for each request, from a pool of the same shape, with a thread per core for
//! guests, without an access log, and admit the same number of requests and connections. The rest is a difference of
//! the programs: hearthd has checks in the guest's code with which it can end or pause it anywhere, counts and times
//! requests, opens the container's root for each, and ends a request after a minute. `wasmtime serve` is left at its
//! fastest, without a directory and without `-W timeout`.
//!
//! Failure paths: a server that does not come up is reported with its output, and a server with another answer than the
//! others with both answers. Later messages of `wasmtime serve` go to stderr, except for clients that are gone.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use containerd_shim_protos::shim_async::TaskClient;
use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::ChildStderr;
use tokio::time::timeout;

use crate::bundle::{Bundle, BundleImage, Recipe, make_dir};
use crate::crowd;
use crate::events::EventSink;
use crate::get::get;
use crate::guest::Module;
use crate::hearthd::{Hearthd, Home};
use crate::http::floor::{self, Answer};
use crate::machine::version_of;
use crate::process::{Tied, tied_command};

/// The task's id at hearthd.
const TASK: &str = "service";

/// How long `wasmtime serve` may take to compile the component.
const READY_DEADLINE: Duration = Duration::from_secs(120);

/// The message of `wasmtime serve` when a client closes its connection with a request under way, as the load does with
/// all of them at the end of each round.
const CLIENT_GONE: &str = "error: hyper::Error(IncompleteMessage)";

/// hearthd's limits that `wasmtime serve` has, too, where they are not the defaults.
const HEARTHD: &str = "[engine]\npool_slots = 1000\n";

/// The same limits, and hearthd's pool (`daemon/crates/wasm/src/engine/tunables.rs`), for `wasmtime serve`. Its threads are one per
/// core by themselves.
pub const WASMTIME: &[&str] = &[
    "-Scli",
    "-Opooling-allocator=y",
    "-Opooling-total-core-instances=5000",
    "-Opooling-total-component-instances=1000",
    "-Opooling-total-memories=1200",
    "-Opooling-total-tables=3000",
    "-Opooling-total-stacks=1100",
    "-Opooling-total-gc-heaps=1000",
    "-Opooling-max-memory-size=4294967296",
    "-Opooling-table-elements=20000",
    "-Opooling-max-core-instances-per-component=50",
    "-Opooling-max-memories-per-component=10",
    "-Opooling-max-memories-per-module=10",
    "-Opooling-max-tables-per-component=50",
    "-Opooling-max-tables-per-module=50",
    "-Opooling-memory-keep-resident=1048576",
    "-Opooling-table-keep-resident=65536",
    "-Opooling-max-unused-warm-slots=100",
    "-Opooling-pagemap-scan=auto",
    "--max-concurrent-connections=1024",
    "--max-concurrent-requests=256",
    "--max-instance-reuse-count=1",
    "--max-instance-concurrent-reuse-count=1",
];

/// The kind of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Served {
    /// The daemon.
    Hearthd,
    /// Another build of the daemon.
    Against,
    /// `wasmtime serve`.
    Wasmtime,
    /// A hyper server without a guest.
    Floor,
}

/// A server, ended when dropped.
pub struct Server {
    /// Its kind.
    pub by: Served,
    address: SocketAddr,
    kind: Backend,
}

enum Backend {
    Daemon(Box<Task>),
    Process(Tied),
}

/// The component as a task of hearthd's.
struct Task {
    daemon: Hearthd,
    client: TaskClient,
    bundle: Bundle,
}

impl Served {
    /// How a table calls it.
    pub fn name(self) -> &'static str {
        match self {
            Served::Hearthd => "hearthd",
            Served::Against => "the other hearthd",
            Served::Wasmtime => "wasmtime serve",
            Served::Floor => "the floor",
        }
    }
}

impl Server {
    /// Serves `component` by a hearthd with a home in the new directory `dir`. To be called on the main thread, as all
    /// of these.
    ///
    /// # Errors
    /// If the daemon does not come up, or refuses the component.
    pub async fn hearthd(
        by: Served,
        program: &Path,
        component: &Module,
        dir: PathBuf,
        events: &EventSink,
    ) -> Result<Server> {
        make_dir(&dir)?;
        let home = Home::create(dir.join("h"))?.configured(HEARTHD);
        let mut daemon = Hearthd::launch(program, &home, events).await?;
        let address = free_address()?.0;
        let image = BundleImage::create(dir.join("image"), component)?;
        let bundle = Bundle::create(dir.join("b"), TASK, image, &Recipe::Service(address))?;
        let client = crowd::connect(&daemon.task_address, 1).await?.remove(0);
        let started = crowd::start(&client, &bundle.create).await;
        started.map_err(|error| daemon.explain(error))?;
        Ok(Server { by, address, kind: Backend::Daemon(Box::new(Task { daemon, client, bundle })) })
    }

    /// Serves the component in `file` by `wasmtime serve`.
    ///
    /// # Errors
    /// If it does not come up.
    pub async fn wasmtime(program: &Path, file: &Path) -> Result<Server> {
        let mut command = tied_command(program.as_os_str())?;
        command.arg("serve").args(WASMTIME).arg("--addr=127.0.0.1:0").arg(file);
        // Its access log.
        command.env_remove("RUST_LOG").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = Tied::spawn("wasmtime serve", command)?;
        let stderr = process.child_mut().stderr.take().context("wasmtime has no stderr")?;
        let mut lines = BufReader::new(ChildStderr::from_std(stderr)?).lines();
        let listening = timeout(READY_DEADLINE, listening(&mut lines)).await;
        let address =
            listening.with_context(|| format!("wasmtime did not listen within {} s", READY_DEADLINE.as_secs()))??;
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                if line != CLIENT_GONE {
                    eprintln!("wasmtime: {line}");
                }
            }
        });
        Ok(Server { by: Served::Wasmtime, address, kind: Backend::Process(process) })
    }

    /// Serves `answer` by the floor, which reads it from the new file.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn floor(answer: &Answer, file: &Path) -> Result<Server> {
        let (process, address) = floor::spawn(answer, file)?;
        Ok(Server { by: Served::Floor, address, kind: Backend::Process(process) })
    }

    /// The URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Its answer at `path`.
    ///
    /// # Errors
    /// If the status is not 200.
    pub async fn ask(&self, path: &str) -> Result<Answer> {
        let asked = || format!("{} at {}", self.by.name(), self.url(path));
        let (head, body) = get(&self.address.to_string(), path).await.with_context(asked)?.into_parts();
        ensure!(head.status == StatusCode::OK, "{}: status {} instead of 200", asked(), head.status);
        Ok(Answer::of(&head.headers, body))
    }

    /// The processor time it has taken so far, by all of its threads.
    ///
    /// # Errors
    /// If it is gone.
    pub fn processor_time(&self) -> Result<Duration> {
        let pid = match &self.kind {
            Backend::Daemon(task) => task.daemon.pid(),
            Backend::Process(process) => process.id(),
        };
        let path = format!("/proc/{pid}/stat");
        let stat = std::fs::read_to_string(&path).with_context(|| path.clone())?;
        let ticks = ticks_of(&stat).with_context(|| format!("{path} has no times: {stat:?}"))?;
        Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
    }

    /// The version of wasmtime that a hearthd is built with, by its own metrics.
    ///
    /// # Errors
    /// If its metrics lack it, or it is no hearthd.
    pub async fn wasmtime_version(&self) -> Result<String> {
        let Backend::Daemon(task) = &self.kind else { bail!("{} is no hearthd", self.by.name()) };
        let builds = task.daemon.scrape().await?.counters("hearth_build_info", "wasmtime");
        builds.into_keys().next().context("hearthd does not say which wasmtime it is built with")
    }

    /// Ends it.
    ///
    /// # Errors
    /// If it did not serve to its end.
    pub async fn end(self) -> Result<()> {
        match self.kind {
            Backend::Daemon(task) => {
                let Task { mut daemon, client, bundle } = *task;
                crowd::end(&client, TASK).await.map_err(|error| daemon.explain(error))?;
                bundle.remove()?;
                daemon.end()
            }
            Backend::Process(mut process) => {
                let ended = process.status();
                process.end();
                ended.map_or(Ok(()), |status| bail!("{} ended early: {status}", self.by.name()))
            }
        }
    }
}

/// The version in the output of `wasmtime --version` (`wasmtime 48.0.8 (a1b2c3d 2026-01-01)`).
///
/// # Errors
/// If the output has another form.
pub fn wasmtime_version(program: &Path) -> Result<String> {
    let text = version_of(program);
    let mut words = text.split(' ');
    let version = (words.next() == Some("wasmtime")).then(|| words.next()).flatten();
    version.map(str::to_owned).with_context(|| format!("{} is no wasmtime: it says {text:?}", program.display()))
}

/// A free port of the loopback. No other process can take it while the listener is kept, and hardly any will right
/// after.
///
/// # Errors
/// If there is none.
pub fn free_address() -> Result<(SocketAddr, TcpListener)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on the loopback")?;
    Ok((listener.local_addr()?, listener))
}

/// Reads up to the line that says where it listens.
async fn listening(lines: &mut Lines<BufReader<ChildStderr>>) -> Result<SocketAddr> {
    let mut said = Vec::new();
    while let Some(line) = lines.next_line().await? {
        let address = line.strip_prefix("Serving HTTP on http://").and_then(|rest| rest.strip_suffix('/'));
        if let Some(address) = address {
            return address.parse().with_context(|| format!("no address: {line:?}"));
        }
        said.push(line);
    }
    bail!("wasmtime ended before it listened: {}", said.join("\n"))
}

/// User and system time of `/proc/PID/stat`, in clock ticks. The program's name, in parentheses, may have any
/// character.
fn ticks_of(stat: &str) -> Option<u64> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    // The state, which is field 3 of proc(5), is the first here.
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some(field(14)? + field(15)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_read_whatever_a_programs_name_is() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 100 0 0 0 31 11 0 0 20 0 5 0 100 0 0";
        assert_eq!(ticks_of(stat), Some(42));
        assert_eq!(ticks_of("7 (a) S 1"), None);
    }

    #[test]
    fn another_program_is_not_taken_for_wasmtime() {
        let error = wasmtime_version(Path::new("/bin/true")).unwrap_err().to_string();
        assert!(error.contains("is no wasmtime"), "{error}");
    }
}
