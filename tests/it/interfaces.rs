//! Host interfaces beyond WASI's own: configuration and key-value stores.

use std::fs::{self, Permissions};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{PermissionsExt, symlink};

use hearth_tests::ctr::Output;
use hearth_tests::servers::{Server, free_port};
use hearth_tests::tls::Authority;
use hearth_tests::{Guest, Imported, World};

use crate::only_on_hearth;

/// Runs the guest with this environment and these mounts: pairs of a source and a destination.
fn store(world: &World, image: &Imported, env: &[&str], mounts: &[(&str, &str)], arguments: &[&str]) -> Output {
    let mut flags = vec!["--net-host".to_owned()];
    for variable in env {
        flags.extend(["--env".to_owned(), (*variable).to_owned()]);
    }
    for (source, destination) in mounts {
        flags.push("--mount".to_owned());
        flags.push(format!("type=bind,src={source},dst={destination},options=rbind:rw"));
    }
    world.run(image, "store").flags(flags).args(arguments.iter().copied()).run()
}

/// A directory of the machine's, for a volume.
fn volume(world: &World, name: &str) -> String {
    world.directory(name).to_str().expect("the paths of a machine are text").to_owned()
}

#[test]
fn an_interface_is_off_until_its_setting_is_there_and_right() {
    only_on_hearth!();
    let world = World::new();
    let image = world.program(&Guest::STORE);
    let run = |env: &[&str]| store(&world, &image, env, &[], &["config"]);
    run(&[]).assert_fault(&[
        "the component imports wasi:config/store@0.2.0-draft-2024-09-27, which is off in this container",
        "turn it on by the environment variable HEARTH_CONFIG",
    ]);
    run(&["HEARTH_CONFIG=env"]).assert_fault(&[
        "the component imports wasi:keyvalue/",
        "turn it on by the environment variable HEARTH_KEYVALUE: \"memory:\"",
    ]);
    run(&["HEARTH_CONFIG=env", "HEARTH_KEYVALUE=ftp://user:secret@host"])
        .assert_fault(&["HEARTH_KEYVALUE: the address of the store \"default\" is none of"]);
    run(&["HEARTH_CONFIG=app", "HEARTH_KEYVALUE=memory:"])
        .assert_fault(&["HEARTH_CONFIG: \"app\" is neither \"env\" nor the absolute path of a directory"]);
    let on = run(&["HEARTH_CONFIG=env", "HEARTH_KEYVALUE=memory:", "COLOUR=red"]).assert_code(0);
    assert!(on.stdout().contains("COLOUR=red\n"), "{on}");
}

#[test]
fn configuration_is_read_from_files_and_from_the_environment() {
    only_on_hearth!();
    let world = World::new();
    let image = world.program(&Guest::STORE);
    let files = volume(&world, "app");
    let file = |name: &str, text: &str, mode| {
        let path = format!("{files}/{name}");
        fs::write(&path, text).expect("it can be written");
        fs::set_permissions(path, Permissions::from_mode(mode)).expect("it is ours");
    };
    file("colour", "blue", 0o644);
    // As kubelet lays out a ConfigMap: keys are links to a directory that it replaces as a whole.
    fs::create_dir(format!("{files}/..data")).expect("it can be made");
    fs::write(format!("{files}/..data/level"), "7").expect("it can be written");
    symlink("..data/level", format!("{files}/level")).expect("it can be made");
    file("secret", "of root", 0o600);
    let env = ["HEARTH_CONFIG=/etc/app,env", "HEARTH_KEYVALUE=memory:", "colour=red", "shape=round"];
    let mounts = [(files.as_str(), "/etc/app")];
    let keys = ["config", "colour", "level", "shape", "missing", "../app/colour", "..data", "secret"];
    let read = store(&world, &image, &env, &mounts, &keys).assert_code(0);
    assert_eq!(read.stdout(), "blue\n7\nround\n(none)\n(none)\n(none)\nof root\n");
    let all = store(&world, &image, &env, &mounts, &["config"]).assert_code(0).stdout();
    // Without those of `ctr` and of Hearth, which are in capitals.
    let lines: Vec<_> = all.lines().filter(|line| line.starts_with(|first: char| first.is_lowercase())).collect();
    assert_eq!(lines, ["colour=blue", "level=7", "secret=of root", "shape=round"]);
    // A file is read at each call.
    file("colour", "green", 0o644);
    assert_eq!(store(&world, &image, &env, &mounts, &["config", "colour"]).assert_code(0).stdout(), "green\n");
}

