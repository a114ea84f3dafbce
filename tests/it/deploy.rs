//! The contents of `deploy/`: the configuration of containerd, and the references of the documentation.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use hearth_tests::daemons::{ContainerdOptions, HearthdOptions, containerd_major, with_sandboxer};
use hearth_tests::{ContainerOptions, Guest, Image, Node, Runtime, paths};

use crate::{only_on_hearth, skip_unless};

/// containerd's configuration after it has read `config`: its runtime handlers, pause image and network among the rest.
struct Dump(String);

impl Dump {
    fn of(config: &Path) -> Dump {
        let mut command = Command::new(paths::containerd("containerd"));
        let output = command.arg("--config").arg(config).args(["config", "dump"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Dump(String::from_utf8(output.stdout).unwrap())
    }

    /// The names in `[plugins.….containerd.runtimes.NAME]`.
    fn handlers(&self) -> BTreeSet<&str> {
        let names = self.0.lines().filter_map(|line| {
            let name = line.trim().strip_prefix("[plugins.")?.strip_suffix(']')?.rsplit_once(".runtimes.")?.1;
            (!name.contains('.')).then_some(name)
        });
        names.collect()
    }

    fn has(&self, text: &str) -> bool {
        self.0.contains(text)
    }
}

fn piece(name: &str) -> PathBuf {
    let path = paths::repository().join("deploy/containerd").join(name);
    assert!(path.exists(), "{} is missing", path.display());
    path
}

/// A user's own configuration: a pause image, a network, a runtime with options, none of them the default.
fn users(version: u32) -> String {
    let (head, cri, images) = match version {
        1 => ("", "plugins.cri", "[plugins.cri]\nsandbox_image = 'my/pause:1'\n"),
        2 => (
            "version = 2\n",
            "plugins.'io.containerd.grpc.v1.cri'",
            "[plugins.'io.containerd.grpc.v1.cri']\nsandbox_image = 'my/pause:1'\n",
        ),
        _ => (
            "version = 3\n",
            "plugins.'io.containerd.cri.v1.runtime'",
            "[plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = 'my/pause:1'\n",
        ),
    };
    format!(
        "{head}{images}[{cri}.cni]\nconf_dir = '/my/cni'\n[{cri}.containerd]\ndefault_runtime_name = 'mine'\n\
         [{cri}.containerd.runtimes.mine]\nruntime_type = 'io.containerd.runc.v2'\n"
    )
}

fn assert_mine_and_hearth(dump: &Dump) {
    let handlers = dump.handlers();
    assert!(handlers.is_superset(&BTreeSet::from(["hearth", "mine"])), "{handlers:?}");
    for text in ["my/pause:1", "/my/cni", "io.containerd.hearth.v1"] {
        assert!(dump.has(text), "{text} is not in:\n{}", dump.0);
    }
}

/// `imports` go before the first table.
fn importing(config: &str, import: &Path) -> String {
    format!("imports = [{import:?}]\n{config}")
}

#[test]
fn the_runtime_is_added_to_a_configuration_of_containerd_1() {
    skip_unless!(containerd_major() == 1, "it is about containerd 1.x");
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config.toml");
    let dump = |text: String| {
        fs::write(&config, text).unwrap();
        Dump::of(&config)
    };
    let read = |name: &str| fs::read_to_string(piece(name)).unwrap();
    for version in [1, 2] {
        let hearth = read(&format!("append-v{version}.toml"));
        assert_mine_and_hearth(&dump(users(version) + &hearth));
        // The built-in handler exists as long as the file names no runtime.
        let head = if version == 1 { "" } else { "version = 2\n" };
        assert_eq!(dump(head.to_owned()).handlers(), BTreeSet::from(["runc"]));
        assert_eq!(dump(head.to_owned() + &hearth).handlers(), BTreeSet::from(["hearth"]));
        let both = head.to_owned() + &hearth + &read(&format!("append-v{version}-runc.toml"));
        assert_eq!(dump(both).handlers(), BTreeSet::from(["hearth", "runc"]));
    }
    // An import does not work here: it replaces the main file's whole configuration of CRI.
    let imported = dump(importing(&users(2), &piece("import-v2.toml")));
    assert_eq!(imported.handlers(), BTreeSet::from(["hearth"]));
    assert!(!imported.has("my/pause:1"));
}

/// `hearthctl ACTION containerd` on a configuration: whether it succeeded, and its output.
fn hearthctl(action: &str, config: &Path, more: &[&str]) -> (bool, String) {
    let mut command = Command::new(paths::hearthctl());
    let drop_in = config.with_file_name("conf.d").join("hearth.toml");
    command.args([action, "containerd", "--config"]).arg(config).arg("--drop-in").arg(drop_in);
    let output = command.arg("--containerd").arg(paths::containerd("containerd")).args(more).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

#[test]
fn hearthctl_puts_the_runtime_into_a_configuration_and_takes_it_out() {
    let versions: &[u32] = if containerd_major() == 1 { &[1, 2] } else { &[2, 3] };
    for &version in versions {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("config.toml");
        let before = format!("# Mine.\n{}\n# The end.\n", users(version));
        fs::write(&config, &before).unwrap();
        fs::set_permissions(&config, fs::Permissions::from_mode(0o640)).unwrap();
        // A dry run prints the change and makes none.
        let (done, said) = hearthctl("install", &config, &["--dry-run"]);
        assert!(done && said.contains("+++ ") && said.contains("io.containerd.hearth.v1"), "{said}");
        assert_eq!(fs::read_to_string(&config).unwrap(), before);
        // The change is made once.
        let (done, said) = hearthctl("install", &config, &[]);
        assert!(done && said.contains("systemctl restart containerd"), "{said}");
        assert_mine_and_hearth(&Dump::of(&config));
        let text = fs::read_to_string(&config).unwrap();
        assert!(before.lines().all(|line| text.contains(line)), "{text}");
        assert_eq!(fs::metadata(&config).unwrap().permissions().mode() & 0o7777, 0o640);
        assert_eq!(hearthctl("install", &config, &[]), (true, "nothing to change\n".into()));
        // With options, which containerd understands.
        let (done, said) = hearthctl("install", &config, &["--runtime-path", "/opt/hearth/bin/shim"]);
        assert!(done, "{said}");
        assert!(Dump::of(&config).has("/opt/hearth/bin/shim"));
        let (done, said) = hearthctl("install", &config, &["--sandboxer"]);
        assert_eq!(done, containerd_major() >= 2, "{said}");
        if done {
            let dump = Dump::of(&config);
            assert!(dump.has("sandboxer.sock") && !dump.has("/opt/hearth/bin/shim"), "{}", dump.0);
            assert_mine_and_hearth(&dump);
        } else {
            assert!(said.contains("--sandboxer"), "{said}");
        }
        // An uninstall removes all of it, and leaves no other file.
        let (done, said) = hearthctl("uninstall", &config, &["--sandboxer"]);
        assert!(done, "{said}");
        let after = fs::read_to_string(&config).unwrap();
        assert!(!after.contains("hearth"), "{after}");
        assert!(Dump::of(&config).handlers().contains("mine"));
        let left: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| name == "config.toml" || name == "conf.d"), "{left:?}");
        // After one install an uninstall restores the file byte for byte.
        fs::write(&config, &before).unwrap();
        assert!(hearthctl("install", &config, &[]).0);
        assert!(hearthctl("uninstall", &config, &[]).0);
        assert_eq!(fs::read_to_string(&config).unwrap(), before);
        assert_eq!(hearthctl("uninstall", &config, &[]), (true, "nothing to change\n".into()));
    }
}

#[test]
fn hearthctl_makes_a_configuration_where_there_is_none() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config.toml");
    let (done, said) = hearthctl("install", &config, &[]);
    assert!(done, "{said}");
    assert_eq!(Dump::of(&config).handlers(), BTreeSet::from(["hearth", "runc"]));
    assert!(hearthctl("uninstall", &config, &[]).0);
    assert!(!config.exists());
    if containerd_major() >= 2 {
        fs::write(&config, users(1)).unwrap();
        let (done, said) = hearthctl("install", &config, &[]);
        assert!(!done && said.contains("version 1"), "{said}");
        assert_eq!(fs::read_to_string(&config).unwrap(), users(1));
    }
    fs::write(&config, "version = [\n").unwrap();
    let (done, said) = hearthctl("install", &config, &[]);
    assert!(!done && said.contains("not TOML") && said.lines().count() == 1, "{said}");
}

