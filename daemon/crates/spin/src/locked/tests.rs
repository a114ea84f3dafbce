//! Every row of the document, and every refusal.

use serde_json::{Value, json};

use super::*;

fn wasm() -> Value {
    json!({"content_type": "application/wasm", "digest": format!("sha256:{}", "ab".repeat(32))})
}

/// A document with one component and one trigger, changed by `edit`.
fn document(edit: impl FnOnce(&mut Value)) -> Result<Application> {
    let mut document = json!({
        "spin_lock_version": 1,
        "metadata": {"name": "hello", "version": "1.0.0"},
        "variables": {"host": {"default": "h"}, "key": {"secret": true}},
        "triggers": [{"id": "t", "trigger_type": "http", "trigger_config": {"component": "a", "route": "/..."}}],
        "components": [{"id": "a", "source": wasm()}],
    });
    edit(&mut document);
    parse(document.to_string().as_bytes())
}

fn refusal(edit: impl FnOnce(&mut Value)) -> String {
    let error = document(edit).unwrap_err().to_string();
    assert!(!error.contains('\n'), "{error}");
    error
}

fn trigger_config(kind: &str, config: Value) -> impl FnOnce(&mut Value) {
    move |document| {
        document["triggers"][0]["trigger_type"] = kind.into();
        document["triggers"][0]["trigger_config"] = config;
    }
}

#[test]
fn an_application_is_read_whole() {
    let application = document(|document| {
        document["components"][0] = json!({
            "id": "a",
            "metadata": {
                "description": "x",
                "allowed_outbound_hosts": ["http://{{ host }}"],
                "allowed_http_hosts": ["old.example.org"],
                "key_value_stores": ["default"],
                "databases": ["db"],
                "ai_models": ["llama2-chat"],
            },
            "source": wasm(),
            "env": {"A": "1"},
            "files": [
                {"path": "x.txt", "digest": format!("sha256:{}", "cd".repeat(32))},
                {"path": "d/y.txt", "inline": "aGk=", "digest": format!("sha256:{}", "cd".repeat(32))},
            ],
            "config": {"url": "http://{{ host }}/"},
            "dependencies": {},
            "host_requirements": {"local_service_chaining": "required"},
        });
        document["must_understand"] = json!(["host_requirements"]);
        document["host_requirements"] = json!({"local_service_chaining": "required", "other": "optional"});
    })
    .unwrap();
    assert_eq!((application.name.as_str(), application.version.as_deref()), ("hello", Some("1.0.0")));
    assert_eq!(application.variables["host"].default.as_deref(), Some("h"));
    assert_eq!(application.variables["key"].default, None);
    let component = application.component("a").unwrap();
    assert_eq!(component.source, Source::Layer(Digest([0xab; 32])));
    assert_eq!(component.environment, [("A".to_string(), "1".to_string())]);
    let hosts: Vec<_> = component.allowed_outbound_hosts.iter().map(Template::as_written).collect();
    assert_eq!(hosts, ["http://{{ host }}", "http://old.example.org", "https://old.example.org"]);
    assert_eq!(
        (&component.key_value_stores[..], &component.databases[..]),
        (&["default".into()][..], &["db".into()][..])
    );
    assert_eq!(component.variables["url"].as_written(), "http://{{ host }}/");
    let file = |path: &str, bytes| FileContent { path: path.into(), bytes };
    assert_eq!(
        component.files,
        Files::Contents(vec![
            file("x.txt", FileBytes::Digest(Digest([0xcd; 32]))),
            file("d/y.txt", FileBytes::Inline(b"hi".to_vec())),
        ])
    );
}

#[test]
fn a_document_of_another_version_is_refused() {
    assert!(document(|document| document["spin_lock_version"] = 0.into()).is_ok());
    assert_eq!(
        refusal(|document| document["spin_lock_version"] = 7.into()),
        "the locked application has version 7; Hearth knows versions up to 1: push it with an older Spin, or update Hearth"
    );
    let error = parse(b"{}").unwrap_err().to_string();
    assert!(error.starts_with("the locked application: missing field `spin_lock_version`"), "{error}");
}

#[test]
fn what_a_host_has_to_offer_is_refused_by_name() {
    let texts = [
        refusal(|document| document["must_understand"] = json!(["telepathy"])),
        refusal(|document| document["host_requirements"] = json!({"gpu": "required"})),
        refusal(|document| document["host_requirements"] = json!({"middleware": "required"})),
        refusal(|document| document["components"][0]["host_requirements"] = json!({"gpu": "required"})),
        refusal(|document| document["triggers"][0]["trigger_dependencies"] = json!({"middleware": ["x"]})),
        refusal(|document| document["components"][0]["trigger_dependencies"] = json!(["x"])),
    ];
    for (text, name) in
        texts.iter().zip(["telepathy", "gpu", "middleware", "component \"a\" requires \"gpu\"", "t", "a"])
    {
        assert!(text.contains(name), "{text}");
    }
}

