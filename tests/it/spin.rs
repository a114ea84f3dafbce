//! Spin applications: pushed ones, and manifests in an image.
//!
//! * `messages.rs`: components that take messages of Redis.
//! * `sdks.rs`: components built with Spin's SDKs, of all ages.

mod messages;
mod sdks;

use std::net::{SocketAddr, TcpStream};

use hearth_tests::components::{from_wit, module as wat};
use hearth_tests::{Guest, Image, Imported, Layer, NewContainer, Node, Output, Running, SHORT, SpinApplication, World};
use hearth_tests::{api, eventually};
use serde_json::{Value, json};

use crate::http::client::{Response, get};
use crate::http::free_address;
use crate::only_on_hearth;

/// Makes the container of an application as CRI does, with these environment variables beside where it listens.
fn create(world: &World, image: &Imported, id: &str, at: SocketAddr, env: &[&str]) {
    world.ctr(["snapshots", "prepare", id, ""]).ok();
    let mut spec = api::spec(&["/"], &[("io.kubernetes.cri.image-name", &image.name)]);
    let listen = format!("SPIN_HTTP_LISTEN_ADDR={at}");
    let env: Vec<Value> = env.iter().copied().chain([listen.as_str()]).map(Value::from).collect();
    spec["process"]["env"] = env.into();
    let runtime = world.runtime().name();
    let spec = spec.to_string().into_bytes();
    world.api().create_container(NewContainer { id, image: &image.name, snapshot: id, runtime, spec });
}

/// Starts an application, and waits until it listens.
fn start(world: &World, application: &SpinApplication, id: &str, env: &[&str]) -> (Running, SocketAddr) {
    let image = world.import(&application.image());
    let at = free_address();
    create(world, &image, id, at, env);
    let running = world.ctr(["tasks", "start", id]).spawn();
    eventually(&format!("{id} listens at {at}"), SHORT, || TcpStream::connect(at).ok());
    (running, at)
}

/// Runs a container that is refused at Create.
#[track_caller]
fn refused(world: &World, application: &SpinApplication, env: &[&str]) -> Output {
    let image = world.import(&application.image());
    create(world, &image, "refused", free_address(), env);
    let output = world.ctr(["tasks", "start", "refused"]).run();
    world.ctr(["containers", "rm", "refused"]).ok();
    output
}

/// An application of one component.
fn one(name: &str, more: Value) -> SpinApplication {
    SpinApplication::new(name).component("web", Guest::HTTP.wasm_bytes(), more).route("/...", "web")
}

/// The value of a header that the service echoes.
fn echoed<'a>(answer: &'a Response, name: &str) -> Option<&'a str> {
    answer.text().lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

