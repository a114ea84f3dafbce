//! Daemons that stop, are replaced and die while a Deployment of 50 pods runs.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use serde_json::{Value, json};

use hearth_tests::eventually;

use super::web::while_asked;
use crate::cluster::DEADLINE;
use crate::story::{Story, items, number, text};

/// The number of pods.
const PODS: usize = 50;

fn serve(story: &Story<'_>) -> String {
    story.apply(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: many}
spec:
  replicas: 50
  selector: {matchLabels: {app: many}}
  template:
    metadata: {labels: {app: many}}
    spec:
      runtimeClassName: hearth
      containers:
      - name: service
        image: e2e.test/web:1
        env: [{name: VERSION, value: many}]
        readinessProbe: {httpGet: {path: /env/VERSION, port: 8080}, periodSeconds: 1, timeoutSeconds: 10}
---
apiVersion: v1
kind: Service
metadata: {name: many}
spec: {selector: {app: many}, ports: [{port: 80, targetPort: 8080}]}
"#,
    );
    story.said(["rollout", "status", "deployment/many", "--timeout=280s"]);
    let address = format!("{}:80", story.service("many"));
    story.wait_fetch(&address, "/env/VERSION", "many");
    address
}

/// The restarts of each pod, by its name.
fn restarts(story: &Story<'_>) -> BTreeMap<String, i64> {
    let pods = story.known(&["pods", "--selector=app=many"]);
    let one = |pod: &Value| (text(pod, "/metadata/name"), number(pod, "/status/containerStatuses/0/restartCount"));
    items(&pods).map(one).collect()
}

/// The history of each pod, by its name, which changes with any event: its containers' ids and start times, its
/// address, and the time since which kubelet has found it Ready.
fn lives(story: &Story<'_>) -> BTreeMap<String, Value> {
    let one = |pod: &Value| {
        let ready = pod["status"]["conditions"].as_array().into_iter().flatten().find(|known| known["type"] == "Ready");
        let life = json!({
            "uid": pod["metadata"]["uid"],
            "address": pod["status"]["podIP"],
            "containers": pod["status"]["containerStatuses"],
            "ready": ready,
        });
        (text(pod, "/metadata/name"), life)
    };
    items(&story.known(&["pods", "--selector=app=many"])).map(one).collect()
}

/// The column STATUS of `kubectl get pods`, counted: `48 Running, 2 Error`.
fn statuses(story: &Story<'_>) -> String {
    let listed = story.said(["get", "pods", "--selector=app=many", "--no-headers"]);
    let mut counts = BTreeMap::new();
    for line in listed.lines() {
        let mut fields = line.split_whitespace().skip(1);
        let (ready, status) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        *counts.entry(format!("{status} {ready}")).or_insert(0) += 1;
    }
    counts.iter().map(|(status, count)| format!("{count} {status}")).collect::<Vec<_>>().join(", ")
}

pub fn a_restart_of_containerd_fails_no_request_of_50_pods(story: &mut Story<'_>) {
    let address = serve(story);
    let before = restarts(story);
    story.cluster.node_mut().stop_containerd();
    let answers = while_asked(story, &address, |answers| {
        story.wait("many requests are answered without containerd", || (answers.load(Relaxed) >= 300).then_some(()));
    });
    story.cluster.node_mut().start_containerd();
    let more = while_asked(story, &address, |_| {
        story.cluster.node().cri().wait_until_ready();
        // kubelet has reached containerd again, and found its pods.
        story.wait_said(&["exec", "deployment/many", "--", "files", "list", "/"], "service.wasm");
        story.said(["rollout", "status", "deployment/many", "--timeout=280s"]);
    });
    story
        .notes
        .push(format!("containerd restarted under {PODS} pods: {} requests answered, none failed", answers + more));
    assert_eq!(story.ready("app=many"), PODS);
    assert_eq!(restarts(story), before, "no container was restarted, no pod replaced");
    // containerd still starts and ends pods.
    story.said(["scale", "deployment/many", "--replicas=52"]);
    story.said(["rollout", "status", "deployment/many", "--timeout=280s"]);
}

