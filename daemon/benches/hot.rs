//! The pure parts that every start goes through: the state machine, `config.json`, a snapshot's place and
//! what is known of it, and a guest's way through the scheduler's queue.
//!
//! `make bench-hot`; Criterion compares with the run before.

#![allow(missing_docs, reason = "criterion_group! makes a public function")]

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;

use criterion::{Criterion, criterion_group, criterion_main};
use hearth_base::bundle::TaskSpec;
use hearth_base::config::Config;
use hearth_base::digest::Digest;
use hearth_base::wanted::Wanted;
use hearth_observe::metrics::Metrics;
use hearth_wasm::modules::known::{KnownModule, KnownPlaces};
use hearth_wasm::modules::places::{Place, RootMount};
use hearth_wasm::scheduler::{Guest, Scheduler};
use hearthd::task::process::state::{Input, Role, State};

/// A config.json as `ctr run` writes it: see `bench/`.
const BARE: &str = r#"{"ociVersion":"1.1.0","process":{"user":{"uid":0,"gid":0},"args":["/hello.wasm"],"env":["PATH=/"],"cwd":"/"},"root":{"path":"rootfs"}}"#;

/// A config.json with the additions of CRI: capabilities, mounts, masked paths, and seccomp rules by the hundred.
fn cri() -> String {
    let mount = |number: usize| {
        format!(
            r#"{{"destination":"/m{number}","type":"bind","source":"/s{number}","options":["rbind","rprivate","ro"]}}"#
        )
    };
    let mounts: Vec<_> = (0..12).map(mount).collect();
    let env: Vec<_> = (0..20).map(|number| format!(r#""KUBERNETES_SERVICE_{number}=10.96.0.{number}""#)).collect();
    let calls: Vec<_> = (0..400).map(|number| format!(r#""system_call_{number}""#)).collect();
    format!(
        r#"{{"ociVersion":"1.1.0","process":{{"user":{{"uid":1000,"gid":1000,"additionalGids":[1000]}},"args":["/app.wasm","--listen"],"env":[{}],"cwd":"/","capabilities":{{"bounding":["CAP_CHOWN","CAP_KILL"]}}}},"root":{{"path":"rootfs"}},"mounts":[{}],"linux":{{"resources":{{"memory":{{"limit":134217728}},"cpu":{{"shares":256}}}},"namespaces":[{{"type":"network","path":"/run/netns/x"}}],"seccomp":{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{{"names":[{}],"action":"SCMP_ACT_ALLOW"}}]}}}}}}"#,
        env.join(","),
        mounts.join(","),
        calls.join(",")
    )
}

fn state(criterion: &mut Criterion) {
    criterion.bench_function("state: created to stopped", |bencher| {
        bencher.iter(|| {
            let mut state = State::Created;
            for input in [Input::Start, Input::Started, Input::Exited(0)] {
                let _ = std::hint::black_box(state.apply(std::hint::black_box(input), Role::Init));
            }
            state
        });
    });
}

fn spec(criterion: &mut Criterion) {
    let bundle = Path::new("/run/containerd/io.containerd.runtime.v2.task/k8s.io/x");
    let cri = cri();
    for (name, text) in [("bare", BARE), ("CRI", &cri)] {
        let name = format!("spec: {name}, {} bytes", text.len());
        criterion.bench_function(&name, |bencher| bencher.iter(|| TaskSpec::parse(text.as_bytes(), bundle)));
    }
}

fn look_up(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    for name in ["layer", "upper"] {
        std::fs::create_dir(directory.path().join(name)).expect("it is writable");
    }
    let path = |name: &str| directory.path().join(name).display().to_string();
    let options =
        ["index=off".to_owned(), format!("upperdir={}", path("upper")), format!("lowerdir={}", path("layer"))];
    let mounts = [RootMount { fstype: "overlay", options: &options }];
    let wanted = Wanted { program: "/app.wasm".into(), path: Some("/usr/bin:/bin".into()), cwd: "/".into() };
    let place = || Place::of_snapshot(&mounts, &wanted, &[]);
    criterion.bench_function("look-up: a snapshot's place", |bencher| bencher.iter(place));
    let places = KnownPlaces::open(None, Config::default().modules.places_max);
    let place = place().expect("it is an overlay");
    places.learn(place, KnownModule { digest: Digest([1; 32]), export: None });
    criterion.bench_function("look-up: what is known of a place", |bencher| bencher.iter(|| places.get(&place)));
}

fn scheduler(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be made");
    let config = Config::default().scheduler;
    let scheduler = Scheduler::start(&config, [], Arc::new(Metrics::new()), runtime.handle().clone());
    let scheduler = scheduler.expect("threads can be started");
    criterion.bench_function("scheduler: a guest that ends at once, there and back", |bencher| {
        bencher.iter(|| {
            let (ended, end) = channel();
            scheduler.spawn(Arc::new(Guest::default()), async {}, move |_| {
                let _ = ended.send(());
            });
            end.recv()
        });
    });
    scheduler.stop();
}

criterion_group!(hot, state, spec, look_up, scheduler);
criterion_main!(hot);
