//! `hearthctl install containerd` on configurations as they are found on nodes, judged by containerd 1.6, 1.7 and 2.x
//! themselves: which handlers `containerd config dump` shows afterwards.
//!
//! 1.6 is the machine's own containerd; `deploy/fetch-containerd.sh` brings the others. A release that cannot be fetched is
//! told loudly, and is a failure of `make test-matrix`.

#![allow(clippy::disallowed_methods, reason = "a test starts containerd and hearthctl")]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// A containerd, and the first numbers of its release.
#[derive(Debug, Clone)]
struct Containerd {
    release: &'static str,
    program: PathBuf,
}

/// Fails if one of them cannot be fetched. Without it, such a release is told on standard error and left out.
const ALL_VARIABLE: &str = "HEARTH_TEST_ALL_CONTAINERDS";

/// One of each release that Hearth supports: the machine's own, then those that could be fetched.
fn containerds() -> &'static [Containerd] {
    static ALL: OnceLock<Vec<Containerd>> = OnceLock::new();
    ALL.get_or_init(|| {
        let suites = [("trixie", "1.7."), ("forky", "2.")];
        let own = Containerd { release: "1.6.", program: "containerd".into() };
        let fetched = suites.into_iter().filter_map(|(suite, release)| fetch(suite, release));
        let all: Vec<_> = [own].into_iter().chain(fetched).collect();
        for containerd in &all {
            let output = Command::new(&containerd.program).arg("--version").output().unwrap();
            let version = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(version.contains(&format!(" {}", containerd.release)), "{containerd:?}: {version}");
        }
        all
    })
}

fn fetch(suite: &str, release: &'static str) -> Option<Containerd> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
    let output = Command::new(repository.join("deploy/fetch-containerd.sh")).arg(suite).output().unwrap();
    if output.status.success() {
        let directory = String::from_utf8(output.stdout).unwrap();
        return Some(Containerd { release, program: Path::new(directory.trim()).join("containerd") });
    }
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(std::env::var_os(ALL_VARIABLE).is_none(), "containerd {release}x cannot be fetched: {said}");
    // (Not by a macro: the output of a test that passes is not shown.)
    let text = format!("NOT TESTED: containerd {release}x, which could not be fetched:\n{said}\n");
    std::io::stderr().write_all(text.as_bytes()).unwrap();
    None
}

impl Containerd {
    fn is_1(&self) -> bool {
        self.release.starts_with("1.")
    }

    /// The text that it prints for a configuration.
    fn dump(&self, config: &Path) -> String {
        let output = Command::new(&self.program).arg("--config").arg(config).args(["config", "dump"]).output().unwrap();
        assert!(output.status.success(), "{self:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The handlers of CRI in that text.
    fn handlers(&self, config: &Path) -> BTreeSet<String> {
        let dump = self.dump(config);
        let names = dump.lines().filter_map(|line| {
            let name = line.trim().strip_prefix("[plugins.")?.strip_suffix(']')?.rsplit_once(".runtimes.")?.1;
            (!name.contains('.')).then(|| name.to_owned())
        });
        names.collect()
    }
}

/// A directory with a configuration, and the containerd that reads it.
struct Site {
    containerd: Containerd,
    directory: tempfile::TempDir,
}

impl Site {
    fn new(containerd: &Containerd) -> Site {
        Site { containerd: containerd.clone(), directory: tempfile::tempdir().unwrap() }
    }

    fn with(containerd: &Containerd, text: &str) -> Site {
        let site = Site::new(containerd);
        fs::write(site.config(), text).unwrap();
        site
    }

    fn config(&self) -> PathBuf {
        self.directory.path().join("config.toml")
    }

    fn text(&self) -> String {
        fs::read_to_string(self.config()).unwrap()
    }

    fn run(&self, action: &str, more: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hearthctl"));
        command.args([action, "containerd", "--config"]).arg(self.config());
        command.arg("--drop-in").arg(self.directory.path().join("conf.d/hearth.toml"));
        command.arg("--containerd").arg(&self.containerd.program).args(more).output().unwrap()
    }

    #[track_caller]
    fn succeeds(&self, action: &str) -> String {
        let output = self.run(action, &[]);
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{:?} {action}: {said}", self.containerd);
        said
    }

    #[track_caller]
    fn fails(&self, action: &str) -> String {
        let output = self.run(action, &[]);
        assert_eq!(output.status.code(), Some(1), "{:?}: {}", self.containerd, String::from_utf8_lossy(&output.stdout));
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said.lines().count(), 1, "{said}");
        said
    }

    /// All files below the directory, with their texts; of a link, its target.
    fn files(&self) -> BTreeSet<(String, String)> {
        let mut found = BTreeSet::new();
        let mut waiting = vec![self.directory.path().to_owned()];
        while let Some(directory) = waiting.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                match fs::read_link(&path) {
                    Ok(target) => drop(found.insert((path.display().to_string(), target.display().to_string()))),
                    Err(_) if path.is_dir() => waiting.push(path),
                    Err(_) => drop(found.insert((path.display().to_string(), fs::read_to_string(&path).unwrap()))),
                }
            }
        }
        found
    }
}

