//! A machine with containerd and `hearthd` on it, and the verbs of a story.
//!
//! Dropping a [`World`] deletes its tasks and checks that both daemons have released everything: no mount of a task, no
//! process but the daemons, no socket of the daemons after their end. A story that fails prints the end of both logs
//! instead.
//!
//! Files:
//!
//! * `end.rs`: the end of a world.

mod end;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;

use crate::api::Api;
use crate::ctr::Ctr;
use crate::daemons::{self, HearthdOptions, Layout};
use crate::events::Events;
use crate::guests::Guest;
use crate::images::Image;
use crate::machine::{Kind, Machine};
use crate::metrics::Metrics;
use crate::paths;
use crate::process::Process;
use crate::task::Run;
use crate::wait::{SHORT, eventually};

/// containerd's namespace of the stories.
pub const NAMESPACE: &str = "stories";

/// The runtime of the tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// `io.containerd.hearth.v1`, running Wasm.
    Hearth,
    /// The stock `io.containerd.runc.v2`, which runs native builds of the same programs. It shows whether a story
    /// itself is right.
    Runc,
}

impl Runtime {
    /// Hearth, unless `HEARTH_TEST_RUNTIME=runc` asks for the stories to be checked themselves.
    pub fn chosen() -> Self {
        match std::env::var("HEARTH_TEST_RUNTIME").as_deref() {
            Ok("runc") => Self::Runc,
            Ok("hearth") | Err(_) => Self::Hearth,
            Ok(other) => panic!("HEARTH_TEST_RUNTIME is {other:?}: say `hearth` or `runc`"),
        }
    }

    /// containerd's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hearth => "io.containerd.hearth.v1",
            Self::Runc => "io.containerd.runc.v2",
        }
    }
}

/// An image that was imported into containerd.
#[derive(Clone, Debug)]
pub struct Imported {
    /// Its reference.
    pub name: String,
    /// Its entry point.
    pub entry: Vec<String>,
}

/// The machine and its two daemons.
#[derive(Debug)]
pub struct World {
    // Dropped first to last: daemons before the machine they run on.
    hearthd: Option<Process>,
    /// The daemons that have taken over since, the newest last.
    successors: Mutex<Vec<Process>>,
    containerd: Option<Process>,
    machine: Machine,
    layout: Layout,
    runtime: Runtime,
    hearthd_options: HearthdOptions,
}

impl World {
    /// Both daemons up, with defaults.
    pub fn new() -> Self {
        Self::with(HearthdOptions::default())
    }

    /// Both daemons up, the daemon with options.
    pub fn with(hearthd_options: HearthdOptions) -> Self {
        Self::start(Kind::Tasks, Runtime::chosen(), hearthd_options)
    }

    /// Both daemons up, the daemon's configuration extended by lines of TOML.
    pub fn configured(config: &str) -> Self {
        Self::with(HearthdOptions { config: config.to_owned(), ..HearthdOptions::default() })
    }

    /// Both daemons up on a machine for pods, containerd with its CRI plugin: see [`crate::pods::Node`].
    pub(crate) fn for_pods(hearthd_options: HearthdOptions) -> Self {
        Self::start(Kind::Pods, Runtime::chosen(), hearthd_options)
    }

    fn start(kind: Kind, runtime: Runtime, hearthd_options: HearthdOptions) -> Self {
        let machine = Machine::new(kind);
        let layout = Layout::new(&machine);
        let successors = Mutex::default();
        let mut world = Self { hearthd: None, successors, containerd: None, machine, layout, runtime, hearthd_options };
        // As on a node: the daemon is there before containerd looks for its tasks.
        world.start_hearthd();
        world.start_containerd();
        world
    }

    /// The machine.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The paths of the daemons.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The runtime of the tasks.
    pub fn runtime(&self) -> Runtime {
        self.runtime
    }

    // --- the daemons -----------------------------------------------------------------------------