#[test]
fn hearthctl_finds_where_others_keep_containerds_configuration() {
    let below = |root: &Path, path: &str, text: &str| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let run = |root: &Path, action: &str| {
        let mut command = Command::new(paths::hearthctl());
        let output = command.args([action, "containerd", "--root"]).arg(root).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    for (kept, made, template, service) in [
        ("k3s", "version = 3\n", "config-v3.toml.tmpl", "k3s"),
        ("rke2", "version = 2\n", "config.toml.tmpl", "rke2-server"),
    ] {
        let root = tempfile::tempdir().unwrap();
        let directory = format!("var/lib/rancher/{kept}/agent/etc/containerd");
        below(root.path(), &format!("{directory}/config.toml"), made);
        let said = run(root.path(), "install");
        assert!(said.contains(&format!("systemctl restart {service}")), "{said}");
        let path = root.path().join(directory).join(template);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("{{ template \"base\" . }}\n"), "{text}");
        assert!(text.contains(".containerd.runtimes.hearth]\nruntime_type = \"io.containerd.hearth.v1\""), "{text}");
        run(root.path(), "uninstall");
        assert!(!path.exists());
    }
}

#[test]
fn the_runtime_is_imported_by_containerd_2() {
    skip_unless!(containerd_major() >= 2, "it is about containerd 2.x");
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config.toml");
    let dump = |text: String| {
        fs::write(&config, text).unwrap();
        Dump::of(&config)
    };
    for version in [2, 3] {
        assert_mine_and_hearth(&dump(importing(&users(version), &piece(&format!("import-v{version}.toml")))));
        let with_sandboxer = dump(importing(&users(version), &piece(&format!("import-v{version}-sandboxer.toml"))));
        assert_mine_and_hearth(&with_sandboxer);
        // The default of hearthd, in its default state directory.
        assert!(with_sandboxer.has("sandboxer = 'hearth'") && with_sandboxer.has("/run/hearth/sandboxer.sock"));
    }
    let bare = dump(importing("version = 3\n", &piece("import-v3.toml")));
    assert_eq!(bare.handlers(), BTreeSet::from(["hearth", "runc"]));
    // containerd 2.x ignores the CRI table of a file of version 1. The table has to be renamed.
    assert!(!dump(users(1)).handlers().contains("mine"));
    let rewritten = users(1).replace("plugins.cri", "plugins.'io.containerd.grpc.v1.cri'");
    let rewritten = format!("version = 2\n{rewritten}");
    assert_mine_and_hearth(&dump(importing(&rewritten, &piece("import-v2.toml"))));
    // The versions of both files have to be the same.
    let mixed = dump(importing(&users(2), &piece("import-v3.toml")));
    assert!(!mixed.handlers().contains("mine"));
    let mixed = dump(importing(&users(3), &piece("import-v2.toml")));
    assert!(!mixed.handlers().contains("hearth"));
}

