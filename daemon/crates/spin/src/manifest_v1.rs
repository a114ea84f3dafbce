//! `spin.toml`, version 1: one trigger type, and a list of components with a trigger each.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::{Table, Value};

use hearth_base::error::Result;

use crate::application::{Application, Component, Trigger, invalid};
use crate::legacy_hosts::outbound_hosts;
use crate::locked::{no_base, trigger_of};
use crate::manifest::{FilesValue, SourceValue, VariableTable, directories, read, source_of, variables};
use crate::template::Template;

/// The hosts that a component of version 1 may connect to beside HTTP hosts, unless it says otherwise.
const OTHER_HOSTS: [&str; 3] = ["redis://*:*", "mysql://*:*", "postgres://*:*"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    #[serde(rename = "spin_version", alias = "spin_manifest_version")]
    _version: Value,
    name: String,
    version: Option<String>,
    #[serde(rename = "description")]
    _description: Option<String>,
    #[serde(rename = "author")]
    _author: Option<String>,
    #[serde(rename = "authors", default)]
    _authors: Vec<String>,
    trigger: Table,
    #[serde(default)]
    variables: BTreeMap<String, VariableTable>,
    #[serde(default, rename = "component")]
    components: Vec<ComponentTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ComponentTable {
    id: String,
    source: SourceValue,
    trigger: Table,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    #[serde(default)]
    files: Vec<FilesValue>,
    #[serde(default)]
    exclude_files: Vec<String>,
    allowed_outbound_hosts: Option<Vec<String>>,
    #[serde(default)]
    allowed_http_hosts: Vec<String>,
    #[serde(default)]
    key_value_stores: Vec<String>,
    #[serde(default)]
    sqlite_databases: Vec<String>,
    #[serde(default)]
    config: BTreeMap<String, String>,
    #[serde(rename = "ai_models", default)]
    _ai_models: Vec<String>,
    #[serde(rename = "description")]
    _description: Option<String>,
    #[serde(rename = "build")]
    _build: Option<Value>,
}

/// Reads the manifest.
///
/// # Errors
/// As [`crate::manifest::parse`].
pub(crate) fn parse(table: Table) -> Result<Application> {
    let Manifest { name, version, trigger, variables: declared, components: tables, .. } = read(table.into())?;
    let text = |key: &str| trigger.get(key).and_then(Value::as_str);
    let kind = text("type").ok_or_else(|| invalid("trigger has no type".into()))?;
    if let Some(base) = text("base").filter(|base| *base != "/") {
        return Err(no_base(base));
    }
    let (mut triggers, mut components) = (Vec::new(), Vec::new());
    for table in tables {
        triggers.push(trigger_for(&table, kind, text("address"))?);
        let id = table.id.clone();
        components.push(component(table).map_err(|error| error.context(format!("the component {id:?}")))?);
    }
    Application { name, version, variables: variables(declared)?, triggers, components }.checked()
}

fn trigger_for(table: &ComponentTable, kind: &str, redis_address: Option<&str>) -> Result<Trigger> {
    let mut settings = table.trigger.clone();
    settings.insert("component".into(), Value::String(table.id.clone()));
    let wrong = |error: serde_json::Error| invalid(format!("the trigger of {:?}: {error}", table.id));
    trigger_of(&table.id, kind, serde_json::to_value(&settings).map_err(wrong)?, redis_address)
}

fn component(table: ComponentTable) -> Result<Component> {
    let legacy = outbound_hosts(&table.allowed_http_hosts);
    let hosts = match table.allowed_outbound_hosts {
        Some(hosts) => hosts.into_iter().chain(legacy).collect::<Vec<_>>(),
        None => legacy.into_iter().chain(OTHER_HOSTS.map(String::from)).collect(),
    };
    Ok(Component {
        id: table.id,
        source: source_of(table.source)?,
        environment: table.environment.into_iter().collect(),
        files: directories(table.files, &table.exclude_files)?,
        variables: Template::parse_values(table.config)?,
        allowed_outbound_hosts: Template::parse_list(&hosts)?,
        key_value_stores: table.key_value_stores,
        databases: table.sqlite_databases,
    })
}

#[cfg(test)]
mod tests {
    use crate::application::{Component, Directory, Files, HttpAnswer, Source, Trigger};
    use crate::manifest::parse;
    use crate::template::Template;

    const MANIFEST: &str = r#"
        spin_manifest_version = "1"
        name = "hello"
        version = "0.1.0"
        authors = ["a"]
        trigger = { type = "http", base = "/" }
        [variables]
        host = { default = "h" }
        [[component]]
        id = "outbound-redis"
        source = "a.wasm"
        environment = { A = "1" }
        files = ["assets"]
        config = { url = "{{ host }}" }
        key_value_stores = ["default"]
        [component.trigger]
        route = "hello"
        [component.build]
        command = "cargo build"
    "#;

    fn hosts(component: &Component) -> Vec<&str> {
        component.allowed_outbound_hosts.iter().map(Template::as_written).collect()
    }

    #[test]
    fn a_manifest_of_version_1_is_read_whole() {
        let application = parse(MANIFEST).unwrap();
        let component = &application.components[0];
        assert_eq!((application.name.as_str(), component.id.as_str()), ("hello", "outbound-redis"));
        assert_eq!(component.source, Source::File("a.wasm".into()));
        let assets = Directory { source: "assets".into(), destination: "/assets".into() };
        assert_eq!(component.files, Files::Directories(vec![assets]));
        assert_eq!(component.variables["url"].as_written(), "{{ host }}");
        assert_eq!(hosts(component), ["redis://*:*", "mysql://*:*", "postgres://*:*"]);
        let Trigger::Http(trigger) = &application.triggers[0] else { panic!("it is an http trigger") };
        assert_eq!(trigger.route.as_ref().unwrap().as_written(), "/hello");
        assert_eq!(trigger.answer, HttpAnswer::Component("outbound-redis".into()));
    }

    #[test]
    fn hosts_of_version_1_are_turned_into_those_of_version_2() {
        let with = |line: &str| parse(&MANIFEST.replace("files = [\"assets\"]", line)).unwrap();
        let http = with("allowed_http_hosts = [\"insecure:allow-all\"]");
        assert_eq!(hosts(&http.components[0])[..3], ["http://*:*", "https://*:*", "http://self"]);
        let outbound = with("allowed_outbound_hosts = [\"redis://r:6379\"]\nallowed_http_hosts = [\"e.org\"]");
        assert_eq!(hosts(&outbound.components[0]), ["redis://r:6379", "http://e.org", "https://e.org"]);
    }

    #[test]
    fn a_manifest_of_version_1_that_is_wrong_is_refused() {
        for (from, to, text) in [
            ("base = \"/\"", "base = \"/api\"", "the base path \"/api\""),
            ("type = \"http\"", "type = \"timer\"", "the trigger type \"timer\" is not supported"),
            ("type = \"http\"", "type = \"redis\"", "the trigger \"outbound-redis\": "),
            ("source = \"a.wasm\"", "source = { url = \"u\", digest = \"d\" }", "would have to be downloaded"),
            ("authors = [\"a\"]", "colour = \"red\"", "unknown field `colour`"),
            ("trigger = { type = \"http\", base = \"/\" }", "trigger = {}", "trigger has no type"),
        ] {
            let error = parse(&MANIFEST.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(text) && error.starts_with("/spin.toml: ") && !error.contains('\n'), "{error}");
        }
    }
}
