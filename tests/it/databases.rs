//! Variables and databases, by the interfaces of Spin, and the servers that a component may reach.

use std::fs;

use hearth_tests::ctr::Output;
use hearth_tests::servers::{Server, free_port};
use hearth_tests::tls::Authority;
use hearth_tests::{Guest, Imported, World};

use crate::only_on_hearth;

/// The environment that turns on all interfaces that the guest imports.
fn environment(allowed: &str) -> Vec<String> {
    let on = ["HEARTH_CONFIG=env", "HEARTH_SQLITE=/data/app.db", "api_key=k", "SSL_CERT_FILE=/data/ca.pem"];
    let mut env: Vec<_> = on.iter().map(ToString::to_string).collect();
    env.push(format!("HEARTH_ALLOWED_HOSTS={allowed}"));
    env
}

/// A directory of the machine's, for a volume.
fn volume(world: &World) -> String {
    world.directory("data").to_str().expect("the paths of a machine are text").to_owned()
}

fn database(world: &World, image: &Imported, env: &[String], data: &str, arguments: &[&str]) -> Output {
    let mut flags = vec!["--net-host".to_owned()];
    flags.extend(env.iter().flat_map(|variable| ["--env".to_owned(), variable.clone()]));
    flags.extend(["--mount".to_owned(), format!("type=bind,src={data},dst=/data,options=rbind:rw")]);
    world.run(image, "database").flags(flags).args(arguments.iter().copied()).run()
}

#[test]
fn variables_are_values_of_the_configuration() {
    only_on_hearth!();
    let world = World::new();
    let (image, data) = (world.program(&Guest::DATABASE), volume(&world));
    let env = environment("redis://none:1");
    let variable = |name: &str| database(&world, &image, &env, &data, &["variable", name]);
    assert_eq!(variable("api_key").assert_code(0).stdout(), "k\n");
    let undefined = variable("other").assert_code(1);
    assert_eq!(undefined.stderr(), "1: the component has no variable \"other\"\n");
    let invalid = variable("PATH").assert_code(1);
    assert!(invalid.stderr().starts_with("0: \"PATH\": a name has lower-case letters"), "{invalid}");
}

#[test]
fn a_sqlite_database_on_a_volume_is_kept_and_holds_no_other_file() {
    only_on_hearth!();
    let world = World::configured("[interfaces]\ncall_timeout_ms = 2000\n[tenant]\ndescriptors_max = 8\n");
    let (image, data) = (world.program(&Guest::DATABASE), volume(&world));
    let env = environment("redis://none:1");
    let run = |arguments: &[&str]| database(&world, &image, &env, &data, &[&["sqlite"], arguments].concat());
    let made = run(&[
        "default",
        "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, size REAL)",
        "INSERT INTO t (name, size) VALUES (?, 1.5), (?, NULL)",
        "=one",
        "=two",
        "SELECT * FROM t WHERE name <> ?",
        "=three",
    ]);
    assert_eq!(made.assert_code(0).stdout(), "1|one|1.5\n2|two|null\n");
    assert_eq!(run(&["default", "SELECT count(*) FROM t"]).assert_code(0).stdout(), "2\n");
    assert!(fs::metadata(format!("{data}/app.db")).is_ok_and(|file| file.len() > 0));
    assert_eq!(run(&["other", "SELECT 1"]).assert_code(1).stderr(), "open: access denied\n");
    let attached = run(&["default", "ATTACH '/data/other.db' AS o"]).assert_code(1);
    assert_eq!(attached.stderr(), "execute: not authorized\n");
    assert!(fs::metadata(format!("{data}/other.db")).is_err());
    let wrong = run(&["default", "SELEC 1"]).assert_code(1);
    assert!(wrong.stderr().contains("syntax error"), "{wrong}");
    let forever = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
    let late = run(&["default", forever]).assert_code(1);
    assert!(late.stderr().contains("interfaces.call_timeout_ms"), "{late}");
    // A connection counts as an open file.
    let many = |count: &str| database(&world, &image, &env, &data, &["many", "default", count]);
    assert_eq!(many("4").assert_code(0).stdout(), "opened\n");
    assert!(many("20").assert_code(1).stderr().contains("as many files and connections open as it may"));
}

