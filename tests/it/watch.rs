//! Monitoring of a node: Prometheus with the dashboards and rules, probes, the status page, the log.
//!
//! Files:
//!
//! * `panels.rs`: Prometheus, the panels and the rules.
//! * `pictures.rs`: the pictures in dashboards/README.md.

mod panels;
mod pictures;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use hearth_tests::daemons::{HearthdOptions, try_start_hearthd};
use hearth_tests::process::Process;
use hearth_tests::{Guest, LONG, Node, SHORT, World, eventually, paths};
use serde_json::Value;

use crate::only_on_hearth;

fn curl(world: &World, arguments: &[&str]) -> hearth_tests::Output {
    let all = ["--silent", "--show-error", "--max-time", "20"].iter().chain(arguments);
    world.program_on_machine("curl", all.copied()).run()
}

/// The status of an answer, and its body.
fn get(world: &World, arguments: &[&str]) -> (u16, String) {
    let all: Vec<_> = arguments.iter().copied().chain(["--write-out", "\n%{http_code}"]).collect();
    let answer = curl(world, &all).assert_code(0).stdout();
    let (body, status) = answer.rsplit_once('\n').expect("curl writes the status");
    (status.parse().expect("a status"), body.to_owned())
}

fn url(world: &World, path: &str) -> String {
    format!("http://{}{path}", world.metrics_address())
}

#[test]
fn the_endpoint_serves_metrics_probes_and_a_page_and_lists_its_paths() {
    only_on_hearth!();
    let world = World::new();
    let at = |path: &str| get(&world, &[&url(&world, path)]);
    assert_eq!(at("/healthz"), (200, "ok\n".into()));
    assert_eq!(at("/readyz"), (200, "ok\n".into()));
    let (status, text) = at("/metrics");
    assert_eq!(status, 200);
    let checked = world.program_on_machine("promtool", ["check", "metrics"]).stdin(text.into_bytes()).run();
    assert!(checked.status.success() && checked.stderr.is_empty() && checked.stdout.is_empty(), "{checked}");
    let (status, page) = at("/");
    assert!(status == 200 && page.starts_with("<!doctype html>") && page.contains("Recent starts"), "{page}");
    let (status, text) = at("/elsewhere");
    assert!(status == 404 && text.contains("/metrics"), "{text}");
    let (status, _) = get(&world, &["--request", "POST", &url(&world, "/metrics")]);
    assert_eq!(status, 405);
}

#[test]
fn a_drained_daemon_takes_no_new_tasks_and_says_so_wherever_one_looks() {
    only_on_hearth!();
    let world = World::new();
    let sleep = world.program(&Guest::SLEEP);
    world.run(&sleep, "before").args(["3600"]).detach().ok();
    let said = world.hearthctl(["drain"]).ok().stdout();
    assert!(said.contains("1 run on") && said.contains("--undo"), "{said}");
    world.run(&sleep, "during").args(["0"]).run().assert_fault(&["drained", "hearthctl drain --undo"]);
    let (status, text) = get(&world, &[&url(&world, "/readyz")]);
    assert!(status == 503 && text.contains("draining"), "{text}");
    assert_eq!(get(&world, &[&url(&world, "/healthz")]).0, 200);
    assert_eq!(world.metrics().sum("hearth_draining", &[]), 1.0);
    assert_eq!(world.ask(&["status"])[0]["draining"], true);
    assert_eq!(world.task_status("before").as_deref(), Some("RUNNING"));
    world.hearthctl(["drain", "--undo"]).ok();
    world.ctr(["containers", "rm", "during"]).run();
    world.run(&sleep, "after").args(["0"]).ok();
    assert_eq!(get(&world, &[&url(&world, "/readyz")]).0, 200);
}

