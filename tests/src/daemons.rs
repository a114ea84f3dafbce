//! How containerd and `hearthd` are configured and started on the machine, and when they are ready.
//!
//! Failure paths: a daemon that ends before it is ready, or is not ready in time, is a panic that shows
//! the end of its log.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::machine::{Kind, Machine};
use crate::paths;
use crate::process::Process;
use crate::wait::{SHORT, within};
use crate::world::Runtime;

/// How much of a log is shown when a test fails, in bytes.
const LOG_TAIL_BYTES: u64 = 16 * 1024;

/// What containerd does without, unless it serves pods.
const CRI_PLUGINS: &[&str] =
    &["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"];

/// What containerd does without: whatever looks for devices or file systems at start.
const DISABLED_PLUGINS: &[&str] = &[
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.internal.v1.opt",
    "io.containerd.nri.v1.nri",
];

/// What containerd does without, unless it is to trace.
const TRACING_PLUGINS: &[&str] = &["io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp"];

/// The image of a pod's sandbox, in containerd's namespace of Kubernetes. Nobody can pull it.
pub const PAUSE_IMAGE: &str = "hearth.test/pause:1";

/// On 2.x, the handlers of pods that containerd makes with a pause container, and of those that hearthd's sandbox
/// controller makes, whichever the handler `hearth` has.
pub const BY_PAUSE: &str = "hearth-by-pause";
/// See [`BY_PAUSE`].
pub const BY_SANDBOXER: &str = "hearth-by-sandboxer";

/// The bridge of a machine's pods.
pub const BRIDGE: &str = "hearth-test0";

/// Where Debian's CNI plugins are.
const CNI_PLUGINS: &str = "/usr/lib/cni";

/// The paths of one machine's daemons.
#[derive(Clone, Debug)]
pub struct Layout {
    directory: PathBuf,
}

impl Layout {
    /// The paths under a machine's directory.
    pub fn new(machine: &Machine) -> Self {
        let directory = machine.directory().to_owned();
        Self { directory }
    }

    /// containerd's gRPC socket; its ttrpc socket is beside it.
    pub fn containerd_socket(&self) -> PathBuf {
        self.directory.join("containerd.sock")
    }

    /// containerd's configuration file.
    pub fn containerd_config(&self) -> PathBuf {
        self.directory.join("containerd.toml")
    }

    /// What `hearthctl install containerd` has a containerd 2.x import.
    pub fn containerd_drop_in(&self) -> PathBuf {
        self.directory.join("conf.d/hearth.toml")
    }

    /// containerd's log.
    pub fn containerd_log(&self) -> PathBuf {
        self.directory.join("containerd.log")
    }

    /// containerd's `state`: its bundles are in there.
    pub fn containerd_state(&self) -> PathBuf {
        self.directory.join("containerd-state")
    }

    /// The daemon's log.
    pub fn hearthd_log(&self) -> PathBuf {
        self.directory.join("hearthd.log")
    }

    /// The daemon's configuration file.
    pub fn hearthd_config(&self) -> PathBuf {
        self.directory.join("hearthd.toml")
    }

    /// The daemon's `state_dir`.
    pub fn hearthd_state(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// The daemon's `root_dir`: the module store.
    pub fn hearthd_root(&self) -> PathBuf {
        self.directory.join("modules")
    }

    /// The control socket the shim dials.
    pub fn control_socket(&self) -> PathBuf {
        self.hearthd_state().join("control.sock")
    }

    /// The socket of the daemon's sandbox controller.
    pub fn sandboxer_socket(&self) -> PathBuf {
        self.hearthd_state().join("sandboxer.sock")
    }

    /// Where host-local keeps the addresses it has given to pods.
    pub fn addresses(&self) -> PathBuf {
        self.directory.join("addresses")
    }

    /// Where the daemon tells how it is.
    pub fn notify_socket(&self) -> PathBuf {
        self.directory.join("notify.sock")
    }
}

/// Starts containerd and waits until it answers.
///
/// `path` is its `PATH`: where it finds shims. Of pods' runtime handlers, hearth is put into its configuration by
/// `hearthctl install containerd`.
pub fn start_containerd(machine: &Machine, layout: &Layout, path: &OsStr, options: &ContainerdOptions) -> Process {
    let config = layout.containerd_config();
    let newest = if containerd_major() >= 2 { 3 } else { 2 };
    let version = options.config_version.unwrap_or(newest);
    let mut without = DISABLED_PLUGINS.to_vec();
    if options.traces.is_none() {
        without.extend(TRACING_PLUGINS);
    }
    let text = match machine.kind() {
        // (Understood by all.)
        Kind::Tasks => containerd_config(layout, 2, [CRI_PLUGINS, &without].concat()),
        Kind::Pods => containerd_config(layout, version, without) + &cri_config(layout, version, &options.handlers),
    };
    fs::write(&config, text).expect("the machine's directory is writable");
    if machine.kind() == Kind::Pods {
        install_handler(layout, &config);
    }
    let log = layout.containerd_log();
    let socket = layout.containerd_socket();
    // A stale socket would refuse until the new one takes its place, but never take a connection.
    let mut command = machine.command(paths::containerd("containerd"));
    command.arg("--config").arg(&config).env("PATH", path).env("HEARTH_CONTROL_SOCKET", layout.control_socket());
    if let Some(endpoint) = &options.traces {
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint).env("OTEL_BSP_SCHEDULE_DELAY", "20");
    }
    let mut containerd = Process::start("containerd", logged(&mut command, &log));
    let ready = within(SHORT, || {
        assert!(containerd.status().is_none(), "containerd ended at start:\n{}", tail(&log));
        UnixStream::connect(&socket).ok()
    });
    assert!(ready.is_some(), "containerd is not ready:\n{}", tail(&log));
    containerd
}

