//! Each verb honours `--socket`, `--json` and `--color`, or refuses them. The verbs are those of the command line: a new
//! verb is covered without being named here.

#![allow(clippy::disallowed_methods, reason = "a test starts hearthctl")]

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use hearth_shim::{Reply, Request, read_frame, reply, write_frame};

/// `check` reports a daemon that does not answer as one of its findings.
const REPORTS_ANY_DAEMON: &str = "check";

/// A verb with the arguments that it needs.
struct Verb {
    names: Vec<String>,
    arguments: Vec<String>,
}

/// Every verb of the command line that has no verbs below it.
fn verbs() -> Vec<Verb> {
    fn walk(command: &clap::Command, names: &[String], found: &mut Vec<Verb>) {
        let below: Vec<_> = command.get_subcommands().filter(|command| command.get_name() != "help").collect();
        if below.is_empty() {
            found.push(Verb { names: names.to_vec(), arguments: required(command) });
        }
        for command in below {
            walk(command, &[names, &[command.get_name().to_owned()]].concat(), found);
        }
    }
    let mut command = hearth_ctl::command();
    command.build();
    let mut found = Vec::new();
    walk(&command, &[], &mut found);
    assert!(found.len() > 15, "only {} verbs", found.len());
    found
}

/// A value for each argument that a verb cannot do without.
fn required(command: &clap::Command) -> Vec<String> {
    let value = |argument: &clap::Arg| match argument.get_possible_values().first() {
        Some(value) => value.get_name().to_owned(),
        None => "/nonexistent".to_owned(),
    };
    let required = command.get_arguments().filter(|argument| argument.is_required_set());
    required
        .flat_map(|argument| argument.get_long().map(|long| format!("--{long}")).into_iter().chain([value(argument)]))
        .collect()
}

fn hearthctl(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hearthctl"));
    command.args(arguments).env_remove("HEARTH_CONTROL_SOCKET").output().unwrap()
}

impl Verb {
    /// Runs it with flags before or after its names. Nothing it could change is within its reach.
    fn run(&self, flags: &[&str], flags_first: bool) -> Output {
        let own: Vec<&str> = self.names.iter().chain(&self.arguments).map(String::as_str).collect();
        let mut all = if flags_first { [flags, &own].concat() } else { [&own, flags].concat() };
        if self.names == [REPORTS_ANY_DAEMON] {
            all.push("--no-containerd");
        }
        hearthctl(&all)
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), b"\n", output.stderr.as_slice()].concat()).into_owned()
}

/// A socket that answers each connection with these bytes and hangs up.
fn answering(directory: &Path, name: &str, answer: &'static [u8]) -> PathBuf {
    let path = directory.join(name);
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // (hearthctl may have hung up.)
            let _ = stream.unwrap().write_all(answer);
        }
    });
    path
}

#[test]
fn no_verb_ignores_the_socket() {
    let directory = tempfile::tempdir().unwrap();
    let sockets = [
        directory.path().join("absent.sock"),
        answering(directory.path(), "silent.sock", b""),
        answering(directory.path(), "wrong.sock", &[0xff; 64]),
    ];
    for verb in verbs() {
        for (index, socket) in sockets.iter().enumerate() {
            let path = socket.to_str().unwrap();
            let output = verb.run(&["--socket", path], index % 2 == 0);
            let said = said(&output);
            match output.status.code() {
                Some(2) => assert!(said.contains("--socket has no meaning here"), "{:?}: {said}", verb.names),
                Some(1) if verb.names == [REPORTS_ANY_DAEMON] => assert!(said.contains(path), "{said}"),
                code => {
                    assert_eq!(code, Some(3), "{:?} at {path}: {said}", verb.names);
                    assert!(said.contains(path), "{:?} does not name {path}: {said}", verb.names);
                }
            }
        }
    }
}

/// A daemon that gives the same answer to every question.
fn daemon_that_answers(directory: &Path, name: &str, answer: &'static str) -> PathBuf {
    let path = directory.join(name);
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            read_frame::<Request>(&mut stream).unwrap();
            for piece in [answer, ""] {
                write_frame(&mut stream, &Reply { body: Some(reply::Body::Operator(piece.into())) }).unwrap();
            }
        }
    });
    path
}

#[test]
fn no_verb_ignores_json_and_color() {
    let directory = tempfile::tempdir().unwrap();
    // A list is one answer, a structure of defaults the other: each question understands one of them.
    let daemons = ["[]", "{}"].map(|answer| daemon_that_answers(directory.path(), answer, answer));
    let mut printed = 0;
    for verb in verbs() {
        let run = |flags: &[&str]| {
            let outputs = daemons
                .each_ref()
                .map(|socket| verb.run(&[flags, &["--socket", socket.to_str().unwrap()]].concat(), true));
            outputs.into_iter().find(|output| output.status.success())
        };
        if let Some(output) = run(&["--json"]) {
            let values = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<serde_json::Value>();
            let values: Result<Vec<_>, _> = values.collect();
            assert!(values.is_ok_and(|values| !values.is_empty()), "{:?}: {}", verb.names, said(&output));
            printed += 1;
        }
        if let Some(output) = run(&["--color", "never"]) {
            assert!(!output.stdout.contains(&0x1b), "{:?}: {}", verb.names, said(&output));
        }
    }
    assert!(printed > 10, "only {printed} verbs printed an answer");
    for verb in [&["completion", "bash"][..], &["manual", "/nonexistent"]] {
        for flag in ["--json", "--color=never", "--socket=/x"] {
            let output = hearthctl(&[verb, &[flag]].concat());
            assert_eq!(output.status.code(), Some(2), "{verb:?} {flag}: {}", said(&output));
            assert!(said(&output).contains("has no meaning here"), "{verb:?} {flag}: {}", said(&output));
        }
    }
}

#[test]
fn lists_of_no_generations_and_no_changes_are_json() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let config = directory.path().join("config.toml");
    let root = directory.path().to_str().unwrap();
    for arguments in [
        &["--json", "generations", "--state-dir", state.to_str().unwrap()][..],
        &["--json", "stop", "--state-dir", state.to_str().unwrap()],
        &["--json", "uninstall", "containerd", "--root", root, "--config", config.to_str().unwrap()],
        &[
            "install",
            "containerd",
            "--json",
            "--dry-run",
            "--root",
            root,
            "--config",
            "/config.toml",
            "--containerd-version",
            "1.7",
        ],
    ] {
        let output = hearthctl(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", said(&output));
        serde_json::from_slice::<serde_json::Value>(&output.stdout)
            .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {}", said(&output)));
    }
    let both = hearthctl(&["--socket", "/nonexistent/x.sock", "generations", "--state-dir", state.to_str().unwrap()]);
    assert_eq!(both.status.code(), Some(2), "{}", said(&both));
}