#[test]
fn redis_is_reached_by_the_address_that_the_guest_gives_if_it_is_allowed() {
    only_on_hearth!();
    let world = World::new();
    let (image, data) = (world.program(&Guest::DATABASE), volume(&world));
    let authority = Authority::new();
    let (certificate, key) = authority.pair("localhost");
    fs::write(format!("{data}/ca.pem"), authority.pem()).expect("it can be written");
    let redis = Server::redis(&world, Some((&certificate, &key)));
    let run =
        |allowed: &str, address: &str| database(&world, &image, &environment(allowed), &data, &["redis", address]);
    let address = format!("redis://127.0.0.1:{}", redis.port);
    let all = run("redis://127.0.0.0/8:*", &address).assert_code(1);
    assert_eq!(all.stdout(), "v\n0\n2\n2\n1 y\n1 2 2\n2 3 -5\n2\n");
    assert_eq!(all.stderr(), "incr: type error\n", "its last command is for another type of value");
    let denied = run("http://127.0.0.1:* redis://127.0.0.1:1", &address).assert_code(1);
    assert_eq!(denied.stderr(), "open: invalid address\n");
    // By name and by TLS; `localhost` is in the machine's hosts file, which `ctr` does not mount.
    redis.redis_answer(&world, "FLUSHALL");
    let by_name = format!("rediss://localhost:{}", redis.tls_port);
    let hosts = fs::write(format!("{data}/hosts"), "127.0.0.1 localhost\n");
    hosts.expect("it can be written");
    let mut flags = vec!["--net-host".to_owned(), "--mount".to_owned()];
    flags.push(format!("type=bind,src={data}/hosts,dst=/etc/hosts,options=bind:ro"));
    flags.extend(["--mount".to_owned(), format!("type=bind,src={data},dst=/data,options=rbind:rw")]);
    let allowed = environment(&format!("redis://localhost:{}", redis.tls_port));
    flags.extend(allowed.into_iter().flat_map(|variable| ["--env".to_owned(), variable]));
    let secure = world.run(&image, "secure").flags(flags).args(["redis", &by_name]).run().assert_code(1);
    assert_eq!(
        (secure.stdout().as_str(), secure.stderr().as_str()),
        ("v\n0\n2\n2\n1 y\n1 2 2\n2 3 -5\n2\n", "incr: type error\n")
    );
}

#[test]
fn postgresql_answers_with_its_types_and_its_errors() {
    only_on_hearth!();
    let world = World::configured("[interfaces]\ncall_timeout_ms = 3000\nanswer_bytes_max = 1_000_000\n");
    let (image, data) = (world.program(&Guest::DATABASE), volume(&world));
    let authority = Authority::new();
    let (certificate, key) = authority.pair("localhost");
    fs::write(format!("{data}/ca.pem"), authority.pem()).expect("it can be written");
    let server = Server::postgres(&world, Some((&certificate, &key)));
    let env = environment("postgres://127.0.0.1:*");
    let at = |user: &str, mode: &str| format!("postgres://{user}@127.0.0.1:{}/postgres?sslmode={mode}", server.port);
    let plain = at("postgres:secret", "disable");
    let run = |verb: &str, address: &str, more: &[&str]| {
        database(&world, &image, &env, &data, &[&[verb, address], more].concat())
    };
    let query = |statements: &[&str]| run("postgres", &plain, statements);
    let values = query(&[
        "CREATE TABLE t (id int PRIMARY KEY, name text, ok bool, small int2, large int8, half float4, size float8, raw bytea, day date)",
        "INSERT INTO t VALUES (1, 'one', true, 2, 3, 0.5, 1.5, 'bytes', '2024-02-29'), (2, $1, NULL, NULL, NULL, NULL, NULL, NULL, NULL)",
        "=two",
        "SELECT * FROM t ORDER BY id",
        "SELECT id FROM t WHERE name = $1",
        "=two",
    ]);
    let expected = "1|one|true|2|3|0.5|1.5|bytes|unsupported\n2|two|null|null|null|null|null|null|null\n2\n";
    assert_eq!(values.assert_code(0).stdout(), expected);
    let dates = run(
        "dates",
        &plain,
        &["SELECT id, day, time '10:11:12', timestamp '2024-02-29 10:11:12.5' FROM t WHERE id = 1"],
    );
    assert_eq!(dates.assert_code(0).stdout(), "1|2024-2-29|10:11:12|2024-2-29 10:11:12.500000000\n");
    assert_eq!(run("change", &plain, &["UPDATE t SET ok = false"]).assert_code(0).stdout(), "2\n");
    for (statement, error) in [
        (["SELEC 1", "=x"], "execute: query failed: db error: ERROR: syntax error"),
        (["SELECT $1::text", "SELECT 1"], "execute: bad parameter: the statement has 1 parameters, not 0"),
        (["SELECT $1::int4", "=x"], "execute: query failed: error serializing parameter 0"),
        (
            ["SELECT pg_sleep(60)", "SELECT 1"],
            "execute: query failed: the call took longer than interfaces.call_timeout_ms allows",
        ),
        (["SELECT repeat('x', 2000000)", "SELECT 1"], "execute: query failed: "),
    ] {
        let failed = query(&statement).assert_code(1);
        assert!(failed.stderr().starts_with(error), "{statement:?}: {failed}");
    }
    let wrong = run("postgres", &at("postgres:wrong", "disable"), &["SELECT 1"]).assert_code(1);
    assert!(wrong.stderr().contains("open: connection failed: ") && wrong.stderr().contains("password"), "{wrong}");
    // Its certificate is for another name than the address.
    let name = run("postgres", &at("postgres:secret", "require"), &["SELECT 1"]).assert_code(1);
    assert!(name.stderr().starts_with("open: connection failed: error performing TLS handshake: "), "{name}");
    let denied = database(&world, &image, &environment("postgres://other:*"), &data, &["postgres", &plain, "SELECT 1"]);
    let text = format!(
        "open: connection failed: postgres://127.0.0.1:{} is not among the allowed hosts of the component\n",
        server.port
    );
    assert_eq!(denied.assert_code(1).stderr(), text);
}