#[test]
fn without_a_token_only_the_liveness_probe_is_answered() {
    only_on_hearth!();
    let mut world = World::new();
    world.stop_hearthd();
    let file = world.write("token", b"s3cret\n");
    let token = format!("token_file = {file:?}\n");
    let options = HearthdOptions { metrics: token, ..HearthdOptions::default() };
    let (hearthd, ready) = try_start_hearthd(world.machine(), world.layout(), &options);
    assert!(ready, "{}", world.hearthd_log());
    let with = |token: &str, path: &str| {
        get(&world, &["--header", &format!("Authorization: Bearer {token}"), &url(&world, path)]).0
    };
    for path in ["/metrics", "/", "/elsewhere"] {
        assert_eq!(get(&world, &[&url(&world, path)]).0, 401, "{path}");
        assert_eq!(with("guess", path), 401, "{path}");
    }
    assert_eq!(get(&world, &[&url(&world, "/healthz")]).0, 200);
    assert_eq!(with("s3cret", "/metrics"), 200);
    // The token is rotated while the daemon runs; then its file is removed.
    fs::write(&file, "another").unwrap();
    assert_eq!((with("s3cret", "/metrics"), with("another", "/metrics")), (401, 200));
    fs::remove_file(&file).unwrap();
    assert_eq!(with("another", "/metrics"), 503);
    assert!(hearthd.stop().success());
    let (mut hearthd, ready) = try_start_hearthd(world.machine(), world.layout(), &options);
    assert!(!ready && !hearthd.wait(SHORT).expect("it ends").success());
    assert!(world.hearthd_log().contains("metrics.token_file"), "{}", world.hearthd_log());
}

#[test]
fn tls_is_spoken_with_the_certificate_that_is_on_the_disk_now() {
    only_on_hearth!();
    let mut world = World::new();
    world.stop_hearthd();
    let (certificate, key) = (world.path("tls.crt"), world.path("tls.key"));
    make_certificate(&world, &certificate, &key);
    let tls = format!("tls_certificate = {certificate:?}\ntls_key = {key:?}\n");
    let options = HearthdOptions { metrics: tls, ..HearthdOptions::default() };
    let (hearthd, ready) = try_start_hearthd(world.machine(), world.layout(), &options);
    assert!(ready, "{}", world.hearthd_log());
    let secure = format!("https://{}/healthz", world.metrics_address());
    let scrape = |world: &World| curl(world, &["--cacert", &certificate.display().to_string(), &secure]);
    assert_eq!(scrape(&world).assert_code(0).stdout(), "ok\n");
    assert!(!curl(&world, &[&url(&world, "/healthz")]).status.success(), "plain HTTP is not served");
    let before = fs::metadata(&certificate).unwrap().modified().unwrap();
    make_certificate(&world, &certificate, &key);
    assert_ne!(fs::metadata(&certificate).unwrap().modified().unwrap(), before);
    assert_eq!(scrape(&world).assert_code(0).stdout(), "ok\n", "the new certificate is used");
    assert!(hearthd.stop().success());
    fs::write(&key, "no key").unwrap();
    let (mut hearthd, ready) = try_start_hearthd(world.machine(), world.layout(), &options);
    assert!(!ready && !hearthd.wait(SHORT).expect("it ends").success());
    assert!(world.hearthd_log().contains("metrics.tls_key"), "{}", world.hearthd_log());
}

fn make_certificate(world: &World, certificate: &Path, key: &Path) {
    let (certificate, key) = (certificate.display().to_string(), key.display().to_string());
    let subject = ["-subj", "/CN=hearth", "-addext", "subjectAltName=IP:127.0.0.1"];
    let arguments = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"];
    let files = ["-keyout", key.as_str(), "-out", certificate.as_str()];
    world.program_on_machine("openssl", arguments.iter().chain(&subject).chain(&files).copied()).ok();
}

