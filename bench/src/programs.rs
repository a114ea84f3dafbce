//! The `programs` command: programs that others publish, through containerd: their first start, which compiles them,
//! their second, and their memory.
//!
//! ```text
//!   first    Create sent → Start answered, of a program that this hearthd has never seen
//!   second   the same of another container with the program
//!   to exit  Create sent → Wait answered, of the second; of a service: → the answer to its first request
//!   memory   the most that the guest's memories and tables held, by hearthd's own count
//! ```
//!
//! Each program does a small piece of real work and ends with status 0; a service answers a request. The root of each
//! container is a directory with the program and its files. Containers use the node's network.
//!
//! Failure paths: a program that fails ends the run with its name; a failure of the harness is a panic that names the
//! missing program or right; the private machine ends with this process.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{CreateTaskRequest, DeleteTaskRequest, KillRequest, StartRequest, WaitRequest};
use containerd_client::tonic::transport::Channel;
use containerd_client::with_namespace;
use hearth_tests::daemons::HearthdOptions;
use hearth_tests::world::NAMESPACE;
use hearth_tests::{Guest, NewContainer, World, api};
use serde::{Deserialize, Serialize};
use tonic::Request;

use crate::get::get;
use crate::machine::MachineFacts;
use crate::progress::{progress, progress_done};
use crate::report::SCHEMA;
use crate::table::{Table, millis};

/// All that is written to the JSON file.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// Version of the layout.
    pub schema: u32,
    /// Where and when.
    pub machine: MachineFacts,
    /// One for each program.
    pub rows: Vec<Row>,
}

/// One program's numbers. Durations are in microseconds.
#[derive(Debug, Serialize, Deserialize)]
pub struct Row {
    /// Its name for readers.
    pub name: String,
    /// The size of the Wasm file.
    pub module_bytes: u64,
    /// Of the first container.
    pub first_start: f64,
    /// Of the second.
    pub second_start: f64,
    /// Of the second, from Create to its end, or to the answer to its first request.
    pub second_to_exit: f64,
    /// The larger of the two containers' peaks.
    pub memory_bytes: u64,
}

/// A program and its work.
struct Program {
    name: &'static str,
    guest: Guest,
    /// The first word of its command line; for a reactor, with the export that is called.
    entry: &'static str,
    /// Files beside it, in the root of the container.
    files: &'static [(&'static str, &'static [u8])],
    work: Work,
}

/// The work of a program.
enum Work {
    /// It runs with these arguments to its end.
    Ends(&'static [&'static str]),
    /// It serves HTTP, and answers a request of `/`.
    Serves,
}

