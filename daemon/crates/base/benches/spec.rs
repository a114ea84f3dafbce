//! Parsing `config.json` with our own parser and with the crate oci-spec: the figures on the page of
//! `hearth_base::bundle`.
//!
//! `cargo bench --locked -p hearth-base --bench spec`

#![allow(missing_docs, reason = "criterion_group! makes a public function")]

use std::path::Path;

use criterion::{Criterion, criterion_group, criterion_main};
use hearth_base::bundle::TaskSpec;

/// The size of a `config.json` that `ctr run` writes for a minimal image.
const BARE: &str = r#"{"ociVersion":"1.1.0","process":{"user":{"uid":0,"gid":0},"args":["/hello.wasm"],"env":["PATH=/"],"cwd":"/"},"root":{"path":"rootfs"}}"#;

/// The parts that CRI adds for a container of an ordinary pod: capabilities, mounts, masked paths, hundreds of seccomp
/// rules.
fn cri() -> String {
    let mount = |number: usize| {
        format!(
            r#"{{"destination":"/m{number}","type":"bind","source":"/s{number}","options":["rbind","rprivate","ro"]}}"#
        )
    };
    let mounts: Vec<_> = (0..12).map(mount).collect();
    let env: Vec<_> = (0..20).map(|number| format!(r#""KUBERNETES_SERVICE_{number}=10.96.0.{number}""#)).collect();
    let calls: Vec<_> = (0..400).map(|number| format!(r#""system_call_{number}""#)).collect();
    let masked: Vec<_> = (0..12).map(|number| format!(r#""/proc/masked_{number}""#)).collect();
    format!(
        r#"{{"ociVersion":"1.1.0","process":{{"user":{{"uid":1000,"gid":1000,"additionalGids":[1000]}},"args":["/app.wasm","--listen"],"env":[{}],"cwd":"/","capabilities":{{"bounding":["CAP_CHOWN","CAP_KILL"]}}}},"root":{{"path":"rootfs"}},"mounts":[{}],"linux":{{"resources":{{"memory":{{"limit":134217728}},"cpu":{{"shares":256}}}},"namespaces":[{{"type":"network","path":"/run/netns/x"}}],"maskedPaths":[{}],"seccomp":{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{{"names":[{}],"action":"SCMP_ACT_ALLOW"}}]}}}}}}"#,
        env.join(","),
        mounts.join(","),
        masked.join(","),
        calls.join(",")
    )
}

fn spec(criterion: &mut Criterion) {
    let bundle = Path::new("/run/containerd/io.containerd.runtime.v2.task/k8s.io/x");
    let cri = cri();
    for (name, text) in [("bare", BARE), ("CRI", &cri)] {
        let text = text.as_bytes();
        TaskSpec::parse(text, bundle).expect("ours parses it");
        serde_json::from_slice::<oci_spec::runtime::Spec>(text).expect("oci-spec parses it");
        let size = text.len();
        criterion.bench_function(&format!("{name}, {size} bytes: ours"), |bencher| {
            bencher.iter(|| TaskSpec::parse(std::hint::black_box(text), bundle));
        });
        criterion.bench_function(&format!("{name}, {size} bytes: oci-spec"), |bencher| {
            bencher.iter(|| serde_json::from_slice::<oci_spec::runtime::Spec>(std::hint::black_box(text)));
        });
    }
}

criterion_group!(benches, spec);
criterion_main!(benches);
