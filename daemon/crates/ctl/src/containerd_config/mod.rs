//! `hearthctl install containerd` and `hearthctl uninstall containerd`: the runtime handler in containerd's
//! configuration.
//!
//! * `edit.rs`: the text of one configuration: handler, import, version line, `disabled_plugins`.
//! * `lines.rs`: an edit leaves all other lines byte for byte: line ends, quotes, comments.
//! * `plan.rs`: which files are changed, by containerd's version and the distribution.
//! * `ask.rs`: asks the installed containerd how it reads the edited file (`config dump`).
//! * `write.rs`: files are replaced as a whole, and put back if a later step fails.
//!
//! The configuration is saved beside itself first. It is replaced after containerd has read the edited text and shows
//! the handler; else everything stays as it was. containerd is never restarted unless `--restart` says so.

mod ask;
pub mod edit;
mod lines;
pub mod plan;
mod write;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Serialize;
use similar::TextDiff;

use crate::CtlError;
use crate::output::{Printer, Tone};
use ask::{Containerd, Reading, major};
use edit::Handler;
use plan::{ConfigSite, FileChange, Flavor, backup};
use write::Transaction;

/// The command line of both.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The distribution that keeps containerd's configuration [default: the one found on the node]
    #[arg(long, value_enum, value_name = "NAME")]
    flavor: Option<Flavor>,
    /// containerd's configuration file, or the template it is made from [default: the distribution's]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The file that containerd 2.x imports
    #[arg(long, value_name = "FILE", default_value = "/etc/containerd/conf.d/hearth.toml")]
    drop_in: PathBuf,
    /// The containerd that is asked for its version, and to read the edited file
    #[arg(long, value_name = "PROGRAM", default_value = "containerd")]
    containerd: PathBuf,
    /// Its version, instead of asking, e.g. 1.7
    #[arg(long, value_name = "VERSION")]
    containerd_version: Option<String>,
    /// The handler's name, as a RuntimeClass says it
    #[arg(long, value_name = "NAME", default_value = "hearth", value_parser = handler_name)]
    handler: String,
    /// The path of the shim, if it is not in containerd's PATH
    #[arg(long, value_name = "PROGRAM")]
    runtime_path: Option<PathBuf>,
    /// Have hearthd's sandbox controller make the pods (containerd 2.x): no process is started for a pod
    #[arg(long, value_name = "SOCKET", num_args = 0..=1, default_missing_value = "/run/hearth/sandboxer.sock")]
    sandboxer: Option<PathBuf>,
    /// Work below this directory, which is a node's root mounted here
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Show the changes as a diff, and change nothing
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

/// The report of the changes, for programs.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// The changes in the order in which they were made; of a dry run, the changes that a real run would make.
    changes: Vec<ReportedChange>,
    /// Whether this was a dry run.
    dry_run: bool,
    /// containerd's answer about the configuration; none if nothing changed.
    containerd: Option<String>,
    /// The service that reads the configuration when it starts; none if nothing changed.
    service: Option<&'static str>,
    /// Whether that service was restarted.
    restarted: bool,
}

/// A file that was changed.
#[derive(Debug, Serialize)]
struct ReportedChange {
    path: String,
    /// `made`, `changed`, `removed` or `saved`.
    done: &'static str,
    /// The change, as a unified diff.
    diff: String,
}

/// Installs or uninstalls the handler, and prints a report.
///
/// # Errors
/// One line: the obstacle and the remedy.
pub fn run(action: Action, args: &Args, output: &mut Printer) -> Result<(), CtlError> {
    let site = find_site(action, args).map_err(CtlError::Refused)?;
    let text = |path: &PathBuf| path.display().to_string();
    let handler = Handler {
        name: args.handler.clone(),
        runtime_path: args.runtime_path.as_ref().map(text),
        sandboxer: args.sandboxer.as_ref().map(text),
    };
    let here = |path: &Path| below(args.root.as_deref(), path);
    let read = |path: &Path| match std::fs::read_to_string(here(path)) {
        Ok(text) => Ok(Some(text)),
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(format!("cannot read {}: {e}", here(path).display())),
    };
    let changes = match action {
        Action::Install => plan::install(&site, &handler, read),
        Action::Uninstall => plan::uninstall(&site, &handler, read),
    };
    let changes = changes.map_err(CtlError::Refused)?;
    let mut report = Report { dry_run: args.dry_run, ..Report::default() };
    for change in &changes {
        let path = here(&change.path).display().to_string();
        report.changes.push(ReportedChange { path, done: what_is_done(change, &site), diff: diff(change) });
    }
    if !changes.is_empty() && !args.dry_run {
        report.containerd = make(action, args, &site, &changes).map_err(CtlError::Refused)?;
        report.service = Some(service(site.flavor));
    }
    if !output.json {
        print(&report, args.restart, output)?;
    }
    if let (true, Some(service)) = (args.restart, report.service) {
        // (What is done already is printed before an error of systemctl.)
        output.finish()?;
        restart(service).map_err(CtlError::Refused)?;
        report.restarted = true;
        if !output.json {
            output.line(format!("restarted {service}"))?;
        }
    }
    if output.json {
        output.json(&report)?;
    }
    Ok(())
}

