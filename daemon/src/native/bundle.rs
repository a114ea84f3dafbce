//! The bundles that runc's shim is given: the spec of a native container with its pod's namespaces and files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use hearth_shim::{NATIVE_ADDRESS_FILE, NATIVE_BUNDLES, natives};
use serde_json::Value;

use crate::task::pid;
use crate::task::pods::Sandboxes;
use crate::task::sandbox::Sandbox;
use hearth_base::config::Config;
use hearth_base::error::{Error, Result};
use hearth_os::cgroup::SystemdPath;

/// The log of runc's shim, in its bundle. For containerd this is a FIFO that it reads; the shim
/// does not start without one, but takes a file as well, which waits for no reader.
const SHIM_LOG: &str = "log";

/// The mount namespace in which runc's shim runs, with all containers of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mounts {
    /// The node's, as with containerd's own shims: mounts that a container makes in a volume with
    /// `mountPropagation: Bidirectional` reach the node.
    Node,
    /// The daemon's, for a pod that the sandbox controller made: its `/dev/shm` is mounted only there.
    Daemon,
}

/// A bundle for runc's shim.
pub(super) struct NativeBundle {
    /// Its directory.
    pub(super) bundle: PathBuf,
    /// The pod the container is in.
    pub(super) sandbox: Arc<Sandbox>,
    /// Whether its control group is made by systemd.
    pub(super) systemd_cgroup: bool,
    /// The mount namespace of its shim.
    pub(super) mounts: Mounts,
}

/// Makes the bundle for the container `native`, of what containerd has put into the one at `outer`: in that of the
/// pod's sandbox, or else in `directory`. Blocks.
///
/// # Errors
/// `InvalidArgument` for what a native container of a Hearth pod cannot have, `FailedPrecondition` if its pod is not
/// here any more. Nothing is left then.
pub(super) fn prepare(outer: &Path, native: &str, sandboxes: &Sandboxes, directory: &Path) -> Result<NativeBundle> {
    let path = outer.join("config.json");
    let wrong = |why: String| Error::InvalidArgument(format!("{}: {why}", path.display()));
    let text = std::fs::read(&path).map_err(|e| wrong(e.to_string()))?;
    let mut spec: Value = serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
    let id = spec["annotations"]["io.kubernetes.cri.sandbox-id"].as_str().unwrap_or_default().to_string();
    let sandbox = sandboxes.get(&id)?;
    sandbox.check_network()?;
    rewrite_namespaces(&mut spec, &sandbox).map_err(|e| e.context("linux.namespaces"))?;
    add_mounts(&mut spec, &sandbox)?;
    let (bundle, mounts) = match sandboxes.pod(&id) {
        Ok(_) => (directory.join(native), Mounts::Daemon),
        // The bundles of a namespace lie side by side.
        Err(_) => (outer.with_file_name(&id).join(NATIVE_BUNDLES).join(native), Mounts::Node),
    };
    std::fs::create_dir_all(bundle.join("rootfs"))
        .and_then(|()| std::fs::write(bundle.join("config.json"), spec.to_string()))
        .and_then(|()| std::fs::write(bundle.join(SHIM_LOG), ""))
        .map_err(|e| {
            let _ = std::fs::remove_dir_all(&bundle);
            Error::Internal(format!("cannot make the bundle {}: {e}", bundle.display()))
        })?;
    let systemd_cgroup = spec["linux"]["cgroupsPath"].as_str().and_then(SystemdPath::parse).is_some() && systemd_runs();
    Ok(NativeBundle { bundle, sandbox, systemd_cgroup, mounts })
}

/// Whether systemd is the node's first process, as sd_booted(3) finds it, and so does runc. Without it a path in systemd's
/// form is an ordinary one, which containerd makes of a pod's `cgroup_parent` that ends with `.slice`.
fn systemd_runs() -> bool {
    std::fs::symlink_metadata("/run/systemd/system").is_ok_and(|found| found.is_dir())
}

