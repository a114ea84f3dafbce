use std::path::{Path, PathBuf};

use rustix::thread::CapabilitySet;

use super::*;
use crate::error::Result;

fn parse(text: &str) -> Result<TaskSpec> {
    TaskSpec::parse(text.as_bytes(), Path::new("/b"))
}

#[test]
fn fields_of_a_task_are_read_and_the_rest_is_skipped() {
    let spec = parse(
        r#"{"ociVersion":"1.1.0","hooks":{"prestart":[{"path":"/x"}]},
            "process":{"terminal":false,"user":{"uid":0,"gid":0},"args":["/a.wasm","x\ny"],
                       "env":["PATH=/bin","A=b=c","N"],"cwd":"/w","capabilities":{"bounding":["CAP_X"]}},
            "root":{"path":"rootfs","readonly":true},
            "mounts":[{"destination":"/proc","type":"proc","source":"proc","options":null},
                      {"destination":"/etc/hosts","type":"bind","source":"/h","options":["rbind","ro"]}],
            "linux":{"namespaces":[{"type":"pid"}],"resources":{"memory":{"limit":1048576},"cpu":{"shares":2}}}}"#,
    )
    .unwrap();
    assert_eq!(spec.process.args, ["/a.wasm", "x\ny"]);
    assert_eq!(spec.process.env[1], ("A".into(), "b=c".into()));
    assert_eq!(spec.process.env[2], ("N".into(), String::new()));
    assert_eq!((spec.process.path(), spec.process.cwd.as_str()), (Some("/bin"), "/w"));
    assert_eq!((spec.root, spec.read_only), (PathBuf::from("/b/rootfs"), true));
    assert_eq!(spec.mounts.len(), 2);
    assert_eq!(spec.mounts[1].options, ["rbind", "ro"]);
    assert_eq!(spec.memory_limit, Some(1 << 20));
    assert_eq!(spec.cpu, Cpu { shares: Some(2), ..Cpu::default() });
    assert_eq!((spec.network, spec.role, spec.process.user), (NetworkNamespace::Host, Role::Alone, User::default()));
}

#[test]
fn user_network_and_role_are_read() {
    let spec = parse(
        r#"{"process":{"terminal":true,"user":{"uid":7,"gid":8,"additionalGids":[9,10],"umask":23}},
            "annotations":{"io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"s","x":"y"},
            "linux":{"namespaces":[{"type":"pid"},{"type":"network","path":"/proc/1/ns/net"}],
                     "resources":{"cpu":{"shares":512,"quota":10000,"period":100000}}}}"#,
    )
    .unwrap();
    let capabilities = Capabilities::default();
    assert_eq!(spec.process.user, User { uid: 7, gid: 8, groups: vec![9, 10], umask: Some(0o27), capabilities });
    assert_eq!(spec.network, NetworkNamespace::Path("/proc/1/ns/net".into()));
    assert_eq!((spec.role, spec.process.terminal), (Role::InSandbox("s".into()), true));
    assert_eq!(spec.cpu, Cpu { shares: Some(512), quota: Some(10_000), period: Some(100_000) });
    let pause = r#"{"process":{},"annotations":{"io.kubernetes.cri.container-type":"sandbox"},
                    "linux":{"namespaces":[{"type":"network"}],"resources":{"cpu":{"quota":-1,"shares":0}}}}"#;
    let spec = parse(pause).unwrap();
    assert_eq!((spec.role, spec.network, spec.cpu), (Role::Sandbox, NetworkNamespace::New, Cpu::default()));
    assert_eq!((spec.scopes, spec.sysctls.len()), (Scopes::default(), 0));
    let own = r#"{"process":{},"linux":{"namespaces":[{"type":"ipc"},{"type":"pid"}],"sysctl":{"net.x":"1"}}}"#;
    let spec = parse(own).unwrap();
    assert_eq!(spec.scopes, Scopes { ipc: Scope::Pod, pid: Scope::Pod, uts: Scope::Node });
    assert_eq!(spec.sysctls["net.x"], "1");
}

#[test]
fn a_user_namespace_and_devices_beyond_the_default_ones_are_read() {
    let spec = parse(r#"{"process":{},"linux":{"namespaces":[{"type":"pid"}],"devices":null}}"#).unwrap();
    assert!(!spec.user_namespace && spec.devices.is_empty() && spec.cgroups_path.is_empty());
    let own = r#"{"process":{},"linux":{"namespaces":[{"type":"user"}],"cgroupsPath":"/kubepods/pod1/a",
        "devices":[{"path":"/dev/null","type":"c","major":1,"minor":3},{"path":"/dev/fuse","type":"c"}]}}"#;
    let spec = parse(own).unwrap();
    assert!(spec.user_namespace);
    assert_eq!(
        (spec.devices.as_slice(), spec.cgroups_path.as_str()),
        (["/dev/fuse".to_owned()].as_slice(), "/kubepods/pod1/a")
    );
}

