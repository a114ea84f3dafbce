//! `hearthctl install containerd` and `hearthctl uninstall containerd`: the runtime handler in containerd's
//! configuration.
//!
//! * [`edit`]: the text of one configuration.
//! * [`plan`]: which files are changed, by containerd's version and who keeps its configuration.
//!
//! A file that is edited is saved beside itself first, replaced as a whole, and keeps its mode. containerd is
//! never restarted unless `--restart` says so.

pub mod edit;
pub mod plan;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use edit::Handler;
use plan::{ConfigSite, FileChange, Flavor, backup};
use similar::TextDiff;

/// What the command line says, for both.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Who keeps containerd's configuration [default: what is found on the node]
    #[arg(long, value_enum, value_name = "WHO")]
    flavor: Option<Flavor>,
    /// containerd's configuration file, or the template it is made from [default: where that one has it]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the piece for an import goes, on containerd 2.x
    #[arg(long, value_name = "FILE", default_value = "/etc/containerd/conf.d/hearth.toml")]
    drop_in: PathBuf,
    /// The containerd whose version is asked for
    #[arg(long, value_name = "PROGRAM", default_value = "containerd")]
    containerd: PathBuf,
    /// Its version, instead of asking, e.g. 1.7
    #[arg(long, value_name = "VERSION")]
    containerd_version: Option<String>,
    /// The handler's name, as a RuntimeClass says it
    #[arg(long, value_name = "NAME", default_value = "hearth", value_parser = handler_name)]
    handler: String,
    /// Where the shim is, if it is not in containerd's PATH
    #[arg(long, value_name = "PROGRAM")]
    runtime_path: Option<PathBuf>,
    /// Have hearthd's sandbox controller make the pods (containerd 2.x): no process is started for a pod
    #[arg(long, value_name = "SOCKET", num_args = 0..=1, default_missing_value = "/run/hearth/sandboxer.sock")]
    sandboxer: Option<PathBuf>,
    /// Work below this directory, which is a node's root mounted here
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Show what would change, as a diff, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Restart containerd (or k3s, …) afterwards if something changed; running containers go on
    #[arg(long, conflicts_with = "dry_run")]
    restart: bool,
}

fn handler_name(name: &str) -> Result<String, String> {
    let is_right = !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if is_right { Ok(name.into()) } else { Err("a RuntimeClass takes lower-case letters, digits and -".into()) }
}

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Put the handler in.
    Install,
    /// Take it out.
    Uninstall,
}

/// Does it, and says what was done.
///
/// # Errors
/// One line: what stands in the way, and what to do.
pub fn run(action: Action, args: &Args, out: &mut impl Write) -> Result<(), String> {
    let node = node(action, args)?;
    let text = |path: &PathBuf| path.display().to_string();
    let handler = Handler {
        name: args.handler.clone(),
        runtime_path: args.runtime_path.as_ref().map(text),
        sandboxer: args.sandboxer.as_ref().map(text),
    };
    let on_disk = |path: &Path| below(args.root.as_deref(), path);
    let read = |path: &Path| match std::fs::read_to_string(on_disk(path)) {
        Ok(text) => Ok(Some(text)),
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(format!("cannot read {}: {e}", on_disk(path).display())),
    };
    let changes = match action {
        Action::Install => plan::install(&node, &handler, read)?,
        Action::Uninstall => plan::uninstall(&node, &handler, read)?,
    };
    let say = |out: &mut dyn Write, text: String| writeln!(out, "{text}").map_err(|e| format!("cannot print: {e}"));
    if changes.is_empty() {
        return say(out, "nothing to change".into());
    }
    for change in &changes {
        if args.dry_run {
            write!(out, "{}", diff(change)).map_err(|e| format!("cannot print: {e}"))?;
            continue;
        }
        let backs_up = action == Action::Install && change.path == node.config;
        carry_out(change, on_disk, backs_up)
            .map_err(|e| format!("cannot change {}: {e}", on_disk(&change.path).display()))?;
        let done = match (&change.before, &change.after) {
            (None, _) => "made",
            (Some(_), Some(_)) => "changed",
            (Some(_), None) => "removed",
        };
        say(out, format!("{done} {}", on_disk(&change.path).display()))?;
    }
    if args.dry_run {
        return Ok(());
    }
    let unit = unit(node.flavor);
    if args.restart {
        let status = Command::new("systemctl").args(["restart", unit]).status();
        match status {
            Ok(status) if status.success() => say(out, format!("restarted {unit}")),
            Ok(status) => Err(format!("the configuration is changed, but systemctl restart {unit} failed ({status})")),
            Err(e) => Err(format!("the configuration is changed, but systemctl cannot be started: {e}")),
        }
    } else {
        say(
            out,
            format!("containerd reads this when it starts: systemctl restart {unit} (no running container is lost)"),
        )
    }
}

/// The service that starts containerd.
fn unit(flavor: Flavor) -> &'static str {
    match flavor {
        Flavor::Containerd => "containerd",
        Flavor::K3s => "k3s",
        Flavor::Rke2 => "rke2-server",
        Flavor::Microk8s => "snap.microk8s.daemon-containerd",
    }
}

