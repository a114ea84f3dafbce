//! `hearthd`: its configuration and its start, with `READY=1` as systemd waits for it.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{ContainerdOptions, Layout, logged, tail};
use crate::machine::Machine;
use crate::paths;
use crate::process::Process;
use crate::wait::SHORT;

/// Options of the daemon beyond the defaults.
#[derive(Clone, Debug, Default)]
pub struct HearthdOptions {
    /// Lines of TOML appended to the configuration.
    pub config: String,
    /// Lines of TOML for its section `metrics`.
    pub metrics: String,
    /// A tmpfs of so many bytes as its `root_dir`.
    pub module_store_bytes: Option<u64>,
    /// A listening socket that is passed to it as its control socket, as systemd does.
    pub passed: Option<Arc<UnixListener>>,
    /// The interval of systemd's watchdog.
    pub watchdog: Option<Duration>,
    /// Whether it replaces the running daemon.
    pub replaces: bool,
    /// containerd's namespaces whose images are compiled ahead.
    pub ahead: Vec<String>,
    /// Another program than the one that was built.
    pub program: Option<PathBuf>,
    /// More variables of its environment.
    pub environment: Vec<(String, String)>,
    /// Options of containerd.
    pub containerd: ContainerdOptions,
}

/// Starts the daemon and waits for `READY=1`. It makes its own mount namespace.
pub fn start_hearthd(machine: &Machine, layout: &Layout, options: &HearthdOptions) -> Process {
    let (mut process, ready) = try_start_hearthd(machine, layout, options);
    assert!(
        ready,
        "hearthd is not ready ({}):\n{}",
        process.status().map_or("it still runs".into(), |status| status.to_string()),
        tail(&layout.hearthd_log())
    );
    process
}

/// As [`start_hearthd`], for a daemon that may refuse to start. The flag says whether it got ready.
pub fn try_start_hearthd(machine: &Machine, layout: &Layout, options: &HearthdOptions) -> (Process, bool) {
    for directory in [layout.hearthd_state(), layout.hearthd_root()] {
        fs::create_dir_all(directory).expect("the machine's directory is writable");
    }
    let config = layout.hearthd_config();
    let text = hearthd_config(layout, &options.metrics, &options.ahead) + &options.config;
    fs::write(&config, text).expect("the machine's directory is writable");
    let _ = fs::remove_file(layout.notify_socket());
    let notify = UnixDatagram::bind(layout.notify_socket()).expect("the path is short enough");

    if let Some(bytes) = options.module_store_bytes {
        mount_module_store(machine, layout, bytes);
    }
    let program = options.program.clone().unwrap_or_else(paths::hearthd);
    let mut command = match &options.passed {
        None => machine.command(&program),
        Some(listener) => {
            // Descriptor 3, and the pid as the program itself sees it: both are the shell's.
            const SCRIPT: &str = r#"exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec "$@""#;
            let mut command = machine.command("sh");
            let listener = listener.try_clone().expect("a descriptor can be duplicated");
            command.args(["-c", SCRIPT, "sh"]).arg(&program).stdin(OwnedFd::from(listener));
            command
        }
    };
    command.arg("--config").arg(&config).env("NOTIFY_SOCKET", layout.notify_socket());
    command.envs(options.environment.iter().map(|(name, value)| (name, value)));
    if options.replaces {
        command.arg("--replace");
    }
    if let Some(time) = options.watchdog {
        command.env("WATCHDOG_USEC", time.as_micros().to_string());
    }
    let mut hearthd = Process::start("hearthd", logged(&mut command, &layout.hearthd_log()));
    let ready = notified(&notify, || hearthd.status().is_some());
    (hearthd, ready)
}

/// Mounts a small tmpfs as the module store, unless it is mounted already.
fn mount_module_store(machine: &Machine, layout: &Layout, bytes: u64) {
    const SCRIPT: &str = r#"mountpoint -q "$2" || mount -t tmpfs -o "size=$1,mode=0700" tmpfs "$2""#;
    let mut command = machine.command("sh");
    command.args(["-c", SCRIPT, "sh", &bytes.to_string()]).arg(layout.hearthd_root());
    let mounted = Process::start("mount", &mut command).wait(SHORT);
    assert!(mounted.is_some_and(|status| status.success()), "cannot mount a tmpfs as the module store");
}

fn hearthd_config(layout: &Layout, metrics: &str, ahead: &[String]) -> String {
    format!(
        "state_dir = {state:?}\n\
         root_dir = {root:?}\n\
         control_socket = {control:?}\n\
         sandboxer.sockets = [{{ listen = \"sandboxer.sock\", containerd = {containerd:?} }}]\n\
         [metrics]\n\
         address = \"127.0.0.1:0\"\n\
         {metrics}\n\
         [log]\n\
         level = \"debug\"\n\
         [ahead]\n\
         namespaces = {ahead:?}\n\
         containerd = {containerd:?}\n",
        state = layout.hearthd_state(),
        root = layout.hearthd_root(),
        control = layout.control_socket(),
        containerd = layout.containerd_socket(),
    )
}

/// Waits for systemd's `READY=1`; false when the process has `ended` or [`SHORT`] has passed.
fn notified(socket: &UnixDatagram, mut ended: impl FnMut() -> bool) -> bool {
    socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout can be set");
    let end = Instant::now() + SHORT;
    let mut message = [0u8; 4096];
    while Instant::now() < end {
        match socket.recv(&mut message) {
            Ok(length) => {
                let text = String::from_utf8_lossy(&message[..length]);
                if text.lines().any(|line| line == "READY=1") {
                    return true;
                }
            }
            Err(_) if ended() => return false,
            Err(_) => {}
        }
    }
    false
}
