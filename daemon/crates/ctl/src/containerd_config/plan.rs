//! Which files are changed, and to what. Pure: what is there goes in, what shall be there comes out.
//!
//! | containerd | its configuration | how |
//! |---|---|---|
//! | 2.x | `version` 2 or 3, or there is none | a drop-in of the same version, imported |
//! | 2.x | `version` 1 | refused: 2.x loses the runtimes of such a file by itself |
//! | 1.x | any | edited: an import would replace all that the file says about CRI |
//! | k3s, RKE2 | a template, from which they make the configuration at each start | a block at its end |
//! | microk8s | a template that is TOML | edited |

use std::path::{Path, PathBuf};

use super::edit::{self, ConfigVersion, Handler};

/// Who keeps containerd's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Flavor {
    /// containerd itself, or a package of it.
    Containerd,
    /// k3s.
    K3s,
    /// RKE2.
    Rke2,
    /// microk8s.
    Microk8s,
}

/// What is known of the node.
#[derive(Debug, Clone)]
pub struct ConfigSite {
    /// Who keeps the configuration.
    pub flavor: Flavor,
    /// containerd's main configuration file, or the template it is made from.
    pub config: PathBuf,
    /// Where a drop-in goes.
    pub drop_in: PathBuf,
    /// The first number of containerd's version.
    pub major: u32,
}

/// A file, as it is and as it shall be; none: there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileChange {
    /// Where.
    pub path: PathBuf,
    /// What is there.
    pub before: Option<String>,
    /// What shall be there.
    pub after: Option<String>,
}

/// What a k3s or RKE2 template begins with that adds to theirs.
const BASE: &str = "{{ template \"base\" . }}\n";

/// Around what is ours in a template.
const BEGIN: &str = "# BEGIN hearth (hearthctl install containerd)\n";
const END: &str = "# END hearth\n";

/// How the backup of a file is called.
pub fn backup(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".before-hearth");
    name.into()
}

/// What an installation changes; files that are as they shall be are left out. `read` gives a file's text.
///
/// # Errors
/// One line: what stands in the way, and what to do.
pub fn install(
    node: &ConfigSite,
    handler: &Handler,
    read: impl Fn(&Path) -> Result<Option<String>, String>,
) -> Result<Vec<FileChange>, String> {
    let config = read(&node.config)?;
    let text = config.clone().unwrap_or_default();
    let named = |e: String| format!("{} {e}", node.config.display());
    if handler.sandboxer.is_some() && node.major < 2 {
        return Err("containerd 1.x has no sandbox controllers: leave --sandboxer out, or upgrade containerd".into());
    }
    let mut changes = Vec::new();
    let mut change = |path: &Path, before: Option<String>, after: String| {
        if before.as_ref() != Some(&after) {
            changes.push(FileChange { path: path.to_owned(), before, after: Some(after) });
        }
    };
    match node.flavor {
        Flavor::K3s | Flavor::Rke2 => {
            let version = if node.major >= 2 { ConfigVersion::Three } else { ConfigVersion::Two };
            change(&node.config, config, with_block(&text, version, handler));
        }
        Flavor::Microk8s if config.is_none() => {
            return Err(format!("{} is missing: is this microk8s? --config names another", node.config.display()));
        }
        Flavor::Containerd if node.major >= 2 => {
            let version = match ConfigVersion::of(&text).map_err(named)? {
                None => ConfigVersion::Three,
                Some(ConfigVersion::One) => {
                    return Err(format!(
                        "{} is of version 1, whose runtimes containerd 2.x loses: make it version 2 first, with \
                         plugins.\"io.containerd.grpc.v1.cri\" for plugins.cri",
                        node.config.display()
                    ));
                }
                Some(version) => version,
            };
            let drop_in = node.drop_in.display().to_string();
            let after = edit::with_import(&text, version, &drop_in).map_err(named)?;
            change(&node.drop_in, read(&node.drop_in)?, edit::drop_in(version, handler));
            change(&node.config, config, after);
        }
        Flavor::Containerd | Flavor::Microk8s => {
            let version = ConfigVersion::of(&text).map_err(named)?.unwrap_or(ConfigVersion::Two);
            change(&node.config, config, edit::with_handler(&text, version, handler).map_err(named)?);
        }
    }
    Ok(changes)
}