/// A file, the handlers that containerd 1.x and 2.x show after the installation, and a part of the new file for each. No
/// handlers: the installation is refused, with this part of the error.
struct Case {
    name: &'static str,
    text: String,
    on_1: (&'static [&'static str], &'static str),
    on_2: (&'static [&'static str], &'static str),
}

const BOTH: &[&str] = &["hearth", "runc"];
const REFUSED: &[&str] = &[];

fn runtime(table: &str, name: &str) -> String {
    format!("[plugins.{table}.containerd.runtimes.{name}]\n  runtime_type = 'io.containerd.runc.v2' # {name}\n")
}

const CRI_1: &str = "cri";
const CRI_2: &str = "'io.containerd.grpc.v1.cri'";
const CRI_3: &str = "\"io.containerd.cri.v1.runtime\"";

/// The shape of the file that Docker packages: a licence, CRI turned off or not, and settings as comments.
fn of_docker(disabled: &str) -> String {
    format!(
        "#   Licensed under a licence.\n#   See the licence.\n\n{disabled}#root = \"/var/lib/containerd\"\n#oom_score = 0\n\n\
         #[grpc]\n#  address = \"/run/containerd/containerd.sock\"\n\n#[debug]\n#  level = \"info\"\n"
    )
}

#[allow(clippy::too_many_lines, reason = "a table")]
fn cases() -> Vec<Case> {
    let case = |name, text: String, on_1, on_2| Case { name, text, on_1, on_2 };
    let same = |name, text: String, handlers| {
        case(name, text, (handlers, "version = 2\n"), (handlers, "version = 3\nimports = ["))
    };
    let refused = |name, text, error| case(name, text, (REFUSED, error), (REFUSED, error));
    vec![
        same("empty", String::new(), BOTH),
        same("blank lines", "\n\n".into(), BOTH),
        same("only comments", "# Mine.\n#[grpc]\n".into(), BOTH),
        same("comments without a line end", "# Mine.".into(), BOTH),
        same("Docker's, CRI not turned off", of_docker(""), BOTH),
        refused("Docker's as packaged", of_docker("disabled_plugins = [\"cri\"]\n\n"), "take \"cri\" out of disabled_plugins"),
        case(
            "only disabled_plugins, empty",
            "disabled_plugins = []\n".into(),
            (BOTH, "disabled_plugins = []\nversion = 2\n"),
            (BOTH, "disabled_plugins = []\nversion = 3\n"),
        ),
        case(
            "only disabled_plugins, another, by its name of version 1",
            "disabled_plugins = [\"aufs\"]\n".into(),
            (BOTH, "[plugins.cri.containerd.runtimes.hearth]"),
            (REFUSED, "version 1"),
        ),
        refused("version 2 and cri", "version = 2\ndisabled_plugins = ['cri']\n".into(), "take \"cri\" out"),
        refused(
            "version 2 and the plugin of 1.x",
            "version = 2\ndisabled_plugins = [\n  'io.containerd.snapshotter.v1.aufs',\n  \"io.containerd.grpc.v1.cri\",\n]\n".into(),
            "take \"io.containerd.grpc.v1.cri\" out",
        ),
        case(
            "version 3 and the plugin of 2.x",
            "version = 3\ndisabled_plugins = ['io.containerd.cri.v1.runtime']\n".into(),
            (REFUSED, "take \"io.containerd.cri.v1.runtime\" out"),
            (REFUSED, "take \"io.containerd.cri.v1.runtime\" out"),
        ),
        case("settings that each version reads", "oom_score = -999\n[grpc]\n  uid = 0\n".into(), (BOTH, "version = 2\n"), (BOTH, "version = 3\n")),
        case("version 1", runtime(CRI_1, "mine"), (&["hearth", "mine"], "[plugins.cri.containerd.runtimes.hearth]"), (REFUSED, "version 1")),
        case("version 1, said", format!("version = 1\n{}", runtime(CRI_1, "mine")), (&["hearth", "mine"], "version = 1\n"), (REFUSED, "version 1")),
        case("version 2", "version = 2\n".into(), (BOTH, "version = 2\n"), (BOTH, "version = 2\nimports = [")),
        case(
            "version 2 with a runtime",
            format!("version = 2\n\n# Runtimes.\n{}# The end.\n", runtime(CRI_2, "mine")),
            (&["hearth", "mine"], "# The end.\n"),
            (&["hearth", "mine", "runc"], "# The end.\n"),
        ),
        case(
            "version 3 with a runtime",
            format!("version = 3\n{}", runtime(CRI_3, "mine")),
            (REFUSED, "version 3"),
            (&["hearth", "mine", "runc"], "version = 3\nimports = ["),
        ),
        case(
            "Debian's",
            "version = 2\n\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    [plugins.\"io.containerd.grpc.v1.cri\".cni]\n      \
             bin_dir = \"/usr/lib/cni\"\n      conf_dir = \"/etc/cni/net.d\"\n  [plugins.\"io.containerd.internal.v1.opt\"]\n    \
             path = \"/var/lib/containerd\"\n".into(),
            (BOTH, "      conf_dir = \"/etc/cni/net.d\"\n"),
            (BOTH, "version = 2\nimports = ["),
        ),
        case(
            "lines that end as on Windows",
            format!("version = 2\n# Mine.\n{}", runtime(CRI_2, "mine")).replace('\n', "\r\n"),
            (&["hearth", "mine"], "# Mine.\r\n"),
            (&["hearth", "mine", "runc"], "# Mine.\r\n"),
        ),
        case(
            "two kinds of quotes",
            format!("version = 2\n{}[plugins.\"io.containerd.grpc.v1.cri\".cni]\nconf_dir = '/my/cni'", runtime(CRI_2, "mine")),
            (&["hearth", "mine"], "[plugins.\"io.containerd.grpc.v1.cri\".cni]\nconf_dir = '/my/cni'"),
            (&["hearth", "mine", "runc"], "[plugins.\"io.containerd.grpc.v1.cri\".cni]\nconf_dir = '/my/cni'"),
        ),
        refused("no TOML", "version = [\n".into(), "not TOML"),
        refused("a template", "{{ template \"base\" . }}\n".into(), "--flavor"),
        refused("a version that is a text", "version = '2'\n".into(), "no number"),
        // containerd itself is asked before anything is replaced.
        refused("a value that containerd refuses", "version = 2\noom_score = 'high'\n".into(), "refuses"),
    ]
}