#[test]
fn a_unix_socket_is_roots_and_a_port_that_is_taken_is_named() {
    only_on_hearth!();
    let mut world = World::new();
    let taken = world.metrics_address();
    let other = |address: &str, directory: &str| {
        let state = world.path(directory);
        let mut command = world.machine().command(paths::hearthd());
        command.arg("--state-dir").arg(&state).arg("--root-dir").arg(world.path("other-root"));
        command
            .args(["--metrics-address", address])
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped());
        Process::start("hearthd", &mut command)
    };
    let mut second = other(&taken, "taken");
    assert!(!second.wait(SHORT).expect("it ends").success());
    let mut said = String::new();
    std::io::Read::read_to_string(second.child().stderr.as_mut().unwrap(), &mut said).unwrap();
    assert!(said.contains("metrics.address") && said.contains(&taken) && said.contains("another program"), "{said}");
    world.hearthctl(["status"]).ok();

    let socket = world.path("metrics.sock");
    let third = other(&format!("unix:{}", socket.display()), "unix");
    eventually("the socket is there", SHORT, || socket.exists().then_some(()));
    let at = socket.display().to_string();
    let answered = eventually("it answers", SHORT, || {
        let answer = curl(&world, &["--unix-socket", &at, "http://localhost/healthz"]);
        answer.status.success().then(|| answer.stdout())
    });
    assert_eq!(answered, "ok\n");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(third.stop().success());
    assert!(!socket.exists(), "it is removed");
    world.stop_hearthd();
}

#[test]
fn the_log_is_changed_at_run_time_and_kept_for_each_task() {
    only_on_hearth!();
    let world = World::new();
    let trap = world.program(&Guest::TRAP);
    assert_eq!(world.ask(&["log-level"])["current"], "debug");
    world.hearthctl(["log-level", "no=such=level"]).run().assert_code(1).assert_fault(&["filter"]);
    world.hearthctl(["log-level", "warn"]).ok();
    assert_eq!(world.ask(&["log-level"])["current"], "warn");
    let before = world.hearthd_log().len();
    world.run(&trap, "quiet").run();
    assert!(!world.hearthd_log()[before..].contains("quiet"), "only warnings are logged");
    // The lines kept for each task do not depend on the log level.
    let lines = world.ask(&["logs", "quiet"]);
    let texts: Vec<_> = lines.as_array().unwrap().iter().map(|line| line["text"].as_str().unwrap()).collect();
    for part in ["created", "started", "a guest ended badly", "ended"] {
        assert!(texts.iter().any(|text| text.starts_with(part)), "{part}: {texts:?}");
    }
    assert!(lines.as_array().unwrap().iter().all(|line| line["task"] == "quiet"));
    let reset = world.hearthctl(["log-level", "--reset"]).ok().stdout();
    assert!(reset.contains("debug (as configured)"), "{reset}");
    assert!(world.metrics().sum("hearth_log_lines_total", &[("level", "info")]) > 0.0);
}

#[test]
fn a_start_is_told_phase_by_phase_and_a_trap_with_its_text() {
    only_on_hearth!();
    let world = World::new();
    let sleep = world.program(&Guest::SLEEP);
    let trap = world.program(&Guest::TRAP);
    world.run(&sleep, "cold").args(["3600"]).detach().ok();
    world.run(&sleep, "warm").args(["3600"]).detach().ok();
    let cold = world.ask(&["trace", "cold"]);
    assert_eq!((&cold["source"], &world.ask(&["trace", "warm"])["source"]), (&"compiled".into(), &"warm".into()));
    let phases: BTreeMap<_, _> = cold["phases"]
        .as_array()
        .unwrap()
        .iter()
        .map(|phase| (phase["name"].as_str().unwrap(), phase["seconds"].as_f64().unwrap()))
        .collect();
    let names: BTreeSet<_> = phases.keys().copied().collect();
    assert_eq!(names, BTreeSet::from(["bundle", "compile", "first_call", "instantiate", "lookup", "mounts"]));
    let own = cold["own_seconds"].as_f64().unwrap();
    assert!(phases.values().sum::<f64>() <= own && phases.values().all(|seconds| *seconds > 0.0), "{cold}");
    let text = world.hearthctl(["trace", "cold"]).ok().stdout();
    assert!(text.contains("compile") && text.contains("first instruction") && text.contains('▇'), "{text}");
    let slowest = world.ask(&["trace", "--slowest"]);
    assert_eq!(slowest[0]["id"], "cold");
    world.hearthctl(["trace", "no-such-task"]).run().assert_code(1).assert_fault(&["no task", "hearthctl ps"]);
    eventually("both are measured from their containers' making", SHORT, || {
        (world.metrics().sum("hearth_container_start_seconds_count", &[]) == 2.0).then_some(())
    });

    world.run(&trap, "trapper").run().assert_code(134);
    let end = &world.ask(&["traps"])[0];
    assert_eq!((&end["id"], &end["kind"], &end["status"]), (&"trapper".into(), &"trap".into(), &134.into()));
    assert!(end["text"].as_str().unwrap().contains("unreachable"), "{end}");
    let text = world.hearthctl(["traps"]).ok().stdout();
    assert!(text.contains("trapper") && text.contains("unreachable"), "{text}");

    let details = world.ask(&["inspect", "war"]);
    assert_eq!(details["task"]["id"], "warm");
    assert_eq!(details["image"], sleep.name.as_str(), "containerd says it");
    world.hearthctl(["inspect", "trapper"]).run().assert_code(1).assert_fault(&["no task"]);
    let top = world.hearthctl(["top", "--interval", "0.2"]).ok().stdout();
    assert!(top.contains("2 tasks running") && top.contains("warm"), "{top}");
}