/// What an uninstallation changes: a file that is as the installation left it becomes what its backup is; from
/// one that was changed since, ours is taken out. The backups go.
///
/// # Errors
/// As [`install`].
pub fn uninstall(
    node: &ConfigSite,
    handler: &Handler,
    read: impl Fn(&Path) -> Result<Option<String>, String>,
) -> Result<Vec<FileChange>, String> {
    let mut changes = Vec::new();
    let mut change = |path: &Path, before: Option<String>, after: Option<String>| {
        if before != after {
            changes.push(FileChange { path: path.to_owned(), before, after });
        }
    };
    if node.flavor == Flavor::Containerd {
        change(&node.drop_in, read(&node.drop_in)?, None);
    }
    let saved = read(&backup(&node.config))?;
    if let Some(text) = read(&node.config)? {
        // As the installation would leave it: from the backup, or from nothing.
        let installed = |from: Option<&String>| {
            let pretend = |path: &Path| if path == node.config { Ok(from.cloned()) } else { Ok(None) };
            let changes = install(node, handler, pretend).unwrap_or_default();
            changes.into_iter().find(|change| change.path == node.config).and_then(|change| change.after)
        };
        let after = if saved.is_some() && installed(saved.as_ref()).as_ref() == Some(&text) {
            saved.clone()
        } else if saved.is_none() && installed(None).as_ref() == Some(&text) {
            None
        } else {
            Some(taken_out(node, handler, &text).map_err(|e| format!("{} {e}", node.config.display()))?)
        };
        change(&node.config, Some(text), after);
    }
    change(&backup(&node.config), saved, None);
    Ok(changes)
}

fn taken_out(node: &ConfigSite, handler: &Handler, text: &str) -> Result<String, String> {
    match node.flavor {
        Flavor::K3s | Flavor::Rke2 => Ok(without_block(text)),
        Flavor::Containerd | Flavor::Microk8s => {
            let Some(version) = ConfigVersion::of(text)? else { return Ok(text.to_owned()) };
            let text = edit::without_handler(text, version, &handler.name)?;
            edit::without_import(&text, &node.drop_in.display().to_string())
        }
    }
}

fn with_block(text: &str, version: ConfigVersion, handler: &Handler) -> String {
    let ours = edit::drop_in(version, handler);
    // The template's own configuration has the version and comments.
    let tables = ours.lines().filter(|line| !line.starts_with('#') && !line.starts_with("version"));
    let tables: String = tables.skip_while(|line| line.is_empty()).map(|line| format!("{line}\n")).collect();
    let rest = match text.is_empty() {
        true => BASE.to_owned(),
        false => without_block(text),
    };
    format!("{rest}{BEGIN}{tables}{END}")
}

fn without_block(text: &str) -> String {
    let Some((before, rest)) = text.split_once(BEGIN) else { return text.to_owned() };
    format!("{before}{}", rest.split_once(END).map_or("", |(_, after)| after))
}

#[cfg(test)]
mod tests {
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

        /// As the command does, backup included.
        fn apply(&mut self, changes: Vec<FileChange>, backs_up: bool) {
            for change in changes {
                if let (true, Some(before)) = (backs_up, change.before) {
                    self.0.entry(backup(&change.path)).or_insert(before);
                }
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
            (Flavor::Containerd, 1, None),
            (Flavor::Containerd, 2, Some("version = 2\n[grpc]\naddress = '/x'\n")),
            (Flavor::Containerd, 2, Some("version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n")),
            (Flavor::Containerd, 2, None),
            (Flavor::K3s, 2, None),
            (Flavor::Rke2, 1, Some(template)),
            (Flavor::Microk8s, 1, Some("version = 2\nsnapshotter = \"${SNAPSHOTTER}\"\n")),
        ] {
            let node = node(flavor, major);
            let before = users.map_or_else(Files::default, |users| Files::with(CONFIG, users));
            let mut files = before.clone();
            let changes = install(&node, &handler(), |path| files.read(path)).unwrap();
            files.apply(changes, true);
            let all: String = files.0.values().cloned().collect();
            assert!(all.contains("io.containerd.hearth.v1"), "{flavor:?} {major} {users:?}: {files:?}");
            assert_eq!(install(&node, &handler(), |path| files.read(path)).unwrap(), []);
            let changes = uninstall(&node, &handler(), |path| files.read(path)).unwrap();
            files.apply(changes, false);
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
            files.apply(install(&node, &handler(), |path| files.read(path)).unwrap(), true);
            let changed = files.0[Path::new(CONFIG)].clone() + "\n[debug]\nlevel = 'info'\n";
            files.0.insert(CONFIG.into(), changed);
            files.apply(uninstall(&node, &handler(), |path| files.read(path)).unwrap(), false);
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
        let old = refused(&node(Flavor::Containerd, 2), &handler(), "oom_score = 1\n");
        assert!(old.contains("version 1"), "{old}");
        let controller = Handler { sandboxer: Some("/s".into()), ..handler() };
        let none = refused(&node(Flavor::Containerd, 1), &controller, "version = 2\n");
        assert!(none.contains("--sandboxer"), "{none}");
    }
}