/// Makes the changes, all or none. What containerd says about the result, if there is something to say.
fn make(action: Action, args: &Args, site: &ConfigSite, changes: &[FileChange]) -> Result<Option<String>, String> {
    let here = |path: &Path| below(args.root.as_deref(), path);
    let mut transaction = Transaction::default();
    let mut apply = |change: &FileChange| {
        let like = (change.path == backup(&site.config)).then(|| here(&site.config));
        let path = here(&change.path);
        let changed = transaction.apply(change, &path, like.as_deref());
        changed.map_err(|e| format!("cannot change {}: {e}; nothing is changed", path.display()))
    };
    let (main, others): (Vec<_>, Vec<_>) = changes.iter().partition(|change| change.path == site.config);
    let containerd = Containerd { program: args.containerd.clone() };
    let not_asked = why_not_asked(args, site);
    let said = match action {
        Action::Install => {
            others.into_iter().try_for_each(&mut apply)?;
            let reading = match (not_asked, main.first().and_then(|change| change.after.as_deref())) {
                (Some(why), _) => Reading::NotAsked(why),
                (None, Some(text)) => containerd.read_text(&site.config, text, &args.handler),
                (None, None) => containerd.read(&site.config, &args.handler),
            };
            let said = judge(reading, &containerd, site, &args.handler)?;
            main.into_iter().try_for_each(&mut apply)?;
            Some(said)
        }
        Action::Uninstall => {
            main.into_iter().chain(others).try_for_each(&mut apply)?;
            let is_there = not_asked.is_none() && site.config.exists();
            is_there
                .then(|| containerd.read(&site.config, &args.handler))
                .and_then(|reading| after(reading, &args.handler))
        }
    };
    transaction.commit();
    Ok(said)
}

/// Why containerd is not asked about the edited file; none: it is asked.
fn why_not_asked(args: &Args, site: &ConfigSite) -> Option<String> {
    if args.root.is_some() {
        return Some("the files are another root's (--root)".into());
    }
    (!site.is_read_by_containerd()).then(|| format!("{} is a template", site.config.display()))
}

/// The line that an installation prints about containerd's reading.
///
/// # Errors
/// One line: the installation would have no effect, or would keep containerd from starting.
fn judge(reading: Reading, containerd: &Containerd, site: &ConfigSite, handler: &str) -> Result<String, String> {
    let name = || containerd.release().map_or_else(|_| "containerd".into(), |release| format!("containerd {release}"));
    let file = site.config.display();
    match reading {
        Reading::HasHandler => Ok(format!("{} reads this and has the handler {handler:?}", name())),
        Reading::NotAsked(why) => Ok(format!(
            "containerd was not asked whether it has the handler {handler:?}: {why}; hearthctl check asks it once it runs"
        )),
        Reading::Refused(why) => {
            Err(format!("{} refuses {file} with the handler in it, so nothing is changed: {why}", name()))
        }
        Reading::CriDisabled(plugin) => {
            Err(format!("{file}, or a file that it imports, {}; nothing is changed", plan::disabled(&plugin)))
        }
        Reading::NoHandler => Err(format!(
            "{} reads {file} with the handler in it and has no handler {handler:?}, so nothing is changed: a file among its \
             imports replaces the table of CRI; put the handler into that file (--config FILE)",
            name()
        )),
    }
}

/// The line that an uninstallation prints about containerd's reading.
fn after(reading: Reading, handler: &str) -> Option<String> {
    match reading {
        Reading::NoHandler | Reading::CriDisabled(_) | Reading::NotAsked(_) => None,
        Reading::HasHandler => {
            Some(format!("warning: containerd still has a handler {handler:?}, from another file among its imports"))
        }
        Reading::Refused(why) => Some(format!("warning: containerd refuses the configuration that is left: {why}")),
    }
}

