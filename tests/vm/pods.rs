//! `pods`, a program on the virtual machine: pods in the node's network, through CRI.
//!
//!   pods pod NAME                                   runs a pod, prints its id
//!   pods run POD NAME IMAGE MEMORY [WORD...]        runs a container in it (limit in bytes, 0: none), prints its id
//!   pods status CONTAINER                           its state, exit code and reason
//!   pods stats CONTAINER                            its memory in bytes and its CPU time in nanoseconds
//!   pods remove POD                                 stops and removes it with its containers

use std::path::Path;
use std::process::ExitCode;

use hearth_tests::cri::{Cri, Failed, v1};

const SOCKET: &str = "/run/containerd/containerd.sock";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let cri = Cri::connect(Path::new(SOCKET));
    match call(&cri, &words) {
        Ok(Some(text)) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Ok(None) => {
            eprintln!("usage: pods pod|run|status|stats|remove …");
            ExitCode::from(2)
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Carries out a call, and returns its output; `None` if it is no call.
fn call(cri: &Cri, words: &[&str]) -> Result<Option<String>, Failed> {
    match words {
        ["pod", name] => {
            let request = v1::RunPodSandboxRequest { config: Some(pod(name)), runtime_handler: "hearth".into() };
            Ok(Some(cri.run_pod(request)?.pod_sandbox_id + "\n"))
        }
        ["run", pod_id, name, image, memory, arguments @ ..] => {
            // As kubelet does; containerd opens the log only.
            std::fs::create_dir_all(logs(name)).unwrap_or_else(|error| panic!("{}: {error}", logs(name)));
            let id = cri.create_container(container(pod_id, name, image, memory, arguments))?.container_id;
            cri.start_container(v1::StartContainerRequest { container_id: id.clone() })?;
            Ok(Some(id + "\n"))
        }
        ["status", id] => {
            let request = v1::ContainerStatusRequest { container_id: (*id).to_owned() };
            let status = cri.container_status(request)?.status.unwrap_or_default();
            Ok(Some(format!("{:?} {} {}\n", status.state(), status.exit_code, status.reason)))
        }
        ["stats", id] => {
            let request = v1::ContainerStatsRequest { container_id: (*id).to_owned() };
            let stats = cri.container_stats(request)?.stats.unwrap_or_default();
            let memory = stats.memory.and_then(|memory| memory.working_set_bytes).map_or(0, |bytes| bytes.value);
            let cpu = stats.cpu.and_then(|cpu| cpu.usage_core_nano_seconds).map_or(0, |nanos| nanos.value);
            Ok(Some(format!("{memory} {cpu}\n")))
        }
        ["remove", id] => {
            cri.stop_pod(v1::StopPodSandboxRequest { pod_sandbox_id: (*id).to_owned() })?;
            cri.remove_pod(v1::RemovePodSandboxRequest { pod_sandbox_id: (*id).to_owned() })?;
            Ok(Some(String::new()))
        }
        _ => Ok(None),
    }
}

fn logs(name: &str) -> String {
    format!("/var/log/pods/{name}")
}

fn pod(name: &str) -> v1::PodSandboxConfig {
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: name.to_owned(),
            uid: name.to_owned(),
            namespace: "default".into(),
            attempt: 0,
        }),
        log_directory: logs(name),
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: "/pods".into(),
            security_context: Some(v1::LinuxSandboxSecurityContext {
                namespace_options: Some(in_node_network()),
                ..v1::LinuxSandboxSecurityContext::default()
            }),
            ..v1::LinuxPodSandboxConfig::default()
        }),
        ..v1::PodSandboxConfig::default()
    }
}

fn in_node_network() -> v1::NamespaceOption {
    v1::NamespaceOption {
        network: v1::NamespaceMode::Node.into(),
        pid: v1::NamespaceMode::Container.into(),
        ..v1::NamespaceOption::default()
    }
}

fn container(pod_id: &str, name: &str, image: &str, memory: &str, arguments: &[&str]) -> v1::CreateContainerRequest {
    let resources = v1::LinuxContainerResources {
        memory_limit_in_bytes: memory.parse().unwrap_or_default(),
        cpu_shares: 2,
        ..v1::LinuxContainerResources::default()
    };
    let config = v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        image: Some(v1::ImageSpec { image: image.to_owned() }),
        args: arguments.iter().map(ToString::to_string).collect(),
        log_path: format!("{name}.log"),
        linux: Some(v1::LinuxContainerConfig {
            resources: Some(resources),
            security_context: Some(v1::LinuxContainerSecurityContext {
                namespace_options: Some(in_node_network()),
                ..v1::LinuxContainerSecurityContext::default()
            }),
        }),
        ..v1::ContainerConfig::default()
    };
    // CRI takes the pod's name from the sandbox itself.
    v1::CreateContainerRequest {
        pod_sandbox_id: pod_id.to_owned(),
        config: Some(config),
        sandbox_config: Some(pod(name)),
    }
}
