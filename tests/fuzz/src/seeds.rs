//! Valid inputs of each target. libFuzzer and the test begin with them.

use hearth_base::cell::{ProgramFound, ProgramReply, ProgramRequest, Refused, program_reply, program_request};
use hearth_base::config::Config;
use hearth_base::generation::wire;
use hearth_shim::{Reply, Request, TaskSocketReply, TaskSocketRequest, encode_frame, reply, request};
use prost::Message;

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// Specs of ctr and of CRI, a process, resources.
pub fn bundle() -> Vec<Vec<u8>> {
    texts(&[
        r#"{"ociVersion":"1.1.0","process":{"args":["/hello.wasm","a"],"env":["PATH=/bin","A=b=c","B"],"cwd":"/",
        "user":{"uid":1,"gid":2,"additionalGids":[3],"umask":18},"terminal":true,"consoleSize":{"height":1,"width":2},
        "capabilities":{"effective":["CAP_CHOWN"],"bounding":["CAP_NET_BIND_SERVICE"]},
        "rlimits":[{"type":"RLIMIT_NOFILE","soft":1,"hard":2}],"noNewPrivileges":true},
        "root":{"path":"rootfs","readonly":true},"hostname":"h",
        "mounts":[{"destination":"/proc","type":"proc","source":"proc","options":["nosuid","ro"]},
        {"destination":"/data","type":"bind","source":"/tmp","options":["rbind","rro","rslave"]}],
        "linux":{"cgroupsPath":"/kubepods/pod1/c","namespaces":[{"type":"network","path":"/run/netns/a"},{"type":"ipc"}],
        "resources":{"memory":{"limit":1048576},"cpu":{"shares":2,"quota":1000,"period":100000}},
        "devices":[{"path":"/dev/fuse","type":"c"}],"sysctl":{"net.ipv4.ip_forward":"1"}},
        "annotations":{"io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"s",
        "hearth.io/isolation":"pod"}}"#,
        r#"{"args":["a"],"cwd":"/","env":[],"user":{"uid":0,"gid":0}}"#,
        r#"{"memory":{"limit":-1},"cpu":{"shares":1024,"quota":-1,"period":100000}}"#,
        "isolation=pod",
    ])
}

/// The default configuration, and one with a value of each kind.
pub fn config() -> Vec<Vec<u8>> {
    let mut seeds = texts(&[
        "state_dir = \"/run/hearth\"\n[http]\nrequests_max = 1\n[metrics]\naddress = \"127.0.0.1:9\"\npods = true\n",
        "[engine]\npool_slots = 8\n[scheduler]\nworkers = 2\n[isolation]\nlevel = \"pod\"\n",
    ]);
    seeds.extend(toml_of(&Config::default()));
    seeds
}

/// JSON is no TOML; each key of the default configuration becomes a line.
fn toml_of(config: &Config) -> Option<Vec<u8>> {
    let json = serde_json::to_value(config).ok()?;
    let mut lines = String::new();
    for (name, section) in json.as_object()? {
        let Some(section) = section.as_object() else { continue };
        lines.push_str(&format!("[{name}]\n"));
        for (key, value) in section.iter().filter(|(_, value)| value.is_number() || value.is_boolean()) {
            lines.push_str(&format!("{key} = {value}\n"));
        }
    }
    Some(lines.into_bytes())
}

/// Configurations of containerd, as distributions package them.
pub fn containerd_config() -> Vec<Vec<u8>> {
    texts(&[
        "# comments only\n#   root = \"/var/lib/containerd\"\ndisabled_plugins = [\"cri\"]\n",
        "version = 2\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\n\
         default_runtime_name = \"runc\"\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n\
         runtime_type = \"io.containerd.runc.v2\"\n",
        "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd]\n  runtimes = { runc = { runtime_type = 'a' } }\n",
        "[plugins]\ncri.containerd.runtimes.hearth.runtime_type = \"io.containerd.hearth.v1\"\n[proxy_plugins.hearth]\n\
         type = \"sandbox\"\naddress = \"/run/s\"\n",
        "",
    ])
}