#[test]
fn each_story_that_the_table_of_fields_names_exists() {
    let table = fs::read_to_string(paths::repository().join("deploy/pods.md")).unwrap();
    let mut named = 0;
    let tests = paths::repository().join("tests");
    for word in table.split('`').skip(1).step_by(2) {
        let Some((module, story)) = word.rsplit_once("::") else { continue };
        // Stories on a real Kubernetes, and stories on containerd alone.
        let (path, function) = match module.strip_prefix("e2e::") {
            Some(module) => (tests.join("e2e/stories").join(module), format!("\npub fn {story}(")),
            None => (tests.join("it").join(module.replace("::", "/")), format!("#[test]\nfn {story}()")),
        };
        let path = path.with_extension("rs");
        let source = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{word}: {}: {error}", path.display()));
        assert!(source.contains(&function), "{} has no story {story}", path.display());
        named += 1;
    }
    assert!(named > 20, "only {named} stories are named");
}

/// The commands of the page "Run it on your nodes": each with the test file that runs it, and its text there.
const COMMANDS: &[(&str, &str, &str)] = &[
    (
        "apt install ./hearth_0.1.0_amd64.deb",
        MACHINE,
        "step apt-get install --yes --no-install-recommends /check/hearth_old",
    ),
    (
        "apt install ./hearth_0.2.0_amd64.deb",
        MACHINE,
        "step apt-get install --yes --no-install-recommends /check/hearth_new",
    ),
    ("apt purge hearth", MACHINE, "step apt-get purge --yes hearth"),
    ("tar xzf hearth-0.1.0-linux-amd64.tar.gz", "deploy/image.sh", "-xzf \"$tarball\""),
    ("hearth-0.1.0-linux-amd64/install.sh --prefix /opt/hearth", NODE, "install.sh\" --prefix \"$prefix\""),
    ("deploy/image.sh registry.example/hearth-installer:0.1.0", "deploy/check.sh", "image=$(deploy/image.sh)"),
    ("hearthctl install containerd --dry-run", MACHINE, "step hearthctl install containerd --dry-run"),
    ("hearthctl install containerd", MACHINE, "step hearthctl install containerd\n"),
    (
        "hearthctl uninstall containerd && systemctl restart containerd",
        MACHINE,
        "step hearthctl uninstall containerd\n",
    ),
    ("systemctl restart containerd", MACHINE, "step systemctl restart containerd"),
    (
        "cp -a /etc/containerd/config.toml /etc/containerd/config.toml.before-hearth",
        MACHINE,
        "step cp -a /etc/containerd/config.toml /etc/containerd/config.toml.before-hearth",
    ),
    (
        "cat /usr/share/hearth/containerd/append-v2.toml >> /etc/containerd/config.toml",
        MACHINE,
        "shell \"cat /usr/share/hearth/containerd/append-v2.toml >> /etc/containerd/config.toml\"",
    ),
    (
        "containerd config dump | grep -A 1 'runtimes\\.'",
        MACHINE,
        "shell \"containerd config dump | grep -A 1 'runtimes\\.'\"",
    ),
    ("hearthctl generations", MACHINE, "step hearthctl generations"),
    ("hearthd --check-config", MACHINE, "step hearthd --check-config"),
    ("systemctl reload hearthd", MACHINE, "step systemctl reload hearthd"),
    ("kubectl label node NODE hearth-runtime=true", CLUSTER, "[\"label\", \"node\", NODE, \"hearth-runtime=true\"]"),
    ("kubectl apply -k deploy/kubernetes", CLUSTER, "[\"apply\", \"-k\""),
];

