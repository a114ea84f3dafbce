//! An installation and its removal, on files in memory.

use std::collections::BTreeMap;

use super::*;

/// A node's files.
#[derive(Default, Clone, PartialEq, Debug)]
struct Files(BTreeMap<PathBuf, String>);

impl Files {
    fn with(path: &str, text: &str) -> Files {
        Files(BTreeMap::from([(path.into(), text.into())]))
    }

    fn read(&self, path: &Path) -> Result<Option<String>, String> {
        Ok(self.0.get(path).cloned())
    }

    fn apply(&mut self, changes: Vec<FileChange>) {
        for change in changes {
            match change.after {
                Some(after) => self.0.insert(change.path, after),
                None => self.0.remove(&change.path),
            };
        }
    }
}

fn handler() -> Handler {
    Handler { name: "hearth".into(), runtime_path: None, sandboxer: None }
}

fn node(flavor: Flavor, major: u32) -> ConfigSite {
    let (config, drop_in) = ("/etc/containerd/config.toml".into(), "/etc/containerd/conf.d/hearth.toml".into());
    ConfigSite { flavor, config, drop_in, major }
}

const CONFIG: &str = "/etc/containerd/config.toml";

#[test]
fn an_installation_is_done_once_and_undone_wholly() {
    let template = "{{ template \"base\" . }}\n[plugins.x]\ny = 1\n";
    for (flavor, major, users) in [
        (Flavor::Containerd, 1, Some("version = 2\n# mine\n[grpc]\naddress = '/x'\n")),
        (Flavor::Containerd, 1, Some("oom_score = 3 # and so on\n")),
        (Flavor::Containerd, 1, Some("# Nothing but comments.\n#[grpc]\n")),
        (Flavor::Containerd, 1, Some("disabled_plugins = []\n")),
        (Flavor::Containerd, 1, Some("version = 2\r\n[grpc]\r\naddress = '/x'\r\n")),
        (Flavor::Containerd, 1, Some("version = 2\n[grpc]\naddress = '/x'")),
        (Flavor::Containerd, 1, None),
        (Flavor::Containerd, 2, Some("version = 2\n[grpc]\naddress = '/x'\n")),
        (Flavor::Containerd, 2, Some("version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n")),
        (Flavor::Containerd, 2, Some("# Nothing but comments.\n#[grpc]\n")),
        (Flavor::Containerd, 2, None),
        (Flavor::K3s, 2, None),
        (Flavor::Rke2, 1, Some(template)),
        (Flavor::Microk8s, 1, Some("version = 2\nsnapshotter = \"${SNAPSHOTTER}\"\n")),
    ] {
        let node = node(flavor, major);
        let before = users.map_or_else(Files::default, |users| Files::with(CONFIG, users));
        let mut files = before.clone();
        let changes = install(&node, &handler(), |path| files.read(path)).unwrap();
        files.apply(changes);
        let all: String = files.0.values().cloned().collect();
        assert!(all.contains("io.containerd.hearth.v1"), "{flavor:?} {major} {users:?}: {files:?}");
        assert_eq!(install(&node, &handler(), |path| files.read(path)).unwrap(), []);
        let changes = uninstall(&node, &handler(), |path| files.read(path)).unwrap();
        files.apply(changes);
        assert_eq!(files, before, "{flavor:?} {major}");
        assert_eq!(uninstall(&node, &handler(), |path| files.read(path)).unwrap(), []);
    }
}

#[test]
fn what_was_changed_since_stays() {
    for (flavor, major) in [(Flavor::Containerd, 1), (Flavor::Containerd, 2), (Flavor::K3s, 2)] {
        let node = node(flavor, major);
        let users = if flavor == Flavor::K3s { BASE } else { "version = 2\n" };
        let mut files = Files::with(CONFIG, users);
        files.apply(install(&node, &handler(), |path| files.read(path)).unwrap());
        let changed = files.0[Path::new(CONFIG)].clone() + "\n[debug]\nlevel = 'info'\n";
        files.0.insert(CONFIG.into(), changed);
        files.apply(uninstall(&node, &handler(), |path| files.read(path)).unwrap());
        let left = &files.0[Path::new(CONFIG)];
        assert!(left.contains("level = 'info'") && !left.contains("hearth"), "{left}");
        assert_eq!(files.0.len(), 1, "{files:?}");
    }
}

