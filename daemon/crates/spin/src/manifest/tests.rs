//! Every row of the manifest, and every refusal.

use super::*;
use crate::application::{HttpAnswer, HttpTrigger};

const MANIFEST: &str = r#"
    spin_manifest_version = 2
    [application]
    name = "hello"
    version = "0.1.0"
    description = "d"
    authors = ["a"]
    [application.trigger.http]
    base = "/"
    [variables]
    host = { default = "h" }
    key = { required = true, secret = true }
    [[trigger.http]]
    id = "front"
    route = "/..."
    component = "front-end"
    [[trigger.http]]
    route = { private = true }
    component = { source = "/inner.wasm" }
    [[trigger.command]]
    component = "front-end"
    [component.front-end]
    source = "./bin/a.wasm"
    description = "d"
    environment = { A = "1" }
    files = ["assets", { source = "/static/", destination = "/www" }]
    allowed_outbound_hosts = ["http://{{ host }}"]
    allowed_http_hosts = ["old.example.org"]
    key_value_stores = ["default"]
    sqlite_databases = ["db"]
    ai_models = ["llama2-chat"]
    variables = { url = "http://{{ host }}/" }
    targets = ["spin-up:3.2"]
    [component.front-end.build]
    command = "cargo build"
    [component.front-end.tool.x]
    anything = true
"#;

#[test]
fn a_manifest_of_version_2_is_read_whole() {
    let application = parse(MANIFEST).unwrap();
    assert_eq!((application.name.as_str(), application.version.as_deref()), ("hello", Some("0.1.0")));
    assert_eq!(application.variables["host"].default.as_deref(), Some("h"));
    assert_eq!(application.variables["key"].default, None);
    let component = application.component("front-end").unwrap();
    assert_eq!(component.source, Source::File("bin/a.wasm".into()));
    assert_eq!(component.environment, [("A".to_string(), "1".to_string())]);
    let directory =
        |source: &str, destination: &str| Directory { source: source.into(), destination: destination.into() };
    assert_eq!(component.files, Files::Directories(vec![directory("assets", "/assets"), directory("static", "/www")]));
    let hosts: Vec<_> = component.allowed_outbound_hosts.iter().map(Template::as_written).collect();
    assert_eq!(hosts, ["http://{{ host }}", "http://old.example.org", "https://old.example.org"]);
    assert_eq!(
        (&component.key_value_stores[..], &component.databases[..]),
        (&["default".into()][..], &["db".into()][..])
    );
    assert_eq!(component.variables["url"].as_written(), "http://{{ host }}/");
    let [command, Trigger::Http(front), Trigger::Http(inner)] = &application.triggers[..] else {
        panic!("{:?}", application.triggers)
    };
    assert_eq!(front.route.as_ref().unwrap().as_written(), "/...");
    let written_in = HttpTrigger { route: None, answer: HttpAnswer::Component("http-2-component".into()) };
    assert_eq!(inner, &written_in);
    assert_eq!(application.component("http-2-component").unwrap().source, Source::File("inner.wasm".into()));
    assert_eq!(command, &Trigger::Command { component: "front-end".into() });
}

#[test]
fn what_is_wrong_or_not_supported_is_named() {
    for (from, to, text) in [
        ("spin_manifest_version = 2", "spin_manifest_version = 3", "the manifest has version 3"),
        ("spin_manifest_version = 2", "", "the key spin_manifest_version is missing"),
        ("spin_manifest_version = 2", "spin_manifest_version =", "/spin.toml: "),
        ("base = \"/\"", "base = \"/api\"", "the base path \"/api\""),
        ("host = { default = \"h\" }", "host = {}", "the variable \"host\" is neither required nor has a default"),
        ("host = { default = \"h\" }", "Host = { default = \"h\" }", "\"Host\" is not a name of a variable"),
        ("[[trigger.command]]", "[[trigger.cron]]", "the trigger type \"cron\" is not supported"),
        ("source = \"./bin/a.wasm\"", "source = { url = \"u\", digest = \"d\" }", "would have to be downloaded"),
        (
            "source = \"./bin/a.wasm\"",
            "source = { registry = \"r\", package = \"p\", version = \"1\" }",
            "the component \"front-end\": its source would have to be downloaded",
        ),
        ("source = \"./bin/a.wasm\"", "source = \"../a.wasm\"", "names a parent directory"),
        ("\"assets\"", "\"assets/*.txt\"", "the pattern \"assets/*.txt\" in files is not supported"),
        ("\"assets\"", "\"../assets\"", "names a parent directory"),
        ("ai_models = [", "exclude_files = [", "exclude_files needs a copy"),
        ("[component.front-end.tool.x]", "[component.front-end.dependencies.\"x:y/z\"]", "has dependencies"),
        ("targets = ", "colour = ", "unknown field `colour`"),
        (
            "component = \"front-end\"\n    [[trigger.http]]",
            "component = \"x\"\n    [[trigger.http]]",
            "names the component \"x\"",
        ),
        (
            "[component.front-end]",
            "[component.Front_End]\nsource = \"x\"\n[component.front-end]",
            "an id is lower-case words",
        ),
    ] {
        let changed = MANIFEST.replacen(from, to, 1);
        assert_ne!(changed, MANIFEST, "{from}");
        let error = parse(&changed).unwrap_err().to_string();
        assert!(error.contains(text) && error.starts_with("/spin.toml: ") && !error.contains('\n'), "{to}: {error}");
    }
}
