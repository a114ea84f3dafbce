//! Components that take the messages of Redis channels.

use hearth_tests::servers::Server;
use hearth_tests::{Guest, Running, SHORT, SpinApplication, World, eventually};
use serde_json::json;

use super::create;
use crate::http::client::get;
use crate::http::free_address;
use crate::only_on_hearth;

/// An application whose components `names` take the messages of the channel `orders`.
fn subscribed(name: &str, names: &[&str], server: &Server) -> SpinApplication {
    let address = format!("redis://127.0.0.1:{}", server.port);
    let mut application = SpinApplication::new(name).edit(|locked| {
        locked["metadata"]["triggers"] = json!({"redis": {"address": "{{ server }}"}});
        locked["variables"] = json!({"server": {"default": address}});
    });
    for name in names {
        let granted = json!({
            "metadata": {"allowed_outbound_hosts": ["{{ server }}"]},
            "env": {"NAME": name, "SERVER": address},
        });
        application = application
            .component(name, Guest::SPIN_V1.wasm_bytes(), granted)
            .trigger("redis", json!({"component": name, "channel": "orders"}));
    }
    application
}

/// Starts it, and waits until it is subscribed.
fn start(world: &World, application: &SpinApplication, id: &str, server: &Server) -> Running {
    let image = world.import(&application.image());
    create(world, &image, id, free_address(), &[]);
    let running = world.ctr(["tasks", "start", id]).spawn();
    is_subscribed(world, server);
    running
}

fn is_subscribed(world: &World, server: &Server) {
    eventually("the application is subscribed", SHORT, || {
        server.redis_answer(world, "PUBSUB NUMSUB orders").ends_with(":1\r\n").then_some(())
    });
}

/// Publishes a message to the only subscriber.
#[track_caller]
fn publish(world: &World, server: &Server, message: &str) {
    assert_eq!(server.redis_answer(world, &format!("PUBLISH orders {message}")), ":1\r\n");
}

/// Waits until the component `name` has taken the message.
fn has_taken(world: &World, server: &Server, name: &str, message: &str) {
    let wanted = format!("${}\r\n{message}\r\n", message.len());
    eventually(&format!("{name} takes {message}"), SHORT, || {
        (server.redis_answer(world, &format!("GET {name}")) == wanted).then_some(())
    });
}

#[test]
fn messages_of_a_channel_are_taken_whatever_happens_to_one_of_them() {
    only_on_hearth!();
    let world = World::configured("[http]\nrequest_timeout_ms = 3000\n[interfaces]\nanswer_bytes_max = 40000\n");
    let server = Server::redis(&world, None);
    let application = subscribed("orders", &["a", "b"], &server);
    let running = start(&world, &application, "orders", &server);
    publish(&world, &server, "one");
    for name in ["a", "b"] {
        has_taken(&world, &server, name, "one");
    }
    // Each of these is lost for itself.
    for lost in ["trap", "fail", "loop"] {
        publish(&world, &server, lost);
    }
    publish(&world, &server, "two");
    for name in ["a", "b"] {
        has_taken(&world, &server, name, "two");
    }
    // One that is larger than an answer of a server may be costs the connection.
    publish(&world, &server, &"x".repeat(50_000));
    eventually("it takes messages again", SHORT, || {
        server.redis_answer(&world, "PUBLISH orders three");
        (server.redis_answer(&world, "GET a") == "$5\r\nthree\r\n").then_some(())
    });
    world.kill("orders", "SIGTERM").ok();
    let output = running.wait(SHORT).assert_code(0);
    for told in [
        "a: message of orders: the component failed with the error `error`",
        "b: message of orders: wasm trap: wasm `unreachable` instruction executed",
        "a: message of orders: took over 3000 ms (http.request_timeout_ms)",
        "the server's answer is larger than interfaces.answer_bytes_max; trying again in 1 s",
    ] {
        assert!(output.stderr().contains(told), "{told:?} in {output}");
    }
}

#[test]
fn a_server_that_is_gone_is_asked_again() {
    only_on_hearth!();
    let world = World::new();
    let server = Server::redis(&world, None);
    let port = server.port;
    let application = subscribed("again", &["a"], &server);
    let running = start(&world, &application, "again", &server);
    server.kill();
    let server = Server::redis_at(&world, port, None);
    is_subscribed(&world, &server);
    publish(&world, &server, "again");
    has_taken(&world, &server, "a", "again");
    world.kill("again", "SIGKILL").ok();
    let output = running.wait(SHORT);
    assert!(output.stderr().contains(&format!("redis 127.0.0.1:{port}: ")), "{output}");
    assert!(output.stderr().contains("; trying again in 1 s"), "{output}");
}

#[test]
fn a_message_waits_while_its_container_is_paused_and_is_finished_when_it_ends() {
    only_on_hearth!();
    let world = World::new();
    let server = Server::redis(&world, None);
    let application = subscribed("calm", &["a"], &server);
    let mut running = start(&world, &application, "calm", &server);
    world.ctr(["tasks", "pause", "calm"]).ok();
    publish(&world, &server, "paused");
    // The server has sent it: its connection of the subscriber is idle.
    assert_eq!(server.redis_answer(&world, "GET a"), "$-1\r\n");
    world.ctr(["tasks", "resume", "calm"]).ok();
    has_taken(&world, &server, "a", "paused");
    publish(&world, &server, "sleep");
    running.wait_for_stdout("message sleep\n");
    world.kill("calm", "SIGTERM").ok();
    running.wait(SHORT).assert_code(0);
    assert_eq!(server.redis_answer(&world, "GET a"), "$5\r\nsleep\r\n");
}

#[test]
fn one_component_takes_requests_and_messages() {
    only_on_hearth!();
    let world = World::new();
    let server = Server::redis(&world, None);
    let image = world.import(&subscribed("both", &["a"], &server).route("/...", "a").image());
    let at = free_address();
    create(&world, &image, "both", at, &[]);
    let running = world.ctr(["tasks", "start", "both"]).spawn();
    is_subscribed(&world, &server);
    assert_eq!(get(at, "/env/NAME").text(), "a");
    publish(&world, &server, "one");
    has_taken(&world, &server, "a", "one");
    world.kill("both", "SIGTERM").ok();
    running.wait(SHORT).assert_code(0);
}