#[test]
fn what_cannot_work_is_refused() {
    let refused = |node: &ConfigSite, handler: &Handler, text: &str| {
        install(node, handler, |_| Ok(Some(text.into()))).unwrap_err()
    };
    let old = refused(&node(Flavor::Containerd, 2), &handler(), "[plugins.cri]\n");
    assert!(old.contains("version 1"), "{old}");
    let new = refused(&node(Flavor::Containerd, 1), &handler(), "version = 3\n");
    assert!(new.contains("version 3"), "{new}");
    for name in ["cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images"] {
        for (major, version) in [(1, ""), (1, "version = 2\n"), (2, "version = 2\n"), (2, "version = 3\n")] {
            let text = format!("{version}disabled_plugins = ['aufs', '{name}']\n");
            let disabled = refused(&node(Flavor::Containerd, major), &handler(), &text);
            assert!(disabled.contains(&format!("take {name:?} out of disabled_plugins")), "{disabled}");
        }
    }
    let controller = Handler { sandboxer: Some("/s".into()), ..handler() };
    let none = refused(&node(Flavor::Containerd, 1), &controller, "version = 2\n");
    assert!(none.contains("--sandboxer"), "{none}");
}

#[test]
fn a_changed_file_keeps_the_runc_that_it_had_and_loses_the_one_that_was_added() {
    let node = node(Flavor::Containerd, 1);
    let runc =
        "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n";
    for (users, has_runc) in [("version = 2\n".to_owned(), false), (format!("version = 2\n{runc}"), true)] {
        let mut files = Files::with(CONFIG, &users);
        files.apply(install(&node, &handler(), |path| files.read(path)).unwrap());
        let changed = files.0[Path::new(CONFIG)].clone() + "\n# Since.\n[debug]\nlevel = 'info'\n";
        files.0.insert(CONFIG.into(), changed);
        files.apply(uninstall(&node, &handler(), |path| files.read(path)).unwrap());
        let left = &files.0[Path::new(CONFIG)];
        assert!(left.contains("# Since.") && !left.contains("hearth"), "{left}");
        assert_eq!(left.contains("runtimes.runc"), has_runc, "{left}");
    }
}

#[test]
fn options_in_the_file_are_undone_without_naming_them() {
    let node = node(Flavor::Containerd, 1);
    let users = Files::with(CONFIG, "version = 2 # mine\n");
    let mut files = users.clone();
    let elsewhere = Handler { runtime_path: Some("/opt/hearth/bin/shim".into()), ..handler() };
    files.apply(install(&node, &handler(), |path| files.read(path)).unwrap());
    files.apply(install(&node, &elsewhere, |path| files.read(path)).unwrap());
    files.apply(uninstall(&node, &handler(), |path| files.read(path)).unwrap());
    assert_eq!(files, users);
}

#[test]
fn a_backup_that_a_removal_by_hand_has_made_stale_is_replaced() {
    let node = node(Flavor::Containerd, 1);
    let mut files = Files::with(CONFIG, "version = 2\n");
    files.apply(install(&node, &handler(), |path| files.read(path)).unwrap());
    let by_hand = Files::with(CONFIG, "version = 2\n# By hand.\n");
    files.0.extend(by_hand.0.clone());
    files.apply(install(&node, &handler(), |path| files.read(path)).unwrap());
    files.apply(uninstall(&node, &handler(), |path| files.read(path)).unwrap());
    assert_eq!(files, by_hand);
}
