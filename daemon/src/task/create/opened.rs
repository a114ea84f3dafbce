//! Fifth phase of a Create: the program's entry point and memory are checked, the spec asks for nothing that a
//! guest cannot be given, the user is known to the kernel, and stdio is open.

use crate::task::program::check_memory;
use crate::task::sandbox::no_user_namespace;
use hearth_base::bundle::TaskSpec;
use hearth_base::error::{Error, Result};
use hearth_base::faults::{self, Point};
use hearth_http::service;
use hearth_interfaces::container::Container;
use hearth_interfaces::settings;
use hearth_os::identity::Identity;
use hearth_stdio::Stdio;
use hearth_wasm::access::Access;
use hearth_wasm::engine::EntryKind;
use hearth_wasm::scheduler::{CpuLimits, Guest};

use crate::spin::access::granted;

use super::Creator;
use super::located::{Found, Located};

/// The work of a container's Start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Runs {
    /// Calls a program's entry point.
    Program,
    /// Serves HTTP with a program.
    Service,
    /// Starts an application.
    Application,
}

/// A Create that can fail no more.
pub(super) struct Opened {
    pub(super) stdio: Stdio,
    pub(super) guest: Guest,
    pub(super) access: Access,
    /// In bytes.
    pub(super) memory_limit: u64,
    /// The work of its Start.
    pub(super) runs: Runs,
    /// Dropped last.
    pub(super) located: Located,
}

impl Located {
    /// Checks the program against the spec and opens stdio.
    ///
    /// # Errors
    /// `InvalidArgument` for a program without entry point, or a spec that a guest cannot be given;
    /// `ResourceExhausted` for a program that starts with more memory than its limit; what is wrong with stdio.
    pub(super) async fn open(self, creator: &Creator) -> Result<Opened> {
        let config = creator.config.now();
        let spec = &self.specified.spec;
        let memory_limit = spec.memory_limit.unwrap_or(u64::MAX).min(config.engine.memory_bytes_max);
        let runs = self.check_found(creator, memory_limit)?;
        let identity = Identity::new(&spec.process.user, self.network.namespace.clone())?;
        let access = self.access(creator, &identity)?;
        let guest = Guest::new(identity, CpuLimits::of(&spec.cpu)?, self.tenant.clone());
        let request = &self.specified.request;
        let stdio = Stdio::open(&creator.namespace, &request.id, &request.stdio, &config.stdio).await?;
        faults::at(Point::Opened);
        Ok(Opened { stdio, guest, access, memory_limit, runs, located: self })
    }
}

impl Located {
    /// The servers and host interfaces that the container may use: as its application's manifest grants them, or as its
    /// environment asks for them.
    fn access(&self, creator: &Creator, identity: &Identity) -> Result<Access> {
        let (env, world) = (&self.specified.spec.process.env, &creator.world);
        let container = || {
            let names =
                world.runtime.resolvers.names(self.files.path().to_path_buf(), identity.clone(), self.tenant.clone());
            Container::new(&world.interfaces, names, env)
        };
        let loaded = match &self.found {
            Found::Application(application) => return granted(&container(), &application.configured),
            Found::Program(loaded) => loaded,
        };
        let access = match settings::any(env) {
            true => settings::access(&container(), env)?,
            false => Access::default(),
        };
        loaded.program.now().check_access(&world.runtime.engines, &access)?;
        Ok(access)
    }

    /// Checks that there is something to call, and that it fits the container.
    fn check_found(&self, creator: &Creator, memory_limit: u64) -> Result<Runs> {
        let spec = &self.specified.spec;
        let loaded = match &self.found {
            Found::Program(loaded) => loaded,
            Found::Application(application) => {
                check_available(spec)?;
                for (id, loaded) in &application.components {
                    let within = |error: Error| error.context(format!("the component {id:?}"));
                    check_memory(&loaded.program.now(), memory_limit).map_err(within)?;
                }
                return Ok(Runs::Application);
            }
        };
        let program = loaded.program.now();
        let serve = service::asked(&spec.process.env)?;
        let entry = program.check_entry(&creator.world.runtime.engines, loaded.export.as_deref(), serve);
        let entry = entry.map_err(|e| e.context(spec.process.args.first().map_or("the artifact", String::as_str)))?;
        check_available(spec)?;
        check_memory(&program, memory_limit)?;
        Ok(match entry {
            EntryKind::Run => Runs::Program,
            EntryKind::Serve => Runs::Service,
        })
    }
}

/// Refuses what guests of one process cannot have, each from the others. Checked once the program is known to be
/// WebAssembly: a native container of a pod may have devices.
fn check_available(spec: &TaskSpec) -> Result<()> {
    if spec.user_namespace {
        return Err(no_user_namespace());
    }
    if let Some(device) = spec.devices.first() {
        let others = match spec.devices.len() - 1 {
            0 => String::new(),
            count => format!(" and {count} more"),
        };
        return Err(Error::InvalidArgument(format!(
            "linux.devices: {device}{others}: a Wasm container has no device nodes; remove the device (privileged: true adds those of the node), or choose another runtime class"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn refusal(linux: &str) -> Option<String> {
        let json = format!(r#"{{"process":{{"args":["a.wasm"]}},"linux":{linux}}}"#);
        match check_available(&TaskSpec::parse(json.as_bytes(), Path::new("/b")).unwrap()) {
            Ok(()) => None,
            Err(Error::InvalidArgument(text)) => Some(text),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_containerd_and_docker_put_into_every_spec_is_accepted() {
        let defaults = r#"{
            "namespaces": [{"type":"pid"},{"type":"ipc"},{"type":"uts"},{"type":"mount"},{"type":"cgroup"}],
            "devices": [{"path":"/dev/null","type":"c","major":1,"minor":3}],
            "resources": {"devices": [{"allow":false,"access":"rwm"},
                                      {"allow":true,"type":"c","major":10,"minor":229,"access":"rwm"}]},
            "seccomp": {"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]},
            "maskedPaths": ["/proc/kcore"], "readonlyPaths": ["/proc/sys"]}"#;
        assert_eq!(refusal(defaults), None);
        assert_eq!(refusal("{}"), None);
    }

    #[test]
    fn a_user_namespace_and_devices_are_refused_with_a_remedy() {
        let text = refusal(r#"{"namespaces":[{"type":"user"}]}"#).unwrap();
        assert!(text.contains("hostUsers") && text.contains("runtime class"), "{text}");
        let text = refusal(r#"{"devices":[{"path":"/dev/null"},{"path":"/dev/fuse"},{"path":"/dev/kvm"}]}"#).unwrap();
        assert!(
            text.starts_with("linux.devices: /dev/fuse and 1 more: ") && text.contains("remove the device"),
            "{text}"
        );
    }
}