/// Where the others keep it, and the version line by which containerd 2.x is told.
const K3S: &str = "/var/lib/rancher/k3s/agent/etc/containerd";
const RKE2: &str = "/var/lib/rancher/rke2/agent/etc/containerd";
const MICROK8S: &str = "/var/snap/microk8s/current/args/containerd-template.toml";
const MICROK8S_CONTAINERD: &str = "/snap/microk8s/current/bin/containerd";

fn below(root: Option<&Path>, path: &Path) -> PathBuf {
    match root {
        Some(root) => root.join(path.strip_prefix("/").unwrap_or(path)),
        None => path.to_owned(),
    }
}

/// Finds out what there is on the node.
fn node(action: Action, args: &Args) -> Result<ConfigSite, String> {
    let there = |path: &str| below(args.root.as_deref(), Path::new(path)).exists();
    let flavor = args.flavor.unwrap_or(match () {
        // Whoever names the file means that.
        () if args.config.is_some() => Flavor::Containerd,
        () if there(K3S) => Flavor::K3s,
        () if there(RKE2) => Flavor::Rke2,
        () if there(MICROK8S) => Flavor::Microk8s,
        () => Flavor::Containerd,
    });
    let major = match &args.containerd_version {
        Some(version) => major(version).ok_or_else(|| format!("--containerd-version: {version:?} is not like 1.7"))?,
        None => match flavor {
            Flavor::K3s => major_of_made(args, K3S)?,
            Flavor::Rke2 => major_of_made(args, RKE2)?,
            Flavor::Microk8s => major_of_program(&below(args.root.as_deref(), Path::new(MICROK8S_CONTAINERD)))?,
            Flavor::Containerd => match major_of_program(&args.containerd) {
                Ok(major) => major,
                // What was imported is told by the import, and an edit is an edit.
                Err(_) if action == Action::Uninstall => 1,
                Err(e) => return Err(e),
            },
        },
    };
    let template = |directory: &str| {
        let name = if major >= 2 { "config-v3.toml.tmpl" } else { "config.toml.tmpl" };
        Path::new(directory).join(name)
    };
    let config = args.config.clone().unwrap_or_else(|| match flavor {
        Flavor::Containerd => "/etc/containerd/config.toml".into(),
        Flavor::K3s => template(K3S),
        Flavor::Rke2 => template(RKE2),
        Flavor::Microk8s => MICROK8S.into(),
    });
    Ok(ConfigSite { flavor, config, drop_in: args.drop_in.clone(), major })
}

/// The configuration that k3s and RKE2 have made tells what containerd is in them.
fn major_of_made(args: &Args, directory: &str) -> Result<u32, String> {
    let path = below(args.root.as_deref(), &Path::new(directory).join("config.toml"));
    let text = std::fs::read_to_string(&path).map_err(|e| {
        format!("cannot read {} (has it been started yet?): {e}; or say --containerd-version", path.display())
    })?;
    let version = edit::ConfigVersion::of(&text).map_err(|e| format!("{} {e}", path.display()))?;
    Ok(if version == Some(edit::ConfigVersion::Three) { 2 } else { 1 })
}

fn major_of_program(program: &Path) -> Result<u32, String> {
    let failed = |e: String| format!("cannot ask {} for its version: {e}; say --containerd-version", program.display());
    let output = Command::new(program).arg("--version").output().map_err(|e| failed(e.to_string()))?;
    // containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3
    let text = String::from_utf8_lossy(&output.stdout);
    text.split_whitespace().nth(2).and_then(major).ok_or_else(|| failed(format!("it says {:?}", text.trim())))
}

fn major(version: &str) -> Option<u32> {
    version.trim_start_matches('v').split('.').next()?.parse().ok().filter(|major| *major >= 1)
}

fn diff(change: &FileChange) -> String {
    let (before, after) = (change.before.as_deref().unwrap_or_default(), change.after.as_deref().unwrap_or_default());
    let name = |exists: bool| if exists { change.path.display().to_string() } else { "/dev/null".into() };
    TextDiff::from_lines(before, after)
        .unified_diff()
        .header(&name(change.before.is_some()), &name(change.after.is_some()))
        .to_string()
}

/// Makes a file what it shall be: as a whole or not at all.
fn carry_out(change: &FileChange, on_disk: impl Fn(&Path) -> PathBuf, backs_up: bool) -> std::io::Result<()> {
    let path = on_disk(&change.path);
    let Some(after) = &change.after else { return std::fs::remove_file(&path) };
    let mode = match std::fs::metadata(&path) {
        Ok(metadata) => metadata.permissions(),
        Err(_) => std::fs::Permissions::from_mode(0o644),
    };
    let saved = on_disk(&backup(&change.path));
    if backs_up && change.before.is_some() && !saved.exists() {
        std::fs::copy(&path, &saved)?;
    }
    // (A link stays one: what it points to is replaced.)
    let path = std::fs::canonicalize(&path).unwrap_or(path);
    let parent = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(parent)?;
    let mut file = tempfile::NamedTempFile::new_in(parent)?;
    file.write_all(after.as_bytes())?;
    file.as_file().set_permissions(mode)?;
    file.as_file().sync_all()?;
    file.persist(&path).map_err(|e| e.error)?;
    Ok(())
}
