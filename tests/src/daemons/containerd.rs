//! containerd: its configuration in every version that the stories use, and its start.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::{BRIDGE, BY_PAUSE, BY_SANDBOXER, Layout, PAUSE_IMAGE, logged, tail};
use crate::machine::{Kind, Machine};
use crate::paths;
use crate::process::Process;
use crate::wait::{SHORT, within};
use crate::world::Runtime;

/// Plugins that are disabled, unless containerd serves pods.
const CRI_PLUGINS: &[&str] =
    &["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"];

/// Plugins that are always disabled: they look for devices or file systems at start.
const DISABLED_PLUGINS: &[&str] = &[
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.internal.v1.opt",
    "io.containerd.nri.v1.nri",
];

/// Plugins that are disabled, unless containerd is to trace.
const TRACING_PLUGINS: &[&str] = &["io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp"];

/// Where Debian's CNI plugins are.
const CNI_PLUGINS: &str = "/usr/lib/cni";

/// Options of containerd beyond its defaults.
#[derive(Clone, Debug, Default)]
pub struct ContainerdOptions {
    /// Directories that come first in its `PATH`, with more shims.
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
    /// The program that runc's shim runs instead of runc.
    pub binary: Option<String>,
}

/// Starts containerd and waits until it answers.
///
/// `path` is its `PATH`, which leads it to the shims. `hearthctl install containerd` adds the runtime handler `hearth`
/// to its configuration.
pub fn start_containerd(machine: &Machine, layout: &Layout, path: &OsStr, options: &ContainerdOptions) -> Process {
    let config = layout.containerd_config();
    let newest = if containerd_major() >= 2 { 3 } else { 2 };
    let version = options.config_version.unwrap_or(newest);
    let mut without = DISABLED_PLUGINS.to_vec();
    if options.traces.is_none() {
        without.extend(TRACING_PLUGINS);
    }
    let text = match machine.kind() {
        // (Every version reads it.)
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

/// Adds the handler `hearth` as an administrator does.
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
        // Version 1 has no such line, and names plugins by the last part of their identifiers.
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
/// The machine the tests run on may be a container itself: it may lack the right to lower an `oom_score_adj`, and
/// AppArmor's profiles.
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
/// If it does not print its version.
pub fn containerd_major() -> u32 {
    containerd_version().0
}

/// containerd's version, without what follows the third number.
///
/// # Panics
/// If it does not print its version.
pub fn containerd_version() -> (u32, u32, u32) {
    static VERSION: OnceLock<(u32, u32, u32)> = OnceLock::new();
    *VERSION.get_or_init(|| {
        let program = paths::containerd("containerd");
        let output = Command::new(&program).arg("--version").output();
        let output = output.unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        // containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3
        let text = String::from_utf8_lossy(&output.stdout);
        text.split_whitespace()
            .nth(2)
            .and_then(numbers)
            .unwrap_or_else(|| panic!("not a version of containerd: {text:?}"))
    })
}

/// The three numbers of `v2.3.4+unknown` or `1.6.20~ds1`.
fn numbers(version: &str) -> Option<(u32, u32, u32)> {
    let mut numbers = version.trim_start_matches('v').splitn(3, '.').map(|part| {
        let end = part.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(part.len());
        part[..end].parse().ok()
    });
    Some((numbers.next()??, numbers.next()??, numbers.next()??))
}

/// Whether hearthd's own sandbox controller makes the pods: `HEARTH_TEST_SANDBOXER=1` asks for it.
///
/// # Panics
/// On a containerd before 2.0, which has no sandbox controllers.
pub fn with_sandboxer() -> bool {
    let asked =
        std::env::var("HEARTH_TEST_SANDBOXER").is_ok_and(|value| value == "1") && Runtime::chosen() == Runtime::Hearth;
    assert!(
        !asked || containerd_major() >= 2,
        "HEARTH_TEST_SANDBOXER=1 needs a containerd 2.x (HEARTH_TEST_CONTAINERD)"
    );
    asked
}