#[test]
fn compiled_modules_are_verified_and_pruned() {
    only_on_hearth!();
    let world = World::new();
    let sleep = world.program(&Guest::SLEEP);
    let hello = world.program(&Guest::HELLO);
    world.run(&hello, "hello").ok();
    world.run(&sleep, "sleeper").args(["3600"]).detach().ok();
    assert_eq!(world.ask(&["modules", "verify"])["good"], 2);
    // A bit on the disk flips.
    let running = world.ask(&["ps"])[0]["module"].as_str().unwrap().to_owned();
    let store = world.layout().hearthd_root().join("modules");
    let files = || fs::read_dir(&store).unwrap().map(|entry| entry.unwrap().path());
    let artifact = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "artifact");
    let victim = files().filter(artifact).find(|path| !path.display().to_string().contains(&running)).unwrap();
    let mut bytes = fs::read(&victim).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&victim, bytes).unwrap();
    let verified = world.ask(&["modules", "verify"]);
    assert_eq!((&verified["good"], verified["removed"].as_array().unwrap().len()), (&1.into(), 1));
    assert!(!victim.exists());
    world.hearthctl(["modules", "prune"]).ok();
    assert_eq!(files().filter(artifact).count(), 1, "it is of this engine");
    world.run(&world.program(&Guest::EXIT), "exit").ok();
    assert_eq!(files().filter(artifact).count(), 2);
    let pruned = world.ask(&["modules", "prune", "--unused"]);
    assert_eq!(files().filter(artifact).count(), 1, "the running task's stays");
    assert!(pruned["bytes"].as_u64() > Some(0), "{pruned}");
    world.run(&hello, "again").ok();
}

#[test]
fn check_finds_the_faults_of_a_node_and_their_remedies() {
    only_on_hearth!();
    let mut node = Node::new();
    let containerd = node.layout().containerd_socket().display().to_string();
    let check = |node: &Node, more: &[&str]| {
        let arguments = ["check", "--json", "--containerd", &containerd];
        let answer = node.hearthctl(arguments.iter().chain(more).copied()).run();
        let findings: Vec<Value> =
            serde_json::from_slice(&answer.stdout).unwrap_or_else(|error| panic!("{error}: {answer}"));
        let states: BTreeMap<String, (String, String)> = findings
            .iter()
            .map(|found| {
                let text = |key: &str| found[key].as_str().unwrap().to_owned();
                (text("name"), (text("state"), text("detail") + " -> " + &text("remedy")))
            })
            .collect();
        (answer.code(), states)
    };
    let (code, states) = check(&node, &[]);
    assert_eq!(code, 0, "{states:#?}");
    for name in
        ["kernel", "control socket", "hearthd", "containerd", "runtime handler", "shim", "module store", "metrics"]
    {
        assert_eq!(states[name].0, "ok", "{name}: {states:#?}");
    }
    let (code, states) = check(&node, &["--handler", "wasm"]);
    assert_eq!((code, states["runtime handler"].0.as_str()), (1, "fail"));
    assert!(
        states["runtime handler"].1.contains("runc") || states["runtime handler"].1.contains("hearth"),
        "{states:#?}"
    );
    // The socket's mode lets every user connect.
    let socket = node.layout().control_socket();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    let (code, states) = check(&node, &[]);
    assert!(code == 1 && states["control socket"].1.contains("chmod 0600"), "{states:#?}");
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o600)).unwrap();
    node.stop_hearthd();
    let (code, states) = check(&node, &[]);
    assert!(code == 1 && states["hearthd"].1.contains("systemctl status hearthd"), "{states:#?}");
    node.start_hearthd();
    let text = node.hearthctl(["check", "--containerd", &containerd]).ok().stdout();
    assert!(text.contains("ok") && text.contains("runtime handler"), "{text}");
}