/// The options for runc's shim. The options of the handler in containerd's configuration are for Hearth's shim, and have
/// another type, which runc's shim does not take. Whether systemd makes the cgroups is read from their path, on a node
/// that runs systemd.
pub(super) fn runc_options(given: Option<Any>, systemd_cgroup: bool) -> Option<Any> {
    const TYPE: &str = "containerd.runc.v1.Options";
    /// `systemd_cgroup = true`, field 9; of a field that is there twice the last counts.
    const SYSTEMD_CGROUP: [u8; 2] = [9 << 3, 1];
    let given = given.filter(|options| options.type_url.rsplit('/').next() == Some(TYPE));
    let mut value = given.map(|options| options.value).unwrap_or_default();
    if systemd_cgroup {
        value.extend(SYSTEMD_CGROUP);
    }
    (!value.is_empty()).then(|| Any { type_url: TYPE.into(), value, ..Default::default() })
}

/// Points namespaces of the sandbox's process, which is the daemon, to the pod's own.
fn rewrite_namespaces(spec: &mut Value, sandbox: &Sandbox) -> Result<()> {
    let Some(Value::Array(namespaces)) = spec.pointer_mut("/linux/namespaces") else { return Ok(()) };
    let ours = format!("/proc/{}/", pid());
    let mut rewritten = Vec::with_capacity(namespaces.len());
    for mut namespace in namespaces.drain(..) {
        let is_ours = namespace["path"].as_str().is_some_and(|path| path.starts_with(&ours));
        if is_ours {
            match sandbox.namespace(namespace["type"].as_str().unwrap_or_default())? {
                Some(path) => namespace["path"] = path.into(),
                // runc's own, which is the node's.
                None => continue,
            }
        }
        rewritten.push(namespace);
    }
    *namespaces = rewritten;
    Ok(())
}

/// Adds mounts for the files of the pod that CRI has not made.
fn add_mounts(spec: &mut Value, sandbox: &Sandbox) -> Result<()> {
    let read_only = spec["root"]["readonly"].as_bool().unwrap_or_default();
    let has = |path: &str| {
        spec["mounts"].as_array().is_some_and(|mounts| mounts.iter().any(|mount| mount["destination"] == path))
    };
    let more = sandbox.mounts_blocking(read_only, has)?;
    let more = more.into_iter().map(|mount| {
        serde_json::json!({
            "destination": mount.destination,
            "type": mount.fstype,
            "source": mount.source,
            "options": mount.options,
        })
    });
    let more: Vec<_> = more.collect();
    match &mut spec["mounts"] {
        Value::Array(mounts) => mounts.extend(more),
        mounts => *mounts = more.into(),
    }
    Ok(())
}

/// The bundles of native containers that a daemon left when it died, in pods for which containerd runs no `delete`. Read
/// before this daemon can have any.
pub fn leftovers(config: &Config) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(config.state_dir.join(NATIVE_BUNDLES)).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// Ends the containers of such bundles. Blocks for some tens of milliseconds for each.
pub fn end_leftovers(shim: &Path, bundles: Vec<PathBuf>) {
    for bundle in bundles {
        let text = std::fs::read_to_string(bundle.join(NATIVE_ADDRESS_FILE)).unwrap_or_default();
        let mut lines = text.lines().skip(2);
        let id = bundle.file_name().and_then(|name| name.to_str());
        if let (Some(id), Some(namespace), Some(address)) = (id, lines.next(), lines.next()) {
            tracing::info!(task = id, "ending a native container that an earlier hearthd left");
            natives::end(shim, &bundle, id, namespace, address);
        }
        if let Err(error) = std::fs::remove_dir_all(&bundle) {
            tracing::warn!(bundle = %bundle.display(), %error, "cannot remove what an earlier hearthd left");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runcs_shim_is_told_what_it_understands() {
        let any =
            |type_url: &str, value: &[u8]| Any { type_url: type_url.into(), value: value.into(), ..Any::default() };
        assert_eq!(runc_options(None, false), None);
        // What a handler's `options` come as.
        assert_eq!(runc_options(Some(any("runtimeoptions.v1.Options", b"x")), false), None);
        let made = runc_options(Some(any("runtimeoptions.v1.Options", b"x")), true);
        assert_eq!(made, Some(any("containerd.runc.v1.Options", &[0x48, 1])));
        let kept = runc_options(Some(any("type.googleapis.com/containerd.runc.v1.Options", &[0x48, 0])), true);
        assert_eq!(kept, Some(any("containerd.runc.v1.Options", &[0x48, 0, 0x48, 1])));
    }
}