/// The calls that each kind of store answers alike.
const SCRIPT: &[(&[&str], &str)] = &[
    (&["set", "a", "1", "get", "a", "get", "b", "exists", "a", "exists", "b"], "1\n(none)\nyes\nno\n"),
    (&["set", "a", "2", "get", "a", "delete", "a", "get", "a", "delete", "a"], "2\n(none)\n"),
    (&["count", "n", "5", "count", "n", "-7", "count", "n", "0"], "5\n-2\n-2\n"),
    (
        &["swap", "s", "new", "get", "s", "swap", "s", "newer", "get", "s"],
        "(none)\nswapped\nnew\nnew\nswapped\nnewer\n",
    ),
    (&["late-swap", "s", "other", "mine", "get", "s"], "newer\nnot swapped: other\nother\n"),
    (&["many", "x", "1", "y", "2"], "x=1\ny=2\n"),
    (&["older", "z", "26"], "26\n5 keys\n3\n"),
];

#[test]
fn each_kind_of_store_answers_alike_and_keeps_what_it_can() {
    only_on_hearth!();
    let world = World::new();
    let image = world.program(&Guest::STORE);
    let redis = Server::redis(&world, None);
    let data = volume(&world, "data");
    let stores = format!(
        "HEARTH_KEYVALUE=memory: file=file:/data/kv/store.db cache=redis://127.0.0.1:{}/1 gone=redis://127.0.0.1:1",
        redis.port
    );
    let env = ["HEARTH_CONFIG=env", stores.as_str()];
    let mounts = [(data.as_str(), "/data")];
    let run = |arguments: &[&str]| store(&world, &image, &env, &mounts, arguments);
    for name in ["", "file", "cache"] {
        let words: Vec<&str> = SCRIPT.iter().flat_map(|(words, _)| words.iter().copied()).collect();
        let expected: String = SCRIPT.iter().map(|(_, output)| *output).collect();
        let answered = run(&[&[name], words.as_slice()].concat()).assert_code(0);
        assert_eq!(answered.stdout(), expected, "the store {name:?}");
    }
    // What is in the container's memory is gone with it; what is on a volume or a server is kept.
    assert_eq!(run(&["default", "get", "s"]).assert_code(0).stdout(), "(none)\n");
    assert_eq!(run(&["file", "get", "s", "count", "n", "1"]).assert_code(0).stdout(), "other\n-1\n");
    assert_eq!(run(&["cache", "get", "s", "count", "n", "1"]).assert_code(0).stdout(), "other\n-1\n");
    assert!(fs::metadata(format!("{data}/kv/store.db")).is_ok_and(|file| file.len() > 0));
    // Redis has the keys as they are, in the database that the address names.
    assert_eq!(redis.redis_answer(&world, "SELECT 1\r\nGET s"), "+OK\r\n$5\r\nother\r\n");
    let missing = run(&["elsewhere", "get", "s"]).assert_code(1);
    assert_eq!(missing.stderr(), "open: no such store\n");
    let gone = run(&["gone", "get", "s"]).assert_code(1);
    assert!(gone.stderr().contains("get: 127.0.0.1:1: Connection refused"), "{gone}");
    let no_counter = run(&["file", "count", "s", "1"]).assert_code(1);
    assert_eq!(no_counter.stderr(), "count: the value of this key is no counter: it has 5 bytes\n");
    // A server that ends is the call's error, and a new one is found again by the same address.
    redis.kill();
    assert!(run(&["cache", "get", "s"]).assert_code(1).stderr().contains("Connection refused"));
}