#[test]
fn a_pushed_application_of_three_components_is_routed_and_chained() {
    only_on_hearth!();
    let world = World::new();
    let hosts = json!({"metadata": {"allowed_outbound_hosts": ["http://back.spin.internal", "http://self"]}});
    let application = SpinApplication::new("shop")
        .component("front", Guest::FRONT.wasm_bytes(), hosts)
        .component("echo", Guest::HTTP.wasm_bytes(), json!({}))
        .component("back", Guest::HTTP.wasm_bytes(), json!({"env": {"NAME": "the back"}}))
        .route("/...", "front")
        .route("/echo/:id/...", "echo")
        .route("/count", "echo")
        .trigger("http", json!({"component": "back", "route": {"private": true}}))
        .trigger(
            "http",
            json!({"route": "/old", "static_response": {"status_code": 301, "headers": {"location": "/new"}}}),
        );
    let (running, at) = start(&world, &application, "shop", &["UNSEEN=1"]);

    assert_eq!(get(at, "/a/b").text(), "front /a/b");
    assert_eq!(get(at, "/count").text(), "1\n");
    let moved = get(at, "/old");
    assert!(moved.status == 301 && moved.head.contains("location: /new"), "{moved:?}");
    assert_eq!(get(at, "/.well-known/spin/health").text(), "OK");
    let info: Value = serde_json::from_str(get(at, "/.well-known/spin/info").text()).expect("it is JSON");
    assert_eq!((&info["name"], &info["version"]), (&json!("shop"), &json!("0.1.0")));
    assert!(info["oci_image_digest"].as_str().is_some_and(|digest| digest.starts_with("sha256:")), "{info}");
    assert_eq!(get(at, "/.well-known/spin/other").status, 404);

    // Another component, in the process: it sees its own environment alone.
    assert_eq!(get(at, "/call/back.spin.internal/env/NAME").text(), "200\nthe back");
    assert_eq!(get(at, "/call/back.spin.internal/env/UNSEEN").text().lines().next(), Some("404"));
    // The application itself, by its routes.
    assert_eq!(get(at, "/call/self.alt/count").text(), "200\n1\n");
    assert_eq!(get(at, "/call/self.alt/inner").text(), "200\nfront /inner");
    // HTTP-request-denied is the 16th code of an error.
    assert_eq!(get(at, "/call/echo.spin.internal/count").text(), "error 15\n");
    assert_eq!(get(at, "/call/127.0.0.1:1/").text(), "error 15\n");

    world.kill("shop", "SIGTERM").ok();
    let output = running.wait(SHORT).assert_code(0);
    let denied = "hearth: the component \"front\" may not send requests to http://echo.spin.internal:80: add the host to its allowed_outbound_hosts";
    assert!(output.stderr().contains(denied), "{output}");
}

#[test]
fn a_component_is_told_of_its_request_in_headers() {
    only_on_hearth!();
    let world = World::new();
    let application = SpinApplication::new("headers")
        .component("web", Guest::HTTP.wasm_bytes(), json!({}))
        .route("/echo/...", "web")
        .route("/echo/:Id/x", "web");
    let (running, at) = start(&world, &application, "headers", &[]);
    let named = get(at, "/echo/7/x");
    assert_eq!((echoed(&named, "spin-path-match-id"), echoed(&named, "spin-path-info")), (Some("7"), Some("")));
    let answer = get(at, "/echo/a/b?x=1");
    for (name, value) in [
        ("spin-path-info", "/a/b"),
        ("spin-full-url", "http://here/echo/a/b?x=1"),
        ("spin-matched-route", "/echo/..."),
        ("spin-raw-component-route", "/echo/..."),
        ("spin-component-route", "/echo"),
        ("spin-base-path", "/"),
    ] {
        assert_eq!(echoed(&answer, name), Some(value), "{name} of {}", answer.text());
    }
    let client = echoed(&answer, "spin-client-addr").expect("a client has an address");
    assert!(client.starts_with("127.0.0.1:"), "{client}");
    world.kill("headers", "SIGKILL").ok();
    running.wait(SHORT);
}

#[test]
fn a_component_has_its_own_files_and_nothing_else() {
    only_on_hearth!();
    let world = World::new();
    let large = "large ".repeat(1_000);
    let application = one("files", json!({}))
        .file("small.txt", b"small")
        .file("in/a/layer.txt", large.as_bytes())
        .packed_file("packed.txt", b"packed");
    let (running, at) = start(&world, &application, "files", &[]);
    assert_eq!(get(at, "/file/small.txt").text(), "small");
    assert_eq!(get(at, "/file/in/a/layer.txt").text(), large);
    assert_eq!(get(at, "/file/packed.txt").text(), "packed");
    for hidden in ["/file/proc/self/status", "/file/../0/small.txt", "/file/.hearth/components/0/small.txt"] {
        assert_eq!(get(at, hidden).status, 404, "{hidden}");
    }
    world.kill("files", "SIGKILL").ok();
    running.wait(SHORT);
}

