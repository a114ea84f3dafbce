//! Which files are changed, and how. Pure: the present texts go in, the wanted texts come out.
//!
//! | containerd | its configuration | how |
//! |---|---|---|
//! | 2.x | `version` 2 or 3 | a drop-in of the same version, imported: 2.1 drops the runtimes of one of the two files if their versions differ |
//! | 2.x | none, or one in which nothing depends on the version | a drop-in of version 3, imported; the file gets `version = 3` |
//! | 2.x | `version` 1 | refused: 2.0 and 2.1 drop the runtimes of such a file |
//! | 1.x | `version` 1 or 2 | edited: an import would replace all that the file says about CRI |
//! | 1.x | none, or one in which nothing depends on the version | edited; the file gets `version = 2` |
//! | k3s, RKE2 | a template, from which they make the configuration at each start | a block at its end |
//! | microk8s | a template that is TOML | edited |
//!
//! A file that turns containerd's CRI plugin off is refused: no handler is used without it.

use std::path::{Path, PathBuf};

use super::edit::{self, ConfigVersion, Handler};

/// The distribution that keeps containerd's configuration.
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

/// The containerd of the node and its configuration.
#[derive(Debug, Clone)]
pub struct ConfigSite {
    /// The distribution that keeps it.
    pub flavor: Flavor,
    /// containerd's main configuration file, or the template it is made from.
    pub config: PathBuf,
    /// Where a drop-in goes.
    pub drop_in: PathBuf,
    /// The first number of containerd's release.
    pub major: u32,
}

/// A file as it is and as it has to be; none: there is no such file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileChange {
    /// The path on the node.
    pub path: PathBuf,
    /// The present text.
    pub before: Option<String>,
    /// The wanted text.
    pub after: Option<String>,
}

/// The first line of a k3s or RKE2 template that adds to the built-in one.
const BASE: &str = "{{ template \"base\" . }}\n";

/// The lines around the block in a template.
const BEGIN: &str = "# BEGIN hearth (hearthctl install containerd)\n";
const END: &str = "# END hearth\n";

/// The path of a file's backup.
pub fn backup(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".before-hearth");
    name.into()
}

/// The changes of an installation; a file that is as it has to be is left out. The order is that in which they are
/// made: drop-in, backup, configuration. `read` gives a file's text.
///
/// # Errors
/// One line: the obstacle and the remedy.
pub fn install(
    site: &ConfigSite,
    handler: &Handler,
    read: impl Fn(&Path) -> Result<Option<String>, String>,
) -> Result<Vec<FileChange>, String> {
    let config = read(&site.config)?;
    let saved = read(&backup(&site.config))?;
    let mut changes = Vec::new();
    let mut change = |path: &Path, before: Option<String>, after: String| {
        if before.as_ref() != Some(&after) {
            changes.push(FileChange { path: path.to_owned(), before, after: Some(after) });
        }
    };
    let text = config.clone().unwrap_or_default();
    let installed = installed(site, handler, config.as_deref())?;
    if site.uses_drop_in() {
        let version = version_of(site, &text)?;
        change(&site.drop_in, read(&site.drop_in)?, edit::drop_in(version, handler));
    }
    if installed != text {
        // A backup of an earlier installation is of no use once the handler was taken out by hand.
        if config.is_some() && (saved.is_none() || !has_handler(site, &handler.name, &text)) {
            change(&backup(&site.config), saved, text);
        }
        change(&site.config, config, installed);
    }
    Ok(changes)
}

impl ConfigSite {
    /// Whether the handler goes into a file of its own.
    pub fn uses_drop_in(&self) -> bool {
        self.flavor == Flavor::Containerd && self.major >= 2
    }

    /// Whether containerd reads the configuration file as it is: a template is no configuration yet.
    pub fn is_read_by_containerd(&self) -> bool {
        self.flavor == Flavor::Containerd
    }

    fn named(&self, error: impl std::fmt::Display) -> String {
        format!("{} {error}", self.config.display())
    }
}

/// The text of the configuration with the handler; `config`: the present one.
fn installed(site: &ConfigSite, handler: &Handler, config: Option<&str>) -> Result<String, String> {
    let text = config.unwrap_or_default();
    if handler.sandboxer.is_some() && site.major < 2 {
        return Err("containerd 1.x has no sandbox controllers: leave --sandboxer out, or upgrade containerd".into());
    }
    if matches!(site.flavor, Flavor::K3s | Flavor::Rke2) {
        return Ok(with_block(text, ConfigVersion::newest_for(site.major), handler));
    }
    if site.flavor == Flavor::Microk8s && config.is_none() {
        return Err(site.named("is missing: is this microk8s? --config names another file"));
    }
    // (A text that is no TOML is told with its version.)
    if let Some(name) = edit::disabled_cri(text).ok().flatten() {
        return Err(site.named(disabled(&name)));
    }
    let version = version_of(site, text)?;
    let edited = match site.uses_drop_in() {
        true => edit::with_import(text, version, &site.drop_in.display().to_string()),
        false => edit::with_handler(text, version, handler),
    };
    edited.map_err(|e| site.named(e))
}