    /// Starts containerd, on the same directories as before.
    pub fn start_containerd(&mut self) {
        self.start_containerd_finding(&[]);
    }

    /// The same, with more directories at the head of its `PATH`.
    pub fn start_containerd_finding(&mut self, programs: &[PathBuf]) {
        let mut directories = programs.to_vec();
        // containerd's own shims are of its version; runc is the machine's.
        let options = &self.hearthd_options.containerd;
        directories.extend(options.path.iter().cloned());
        directories.extend(paths::containerd_directory());
        if self.runtime == Runtime::Hearth {
            directories.push(paths::shim_directory());
        }
        let inherited = std::env::var_os("PATH").unwrap_or_default();
        directories.extend(std::env::split_paths(&inherited));
        let path = std::env::join_paths(directories).expect("none has a colon: they were split at it, or made by us");
        let containerd = daemons::start_containerd(&self.machine, &self.layout, &path, options);
        self.containerd = Some(containerd);
    }

    /// Stops containerd with SIGTERM; tasks go on.
    pub fn stop_containerd(&mut self) {
        self.containerd.take().expect("containerd runs").stop();
    }

    /// Kills containerd; tasks go on.
    pub fn kill_containerd(&mut self) {
        self.containerd.take().expect("containerd runs").kill();
    }

    /// containerd's process.
    ///
    /// # Panics
    /// If it does not run.
    pub fn containerd(&self) -> &Process {
        self.containerd.as_ref().expect("containerd runs")
    }

    /// Starts the daemon, on the same directories as before. (Nothing to start for [`Runtime::Runc`].)
    pub fn start_hearthd(&mut self) {
        if self.runtime == Runtime::Hearth {
            let hearthd = daemons::start_hearthd(&self.machine, &self.layout, &self.hearthd_options);
            // The newest is the last of them, also where older ones have been replaced before.
            match self.successors.get_mut().expect("no story panics in here") {
                successors if successors.is_empty() => self.hearthd = Some(hearthd),
                successors => successors.push(hearthd),
            }
        }
    }

    /// Starts a daemon with other options, which the story stops itself. The flag says whether it got ready.
    pub fn try_start_hearthd(&self, options: &HearthdOptions) -> (Process, bool) {
        daemons::try_start_hearthd(&self.machine, &self.layout, options)
    }

    /// Starts another daemon that takes over from the one that runs, which goes on with its tasks.
    pub fn upgrade_hearthd(&self) {
        let (mut hearthd, ready) = self.try_upgrade_hearthd(&self.hearthd_options);
        assert!(ready, "the new hearthd is not ready ({:?}):\n{}", hearthd.status(), self.hearthd_log());
        self.successors.lock().expect("no story panics in here").push(hearthd);
    }

    /// As [`Self::upgrade_hearthd`], with other options, for a daemon that may not get ready. The flag says whether it
    /// did.
    pub fn try_upgrade_hearthd(&self, options: &HearthdOptions) -> (Process, bool) {
        let options = HearthdOptions { replaces: true, ..options.clone() };
        daemons::try_start_hearthd(&self.machine, &self.layout, &options)
    }

    /// The daemons that have been replaced and still live.
    pub fn older_hearthds(&mut self) -> usize {
        let successors = self.successors.get_mut().expect("no story panics in here");
        if successors.is_empty() {
            return 0;
        }
        let older = successors.len() - 1;
        let lives = |hearthd: &mut Process| hearthd.status().is_none();
        let first = usize::from(self.hearthd.as_mut().is_some_and(lives));
        successors[..older].iter_mut().filter_map(|hearthd| lives(hearthd).then_some(())).count() + first
    }

    /// The newest daemon.
    fn take_hearthd(&mut self) -> Option<Process> {
        let successor = self.successors.get_mut().expect("no story panics in here").pop();
        successor.or_else(|| self.hearthd.take())
    }