#[test]
fn dependencies_that_are_not_composed_are_refused() {
    assert_eq!(
        refusal(|document| document["components"][0]["dependencies"] = json!({"x:y/z": {"source": {}}})),
        "the component \"a\" has dependencies that are not composed into it; push the application without --compose=false"
    );
}

#[test]
fn triggers_have_their_types() {
    let command = document(trigger_config("command", json!({"component": "a"}))).unwrap();
    assert_eq!(command.triggers, [Trigger::Command { component: "a".into() }]);
    for kind in ["mqtt", "sqs", "cron", "kinesis"] {
        assert_eq!(
            refusal(trigger_config(kind, json!({"component": "a"}))),
            format!("the trigger type {kind:?} is not supported; Hearth supports http, redis and command")
        );
    }
}

#[test]
fn http_triggers_have_a_route_and_an_answer() {
    let http =
        |config: Value| document(trigger_config("http", config)).map(|mut application| application.triggers.remove(0));
    let Trigger::Http(private) = http(json!({"component": "a", "route": {"private": true}})).unwrap() else { panic!() };
    assert_eq!((private.route, private.answer), (None, HttpAnswer::Component("a".into())));
    let fixed =
        json!({"route": "/x", "static_response": {"status_code": 302, "headers": {"location": "/y"}, "body": "b"}});
    let Trigger::Http(fixed) = http(fixed).unwrap() else { panic!() };
    let headers = vec![("location".to_string(), "/y".to_string())];
    assert_eq!(fixed.answer, HttpAnswer::Static(StaticResponse { status: 302, headers, body: "b".into() }));
    let Trigger::Http(empty) = http(json!({"route": "/x", "static_response": {}})).unwrap() else { panic!() };
    assert_eq!(
        empty.answer,
        HttpAnswer::Static(StaticResponse { status: 200, headers: Vec::new(), body: String::new() })
    );
    assert!(http(json!({"component": "a", "route": "/", "executor": {"type": "http"}})).is_ok());
    for (config, text) in [
        (json!({"component": "a", "route": {"private": false}}), "private = false"),
        (json!({"component": "a"}), "has no route"),
        (json!({"route": "/"}), "needs either a component or a static_response"),
        (json!({"component": "a", "route": "/", "static_response": {}}), "needs either"),
        (json!({"route": "/", "static_response": {"status_code": 99}}), "the status code 99"),
        (json!({"component": "a", "route": "/", "executor": {"type": "wagi"}}), "the executor \"wagi\""),
        (json!({"component": "a", "route": "/", "colour": "red"}), "unknown field `colour`"),
        (json!({"component": "a", "route": "/.../x"}), "a wildcard before its end"),
        (json!({"component": "b", "route": "/"}), "names the component \"b\""),
    ] {
        let error = http(config).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
}

#[test]
fn a_base_path_is_refused() {
    for metadata in [
        json!({"name": "x", "triggers": {"http": {"base": "/api"}}}),
        json!({"name": "x", "trigger": {"type": "http", "base": "/api"}}),
    ] {
        let error = refusal(|document| document["metadata"] = metadata);
        assert_eq!(error, "the http trigger has the base path \"/api\"; remove it and write it into each route");
    }
    assert!(document(|document| document["metadata"]["triggers"] = json!({"http": {"base": "/"}})).is_ok());
}

#[test]
fn contents_that_lead_nowhere_are_refused() {
    for (component, text) in [
        (
            json!({"id": "a", "source": {"content_type": "x", "source": "file:///a.wasm"}}),
            "neither in the document nor",
        ),
        (json!({"id": "a", "source": {"content_type": "x", "digest": "sha256:zz"}}), "is not a SHA-256 digest"),
        (json!({"id": "a", "source": {"content_type": "x", "inline": "%"}}), "is no base64"),
        (json!({"id": "a", "source": wasm(), "files": [{"path": "../x", "inline": ""}]}), "a file at \"../x\""),
        (json!({"id": "a", "source": wasm(), "files": [{"path": "/x", "inline": ""}]}), "a file at \"/x\""),
        (json!({"id": "a", "source": wasm(), "files": [{"path": "x", "source": "y"}]}), "file \"x\": its content"),
        (json!({"id": "a", "source": wasm(), "config": {"k": "{{ a"}}), "the component \"a\": the text"),
        (json!({"id": "a", "source": wasm(), "metadata": {"allowed_outbound_hosts": ["{{"]}}), "the component \"a\""),
    ] {
        let error = refusal(|document| document["components"][0] = component);
        assert!(error.contains(text), "{error}");
    }
    let error = refusal(|document| document["variables"] = json!({"Bad": {}}));
    assert!(error.starts_with("\"Bad\" is not a name of a variable"), "{error}");
    let inline =
        document(|document| document["components"][0]["source"] = json!({"content_type": "x", "inline": "AGFzbQ=="}));
    assert_eq!(inline.unwrap().components[0].source, Source::Inline(b"\0asm".to_vec()));
}
