//! Parts of a pod: configuration, native containers, the node's network.

use crate::cluster::NODE_ADDRESS;
use crate::story::{Story, container, text};

pub fn an_update_of_a_config_map_and_a_secret_is_seen(story: &mut Story<'_>) {
    let configuration = |text: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: settings}}\ndata: {{level: {text}}}\n---\n\
             apiVersion: v1\nkind: Secret\nmetadata: {{name: keys}}\nstringData: {{key: {text}}}\n"
        )
    };
    story.apply(&configuration("first"));
    story.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: reader}
spec:
  runtimeClassName: hearth
  containers:
  - name: service
    image: e2e.test/web:1
    env: [{name: AT_START, valueFrom: {configMapKeyRef: {name: settings, key: level}}}]
    envFrom: [{secretRef: {name: keys}}]
    volumeMounts:
    - {name: settings, mountPath: /etc/app, readOnly: true}
    - {name: keys, mountPath: /etc/keys, readOnly: true}
    - {name: settings, mountPath: /etc/one, subPath: level}
    - {name: about, mountPath: /etc/about}
  volumes:
  - {name: settings, configMap: {name: settings}}
  - {name: keys, secret: {secretName: keys, defaultMode: 0400}}
  - name: about
    downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}
"#,
    );
    story.wait_ready("pod/reader");
    let address = format!("{}:8080", story.address("reader"));
    for path in ["/file/etc/app/level", "/file/etc/keys/key", "/file/etc/one", "/env/AT_START", "/env/key"] {
        story.wait_fetch(&address, path, "first");
    }
    story.wait_fetch(&address, "/file/etc/about/name", "reader");
    story.apply(&configuration("second"));
    story.wait_fetch(&address, "/file/etc/app/level", "second");
    story.wait_fetch(&address, "/file/etc/keys/key", "second");
    // As for any container, a file bound alone and the environment do not change.
    story.wait_fetch(&address, "/file/etc/one", "first");
    story.wait_fetch(&address, "/env/AT_START", "first");
    // The service account's token is a file, too.
    story.wait_fetch(&address, "/file/var/run/secrets/kubernetes.io/serviceaccount/token", "ey");
}

pub fn a_native_init_container_and_sidecar_are_beside_wasm(story: &mut Story<'_>) {
    story.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: mixed}
spec:
  runtimeClassName: hearth
  terminationGracePeriodSeconds: 2
  initContainers:
  - name: native-first
    image: busybox:1
    command: [sh, -c, "echo prepared natively >/work/text"]
    volumeMounts: [{name: work, mountPath: /work}]
  - name: wasm-second
    image: e2e.test/tools:1
    command: [files, append, /work/text, and by Wasm]
    volumeMounts: [{name: work, mountPath: /work}]
  containers:
  - name: service
    image: e2e.test/web:1
    volumeMounts: [{name: work, mountPath: /work}]
  - name: sidecar
    image: busybox:1
    command: [sh, -c, "while sleep 0.2; do wget -q -O- http://localhost:8080/file/work/text && echo; done"]
    livenessProbe: {exec: {command: [sh, -c, "true"]}, periodSeconds: 2, timeoutSeconds: 10}
    resources: {limits: {memory: 32Mi}}
  volumes: [{name: work, emptyDir: {}}]
"#,
    );
    story.wait_ready("pod/mixed");
    story.wait_said(&["logs", "mixed", "--container=sidecar"], "prepared natively\nand by Wasm");
    assert_eq!(story.said(["exec", "mixed", "-c", "sidecar", "--", "hostname"]), "mixed\n");
    assert!(story.said(["exec", "mixed", "-c", "sidecar", "--", "cat", "/proc/1/cmdline"]).contains("wget"));
    // The pod is deleted within its grace, also though the shell, as a first process, ignores SIGTERM.
    let begun = std::time::Instant::now();
    story.said(["delete", "pod", "mixed"]);
    assert!(begun.elapsed().as_secs() < 25, "{:?}", begun.elapsed());
}

pub fn an_ephemeral_container_looks_at_a_wasm_pod(story: &mut Story<'_>) {
    story.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: patient}
spec:
  runtimeClassName: hearth
  terminationGracePeriodSeconds: 1
  containers: [{name: service, image: e2e.test/web:1, env: [{name: VERSION, value: looked at}]}]