/// A message of each kind, framed and bare.
pub fn frames() -> Vec<Vec<u8>> {
    let request = Request {
        body: Some(request::Body::TaskSocket(TaskSocketRequest { namespace: "k8s.io".into(), ..Default::default() })),
    };
    let reply =
        Reply { body: Some(reply::Body::TaskSocket(TaskSocketReply { address: "unix:///a".into(), version: 3 })) };
    let question = wire::Question { body: Some(wire::question::Body::TakeOver(wire::TakeOver::default())) };
    let program = ProgramRequest { fingerprint: "f".into(), body: Some(program_request::Body::Digest(vec![7; 32])) };
    let found = ProgramFound {
        digest: vec![7; 32],
        component: true,
        export: Some("e".into()),
        source: 1,
        ..Default::default()
    };
    let refused = Refused { code: 5, text: "no".into() };
    let mut seeds = vec![
        request.encode_to_vec(),
        reply.encode_to_vec(),
        question.encode_to_vec(),
        wire::error("no").encode_to_vec(),
        program.encode_to_vec(),
        ProgramReply { body: Some(program_reply::Body::Program(found)) }.encode_to_vec(),
        ProgramReply { body: Some(program_reply::Body::Refused(refused)) }.encode_to_vec(),
        br#"{"grpc":"/a","ttrpc":"/b","namespace":"n","id":"i","cgroup":["/g"],"pid":7}"#.to_vec(),
        br#"{"kind":"serves","id":"i","address":"unix:///a"}"#.to_vec(),
        b"\x0a\x01x\x12\x0disolation=pod".to_vec(),
    ];
    seeds.extend(encode_frame(&request));
    seeds.extend(encode_frame(&reply));
    seeds
}

/// An index, manifests of an artifact and of an application, and an image's configuration.
pub fn image() -> Vec<Vec<u8>> {
    let digest = format!("sha256:{}", "7".repeat(64));
    let blob = |kind: &str| format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":7}}"#);
    let manifest = |config: &str, layer: &str| {
        format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[{}]}}"#,
            blob(config),
            blob(layer)
        )
    };
    let platform = r#"{"architecture":"wasm","os":"wasip1"}"#;
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    [
        manifest("application/vnd.wasm.config.v0+json", "application/wasm"),
        manifest(
            "application/vnd.oci.image.config.v1+json",
            "application/vnd.fermyon.spin.application.v1+config",
        ),
        format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{manifest_type}","digest":"{digest}","size":1,"platform":{platform}}}]}}"#
        ),
        format!(
            r#"{{"architecture":"wasm","os":"wasi","config":{{"Entrypoint":["/a.wasm"],"Cmd":["b"],"Env":["PATH=/bin"],
            "WorkingDir":"/w"}},"rootfs":{{"type":"layers","diff_ids":["{digest}","{digest}"]}}}}"#
        ),
    ]
    .map(String::into_bytes)
    .to_vec()
}

/// Names with the files that know them.
pub fn names() -> Vec<Vec<u8>> {
    texts(&[
        "db\n127.0.0.1 localhost\n::1 ip6-localhost\n10.0.0.1 db db.example.org # a comment\n\0nameserver 10.0.0.10\n\
         nameserver fe80::1%eth0\nsearch a.svc.cluster.local svc.cluster.local\noptions ndots:5 attempts:2 timeout:0\n",
        "127.1\n\0options rotate edns0 trust-ad use-vc no-aaaa single-request-reopen\ndomain a_b.c\nsortlist 1.2.3.4/8\n",
        "0x7f.1\n\n",
        "fe80::1%lo\n# only a comment\n",
        "a.b.\n1.2.3.4 a.b\n",
    ])
}

/// Packets: an address, an alias before it, a failure, a truncated one.
pub fn reply() -> Vec<Vec<u8>> {
    hearth_names::fuzzing::replies()
}

/// Command lines of containerd.
pub fn shim_arguments() -> Vec<Vec<u8>> {
    texts(&[
        "-namespace\0k8s.io\0-id\0a\0-address\0/run/containerd/containerd.sock\0-bundle\0/b\0delete",
        "--namespace=k8s.io\0-debug=false\0-publish-binary\0/usr/bin/containerd\0start\0-id=b",
        "-info",
        "-v",
        "--\0start",
    ])
}