/// A picture of 1 × 1 pixel.
const PIXEL_PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\x06\0\0\0\x1f\x15\xc4\x89\0\0\0\rID\
    ATx\x9cc\xf8\xcf\xc0\xf0\x1f\0\x05\0\x01\xff\x89\x99=\x1d\0\0\0\0IEND\xaeB`\x82";

const PICTURE_SVG: &[u8] = br##"<svg xmlns="http://www.w3.org/2000/svg" width="40" height="30"><circle cx="20" cy="15" r="10" fill="#00f"/></svg>"##;

/// The programs, the small ones first.
const PROGRAMS: &[Program] = &[
    program("Lua 5.4", Guest::LUA, &[("sum.lua", b"print(1 + 1)")], Work::Ends(&["/sum.lua"])),
    program("SQLite's shell", Guest::SQLITE, &[], Work::Ends(&[":memory:", "select 6 * 7"])),
    program("avr-as (binutils)", Guest::AVR_AS, &[("a.s", b"ret\n")], Work::Ends(&["-o", "/a.o", "/a.s"])),
    program("resvg", Guest::RESVG, &[("a.svg", PICTURE_SVG)], Work::Ends(&["/a.svg", "/a.png"])),
    Program {
        name: "ITK's PNG reader",
        guest: Guest::ITK_PNG,
        entry: "/program.wasm#itk_wasm_delayed_start",
        files: &[("a.png", PIXEL_PNG)],
        work: Work::Ends(&["/a.png", "/a.json", "/a.cbor"]),
    },
    program("flite", Guest::FLITE, &[], Work::Ends(&["-t", "Hello.", "-o", "/a.wav"])),
    program("CPython 3.12", Guest::CPYTHON, &[], Work::Ends(&["-c", "import json; print(json.dumps([1]))"])),
    program(
        "cc1 (GCC for AVR)",
        Guest::AVR_CC1,
        &[("a.c", b"int f(void) { return 42; }\n")],
        Work::Ends(&["-quiet", "-mmcu=avr5", "-Os", "/a.c", "-o", "/a.s"]),
    ),
    program("a service in Rust", Guest::RUST_SERVICE, &[], Work::Serves),
    program("a service in JavaScript (componentize-js)", Guest::JAVASCRIPT, &[], Work::Serves),
    program("a service in Python (componentize-py)", Guest::PYTHON, &[], Work::Serves),
];

const fn program(
    name: &'static str,
    guest: Guest,
    files: &'static [(&'static str, &'static [u8])],
    work: Work,
) -> Program {
    Program { name, guest, entry: "/program.wasm", files, work }
}

/// Runs all programs on a hearthd of their own. To be called on the main thread, and not from within a runtime.
///
/// # Errors
/// The first program that fails.
pub fn run(hearthd: PathBuf) -> Result<Report> {
    let machine = MachineFacts::here();
    let world = World::with(HearthdOptions { program: Some(hearthd), ..HearthdOptions::default() });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let channel = runtime.block_on(containerd_client::connect(world.layout().containerd_socket()))?;
    let bench = Bench { world, runtime, channel };
    for (index, program) in PROGRAMS.iter().enumerate() {
        progress(&format!("making {}", program.name));
        bench.write(index, program);
    }
    std::thread::sleep(FILE_AGE);
    let mut rows = Vec::new();
    for (index, program) in PROGRAMS.iter().enumerate() {
        progress(&format!("{} ({} of {})", program.name, index + 1, PROGRAMS.len()));
        rows.push(bench.row(index, program).with_context(|| program.name.to_owned())?);
    }
    progress_done();
    Ok(Report { schema: SCHEMA, machine, rows })
}

/// How old files are before the first start: hearthd hashes a file again if its last change is less than two seconds old,
/// as the clock might hide another change. Pulled images are older.
const FILE_AGE: Duration = Duration::from_secs(3);

struct Bench {
    world: World,
    runtime: tokio::runtime::Runtime,
    channel: Channel,
}

/// One container's numbers.
struct Sample {
    started: Duration,
    ended: Duration,
    memory_bytes: u64,
}

impl Bench {
    /// Writes the root of a program's containers.
    fn write(&self, index: usize, program: &Program) {
        self.world.write(&format!("root-{index}/program.wasm"), &program.guest.wasm_bytes());
        for (name, content) in program.files {
            self.world.write(&format!("root-{index}/{name}"), content);
        }
    }

    fn row(&self, index: usize, program: &Program) -> Result<Row> {
        let root = self.world.path(&format!("root-{index}"));
        let first = self.sample(&format!("first-{index}"), program, &root)?;
        let second = self.sample(&format!("second-{index}"), program, &root)?;
        let micros = |took: Duration| took.as_secs_f64() * 1e6;
        Ok(Row {
            name: program.name.to_owned(),
            module_bytes: std::fs::metadata(root.join("program.wasm"))?.len(),
            first_start: micros(first.started),
            second_start: micros(second.started),
            second_to_exit: micros(second.ended),
            memory_bytes: first.memory_bytes.max(second.memory_bytes),
        })
    }

    /// One container, from its record to nothing.
    fn sample(&self, id: &str, program: &Program, root: &Path) -> Result<Sample> {
        let arguments = match program.work {
            Work::Ends(arguments) => arguments,
            Work::Serves => &[],
        };
        let words: Vec<_> = [program.entry].into_iter().chain(arguments.iter().copied()).collect();
        let mut spec = api::spec(&words, &[]);
        spec["root"]["path"] = root.display().to_string().into();
        let port = free_port()?;
        spec["process"]["env"] = serde_json::json!([format!("HEARTH_HTTP_PORT={port}")]);
        let container = NewContainer {
            id,
            runtime: self.world.runtime().name(),
            spec: spec.to_string().into_bytes(),
            ..NewContainer::default()
        };
        let api = self.world.api();
        api.create_container(container);
        let sample = self.runtime.block_on(self.start(id, program, port))?;
        api.delete_container(id);
        Ok(sample)
    }

    async fn start(&self, id: &str, program: &Program, port: u16) -> Result<Sample> {
        let mut tasks = TasksClient::new(self.channel.clone());
        let container_id = || id.to_owned();
        let began = Instant::now();
        let create = CreateTaskRequest { container_id: container_id(), ..CreateTaskRequest::default() };
        tasks.create(request(create)).await.context("Create")?;
        let start = StartRequest { container_id: container_id(), ..StartRequest::default() };
        tasks.start(request(start)).await.context("Start")?;
        let started = began.elapsed();
        if matches!(program.work, Work::Serves) {
            let answer = get(&format!("127.0.0.1:{port}"), "/").await?;
            ensure!(answer.status().is_success(), "the answer is {}", answer.status());
        }
        let answered = began.elapsed();
        if matches!(program.work, Work::Serves) {
            let kill = KillRequest { container_id: container_id(), signal: 15, ..KillRequest::default() };
            tasks.kill(request(kill)).await.context("Kill")?;
        }
        let wait = WaitRequest { container_id: container_id(), ..WaitRequest::default() };
        let status = tasks.wait(request(wait)).await.context("Wait")?.into_inner().exit_status;
        let ended = if matches!(program.work, Work::Serves) { answered } else { began.elapsed() };
        let memory = self.world.ask(&["inspect", id])["task"]["memory_peak_bytes"].as_u64();
        tasks.delete(request(DeleteTaskRequest { container_id: container_id() })).await.context("Delete")?;
        ensure!(status == 0, "it ended with status {status} instead of 0");
        Ok(Sample { started, ended, memory_bytes: memory.context("hearthctl told no memory")? })
    }
}

fn request<T>(message: T) -> Request<T> {
    with_namespace!(message, NAMESPACE)
}

/// A port of the loopback interface that no program listens on.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

impl Report {
    /// The report as Markdown.
    pub fn markdown(&self) -> String {
        let machine = &self.machine;
        format!(
            "{} cores of {}, {}; load {}; revision {}, {}.\n\n{}",
            machine.cores,
            machine.cpu,
            machine.kernel,
            machine.load_average,
            machine.git_revision,
            machine.date,
            self.table()
        )
    }

    fn table(&self) -> Table {
        let headings =
            ["program", "Wasm, MB", "first start, ms", "second start, ms", "to exit or answer, ms", "memory, MiB"];
        let mut table = Table::new(1, &headings);
        for row in &self.rows {
            table.row([
                row.name.clone(),
                format!("{:.1}", row.module_bytes as f64 / 1e6),
                millis(row.first_start),
                millis(row.second_start),
                millis(row.second_to_exit),
                format!("{:.1}", row.memory_bytes as f64 / f64::from(1 << 20)),
            ]);
        }
        table
    }
}