    /// Stops the daemon, the newest of several, with SIGTERM.
    pub fn stop_hearthd(&mut self) {
        if let Some(hearthd) = self.take_hearthd() {
            hearthd.stop();
        }
    }

    /// Kills the daemon, the newest of several.
    pub fn kill_hearthd(&mut self) {
        if let Some(hearthd) = self.take_hearthd() {
            hearthd.kill();
        }
    }

    /// The daemon's process, the oldest of several.
    ///
    /// # Panics
    /// If it does not run.
    pub fn hearthd(&self) -> &Process {
        self.hearthd.as_ref().expect("hearthd runs")
    }

    /// All the daemon has logged.
    pub fn hearthd_log(&self) -> String {
        fs::read_to_string(self.layout.hearthd_log()).unwrap_or_default()
    }

    // --- containerd's client ---------------------------------------------------------------------

    /// `ctr` with these arguments, in [`NAMESPACE`].
    pub fn ctr<S: Into<String>>(&self, arguments: impl IntoIterator<Item = S>) -> Ctr<'_> {
        self.ctr_in(NAMESPACE, arguments)
    }

    /// `ctr` with these arguments, in another namespace.
    pub fn ctr_in<S: Into<String>>(&self, namespace: &str, arguments: impl IntoIterator<Item = S>) -> Ctr<'_> {
        let socket = self.layout.containerd_socket().display().to_string();
        let mut all = vec!["--address".into(), socket, "--namespace".into(), namespace.into()];
        all.extend(arguments.into_iter().map(Into::into));
        Ctr::new(&self.machine, all)
    }

    /// Imports a guest as an image of one file, in the form the runtime runs.
    pub fn program(&self, guest: &Guest) -> Imported {
        self.import(&Image::of(guest, self.runtime))
    }

    /// Imports an image.
    pub fn import(&self, image: &Image) -> Imported {
        self.import_in(NAMESPACE, image)
    }

    /// Imports an image into another namespace.
    pub fn import_in(&self, namespace: &str, image: &Image) -> Imported {
        let tar = self.write("image.tar", &image.to_tar());
        let path = tar.display().to_string();
        let mut arguments = vec!["images", "import"];
        arguments.extend(image.import_flags());
        arguments.push(&path);
        self.ctr_in(namespace, arguments).ok();
        fs::remove_file(&tar).expect("it was just written");
        Imported { name: image.name().to_owned(), entry: image.entry() }
    }

    /// containerd's gRPC API, for calls that `ctr` cannot make.
    pub fn api(&self) -> Api {
        Api::connect(&self.layout.containerd_socket())
    }

    /// `ctr run` of an imported image.
    pub fn run(&self, image: &Imported, id: &str) -> Run<'_> {
        Run::new(self, image, id)
    }

    /// Follows containerd's events from now on.
    pub fn events(&self) -> Events<'_> {
        Events::follow(self)
    }

    /// The status of a task as `ctr task ls` shows it, e.g. `RUNNING`; `None` if there is no such task.
    pub fn task_status(&self, id: &str) -> Option<String> {
        self.tasks().into_iter().find_map(|task| (task.0 == id).then_some(task.2))
    }

    /// The tasks, by id: id, pid, status.
    pub fn tasks(&self) -> Vec<(String, u32, String)> {
        let listed = self.ctr(["tasks", "ls"]).ok().stdout();
        let row = |line: &str| {
            let mut fields = line.split_whitespace();
            let (id, pid, status) = (fields.next()?, fields.next()?, fields.next()?);
            Some((id.to_owned(), pid.parse().ok()?, status.to_owned()))
        };
        let mut tasks: Vec<_> = listed.lines().skip(1).filter_map(row).collect();
        tasks.sort();
        tasks
    }

    /// Waits until `ctr task ls` shows this status.
    #[track_caller]
    pub fn wait_for_status(&self, id: &str, status: &str) {
        eventually(&format!("task {id} is {status}"), SHORT, || {
            (self.task_status(id).as_deref() == Some(status)).then_some(())
        });
    }

    /// `ctr task kill --signal`.
    pub fn kill(&self, id: &str, signal: &str) -> Ctr<'_> {
        self.ctr(["tasks", "kill", "--signal", signal, id])
    }

    /// Waits until a task has stopped, deletes it, and returns its exit code, which `ctr` does not print.
    #[track_caller]
    pub fn finish(&self, id: &str) -> u32 {
        self.wait_for_status(id, "STOPPED");
        self.api().delete_task(id).unwrap_or_else(|error| panic!("cannot delete task {id}: {error}"))
    }

    /// Deletes a task and its container; containerd kills the task if it still runs.
    pub fn remove(&self, id: &str) {
        self.ctr(["tasks", "rm", "--force", id]).run();
        self.ctr(["containers", "rm", id]).ok();
    }

    /// `hearthctl` with these arguments.
    pub fn hearthctl<S: Into<String>>(&self, arguments: impl IntoIterator<Item = S>) -> Ctr<'_> {
        let arguments = arguments.into_iter().map(Into::into).collect();
        let control = self.layout.control_socket();
        Ctr::program(&self.machine, paths::hearthctl(), arguments).env("HEARTH_CONTROL_SOCKET", control)
    }

    /// Any program of the host's, on the machine.
    pub fn program_on_machine<S: Into<String>>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Ctr<'_> {
        Ctr::program(&self.machine, program.into(), arguments.into_iter().map(Into::into).collect())
    }

    /// The answer of `hearthctl ARGUMENTS --json`.
    ///
    /// # Panics
    /// If it fails, or the answer is no JSON.
    #[track_caller]
    pub fn ask(&self, arguments: &[&str]) -> serde_json::Value {
        let answer = self.hearthctl(arguments.iter().copied().chain(["--json"])).ok();
        serde_json::from_slice(&answer.stdout).unwrap_or_else(|error| panic!("{error}: {answer}"))
    }

    // --- the daemon's surface ---------------------------------------------------------------------

    /// The daemon's metrics now.
    pub fn metrics(&self) -> Metrics {
        let address = self.metrics_address();
        self.machine.in_network(|| Metrics::fetch(&address))
    }

    /// Where the daemon's metrics are: `127.0.0.1:PORT`.
    pub fn metrics_address(&self) -> String {
        let file = self.layout.hearthd_state().join("metrics.address");
        fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display())).trim().to_owned()
    }

    /// The mount points in the daemon's namespace that lie in the machine's directory.
    pub fn hearthd_mounts(&self) -> BTreeSet<String> {
        let pid = self.hearthd.as_ref().and_then(Process::pid);
        pid.map_or_else(BTreeSet::new, |pid| self.mounts_of(pid))
    }

    /// The network namespaces of pods that lie in the machine's `/run`.
    pub fn network_namespaces(&self) -> Vec<String> {
        let directory = format!("/proc/{}/root/run/netns", self.machine.init());
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// The mount points on the machine, outside of the daemon's namespace, that lie in the machine's directory.
    pub fn machine_mounts(&self) -> BTreeSet<String> {
        self.mounts_of(self.machine.init())
    }

    fn mounts_of(&self, pid: i32) -> BTreeSet<String> {
        let table = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        let directory = self.machine.directory().display().to_string();
        let store = self.layout.hearthd_root().display().to_string();
        table
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .filter(|point| point.starts_with(&directory) && *point != store)
            .map(str::to_owned)
            .collect()
    }

    // --- files -----------------------------------------------------------------------------------

    /// A path in the machine's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.machine.directory().join(name)
    }

    /// A directory in the machine's, made with its parents.
    pub fn directory(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).expect("the machine's directory is writable");
        path
    }

    /// Writes a file in the machine's directory.
    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        let parent = path.parent().expect("a file is in a directory");
        fs::create_dir_all(parent).expect("the machine's directory is writable");
        fs::write(&path, bytes).expect("the machine's directory is writable");
        path
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}