/// Lists of entries, with the host that is asked for.
pub fn allowed_hosts() -> Vec<Vec<u8>> {
    texts(&[
        "https://*.example.org:443\nredis://10.0.0.0/8:6379..6400\nhttp://self\n*://[::1]:*\nwww.example.org",
        "http://api.spin.internal\n*://*:*\n[::1]",
        "\nexample.org",
        "tcp://127.0.0.1:1\n127.0.0.1",
    ])
}

/// A locked application, and manifests of both versions.
pub fn spin_application() -> Vec<Vec<u8>> {
    texts(&[
        r#"{"spin_lock_version":1,"must_understand":["host_requirements"],"host_requirements":{"local_service_chaining":"required"},
        "metadata":{"name":"a","version":"1","triggers":{"http":{"base":"/"}}},"variables":{"a":{"default":"x"},"b":{"secret":true}},
        "triggers":[{"id":"t","trigger_type":"http","trigger_config":{"component":"c","route":"/a/..."}},
        {"id":"u","trigger_type":"http","trigger_config":{"route":"/s","static_response":{"status_code":201,"headers":{"a":"b"},"body":"c"}}},
        {"id":"p","trigger_type":"http","trigger_config":{"component":"d","route":{"private":true}}}],
        "components":[{"id":"c","metadata":{"allowed_outbound_hosts":["http://d.spin.internal","https://{{ a }}"],
        "key_value_stores":["default"],"databases":["default"]},"source":{"content_type":"application/wasm","digest":
        "sha256:7777777777777777777777777777777777777777777777777777777777777777"},"env":{"K":"V"},
        "files":[{"path":"a/b","content":{"inline":"aGk="}}],"config":{"k":"{{ b }}"}},
        {"id":"d","source":{"content_type":"application/wasm","inline":"AGFzbQEAAAA="}}]}"#,
        "spin_manifest_version = 2\n[application]\nname = \"a\"\nversion = \"1\"\n[variables]\na = { default = \"x\" }\n\
         b = { required = true, secret = true }\n[[trigger.http]]\nroute = \"/:id/...\"\ncomponent = \"c\"\n[[trigger.command]]\n\
         component = { source = \"d.wasm\" }\n[component.c]\nsource = \"c.wasm\"\nfiles = [{ source = \"/f\", destination = \"/g\" }]\n\
         allowed_outbound_hosts = [\"https://{{ a }}\"]\nkey_value_stores = [\"default\"]\n[component.c.variables]\nk = \"{{ b }}\"\n\
         [component.c.environment]\nE = \"v\"\n",
        "spin_manifest_version = \"1\"\nname = \"a\"\ntrigger = { type = \"http\", base = \"/\" }\n[[component]]\nid = \"c\"\n\
         source = \"c.wasm\"\nallowed_http_hosts = [\"insecure:allow-all\"]\n[component.trigger]\nroute = \"/a\"\n",
    ])
}

/// Runtime configurations; a variable of the container with a template.
pub fn spin_configuration() -> Vec<Vec<u8>> {
    texts(&[
        "max_instance_memory = 1048576\nstate_dir = \"/s\"\n[[variables_provider]]\ntype = \"static\"\nvalues = { a = \"b\" }\n\
         [[config_provider]]\ntype = \"env\"\nprefix = \"P\"\n[key_value_store.default]\ntype = \"spin\"\npath = \"/d\"\n\
         [key_value_store.r]\ntype = \"redis\"\nurl = \"redis://r\"\n[sqlite_database.default]\ntype = \"spin\"\n\
         [outbound_networking]\nblock_networks = [\"10.0.0.0/8\", \"private\"]\n",
        "0.0.0.0:80\nx {{ a }} y {{b}}",
        "[::1]:3000\n{{ a }}{{ a }}",
        "c,d\n{{",
    ])
}

/// Routes, with paths.
pub fn spin_route() -> Vec<Vec<u8>> {
    texts(&["/a/...\n/a/b/c", "/:x/b.:y\n/1/b.2", "/*\n/", "/a/b/\n/a/b", "/:file.json\n/x.json", "a\n//a//"])
}