/// An image as a Dockerfile makes it, with a manifest and a component; `more`: other keys of the component.
fn built(more: &str) -> Image {
    let manifest = format!(
        r#"
        spin_manifest_version = 2
        [application]
        name = "built"
        [[trigger.http]]
        route = "/..."
        component = "web"
        [component.web]
        source = "web.wasm"
        files = [{{ source = "assets", destination = "/static" }}]
        environment = {{ GREETING = "hello" }}
        {more}
        "#
    );
    let layer = Layer::new()
        .file("/spin.toml", 0o644, manifest)
        .file("/web.wasm", 0o644, Guest::HTTP.wasm_bytes())
        .file("/secret.txt", 0o644, "secret")
        .file("/assets/page.txt", 0o644, "a page");
    Image::scratch("hearth.test/built:1").layer(layer)
}

#[test]
fn a_manifest_in_an_image_is_an_application() {
    only_on_hearth!();
    let world = World::new();
    let image = world.import(&built(""));
    let at = free_address();
    let listen = format!("SPIN_HTTP_LISTEN_ADDR={at}");
    let running = world.run(&image, "built").flags(["--net-host", "--env", &listen]).args(["/"]).spawn();
    eventually("it listens", SHORT, || TcpStream::connect(at).ok());
    assert_eq!(get(at, "/env/GREETING").text(), "hello");
    assert_eq!(get(at, "/file/static/page.txt").text(), "a page");
    assert_eq!(get(at, "/file/secret.txt").status, 404);
    world.kill("built", "SIGTERM").ok();
    running.wait(SHORT).assert_code(0);
}

#[test]
fn a_pod_of_spinkube_runs_as_it_is() {
    only_on_hearth!();
    let node = Node::new();
    let (image, client) = (node.import(&built("key_value_stores = [\"foo\"]")), node.program(&Guest::FETCH));
    let config = node.write("runtime-config.toml", b"[key_value_store.foo]\ntype = \"spin\"\npath = \"/foo.db\"\n");
    let (serving, asking) = (node.pod("spin").run(), node.pod("asking").run());
    let service = serving.container("app", &image).command(["/"]);
    let service = service.read_only_volume(&config, "/runtime-config.toml").start();
    let authority = format!("{}:80", serving.ip());
    let ask = |name: &str, path: &str| {
        let container = asking.container(name, &client).args(["http", &authority, path]).start();
        container.wait();
        container.stdout()
    };
    assert_eq!(ask("health", "/.well-known/spin/health"), "200 2 OK\n");
    assert_eq!(ask("file", "/file/static/page.txt"), "200 6 a page\n");
    service.stop(5);
    assert_eq!(service.status().exit_code, 0);
    // Without the file, the store is configured nowhere.
    let refused = serving.container("refused", &image).command(["/"]).create().try_start();
    let error = refused.expect_err("it is refused").status.message().to_owned();
    assert!(error.contains("add [key_value_store.foo] to /runtime-config.toml"), "{error}");
}

#[test]
fn a_command_ends_the_container_of_its_application() {
    only_on_hearth!();
    let world = World::new();
    let application = SpinApplication::new("job")
        .component("web", Guest::HTTP.wasm_bytes(), json!({}))
        .component("job", Guest::HELLO.component_bytes(), json!({"env": {"OWN": "1"}}))
        .route("/...", "web")
        .trigger("command", json!({"component": "job"}));
    let image = world.import(&application.image());
    create(&world, &image, "job", free_address(), &["UNSEEN=1"]);
    let output = world.ctr(["tasks", "start", "job"]).run().assert_code(0);
    let text = output.stdout();
    // Its arguments are the component's id and the container's; its environment is its own.
    assert!(text.contains("hello from C\n") && text.contains("arg 1: /\n"), "{output}");
    assert!(text.contains("OWN=1") && !text.contains("UNSEEN"), "{output}");
    world.ctr(["tasks", "rm", "--force", "job"]).run();
    world.ctr(["containers", "rm", "job"]).ok();
}

