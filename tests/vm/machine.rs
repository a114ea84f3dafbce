//! The virtual machine: QEMU without KVM, its disks, and the agent on it.
//!
//! The first disk is a copy of the image, so that each run starts anew. A power cut loses what the node had not written to
//! it. The second one has the packages, images and programs of the stories; it is at `/check`.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hearth_tests::daemons::PAUSE_IMAGE;
use hearth_tests::{Guest, Image, Runtime};
use tempfile::TempDir;

/// The size of the node's memory, in MiB.
const MEMORY_MIB: &str = "3072";

/// How long a start of the machine, or a script, may take.
const DEADLINE: Duration = Duration::from_secs(300);

/// How long the agent may take to answer a call.
const CALL_TIME: Duration = Duration::from_secs(2);

/// The files of a machine.
pub struct Disks {
    directory: TempDir,
    image: PathBuf,
}

/// A running machine. Dropping it ends it.
pub struct Machine {
    disks: Disks,
    qemu: Child,
    agent: Option<BufReader<UnixStream>>,
    /// The number of calls so far: an answer that comes late is not that of a later call.
    calls: u64,
}

/// The result of a script.
#[derive(Debug)]
pub struct Said {
    /// Its exit code.
    pub code: i32,
    /// All that it wrote.
    pub text: String,
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Disks {
    /// Makes the disks of a new node.
    pub fn new(image: &Path, package: &Path, newer: &Path) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let check = directory.path().join("check");
        fs::create_dir(&check).expect("it is new");
        fs::copy(package, check.join("hearth.deb")).expect("the package was made");
        fs::copy(newer, check.join("newer.deb")).expect("the package was made");
        let pods = std::env::current_exe().expect("this program has a file").with_file_name("vm-pods");
        fs::copy(&pods, check.join("pods")).unwrap_or_else(|error| panic!("{}: {error}", pods.display()));
        for guest in [Guest::HELLO, Guest::SLEEP, Guest::GROW, Guest::EXIT] {
            let image = Image::of(&guest, Runtime::Hearth);
            fs::write(check.join(format!("{}.tar", guest.name())), image.to_tar()).expect("it is writable");
        }
        let pause = Image::of_file("pause", "/pause", Guest::PAUSE.native_bytes());
        assert_eq!(pause.name(), PAUSE_IMAGE);
        fs::write(check.join("pause.tar"), pause.to_tar()).expect("it is writable");
        let peer = Image::of_file("peer", "/peer", Guest::PEER.native_bytes());
        fs::write(check.join("peer.tar"), peer.to_tar()).expect("it is writable");
        // Modules that are all different, for compiles that are cut short.
        fs::create_dir(check.join("modules")).expect("it is new");
        for number in 0..40 {
            let module = distinct(&Guest::HELLO.wasm_bytes(), number);
            fs::write(check.join(format!("modules/{number}.wasm")), module).expect("it is writable");
        }
        let disk = directory.path().join("check.img");
        let file = File::create(&disk).and_then(|file| file.set_len(256 << 20));
        file.expect("the temporary directory is writable");
        run(Command::new("mke2fs").args(["-q", "-t", "ext4", "-d"]).arg(&check).arg(&disk));
        let node = directory.path().join("node.img");
        run(Command::new("cp").arg("--sparse=always").arg(image.join("disk.img")).arg(node));
        Self { directory, image: image.to_owned() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// The module with another custom section.
fn distinct(module: &[u8], number: u8) -> Vec<u8> {
    // Section 0, 3 bytes: a name of one letter, and the number.
    [module, &[0, 3, 1, b'n', number]].concat()
}

impl Machine {
    /// Switches a machine on, and waits for its agent.
    pub fn start(disks: Disks) -> Self {
        let qemu = boot(&disks);
        let mut machine = Self { disks, qemu, agent: None, calls: 0 };
        machine.wait_for_agent();
        machine
    }

    /// Cuts the power: what is not on the disk is lost. Switches the machine on again.
    pub fn cut_power(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        self.qemu = boot(&self.disks);
        self.wait_for_agent();
    }

    /// Waits until the machine has started again by itself: its boot is another than the one in `file`.
    ///
    /// # Panics
    /// If it does not.
    pub fn wait_for_another_boot(&mut self, file: &str) {
        let end = Instant::now() + DEADLINE;
        let other = format!("! cmp --quiet {file} /proc/sys/kernel/random/boot_id && echo another");
        while self.call(&other).is_none_or(|said| said.text.trim() != "another") {
            assert!(Instant::now() < end, "the machine does not start again:\n{}", self.console());
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    fn wait_for_agent(&mut self) {
        self.agent = None;
        let end = Instant::now() + DEADLINE;
        while Instant::now() < end {
            let status = self.qemu.try_wait().expect("it is a child");
            assert!(status.is_none(), "qemu ended ({status:?}):\n{}", self.console());
            if self.agent.is_none()
                && let Ok(stream) = UnixStream::connect(self.disks.path("agent.sock"))
            {
                stream.set_read_timeout(Some(CALL_TIME)).expect("it is a socket");
                self.agent = Some(BufReader::new(stream));
            }
            // An agent that is being started answers a later call.
            if self.agent.is_some() && self.call("echo here").is_some_and(|said| said.text.trim() == "here") {
                return;
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        panic!("the machine has not started in {} s:\n{}", DEADLINE.as_secs(), self.console());
    }

    /// Sends a script, and waits shortly for its answer.
    fn call(&mut self, script: &str) -> Option<Said> {
        self.send(script)?;
        self.answer()
    }

    fn send(&mut self, script: &str) -> Option<()> {
        self.calls += 1;
        let marked = format!("(\n{script}\n)\ncode=$?\necho '{}'\nexit $code", self.mark());
        let agent = self.agent.as_mut()?;
        agent.get_mut().write_all(format!("{}\n", STANDARD.encode(marked)).as_bytes()).ok()
    }

    /// The last line of what the present call's script writes.
    fn mark(&self) -> String {
        format!("#{}", self.calls)
    }

    fn answer(&mut self) -> Option<Said> {
        let mark = self.mark() + "\n";
        let agent = self.agent.as_mut()?;
        let mut line = String::new();
        let mut text = None;
        while agent.read_line(&mut line).ok()? > 0 {
            let words = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
            match (words, &text) {
                (("said", said), _) => {
                    text =
                        Some(STANDARD.decode(said).unwrap_or_else(|error| panic!("the agent said {said:?}: {error}")))
                }
                (("code", code), Some(bytes)) => {
                    let found = String::from_utf8_lossy(bytes).into_owned();
                    if let Some(found) = found.strip_suffix(&mark) {
                        return Some(Said { code: code.parse().ok()?, text: found.to_owned() });
                    }
                    text = None;
                }
                _ => {}
            }
            line.clear();
        }
        None
    }

    /// Runs a script of bash to its end.
    ///
    /// # Panics
    /// If it does not end.
    #[track_caller]
    pub fn run(&mut self, script: &str) -> Said {
        let stream = self.agent.as_ref().expect("the machine runs").get_ref();
        stream.set_read_timeout(Some(DEADLINE)).expect("it is a socket");
        let said = self.call(script);
        if let Some(agent) = &self.agent {
            agent.get_ref().set_read_timeout(Some(CALL_TIME)).expect("it is a socket");
        }
        said.unwrap_or_else(|| panic!("no answer to `{script}`:\n{}", self.console()))
    }

    /// As [`Self::run`], for a script that must succeed; returns what it wrote.
    #[track_caller]
    pub fn ok(&mut self, script: &str) -> String {
        let said = self.run(&format!("set -euo pipefail\n{script}"));
        assert!(said.code == 0, "`{script}` ended with {}: {}", said.code, said.text);
        said.text
    }

    /// Starts a script, and does not wait.
    pub fn begin(&mut self, script: &str) {
        self.ok(&format!(
            "cat >/run/begun <<'END'\n{script}\nEND\nsetsid bash /run/begun >/run/begun.log 2>&1 </dev/null &"
        ));
    }

    /// Runs a script until it succeeds.
    ///
    /// # Panics
    /// With what it wrote last, if it does not.
    #[track_caller]
    pub fn until(&mut self, what: &str, script: &str) -> String {
        let end = Instant::now() + DEADLINE;
        loop {
            let said = self.run(&format!("set -euo pipefail\n{script}"));
            if said.code == 0 {
                return said.text;
            }
            assert!(Instant::now() < end, "not in time: {what}: {}", said.text);
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// The end of its console.
    pub fn console(&self) -> String {
        const LINES: usize = 40;
        let text = fs::read(self.disks.path("console.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

fn boot(disks: &Disks) -> Child {
    let path = |name: &str| disks.path(name).display().to_string();
    let _ = fs::remove_file(disks.path("agent.sock"));
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-accel", "tcg,thread=multi", "-smp", "2", "-cpu", "max", "-m", MEMORY_MIB]);
    qemu.args(["-display", "none", "-nodefaults", "-net", "none"]);
    qemu.arg("-kernel").arg(disks.image.join("vmlinuz")).arg("-initrd").arg(disks.image.join("initrd"));
    qemu.args(["-append", "console=ttyS0 root=/dev/vda rw apparmor=1 security=apparmor panic=-1 quiet"]);
    qemu.args(["-drive", &format!("if=virtio,file={},format=raw", path("node.img"))]);
    qemu.args(["-drive", &format!("if=virtio,file={},format=raw,readonly=on", path("check.img"))]);
    qemu.args(["-serial", &format!("file:{}", path("console.log"))]);
    qemu.args(["-serial", &format!("unix:{},server=on,wait=off", path("agent.sock"))]);
    qemu.stdin(Stdio::null()).spawn().unwrap_or_else(|error| panic!("qemu-system-x86_64: {error}"))
}