#[test]
fn each_containerd_has_the_handler_that_was_installed_or_nothing_is_changed() {
    for containerd in containerds() {
        for case in cases() {
            let site = Site::with(containerd, &case.text);
            let before = site.files();
            let (handlers, part) = if containerd.is_1() { case.on_1 } else { case.on_2 };
            let at = format!("containerd {}x, {}", containerd.release, case.name);
            if handlers.is_empty() {
                let said = site.fails("install");
                assert!(said.contains(part), "{at}: {said}");
                assert_eq!(site.files(), before, "{at}");
                continue;
            }
            let said = site.succeeds("install");
            assert!(said.contains("has the handler \"hearth\""), "{at}: {said}");
            let wanted: BTreeSet<String> = handlers.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(containerd.handlers(&site.config()), wanted, "{at}:\n{}", site.text());
            let installed = site.text();
            assert!(installed.contains(part), "{at}: {part:?} is not in\n{installed}");
            for line in case.text.split_inclusive('\n') {
                assert!(installed.contains(line), "{at}: {line:?} is not in\n{installed}");
            }
            let lone_ends = installed.replace("\r\n", "").contains('\n');
            assert_eq!(lone_ends, !case.text.contains("\r\n"), "{at}:\n{installed:?}");
            let files = site.files();
            assert_eq!(site.succeeds("install"), "nothing to change\n", "{at}");
            assert_eq!(site.files(), files, "{at}");
            site.succeeds("uninstall");
            assert_eq!(site.files(), before, "{at}");
            assert_eq!(site.succeeds("uninstall"), "nothing to change\n", "{at}");
        }
    }
}

#[test]
fn what_was_written_since_stays_and_each_containerd_reads_what_is_left() {
    for containerd in containerds() {
        for text in ["# Mine.\n", "version = 2\n", "version = 2\r\n"] {
            let site = Site::with(containerd, text);
            site.succeeds("install");
            let end = if text.contains('\r') { "\r\n" } else { "\n" };
            fs::write(site.config(), format!("{}{end}# Since.{end}[debug]{end}level = 'warn'{end}", site.text()))
                .unwrap();
            site.succeeds("uninstall");
            let left = site.text();
            assert!(left.contains(&format!("# Since.{end}[debug]{end}")) && !left.contains("hearth"), "{left}");
            assert!(left.contains(text), "{left}");
            assert_eq!(site.files().len(), 1, "{:?}", site.files());
            assert_eq!(containerd.handlers(&site.config()), BTreeSet::from(["runc".to_owned()]), "{left}");
        }
    }
}