fn print(report: &Report, restarts: bool, output: &mut Printer) -> Result<(), CtlError> {
    if report.changes.is_empty() {
        output.line("nothing to change")?;
    }
    for change in report.changes.iter() {
        match (report.dry_run, change.done) {
            (true, SAVED) => {}
            (true, _) => change.diff.lines().try_for_each(|line| {
                let tone = match line.as_bytes().first() {
                    Some(b'+') => Tone::Good,
                    Some(b'-') => Tone::Bad,
                    _ => Tone::Plain,
                };
                output.line(output.paint(tone, line))
            })?,
            (false, done) => output.line(format!("{done} {}", change.path))?,
        }
    }
    if let Some(said) = &report.containerd {
        output.line(said)?;
    }
    if let (Some(service), false) = (report.service, restarts) {
        output.line(format!(
            "containerd reads this when it starts: systemctl restart {service} (no running container is lost)"
        ))?;
    }
    Ok(())
}

/// The action of a file for which a backup was made.
const SAVED: &str = "saved as";

fn what_is_done(change: &FileChange, site: &ConfigSite) -> &'static str {
    match (&change.before, &change.after) {
        (_, Some(_)) if change.path == backup(&site.config) => SAVED,
        (None, _) => "made",
        (Some(_), Some(_)) => "changed",
        (Some(_), None) => "removed",
    }
}

fn restart(service: &str) -> Result<(), String> {
    match Command::new("systemctl").args(["restart", service]).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("the configuration is changed, but systemctl restart {service} failed ({status})")),
        Err(e) => Err(format!("the configuration is changed, but systemctl cannot be started: {e}")),
    }
}

/// The service that starts containerd.
fn service(flavor: Flavor) -> &'static str {
    match flavor {
        Flavor::Containerd => "containerd",
        Flavor::K3s => "k3s",
        Flavor::Rke2 => "rke2-server",
        Flavor::Microk8s => "snap.microk8s.daemon-containerd",
    }
}

/// The directories in which k3s and RKE2 keep containerd's configuration, and microk8s's files.
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

/// Finds the containerd of the node and its configuration.
fn find_site(action: Action, args: &Args) -> Result<ConfigSite, String> {
    let there = |path: &str| below(args.root.as_deref(), Path::new(path)).exists();
    let flavor = args.flavor.unwrap_or(match () {
        // A file named on the command line is containerd's own.
        () if args.config.is_some() => Flavor::Containerd,
        () if there(K3S) => Flavor::K3s,
        () if there(RKE2) => Flavor::Rke2,
        () if there(MICROK8S) => Flavor::Microk8s,
        () => Flavor::Containerd,
    });
    let major = match &args.containerd_version {
        Some(version) => major(version).ok_or_else(|| format!("--containerd-version: {version:?} is not like 1.7"))?,
        None => {
            match flavor {
                Flavor::K3s => major_of_made(args, K3S)?,
                Flavor::Rke2 => major_of_made(args, RKE2)?,
                Flavor::Microk8s => major_of_program(&below(args.root.as_deref(), Path::new(MICROK8S_CONTAINERD)))?,
                Flavor::Containerd => {
                    match major_of_program(&args.containerd) {
                        Ok(major) => major,
                        // An uninstallation needs no containerd: a drop-in is of an installation on 2.x.
                        Err(_) if action == Action::Uninstall => {
                            if below(args.root.as_deref(), &args.drop_in).exists() { 2 } else { 1 }
                        }
                        Err(e) => return Err(e),
                    }
                }
            }
        }
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

/// The major release of containerd in k3s or RKE2, by the version of the configuration that they have made.
fn major_of_made(args: &Args, directory: &str) -> Result<u32, String> {
    let path = below(args.root.as_deref(), &Path::new(directory).join("config.toml"));
    let text = std::fs::read_to_string(&path).map_err(|e| {
        format!("cannot read {} (has it been started yet?): {e}; or say --containerd-version", path.display())
    })?;
    let version = edit::ConfigVersion::of(&text).map_err(|e| format!("{} {e}", path.display()))?;
    Ok(if version == Some(edit::ConfigVersion::Three) { 2 } else { 1 })
}

fn major_of_program(program: &Path) -> Result<u32, String> {
    let release = Containerd { program: program.to_owned() }.release();
    release.as_deref().ok().and_then(major).ok_or_else(|| {
        format!("cannot ask containerd for its version ({}); say --containerd-version", release.unwrap_or_else(|e| e))
    })
}

fn diff(change: &FileChange) -> String {
    let (before, after) = (change.before.as_deref().unwrap_or_default(), change.after.as_deref().unwrap_or_default());
    let name = |exists: bool| if exists { change.path.display().to_string() } else { "/dev/null".into() };
    TextDiff::from_lines(before, after)
        .unified_diff()
        .header(&name(change.before.is_some()), &name(change.after.is_some()))
        .to_string()
}
