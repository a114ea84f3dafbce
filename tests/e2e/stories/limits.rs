//! Limits, resource usage, crashes, and the ends of pods.

use std::time::Duration;

use serde_json::Value;

use crate::cluster::{NODE, condition};
use crate::story::{Story, assert_shows, container, items, number, text};

pub fn a_guest_beyond_its_memory_is_oom_killed(story: &mut Story<'_>) {
    story.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: greedy}
spec:
  runtimeClassName: hearth
  restartPolicy: Never
  containers:
  - {name: greedy, image: e2e.test/tools:1, command: [grow, "256", abort], resources: {limits: {memory: 32Mi}}}
  - {name: modest, image: e2e.test/tools:1, command: [grow, "16"], resources: {limits: {memory: 32Mi}}}
"#,
    );
    let pod = story.wait_phase("greedy", "Failed");
    let ended = |name: &str| container(&pod, name).expect("it has a status")["state"]["terminated"].clone();
    let greedy = ended("greedy");
    assert_eq!((text(&greedy, "/reason").as_str(), number(&greedy, "/exitCode")), ("OOMKilled", 137), "{greedy:#}");
    assert_eq!(number(&ended("modest"), "/exitCode"), 0);
    let described = story.said(["describe", "pod", "greedy"]);
    assert_shows(&described, &["Reason: OOMKilled", "Exit Code: 137"]);
}

/// kubelet's summary of a container's use.
fn used(story: &Story<'_>, pod: &str, name: &str) -> Option<Value> {
    let path = format!("/api/v1/nodes/{NODE}/proxy/stats/summary");
    let summary: Value = serde_json::from_str(&story.said(["get", "--raw", &path])).ok()?;
    let pods = summary["pods"].as_array()?;
    let pod = pods.iter().find(|known| text(known, "/podRef/name") == pod)?;
    pod["containers"].as_array()?.iter().find(|known| known["name"] == name).cloned()
}

pub fn the_summary_tells_what_a_guest_uses(story: &mut Story<'_>) {
    story.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: busy}
spec:
  runtimeClassName: hearth
  containers:
  - {name: spins, image: e2e.test/tools:1, command: [spin], resources: {limits: {cpu: 200m, memory: 32Mi}}}
  - {name: holds, image: e2e.test/tools:1, command: [grow, "24", "3600"], resources: {limits: {memory: 64Mi}}}
"#,
    );
    story.wait_ready("pod/busy");
    // kubelet asks for statistics every ten seconds, and needs two answers for a rate.
    let spins = story.wait("the summary has a rate for it", || {
        let used = used(story, "busy", "spins")?;
        (number(&used, "/cpu/usageNanoCores") > 50_000_000).then_some(used)
    });
    let seconds = |used: &Value| number(used, "/cpu/usageCoreNanoSeconds") as f64 / 1e9;
    let time = |used: &Value| text(used, "/cpu/time");
    let later = story.wait("the summary has a later value", || {
        let used = used(story, "busy", "spins")?;
        (time(&used) != time(&spins) && seconds(&used) > seconds(&spins) + 1.0).then_some(used)
    });
    let between = epoch(&time(&later)) - epoch(&time(&spins));
    let cores = (seconds(&later) - seconds(&spins)) / between;
    assert!((0.14..=0.22).contains(&cores), "a limit of 200m gives {cores:.3} cores over {between:.1} s");
    let holds = story.wait("the summary knows of its memory", || {
        let used = used(story, "busy", "holds")?;
        (number(&used, "/memory/workingSetBytes") > 0).then_some(used)
    });
    let mebibytes = number(&holds, "/memory/workingSetBytes") >> 20;
    assert!((24..=30).contains(&mebibytes), "24 MiB are held, {mebibytes} MiB are told");
    story
        .notes
        .push(format!("kubelet's summary: a limit of 200m gives {cores:.3} cores; 24 MiB held, {mebibytes} told"));
}

/// Seconds of a day of `2026-01-02T03:04:05Z`, with fractions; enough to tell two of them apart.
fn epoch(time: &str) -> f64 {
    let clock = time.split('T').nth(1).unwrap_or_default().trim_end_matches('Z');
    clock.split(':').filter_map(|part| part.parse::<f64>().ok()).fold(0.0, |sum, part| sum * 60.0 + part)
}

pub fn a_crash_loop_backs_off_and_comes_back(story: &mut Story<'_>) {
    story.apply(
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {other: "yes"}
---
apiVersion: v1
kind: Pod
metadata: {name: picky}
spec:
  runtimeClassName: hearth
  containers:
  # Ends with an error without its file, and waits for ever with it.
  - name: picky
    image: e2e.test/tools:1
    command: [files, read, /etc/app/wanted, ",", await, /etc/app/wanted, never]
    volumeMounts: [{name: settings, mountPath: /etc/app}]
  - {name: steady, image: e2e.test/tools:1, command: [sleep, "3600"]}
  volumes: [{name: settings, configMap: {name: settings}}]
"#,
    );
    let waiting = |pod: &Value| {
        container(pod, "picky").is_some_and(|status| text(status, "/state/waiting/reason") == "CrashLoopBackOff")
    };
    let pod = story.wait("it is in CrashLoopBackOff", || story.get(&["pod", "picky"]).filter(waiting));
    let picky = container(&pod, "picky").expect("it has a status");
    assert_eq!(text(picky, "/lastState/terminated/reason"), "Error");
    assert!(number(picky, "/restartCount") >= 1);
    assert!(story.said(["get", "pod", "picky"]).contains("CrashLoopBackOff"));
    story.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {wanted: something}\n");
    story.wait_ready("pod/picky");
    let pod = story.known(&["pod", "picky"]);
    let steady = container(&pod, "steady").expect("it has a status");
    assert_eq!(number(steady, "/restartCount"), 0, "its neighbour has not noticed");
}

