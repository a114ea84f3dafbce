//! HTTP components behind a service.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hearth_tests::{SHORT, eventually};
use serde_json::Value;

use crate::story::{Story, fetch, items, number, text};

/// A Deployment of HTTP components, and its service. (In 1.20 a service's port has no other name for the
/// pod's than its number or name.)
fn site(replicas: u32, version: &str) -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: site}}
spec:
  replicas: {replicas}
  strategy: {{rollingUpdate: {{maxUnavailable: 0, maxSurge: 2}}}}
  selector: {{matchLabels: {{app: site}}}}
  template:
    metadata: {{labels: {{app: site}}}}
    spec:
      runtimeClassName: hearth
      terminationGracePeriodSeconds: 20
      containers:
      - name: service
        image: e2e.test/web:1
        ports: [{{name: http, containerPort: 8080}}]
        env: [{{name: VERSION, value: {version}}}]
        volumeMounts: [{{name: work, mountPath: /work}}]
        startupProbe: {{httpGet: {{path: /env/VERSION, port: http}}, periodSeconds: 1, failureThreshold: 30, timeoutSeconds: 10}}
        readinessProbe: {{exec: {{command: [files, list, /work]}}, periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 10}}
        livenessProbe: {{httpGet: {{path: /count, port: http}}, periodSeconds: 2, timeoutSeconds: 10}}
        lifecycle: {{preStop: {{exec: {{command: [sleep, "3"]}}}}}}
        resources: {{limits: {{memory: 64Mi}}}}
      volumes:
      - {{name: work, emptyDir: {{}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: site}}
spec:
  selector: {{app: site}}
  ports: [{{port: 80, targetPort: http}}]
"#
    )
}

/// The answers to clients that send requests all the time.
#[derive(Default)]
struct AnswerLog {
    answers: AtomicU64,
    failures: Mutex<Vec<String>>,
    stop: AtomicBool,
}

