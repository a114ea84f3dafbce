//! A user's commands for a running pod: logs, exec, attach, cp.

use crate::story::{Story, container, number};

pub fn logs_are_followed_and_the_logs_of_a_crash_are_kept(story: &mut Story<'_>) {
    story.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: counter}
spec:
  runtimeClassName: hearth
  containers: [{name: counter, image: e2e.test/tools:1, command: [tally], stdin: true}]
---
apiVersion: v1
kind: Pod
metadata: {name: crasher}
spec:
  runtimeClassName: hearth
  containers: [{name: crasher, image: e2e.test/tools:1, command: [files, read, /no/such/file]}]
"#,
    );
    story.wait_ready("pod/counter");
    let mut log = story.kubectl(["logs", "--follow", "counter"]).spawn();
    let mut attached = story.kubectl(["attach", "--stdin", "counter"]).open_stdin().spawn();
    for line in 1..=3 {
        attached.write(b"a line\n");
        // Each line is there before the next is asked for.
        log.wait_for_stdout(&format!("line {line}\n"));
    }
    story.wait("the container is restarted", || {
        let pod = story.get(&["pod", "crasher"])?;
        (number(container(&pod, "crasher")?, "/restartCount") >= 1).then_some(())
    });
    let previous = story.wait_said(&["logs", "--previous", "crasher"], "/no/such/file");
    assert!(previous.contains("No such file or directory"), "{previous}");
}

pub fn exec_runs_a_program_of_the_image(story: &mut Story<'_>) {
    story.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: target}
spec:
  runtimeClassName: hearth
  containers:
  - name: main
    image: e2e.test/tools:1
    command: [sleep, "3600"]
    env: [{name: COLOUR, value: red}]
    volumeMounts: [{name: work, mountPath: /work}]
    # The probe is a Wasm program, too: it fails until the file is there.
    readinessProbe: {exec: {command: [files, read, /work/ready]}, periodSeconds: 1, timeoutSeconds: 10}
    lifecycle:
      postStart: {exec: {command: [files, write, /work/started, "yes"]}}
  volumes: [{name: work, emptyDir: {}}]
"#,
    );
    story.wait_phase("target", "Running");
    assert_eq!(story.said(["exec", "target", "--", "files", "read", "/work/started"]), "yes");
    story.wait_said(&["describe", "pod", "target"], "Readiness probe failed");
    story.said(["exec", "target", "--", "files", "write", "/work/ready", "yes"]);
    story.wait_ready("pod/target");
    let said = story.said(["exec", "target", "--", "/hello.wasm", "an argument"]);
    assert!(said.contains("arg 1: an argument") && said.contains("env COLOUR=red"), "{said}");
    let failed = story.kubectl(["exec", "target", "--", "exit", "5"]).run();
    assert!(failed.stderr().contains("exit code 5"), "{failed}");
    let refused = story.kubectl(["exec", "target", "--", "sh", "-c", "ls"]).run();
    assert!(!refused.status.success() && refused.stderr().contains("sh"), "{refused}");
    story.note(format!("`kubectl exec … -- sh` says: {}", refused.stderr().lines().next().unwrap_or_default()));
    // Typed at a terminal, as `kubectl exec -it` does it.
    let exec = story.kubectl(["exec", "--stdin", "--tty", "target", "--", "tty"]);
    let mut terminal = exec.on_terminal().open_stdin().spawn();
    terminal.wait_for_stdout("terminals 111");
    terminal.write(b"typed\r");
    terminal.wait_for_stdout("got <typed>");
    terminal.write(b"\x04");
    terminal.wait_for_stdout("the end");
    // stdin of an exec without one.
    let said = story.kubectl(["exec", "--stdin", "target", "--", "tally"]).stdin("one\ntwo\n").ok().stdout();
    assert!(said.contains("end after 2"), "{said}");
}

pub fn attach_reaches_stdin_and_stdout(story: &mut Story<'_>) {
    story.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: listener}
spec:
  runtimeClassName: hearth
  restartPolicy: Never
  containers: [{name: main, image: e2e.test/tools:1, command: [tally], stdin: true, stdinOnce: true}]
---
apiVersion: v1
kind: Pod
metadata: {name: terminal}
spec:
  runtimeClassName: hearth
  restartPolicy: Never
  containers: [{name: main, image: e2e.test/tools:1, command: [tty], stdin: true, tty: true}]
"#,
    );
    story.wait_ready("pod/listener");
    story.wait_ready("pod/terminal");
    let mut attached = story.kubectl(["attach", "--stdin", "listener"]).open_stdin().spawn();
    attached.write(b"one\n");
    attached.wait_for_stdout("line 1");
    attached.write(b"two\n");
    attached.wait_for_stdout("line 2");
    // stdinOnce: the first client that leaves closes it.
    attached.close_stdin();
    story.wait_phase("listener", "Succeeded");
    assert!(story.said(["logs", "listener"]).contains("end after 2"));
    let mut attached = story.kubectl(["attach", "--stdin", "--tty", "terminal"]).on_terminal().open_stdin().spawn();
    attached.write(b"typed\r");
    attached.wait_for_stdout("got <typed>");
    attached.write(b"\x04");
    let pod = story.wait_phase("terminal", "Failed");
    let status = container(&pod, "main").expect("it has a status");
    assert_eq!(number(status, "/state/terminated/exitCode"), 6);
}

pub fn cp_needs_a_tar_that_is_wasm(story: &mut Story<'_>) {
    story.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: mixed}
spec:
  runtimeClassName: hearth
  terminationGracePeriodSeconds: 1
  containers:
  - {name: wasm, image: e2e.test/tools:1, command: [sleep, "3600"], volumeMounts: [{name: work, mountPath: /work}]}
  - {name: native, image: 'busybox:1', command: [sleep, "3600"], volumeMounts: [{name: work, mountPath: /work}]}
  volumes: [{name: work, emptyDir: {}}]
"#,
    );
    story.wait_ready("pod/mixed");
    let here = story.cluster.node().write("to-be-copied", b"copied").display().to_string();
    let failed = story.kubectl(["cp", "-c", "wasm", &here, "mixed:/work/file"]).run();
    assert!(!failed.status.success() && failed.stderr().contains("tar"), "{failed}");
    // Through a native container that shares the volume.
    story.said(["cp", "-c", "native", &here, "mixed:/work/file"]);
    assert_eq!(story.said(["exec", "mixed", "-c", "wasm", "--", "files", "read", "/work/file"]), "copied");
    story.said(["exec", "mixed", "-c", "wasm", "--", "files", "write", "/work/answer", "written by Wasm"]);
    let there = story.cluster.node().path("copied-back");
    story.said(["cp", "-c", "native", "mixed:/work/answer", &there.display().to_string()]);
    assert_eq!(std::fs::read_to_string(there).expect("it was copied"), "written by Wasm");
}