/// The error for a configuration that turns CRI off, with the remedy.
pub fn disabled(name: &str) -> String {
    format!(
        "turns containerd's CRI plugin off, without which no runtime handler is used: take {name:?} out of \
         disabled_plugins, then run this again (ctr and Docker name the runtime themselves and need no handler)"
    )
}

/// The version of the configuration, or the one it gets.
fn version_of(site: &ConfigSite, text: &str) -> Result<ConfigVersion, String> {
    let is_template = text.contains("{{");
    let version = ConfigVersion::of(text).map_err(|e| match is_template {
        true => site.named(format!("{e}; for a template, name its distribution with --flavor")),
        false => site.named(e),
    })?;
    match version {
        None => Ok(ConfigVersion::newest_for(site.major)),
        Some(ConfigVersion::One) if site.major >= 2 => Err(site.named(
            "is of version 1, whose runtimes containerd 2.x loses: make it version 2 first, with \
             plugins.\"io.containerd.grpc.v1.cri\" for plugins.cri",
        )),
        Some(ConfigVersion::Three) if site.major < 2 => {
            Err(site.named("is of version 3, which containerd 1.x does not read: make it version 2 first"))
        }
        Some(version) => Ok(version),
    }
}

/// Whether a configuration has the additions of an installation.
fn has_handler(site: &ConfigSite, name: &str, text: &str) -> bool {
    match site.flavor {
        Flavor::K3s | Flavor::Rke2 => text.contains(BEGIN),
        // (The import is the only thing that is added: if it is missing, nothing was added.)
        Flavor::Containerd if site.major >= 2 => false,
        Flavor::Containerd | Flavor::Microk8s => {
            let version = ConfigVersion::of(text).ok().flatten().unwrap_or(ConfigVersion::Two);
            edit::handler_in(text, version, name).is_ok_and(|found| found.is_some())
        }
    }
}

/// The changes of an uninstallation, in the order in which they are made. A file that is as the installation left it
/// becomes its backup; from a file that was changed since, the additions are taken out. The backup is removed.
///
/// # Errors
/// As [`install`].
pub fn uninstall(
    site: &ConfigSite,
    handler: &Handler,
    read: impl Fn(&Path) -> Result<Option<String>, String>,
) -> Result<Vec<FileChange>, String> {
    let mut changes = Vec::new();
    let mut change = |path: &Path, before: Option<String>, after: Option<String>| {
        if before != after {
            changes.push(FileChange { path: path.to_owned(), before, after });
        }
    };
    let saved = read(&backup(&site.config))?;
    if let Some(text) = read(&site.config)? {
        let after = uninstalled(site, handler, &text, saved.as_deref())?;
        change(&site.config, Some(text), after);
    }
    if site.flavor == Flavor::Containerd {
        change(&site.drop_in, read(&site.drop_in)?, None);
    }
    change(&backup(&site.config), saved, None);
    Ok(changes)
}

/// The text of the configuration without the handler; none: the installation made the file.
fn uninstalled(
    site: &ConfigSite,
    handler: &Handler,
    text: &str,
    saved: Option<&str>,
) -> Result<Option<String>, String> {
    // The options are those in the file: the command line of an uninstallation need not repeat them.
    let handler = installed_handler(site, handler, text);
    if installed(site, &handler, saved).ok().as_deref() == Some(text) {
        return Ok(saved.map(str::to_owned));
    }
    if matches!(site.flavor, Flavor::K3s | Flavor::Rke2) {
        let rest = without_block(text);
        return Ok((saved.is_some() || rest != BASE).then_some(rest));
    }
    let Some(version) = ConfigVersion::of(text).map_err(|e| site.named(e))? else {
        return edit::without_import(text, &site.drop_in.display().to_string()).map(Some).map_err(|e| site.named(e));
    };
    let without = edit::without_handler(text, version, &handler.name, saved)
        .and_then(|text| edit::without_import(&text, &site.drop_in.display().to_string()));
    without.map(Some).map_err(|e| site.named(e))
}

fn installed_handler(site: &ConfigSite, handler: &Handler, text: &str) -> Handler {
    let found = match site.flavor {
        Flavor::K3s | Flavor::Rke2 => None,
        Flavor::Containerd | Flavor::Microk8s => ConfigVersion::of(text).ok().flatten(),
    };
    let found = found.and_then(|version| edit::handler_in(text, version, &handler.name).ok().flatten());
    found.unwrap_or_else(|| Handler { sandboxer: None, ..handler.clone() })
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
mod tests;
