//! The manifests of `deploy/`, unchanged: the examples, and the blocks in its pages.
//!
//! A page's manifests are its blocks fenced as `yaml`. All of them are applied in their order, and each pod, job and
//! deployment in them must become ready or succeed.

use std::fs;
use std::path::PathBuf;

use hearth_tests::paths;

use crate::story::{Story, items, text};

fn read(name: &str) -> String {
    let path: PathBuf = paths::repository().join("deploy").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The text of each block of a page that is fenced as `yaml`.
fn manifests(page: &str) -> Vec<String> {
    let text = read(page);
    let blocks = text.split("\n```yaml\n").skip(1);
    let blocks: Vec<_> = blocks.filter_map(|rest| Some(rest.split_once("\n```")?.0.to_owned())).collect();
    assert!(!blocks.is_empty(), "{page} has no manifest");
    blocks
}

/// Applies a manifest, and waits until each object in it is ready or has succeeded.
fn apply(story: &Story<'_>, manifest: &str) {
    let applied = story.kubectl(["apply", "-o", "name", "-f", "-"]).stdin(manifest).ok().stdout();
    for object in applied.lines() {
        let (kind, name) = object.split_once('/').unwrap_or_else(|| panic!("not a name: {object:?}"));
        match kind {
            "pod" => settled(story, name),
            "job.batch" => drop(story.said(["wait", "--for=condition=Complete", "--timeout=280s", object])),
            "deployment.apps" => drop(story.said(["rollout", "status", "--timeout=280s", object])),
            "configmap" | "secret" | "service" | "runtimeclass.node.k8s.io" => {}
            other => panic!("no check for a {other} of a page"),
        }
    }
}

/// Waits until a pod is Ready, or has succeeded if its restart policy lets it end.
fn settled(story: &Story<'_>, name: &str) {
    let pod = story.known(&["pod", name]);
    if text(&pod, "/spec/restartPolicy") == "Always" {
        story.wait_ready(&format!("pod/{name}"));
    } else {
        story.wait_phase(name, "Succeeded");
    }
}

pub fn the_examples_run(story: &mut Story<'_>) {
    for example in ["command", "volumes", "probes", "tcp", "http", "sidecar"] {
        apply(story, &read(&format!("kubernetes/examples/{example}.yaml")));
    }
    assert!(story.said(["logs", "hearth-command"]).contains("env GREETING=hello"));
    assert!(story.said(["logs", "hearth-volumes"]).contains("UTC"), "the date that the init container wrote");
    story.wait_said(&["logs", "hearth-sidecar", "--container", "watch"], "the guest answers: 1");
    story.wait_fetch(&format!("{}:80", story.service("hearth-http")), "/count", "1");
    let address = format!("{}:8080", story.service("hearth-tcp"));
    let greeting = story.cluster.node().machine().in_network(|| {
        let mut text = String::new();
        let mut stream = crate::story::connect(&address)?;
        std::io::Read::read_to_string(&mut stream, &mut text).map(|_| text)
    });
    assert_eq!(greeting.expect("the service has a pod"), "hello over TCP\n");
}

pub fn the_page_about_writing_a_pod_holds(story: &mut Story<'_>) {
    for manifest in manifests("write-a-pod.md") {
        apply(story, &manifest);
    }
    assert!(story.said(["logs", "job/greet"]).contains("hello from C"));
    story.wait_fetch(&format!("{}:80", story.service("web")), "/env/GREETING", "hello");
    story.wait_fetch(&format!("{}:80", story.service("web")), "/file/etc/app/settings.toml", "level");
    story.wait_said(&["logs", "mixed", "--container=fetch"], "prepared by busybox");
}

pub fn the_page_about_moving_holds(story: &mut Story<'_>) {
    let classes = || story.known(&["runtimeclasses"]);
    for manifest in manifests("move.md") {
        apply(story, &manifest);
    }
    // The names of the runtime classes that the page takes over, which now mean Hearth.
    let ours: Vec<_> = items(&classes()).filter(|class| text(class, "/handler") == "hearth").cloned().collect();
    assert!(ours.len() >= 3, "{ours:#?}");
    let pods = story.known(&["pods"]);
    let used: Vec<_> = items(&pods).map(|pod| text(pod, "/spec/runtimeClassName")).collect();
    for name in ["wasmtime", "wasmtime-spin-v2", "hearth"] {
        assert!(used.iter().any(|used| used == name), "no pod of {name} in {used:?}");
    }
    story.wait_fetch(&format!("{}:80", story.service("hello-spin")), "/count", "1");
    // Runtime classes have no namespace.
    story.said(["delete", "runtimeclass", "wasmtime", "wasmtime-spin-v2"]);
}