"#,
    );
    story.wait_ready("pod/patient");
    // (From 1.25 on it is `kubectl debug`.)
    let debug = ["alpha", "debug", "patient", "--container=doctor", "--image=busybox:1", "--image-pull-policy=Never"];
    let command = ["--", "sh", "-c", "wget -q -O- http://localhost:8080/env/VERSION; echo; exit 0"];
    story.said(debug.iter().chain(&command).copied());
    story.wait_said(&["logs", "patient", "--container=doctor"], "looked at");
    let pod = story.wait("it has ended", || {
        let pod = story.get(&["pod", "patient"])?;
        container(&pod, "doctor")?.pointer("/state/terminated")?;
        Some(pod)
    });
    assert_eq!(container(&pod, "doctor").expect("it has a status")["state"]["terminated"]["exitCode"], 0);
    assert!(container(&pod, "service").is_some_and(|service| service["ready"] == true));
}

pub fn a_pod_on_the_nodes_network_has_the_nodes_address(story: &mut Story<'_>) {
    story.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: on-the-node}
spec:
  runtimeClassName: hearth
  hostNetwork: true
  containers:
  - name: service
    image: e2e.test/web:1
    env: [{name: HEARTH_HTTP_PORT, value: "18081"}, {name: VERSION, value: on the node}]
    ports: [{containerPort: 18081}]
    readinessProbe: {httpGet: {path: /count, port: 18081}, periodSeconds: 1, timeoutSeconds: 10}
"#,
    );
    story.wait_ready("pod/on-the-node");
    assert_eq!(story.address("on-the-node"), NODE_ADDRESS);
    for address in ["127.0.0.1:18081".to_owned(), format!("{NODE_ADDRESS}:18081")] {
        story.wait_fetch(&address, "/env/VERSION", "on the node");
    }
}

pub fn a_plain_linux_pod_runs_beside_them(story: &mut Story<'_>) {
    story.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: plain}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: httpd
    image: busybox:1
    command: [sh, -c, "mkdir /www && echo plain >/www/index.html && exec httpd -f -p 8080 -h /www"]
    readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1, timeoutSeconds: 10}
  - {name: echo, image: 'busybox:1', command: [nc, -ll, -p, "7000", -e, head, -c, "5"]}
---
apiVersion: v1
kind: Pod
metadata: {name: wasm}
spec:
  runtimeClassName: hearth
  containers: [{name: client, image: e2e.test/tools:1, command: [sleep, "3600"]}]
"#,
    );
    story.wait_ready("pod/plain");
    story.wait_ready("pod/wasm");
    let plain = story.address("plain");
    story.wait_fetch(&format!("{plain}:8080"), "/", "plain");
    // From one to the other, each by its own runtime.
    assert_eq!(story.said(["exec", "wasm", "--", "net", "fetch", &plain, "7000"]), "hello");
    let pods = story.known(&["pods"]);
    let classes: Vec<_> = crate::story::items(&pods).map(|pod| text(pod, "/spec/runtimeClassName")).collect();
    assert_eq!(classes, ["", "hearth"]);
}

pub fn aliases_users_and_deadlines_of_a_pod_hold(story: &mut Story<'_>) {
    story.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: alias}
spec:
  runtimeClassName: hearth
  restartPolicy: Never
  hostAliases: [{ip: 10.1.2.3, hostnames: [alias.test]}]
  securityContext: {runAsNonRoot: true, runAsUser: 1000}
  containers: [{name: alias, image: e2e.test/tools:1, command: [net, lookup, alias.test]}]
---
apiVersion: v1
kind: Pod
metadata: {name: root}
spec:
  runtimeClassName: hearth
  securityContext: {runAsNonRoot: true}
  containers: [{name: root, image: e2e.test/tools:1, command: [sleep, "3600"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: late}
spec:
  runtimeClassName: hearth
  restartPolicy: Never
  activeDeadlineSeconds: 3
  containers: [{name: late, image: e2e.test/tools:1, command: [spin]}]
"#,
    );
    story.wait_phase("alias", "Succeeded");
    assert!(story.said(["logs", "alias"]).contains("10.1.2.3"));
    story.wait_said(&["describe", "pod", "root"], "container has runAsNonRoot and image will run as root");
    let late = story.wait_phase("late", "Failed");
    assert_eq!(text(&late, "/status/reason"), "DeadlineExceeded");
}
