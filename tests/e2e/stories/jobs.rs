//! Programs that end.

use serde_json::Value;

use crate::story::{Story, assert_shows, container, items, number, text};

pub fn a_job_succeeds(story: &mut Story<'_>) {
    story.apply(
        r#"
apiVersion: batch/v1
kind: Job
metadata: {name: greet}
spec:
  template:
    spec:
      runtimeClassName: hearth
      restartPolicy: Never
      containers:
      - name: greet
        image: e2e.test/tools:1
        command: [hello, one, two]
        env: [{name: GREETING, value: hi}]
      - name: last-words
        image: e2e.test/tools:1
        command: [files, write, /dev/termination-log, all is well]
"#,
    );
    story.said(["wait", "--for=condition=Complete", "--timeout=280s", "job/greet"]);
    let log = story.said(["logs", "job/greet", "--container=greet"]);
    for line in ["hello from C", "arg 2: two", "env GREETING=hi", "hello on stderr"] {
        assert!(log.contains(line), "{log}");
    }
    let described = story.said(["describe", "pods", "--selector=job-name=greet"]);
    assert_shows(&described, &["Status: Succeeded", "Reason: Completed", "Message: all is well", "Exit Code: 0"]);
    let described = story.said(["describe", "job", "greet"]);
    assert!(described.contains("0 Running / 1 Succeeded / 0 Failed"), "{described}");
}

pub fn a_job_fails_and_describe_says_why(story: &mut Story<'_>) {
    story.apply(
        r#"
apiVersion: batch/v1
kind: Job
metadata: {name: fail}
spec:
  backoffLimit: 1
  template:
    spec:
      runtimeClassName: hearth
      restartPolicy: Never
      containers:
      - name: trap
        image: e2e.test/tools:1
        command: [trap]
        terminationMessagePolicy: FallbackToLogsOnError
      - name: code
        image: e2e.test/tools:1
        command: [exit, "3"]
      - name: missing
        image: e2e.test/tools:1
        command: [/no-such.wasm]
      - name: native
        image: busybox:1
        command: [sh, -c, exit 4]
"#,
    );
    story.said(["wait", "--for=condition=Failed", "--timeout=280s", "job/fail"]);
    let described = story.said(["describe", "job", "fail"]);
    assert!(described.contains("BackoffLimitExceeded") && described.contains("2 Failed"), "{described}");
    let pods = story.known(&["pods", "--selector=job-name=fail"]);
    let pod = items(&pods).next().expect("a failed job keeps its pods");
    let ended = |name: &str| {
        let status = container(pod, name).unwrap_or_else(|| panic!("{:#}", pod["status"]));
        let state = &status["state"]["terminated"];
        (number(state, "/exitCode"), text(state, "/reason"), text(state, "/message"))
    };
    let (code, reason, message) = ended("trap");
    assert_eq!((code, reason.as_str()), (134, "Error"));
    assert!(message.contains("unreachable"), "wasmtime's words are the termination message: {message}");
    assert_eq!(ended("code"), (3, "Error".into(), String::new()));
    assert_eq!(ended("native"), (4, "Error".into(), String::new()));
    let (code, reason, message) = ended("missing");
    assert!(code != 0 && reason.ends_with("Error"), "{code} {reason}");
    assert!(message.contains("/no-such.wasm"), "{message}");
    let described = story.said(["describe", "pod", &name(pod)]);
    assert_shows(&described, &["Exit Code: 134", "unreachable", "Exit Code: 3", "/no-such.wasm"]);
}

fn name(pod: &Value) -> String {
    text(pod, "/metadata/name")
}