pub fn an_upgrade_of_the_daemon_fails_no_request_of_50_pods(story: &mut Story<'_>) {
    let address = serve(story);
    let before = lives(story);
    let answers = while_asked(story, &address, |answers| {
        // Pods of three generations are behind the service at last.
        for pods in [PODS + 1, PODS + 2] {
            story.cluster.node().upgrade_hearthd();
            let so_far = answers.load(Relaxed);
            story.wait("many requests are answered after an upgrade", || {
                (answers.load(Relaxed) >= so_far + 300).then_some(())
            });
            story.said(["scale", "deployment/many", &format!("--replicas={pods}")]);
            story.said(["rollout", "status", "deployment/many", "--timeout=280s"]);
        }
        // kubelet reaches each pod, in every generation.
        for pod in story.pods("app=many") {
            assert!(story.said(["exec", &pod, "--", "files", "list", "/"]).contains("service.wasm"), "{pod}");
        }
    });
    story.note(format!("hearthd upgraded twice under {PODS} pods: {answers} requests answered, none failed"));
    let mut after = lives(story);
    assert_eq!(after.len(), PODS + 2);
    after.retain(|name, _| before.contains_key(name));
    assert_eq!(after, before, "no container was restarted, no pod replaced or found not Ready");
    assert_eq!(story.cluster.node_mut().older_hearthds(), 2, "the older daemons have their pods");
    // A rollout moves them all to the newest; the older leave when kubelet has removed the last of theirs.
    story.said(["rollout", "restart", "deployment/many"]);
    story.said(["rollout", "status", "deployment/many", "--timeout=280s"]);
    let begun = Instant::now();
    eventually("the older daemons leave", DEADLINE, || (story.cluster.node_mut().older_hearthds() == 0).then_some(()));
    story.note(format!("  after a rollout the older daemons have left within {:.1} s", begun.elapsed().as_secs_f64()));
    story.wait_fetch(&address, "/env/VERSION", "many");
    assert!(lives(story).values().all(|pod| number(pod, "/containers/0/restartCount") == 0));
}

pub fn a_killed_daemon_is_replaced_and_50_pods_heal(story: &mut Story<'_>) {
    let address = serve(story);
    let before = restarts(story);
    story.cluster.node_mut().kill_hearthd();
    let killed = Instant::now();
    story.wait("kubectl shows that pods are not Ready", || (story.ready("app=many") < PODS).then_some(()));
    let (shown, after) = (statuses(story), killed.elapsed());
    story
        .notes
        .push(format!("hearthd killed under {PODS} pods: {:.1} s later kubectl shows {shown}", after.as_secs_f64()));
    let begun = Instant::now();
    story.cluster.node_mut().start_hearthd();
    story.wait("all pods are Ready again", || (story.ready("app=many") == PODS).then_some(()));
    let healed = begun.elapsed();
    story.note(format!("  all are Ready again {:.1} s after it was started", healed.as_secs_f64()));
    story.wait_fetch(&address, "/env/VERSION", "many");
    let now = restarts(story);
    assert!(now.keys().eq(before.keys()), "the same pods: {before:?}, {now:?}");
    let pods = story.known(&["pods", "--selector=app=many"]);
    for pod in items(&pods) {
        let status = &pod["status"]["containerStatuses"][0];
        assert!(number(status, "/restartCount") >= 1, "{status:#}");
        assert_ne!(number(status, "/lastState/terminated/exitCode"), 0, "{status:#}");
    }
    story.wait_said(&["get", "events", "--field-selector=reason=SandboxChanged"], "will be killed and re-created");
    // Leftovers of the old daemon do not block a new pod.
    story.said(["scale", "deployment/many", "--replicas=52"]);
    story.said(["rollout", "status", "deployment/many", "--timeout=280s"]);
}