#[test]
fn a_component_with_a_list_reaches_only_the_servers_of_the_list() {
    only_on_hearth!();
    let world = World::new();
    let net = world.program(&Guest::NET);
    let port = free_port(&world).to_string();
    let mut server = world.run(&net, "server").flags(["--net-host"]).args(["listen", &port, "from Wasm"]).spawn();
    server.wait_for_stdout("listening");
    let hosts = world.write("hosts", b"127.0.0.1 peer\n127.0.0.1 other\n");
    let mount = format!("type=bind,src={},dst=/etc/hosts,options=bind:ro", hosts.display());
    let run = |allowed: &str, arguments: &[&str]| {
        let variable = format!("HEARTH_ALLOWED_HOSTS={allowed}");
        // `--net-host` would mount the host's own file of names.
        let flags = ["--with-ns", "network:/proc/1/ns/net", "--mount", &mount, "--env", &variable];
        world.run(&net, "client").flags(flags).args(arguments.iter().copied()).run()
    };
    let fetched = run(&format!("tcp://127.0.0.0/8:{port} tcp://peer:1"), &["fetch", "peer", &port]);
    assert_eq!(fetched.assert_code(0).stdout(), "from Wasm: hello\n");
    let by_address = run(&format!("*://127.0.0.1:{port}"), &["fetch", "127.0.0.1", &port]);
    assert_eq!(by_address.assert_code(0).stdout(), "from Wasm: hello\n");
    for (allowed, arguments, error) in [
        // Another port, another network, another protocol.
        ("tcp://127.0.0.1:1", ["fetch", "127.0.0.1", &port], "connect: access denied\n"),
        ("tcp://10.0.0.0/8:*", ["fetch", "127.0.0.1", &port], "127.0.0.1: access denied\n"),
        ("udp://127.0.0.1:*", ["fetch", "127.0.0.1", &port], "connect: access denied\n"),
        // The name's address counts, and not only the name.
        ("tcp://peer:*", ["fetch", "peer", &port], "connect: access denied\n"),
        ("tcp://peer:*", ["fetch", "other", &port], "other: access denied\n"),
        // No entry allows clients.
        ("*://*:*", ["listen", "0", "x"], "listen: access denied\n"),
    ] {
        let denied = run(allowed, &arguments).assert_code(1);
        assert_eq!(denied.stderr(), error, "{allowed} {arguments:?}");
    }
    run("http://", &["lookup", "peer"]).assert_code(1);
    let fetch = world.program(&Guest::FETCH);
    let http = |allowed: &str| {
        let variable = format!("HEARTH_ALLOWED_HOSTS={allowed}");
        let authority = format!("127.0.0.1:{port}");
        world.run(&fetch, "http").flags(["--net-host", "--env", &variable]).args(["http", &authority, "/"]).run()
    };
    // The server is reached, and speaks no HTTP.
    assert_eq!(http(&format!("http://127.0.0.1:{port}")).assert_code(1).stdout(), "error HTTP-protocol-error\n");
    assert_eq!(http("https://127.0.0.1:* http://127.0.0.1").assert_code(1).stdout(), "error HTTP-request-denied\n");
    run("peer", &["lookup", "peer"])
        .assert_fault(&["HEARTH_ALLOWED_HOSTS: the allowed host \"peer\": it has no scheme", "*://*:* for all"]);
    world.kill("server", "SIGTERM").ok();
    server.wait(hearth_tests::SHORT).assert_code(143);
}
