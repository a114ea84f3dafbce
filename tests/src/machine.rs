//! A private machine: pid and mount namespaces of its own, a private `/run`, and one directory.
//!
//! The *keeper* (a shell outside) makes the directory, runs *init* (a shell inside, pid 1, which reaps orphans) and
//! removes the directory when init is gone. Init lives as long as it can read from the lifeline, a pipe whose other end
//! is the test process.
//!
//! A machine for pods has a network namespace of its own, too, so that bridges, addresses and packet
//! filters are its alone; the files of pods' network namespaces lie in its `/run`, the state of CNI in
//! its `/var/lib`, and mounts travel between its own mount namespaces as they do on a node. Cgroups cannot
//! be made private here: its pods are under [`Machine::cgroup`], which the keeper removes.
//!
//! Failure paths: no root or no namespaces is a panic that says so; everything after that is undone by the keeper,
//! which ignores the terminal's signals and is in a process group of its own.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::paths;
use crate::process::{self, wait_child};
use crate::wait::{SHORT, within};

/// The keeper's script: `$1` is the template of the directory's name, `$2` init's script, the rest more namespaces. The
/// processes in the cgroups ended with init.
const KEEPER: &str = r#"
trap '' INT TERM HUP QUIT
directory=$(mktemp -d "$1") || exit 1
init=$2
shift 2
echo "$directory"
unshare --mount --propagation slave --pid --fork --kill-child=KILL --mount-proc "$@" bash -c "$init"
for cgroup in /sys/fs/cgroup/"${directory##*/}" /sys/fs/cgroup/*/"${directory##*/}"; do
    [ ! -d "$cgroup" ] || find "$cgroup" -depth -type d -exec rmdir {} +
done
rm -rf -- "$directory"
"#;

/// Init's script. bash reaps any child that ends, so orphans leave no zombies.
const INIT: &str = r#"
mount -t tmpfs -o mode=755 tmpfs /run && echo ready || exit 1
while read -r _; do :; done
"#;

/// Init's script on a machine for pods. `/var/lib` is an overlay: reads find the host's files, and writes stay on this
/// machine. (In a new network namespace loopback is down.)
const POD_INIT: &str = r#"
mount -t tmpfs -o mode=755 tmpfs /run && mkdir -p /run/netns /run/overlay/{new,work} || exit 1
mount -t overlay -o lowerdir=/var/lib,upperdir=/run/overlay/new,workdir=/run/overlay/work overlay /var/lib || exit 1
mount --make-rshared / && ip link set lo up && echo ready || exit 1
while read -r _; do :; done
"#;

/// The namespaces and directories that are the machine's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// pid and mount namespaces, and `/run`.
    Tasks,
    /// A network namespace and `/var/lib`, too.
    Pods,
}

/// The private machine. Dropping it ends everything on it.
#[derive(Debug)]
pub struct Machine {
    kind: Kind,
    keeper: Child,
    init: i32,
    directory: PathBuf,
}

impl Machine {
    /// Makes the namespaces and the directory.
    ///
    /// # Panics
    /// If that is not possible, with the missing right or program.
    pub fn new(kind: Kind) -> Self {
        let root = rustix::process::geteuid().is_root();
        assert!(root, "the stories mount file systems and make namespaces: run them as root");
        let (init, namespaces): (_, &[&str]) = match kind {
            Kind::Tasks => (INIT, &[]),
            Kind::Pods => (POD_INIT, &["--net"]),
        };
        let mut keeper = Command::new("bash")
            .args(["-c", KEEPER, "hearth-keeper", &template(), init])
            .args(namespaces)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("bash starts");
        let mut lines = BufReader::new(keeper.stdout.take().expect("stdout is a pipe")).lines();
        let mut line = || lines.next().and_then(Result::ok).unwrap_or_default();
        let directory = PathBuf::from(line());
        assert!(directory.is_dir(), "cannot make a directory {}", template());
        let ready = line();
        assert!(
            ready == "ready",
            "cannot make a private mount and pid namespace (see the error above): \
             is this a container without CAP_SYS_ADMIN?"
        );
        let init = init_of(keeper.id() as i32).expect("unshare has a child: it said `ready`");
        Self { kind, keeper, init, directory }
    }

    /// The machine's kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The machine's directory: short, so that the paths of sockets in it fit into 107 bytes.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The cgroup of its pods, in every hierarchy of the host: leftovers in it are reported, and removed.
    pub fn cgroup(&self) -> String {
        format!("/{}", self.name())
    }

    /// The cgroups its pods have made and not removed.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let root = Path::new("/sys/fs/cgroup");
        let hierarchies = std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
        let parents = hierarchies.chain([root.to_owned()]).map(|hierarchy| hierarchy.join(self.name()));
        let children = parents.flat_map(|parent| std::fs::read_dir(parent).into_iter().flatten().flatten());
        children.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
    }

    fn name(&self) -> &str {
        self.directory.file_name().and_then(std::ffi::OsStr::to_str).expect("it is made of letters and digits")
    }

    /// Does `work` in the machine's network.
    pub fn in_network<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        if self.kind == Kind::Tasks {
            return work();
        }
        // A thread of its own, as it never returns to the host's network.
        std::thread::scope(|scope| {
            let entered = scope.spawn(|| {
                let namespace = File::open(format!("/proc/{}/ns/net", self.init)).expect("init runs");
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).expect("we are root");
                work()
            });
            entered.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// The machine's init, as the test sees it.
    pub fn init(&self) -> i32 {
        self.init
    }

    /// A command that runs `program` on the machine, with nothing but `PATH` in its environment.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg("-t")
            .arg(self.init.to_string())
            .args(match self.kind {
                Kind::Tasks => ["-m", "-p"].as_slice(),
                Kind::Pods => &["-m", "-p", "-n"],
            })
            .arg("--")
            .arg(program.as_ref())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .stdin(Stdio::null());
        command
    }

    /// The processes on the machine, init left out: pid (as the test sees it) and command line.
    pub fn processes(&self) -> Vec<(i32, String)> {
        let namespace = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let ours = namespace(self.init);
        process::all()
            .into_iter()
            .filter(|&(pid, _)| pid != self.init && namespace(pid) == ours && ours.is_some())
            .filter(|&(pid, _)| process::is_alive(pid))
            .map(|(pid, _)| (pid, command_line(pid)))
            .collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        if wait_child(&mut self.keeper, SHORT).is_none() {
            eprintln!("the keeper of {} did not end in time", self.directory.display());
        }
    }
}

/// `/tmp/hearth-CHECKOUT-XXXXXX`: the leftovers of two checkouts have different names.
fn template() -> String {
    format!("{}XXXXXX", prefix())
}

/// The beginning of the path of each machine's directory.
pub fn prefix() -> String {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(paths::repository().as_os_str().as_encoded_bytes());
    format!("/tmp/hearth-{}-", &hex::encode(digest)[..4])
}

/// The command line of a process, its arguments separated by blanks.
pub fn command_line(pid: i32) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).split('\0').collect::<Vec<_>>().join(" ").trim().to_owned()
}

/// keeper → unshare → init.
fn init_of(keeper: i32) -> Option<i32> {
    let child = |parent: i32| {
        let all = process::all();
        all.into_iter().find_map(|(pid, ppid)| (ppid == parent).then_some(pid))
    };
    within(SHORT, || child(child(keeper)?))
}