#[test]
fn completions_and_manual_pages_are_made_of_the_command_line() {
    only_on_hearth!();
    let world = World::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = world.hearthctl(["completion", shell]).ok().stdout();
        assert!(script.contains("hearthctl") && script.contains("log-level"), "{script}");
    }
    world.hearthctl(["completion", "tcsh"]).run().assert_code(2).assert_fault(&["bash"]);
    let directory = world.path("man");
    fs::create_dir(&directory).unwrap();
    world.hearthctl(["manual", &directory.display().to_string()]).ok();
    let page = fs::read_to_string(directory.join("hearthctl.8")).unwrap();
    assert!(page.contains(".SH") && page.contains("hearthctl\\-ps"), "{page}");
    assert!(directory.join("hearthctl-trace.8").exists());
    let text = fs::read_to_string(directory.join("hearthd.8")).unwrap();
    for part in
        ["hearthd \\- Keeps WebAssembly warm", "\\-\\-metrics\\-address", "OTEL_EXPORTER_OTLP_ENDPOINT", "SIGTERM"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
}

/// Takes a picture of the page in Chromium; returns false without Chromium.
fn photograph(world: &World, picture: &Path) -> bool {
    let page = get(world, &[&url(world, "/")]).1;
    let file = world.write("page.html", page.as_bytes());
    chromium(world, &file, &[&format!("--screenshot={}", picture.display()), "--window-size=1180,1300"]).is_some()
}

/// The output of headless Chromium; `None` if it is not installed.
fn chromium(world: &World, file: &Path, arguments: &[&str]) -> Option<String> {
    std::process::Command::new("chromium").arg("--version").output().ok()?;
    let home = format!("--user-data-dir={}", world.path("chromium").display());
    let base =
        ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", &home];
    let page = format!("file://{}", file.display());
    let all = base.iter().chain(arguments).copied().chain([page.as_str()]);
    let output = world.program_on_machine("chromium", all).env("HOME", world.path("")).deadline(LONG).run();
    assert!(output.status.success(), "{output}");
    Some(output.stdout())
}

#[test]
fn a_browser_shows_the_page_and_runs_nothing_that_a_guest_has_put_into_it() {
    only_on_hearth!();
    let world = World::new();
    let (sleep, trap) = (world.program(&Guest::SLEEP), world.program(&Guest::TRAP));
    world.run(&sleep, "sleeper").args(["3600"]).detach().ok();
    world.run(&trap, "trapper").run().assert_code(134);
    let evil = "<img src=x onerror=document.title=1>";
    world.run(&sleep, "evil").command([evil]).run();
    let page = get(&world, &[&url(&world, "/")]).1;
    assert!(!page.contains("<img"), "{page}");
    let file = world.write("page.html", page.as_bytes());
    let Some(dom) = chromium(&world, &file, &["--dump-dom"]) else {
        return crate::skipped("its part in a browser needs chromium, which `make test-page` installs");
    };
    let has = |text: &str| assert!(dom.contains(text), "{text}: {dom}");
    has("<title>Hearth");
    has("stories/sleeper");
    has("unreachable");
    has("class=\"compile\"");
    let cells = dom.matches("<rect class=\"first_call\"").count();
    assert!(cells >= 3, "a bar for each of two starts, and the legend: {cells}");
}