/// Commands of kubectl that need a cluster whose nodes are machines. No test has such a cluster.
const OF_A_CLUSTER: &[&str] = &[
    "kubectl apply -f deploy/kubernetes/examples/command.yaml",
    "kubectl apply -k deploy/kubernetes/installer",
    "kubectl label node NODE hearth-install=true",
    "kubectl drain NODE --ignore-daemonsets && kubectl label node NODE hearth-runtime-",
];

const MACHINE: &str = "deploy/check-systemd.sh";
const NODE: &str = "deploy/kubernetes/installer/node.sh";
const CLUSTER: &str = "tests/e2e/cluster.rs";

#[test]
fn each_command_of_the_page_for_nodes_is_run_by_a_test() {
    let read = |path: &str| fs::read_to_string(paths::repository().join(path)).unwrap();
    let page = read("deploy/README.md");
    let mut told = 0;
    for block in page.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next()) {
        for line in block.lines() {
            let command = line.split("  ").next().unwrap_or(line).trim();
            told += 1;
            if OF_A_CLUSTER.contains(&command) {
                continue;
            }
            let run = COMMANDS.iter().find(|run| run.0 == command);
            let (_, path, text) = run.unwrap_or_else(|| panic!("no test runs {command:?}"));
            assert!(read(path).contains(text), "{path} does not have {text:?}, which runs {command:?}");
        }
    }
    assert!(told > COMMANDS.len(), "only {told} commands are told");
}

#[test]
fn the_unit_and_the_shim_agree_on_the_control_socket() {
    let unit = fs::read_to_string(paths::repository().join("deploy/systemd/hearthd.socket")).unwrap();
    let listens: Vec<_> = unit.lines().filter_map(|line| line.strip_prefix("ListenStream=")).collect();
    assert_eq!(listens, ["/run/hearth/control.sock"]);
    let shim = fs::read_to_string(paths::repository().join("shim-proxy/src/lib.rs")).unwrap();
    assert!(shim.contains(&format!("CONTROL_SOCKET: &str = {:?}", listens[0])));
}

#[test]
fn a_pod_runs_by_each_version_of_the_configuration_that_hearthctl_writes() {
    only_on_hearth!();
    let versions: &[u32] = if containerd_major() == 1 { &[1, 2] } else { &[2, 3] };
    for &version in versions {
        let config_version = Some(version);
        let containerd = ContainerdOptions { config_version, ..ContainerdOptions::default() };
        let node = Node::with(HearthdOptions { containerd, ..HearthdOptions::default() });
        let exit = node.program(&Guest::EXIT);
        let pod = node.pod("pod").run();
        assert_eq!(pod.container("exit", &exit).args(["7"]).start().wait(), 7, "version {version}");
        if with_sandboxer() {
            // (No other pod can be made: there is no pause image.)
            continue;
        }
        // The handler `runc` still works.
        let native = node.import(&Image::of(&Guest::EXIT, Runtime::Runc));
        let other = node.pod("other").options(|options| options.handler = "runc".into()).run();
        assert_eq!(other.container("exit", &native).args(["8"]).start().wait(), 8, "version {version}");
    }
}