#[test]
fn a_missing_file_is_made_and_removed_again() {
    for containerd in containerds() {
        let site = Site::new(containerd);
        let said = site.succeeds("install");
        assert!(said.contains("made ") && said.contains("has the handler"), "{said}");
        assert_eq!(containerd.handlers(&site.config()), BOTH.iter().map(|name| (*name).to_owned()).collect());
        let version = if containerd.is_1() { "version = 2\n" } else { "version = 3\n" };
        assert!(site.text().starts_with(version), "{}", site.text());
        site.succeeds("uninstall");
        assert!(site.files().is_empty(), "{:?}", site.files());
    }
}

#[test]
fn links_modes_and_owners_stay() {
    let containerd = &containerds()[0];
    let site = Site::with(containerd, "");
    fs::remove_file(site.config()).unwrap();
    let file = site.directory.path().join("linked.toml");
    symlink("linked.toml", site.config()).unwrap();
    let said = site.fails("install");
    assert!(said.contains("symbolic link to a file that does not exist"), "{said}");
    assert_eq!(site.files().len(), 1, "{:?}", site.files());
    fs::write(&file, "version = 2\n# Mine.\n").unwrap();
    // Read-only to all, and not root's.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o440)).unwrap();
    std::os::unix::fs::chown(&file, Some(1234), Some(2345)).unwrap();
    site.succeeds("install");
    assert!(fs::symlink_metadata(site.config()).unwrap().is_symlink());
    let backup = site.directory.path().join("config.toml.before-hearth");
    for path in [&file, &backup] {
        let metadata = fs::metadata(path).unwrap();
        assert_eq!(
            (metadata.mode() & 0o7777, metadata.uid(), metadata.gid()),
            (0o440, 1234, 2345),
            "{}",
            path.display()
        );
    }
    assert!(fs::read_to_string(&file).unwrap().contains("io.containerd.hearth.v1"));
    site.succeeds("uninstall");
    assert_eq!(fs::read_to_string(&file).unwrap(), "version = 2\n# Mine.\n");
}

#[test]
fn an_import_that_hides_the_handler_is_told_and_nothing_is_changed() {
    let containerd = &containerds()[0];
    let site = Site::with(containerd, "");
    let imported = site.directory.path().join("imported.toml");
    fs::write(&imported, format!("version = 2\n{}", runtime(CRI_2, "mine"))).unwrap();
    fs::write(site.config(), "version = 2\nimports = ['imported.toml']\n").unwrap();
    let before = site.files();
    let said = site.fails("install");
    assert!(said.contains("has no handler \"hearth\"") && said.contains("--config"), "{said}");
    assert_eq!(site.files(), before);
    // CRI turned off by an import.
    for containerd in containerds() {
        let site = Site::with(containerd, "version = 2\nimports = ['imported.toml']\n");
        let imported = site.directory.path().join("imported.toml");
        fs::write(&imported, "version = 2\ndisabled_plugins = ['io.containerd.grpc.v1.cri']\n").unwrap();
        let before = site.files();
        let said = site.fails("install");
        assert!(said.contains("or a file that it imports") && said.contains("out of disabled_plugins"), "{said}");
        assert_eq!(site.files(), before);
    }
}

#[test]
fn a_template_of_k3s_gets_a_block_that_each_containerd_reads() {
    for containerd in containerds() {
        let (version, name, cri) = match containerd.is_1() {
            true => (2, "config.toml.tmpl", CRI_2),
            false => (3, "config-v3.toml.tmpl", CRI_3),
        };
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("var/lib/rancher/k3s/agent/etc/containerd");
        fs::create_dir_all(&directory).unwrap();
        let base =
            format!("version = {version}\nroot = \"/var/lib/rancher/k3s/agent/containerd\"\n{}", runtime(cri, "runc"));
        fs::write(directory.join("config.toml"), &base).unwrap();
        for users in [None, Some("{{ template \"base\" . }}\n\n[debug]\n  level = \"warn\"\n")] {
            let template = directory.join(name);
            users.iter().for_each(|users| fs::write(&template, users).unwrap());
            let run = |action: &str| {
                let mut command = Command::new(env!("CARGO_BIN_EXE_hearthctl"));
                let output = command.args([action, "containerd", "--root"]).arg(root.path()).output().unwrap();
                let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
                assert!(output.status.success(), "{said}");
                said
            };
            assert!(run("install").contains("was not asked"));
            let text = fs::read_to_string(&template).unwrap();
            assert_eq!(run("install"), "nothing to change\n");
            // As k3s makes the configuration from it.
            let made = root.path().join("made.toml");
            fs::write(&made, text.replace("{{ template \"base\" . }}\n", &base)).unwrap();
            assert_eq!(containerd.handlers(&made), BOTH.iter().map(|name| (*name).to_owned()).collect(), "{text}");
            run("uninstall");
            assert_eq!(fs::read_to_string(&template).ok().as_deref(), users);
        }
    }
}