/// As an administrator does.
fn install_handler(layout: &Layout, config: &Path) {
    let mut command = Command::new(paths::hearthctl());
    command.args(["install", "containerd", "--config"]).arg(config).arg("--drop-in").arg(layout.containerd_drop_in());
    command.arg("--containerd").arg(paths::containerd("containerd"));
    if with_sandboxer() {
        command.arg("--sandboxer").arg(layout.sandboxer_socket());
    }
    let output = command.output().expect("hearthctl was built");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The configuration without plugins.
fn containerd_config(layout: &Layout, version: u32, mut disabled: Vec<&str>) -> String {
    let path = |name: &str| layout.directory.join(name).display().to_string();
    let mut head = format!("version = {version}\n");
    if version == 1 {
        // It has no such line, and knows plugins by the last part of their names.
        head.clear();
        disabled.iter_mut().for_each(|name| *name = name.rsplit('.').next().unwrap_or(name));
    }
    format!(
        "{head}\
         root = {root:?}\n\
         state = {state:?}\n\
         disabled_plugins = {disabled:?}\n\
         [grpc]\n\
         address = {socket:?}\n\
         [ttrpc]\n\
         address = {ttrpc:?}\n\
         [debug]\n\
         level = \"info\"\n",
        root = path("containerd-root"),
        state = layout.containerd_state(),
        socket = path("containerd.sock"),
        ttrpc = path("containerd.sock.ttrpc"),
    )
}

/// The CRI plugin's part of the configuration, and the pods' network.
///
/// The machine the tests run on may be a container itself: it may have no right to lower an
/// `oom_score_adj`, nor AppArmor's profiles.
fn cri_config(layout: &Layout, version: u32, more: &[Handler]) -> String {
    let conf = layout.directory.join("cni");
    fs::create_dir_all(&conf).expect("the machine's directory is writable");
    fs::write(conf.join("10-hearth.conflist"), network(layout)).expect("the machine's directory is writable");
    let mut handlers = vec![("runc", Runtime::Runc, false)];
    let mut proxy = String::new();
    if containerd_major() >= 2 {
        handlers.extend([(BY_PAUSE, Runtime::Hearth, false), (BY_SANDBOXER, Runtime::Hearth, true)]);
        let address = layout.sandboxer_socket();
        proxy = format!("[proxy_plugins.hearth]\ntype = \"sandbox\"\naddress = {address:?}\n");
    }
    let handlers = |table: &str| {
        let handler = |(handler, runtime, sandboxer): &(&str, Runtime, bool)| {
            let sandboxer = if *sandboxer { "sandboxer = \"hearth\"\n" } else { "" };
            let name = runtime.name();
            format!("[plugins.{table}.containerd.runtimes.{handler}]\nruntime_type = {name:?}\n{sandboxer}")
        };
        let other = |Handler { name, runtime, binary }: &Handler| {
            let runtimes = format!("[plugins.{table}.containerd.runtimes");
            let binary = binary.as_ref().map(|binary| format!("{runtimes}.{name}.options]\nBinaryName = {binary:?}\n"));
            format!("{runtimes}.{name}]\nruntime_type = {runtime:?}\n{}", binary.unwrap_or_default())
        };
        handlers.iter().map(handler).chain(more.iter().map(other)).collect::<String>()
    };
    let both = "restrict_oom_score_adj = true\ndisable_apparmor = true\n";
    let server = "disable_tcp_service = true\nstream_server_address = \"127.0.0.1\"\nstream_server_port = \"0\"\n";
    if version == 3 {
        let (images, runtime) = ("'io.containerd.cri.v1.images'", "'io.containerd.cri.v1.runtime'");
        format!(
            "[plugins.{images}]\nsnapshotter = \"overlayfs\"\n\
             [plugins.{images}.pinned_images]\nsandbox = {PAUSE_IMAGE:?}\n\
             [plugins.{runtime}]\n{both}{}\
             [plugins.{runtime}.cni]\nbin_dirs = [{CNI_PLUGINS:?}]\nconf_dir = {conf:?}\n\
             [plugins.'io.containerd.grpc.v1.cri']\n{server}{proxy}",
            handlers(runtime)
        )
    } else {
        let cri = if version == 1 { "cri" } else { "\"io.containerd.grpc.v1.cri\"" };
        format!(
            "[plugins.{cri}]\nsandbox_image = {PAUSE_IMAGE:?}\n{both}{server}{}\
             [plugins.{cri}.cni]\nbin_dir = {CNI_PLUGINS:?}\nconf_dir = {conf:?}\n{proxy}",
            handlers(cri)
        )
    }
}

/// A network of the machine's own: a bridge, and addresses handed out by the plugin itself.
fn network(layout: &Layout) -> String {
    let bridge = serde_json::json!({
        "type": "bridge",
        "bridge": BRIDGE,
        "isGateway": true,
        "ipMasq": false,
        "ipam": {
            "type": "host-local",
            "dataDir": layout.addresses(),
            "ranges": [[{"subnet": "10.87.0.0/16"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    });
    serde_json::json!({"cniVersion": "0.4.0", "name": "hearth", "plugins": [bridge]}).to_string()
}

/// The first number of containerd's version.
///
/// # Panics
/// If it does not tell.
pub fn containerd_major() -> u32 {
    static MAJOR: OnceLock<u32> = OnceLock::new();
    *MAJOR.get_or_init(|| {
        let program = paths::containerd("containerd");
        let output = Command::new(&program).arg("--version").output();
        let output = output.unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        // containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3
        let text = String::from_utf8_lossy(&output.stdout);
        let version =
            text.split_whitespace().nth(2).and_then(|version| version.trim_start_matches('v').split('.').next());
        version.and_then(|major| major.parse().ok()).unwrap_or_else(|| panic!("not a version of containerd: {text:?}"))
    })
}

/// Whether pods are made by hearthd's own sandbox controller: `HEARTH_TEST_SANDBOXER=1` asks for it.
///
/// # Panics
/// On a containerd that has no such thing.
pub fn with_sandboxer() -> bool {
    let asked =
        std::env::var("HEARTH_TEST_SANDBOXER").is_ok_and(|value| value == "1") && Runtime::chosen() == Runtime::Hearth;
    assert!(
        !asked || containerd_major() >= 2,
        "HEARTH_TEST_SANDBOXER=1 needs a containerd 2.x (HEARTH_TEST_CONTAINERD)"
    );
    asked
}

/// What a story asks of the daemon beyond the defaults.
#[derive(Clone, Debug, Default)]
pub struct HearthdOptions {
    /// Lines of TOML appended to the configuration.
    pub config: String,
    /// Lines of TOML for its section `metrics`.
    pub metrics: String,
    /// A tmpfs of so many bytes as its `root_dir`.
    pub module_store_bytes: Option<u64>,
    /// A listening socket that it is passed as systemd passes one, for its control socket.
    pub passed: Option<Arc<UnixListener>>,
    /// The time systemd's watchdog would give it.
    pub watchdog: Option<Duration>,
    /// Whether it is to take over from one that runs.
    pub replaces: bool,
    /// containerd's namespaces whose images are compiled ahead.
    pub ahead: Vec<String>,
    /// Another program than the one that was built.
    pub program: Option<PathBuf>,
    /// More variables of its environment.
    pub environment: Vec<(String, String)>,
    /// What containerd is asked beyond its defaults.
    pub containerd: ContainerdOptions,
}

/// What containerd is asked beyond its defaults.
#[derive(Clone, Debug, Default)]
pub struct ContainerdOptions {
    /// Directories in which it finds more shims, before all others.
    pub path: Vec<PathBuf>,
    /// More runtime handlers for pods.
    pub handlers: Vec<Handler>,
    /// The URL of the OpenTelemetry collector that it sends its own spans to.
    pub traces: Option<String>,
    /// The version of its configuration, if it is not the newest that it knows.
    pub config_version: Option<u32>,
}

/// A runtime handler, as a RuntimeClass names it.
#[derive(Clone, Debug)]
pub struct Handler {
    /// Its name.
    pub name: String,
    /// containerd's name of the runtime.
    pub runtime: String,
    /// What it runs instead of runc, for runc's shim.
    pub binary: Option<String>,
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

/// As [`start_hearthd`], for a daemon that may refuse to start: whether it got ready.
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

/// A small disk for the module store, once.
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

/// Sends stdout and stderr to the end of a log.
pub fn logged<'a>(command: &'a mut Command, log: &Path) -> &'a mut Command {
    let file = OpenOptions::new().create(true).append(true).open(log).expect("the machine's directory is writable");
    let second = file.try_clone().expect("a descriptor can be duplicated");
    command.stdout(file).stderr(second)
}

/// The end of a log, for a failing test.
pub fn tail(log: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes);
        Ok(text.lines().filter(|line| !line.contains("loading plugin")).collect::<Vec<_>>().join("\n"))
    };
    read().unwrap_or_else(|error| format!("({}: {error})", log.display()))
}