#[test]
fn a_store_on_redis_is_reached_by_tls_with_the_containers_certificates() {
    only_on_hearth!();
    let world = World::new();
    let image = world.program(&Guest::STORE);
    let authority = Authority::new();
    let (certificate, key) = authority.pair("localhost");
    let redis = Server::redis(&world, Some((&certificate, &key)));
    let trusted = volume(&world, "trusted");
    fs::write(format!("{trusted}/ca.pem"), authority.pem()).expect("it can be written");
    let stores = format!("HEARTH_KEYVALUE=rediss://localhost:{}", redis.tls_port);
    let hosts = volume(&world, "etc");
    fs::write(format!("{hosts}/hosts"), "127.0.0.1 localhost\n").expect("it can be written");
    let hosts = format!("{hosts}/hosts");
    let mounts = [(trusted.as_str(), "/trusted"), (hosts.as_str(), "/etc/hosts")];
    let run = |more: &str| {
        let env = ["HEARTH_CONFIG=env", stores.as_str(), more];
        store(&world, &image, &env, &mounts, &["default", "set", "a", "1", "get", "a"])
    };
    assert_eq!(run("SSL_CERT_FILE=/trusted/ca.pem").assert_code(0).stdout(), "1\n");
    let untrusted = run("OTHER=1").assert_code(1);
    assert!(untrusted.stderr().contains("set: TLS with localhost: "), "{untrusted}");
}

#[test]
fn a_store_in_memory_counts_as_the_containers_memory() {
    only_on_hearth!();
    let world = World::new();
    let image = world.program(&Guest::STORE);
    let flags = ["--env", "HEARTH_CONFIG=env", "--env", "HEARTH_KEYVALUE=memory:", "--memory-limit", "33554432"];
    let run = |mebibytes: &str| world.run(&image, "full").flags(flags).args(["default", "fill", "k", mebibytes]).run();
    let full = run("64").assert_code(1);
    assert!(full.stderr().contains("set: the store has no room left"), "{full}");
    assert_eq!(run("8").assert_code(0).stdout(), "filled\n");
}

#[test]
fn a_silent_server_and_a_lost_link_are_errors_of_the_call() {
    only_on_hearth!();
    let world = World::configured("[interfaces]\nconnect_timeout_ms = 300\ncall_timeout_ms = 500\n");
    let image = world.program(&Guest::STORE);
    // It accepts connections and answers nothing.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("the loopback is up");
    let port = silent.local_addr().expect("it is bound").port();
    let data = volume(&world, "data");
    symlink("/outside/store.db", format!("{data}/link.db")).expect("it can be made");
    symlink("/../../../../../../../../../../../../made-outside", format!("{data}/out")).expect("it can be made");
    let stores = format!(
        "HEARTH_KEYVALUE=silent=redis://127.0.0.1:{port} link=file:/data/link.db out=file:/data/out/kv.db free=redis://127.0.0.1:{}",
        free_port(&world)
    );
    let env = ["HEARTH_CONFIG=env", stores.as_str()];
    let run = |name: &str| store(&world, &image, &env, &[(&data, "/data")], &[name, "set", "a", "1"]);
    let late = run("silent").assert_code(1);
    assert!(late.stderr().contains("interfaces.connect_timeout_ms"), "{late}");
    assert!(run("free").assert_code(1).stderr().contains("Connection refused"));
    // Links are followed inside the container's root, where there is no such directory.
    let link = run("link").assert_code(1);
    assert!(link.stderr().contains("unable to open database file"), "{link}");
    run("out").assert_code(1);
    assert!(!std::path::Path::new("/made-outside").exists());
}