/// Asks, a connection a request, until told to stop.
fn ask(address: &str, log: &AnswerLog) {
    while !log.stop.load(Ordering::Relaxed) {
        match fetch(address, "/env/VERSION") {
            Ok((200, _)) => {
                log.answers.fetch_add(1, Ordering::Relaxed);
            }
            other => log.failures.lock().expect("no thread panics with the lock held").push(format!("{other:?}")),
        }
        // Often enough to hit any gap, with processor time left for the rest.
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// Calls `work` while two clients ask for the version; each request must be answered. `work` gets the counter of the
/// answers, and the result is their number.
pub fn while_asked(story: &Story<'_>, address: &str, work: impl FnOnce(&AtomicU64)) -> u64 {
    let log = AnswerLog::default();
    std::thread::scope(|scope| {
        let machine = story.cluster.node().machine();
        for _ in 0..2 {
            scope.spawn(|| machine.in_network(|| ask(address, &log)));
        }
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&log.answers)));
        log.stop.store(true, Ordering::Relaxed);
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    let failures = log.failures.into_inner().expect("no thread panics with the lock held");
    let answers = log.answers.into_inner();
    assert!(
        failures.is_empty(),
        "{} failures beside {answers} answers: {:?}",
        failures.len(),
        &failures[..failures.len().min(5)]
    );
    answers
}

/// The addresses behind the service.
fn endpoints(story: &Story<'_>) -> Vec<String> {
    let Some(endpoints) = story.get(&["endpoints", "site"]) else { return Vec::new() };
    let subsets = endpoints["subsets"].as_array().cloned().unwrap_or_default();
    let addresses = subsets.iter().filter_map(|subset| subset["addresses"].as_array()).flatten();
    addresses.map(|address| text(address, "/ip")).collect()
}

pub fn a_service_of_http_components_answers(story: &mut Story<'_>) {
    story.apply(&site(2, "one"));
    story.said(["rollout", "status", "deployment/site", "--timeout=280s"]);
    let address = format!("{}:80", story.service("site"));
    story.wait_fetch(&address, "/env/VERSION", "one");
    assert_eq!(endpoints(story).len(), 2);
    // Each request has an instance of its own.
    for _ in 0..3 {
        assert_eq!(story.fetch(&address, "/count").expect("it answers"), (200, "1\n".to_owned()));
    }
    assert_eq!(story.fetch(&address, "/trap").expect("it answers").0, 500);
    let pods = story.known(&["pods", "--selector=app=site"]);
    let restarts: i64 = items(&pods).map(|pod| number(pod, "/status/containerStatuses/0/restartCount")).sum();
    assert_eq!(restarts, 0, "a request that traps ends no container");
    // From another pod, natively, by the service's address.
    let from = format!("http://{address}/env/VERSION");
    // (Not with --attach: output before kubectl is attached goes to the log alone.)
    let asked = ["run", "client", "--image=busybox:1", "--restart=Never", "--command"];
    story.said(asked.into_iter().chain(["--", "wget", "-q", "-O-", from.as_str()]));
    story.wait_phase("client", "Succeeded");
    let said = story.said(["logs", "client"]);
    assert!(said.contains("one"), "{said}");
}

pub fn probes_take_a_pod_out_of_its_service_and_restart_it(story: &mut Story<'_>) {
    // Ready as long as /work is there; alive as long as its port answers 200.
    let manifest = site(2, "one")
        .replace("command: [files, list, /work]", "command: [files, size, /work/ready]")
        .replace("path: /count", "path: /file/work/alive");
    // The files come from an init container that is native, so that the pods are told apart from the first.
    let prepare = "      initContainers:\n      - {name: prepare, image: 'busybox:1', command: [sh, -c, 'echo yes \
                   >/work/ready; echo yes >/work/alive'], volumeMounts: [{name: work, mountPath: /work}]}\n      \
                   containers:\n      - name: service";
    story.apply(&manifest.replace("      containers:\n      - name: service", prepare));
    story.said(["rollout", "status", "deployment/site", "--timeout=280s"]);
    story.wait("both pods are behind the service", || (endpoints(story).len() == 2).then_some(()));
    let pods = story.pods("app=site");
    let (pod, other) = (pods[0].as_str(), story.address(&pods[1]));
    story.said(["exec", pod, "--", "files", "remove", "/work/ready"]);
    story.wait("the pod is out of the service", || (endpoints(story) == [other.clone()]).then_some(()));
    let described = story.wait_said(&["describe", "pod", pod], "Readiness probe failed");
    assert!(described.contains("/work/ready"), "the probe's own words are shown:\n{described}");
    story.said(["exec", pod, "--", "files", "write", "/work/ready", "yes"]);
    story.wait("it is back", || (endpoints(story).len() == 2).then_some(()));
    // Not alive: kubelet ends the container and starts another, in the same pod.
    story.said(["exec", pod, "--", "files", "remove", "/work/alive"]);
    story.wait_said(&["describe", "pod", pod], "Liveness probe failed: HTTP probe failed with statuscode: 404");
    let restarts = |known: &Value| number(known, "/status/containerStatuses/0/restartCount");
    story.wait("the container is restarted", || (restarts(&story.get(&["pod", pod])?) >= 1).then_some(()));
    story.said(["exec", pod, "--", "files", "write", "/work/alive", "yes"]);
    story.wait_ready(&format!("pod/{pod}"));
}

pub fn a_rollout_and_a_rollback_fail_no_request(story: &mut Story<'_>) {
    story.apply(&site(3, "one"));
    story.said(["rollout", "status", "deployment/site", "--timeout=280s"]);
    let address = format!("{}:80", story.service("site"));
    story.wait_fetch(&address, "/env/VERSION", "one");
    let answers = while_asked(story, &address, |_| {
        story.said(["set", "env", "deployment/site", "VERSION=two"]);
        story.said(["rollout", "status", "deployment/site", "--timeout=280s"]);
        only(story, &address, "two");
        story.said(["rollout", "undo", "deployment/site"]);
        story.said(["rollout", "status", "deployment/site", "--timeout=280s"]);
        only(story, &address, "one");
    });
    story.note(format!("a rollout and a rollback of 3 pods: {answers} requests answered, none failed"));
}

/// Waits until only this version's pods are left, and checks that the service answers with it.
fn only(story: &Story<'_>, address: &str, version: &str) {
    story.wait("the old pods are gone", || {
        (items(&story.get(&["pods", "--selector=app=site"])?).count() == 3).then_some(())
    });
    for _ in 0..10 {
        assert_eq!(story.fetch(address, "/env/VERSION").expect("it answers"), (200, version.to_owned()));
    }
}

pub fn a_port_is_forwarded(story: &mut Story<'_>) {
    story.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: http}
spec:
  runtimeClassName: hearth
  containers: [{name: service, image: e2e.test/web:1, env: [{name: VERSION, value: forwarded}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: tcp}
spec:
  runtimeClassName: hearth
  containers: [{name: server, image: 'registry.example/tcp:1', args: ["7000"]}]
"#,
    );
    story.wait_ready("pod/http");
    story.wait_ready("pod/tcp");
    let mut forward = story.kubectl(["port-forward", "pod/http", "18080:8080"]).spawn();
    forward.wait_for_stdout("Forwarding from 127.0.0.1:18080");
    for _ in 0..3 {
        let answer = story.fetch("127.0.0.1:18080", "/env/VERSION").expect("it is forwarded");
        assert_eq!(answer, (200, "forwarded".to_owned()));
    }
    drop(forward);
    let mut forward = story.kubectl(["port-forward", "pod/tcp", "17000:7000"]).spawn();
    forward.wait_for_stdout("Forwarding from 127.0.0.1:17000");
    let greeting = story.cluster.node().machine().in_network(|| {
        let mut text = String::new();
        let mut stream = crate::story::connect("127.0.0.1:17000")?;
        std::io::Read::read_to_string(&mut stream, &mut text).map(|_| text)
    });
    assert_eq!(greeting.expect("it is forwarded"), "hello over TCP\n");
}

pub fn a_deleted_pod_answers_what_it_was_asked(story: &mut Story<'_>) {
    story.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: slow}
spec:
  runtimeClassName: hearth
  terminationGracePeriodSeconds: 30
  containers: [{name: service, image: e2e.test/web:1}]
"#,
    );
    story.wait_ready("pod/slow");
    let address = format!("{}:8080", story.address("slow"));
    story.wait_fetch(&address, "/count", "1");
    let machine = story.cluster.node().machine();
    let took = std::thread::scope(|scope| {
        let asked = (0..4).map(|_| scope.spawn(|| machine.in_network(|| fetch(&address, "/slow")))).collect::<Vec<_>>();
        eventually("all are under way", SHORT, || {
            (story.cluster.node().metrics().sum("hearth_http_requests_in_flight", &[]) == 4.0).then_some(())
        });
        let begun = std::time::Instant::now();
        story.kubectl(["delete", "pod", "slow"]).ok();
        let took = begun.elapsed();
        for answer in asked {
            let answer = answer.join().expect("it does not panic");
            assert_eq!(answer.expect("the request is answered"), (200, "slow\n".to_owned()));
        }
        took
    });
    assert!(took.as_secs() < 20, "a drained pod ends before its grace does: {took:?}");
    assert!(story.fetch(&address, "/count").is_err());
}