pub fn a_pod_is_deleted_within_its_grace(story: &mut Story<'_>) {
    story.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: spinner}
spec:
  runtimeClassName: hearth
  terminationGracePeriodSeconds: 30
  containers: [{name: spinner, image: e2e.test/tools:1, command: [spin]}]
---
apiVersion: v1
kind: Pod
metadata: {name: farewell}
spec:
  runtimeClassName: hearth
  terminationGracePeriodSeconds: 30
  containers:
  - name: farewell
    image: e2e.test/tools:1
    command: [sleep, "3600"]
    volumeMounts: [{name: said, mountPath: /said}]
    lifecycle: {preStop: {exec: {command: [files, write, /said/farewell, goodbye]}}}
  volumes: [{name: said, hostPath: {path: FAREWELL, type: DirectoryOrCreate}}]
---
apiVersion: v1
kind: Pod
metadata: {name: forced}
spec:
  runtimeClassName: hearth
  containers: [{name: forced, image: e2e.test/tools:1, command: [spin]}]
"#
        .replace("FAREWELL", &story.cluster.node().path("said").display().to_string())
        .as_str(),
    );
    for pod in ["spinner", "farewell", "forced"] {
        story.wait_ready(&format!("pod/{pod}"));
    }
    let begun = std::time::Instant::now();
    story.said(["delete", "pod", "spinner"]);
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(20), "SIGTERM ends a guest that computes: {took:?}");
    story.said(["delete", "pod", "farewell"]);
    let farewell = std::fs::read_to_string(story.cluster.node().path("said/farewell"));
    assert_eq!(farewell.expect("the hook has run"), "goodbye");
    story.said(["delete", "pod", "forced", "--grace-period=0", "--force"]);
    let of_story = format!("labels.\"io.kubernetes.pod.namespace\"=={}", story.namespace());
    story.wait("containerd has none of them", || {
        let listed = story.cluster.node().ctr_in("k8s.io", ["containers", "ls", "--quiet", &of_story]).ok().stdout();
        listed.trim().is_empty().then_some(())
    });
}

/// The scheduler hears of a cordon later than kubectl: a pod made in between comes to the node still, and if it takes
/// the place of one that a drain has evicted, the drain may evict all of them.
fn wait_until_nothing_is_scheduled(story: &Story<'_>) {
    let mut probes = 0;
    story.wait("the scheduler knows that the node is cordoned", || {
        probes += 1;
        let name = format!("probe-{probes}");
        story.said(["run", &name, "--image=busybox:1", "--restart=Never", "--command", "--", "true"]);
        let is_refused = story.wait("the scheduler has looked at a pod", || {
            let pod = story.get(&["pod", &name])?;
            match condition(&pod, "PodScheduled")? {
                scheduled if scheduled == "True" => Some(false),
                _ => Some(true),
            }
        });
        story.said(["delete", "pod", &name, "--wait=false"]);
        is_refused.then_some(())
    });
}

pub fn a_drain_evicts_and_an_uncordon_brings_back(story: &mut Story<'_>) {
    story.apply(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: movable}
spec:
  replicas: 3
  selector: {matchLabels: {app: movable}}
  template:
    metadata: {labels: {app: movable}}
    spec:
      runtimeClassName: hearth
      containers: [{name: service, image: e2e.test/web:1}]
---
apiVersion: policy/v1beta1
kind: PodDisruptionBudget
metadata: {name: movable}
spec: {minAvailable: 1, selector: {matchLabels: {app: movable}}}
"#,
    );
    story.said(["rollout", "status", "deployment/movable", "--timeout=280s"]);
    story.wait("the budget is known", || {
        (number(&story.get(&["pdb", "movable"])?, "/status/disruptionsAllowed") == 2).then_some(())
    });
    story.said(["cordon", NODE]);
    wait_until_nothing_is_scheduled(story);
    // One has to stay, and there is no other node: the drain waits for its time-out.
    let drain = ["drain", NODE, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=20s"];
    let drained = story.kubectl(drain).run();
    assert!(!drained.status.success(), "{drained}");
    assert!(drained.stderr().contains("disruption budget"), "{drained}");
    assert_eq!(story.ready("app=movable"), 1);
    story.said(["delete", "pdb", "movable"]);
    story.said(drain);
    let pods = story.known(&["pods", "--selector=app=movable"]);
    let pending = items(&pods).filter(|pod| text(pod, "/status/phase") == "Pending").count();
    assert_eq!(pending, 3, "{:#}", pods["items"]);
    story.said(["uncordon", NODE]);
    story.said(["rollout", "status", "deployment/movable", "--timeout=280s"]);
    assert_eq!(story.ready("app=movable"), 3);
}
