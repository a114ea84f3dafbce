//! `hearthctl`, as an operator uses it.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use hearth_tests::{Guest, Imported, Node, SHORT, World, eventually};
use serde_json::Value;

use crate::only_on_hearth;

fn sleeper(world: &World, image: &Imported, id: &str) {
    world.run(image, id).args(["3600"]).detach().ok();
}

/// The row of a list in which `field` has this value.
fn find<'a>(rows: &'a Value, field: &str, value: &str) -> &'a Value {
    let rows = rows.as_array().expect("a list");
    rows.iter().find(|row| row[field] == value).unwrap_or_else(|| panic!("no {field} {value} in {rows:#?}"))
}

#[test]
fn status_ps_and_modules_tell_what_runs() {
    only_on_hearth!();
    let world = World::new();
    let status = &world.ask(&["status"])[0];
    assert_eq!((&status["tasks"]["running"], &status["pool"]["used"]), (&0.into(), &0.into()));
    let sleep = world.program(&Guest::SLEEP);
    let trap = world.program(&Guest::TRAP);
    sleeper(&world, &sleep, "sleeper");
    world.run(&trap, "trapper").detach().ok();
    world.wait_for_status("trapper", "STOPPED");

    let status = &world.ask(&["status"])[0];
    assert_eq!((&status["tasks"]["running"], &status["tasks"]["stopped"]), (&1.into(), &1.into()));
    assert_eq!(status["pool"]["used"], 1);
    assert_eq!(status["metrics_address"], world.metrics_address().as_str());
    assert_eq!(status["containerds"], serde_json::json!([world.layout().containerd_socket()]));
    let text = world.hearthctl(["status"]).ok().stdout();
    assert!(text.contains("1 running, 0 created, 0 paused, 1 stopped"), "{text}");
    assert!(!text.contains('\x1b'), "colours only on a terminal: {text:?}");

    let tasks = world.ask(&["ps"]);
    let task = find(&tasks, "id", "sleeper");
    assert_eq!(
        (&task["state"], &task["namespace"], &task["kind"]),
        (&"running".into(), &"stories".into(), &"program".into())
    );
    assert!(task["memory_bytes"].as_u64() > Some(0) && task["created_at"].as_f64() > Some(1e9), "{task}");
    assert_eq!(find(&tasks, "id", "trapper")["exit_status"], 134);
    assert_eq!(world.ask(&["ps", "--namespace", "other"]), serde_json::json!([]));
    let table = world.hearthctl(["ps", "--sort", "cpu"]).ok().stdout();
    assert!(table.starts_with("NAMESPACE") && table.contains("stopped (134)"), "{table}");

    let modules = world.ask(&["modules", "list"]);
    let module = find(&modules["compiled"], "digest", task["module"].as_str().unwrap());
    assert_eq!((&module["tasks"], &module["prepared"], &module["kind"]), (&1.into(), &true.into(), &"core".into()));
    assert!(module["bytes"].as_u64() > Some(1000), "{module}");
}

#[test]
fn a_pods_containers_have_its_name_and_image() {
    only_on_hearth!();
    let node = Node::new();
    let sleep = node.program(&Guest::SLEEP);
    let pod = node.pod("web").run();
    let container = pod.container("app", &sleep).args(["3600"]).start();
    container.wait_for_stdout("asleep");
    let tasks = node.ask(&["ps"]);
    let task = &tasks[0];
    assert_eq!(task["pod"]["name"], "web");
    assert_eq!(task["pod"]["container"], "app");
    assert_eq!(task["image"], sleep.name.as_str());
    assert_eq!(tasks.as_array().unwrap().len(), 1, "the sandbox is left out");
    assert_eq!(find(&node.ask(&["ps", "--all"]), "kind", "sandbox")["pod"]["name"], "web");
    let table = node.hearthctl(["ps"]).ok().stdout();
    assert!(table.contains("/web/app"), "{table}");
}

#[test]
fn errors_have_a_remedy_and_an_exit_status() {
    only_on_hearth!();
    let mut world = World::new();
    world.hearthctl(["stauts"]).run().assert_code(2).assert_fault(&["stauts", "status"]);
    world.hearthctl(["ps", "--sort", "size"]).run().assert_code(2).assert_fault(&["size", "memory"]);
    let socket = world.layout().control_socket();

    // Another user asks.
    let answer = world.hearthctl(["status"]).as_user(65_534).run();
    answer.assert_code(3).assert_fault(&["only root", "sudo"]);

    // No daemon runs.
    world.stop_hearthd();
    world.hearthctl(["status"]).run().assert_code(3).assert_fault(&["not running", "systemctl start hearthd"]);
    drop(UnixListener::bind(&socket).unwrap());
    world.hearthctl(["status"]).run().assert_code(3).assert_fault(&["nobody listens", "systemctl start hearthd"]);
    std::fs::remove_file(&socket).unwrap();

    // Another program listens.
    let answers: [(&[u8], &str); 3] =
        [(b"", "hung up"), (b"HTTP/1.1 400\r\n", "announces"), (&[0, 0, 0, 0], "not an answer")];
    for (bytes, says) in answers {
        let other = OtherProgram::at(&socket, bytes);
        world.hearthctl(["status"]).run().assert_code(3).assert_fault(&[says]);
        drop(other);
    }
    world.start_hearthd();
    world.hearthctl(["status"]).ok();
}

/// A program that answers every request with the same bytes.
struct OtherProgram(std::path::PathBuf);

impl OtherProgram {
    fn at(socket: &Path, answer: &'static [u8]) -> OtherProgram {
        let listener = UnixListener::bind(socket).unwrap();
        std::thread::spawn(move || {
            let (mut peer, _) = listener.accept().unwrap();
            let _ = peer.read(&mut [0; 1024]);
            let _ = peer.write_all(answer);
        });
        OtherProgram(socket.to_owned())
    }
}

impl Drop for OtherProgram {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn nonsense_questions_and_slow_readers_harm_no_other_client() {
    only_on_hearth!();
    let world = World::new();
    let hello = world.program(&Guest::HELLO);
    let socket = world.layout().control_socket();
    let idle: Vec<_> = (0..20).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    let ask = |json: &str| {
        let mut stream = UnixStream::connect(&socket).unwrap();
        let request = hearth_shim::Request { body: Some(hearth_shim::request::Body::Operator(json.into())) };
        hearth_shim::write_frame(&mut stream, &request).unwrap();
        hearth_shim::read_frame::<hearth_shim::Reply>(&mut stream).unwrap()
    };
    for question in ["", "{", "{\"question\":\"colour\"}", "[[[[[[[["] {
        let Some(hearth_shim::reply::Body::Error(text)) = ask(question).body else { panic!("{question} was answered") };
        assert!(text.contains("does not know the question"), "{text}");
    }
    world.run(&hello, "hello").ok();
    world.hearthctl(["status"]).ok();
    drop(idle);
    eventually("hearthctl is answered", SHORT, || world.hearthctl(["ps"]).run().status.success().then_some(()));
}