#[test]
fn capabilities_without_effect_on_a_guest_are_skipped() {
    let of = |text: &str| {
        let spec = format!(r#"{{"process":{{"capabilities":{text}}}}}"#);
        TaskSpec::parse(spec.as_bytes(), Path::new("/b")).map(|spec| spec.process.user.capabilities)
    };
    let some = of(r#"{"bounding":["CAP_CHOWN"],"effective":["CAP_FOWNER","CAP_SYS_ADMIN","CAP_NET_BIND_SERVICE"],
                     "ambient":["CAP_DAC_OVERRIDE"]}"#);
    let effective = CapabilitySet::FOWNER | CapabilitySet::NET_BIND_SERVICE;
    assert_eq!(some.unwrap(), Capabilities { effective, ambient: CapabilitySet::DAC_OVERRIDE });
    for none in ["null", "{}", r#"{"effective":null,"ambient":[]}"#, r#"{"effective":["CAP_NO_SUCH"]}"#] {
        assert_eq!(of(none).unwrap(), Capabilities::default(), "{none}");
    }
    for wrong in [r#"{"effective":"CAP_CHOWN"}"#, r#"{"effective":[1]}"#] {
        let error = of(wrong).unwrap_err().to_string();
        assert!(error.starts_with("is not an OCI runtime spec: "), "{error}");
    }
}

#[test]
fn the_process_of_an_exec_is_read_like_a_tasks() {
    let spec = ProcessSpec::parse(
        br#"{"terminal":true,"user":{"uid":5},"args":["tool"],"env":["PATH=/opt"],"cwd":"/w",
             "capabilities":{},"noNewPrivileges":true,"rlimits":[{"type":"RLIMIT_NOFILE","hard":1,"soft":1}]}"#,
    )
    .unwrap();
    assert_eq!((spec.args.len(), spec.path(), spec.cwd.as_str()), (1, Some("/opt"), "/w"));
    assert_eq!((spec.user.uid, spec.terminal), (5, true));
    let error = ProcessSpec::parse(b"{").unwrap_err().to_string();
    assert!(error.starts_with("the exec's spec is not an OCI process"), "{error}");
}

#[test]
fn an_absolute_root_and_defaults() {
    let spec = parse(r#"{"process":{},"root":{"path":"/r"}}"#).unwrap();
    assert_eq!((spec.root, spec.process.cwd.as_str(), spec.process.args.len()), ("/r".into(), "/", 0));
    let spec = parse(r#"{"process":{"args":null},"linux":{"resources":{"memory":{"limit":-1}}}}"#).unwrap();
    assert_eq!((spec.root, spec.memory_limit), ("/b/rootfs".into(), None));
}

#[test]
fn a_wrong_field_is_named() {
    let cases = [
        ("", "is not an OCI runtime spec"),
        ("{\"process\":", "line 1"),
        ("[]", "is not an OCI runtime spec"),
        ("{}", "has no process"),
        (r#"{"process":{"args":"x"}}"#, "expected a sequence"),
        (r#"{"process":{"cwd":"w"}}"#, "process.cwd \"w\" is not an absolute path"),
        (r#"{"process":{"args":["a\u0000b"]}}"#, "process.args has a NUL"),
        (r#"{"process":{},"root":{"path":""}}"#, "root.path is empty"),
        (
            r#"{"process":{},"linux":{"namespaces":[{"type":"network","path":"x"}]}}"#,
            "linux.namespaces: \"x\" is not an absolute path",
        ),
        (r#"{"process":{},"mounts":[{"destination":"x"}]}"#, "\"x\" is not an absolute path"),
    ];
    for (text, want) in cases {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.contains(want), "{text}: {error}");
    }
}

#[test]
fn a_missing_and_an_oversized_file_name_the_file() {
    let bundle = tempfile::tempdir().unwrap();
    let error = TaskSpec::read(bundle.path(), 100).unwrap_err().to_string();
    assert!(error.contains("config.json: cannot open"), "{error}");
    std::fs::write(bundle.path().join("config.json"), [b' '; 101]).unwrap();
    let error = TaskSpec::read(bundle.path(), 100).unwrap_err().to_string();
    assert!(error.contains("over 100 bytes (rpc.spec_bytes_max)"), "{error}");
}

#[test]
fn an_update_changes_only_the_limits_it_names() {
    let now = Cpu { shares: Some(5), quota: Some(10_000), period: Some(50_000) };
    let parse = |text: &str| ResourceUpdate::parse(text.as_bytes());
    let update = parse(r#"{"memory":{"limit":1048576,"swap":7},"cpu":{"shares":0,"cpus":"0-1"},"pids":{}}"#).unwrap();
    assert_eq!((update.memory_limit, update.cpu(now)), (Some(Some(1 << 20)), now));
    let update = parse(r#"{"memory":{"limit":-1},"cpu":{"quota":-1,"period":100000,"shares":7}}"#).unwrap();
    assert_eq!(update.memory_limit, Some(None));
    assert_eq!(update.cpu(now), Cpu { shares: Some(7), quota: None, period: Some(100_000) });
    assert_eq!(parse(r#"{"memory":null,"cpu":{"quota":null}}"#).unwrap(), ResourceUpdate::default());
    for (text, want) in [
        (r#"{"memory":{"limit":-2}}"#, "linux.resources.memory.limit: -2"),
        (r#"{"memory":{"limit":"1Gi"}}"#, "linux.resources.memory.limit: \"1Gi\""),
        (r#"{"memory":7}"#, "linux.resources.memory: 7"),
        (r#"{"cpu":{"shares":-1}}"#, "linux.resources.cpu.shares: -1"),
        (r#"{"cpu":{"period":1.5}}"#, "linux.resources.cpu.period: 1.5"),
        ("[]", "resources: are not"),
        ("", "resources: are not"),
    ] {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.starts_with(want), "{text}: {error}");
    }
}