#[test]
fn a_core_module_is_made_a_component_once() {
    only_on_hearth!();
    let world = World::new();
    // As Spin's SDKs build it for wasm32-wasip1: a module that describes its component.
    let application = SpinApplication::new("module")
        .component("web", Guest::RUST_SERVICE.described_module_bytes(), json!({}))
        .route("/...", "web");
    let compiles = || world.metrics().sum("hearth_compiles_total", &[]);
    for id in ["first", "second"] {
        let (running, at) = start(&world, &application, id, &[]);
        assert_eq!(get(at, "/x").status, 200);
        world.kill(id, "SIGTERM").ok();
        running.wait(SHORT).assert_code(0);
        world.remove(id);
    }
    assert_eq!(compiles(), 1.0);
    let other = wat(r#"(module (import "outbound-pg" "query" (func)) (func (export "handle-http-request")))"#);
    let other = SpinApplication::new("other").component("web", other, json!({})).route("/...", "web");
    refused(&world, &other, &[]).assert_fault(&["the component \"web\": web: it cannot be compiled: it imports \"outbound-pg\", which Hearth does not offer to modules of wit-bindgen 0.2; it offers spin-config, wasi-outbound-http, key-value, outbound-redis"]);
}

#[test]
fn an_application_that_cannot_run_is_refused_in_one_line() {
    only_on_hearth!();
    let world = World::new();
    let both = from_wit(
        "package a:b; world w { export wasi:http/incoming-handler@0.2.0; export wasi:http/handler@0.3.0; }
         package wasi:http@0.2.0 { interface incoming-handler { handle: func(); } }
         package wasi:http@0.3.0 { interface handler { handle: func(); } }",
        "w",
    );
    let wasm = || Guest::HTTP.wasm_bytes();
    let with_store = json!({"metadata": {"key_value_stores": ["cache"]}});
    let table: Vec<(SpinApplication, &str)> = vec![
        (
            one("version", json!({})).edit(|locked| locked["spin_lock_version"] = 7.into()),
            "the locked application has version 7; Hearth knows versions up to 1: push it with an older Spin, or update Hearth",
        ),
        (
            SpinApplication::new("cron").component("a", wasm(), json!({})).trigger("cron", json!({"component": "a"})),
            "the trigger type \"cron\" is not supported; Hearth supports http, redis and command",
        ),
        (
            one("parent", json!({"files": [{"path": "../x", "inline": ""}]})),
            "the component \"web\" has a file at \"../x\": a path of a file names no parent directory (`..`) and does not start at `/`",
        ),
        (
            one("variable", json!({})).edit(|locked| locked["variables"] = json!({"api_key": {}})),
            "the variable \"api_key\" has no value: set SPIN_VARIABLE_API_KEY in the container's environment, or give the variable a default",
        ),
        (
            one("store", with_store),
            "the component \"web\" uses the key-value store \"cache\", which is configured nowhere: add [key_value_store.cache] to /runtime-config.toml",
        ),
        (
            SpinApplication::new("both").component("web", both, json!({})).route("/...", "web"),
            "the component \"web\" exports two HTTP handlers, wasi:http/incoming-handler@0.2.0 and wasi:http/handler@0.3.0; an HTTP trigger needs one",
        ),
        (
            SpinApplication::new("mute")
                .component("a", wasm(), json!({}))
                .trigger("redis", json!({"component": "a", "channel": "c", "address": "redis://a"})),
            "the component \"a\" has a redis trigger, and exports no handler of messages (fermyon:spin/inbound-redis or spin:redis/inbound-redis@3.0.0)",
        ),
        (
            SpinApplication::new("nowhere")
                .component("a", Guest::SPIN_V1.wasm_bytes(), json!({}))
                .trigger("redis", json!({"component": "a", "channel": "c"})),
            "the redis trigger \"trigger-0\" has no address; give it one, or the application's redis trigger ([application.trigger.redis])",
        ),
        (
            SpinApplication::new("elsewhere")
                .component("a", Guest::SPIN_V1.wasm_bytes(), json!({}))
                .trigger("redis", json!({"component": "a", "channel": "c", "address": "nats://n"})),
            "the component \"a\": the address of the redis trigger: it does not begin with redis:// or rediss://",
        ),
        (
            SpinApplication::new("none")
                .component("web", Guest::EXIT.component_bytes(), json!({}))
                .route("/...", "web"),
            "the component \"web\" has an http trigger, and exports no HTTP handler",
        ),
    ];
    for (application, text) in &table {
        refused(&world, application, &[]).assert_fault(&[text]);
    }
    // With a value for the variable, the application runs.
    let (running, at) = start(&world, &table[3].0, "variable", &["SPIN_VARIABLE_API_KEY=1"]);
    assert_eq!(get(at, "/count").text(), "1\n");
    world.kill("variable", "SIGKILL").ok();
    running.wait(SHORT);
}

#[test]
fn an_operator_sees_the_parts_of_an_application() {
    only_on_hearth!();
    let world = World::new();
    let granted = json!({
        "metadata": {
            "allowed_outbound_hosts": ["http://back.spin.internal"],
            "key_value_stores": ["default"],
            "databases": ["default"],
        },
    });
    let application = SpinApplication::new("seen")
        .component("front", Guest::SPIN_V1.wasm_bytes(), granted)
        .component("back", Guest::HTTP.wasm_bytes(), json!({}))
        .route("/...", "front")
        .trigger("http", json!({"component": "back", "route": {"private": true}}))
        .trigger("http", json!({"route": "/old", "static_response": {"status_code": 301}}))
        .trigger("redis", json!({"component": "front", "channel": "orders", "address": "redis://:secret@127.0.0.1:1"}));
    let (running, _) = start(&world, &application, "seen", &[]);
    let seen = world.ask(&["inspect", "seen"]);
    assert!(!seen.to_string().contains("secret"), "{seen}");
    let trigger = |kind: &str, of: &str, answer: &str| json!({"kind": kind, "of": of, "answer": answer});
    let triggers = [
        trigger("http", "/...", "front"),
        trigger("http", "", "back"),
        trigger("http", "/old", "301"),
        trigger("redis", "orders", "front"),
    ];
    let front = json!({
        "id": "front",
        "key_value_stores": ["default (in the container)"],
        "databases": ["default (in the container)"],
        "allowed_outbound_hosts": ["http://back.spin.internal"],
    });
    let back = json!({"id": "back", "key_value_stores": [], "databases": [], "allowed_outbound_hosts": []});
    let whole = json!({"name": "seen", "version": "0.1.0", "triggers": triggers, "components": [front, back]});
    assert_eq!(seen["application"], whole);
    let text = world.hearthctl(["inspect", "seen"]).ok().stdout();
    for line in ["Spin application seen 0.1.0\n", "calls of other components", "orders"] {
        assert!(text.contains(line), "{text}");
    }
    world.kill("seen", "SIGKILL").ok();
    running.wait(SHORT);
}

#[test]
fn a_container_keeps_some_components_of_its_application() {
    only_on_hearth!();
    let world = World::new();
    let application = SpinApplication::new("parts")
        .component("a", Guest::HTTP.wasm_bytes(), json!({}))
        .component("b", Guest::FRONT.wasm_bytes(), json!({}))
        .route("/count", "a")
        .route("/b", "b");
    let (running, at) = start(&world, &application, "parts", &["SPIN_COMPONENTS_TO_RETAIN=a,"]);
    assert_eq!((get(at, "/count").status, get(at, "/b").status), (200, 404));
    world.kill("parts", "SIGKILL").ok();
    running.wait(SHORT);
    refused(&world, &application, &["SPIN_COMPONENTS_TO_RETAIN=a,c"])
        .assert_fault(&["SPIN_COMPONENTS_TO_RETAIN names the component \"c\""]);
}

#[test]
fn an_application_of_slight_is_named() {
    only_on_hearth!();
    let world = World::new();
    let layer = Layer::new().file("/slightfile.toml", 0o644, "specversion = \"0.2\"");
    let image = world.import(&Image::scratch("hearth.test/slight:1").layer(layer));
    let output = world.run(&image, "slight").args(["/"]).run();
    output.assert_fault(&["the image is a slight application (it has /slightfile.toml), which Hearth does not run"]);
}