/// Checks that an example has the words that the story acts out.
fn example(name: &str, words: &[&str]) {
    let path = paths::repository().join("deploy/kubernetes/examples").join(name);
    let text = fs::read_to_string(&path).unwrap();
    for word in words {
        assert!(text.contains(word), "{} does not contain {word}", path.display());
    }
}

#[test]
fn the_containers_of_the_examples_run() {
    only_on_hearth!();
    let node = Node::new();

    example("command.yaml", &[r#"["/hello.wasm"]"#, r#"["one", "two"]"#, "GREETING"]);
    let pod = node.pod("hearth-command").run();
    let hello = pod.container("hello", &node.program(&Guest::HELLO)).command(["/hello.wasm"]).args(["one", "two"]);
    let hello = hello.options(|options| options.env.push(("GREETING".into(), "hello".into()))).start();
    assert_eq!(hello.wait(), 0);
    assert!(hello.stdout().contains("arg 2: two\n"), "{}", hello.stdout());

    example(
        "volumes.yaml",
        &["initContainers", "runAsUser: 1000", "fsGroup: 2000", "readOnlyRootFilesystem: true", "memory: 64Mi"],
    );
    let (work, settings) = (node.path("work"), node.path("settings"));
    fs::create_dir(&work).unwrap();
    std::os::unix::fs::chown(&work, None, Some(2000)).unwrap();
    fs::set_permissions(&work, fs::Permissions::from_mode(0o2770)).unwrap();
    fs::create_dir(&settings).unwrap();
    fs::write(settings.join("settings.toml"), "level = \"info\"\n").unwrap();
    let native = node.import(&Image::of_file("busybox", "/files", Guest::FILES.native_bytes()));
    let as_user = |options: &mut ContainerOptions| {
        (options.user, options.group) = (Some(1000), Some(1000));
        options.supplemental_groups = vec![2000];
    };
    let pod = node.pod("hearth-volumes").run();
    let prepare = pod.container("prepare", &native).args(["write", "/work/prepared", "now"]).volume(&work, "/work");
    let prepare = prepare.options(as_user).start();
    assert_eq!(prepare.wait(), 0, "{:?}", prepare.log());
    let files = node.program(&Guest::FILES);
    let reading = |name: &str, path: &str| {
        let plan = pod.container(name, &files).command(["/files.wasm"]).args(["read", path]).volume(&work, "/work");
        let plan = plan.read_only_volume(&settings, "/etc/app").options(as_user).options(|options| {
            options.read_only_root = true;
            options.resources.memory_limit_in_bytes = 64 << 20;
            (options.resources.cpu_quota, options.resources.cpu_period) = (25_000, 100_000);
        });
        let container = plan.start();
        (container.wait(), container.stdout())
    };
    assert_eq!(reading("files", "/work/prepared"), (0, "now".to_owned()));
    assert_eq!(reading("settings", "/etc/app/settings.toml"), (0, "level = \"info\"\n".to_owned()));

    example("tcp.yaml", &[r#"["/tcp.wasm"]"#, r#"["8080"]"#]);
    let pod = node.pod("hearth-tcp").run();
    let plan = pod.container("server", &node.program(&Guest::TCP)).command(["/tcp.wasm"]).args(["8080"]);
    plan.start().wait_for_stdout("listening");
    let address = format!("{}:8080", pod.ip());
    node.machine().in_network(|| TcpStream::connect(&address)).expect("kubelet's probe connects");

    example("http.yaml", &[r#"["/http.wasm"]"#, "HEARTH_HTTP_PORT", "httpGet", "memory: 64Mi"]);
    let pod = node.pod("hearth-http").run();
    let plan = pod.container("server", &node.program(&Guest::HTTP)).command(["/http.wasm"]);
    let _server = plan.options(|options| options.env.push(("HEARTH_HTTP_PORT".into(), "8080".into()))).start();
    let address = format!("{}:8080", pod.ip());
    node.machine().in_network(|| TcpStream::connect(&address)).expect("the service listens once it is started");
}
